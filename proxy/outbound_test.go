package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/proxy/balance"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

const getAPI = "GET / HTTP/1.1\r\nHost: api.shop.mesh\r\n\r\n"

func ok() func(net.Conn, *bufio.Reader) {
	return answer(func(q *http.Request, body string) string {
		s := q.Host + q.RequestURI + body
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(s), s)
	})
}

// What the outbound stack makes of where a request wants to go.
func TestDestination(t *testing.T) {
	w := newWorld(t, application(t, ok()), Limits{Pending: 50 * time.Millisecond}, func(w *world) {
		w.outbound.Ports[0].Protocol = mesh.TCP // so that http is the only HTTP port
		w.outbound.Ports[1].Matches = []mesh.Match{{Route: "shop/api/httpRoutes/none", Path: mesh.PathMatch{Prefix: "/none"}}, {Route: "shop/api/httpRoutes/all", Path: mesh.PathMatch{Prefix: "/"}, Method: "GET"}}
		w.outbound.Routes = []mesh.Route{{ID: "shop/api/httpRoutes/all", Port: "http", Backends: []mesh.Backend{{Service: api, Port: "http", Weight: 1}}},
			{ID: "shop/api/httpRoutes/none", Port: "http", Backends: []mesh.Backend{{Service: api, Port: "http", Weight: 0}}}}
	})
	proxy, fixed := w.proxy(), w.to("http")
	for _, c := range []struct {
		name, addr, request string
		status              int
		want                string // the body where 200, else heddle-error
	}{
		{"host", proxy, "GET /a HTTP/1.1\r\nHost: api.shop.mesh\r\n\r\n", 200, "api.shop.mesh/a"},
		{"host with port and case", proxy, "GET /a HTTP/1.1\r\nHost: API.shop.mesh.:8080\r\n\r\n", 200, "API.shop.mesh.:8080/a"},
		{"absolute form", proxy, "GET http://api.shop.mesh/a?b HTTP/1.1\r\nHost: api.shop.mesh\r\n\r\n", 200, "api.shop.mesh/a?b"},
		{"absolute form wins", proxy, "GET http://api.shop.mesh HTTP/1.1\r\nHost: example.com\r\n\r\n", 200, "api.shop.mesh/"},
		{"absolute form to elsewhere", proxy, "GET http://example.com/ HTTP/1.1\r\nHost: api.shop.mesh\r\n\r\n", 403, "unknown-destination"},
		{"elsewhere", proxy, "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", 403, "unknown-destination"},
		{"loopback", proxy, "GET http://127.0.0.1:22/ HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n", 403, "unknown-destination"},
		{"no host", proxy, "GET / HTTP/1.0\r\n\r\n", 403, "unknown-destination"},
		{"unknown service", proxy, "GET / HTTP/1.1\r\nHost: apo.shop.mesh\r\n\r\n", 403, "unknown-destination"},
		{"unknown port", proxy, "GET / HTTP/1.1\r\nHost: api.shop.mesh:1\r\n\r\n", 404, "unknown-port"},
		{"tcp port", proxy, "GET / HTTP/1.1\r\nHost: api.shop.mesh:9000\r\n\r\n", 400, "not-http"},
		{"connect to an http port", proxy, "CONNECT api.shop.mesh:8080 HTTP/1.1\r\nHost: api.shop.mesh:8080\r\n\r\n", 405, "connect"},
		{"connect to elsewhere", proxy, "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", 403, "unknown-destination"},
		{"no route", proxy, "PUT /a HTTP/1.1\r\nHost: api.shop.mesh\r\nContent-Length: 1\r\n\r\nx", 404, "no-route"},
		{"no weight", proxy, "GET /none HTTP/1.1\r\nHost: api.shop.mesh\r\n\r\n", 503, "no-endpoints"},
		{"not sent yet", proxy, "GET / HTTP/1.1\r\nHost: late.shop.mesh\r\n\r\n", 503, "destination-pending"},
		{"a listener keeps Host", fixed, "GET /a HTTP/1.1\r\nHost: whatever.example\r\n\r\n", 200, "whatever.example/a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := dial(t, c.addr)
			send(t, conn, c.request)
			o, res := exchangeOf(bufio.NewReader(conn), "GET")
			got := o.body
			if o.status != 200 && res != nil {
				got = res.Header.Get("heddle-error")
			}
			if o.status != c.status || got != c.want {
				t.Errorf("got %+v %s, want %d %s", o, got, c.status, c.want)
			}
		})
	}
	select {
	case s := <-w.wants:
		if s != "shop/late" {
			t.Errorf("asked for %s", s)
		}
	default:
		t.Error("the pending destination was not asked for")
	}
}

// A first request waits for its destination and then goes there.
func TestPending(t *testing.T) {
	w := newWorld(t, application(t, ok()), Limits{Pending: patience}, nil)
	known := w.outbound
	late := known
	late.Service = "shop/other"
	w.outbound = late
	w.publish()
	conn := dial(t, w.proxy())
	send(t, conn, "GET / HTTP/1.1\r\nHost: api.shop.mesh\r\n\r\n")
	if s := <-w.wants; s != api {
		t.Fatalf("asked for %s", s)
	}
	w.outbound = known
	w.publish()
	if o, _ := exchangeOf(bufio.NewReader(conn), "GET"); o.status != 200 {
		t.Errorf("got %+v", o)
	}
}

func TestConnect(t *testing.T) {
	w := newWorld(t, application(t, func(c net.Conn, r *bufio.Reader) { io.Copy(c, r) }), Limits{}, nil)
	for _, port := range []string{"9000", "7000"} {
		conn := dial(t, w.proxy())
		send(t, conn, "CONNECT api.shop.mesh:"+port+" HTTP/1.1\r\nHost: api.shop.mesh:"+port+"\r\n\r\nearly ")
		r := bufio.NewReader(conn)
		if l, _ := r.ReadString('\n'); l != "HTTP/1.1 200 Connection Established\r\n" {
			t.Fatalf("got %q", l)
		}
		r.ReadString('\n')
		send(t, conn, "and late")
		conn.CloseWrite()
		if b, err := io.ReadAll(r); string(b) != "early and late" || err != nil {
			t.Errorf("got %q, %v", b, err)
		}
	}
}

// Either side may end its direction first; the other direction goes on, over both sidecars and their TLS.
func TestHalfClose(t *testing.T) {
	for _, c := range []struct {
		name   string
		app    func(net.Conn, *bufio.Reader)
		client func(*testing.T, *net.TCPConn)
	}{
		{"client first", func(c net.Conn, r *bufio.Reader) {
			b, _ := io.ReadAll(r)
			c.Write([]byte("got " + string(b)))
		}, func(t *testing.T, c *net.TCPConn) {
			send(t, c, "\x00question")
			c.CloseWrite()
			if b, err := io.ReadAll(c); string(b) != "got \x00question" || err != nil {
				t.Errorf("got %q, %v", b, err)
			}
		}},
		{"server first", func(c net.Conn, r *bufio.Reader) {
			c.Write([]byte("banner"))
			c.(*net.TCPConn).CloseWrite()
			b, err := io.ReadAll(r)
			if string(b) != "answer" || err != nil {
				c.(*net.TCPConn).SetLinger(0)
			}
		}, func(t *testing.T, c *net.TCPConn) {
			if b, err := io.ReadAll(c); string(b) != "banner" || err != nil {
				t.Errorf("got %q, %v", b, err)
			}
			send(t, c, "answer")
			c.CloseWrite()
		}},
		{"reset by the application", func(c net.Conn, r *bufio.Reader) {
			r.ReadByte()
			c.(*net.TCPConn).SetLinger(0)
		}, func(t *testing.T, c *net.TCPConn) {
			send(t, c, "x")
			if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the end was %v, want a reset", err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, application(t, c.app), Limits{}, nil)
			c.client(t, dial(t, w.to("raw")))
		})
	}
}

// On a port to detect, a client that waits for the server to speak first gets there when the window is over.
func TestServerFirst(t *testing.T) {
	w := newWorld(t, application(t, func(c net.Conn, r *bufio.Reader) {
		io.WriteString(c, "220 ready\r\n")
		l, _ := r.ReadString('\n')
		io.WriteString(c, l)
	}), Limits{Detect: 30 * time.Millisecond}, nil)
	r := bufio.NewReader(dial(t, w.to("auto")))
	if l, err := r.ReadString('\n'); l != "220 ready\r\n" {
		t.Errorf("got %q, %v", l, err)
	}
}

func TestUpgrade(t *testing.T) {
	w := newWorld(t, application(t, func(c net.Conn, r *bufio.Reader) {
		q, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if q.Header.Get("Upgrade") != "echo" || q.Header.Get("Connection") != "Upgrade" {
			io.WriteString(c, "HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n")
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhi ")
		io.Copy(c, r)
	}), Limits{}, nil)
	addr := w.to("http")
	start := func() (*net.TCPConn, *bufio.Reader) {
		conn := dial(t, addr)
		send(t, conn, "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: echo\r\n\r\nearly ")
		r := bufio.NewReader(conn)
		res, err := http.ReadResponse(r, nil)
		if err != nil || res.StatusCode != 101 || res.Header.Get("Upgrade") != "echo" {
			t.Fatalf("got %v, %v", res, err)
		}
		return conn, r
	}
	conn, r := start()
	send(t, conn, "late")
	conn.CloseWrite()
	if b, err := io.ReadAll(r); string(b) != "hi early late" || err != nil {
		t.Errorf("got %q, %v", b, err)
	}

	conn, r = start()
	r.Discard(len("hi early "))
	w.inbound.Rules[0].Ports = []string{"raw"} // http is now denied by default
	w.publish()
	if _, err := r.ReadByte(); err == nil || err == io.EOF {
		t.Errorf("the tunnel that is no longer allowed ended with %v", err)
	}
}

func TestExpectContinue(t *testing.T) {
	w := newWorld(t, application(t, func(c net.Conn, r *bufio.Reader) {
		for {
			q, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if q.URL.Path == "/no" {
				io.WriteString(c, "HTTP/1.1 417 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
				return
			}
			io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
			b, _ := io.ReadAll(q.Body)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(b), b)
		}
	}), Limits{}, nil)
	conn := dial(t, w.to("http"))
	r := bufio.NewReader(conn)
	for range 2 { // the connection goes on afterwards
		send(t, conn, "POST /yes HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
		if o, _ := exchangeOf(r, "POST"); o.status != 100 {
			t.Fatalf("got %+v", o)
		}
		send(t, conn, "hello")
		if o, _ := exchangeOf(r, "POST"); o != (outcome{200, "hello", "", true}) {
			t.Fatalf("got %+v", o)
		}
	}
	send(t, conn, "POST /no HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
	o, res := exchangeOf(r, "POST")
	if o.status != 417 || !res.Close {
		t.Errorf("got %+v, close %v", o, res.Close)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("the connection ended with %v", err)
	}
}

// An application that answers before the body has ended is heard, and nothing of the rest is taken for a request.
func TestEarlyResponse(t *testing.T) {
	var requests atomic.Int32
	w := newWorld(t, application(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		requests.Add(1)
		io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
		io.Copy(io.Discard, r)
	}), Limits{}, nil)
	conn := dial(t, w.to("http"))
	send(t, conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"+strings.Repeat("x", 30000))
	r := bufio.NewReader(conn)
	o, res := exchangeOf(r, "POST")
	if o.status != 413 || o.body != "big" || !res.Close {
		t.Errorf("got %+v", o)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("the connection ended with %v", err)
	}
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests reached the application", n)
	}
}

// A request body that stops, or is malformed in the middle, never looks whole to the application.
func TestBrokenBody(t *testing.T) {
	ended := make(chan error, 10)
	w := newWorld(t, application(t, func(c net.Conn, r *bufio.Reader) {
		if q, err := http.ReadRequest(r); err == nil {
			_, err = io.Copy(io.Discard, q.Body)
			ended <- err
		}
	}), Limits{}, nil)
	addr := w.to("http")
	big := strings.Repeat("x", 40000)
	for _, c := range []struct {
		body string
		want int // status
	}{
		{"9C40\r\n" + big + "\r\nzz\r\n", 400},
		{"9C40\r\n" + big + "\r\n0\r\nHost: b\r\n\r\n", 400},
	} {
		conn := dial(t, addr)
		send(t, conn, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"+c.body)
		if o, _ := exchangeOf(bufio.NewReader(conn), "POST"); o.status != c.want {
			t.Errorf("got %+v, want %d", o, c.want)
		}
		if err := <-ended; err == nil {
			t.Errorf("the application took a broken body for whole")
		}
	}
	conn := dial(t, addr)
	send(t, conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 80000\r\n\r\n"+big)
	conn.CloseWrite()
	if err := <-ended; err == nil {
		t.Errorf("the application took a truncated body for whole")
	}
}

func TestRouteTimeout(t *testing.T) {
	release := make(chan struct{})
	w := newWorld(t, application(t, func(c net.Conn, r *bufio.Reader) {
		q, _, err := readRequest(r)
		if err != nil {
			return
		}
		if q.URL.Path == "/half" {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
		}
		<-release
	}), Limits{}, func(w *world) {
		w.outbound.Ports[1].Matches = []mesh.Match{{Route: "shop/api/httpRoutes/all"}}
		w.outbound.Routes = []mesh.Route{{ID: "shop/api/httpRoutes/all", Port: "http", Timeouts: mesh.Timeouts{Request: 100 * time.Millisecond},
			Backends: []mesh.Backend{{Service: api, Port: "http", Weight: 1}}}}
	})
	t.Cleanup(func() { close(release) })
	addr := w.to("http")
	conn := dial(t, addr)
	send(t, conn, getAPI)
	if o, res := exchangeOf(bufio.NewReader(conn), "GET"); o.status != 504 || res.Header.Get("heddle-error") != "timeout" {
		t.Errorf("got %+v", o)
	}
	conn = dial(t, addr)
	send(t, conn, "GET /half HTTP/1.1\r\nHost: a\r\n\r\n")
	if o, _ := exchangeOf(bufio.NewReader(conn), "GET"); o.status != 200 || o.whole {
		t.Errorf("got %+v", o)
	}
}

// An endpoint that cannot be connected to, or proves another identity, is passed over.
func TestOtherEndpoint(t *testing.T) {
	w := newWorld(t, application(t, ok()), Limits{}, func(w *world) {
		dead := listen(w.t)
		w.endpoints = append(w.endpoints, balance.Address{Addr: netip.MustParseAddrPort(dead.Addr().String())})
		dead.Close()
	})
	conn := dial(t, w.to("http"))
	r := bufio.NewReader(conn)
	for range 50 {
		send(t, conn, getAPI)
		if o, _ := exchangeOf(r, "GET"); o.status != 200 {
			t.Fatalf("got %+v", o)
		}
	}
	w.outbound.Identities = []string{"spiffe://test.mesh/ns/shop/sa/impostor"}
	w.publish()
	send(t, conn, getAPI)
	if o, res := exchangeOf(r, "GET"); o.status != 502 || res.Header.Get("heddle-error") == "" {
		t.Fatalf("got %+v", o)
	}
	w.endpoints = nil
	w.publish()
	send(t, conn, getAPI)
	if o, res := exchangeOf(r, "GET"); o.status != 503 || res.Header.Get("heddle-error") != "no-endpoints" {
		t.Fatalf("got %+v", o)
	}
}

// Malformed, unasked and endless responses never reach a client as something else.
func TestBadResponse(t *testing.T) {
	for _, c := range []struct {
		name, response string
		want           int
	}{
		{"both lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx", 502},
		{"no http", "\x00\x01\x02\r\n\r\n", 502},
		{"unasked 101", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 502},
		{"a flood of 103", strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 100), 502},
		{"nothing", "", 502},
		{"half a head", "HTTP/1.1 200 OK\r\nContent-Le", 502},
		{"bad chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 502},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, application(t, answerOnce(c.response)), Limits{}, nil)
			conn := dial(t, w.to("http"))
			send(t, conn, getAPI)
			r := bufio.NewReader(conn)
			o, _ := exchangeOf(r, "GET")
			for o.status == 103 {
				o, _ = exchangeOf(r, "GET")
			}
			if o.status != c.want {
				t.Errorf("got %+v, want %d", o, c.want)
			}
		})
	}
	t.Run("a second response", func(t *testing.T) {
		w := newWorld(t, application(t, answer(func(*http.Request, string) string {
			return "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned"
		})), Limits{}, nil)
		conn := dial(t, w.to("http"))
		r := bufio.NewReader(conn)
		for range 5 {
			send(t, conn, getAPI)
			if o, _ := exchangeOf(r, "GET"); o.body != "1" {
				t.Fatalf("got %+v", o)
			}
		}
	})
}

// Requests of any method survive that api's sidecar is replaced, as long as another endpoint is there: what it had not
// passed on is sent again, what it had is answered before it goes.
func TestReplicaRestart(t *testing.T) {
	app := application(t, ok())
	w := newWorld(t, app, Limits{}, nil)
	addr := w.to("http")
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var served atomic.Int64
	for range 4 {
		clients.Go(func() {
			conn := dial(t, addr)
			r := bufio.NewReader(conn)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n."); err != nil {
					t.Error(err)
					return
				}
				o, _ := exchangeOf(r, "POST")
				if o.status != 200 {
					t.Errorf("got %+v", o)
					return
				}
				served.Add(1)
			}
		})
	}
	wait := func() {
		for n := served.Load() + 200; served.Load() < n && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
	}
	old, oldAddr := w.in, w.endpoints
	for range 5 {
		wait()
		next := NewInbound(w.inEnv)
		ln := listen(t)
		ctx, cancel := context.WithCancel(w.ctx)
		done := make(chan error, 1)
		go func() { done <- next.ServeMesh(ctx, ln) }()
		w.endpoints = append(oldAddr[len(oldAddr)-1:], balance.Address{Addr: netip.MustParseAddrPort(ln.Addr().String())})
		w.publish() // both, then only the new one, as a rollout does
		wait()
		if err := old.Drain(t.Context()); err != nil {
			t.Error(err)
		}
		wait()
		w.endpoints = w.endpoints[1:]
		w.publish()
		old, oldAddr = next, w.endpoints
		t.Cleanup(func() { cancel(); <-done })
	}
	close(stop)
	clients.Wait()
	if err := old.Drain(t.Context()); err != nil {
		t.Error(err)
	}
}

// A renewed certificate, and a new trust bundle, retire pooled connections without a failed request.
func TestRenewal(t *testing.T) {
	w := newWorld(t, application(t, ok()), Limits{}, nil)
	conn := dial(t, w.to("http"))
	r := bufio.NewReader(conn)
	pool := func() int {
		n := 0
		for _, u := range w.outEnv.Current.Load().Upstreams() {
			for _, e := range u.Cluster.Endpoints() {
				n += e.Pool.(interface{ Idle() int }).Idle()
			}
		}
		return n
	}
	serials := map[string]bool{}
	for i := range 4 {
		w.outEnv.Identity.Set(w.ca.svid(spiffe.ServiceID(td, web), time.Hour), w.ca.bundle(uint64(i+2)))
		serials[w.outEnv.Identity.Load().SVID.Serial()] = true
		for range 3 {
			send(t, conn, getAPI)
			if o, _ := exchangeOf(r, "GET"); o.status != 200 {
				t.Fatalf("got %+v", o)
			}
		}
		// The client has its response a moment before the connection is back in the pool.
		for start := time.Now(); pool() != 1; time.Sleep(time.Millisecond) {
			if time.Since(start) > patience {
				t.Fatalf("%d idle connections after renewal %d", pool(), i)
			}
		}
	}
	if len(serials) != 4 {
		t.Fatal("the certificates were not renewed")
	}
}

// Drain answers what is under way, tells clients to go, and closes idle connections.
func TestDrain(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	w := newWorld(t, application(t, answer(func(q *http.Request, _ string) string {
		if q.URL.Path == "/slow" {
			close(arrived)
			<-release
		}
		return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	})), Limits{}, nil)
	addr := w.to("http")
	busy, idle := dial(t, addr), dial(t, addr)
	send(t, idle, getAPI)
	ri := bufio.NewReader(idle)
	if o, _ := exchangeOf(ri, "GET"); o.status != 200 {
		t.Fatalf("got %+v", o)
	}
	send(t, busy, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
	<-arrived
	drained := make(chan error)
	go func() { drained <- w.out.Drain(t.Context()) }()
	if _, err := ri.ReadByte(); err != io.EOF {
		t.Errorf("the idle connection ended with %v", err)
	}
	select {
	case err := <-drained:
		t.Fatalf("the drain was over before the request: %v", err)
	default:
	}
	close(release)
	rb := bufio.NewReader(busy)
	if o, res := exchangeOf(rb, "GET"); o.body != "ok" || !res.Close {
		t.Errorf("got %+v", o)
	}
	if _, err := rb.ReadByte(); err != io.EOF {
		t.Errorf("the busy connection ended with %v", err)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// A head that comes too slowly is answered with 408; its connection does not last.
func TestSlowHead(t *testing.T) {
	w := newWorld(t, application(t, ok()), Limits{Head: 50 * time.Millisecond}, nil)
	conn := dial(t, w.to("http"))
	send(t, conn, "GET / HTTP/1.1\r\nHo")
	r := bufio.NewReader(conn)
	if o, res := exchangeOf(r, "GET"); o.status != 408 || res.Header.Get("heddle-error") != "slow-request" {
		t.Errorf("got %+v", o)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("the connection ended with %v", err)
	}
}

// The steady state of a GET does not allocate, in both sidecars together.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	w := newWorld(t, rawApplication(t), Limits{}, nil)
	conn := dial(t, w.to("http"))
	buf := make([]byte, 4096)
	request := []byte(getAPI)
	trip := func() {
		if _, err := conn.Write(request); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(buf); err != nil || !strings.HasPrefix(string(buf[:12]), "HTTP/1.1 200") {
			t.Fatalf("%q, %v", buf[:n], err)
		}
	}
	for range 100 {
		trip()
	}
	n := testing.AllocsPerRun(2000, trip)
	t.Logf("%.2f allocations a request, over both sidecars", n)
	if n > 4 {
		t.Errorf("%.2f allocations a request", n)
	}
}

// rawApplication answers every read with one response, without allocating.
func rawApplication(t testing.TB) string {
	response := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello")
	return application(t, func(c net.Conn, _ *bufio.Reader) {
		buf := make([]byte, 4096)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
			if _, err := c.Write(response); err != nil {
				return
			}
		}
	})
}

func BenchmarkGET(b *testing.B) {
	w := newWorld(b, rawApplication(b), Limits{}, nil)
	conn := dial(b, w.to("http"))
	conn.SetDeadline(time.Time{})
	buf := make([]byte, 4096)
	request := []byte(getAPI)
	b.ReportAllocs()
	for b.Loop() {
		conn.Write(request)
		if _, err := conn.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}

// A pooled connection that the application closes as it is used costs a request only where repeating could do harm.
func TestStaleConnection(t *testing.T) {
	w := newWorld(t, application(t, func(c net.Conn, r *bufio.Reader) {
		if _, _, err := readRequest(r); err == nil {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
		readRequest(r) // the second request is read, and dropped with the connection
	}), Limits{}, nil)
	conn := dial(t, w.to("http"))
	r := bufio.NewReader(conn)
	pooled := func() bool { return w.inEnv.Transport.App(w.app).Idle() == 1 }
	for _, c := range []struct {
		request string
		status  int
	}{
		{getAPI, 200}, // fills the pool
		{getAPI, 200},
		{"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", 200},
		{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", 502},
		{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", 200},
	} {
		send(t, conn, c.request)
		if o, _ := exchangeOf(r, "GET"); o.status != c.status {
			t.Errorf("%.4s: got %+v, want %d", c.request, o, c.status)
		}
		for start := time.Now(); c.status == 200 && !pooled(); time.Sleep(time.Millisecond) {
			if time.Since(start) > patience {
				t.Fatal("the connection to the application was not kept")
			}
		}
	}
}
