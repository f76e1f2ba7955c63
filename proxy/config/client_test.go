package config_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/heddle-mesh/heddle/proxy/config"
	"github.com/heddle-mesh/heddle/proxy/identity"
	"github.com/heddle-mesh/heddle/proxy/observe"
	"github.com/heddle-mesh/heddle/proxy/pipeline"
	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

// sidecar is a client with all that it works on, and its log.
type sidecar struct {
	*config.Client
	t       *testing.T
	dir     string
	source  *identity.Source
	current *pipeline.Current
	fresh   *pipeline.Freshness
	metrics *observe.Registry
	log     *logs
	handed  atomic.Pointer[string] // the content of the join token's file
	stop    func()
}

type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(b) }
func (l *logs) String() string              { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

type pool struct{}

func (pool) Retire() {}

// newSidecar makes a client on a state directory, not started. token is empty where the host is enrolled.
func newSidecar(t *testing.T, dir, address, token string) *sidecar {
	t.Helper()
	state, err := identity.OpenState(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := &sidecar{
		t: t, dir: dir, source: identity.NewSource(nil), current: pipeline.NewCurrent(), fresh: &pipeline.Freshness{},
		metrics: observe.New(nil), log: &logs{},
	}
	enroller := &identity.Enroller{Address: address, State: state, Source: s.source}
	if token != "" {
		if enroller.Token, err = identity.ParseToken(token); err != nil {
			t.Fatal(err)
		}
	}
	s.Client = config.New(config.Config{
		ControlPlane: address, Version: "v0.0.0-test", Declared: []mesh.ServiceName{"shop/ledger"},
		MeshAddress: "127.0.0.1:4143", Applications: map[string]string{"http": "127.0.0.1:8080"}, Dir: dir,
		JoinToken: func() (*identity.Token, error) {
			if b := s.handed.Load(); b != nil {
				return identity.ParseToken(*b)
			}
			return nil, nil
		},
	}, config.Deps{
		State: state, Source: s.source, Enroller: enroller, Current: s.current, Freshness: s.fresh, Metrics: s.metrics,
		Clusters: pipeline.NewClusters(func(pipeline.Target) pipeline.Pool { return pool{} }, nil),
	})
	return s
}

// start takes up the state directory and runs the client until stop, or the test's end.
func (s *sidecar) start() *sidecar {
	s.t.Helper()
	ctx, cancel := context.WithCancel(zerolog.New(s.log).WithContext(context.Background()))
	if err := s.Start(ctx); err != nil {
		cancel()
		s.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("Run: %v", err)
		}
	})
	s.t.Cleanup(s.stop)
	return s
}

// until waits for a pipeline.
func (s *sidecar) until(what string, ok func(*pipeline.Pipeline) bool) *pipeline.Pipeline {
	s.t.Helper()
	deadline := time.After(patience)
	for {
		p, changed := s.current.Changed()
		if ok(p) {
			return p
		}
		select {
		case <-changed:
		case <-deadline:
			s.t.Fatalf("the config never had %s; log:\n%s", what, s.log)
		}
	}
}

// poll waits for what announces nothing.
func (s *sidecar) poll(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("never: %s; log:\n%s", what, s.log)
		}
	}
}

// enrolled is a control plane and a sidecar that has connected to it.
func enrolled(t *testing.T) (*controlPlane, *sidecar, *wire) {
	t.Helper()
	c := startControlPlane(t, newAuthority(t), "127.0.0.1:0")
	s := newSidecar(t, filepath.Join(t.TempDir(), "state"), c.address, c.token()).start()
	return c, s, c.next()
}

func beat(state []byte) *proxyapi.ControlMessage {
	return &proxyapi.ControlMessage{Message: &proxyapi.ControlMessage_Heartbeat{Heartbeat: &proxyapi.Heartbeat{State: state}}}
}

func allowed(s *sidecar, peer string) decide.Verdict {
	p := s.current.Load()
	in := p.InboundByName("http")
	if in == nil {
		return decide.Verdict{Rule: "no port"}
	}
	return p.Authorize(in, &decide.Request{Peer: peer, HTTP: true, Method: "GET", Path: "/"}, time.Now())
}

// TestFirstStart: from a join token to an enforced config, and what the sidecar says of itself on the way.
func TestFirstStart(t *testing.T) {
	c, s, w := enrolled(t)
	q := receive(t, c.enrolled, "enrolment")
	if q.Workload != workload || q.TokenId != "t1" {
		t.Errorf("enrolled as %v", q)
	}
	h := w.hello
	if h.Workload != workload || h.Epoch != 0 || len(h.Have) != 0 || h.MeshAddress != "127.0.0.1:4143" ||
		h.Applications["http"] != "127.0.0.1:8080" || len(h.Capabilities) != len(mesh.Enforced) || h.Instance == "" ||
		!cmp.Equal(h.Declared, []string{"shop/ledger"}) {
		t.Errorf("hello is %v", h)
	}
	// Fails closed before the first config, and says what an outbound stack should wait for.
	if p := s.current.Load(); p.InboundBySNI(spiffe.SNI("shop/web", "http")) != nil || p.ByHost([]byte("api.shop.mesh")).State != pipeline.NoConfig {
		t.Error("something is known before the first config")
	}
	if a := w.transact(full(1, commitA)); a.Nack != "" {
		t.Fatalf("nack: %s", a.Nack)
	}
	p := s.current.Load() // published before it is acknowledged
	if p.Epoch != 1 || p.Commit != commitA || p.TrustDomain != trustDomain {
		t.Errorf("the config is of epoch %d, commit %s", p.Epoch, p.Commit)
	}
	if v := allowed(s, apiID); !v.Allowed || v.Rule != "shop/web/allow/api" {
		t.Errorf("shop/api: %+v", v)
	}
	if got := p.PolicyHeader("shop/web/default/http"); got != commitA+" shop/web/default/http mesh.cue:2" {
		t.Errorf("heddle-policy is %q", got)
	}
	u := p.ByHost([]byte("API.shop.mesh."))
	if u.State != pipeline.Known || u.Cluster.Len() != 1 || u.Cluster.Endpoints()[0].Workload != "shop/api-1" {
		t.Errorf("shop/api is %v", u)
	}
	s.poll("connected", func() bool { return s.Status().Connected })
	st := s.Status()
	if st.Workload != workload || st.Service != "shop/web" || st.Commit != commitA || len(st.Objects) != 6 || st.Error != "" {
		t.Errorf("status is %+v", st)
	}
	for _, name := range []string{"host.key", "svid", "bundle"} {
		if info, err := os.Stat(filepath.Join(s.dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
}

// TestRefusedTransactions: each is refused with a reason, and everything stays as it was, whole.
func TestRefusedTransactions(t *testing.T) {
	_, s, w := enrolled(t)
	base := full(5, commitA)
	if a := w.transact(base); a.Nack != "" {
		t.Fatal(a.Nack)
	}
	before := s.current.Load()
	corrupt := object(mesh.KindIndex, "x", mesh.Index{Namespace: "x"})
	corrupt.Bytes = append(bytes.Clone(corrupt.Bytes), ' ')
	unknownField := object(mesh.KindIndex, "x", map[string]any{"namespace": "x", "services": []any{}, "retries": 3})
	routed := outbound("shop/api", apiID, mesh.OutboundPort{Name: "http", Port: 80, Protocol: mesh.HTTP1,
		Matches: []mesh.Match{{Route: "shop/api/httpRoutes/r"}}})
	routed.Routes = []mesh.Route{{ID: "shop/api/httpRoutes/r", Port: "http", Backends: []mesh.Backend{{Service: "shop/api-v2", Port: "http", Weight: 1}}}}
	needy := outbound("shop/new", apiID, mesh.OutboundPort{Name: "http", Port: 80, Protocol: mesh.HTTP1})
	needy.Needs = []mesh.Capability{"http-fault"}
	changed := object(mesh.KindOutbound, "shop/other", outbound("shop/other", apiID, mesh.OutboundPort{Name: "http", Port: 80, Protocol: mesh.HTTP1}))
	for _, test := range []struct {
		name string
		tx   *proxyapi.Transaction
		want string
	}{
		{"older epoch", &proxyapi.Transaction{Epoch: 4, Commit: commitB}, "epoch 4 is older than 5"},
		{"corrupt object", &proxyapi.Transaction{Epoch: 6, Upserts: []*proxyapi.Object{corrupt}}, "is corrupt"},
		{"unknown field", &proxyapi.Transaction{Epoch: 6, Upserts: []*proxyapi.Object{unknownField}}, `unknown field "retries"`},
		{"unknown kind", &proxyapi.Transaction{Epoch: 6, Upserts: []*proxyapi.Object{object("wasm", "x", 1)}}, `kind "wasm"`},
		{"another name", &proxyapi.Transaction{Epoch: 6, Upserts: []*proxyapi.Object{object(mesh.KindIndex, "x", mesh.Index{Namespace: "y"})}}, "calls itself y"},
		{"unknown capability", &proxyapi.Transaction{Epoch: 6, Upserts: []*proxyapi.Object{object(mesh.KindOutbound, "shop/new", needy)}}, `capability "http-fault"`},
		{"backend that is not there", &proxyapi.Transaction{Epoch: 6, Upserts: []*proxyapi.Object{object(mesh.KindOutbound, "shop/api", routed)}}, "backend shop/api-v2 has no outbound"},
		{"good and bad together", &proxyapi.Transaction{Epoch: 6, Upserts: []*proxyapi.Object{changed, object(mesh.KindOutbound, "shop/new", needy)}}, `capability "http-fault"`},
		{"no settings", &proxyapi.Transaction{Epoch: 6, Full: true, Upserts: []*proxyapi.Object{changed}}, "no settings"},
		{"endpoint that is none", &proxyapi.Transaction{Epoch: 6, Upserts: []*proxyapi.Object{endpoints("shop/api", 70000)}}, "port 70000"},
	} {
		a := w.transact(test.tx)
		if !strings.Contains(a.Nack, test.want) {
			t.Errorf("%s: the answer is %q, want one with %q", test.name, a.Nack, test.want)
		}
		if s.current.Load() != before || s.Status().Nack != a.Nack {
			t.Errorf("%s: the config changed, or the status does not say why not: %q", test.name, s.Status().Nack)
		}
	}
	// The same epoch with other endpoints is fine, and takes the complaint back.
	ok := &proxyapi.Transaction{Epoch: 5, Commit: commitA, Upserts: []*proxyapi.Object{endpoints("shop/api", 4144)}}
	all := append(base.Upserts[:5:5], ok.Upserts...)
	if a := w.transact(withState(ok, all)); a.Nack != "" {
		t.Fatal(a.Nack)
	}
	after := s.current.Load()
	if s.Status().Nack != "" || after.ByName("shop/api", "http").Cluster.Endpoints()[0].Addr.Port() != 4144 {
		t.Error("the new endpoint did not come")
	}
	if after.ByName("shop/api", "http").Cluster != before.ByName("shop/api", "http").Cluster {
		t.Error("the cluster did not outlive the swap")
	}
	// So is a newer epoch that deletes.
	del := &proxyapi.Transaction{Epoch: 6, Commit: commitB, Deletes: []*proxyapi.ObjectVersion{{Kind: "outbound", Name: "shop/api"}, {Kind: proxyapi.KindEndpoints, Name: "shop/api"}}}
	if a := w.transact(withState(del, append(all[:3:3], all[4]))); a.Nack != "" {
		t.Fatal(a.Nack)
	}
	if got := s.current.Load().ByName("shop/api", "http").State; got != pipeline.Pending {
		t.Errorf("a destination that was taken back is %v", got)
	}
}

// TestDisagreement: a wrong state hash, in a transaction or a heartbeat, brings a reconnect with nothing in hand, while
// the old config serves on.
func TestDisagreement(t *testing.T) {
	c, s, w := enrolled(t)
	tx := full(1, commitA)
	w.transact(tx)
	w.send(beat(tx.State))
	w.send(beat(make([]byte, 32)))
	w = c.next()
	if len(w.hello.Have) != 0 || w.hello.Epoch != 1 {
		t.Errorf("after a heartbeat that differs, hello has %d objects at epoch %d", len(w.hello.Have), w.hello.Epoch)
	}
	if p := s.current.Load(); p.Epoch != 1 {
		t.Error("the config was dropped")
	}
	w.transact(full(1, commitA))
	bad := full(2, commitB)
	bad.State = make([]byte, 32)
	w.last++
	bad.Id = w.last
	w.send(&proxyapi.ControlMessage{Message: &proxyapi.ControlMessage_Transaction{Transaction: bad}})
	if w = c.next(); len(w.hello.Have) != 0 {
		t.Errorf("after a transaction that differs, hello has %d objects", len(w.hello.Have))
	}
	if p := s.current.Load(); p.Commit != commitA {
		t.Error("a transaction with a wrong hash was applied")
	}
	// A plain end of the stream is no disagreement.
	w.transact(full(3, commitB))
	w.end <- errEnd
	if w = c.next(); len(w.hello.Have) != 6 || w.hello.Epoch != 3 {
		t.Errorf("after a reconnect, hello has %d objects at epoch %d", len(w.hello.Have), w.hello.Epoch)
	}
}

// TestOnDemand: a destination that is wanted is asked for, over reconnects too, and comes or is refused.
func TestOnDemand(t *testing.T) {
	c, s, w := enrolled(t)
	tx := full(1, commitA)
	w.transact(tx)
	u := s.current.Load().ByHost([]byte("ledger.shop.mesh:5432"))
	if u.State != pipeline.Pending || u.Protocol != mesh.TCP {
		t.Fatalf("shop/ledger is %v", u.State)
	}
	s.Want(u.Service)
	s.Want(u.Service)
	if got := await(w, (*proxyapi.ProxyMessage).GetSubscribe); !cmp.Equal(got.Add, []string{"shop/ledger"}) {
		t.Errorf("subscribed to %v", got.Add)
	}
	w.send(&proxyapi.ControlMessage{Message: &proxyapi.ControlMessage_Refused{Refused: &proxyapi.Refused{
		Service: "shop/ledger", Reason: "denied", Rule: "shop/ledger/deny/web", Origin: "ledger.cue:9"}}})
	p := s.until("a refusal", func(p *pipeline.Pipeline) bool {
		return p.ByName("shop/ledger", "tcp").State == pipeline.Refused
	})
	if r := p.ByName("shop/ledger", "tcp").Refusal; r.Rule != "shop/ledger/deny/web" || r.Origin != "ledger.cue:9" {
		t.Errorf("refused by %+v", r)
	}
	w.end <- errEnd
	w = c.next()
	if !cmp.Equal(w.hello.Subscribed, []string{"shop/ledger"}) {
		t.Errorf("after a reconnect, subscribed to %v", w.hello.Subscribed)
	}
	o := object(mesh.KindOutbound, "shop/ledger", outbound("shop/ledger", "spiffe://shop.test/ns/shop/sa/ledger", mesh.OutboundPort{Name: "tcp", Port: 5432, Protocol: mesh.TCP}))
	up := &proxyapi.Transaction{Epoch: 2, Commit: commitB, Upserts: []*proxyapi.Object{o}}
	w.transact(withState(up, append(tx.Upserts[:6:6], o)))
	if got := s.current.Load().ByName("shop/ledger", "5432").State; got != pipeline.Known {
		t.Errorf("shop/ledger is %v", got)
	}
	s.ConnectFailed("shop/ledger", "10.0.0.9:4143", errors.New("refused"))
	s.ConnectFailed("shop/ledger", "10.0.0.9:4143", errors.New("refused again"))
	s.ConnectFailed("shop/ledger", "10.0.0.8:4143", errors.New("timeout"))
	first, second := await(w, (*proxyapi.ProxyMessage).GetConnectFailure), await(w, (*proxyapi.ProxyMessage).GetConnectFailure)
	if first.Address != "10.0.0.9:4143" || first.Error != "refused" || second.Address != "10.0.0.8:4143" {
		t.Errorf("reported %v, %v", first, second)
	}
	h := s.metrics.HTTP(observe.Key{Direction: observe.Outbound, TLS: true, Service: "shop/api", Port: 80})
	h.Response(200, true, time.Millisecond)
	if e := await(w, (*proxyapi.ProxyMessage).GetTraffic).Edges[0]; e.Service != "shop/api" || e.Requests != 1 || !e.Mtls || e.Latency[0] != 1 {
		t.Errorf("traffic is %v", e)
	}
}

// TestRestartWithoutControlPlane: the last known good config serves at once, with identity, and says how old it is; a
// stale one allows no identity anything; the stream heals when the control plane returns.
func TestRestartWithoutControlPlane(t *testing.T) {
	c, s, w := enrolled(t)
	w.transact(full(7, commitA))
	s.stop()
	c.stop()

	s = newSidecar(t, s.dir, c.address, "").start()
	p := s.current.Load()
	if p.Epoch != 7 || p.ByHost([]byte("api.shop.mesh")).State != pipeline.Known || s.source.Valid() != nil {
		t.Fatalf("after a restart: epoch %d, %v; log:\n%s", p.Epoch, s.source.Valid(), s.log)
	}
	if !strings.Contains(s.log.String(), "serving from the last known good config") {
		t.Errorf("the log does not say so:\n%s", s.log)
	}
	if v := allowed(s, apiID); !v.Allowed {
		t.Errorf("shop/api: %+v", v)
	}
	// As old as the SVID's life: identities are allowed nothing, routing goes on.
	s.fresh.Confirm(time.Now().Add(-2 * time.Hour))
	if v := allowed(s, apiID); v.Allowed || !p.Stale(time.Now()) {
		t.Errorf("with a stale config, shop/api: %+v", v)
	}
	s.poll("an error of the stream", func() bool { return s.Status().Error != "" })
	c.listen(c.address)
	w = c.next()
	if w.hello.Epoch != 7 || len(w.hello.Have) != 6 {
		t.Errorf("hello has %d objects at epoch %d", len(w.hello.Have), w.hello.Epoch)
	}
	w.send(beat(stateOf(full(7, commitA).Upserts)))
	s.poll("fresh again", func() bool { return allowed(s, apiID).Allowed })
	if a := w.transact(&proxyapi.Transaction{Epoch: 6, Commit: commitB}); !strings.Contains(a.Nack, "older") {
		t.Errorf("an epoch older than the last known good one: %q", a.Nack)
	}
	s.stop()
	c.stop()
}

// TestDamagedState: what is damaged is not used and said to be; nothing of it serves.
func TestDamagedState(t *testing.T) {
	c, s, w := enrolled(t)
	w.transact(full(1, commitA))
	s.stop()
	lkg := filepath.Join(s.dir, config.LastGoodFile)
	good, err := os.ReadFile(lkg)
	if err != nil {
		t.Fatal(err)
	}
	otherHost := filepath.Join(t.TempDir(), "other")
	if _, err := identity.OpenState(otherHost); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(otherHost, "host.key"))
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile(filepath.Join(s.dir, "host.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		damage func()
		want   string
	}{
		{"cut short", func() { os.WriteFile(lkg, good[:len(good)/2], 0o600) }, "corrupt"},
		{"changed", func() {
			b := bytes.Clone(good)
			b[len(b)-5] ^= 1
			os.WriteFile(lkg, b, 0o600)
		}, "corrupt"},
		{"another host's", func() { os.WriteFile(filepath.Join(s.dir, "host.key"), key, 0o600) }, "this host's key did not sign it"},
	} {
		t.Run(test.name, func(t *testing.T) {
			os.WriteFile(filepath.Join(s.dir, "host.key"), own, 0o600)
			os.WriteFile(lkg, good, 0o600)
			test.damage()
			s := newSidecar(t, s.dir, c.address, "")
			if err := s.Start(zerolog.New(s.log).WithContext(t.Context())); err != nil {
				t.Fatal(err)
			}
			if p := s.current.Load(); p.Epoch != 0 || p.TrustDomain != "" {
				t.Errorf("epoch %d serves", p.Epoch)
			}
			if !strings.Contains(s.log.String(), test.want) || !strings.Contains(s.log.String(), config.LastGoodFile) {
				t.Errorf("the log does not say %q:\n%s", test.want, s.log)
			}
		})
	}
}

// TestDamagedIdentity: without a token, the host key gets another one, by the name in the last known good config.
func TestDamagedIdentity(t *testing.T) {
	c, s, w := enrolled(t)
	receive(t, c.enrolled, "enrolment")
	w.transact(full(1, commitA))
	s.stop()
	if err := os.WriteFile(filepath.Join(s.dir, "svid"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = newSidecar(t, s.dir, c.address, "").start()
	if q := receive(t, c.enrolled, "enrolment"); q.TokenId != "" || q.Workload != workload {
		t.Errorf("enrolled by %v", q)
	}
	if w = c.next(); w.hello.Workload != workload || w.hello.Epoch != 1 {
		t.Errorf("hello is %v", w.hello)
	}
	if !strings.Contains(s.log.String(), "not usable; enrolling again") {
		t.Errorf("the log does not say so:\n%s", s.log)
	}
}

// TestNewWorkloadWaits: without a control plane a new workload waits and says for what; without a token it does not
// begin.
func TestNewWorkloadWaits(t *testing.T) {
	ca := newAuthority(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	ln.Close()
	if err := newSidecar(t, filepath.Join(t.TempDir(), "none"), address, "").Start(t.Context()); !errors.Is(err, identity.ErrNoToken) {
		t.Errorf("without a token: %v", err)
	}
	token := (&controlPlane{ca: ca}).token()
	s := newSidecar(t, filepath.Join(t.TempDir(), "state"), address, token).start()
	s.poll("a reason", func() bool { return s.Status().Error != "" })
	if st := s.Status(); !strings.Contains(st.Waiting, "first enrolment of workload shop/web-1") || st.Connected {
		t.Errorf("status is %+v", st)
	}
	if !errors.Is(s.source.Valid(), identity.ErrNone) {
		t.Error("there is an identity")
	}
	// A control plane with another root is not told the secret.
	other := startControlPlane(t, newAuthority(t), address)
	s.poll("the wrong root", func() bool { return strings.Contains(s.Status().Error, "the join token names") })
	if len(other.enrolled) != 0 {
		t.Error("the secret was told to a control plane of another root")
	}
	other.stop()
	// The right one, which refuses until an operator acts.
	right := startControlPlane(t, ca, address)
	if q := receive(t, right.enrolled, "enrolment"); q.Workload != workload {
		t.Errorf("enrolled %v", q)
	}
	right.next()
}

// TestExpiredIdentity: an SVID that ended while the control plane was away fails closed, and the host key alone gets a
// new one when it is back.
func TestExpiredIdentity(t *testing.T) {
	c := startControlPlane(t, newAuthority(t), "127.0.0.1:0")
	c.leafLife = time.Second
	s := newSidecar(t, filepath.Join(t.TempDir(), "state"), c.address, c.token()).start()
	receive(t, c.enrolled, "enrolment")
	w := c.next()
	w.transact(full(1, commitA))
	s.stop()
	c.stop()
	s = newSidecar(t, s.dir, c.address, "").start()
	s.poll("expiry", func() bool { return errors.Is(s.source.Valid(), identity.ErrExpired) })
	ours, theirs := net.Pipe()
	defer theirs.Close()
	peer := c.ca.leaf(apiID, time.Hour)
	go tls.Server(theirs, &tls.Config{Certificates: []tls.Certificate{peer}, ClientAuth: tls.RequireAnyClientCert}).Handshake()
	if err := tls.Client(ours, s.source.ClientTLS("x", []spiffe.ID{apiID})).Handshake(); !errors.Is(err, identity.ErrExpired) {
		t.Errorf("a handshake with an expired identity: %v", err)
	}
	if s.current.Load().Epoch != 1 {
		t.Error("the config was dropped with the identity")
	}
	c.leafLife = time.Hour
	c.listen(c.address)
	if q := receive(t, c.enrolled, "enrolment"); q.TokenId != "" || q.Workload != workload {
		t.Errorf("enrolled by %v", q)
	}
	if w = c.next(); w.hello.Epoch != 1 {
		t.Errorf("hello is at epoch %d", w.hello.Epoch)
	}
	if err := s.source.Valid(); err != nil {
		t.Error(err)
	}
	c.stop()
}

// TestRenewal: the certificate is renewed over the stream for a new key, and a refusal is tried again; new roots are
// taken over while connected.
func TestRenewal(t *testing.T) {
	c := startControlPlane(t, newAuthority(t), "127.0.0.1:0")
	c.leafLife = 1500 * time.Millisecond // at most 70 % of it until the first request
	s := newSidecar(t, filepath.Join(t.TempDir(), "state"), c.address, c.token()).start()
	w := c.next()
	first := s.source.Load().SVID
	answer := func(life time.Duration, id, fault string) *x509.CertificateRequest {
		t.Helper()
		q := await(w, (*proxyapi.ProxyMessage).GetCertificateRequest)
		csr, err := x509.ParseCertificateRequest(q.Csr)
		if err != nil || csr.CheckSignature() != nil || len(csr.URIs) != 1 || csr.URIs[0].String() != webID {
			t.Fatalf("the request is %v, %v", csr, err)
		}
		cert := &proxyapi.Certificate{Error: fault}
		if fault == "" {
			cert.Chain = [][]byte{c.ca.sign(csr.PublicKey, id, life)}
		}
		w.send(&proxyapi.ControlMessage{Message: &proxyapi.ControlMessage_Certificate{Certificate: cert}})
		return csr
	}
	a := answer(time.Hour, webID, "the CA is away")
	b := answer(time.Hour, apiID, "") // another identity than the own is not accepted
	if s.source.Load().SVID != first {
		t.Error("a refusal or a foreign certificate replaced the SVID")
	}
	d := answer(time.Hour, webID, "")
	s.poll("a renewed certificate", func() bool { return s.source.Load().SVID.NotAfter.After(first.NotAfter) })
	keys := map[string]bool{}
	for _, csr := range []*x509.CertificateRequest{a, b, d} {
		keys[fmt.Sprint(csr.PublicKey)] = true
	}
	if len(keys) != 3 {
		t.Errorf("%d keys in three requests", len(keys))
	}
	next := newAuthority(t)
	w.send(&proxyapi.ControlMessage{Message: &proxyapi.ControlMessage_Bundle{Bundle: &proxyapi.Bundle{
		Generation: 2, Roots: [][]byte{c.ca.cert.Raw, next.cert.Raw}}}})
	s.poll("two roots", func() bool { return len(s.source.Load().Bundle.Roots) == 2 })
	// Without the root of the own SVID the next one is asked for at once.
	c.ca = next
	w.send(&proxyapi.ControlMessage{Message: &proxyapi.ControlMessage_Bundle{Bundle: &proxyapi.Bundle{Generation: 3, Roots: [][]byte{next.cert.Raw}}}})
	answer(time.Hour, webID, "")
	s.poll("a certificate of the new root", func() bool { return s.source.Load().SVID.VerifiedBy(s.source.Load().Bundle, time.Now()) })
	s.stop()
	again := newSidecar(t, s.dir, c.address, "")
	if err := again.Start(t.Context()); err != nil || again.source.Valid() != nil || len(again.source.Load().Bundle.Roots) != 1 {
		t.Errorf("after a restart: %v, %v", err, again.source.Valid())
	}
}

// TestDrainAndReenrol: a control plane can send a sidecar away, and have it prove itself anew.
func TestDrainAndReenrol(t *testing.T) {
	c, s, w := enrolled(t)
	receive(t, c.enrolled, "enrolment")
	w.send(&proxyapi.ControlMessage{Message: &proxyapi.ControlMessage_Drain{Drain: &proxyapi.Drain{Within: durationpb.New(time.Millisecond)}}})
	w = c.next()
	if s.Status().Error != "" {
		t.Errorf("a drain is no error: %s", s.Status().Error)
	}
	w.end <- status.Error(codes.Unauthenticated, "the workload has another identity now; enrol again")
	receive(t, c.enrolled, "second enrolment")
	c.next()
	// What an operator must act on is said, and not tried in a hurry.
	w2 := status.New(codes.PermissionDenied, "the enrolment was revoked")
	c.refuse.Store(w2)
	if !identity.Permanent(w2.Err()) {
		t.Error("a revocation does not count as permanent")
	}
}

// TestNewToken: a join token that this sidecar has not used is used at the next connection, with a certificate that has not
// ended too. That is what mends a lost register of enrolments, and a lost root.
func TestNewToken(t *testing.T) {
	c, s, w := enrolled(t)
	receive(t, c.enrolled, "enrolment")
	hand := func(token string) { s.handed.Store(&token) }

	// The token that was used is no news.
	hand(c.token())
	w.transact(full(1, commitA))
	w.end <- errEnd
	w = c.next()
	if len(c.enrolled) != 0 {
		t.Error("enrolled again with the same token")
	}
	// A new one that is refused costs nothing: the certificate at hand is good.
	no := status.New(codes.PermissionDenied, "the join token ended")
	c.refuse.Store(no)
	hand(c.tokenOf("ended"))
	w.end <- errEnd
	w = c.next()
	s.poll("the refusal in the log", func() bool { return strings.Contains(s.log.String(), "the join token ended") })
	w.end <- errEnd
	w = c.next()
	if n := strings.Count(s.log.String(), "the join token ended"); n != 1 {
		t.Errorf("a refused token was told of %d times", n)
	}
	// What cannot be read, or is another workload's, is not used.
	c.refuse.Store(nil)
	hand("secret")
	w.end <- errEnd
	w = c.next()
	if len(c.enrolled) != 0 || !strings.Contains(s.log.String(), "no join token") || strings.Contains(s.log.String(), `"secret"`) {
		t.Errorf("a damaged token: log:\n%s", s.log)
	}

	// The control plane lost its enrolments: the host key is unknown, the certificate still good.
	c.knownHost.Store(nil)
	hand(c.tokenOf("t2"))
	w.end <- status.Error(codes.PermissionDenied, "not enrolled")
	if q := receive(t, c.enrolled, "enrolment"); q.TokenId != "t2" {
		t.Errorf("enrolled by %v", q)
	}
	w = c.next()
	// It lost its root: no handshake succeeds, until a token names the new one.
	c.stop()
	other := startControlPlane(t, newAuthority(t), c.address)
	s.poll("an error of the stream", func() bool { return s.Status().Error != "" && !s.Status().Connected })
	hand(other.tokenOf("t3"))
	if q := receive(t, other.enrolled, "enrolment"); q.TokenId != "t3" {
		t.Errorf("enrolled by %v", q)
	}
	w = other.next()
	if w.hello.Epoch != 1 || len(w.hello.Have) != 6 {
		t.Errorf("the config was dropped with the root: hello has %d objects at epoch %d", len(w.hello.Have), w.hello.Epoch)
	}
	// Which token was used outlives a restart.
	s.stop()
	handed := *s.handed.Load()
	s = newSidecar(t, s.dir, other.address, "")
	s.handed.Store(&handed)
	s.start()
	other.next()
	if len(other.enrolled) != 0 {
		t.Error("enrolled again with the same token after a restart")
	}
	// A host key that was lost is replaced by a token too.
	s.stop()
	if err := os.Remove(filepath.Join(s.dir, "host.key")); err != nil {
		t.Fatal(err)
	}
	handed = other.tokenOf("t4")
	s = newSidecar(t, s.dir, other.address, handed)
	s.handed.Store(&handed)
	s.start()
	if q := receive(t, other.enrolled, "enrolment"); q.TokenId != "t4" {
		t.Errorf("enrolled by %v", q)
	}
	other.next()
}
