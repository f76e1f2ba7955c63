package config_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/big"
	"net"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

const (
	trustDomain = "shop.test"
	workload    = "shop/web-1"
	webID       = "spiffe://shop.test/ns/shop/sa/web"
	apiID       = "spiffe://shop.test/ns/shop/sa/api"
	commitA     = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	commitB     = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	patience    = 20 * time.Second // only a deadline: everything waits on conditions
)

// authority is a root and the leafs that it signs.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{{Scheme: "spiffe", Host: trustDomain}}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) sign(pub any, id string, life time.Duration) []byte {
	u, err := url.Parse(id)
	if err != nil {
		a.t.Error(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(life),
		URIs: []*url.URL{u}, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, pub, a.key)
	if err != nil {
		a.t.Error(err)
	}
	return der
}

func (a *authority) leaf(id string, life time.Duration) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{a.sign(&key.PublicKey, id, life), a.cert.Raw}, PrivateKey: key}
}

// controlPlane speaks the real protocol over real TLS and does nothing by itself: the test says what it sends.
type controlPlane struct {
	proxyapi.UnimplementedConfigServer
	proxyapi.UnimplementedEnrolmentServer
	t         *testing.T
	ca        *authority
	leafLife  time.Duration
	address   string // of both services
	server    *grpc.Server
	streams   chan *wire // one for each hello
	enrolled  chan *proxyapi.EnrolRequest
	refuse    atomic.Pointer[status.Status] // of enrolments
	deaf      chan struct{}                 // closed at the end
	knownHost atomic.Pointer[[]byte]
}

// wire is one stream as the control plane sees it.
type wire struct {
	t     *testing.T
	hello *proxyapi.Hello
	peer  string
	out   chan *proxyapi.ControlMessage
	in    chan *proxyapi.ProxyMessage
	end   chan error // what Stream returns
	gone  <-chan struct{}
	last  uint64
}

func startControlPlane(t *testing.T, ca *authority, address string) *controlPlane {
	t.Helper()
	c := &controlPlane{
		t: t, ca: ca, leafLife: time.Hour, streams: make(chan *wire, 16), enrolled: make(chan *proxyapi.EnrolRequest, 16), deaf: make(chan struct{}),
	}
	c.listen(address)
	t.Cleanup(c.stop)
	return c
}

func (c *controlPlane) listen(address string) {
	c.t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		c.t.Fatal(err)
	}
	c.address = ln.Addr().String()
	pool := x509.NewCertPool()
	pool.AddCert(c.ca.cert)
	c.server = grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{c.ca.leaf(string(spiffe.ControlPlaneID(trustDomain)), time.Hour)},
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool,
	})))
	proxyapi.RegisterConfigServer(c.server, c)
	proxyapi.RegisterEnrolmentServer(c.server, c)
	go c.server.Serve(ln)
}

func (c *controlPlane) stop() { c.server.Stop() }

// token is the content of a join token's file.
func (c *controlPlane) token() string { return c.tokenOf("t1") }

func (c *controlPlane) tokenOf(id string) string {
	sum := sha256.Sum256(c.ca.cert.RawSubjectPublicKeyInfo)
	b, _ := json.Marshal(map[string]any{
		"id": id, "secret": base64.RawURLEncoding.EncodeToString([]byte("s3cret")), "workload": workload, "service": "shop/web",
		"fingerprint": hex.EncodeToString(sum[:]),
	})
	return "heddle-join-1." + base64.RawURLEncoding.EncodeToString(b)
}

func (c *controlPlane) Enrol(_ context.Context, q *proxyapi.EnrolRequest) (*proxyapi.EnrolResponse, error) {
	if s := c.refuse.Load(); s != nil {
		return nil, s.Err()
	}
	pub, err := x509.ParsePKIXPublicKey(q.HostKey)
	key, ok := pub.(*ecdsa.PublicKey)
	if err != nil || !ok || !ecdsa.VerifyASN1(key, proxyapi.EnrolDigest(q), q.Proof) {
		return nil, status.Error(codes.PermissionDenied, "the proof is wrong")
	}
	known := c.knownHost.Load()
	if (known == nil || string(*known) != string(q.HostKey)) && string(q.TokenSecret) != "s3cret" {
		return nil, status.Error(codes.PermissionDenied, "neither the token nor the host key is known")
	}
	c.knownHost.Store(&q.HostKey)
	csr, err := x509.ParseCertificateRequest(q.Csr)
	if err != nil || csr.CheckSignature() != nil {
		return nil, status.Error(codes.InvalidArgument, "the request is wrong")
	}
	c.enrolled <- q
	return &proxyapi.EnrolResponse{
		Workload: q.Workload, Service: "shop/web", Identity: webID,
		Certificate: &proxyapi.Certificate{Chain: [][]byte{c.ca.sign(csr.PublicKey, webID, c.leafLife)}},
		Bundle:      &proxyapi.Bundle{Generation: 1, Roots: [][]byte{c.ca.cert.Raw}},
	}, nil
}

func (c *controlPlane) Stream(s grpc.BidiStreamingServer[proxyapi.ProxyMessage, proxyapi.ControlMessage]) error {
	m, err := s.Recv()
	if err != nil {
		return err
	}
	w := &wire{
		t: c.t, hello: m.GetHello(), out: make(chan *proxyapi.ControlMessage), in: make(chan *proxyapi.ProxyMessage, 64),
		end: make(chan error, 1), gone: s.Context().Done(),
	}
	go func() {
		for {
			m, err := s.Recv()
			if err != nil {
				return
			}
			w.in <- m
		}
	}()
	c.streams <- w
	for {
		select {
		case m := <-w.out:
			if err := s.Send(m); err != nil {
				return err
			}
		case err := <-w.end:
			return err
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

// next is the next stream.
func (c *controlPlane) next() *wire {
	c.t.Helper()
	return receive(c.t, c.streams, "stream")
}

func receive[T any](t *testing.T, from <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(patience):
		t.Fatalf("no %s came", what)
	}
	return v
}

func (w *wire) send(m *proxyapi.ControlMessage) {
	w.t.Helper()
	select {
	case w.out <- m:
	case <-w.gone:
		w.t.Fatal("the sidecar left")
	case <-time.After(patience):
		w.t.Fatal("the sidecar does not read")
	}
}

// await is the next message of one kind; others are passed over.
func await[T any](w *wire, get func(*proxyapi.ProxyMessage) *T) *T {
	w.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case m := <-w.in:
			if v := get(m); v != nil {
				return v
			}
		case <-w.gone:
			w.t.Fatalf("the sidecar left instead of sending %T", *new(T))
		case <-deadline:
			w.t.Fatalf("no %T came", *new(T))
		}
	}
}

// transact sends a transaction and returns its answer.
func (w *wire) transact(t *proxyapi.Transaction) *proxyapi.Ack {
	w.t.Helper()
	w.last++
	t.Id = w.last
	w.send(&proxyapi.ControlMessage{Message: &proxyapi.ControlMessage_Transaction{Transaction: t}})
	a := await(w, (*proxyapi.ProxyMessage).GetAck)
	if a.Transaction != t.Id || a.Epoch != t.Epoch || a.Commit != t.Commit {
		w.t.Fatalf("the answer to transaction %d at epoch %d is %v", t.Id, t.Epoch, a)
	}
	return a
}

func object(kind mesh.Kind, name string, v any) *proxyapi.Object {
	o := mesh.NewObject(kind, name, v)
	return &proxyapi.Object{Kind: string(o.Kind), Name: o.Name, Hash: o.Hash[:], Bytes: o.Bytes}
}

func endpoints(service string, port uint32) *proxyapi.Object {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&proxyapi.Endpoints{Endpoints: []*proxyapi.Endpoint{
		{Ip: []byte{127, 0, 0, 1}, Port: port, Weight: 1, Workload: "shop/api-1"}}})
	if err != nil {
		panic(err)
	}
	sum := sha256.Sum256(b)
	return &proxyapi.Object{Kind: proxyapi.KindEndpoints, Name: service, Hash: sum[:], Bytes: b}
}

// full is the config of shop/web: it may call shop/api, and shop/cron may call it.
func full(epoch uint64, commit string, more ...*proxyapi.Object) *proxyapi.Transaction {
	t := &proxyapi.Transaction{Epoch: epoch, Commit: commit, Full: true, Upserts: append([]*proxyapi.Object{
		object(mesh.KindSettings, "mesh", mesh.Settings{TrustDomain: trustDomain}),
		object(mesh.KindIndex, "shop", mesh.Index{Namespace: "shop", Services: []mesh.IndexService{
			{Name: "api", Ports: []mesh.IndexPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1}}},
			{Name: "ledger", Ports: []mesh.IndexPort{{Name: "tcp", Port: 5432, Protocol: mesh.TCP}}},
		}}),
		object(mesh.KindInbound, "shop/web", mesh.Inbound{
			Service: "shop/web", Identities: []string{webID},
			Ports: []mesh.InboundPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1, MTLS: mesh.Strict, Default: mesh.Deny, DefaultID: "shop/web/default/http"}},
			Rules: []mesh.Rule{{ID: "shop/web/allow/api", Action: mesh.Allow, From: []mesh.Peer{{Identity: apiID}}}},
			Needs: []mesh.Capability{mesh.CapAuthorize, mesh.CapHTTP1},
		}),
		object(mesh.KindOutbound, "shop/api", outbound("shop/api", apiID, mesh.OutboundPort{Name: "http", Port: 80, Protocol: mesh.HTTP1})),
		object(mesh.KindOrigin, "shop/web", mesh.Origins{
			"shop/web/allow/api": {File: "services/web.cue", Line: 7, Column: 3}, "shop/web/default/http": diag.Pos{File: "mesh.cue", Line: 2},
		}),
		endpoints("shop/api", 4143),
	}, more...)}
	return withState(t, t.Upserts)
}

func outbound(s mesh.ServiceName, id string, port mesh.OutboundPort) mesh.Outbound {
	return mesh.Outbound{Service: s, Identities: []string{id}, Ports: []mesh.OutboundPort{port}}
}

// withState sets the hash of what the sidecar has afterwards.
func withState(t *proxyapi.Transaction, all []*proxyapi.Object) *proxyapi.Transaction {
	t.State = stateOf(all)
	return t
}

func stateOf(all []*proxyapi.Object) []byte {
	var have []*proxyapi.ObjectVersion
	for _, o := range all {
		have = append(have, &proxyapi.ObjectVersion{Kind: o.Kind, Name: o.Name, Hash: o.Hash})
	}
	return proxyapi.StateHash(have)
}

var errEnd = errors.New("the test ends the stream")
