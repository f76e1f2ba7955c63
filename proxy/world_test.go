package proxy

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/heddle-mesh/heddle/proxy/balance"
	"github.com/heddle-mesh/heddle/proxy/identity"
	"github.com/heddle-mesh/heddle/proxy/observe"
	"github.com/heddle-mesh/heddle/proxy/pipeline"
	"github.com/heddle-mesh/heddle/proxy/upstream"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

const (
	td     = "test.mesh"
	api    = mesh.ServiceName("shop/api")
	web    = mesh.ServiceName("shop/web")
	commit = "0123456789abcdef0123456789abcdef01234567"
	// patience bounds waits on real sockets; it decides how long a failure takes, never whether there is one.
	patience = 20 * time.Second
)

// authority is a CA of its own.
type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	n    int64
}

func newAuthority(t testing.TB) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t: t, key: key, cert: cert, n: 1}
}

func (a *authority) bundle(generation uint64) *spiffe.Bundle {
	return &spiffe.Bundle{TrustDomain: td, Generation: generation, Roots: []*x509.Certificate{a.cert}}
}

func (a *authority) svid(id spiffe.ID, life time.Duration) *identity.SVID {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	u, err := url.Parse(string(id))
	if err != nil {
		a.t.Fatal(err)
	}
	a.n++
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(a.n), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, URIs: []*url.URL{u}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	s, err := identity.NewSVID([][]byte{der}, key, a.bundle(1), time.Now())
	if err != nil {
		a.t.Fatal(err)
	}
	return s
}

// world is two sidecars with real sockets and real mutual TLS between them: web's outbound and api's inbound.
type world struct {
	t   testing.TB
	ca  *authority
	app string // api's application

	in  *Inbound
	out *Outbound

	inEnv, outEnv   Env
	inDeps, outDeps pipeline.Deps
	epoch           uint64
	mesh            string // api's mesh listener
	inbound         mesh.Inbound
	outbound        mesh.Outbound
	endpoints       []balance.Address
	maxStale        time.Duration // of both; 0: the SVIDs' life, which is not known here
	logs            *logBuffer
	ctx             context.Context
	wants           chan mesh.ServiceName
}

type logBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, b...)
	return len(b), nil
}

func (l *logBuffer) String() string { l.mu.Lock(); defer l.mu.Unlock(); return string(l.b) }

func port(name string, n uint16, p mesh.Protocol) mesh.InboundPort {
	return mesh.InboundPort{Name: name, Port: n, Protocol: p, MTLS: mesh.Strict, Default: mesh.Deny, DefaultID: string(api) + "/default/" + name}
}

// newWorld starts both sidecars with an application at app for every port of api. change may alter the config first.
func newWorld(t testing.TB, app string, limits Limits, change func(*world)) *world {
	w := &world{t: t, ca: newAuthority(t), app: app, logs: &logBuffer{}, wants: make(chan mesh.ServiceName, 100)}
	log := zerolog.New(w.logs).Level(zerolog.DebugLevel)
	ctx, cancel := context.WithCancel(log.WithContext(context.Background()))
	w.ctx = ctx
	env := func(s mesh.ServiceName) (Env, pipeline.Deps) {
		source := identity.NewSource(nil)
		source.Set(w.ca.svid(spiffe.ServiceID(td, s), time.Hour), w.ca.bundle(1))
		tr := upstream.NewTransport(source)
		f := &pipeline.Freshness{}
		f.Confirm(time.Now())
		return Env{Current: pipeline.NewCurrent(), Identity: source, Metrics: observe.New(nil), Transport: tr, Limits: limits,
				Want: func(s mesh.ServiceName) { w.wants <- s }},
			pipeline.Deps{Clusters: pipeline.NewClusters(tr.NewPool, nil), Freshness: f}
	}
	w.inEnv, w.inDeps = env(api)
	w.outEnv, w.outDeps = env(web)
	w.in, w.out = NewInbound(w.inEnv), NewOutbound(w.outEnv)
	w.inbound = mesh.Inbound{Service: api, Identities: []string{string(spiffe.ServiceID(td, api))},
		Ports: []mesh.InboundPort{port("auto", 7000, mesh.Detect), port("http", 8080, mesh.HTTP1), port("raw", 9000, mesh.TCP)},
		Rules: []mesh.Rule{{ID: "shop/api/allow/web", Action: mesh.Allow, From: []mesh.Peer{{Identity: string(spiffe.ServiceID(td, web))}}}}}
	w.outbound = mesh.Outbound{Service: api, Identities: w.inbound.Identities, Ports: []mesh.OutboundPort{
		{Name: "auto", Port: 7000, Protocol: mesh.Detect}, {Name: "http", Port: 8080, Protocol: mesh.HTTP1}, {Name: "raw", Port: 9000, Protocol: mesh.TCP}}}

	var wg sync.WaitGroup
	run := func(f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	ln := listen(t)
	w.mesh = ln.Addr().String()
	w.endpoints = []balance.Address{{Addr: netip.MustParseAddrPort(w.mesh), Workload: "shop/api-1"}}
	if change != nil {
		change(w)
	}
	w.publish()
	run(func(ctx context.Context) error { return w.in.ServeMesh(ctx, ln) })
	run(w.in.Run)
	run(w.out.Run)
	run(w.inEnv.Transport.Run)
	run(w.outEnv.Transport.Run)
	t.Cleanup(func() {
		over, stop := context.WithTimeout(context.Background(), 0)
		defer stop()
		cancel()
		w.out.Drain(over)
		w.in.Drain(over)
		wg.Wait()
		if n := w.in.Open() + w.out.Open(); n != 0 {
			t.Errorf("%d connections are open after the drain", n)
		}
	})
	return w
}

// publish makes w's config the current one of both sidecars, under a new epoch.
func (w *world) publish() {
	w.epoch++
	settings := &mesh.Settings{TrustDomain: td, MaxStale: w.maxStale}
	origins := mesh.Origins{}
	for i, r := range w.inbound.Rules {
		origins[r.ID] = diag.Pos{File: "shop/api.cue", Line: 10 + i}
	}
	for _, p := range w.inbound.Ports {
		origins[p.DefaultID] = diag.Pos{File: "mesh.cue", Line: 3}
	}
	apps := map[string]string{}
	for _, p := range w.inbound.Ports {
		apps[p.Name] = w.app
	}
	in := w.inbound
	in.Rules = append([]mesh.Rule(nil), in.Rules...)
	in.Ports = append([]mesh.InboundPort(nil), in.Ports...)
	inbound, err := pipeline.Build(pipeline.Config{Epoch: w.epoch, Commit: commit, Service: api, Settings: settings,
		Inbound: []*mesh.Inbound{&in}, Origins: []mesh.Origins{origins}, Apps: apps}, w.inDeps)
	if err != nil {
		w.t.Fatal(err)
	}
	out := w.outbound
	outbound, err := pipeline.Build(pipeline.Config{Epoch: w.epoch, Commit: commit, Service: web, Settings: settings,
		Indexes: []*mesh.Index{{Namespace: "shop", Services: []mesh.IndexService{
			{Name: "api", Ports: []mesh.IndexPort{{Name: "http", Port: 8080, Protocol: mesh.HTTP1}}},
			{Name: "late", Ports: []mesh.IndexPort{{Name: "http", Port: 8080, Protocol: mesh.HTTP1}}}}}},
		Outbound: []*mesh.Outbound{&out}, Endpoints: map[mesh.ServiceName][]balance.Address{api: w.endpoints}}, w.outDeps)
	if err != nil {
		w.t.Fatal(err)
	}
	w.inEnv.Current.Publish(inbound, w.inDeps.Clusters)
	w.outEnv.Current.Publish(outbound, w.outDeps.Clusters)
}

func listen(t testing.TB) net.Listener {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// proxy starts an HTTP proxy of web's sidecar and returns its address.
func (w *world) proxy() string {
	return w.serve(func(ctx context.Context, ln net.Listener) error { return w.out.ServeProxy(ctx, ln) })
}

// to starts a listener of web's sidecar for a port of api.
func (w *world) to(port string) string {
	return w.serve(func(ctx context.Context, ln net.Listener) error { return w.out.ServeUpstream(ctx, ln, api, port) })
}

// expose starts a listener of api's sidecar for one of its ports.
func (w *world) expose(port string) string {
	return w.serve(func(ctx context.Context, ln net.Listener) error { return w.in.ServeExposed(ctx, ln, port) })
}

func (w *world) serve(f func(context.Context, net.Listener) error) string {
	ln := listen(w.t)
	done := make(chan error, 1)
	go func() { done <- f(w.ctx, ln) }()
	w.t.Cleanup(func() {
		ln.Close()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	return ln.Addr().String()
}

// application serves connections one goroutine each, until the test ends.
func application(t testing.TB, handle func(net.Conn, *bufio.Reader)) string {
	ln := listen(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				handle(c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().String()
}

// dial connects a client that fails the test rather than hang.
func dial(t testing.TB, addr string) *net.TCPConn {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

func send(t testing.TB, c io.Writer, s string) {
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

// newEmpty is what a sidecar has before its first config.
func newEmpty() *pipeline.Current { return pipeline.NewCurrent() }
