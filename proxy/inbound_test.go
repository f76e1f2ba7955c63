package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/proxy/identity"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

// peer is a workload of the mesh that speaks to api's mesh listener itself.
func (w *world) peer(addr string, id spiffe.ID, port, alpn string) (*tls.Conn, error) {
	s := identity.NewSource(nil)
	s.Set(w.ca.svid(id, time.Hour), w.ca.bundle(1))
	t := tls.Client(dial(w.t, addr), s.ClientTLS(spiffe.SNI(api, port), []spiffe.ID{spiffe.ServiceID(td, api)}, alpn))
	return t, t.Handshake()
}

// told is an application that answers with the fields it was sent, and forges a proxy's.
func told() func(net.Conn, *bufio.Reader) {
	return answer(func(q *http.Request, _ string) string {
		var b bytes.Buffer
		q.Header.Write(&b)
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nheddle-error: forged\r\nheddle_id: forged\r\nContent-Length: %d\r\n\r\n%s", b.Len(), b.String())
	})
}

func TestInboundIdentity(t *testing.T) {
	w := newWorld(t, application(t, told()), Limits{}, func(w *world) {
		w.inbound.Ports[1].MTLS = mesh.Permissive
		w.inbound.Rules = append(w.inbound.Rules, mesh.Rule{ID: "shop/api/allow/all", Action: mesh.Allow, Ports: []string{"http"}, From: []mesh.Peer{{Unauthenticated: true}}})
	})
	const forged = "GET / HTTP/1.1\r\nHost: a\r\nHeddle-Client-Id: spiffe://x/y\r\nheddle_client_id: spiffe://x/y\r\nX-Forwarded-Client_Cert: URI=spiffe://x/y\r\n\r\n"
	web := string(spiffe.ServiceID(td, web))
	for _, c := range []struct{ name, addr, want string }{
		{"through both sidecars", w.to("http"), web},
		{"from the outside", w.expose("http"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := dial(t, c.addr)
			send(t, conn, forged)
			o, res := exchangeOf(bufio.NewReader(conn), "GET")
			if o.status != 200 || strings.Contains(o.body, "spiffe://x/y") || strings.Contains(strings.ToLower(o.body), "heddle_client") {
				t.Fatalf("the application was told %+v", o)
			}
			if c.want == "" && strings.Contains(strings.ToLower(o.body), "heddle-") || !strings.Contains(o.body, "Heddle-Client-Id: "+c.want) && c.want != "" {
				t.Errorf("the application was told %q, want client %q", o.body, c.want)
			}
			if c.want != "" && (!strings.Contains(o.body, ";URI="+c.want+"\r\n") || !strings.Contains(o.body, "By="+string(spiffe.ServiceID(td, api))+";Hash=")) {
				t.Errorf("no client certificate in %q", o.body)
			}
			if res.Header.Get("heddle-error") != "" || res.Header.Get("heddle_id") != "" {
				t.Errorf("the application forged %v", res.Header)
			}
		})
	}
}

// What the inbound stack answers itself.
func TestInboundAnswers(t *testing.T) {
	const get = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
	w := newWorld(t, application(t, told()), Limits{}, func(w *world) {
		w.inbound.Ports[1].MTLS, w.inbound.Ports[1].CanonicalPaths = mesh.Permissive, true
		w.inbound.Ports[1].Matches = []mesh.Match{{Route: "shop/api/httpRoutes/admin", Path: mesh.PathMatch{Prefix: "/admin"}}}
		w.inbound.Rules = append(w.inbound.Rules, mesh.Rule{ID: "shop/api/deny/admin", Action: mesh.DenyRule, From: []mesh.Peer{{Unauthenticated: true}},
			Routes: []string{"shop/api/httpRoutes/admin"}})
	})
	mine, err := w.peer(w.mesh, spiffe.ServiceID(td, web), "http", spiffe.ALPNHTTP1)
	if err != nil {
		t.Fatal(err)
	}
	other, err := w.peer(w.mesh, "spiffe://test.mesh/ns/shop/sa/other", "http", spiffe.ALPNHTTP1)
	if err != nil {
		t.Fatal(err)
	}
	exposed := dial(t, w.expose("http"))
	readers := map[net.Conn]*bufio.Reader{mine: bufio.NewReader(mine), other: bufio.NewReader(other), exposed: bufio.NewReader(exposed)}
	for _, c := range []struct {
		name, request string
		conn          net.Conn
		status        int
		reason        string
		policy        string // of heddle-policy
	}{
		{"allowed", get, mine, 200, "", ""},
		{"deny rule", "GET /admin/x HTTP/1.1\r\nHost: a\r\n\r\n", mine, 403, "denied", commit + " shop/api/deny/admin shop/api.cue:11"},
		{"denied POST with its body", "POST /admin HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", mine, 403, "denied", commit + " shop/api/deny/admin shop/api.cue:11"},
		{"not canonical", "GET /x/../admin HTTP/1.1\r\nHost: a\r\n\r\n", mine, 400, "non-canonical-path", ""},
		{"escaped slash", "GET /%2fadmin HTTP/1.1\r\nHost: a\r\n\r\n", mine, 400, "non-canonical-path", ""},
		{"connect", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", mine, 405, "connect", ""},
		{"allowed again on the same connection", get, mine, 200, "", ""},
		{"other identity", get, other, 403, "denied", commit + " shop/api/default/http mesh.cue:3"},
		{"stranger", get, exposed, 403, "denied", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			send(t, c.conn, c.request)
			o, res := exchangeOf(readers[c.conn], "GET")
			if o.status != c.status {
				t.Fatalf("got %+v", o)
			}
			if c.status == 200 {
				return
			}
			if got := res.Header.Get("heddle-error"); got != c.reason {
				t.Errorf("heddle-error: %s, want %s", got, c.reason)
			}
			if got := res.Header.Get("heddle-policy"); got != c.policy {
				t.Errorf("heddle-policy: %s, want %s", got, c.policy)
			}
			if strings.Count(o.body, "\n") != 1 || !strings.HasSuffix(o.body, "\n") {
				t.Errorf("body is not one line: %q", o.body)
			}
			if c.policy != "" {
				for _, part := range strings.Fields(c.policy) {
					if !strings.Contains(o.body, part) {
						t.Errorf("body %q does not name %s", o.body, part)
					}
				}
			}
			if c.conn == exposed {
				id := res.Header.Get("heddle-id")
				if id == "" || strings.Contains(o.body, "shop/api") || !strings.Contains(w.logs.String(), id) {
					t.Errorf("a stranger got %v %q", res.Header, o.body)
				}
			}
		})
	}
	if logs := w.logs.String(); !strings.Contains(logs, `"policy":"shop/api/deny/admin","pos":"shop/api.cue:11"`) || strings.Count(logs, "shop/api/deny/admin") != 1 {
		t.Errorf("the two denials of one rule are not one line: %s", logs)
	}
}

// Every head that could be read in two ways ends the connection with 400, at either sidecar, and never reaches the app.
func TestSmuggling(t *testing.T) {
	reached := make(chan string, 100)
	app := application(t, answer(func(q *http.Request, body string) string {
		reached <- q.URL.Path + body
		return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	}))
	w := newWorld(t, app, Limits{}, func(w *world) { w.inbound.Ports[1].MTLS = mesh.Permissive })
	w.inbound.Rules[0].From = []mesh.Peer{{Unauthenticated: true}}
	w.publish()
	for name, addr := range map[string]string{"outbound": w.to("http"), "proxy": w.proxy(), "inbound": w.expose("http")} {
		for _, request := range []string{
			"POST /1 HTTP/1.1\r\nHost: api.shop.mesh\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
			"POST /2 HTTP/1.1\r\nHost: api.shop.mesh\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
			"POST /3 HTTP/1.1\r\nHost: api.shop.mesh\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
			"POST /4 HTTP/1.1\r\nHost: api.shop.mesh\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
			"POST /5 HTTP/1.1\r\nHost: api.shop.mesh\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n",
			"POST /6 HTTP/1.1\r\nHost: api.shop.mesh\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: b\r\n\r\n",
			"GET /7 HTTP/1.1\nHost: api.shop.mesh\n\n",
			"GET /8 HTTP/1.1\r\nHost: api.shop.mesh\r\nHost: b\r\n\r\n",
			"GET /9 HTTP/1.1\r\nHost: api.shop.mesh\r\nA: b\r\n c\r\n\r\n",
			"GET /10 HTTP/1.1\r\n\r\n",
			"GET /11 HTTP/1.1\r\nHost: api.shop.mesh\r\nA: b\x00\r\n\r\n",
		} {
			conn := dial(t, addr)
			send(t, conn, request+"GET /smuggled HTTP/1.1\r\nHost: api.shop.mesh\r\n\r\n")
			r := bufio.NewReader(conn)
			o, _ := exchangeOf(r, "GET")
			rest, _ := io.ReadAll(r)
			if o.status != 400 || len(rest) != 0 {
				t.Errorf("%s: %q: got %+v and then %q", name, request, o, rest)
			}
		}
	}
	select {
	case q := <-reached:
		t.Errorf("%s reached the application", q)
	default:
	}
}

func TestInboundBeforePolicy(t *testing.T) {
	w := newWorld(t, application(t, told()), Limits{}, nil)
	bare := NewInbound(Env{Current: newEmpty(), Identity: w.inEnv.Identity, Metrics: w.inEnv.Metrics, Transport: w.inEnv.Transport})
	ctx, cancel := context.WithCancel(w.ctx)
	exposed, meshed := listen(t), listen(t)
	done := make(chan error, 2)
	go func() { done <- bare.ServeExposed(ctx, exposed, "http") }()
	go func() { done <- bare.ServeMesh(ctx, meshed) }()
	conn := dial(t, exposed.Addr().String())
	send(t, conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if o, res := exchangeOf(bufio.NewReader(conn), "GET"); o.status != 503 || res.Header.Get("heddle-error") != "no-policy" {
		t.Errorf("got %+v", o)
	}
	if _, err := w.peer(meshed.Addr().String(), spiffe.ServiceID(td, web), "http", spiffe.ALPNHTTP1); err == nil {
		t.Error("the mesh listener took a connection before the first policy")
	}
	cancel()
	<-done
	<-done
	conn.Close()
	if err := bare.Drain(t.Context()); err != nil {
		t.Error(err)
	}
}

// The exposed listener by port protocol and mode, for plaintext, foreign TLS and the mesh's own.
func TestExposed(t *testing.T) {
	foreign := func() []byte {
		var b bytes.Buffer
		c, s := net.Pipe()
		go func() {
			tls.Client(c, &tls.Config{ServerName: "example.com"}).HandshakeContext(t.Context())
		}()
		s.SetDeadline(time.Now().Add(patience))
		buf := make([]byte, 4096)
		for b.Len() < 5 || b.Len() < 5+int(b.Bytes()[3])<<8+int(b.Bytes()[4]) {
			n, err := s.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			b.Write(buf[:n])
		}
		s.Close()
		c.Close()
		return b.Bytes()
	}()
	const get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	app := application(t, func(c net.Conn, r *bufio.Reader) { io.Copy(c, r) }) // an echo
	w := newWorld(t, app, Limits{}, func(w *world) {
		for i := range w.inbound.Ports {
			w.inbound.Ports[i].MTLS = mesh.Permissive
		}
		w.inbound.Rules[0].From = []mesh.Peer{{Unauthenticated: true}}
		w.inbound.Ports = append(w.inbound.Ports, port("strict", 1, mesh.TCP))
		w.inbound.Ports = append(w.inbound.Ports, port("ruled", 2, mesh.Detect))
		w.inbound.Ports[4].MTLS = mesh.Permissive
		w.inbound.Ports[4].Matches = []mesh.Match{{Route: "shop/api/httpRoutes/x"}}
		w.inbound.Rules = append(w.inbound.Rules, mesh.Rule{ID: "shop/api/allow/x", Action: mesh.Allow, Ports: []string{"ruled"}, Routes: []string{"shop/api/httpRoutes/x"},
			From: []mesh.Peer{{Unauthenticated: true}}})
	})
	for _, c := range []struct {
		name, port, send string
		want             string // "" means: closed without a byte
	}{
		{"bytes to tcp", "raw", "\x00\x01hello", "\x00\x01hello"},
		{"http to tcp", "raw", get, get},
		{"foreign tls to tcp", "raw", string(foreign), string(foreign)},
		{"bytes to detect", "auto", "*1\r\n$4\r\nPING\r\n", "*1\r\n$4\r\nPING\r\n"},
		{"http2 to detect", "auto", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
		{"bytes to http1", "http", "\x00\x01hello\r\n\r\n", "HTTP/1.1 400"},
		{"foreign tls to http1", "http", string(foreign), "HTTP/1.1 400"},
		{"bytes to detect with route rules", "ruled", "*1\r\n$4\r\nPING\r\n", ""},
		{"plaintext to strict", "strict", "hello\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := dial(t, w.expose(c.port))
			send(t, conn, c.send)
			if c.want != "" {
				conn.CloseWrite()
			}
			got, err := io.ReadAll(conn)
			if !strings.HasPrefix(string(got), c.want) || c.want == "" && len(got) > 0 {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	t.Run("mesh", func(t *testing.T) {
		for _, p := range []string{"raw", "auto"} {
			conn, err := w.peer(w.expose(p), spiffe.ServiceID(td, web), p, spiffe.ALPNTCP)
			if err != nil {
				t.Fatal(err)
			}
			send(t, conn, "hello")
			conn.CloseWrite()
			if got, err := io.ReadAll(conn); string(got) != "hello" {
				t.Errorf("%s: got %q, %v", p, got, err)
			}
		}
		conn, err := w.peer(w.expose("raw"), spiffe.ServiceID(td, web), "auto", spiffe.ALPNTCP)
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		if err == nil {
			t.Error("the listener of one port took a connection for another")
		}
	})
	t.Run("bytes by the mesh to a port of http1", func(t *testing.T) {
		conn, err := w.peer(w.mesh, spiffe.ServiceID(td, web), "http", spiffe.ALPNTCP)
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		if err == nil {
			t.Error("opaque bytes passed a port declared http1")
		}
	})
}

// A connection that the policy no longer allows is closed when the policy changes; one that it still allows is not.
func TestRejudged(t *testing.T) {
	w := newWorld(t, application(t, func(c net.Conn, r *bufio.Reader) { io.Copy(c, r) }), Limits{}, nil)
	conn := dial(t, w.to("raw"))
	echo := func() error {
		buf := make([]byte, 4)
		io.WriteString(conn, "ping")
		_, err := io.ReadFull(conn, buf)
		return err
	}
	if err := echo(); err != nil {
		t.Fatal(err)
	}
	w.publish() // the same behaviour
	if err := echo(); err != nil {
		t.Fatal("a new config with the same rules cut the connection:", err)
	}
	w.inbound.Rules = slices.Insert(w.inbound.Rules, 0, mesh.Rule{ID: "shop/api/deny/web", Action: mesh.DenyRule, From: []mesh.Peer{{Authenticated: true}}})
	w.publish()
	if _, err := conn.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Fatalf("the connection ended with %v, want a reset", err)
	}
	again, err := net.Dial("tcp", w.to("raw"))
	if err == nil {
		again.SetDeadline(time.Now().Add(patience))
		_, err = again.Read(make([]byte, 1))
		again.Close()
	}
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a denied connection was served: %v", err)
	}
	if logs := w.logs.String(); !strings.Contains(logs, `"policy":"shop/api/deny/web"`) {
		t.Errorf("the denied connection was not logged: %s", logs)
	}
}

// A connection lasts no longer than what its peer proved: its SVID, and the root that vouches for it.
func TestProofEnds(t *testing.T) {
	app := application(t, func(c net.Conn, r *bufio.Reader) { io.Copy(c, r) })
	open := func(w *world, life time.Duration, alpn string) *tls.Conn {
		s := identity.NewSource(nil)
		s.Set(w.ca.svid(spiffe.ServiceID(td, web), life), w.ca.bundle(1))
		port := map[string]string{spiffe.ALPNTCP: "raw", spiffe.ALPNHTTP1: "http"}[alpn]
		c := tls.Client(dial(t, w.mesh), s.ClientTLS(spiffe.SNI(api, port), []spiffe.ID{spiffe.ServiceID(td, api)}, alpn))
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	ping := func(c *tls.Conn) {
		send(t, c, "ping")
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		life time.Duration
		end  func(*world)
	}{
		{"svid expires", 2 * time.Second, func(*world) {}},
		{"root is retired", time.Hour, func(w *world) {
			w.inEnv.Identity.Set(w.inEnv.Identity.Load().SVID, newAuthority(t).bundle(2))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, app, Limits{}, nil)
			tunnel, http := open(w, c.life, spiffe.ALPNTCP), open(w, c.life, spiffe.ALPNHTTP1)
			ping(tunnel)
			// A client's handshake is over before the server's; a connection whose proof ends within it is reset.
			for end, proven := time.Now().Add(patience), 0; proven < 2; time.Sleep(time.Millisecond) {
				if proven = 0; time.Now().After(end) {
					t.Fatal("the handshakes do not end")
				}
				w.in.each(func(c *client) {
					c.mu.Lock()
					defer c.mu.Unlock()
					if c.judge != nil || c.state.Load() == idle {
						proven++
					}
				})
			}
			c.end(w)
			if _, err := tunnel.Read(make([]byte, 1)); err == nil || err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the tunnel ended with %v, want a reset", err)
			}
			if _, err := http.Read(make([]byte, 1)); err != io.EOF { // idle: ended in order, so that a request may be sent again
				t.Errorf("the idle connection ended with %v", err)
			}
		})
	}
}

// A sidecar that is taken for its own application says so once, instead of calling itself until nothing is left.
func TestLoop(t *testing.T) {
	ln := listen(t)
	app := ln.Addr().String()
	w := newWorld(t, app, Limits{}, func(w *world) {
		own := Own{netip.AddrPortFrom(netip.IPv4Unspecified(), addrPort(ln.Addr()).Port())}
		w.in.Own = own
		for i := range w.inbound.Ports {
			w.inbound.Ports[i].MTLS = mesh.Permissive
		}
		w.inbound.Rules = append(w.inbound.Rules, mesh.Rule{ID: "shop/api/allow/all", Action: mesh.Allow, From: []mesh.Peer{{Unauthenticated: true}}})
	})
	ctx, stop := context.WithCancel(w.ctx)
	served := make(chan error, 1)
	go func() { served <- w.in.ServeExposed(ctx, ln, "auto") }()
	defer func() { stop(); <-served }()

	conn := dial(t, app)
	send(t, conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if o, res := exchangeOf(bufio.NewReader(conn), "GET"); o.status != 508 || res.Header.Get("heddle-error") != "loop" {
		t.Errorf("got %+v", o)
	}
	raw := dial(t, app)
	send(t, raw, "\x00bytes")
	if _, err := raw.Read(make([]byte, 1)); err == nil || err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("bytes ended with %v, want a reset", err)
	}
	if logs := w.logs.String(); strings.Count(logs, "give --app auto=HOST:PORT") != 2 {
		t.Errorf("the operator was told: %s", logs)
	}
}

// TestOutsideShare: callers from outside, however many, leave the mesh its half of the connections.
func TestOutsideShare(t *testing.T) {
	w := newWorld(t, application(t, told()), Limits{Conns: 4, Head: time.Hour}, func(w *world) { w.inbound.Ports[1].MTLS = mesh.Permissive })
	exposed := w.expose("http")
	for range 10 {
		send(t, dial(t, exposed), "GET / HTTP/1.1\r\n") // and no more
	}
	for len(w.in.outside) < cap(w.in.outside) && len(w.in.slots) < cap(w.in.slots) {
		runtime.Gosched() // until they have all that they can get
	}
	for range 2 {
		c, err := w.peer(w.mesh, spiffe.ServiceID(td, web), "http", spiffe.ALPNHTTP1)
		if err != nil {
			t.Fatal(err)
		}
		send(t, c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if o, _ := exchangeOf(bufio.NewReader(c), "GET"); o.status != 200 {
			t.Fatalf("a peer of the mesh got %+v", o)
		}
	}
}
