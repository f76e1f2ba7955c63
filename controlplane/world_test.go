package controlplane_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/heddle-mesh/heddle/controlplane"
	"github.com/heddle-mesh/heddle/controlplane/enroll"
	"github.com/heddle-mesh/heddle/internal/operator"
	"github.com/heddle-mesh/heddle/internal/pinned"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
	"github.com/heddle-mesh/heddle/schema/release"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

// patience bounds waiting for another goroutine or process; it is never part of what is asserted.
const patience = 60 * time.Second

// reconciler serves signed releases over the real transport, as reconciler/release does; the arrows forbid to import it.
type reconciler struct {
	proxyapi.UnimplementedReleasesServer
	key   ed25519.PrivateKey
	addr  string
	stop  func()
	t     *testing.T
	allow ed25519.PublicKey

	mu      sync.Mutex
	signed  release.Signed
	epoch   uint64
	blobs   map[mesh.Hash][]byte
	asked   int // blobs
	changed chan struct{}
	reports []*proxyapi.PushReport
}

func newReconciler(t *testing.T, allow ed25519.PublicKey) *reconciler {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	r := &reconciler{t: t, key: key, allow: allow, blobs: map[mesh.Hash][]byte{}, changed: make(chan struct{})}
	r.start()
	t.Cleanup(func() { r.stop() })
	return r
}

// start listens, at the address it had before if it had one.
func (r *reconciler) start() {
	addr := r.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	must(r.t, err)
	r.addr = l.Addr().String()
	g := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}), grpc.Creds(credentials.NewTLS(pinned.ServerTLS(r.key, func(k ed25519.PublicKey) bool { return k.Equal(r.allow) }))))
	proxyapi.RegisterReleasesServer(g, r)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	r.stop = func() { g.Stop(); <-done }
}

// publish signs a mesh as the next release and returns its record.
func (r *reconciler) publish(m *mesh.Mesh, commit string, origins mesh.Origins) *release.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.epoch++
	rec := &release.Record{Epoch: r.epoch, Compiler: "test", Published: time.Now().UTC(),
		Sources: []release.Source{{Name: "policy", Commit: commit}}, Guards: release.Guards{TrustDomain: m.Settings.TrustDomain}}
	add := func(ns string, v any) mesh.ChunkRef {
		b := mesh.Canonical(v)
		h := mesh.Hash(sha256.Sum256(b))
		r.blobs[h] = b
		return mesh.ChunkRef{Namespace: ns, Hash: h, Size: len(b)}
	}
	for _, c := range m.Chunks() {
		rec.Chunks = append(rec.Chunks, add(c.Namespace, c))
	}
	rec.Behaviour = mesh.BehaviourHash(rec.Chunks)
	if origins == nil {
		origins = mesh.Origins{}
	}
	rec.Origins = add("", origins)
	r.signed = release.Sign(r.key, rec)
	close(r.changed)
	r.changed = make(chan struct{})
	return rec
}

func (r *reconciler) Watch(q *proxyapi.WatchRequest, w grpc.ServerStreamingServer[proxyapi.SignedRecord]) error {
	for has := q.GetEpoch(); ; {
		r.mu.Lock()
		s, epoch, changed := r.signed, r.epoch, r.changed
		r.mu.Unlock()
		if epoch != has && s.Bytes != nil {
			if err := w.Send(&proxyapi.SignedRecord{Record: s.Bytes, Signature: s.Signature}); err != nil {
				return err
			}
			has = epoch
			continue
		}
		select {
		case <-changed:
		case <-w.Context().Done():
			return w.Context().Err()
		}
	}
}

func (r *reconciler) Blobs(q *proxyapi.BlobsRequest, w grpc.ServerStreamingServer[proxyapi.Blob]) error {
	for _, h := range q.GetHashes() {
		r.mu.Lock()
		b := r.blobs[mesh.Hash(h)]
		r.asked++
		r.mu.Unlock()
		if err := w.Send(&proxyapi.Blob{Hash: h, Bytes: b}); err != nil {
			return err
		}
	}
	return nil
}

func (r *reconciler) Report(_ context.Context, q *proxyapi.PushReport) (*proxyapi.PushReportReply, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reports = append(r.reports, q)
	return &proxyapi.PushReportReply{}, nil
}

// lastReport is the last one, nil before the first.
func (r *reconciler) lastReport() *proxyapi.PushReport {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.reports) == 0 {
		return nil
	}
	return r.reports[len(r.reports)-1]
}

// world is a control plane, run as cmd/heddle runs it, with a reconciler to follow.
type world struct {
	*reconciler
	t     *testing.T
	state string
	cfg   controlplane.Config
	api   *operator.Client
	stopP func()
}

func newWorld(t *testing.T) *world {
	state := filepath.Join(t.TempDir(), "cp")
	key, err := pinned.LoadOrCreateKey(filepath.Join(state, "key"))
	must(t, err)
	w := &world{t: t, state: state, reconciler: newReconciler(t, pinned.Public(key))}
	w.cfg = controlplane.Config{StateDir: state, Listen: "127.0.0.1:0", ListenEnrolment: "127.0.0.1:0", ListenMetrics: "127.0.0.1:0",
		Reconciler: w.addr, ReconcilerKey: release.FormatKey(pinned.Public(w.key)), Version: "v0-test"}
	w.api = operator.NewClient(filepath.Join(state, operator.SocketName))
	t.Cleanup(func() {
		if w.stopP != nil {
			w.stopControlPlane()
		}
	})
	return w
}

// startControlPlane runs it, at the addresses it had before if it ran before.
func (w *world) startControlPlane() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	if testing.Verbose() {
		ctx = zerolog.New(zerolog.NewTestWriter(w.t)).Level(zerolog.DebugLevel).WithContext(ctx)
	}
	done := make(chan error, 1)
	go func() { done <- controlplane.Run(ctx, w.cfg) }()
	w.stopP = func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("the control plane ended with %v", err)
		}
		w.stopP = nil
	}
	var s controlplane.Status
	w.eventually("the control plane answers", func() bool {
		select {
		case err := <-done:
			w.t.Fatalf("the control plane did not start: %v", err)
		default:
		}
		return w.api.Get(w.t.Context(), "/v1/status", &s) == nil
	})
	w.cfg.Listen, w.cfg.ListenEnrolment, w.cfg.ListenMetrics = s.Addresses.Stream, s.Addresses.Enrolment, s.Addresses.Metrics
}

func (w *world) stopControlPlane() { w.stopP() }

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			w.t.Fatalf("it never came true that %s", what)
		}
		time.Sleep(5 * time.Millisecond) // a poll; nothing is asserted about how long it takes
	}
}

func (w *world) status() (s controlplane.Status) {
	w.t.Helper()
	must(w.t, w.api.Get(w.t.Context(), "/v1/status", &s))
	return s
}

func (w *world) proxy(workload string) string {
	var ps controlplane.Proxies
	must(w.t, w.api.Get(w.t.Context(), "/v1/proxies", &ps))
	for _, p := range ps.Items {
		if p.Workload == workload {
			return string(p.State)
		}
	}
	return "none"
}

func (w *world) token(workload, service string) *enroll.JoinToken {
	w.t.Helper()
	var reply controlplane.TokenReply
	w.eventually("a token is made for "+workload, func() bool { // not before the first release
		return w.api.Post(w.t.Context(), "/v1/tokens", controlplane.TokenRequest{Workload: workload, Service: service}, &reply) == nil
	})
	tok, err := enroll.ParseToken(reply.Token)
	must(w.t, err)
	return tok
}

// host is a machine with a host key, and what a sidecar keeps on its disk.
type host struct {
	w        *world
	workload string
	address  string // that it advertises
	key      *ecdsa.PrivateKey

	svid    tls.Certificate
	roots   []*x509.Certificate
	service string
	id      string
	kept    *sidecar // its last run, where a test wants it
}

var ports int // advertised ports; nobody listens there

func (w *world) newHost(workload string) *host {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(w.t, err)
	ports++
	return &host{w: w, workload: workload, key: key, address: fmt.Sprintf("127.0.0.1:%d", 20000+ports)}
}

// enrol asks for an SVID with a token, or by the host key alone where it is nil.
func (h *host) enrol(tok *enroll.JoinToken, fingerprint string, edit func(*proxyapi.EnrolRequest)) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(h.w.t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	must(h.w.t, err)
	q := &proxyapi.EnrolRequest{Workload: h.workload, Csr: csr, Time: timestamppb.Now()}
	q.HostKey, err = x509.MarshalPKIXPublicKey(&h.key.PublicKey)
	must(h.w.t, err)
	if tok != nil {
		q.TokenId = tok.ID
		q.TokenSecret, err = base64.RawURLEncoding.DecodeString(tok.Secret)
		must(h.w.t, err)
		fingerprint = tok.Fingerprint
	}
	q.Proof, err = ecdsa.SignASN1(rand.Reader, h.key, proxyapi.EnrolDigest(q))
	must(h.w.t, err)
	if edit != nil {
		edit(q)
	}
	conn, err := grpc.NewClient("passthrough:///"+h.w.cfg.ListenEnrolment, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		InsecureSkipVerify: true, // the fingerprint judges
		VerifyConnection: func(cs tls.ConnectionState) error {
			root := cs.PeerCertificates[len(cs.PeerCertificates)-1]
			if sum := sha256.Sum256(root.RawSubjectPublicKeyInfo); hex.EncodeToString(sum[:]) != fingerprint {
				return errors.New("the server's root is not that of the token")
			}
			b := &spiffe.Bundle{TrustDomain: td, Roots: []*x509.Certificate{root}}
			id, err := b.Verify(cs.PeerCertificates, time.Now(), x509.ExtKeyUsageServerAuth)
			if err == nil && id != spiffe.ControlPlaneID(td) {
				err = fmt.Errorf("the server is %s", id)
			}
			return err
		},
	})))
	must(h.w.t, err)
	defer conn.Close()
	resp, err := proxyapi.NewEnrolmentClient(conn).Enrol(h.w.t.Context(), q)
	if err != nil {
		return err
	}
	h.service, h.id = resp.Service, resp.Identity
	h.roots = nil
	for _, der := range resp.Bundle.Roots {
		c, err := x509.ParseCertificate(der)
		must(h.w.t, err)
		h.roots = append(h.roots, c)
	}
	h.svid = tls.Certificate{Certificate: resp.Certificate.Chain, PrivateKey: key}
	return nil
}

// sidecar is one run of a sidecar: a real stream, and the state that transactions make.
type sidecar struct {
	h      *host
	cancel func()
	conn   *grpc.ClientConn
	stream grpc.BidiStreamingClient[proxyapi.ProxyMessage, proxyapi.ControlMessage]
	done   chan struct{}
	nack   func(*proxyapi.Transaction) string
	gate   chan struct{} // not nil: each receive waits for it

	sendMu sync.Mutex // Send is not safe for concurrent use

	mu           sync.Mutex
	err          error
	objects      map[string]*proxyapi.Object
	epoch        uint64
	commit       string
	transactions []*proxyapi.Transaction
	heartbeats   []*proxyapi.Heartbeat
	bundles      int
	certificates []*proxyapi.Certificate
	refused      []*proxyapi.Refused
	drains       int
}

// option changes a sidecar before it says hello.
type option func(*sidecar, *proxyapi.Hello)

func nackWith(f func(*proxyapi.Transaction) string) option {
	return func(s *sidecar, _ *proxyapi.Hello) { s.nack = f }
}

// keeping starts a sidecar with what another one had.
func keeping(old *sidecar) option {
	return func(s *sidecar, q *proxyapi.Hello) {
		old.mu.Lock()
		defer old.mu.Unlock()
		for k, o := range old.objects {
			s.objects[k] = o
			q.Have = append(q.Have, &proxyapi.ObjectVersion{Kind: o.Kind, Name: o.Name, Hash: o.Hash})
		}
		s.epoch, s.commit, q.Epoch = old.epoch, old.commit, old.epoch
	}
}

func (h *host) connect(opts ...option) *sidecar {
	ctx, cancel := context.WithCancel(context.Background())
	s := &sidecar{h: h, cancel: cancel, done: make(chan struct{}), objects: map[string]*proxyapi.Object{}}
	q := &proxyapi.Hello{Workload: h.workload, Version: "v0-test", MeshAddress: h.address, Instance: fmt.Sprintf("%p", s)}
	for _, c := range mesh.Enforced {
		q.Capabilities = append(q.Capabilities, string(c))
	}
	for _, o := range opts {
		o(s, q)
	}
	var err error
	s.conn, err = grpc.NewClient("passthrough:///"+h.w.cfg.Listen, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		Certificates:       []tls.Certificate{h.svid},
		InsecureSkipVerify: true, // VerifyConnection judges
		VerifyConnection: func(cs tls.ConnectionState) error {
			b := &spiffe.Bundle{TrustDomain: td, Roots: h.roots}
			id, err := b.Verify(cs.PeerCertificates, time.Now(), x509.ExtKeyUsageServerAuth)
			if err == nil && id != spiffe.ControlPlaneID(td) {
				err = fmt.Errorf("the server is %s", id)
			}
			return err
		},
	})), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	must(h.w.t, err)
	s.stream, err = proxyapi.NewConfigClient(s.conn).Stream(ctx)
	if err == nil {
		err = s.stream.Send(&proxyapi.ProxyMessage{Message: &proxyapi.ProxyMessage_Hello{Hello: q}})
	}
	if err != nil && !errors.Is(err, io.EOF) {
		h.w.t.Fatalf("open a stream: %v", err)
	}
	go s.receive()
	h.w.t.Cleanup(s.close)
	return s
}

func (s *sidecar) close() {
	s.cancel()
	<-s.done
	s.conn.Close()
}

func (s *sidecar) send(m *proxyapi.ProxyMessage) {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	_ = s.stream.Send(m) // a broken stream shows in receive
}

func (s *sidecar) receive() {
	defer close(s.done)
	for {
		if s.gate != nil {
			select {
			case <-s.gate:
			case <-s.stream.Context().Done():
				return
			}
		}
		m, err := s.stream.Recv()
		if err != nil {
			s.mu.Lock()
			s.err = err
			s.mu.Unlock()
			return
		}
		switch m := m.Message.(type) {
		case *proxyapi.ControlMessage_Transaction:
			s.send(&proxyapi.ProxyMessage{Message: &proxyapi.ProxyMessage_Ack{Ack: s.apply(m.Transaction)}})
		case *proxyapi.ControlMessage_Heartbeat:
			s.mu.Lock()
			s.heartbeats = append(s.heartbeats, m.Heartbeat)
			if !bytes.Equal(m.Heartbeat.State, stateOf(s.objects)) {
				s.h.w.t.Errorf("%s: a heartbeat has another state than the sidecar", s.h.workload)
			}
			s.mu.Unlock()
		case *proxyapi.ControlMessage_Bundle:
			s.mu.Lock()
			s.bundles++
			s.mu.Unlock()
		case *proxyapi.ControlMessage_Certificate:
			s.mu.Lock()
			s.certificates = append(s.certificates, m.Certificate)
			s.mu.Unlock()
		case *proxyapi.ControlMessage_Refused:
			s.mu.Lock()
			s.refused = append(s.refused, m.Refused)
			s.mu.Unlock()
		case *proxyapi.ControlMessage_Drain:
			s.mu.Lock()
			s.drains++
			s.mu.Unlock()
		}
	}
}

func stateOf(objects map[string]*proxyapi.Object) []byte {
	var vs []*proxyapi.ObjectVersion
	for _, o := range objects {
		vs = append(vs, &proxyapi.ObjectVersion{Kind: o.Kind, Name: o.Name, Hash: o.Hash})
	}
	return proxyapi.StateHash(vs)
}

// apply does what a sidecar does with a transaction: all of it or nothing.
func (s *sidecar) apply(t *proxyapi.Transaction) *proxyapi.Ack {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.transactions = append(s.transactions, t)
	a := &proxyapi.Ack{Transaction: t.Id, Epoch: t.Epoch, Commit: t.Commit}
	next := map[string]*proxyapi.Object{}
	if !t.Full {
		for k, o := range s.objects {
			next[k] = o
		}
	}
	for _, o := range t.Upserts {
		if sum := sha256.Sum256(o.Bytes); !bytes.Equal(sum[:], o.Hash) {
			s.h.w.t.Errorf("%s %s: the hash is not that of the bytes", o.Kind, o.Name)
		}
		next[o.Kind+" "+o.Name] = o
	}
	for _, v := range t.Deletes {
		if next[v.Kind+" "+v.Name] == nil {
			s.h.w.t.Errorf("%s %s is deleted and was not there", v.Kind, v.Name)
		}
		delete(next, v.Kind+" "+v.Name)
	}
	if t.Epoch < s.epoch {
		s.h.w.t.Errorf("epoch %d came after epoch %d", t.Epoch, s.epoch)
	}
	if !bytes.Equal(stateOf(next), t.State) {
		s.h.w.t.Errorf("%s: the state after transaction %d is another than it says", s.h.workload, t.Id)
	}
	if s.nack != nil {
		if a.Nack = s.nack(t); a.Nack != "" {
			return a
		}
	}
	s.objects, s.epoch, s.commit = next, t.Epoch, t.Commit
	return a
}

// at runs f while nothing arrives.
func at[T any](s *sidecar, f func() T) T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return f()
}

func (s *sidecar) has(kind, name string) bool {
	return at(s, func() bool { return s.objects[kind+" "+name] != nil })
}

func (s *sidecar) endpoints(service string) []string {
	return at(s, func() []string {
		o := s.objects["endpoints "+service]
		if o == nil {
			return nil
		}
		var m proxyapi.Endpoints
		must(s.h.w.t, proto.Unmarshal(o.Bytes, &m))
		out := []string{}
		for _, e := range m.Endpoints {
			out = append(out, e.Workload)
		}
		slices.Sort(out)
		return out
	})
}

func (s *sidecar) reaches(epoch uint64) {
	s.h.w.t.Helper()
	s.h.w.eventually(fmt.Sprintf("%s applies epoch %d", s.h.workload, epoch), func() bool {
		return at(s, func() bool {
			if s.err != nil {
				s.h.w.t.Fatalf("%s: the stream ended: %v", s.h.workload, s.err)
			}
			return s.epoch == epoch
		})
	})
}

// fails waits for the stream to end and returns why.
func (s *sidecar) fails() error {
	select {
	case <-s.done:
	case <-time.After(patience):
		s.h.w.t.Fatal("the stream goes on")
	}
	return at(s, func() error { return s.err })
}

func (w *world) enrolled(workload, service string) *host {
	w.t.Helper()
	h := w.newHost(workload)
	must(w.t, h.enrol(w.token(workload, service), "", nil))
	return h
}

const td = "mesh.test"

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, err error, code codes.Code, part string) {
	t.Helper()
	if status.Code(err) != code || !bytes.Contains([]byte(status.Convert(err).Message()), []byte(part)) {
		t.Errorf("got %v, want %v with %q", err, code, part)
	}
}

// service is a line of the test's policy: its name, who may call it, and the backends of its one route.
type service struct {
	name     mesh.ServiceName
	from     []mesh.ServiceName
	backends []mesh.ServiceName
	needs    []mesh.Capability
}

// compiled makes a mesh as the compiler would.
func compiled(services []service, workloads ...mesh.Workload) (*mesh.Mesh, mesh.Origins) {
	m, origins := &mesh.Mesh{Settings: mesh.Settings{TrustDomain: td}}, mesh.Origins{}
	for i, s := range services {
		id := []string{string(spiffe.ServiceID(td, s.name))}
		def := string(s.name) + "/default/http"
		origins[def] = diag.Pos{File: "mesh.cue", Line: 1}
		in := mesh.Inbound{Service: s.name, Identities: id, Needs: s.needs,
			Ports: []mesh.InboundPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1, MTLS: mesh.Strict, Default: mesh.Deny, DefaultID: def}}}
		for _, f := range s.from {
			r := mesh.Rule{ID: string(s.name) + "/allow/" + f.Local(), Action: mesh.Allow, From: []mesh.Peer{{Identity: string(spiffe.ServiceID(td, f))}}}
			in.Rules = append(in.Rules, r)
			origins[r.ID] = diag.Pos{File: "services/" + string(s.name) + ".cue", Line: 10 + i}
		}
		out := mesh.Outbound{Service: s.name, Identities: id, Ports: []mesh.OutboundPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1}}}
		if len(s.backends) > 0 {
			rt := mesh.Route{ID: string(s.name) + "/httpRoutes/main", Port: "http"}
			for _, b := range s.backends {
				rt.Backends = append(rt.Backends, mesh.Backend{Service: b, Port: "http", Weight: 1})
			}
			out.Routes = []mesh.Route{rt}
			out.Ports[0].Matches = []mesh.Match{{Route: rt.ID}}
		}
		m.Inbound, m.Outbound = append(m.Inbound, in), append(m.Outbound, out)
	}
	slices.SortFunc(m.Inbound, func(a, b mesh.Inbound) int { return bytes.Compare([]byte(a.Service), []byte(b.Service)) })
	slices.SortFunc(m.Outbound, func(a, b mesh.Outbound) int { return bytes.Compare([]byte(a.Service), []byte(b.Service)) })
	m.Workloads = workloads
	return m, origins
}
