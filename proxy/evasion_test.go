package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

// TestEvasions sends what somebody would who wants past a rule: each request another way to say what the rule is about.
func TestEvasions(t *testing.T) {
	anyone := []mesh.Peer{{Unauthenticated: true}}
	all := mesh.Rule{ID: "shop/api/allow/all", Action: mesh.Allow, From: anyone}
	deny := func(r mesh.Rule) []mesh.Rule {
		r.ID, r.Action, r.From = "shop/api/deny/x", mesh.DenyRule, anyone
		return []mesh.Rule{all, r}
	}
	allow := func(r mesh.Rule) []mesh.Rule {
		r.ID, r.Action, r.From = "shop/api/allow/x", mesh.Allow, anyone
		return []mesh.Rule{r}
	}
	admin := deny(mesh.Rule{Paths: []mesh.PathMatch{{Prefix: "/admin"}}})
	orders := allow(mesh.Rule{Paths: []mesh.PathMatch{{Template: "/users/{id}/orders"}}})
	get := allow(mesh.Rule{Methods: []string{"GET"}})
	tenant := allow(mesh.Rule{Headers: []mesh.HeaderMatch{{Name: "x-tenant", Exact: "a"}}})
	root := deny(mesh.Rule{Headers: []mesh.HeaderMatch{{Name: "x-role", Exact: "root"}}})
	debug := deny(mesh.Rule{Headers: []mesh.HeaderMatch{{Name: "x-debug", Present: true}}})
	near := allow(mesh.Rule{Networks: []mesh.Network{{CIDR: netip.MustParsePrefix("10.0.0.0/8")}}})

	const host = "Host: a\r\n"
	w := newWorld(t, application(t, told()), Limits{}, func(w *world) { w.inbound.Ports[1].MTLS, w.inbound.Ports[1].CanonicalPaths = mesh.Permissive, true })
	exposed := w.expose("http")
	for _, c := range []struct {
		name  string
		rules []mesh.Rule
		head  string // without the empty line
		want  int
		never string // must not be in what the application was sent
	}{
		{"absolute form", admin, "GET http://a/admin HTTP/1.1\r\n" + host, 403, ""},
		{"absolute form of another host", admin, "GET http://b/admin HTTP/1.1\r\n" + host, 403, ""},
		{"absolute form without a path", allow(mesh.Rule{Paths: []mesh.PathMatch{{Exact: "/"}}}), "GET http://a HTTP/1.1\r\n" + host, 200, ""},
		{"absolute form with dots", admin, "GET http://a/x/../admin HTTP/1.1\r\n" + host, 400, ""},
		{"HTTP/1.0", admin, "GET /admin HTTP/1.0\r\n", 403, ""},
		{"HTTP/1.0 in upper case", admin, "GET /ADMIN HTTP/1.0\r\n", 200, ""}, // case is never folded
		{"a method in lower case", get, "get / HTTP/1.1\r\n" + host, 403, ""},
		{"HEAD is not GET", get, "HEAD / HTTP/1.1\r\n" + host, 403, ""},
		{"an override of the method", get, "POST / HTTP/1.1\r\nX-HTTP-Method-Override: GET\r\n" + host, 403, ""},
		{"CONNECT", []mesh.Rule{all}, "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n", 405, ""},
		{"OPTIONS * under a rule by path", allow(mesh.Rule{Paths: []mesh.PathMatch{{Prefix: "/x"}}}), "OPTIONS * HTTP/1.1\r\n" + host, 403, ""},
		{"OPTIONS * under a rule for all", deny(mesh.Rule{Paths: []mesh.PathMatch{{Prefix: "/"}}}), "OPTIONS * HTTP/1.1\r\n" + host, 403, ""},
		{"* with another method", []mesh.Rule{all}, "GET * HTTP/1.1\r\n" + host, 400, ""},

		{"an escaped letter", admin, "GET /%61%64min HTTP/1.1\r\n" + host, 403, ""},
		{"an escaped slash", admin, "GET /admin%2fx HTTP/1.1\r\n" + host, 400, ""},
		{"a doubled escape is a name of its own", admin, "GET /%2561dmin HTTP/1.1\r\n" + host, 200, ""},
		{"an escaped dot segment", admin, "GET /x/%2e%2e/admin HTTP/1.1\r\n" + host, 400, ""},
		{"parameters of a segment", admin, "GET /admin;x HTTP/1.1\r\n" + host, 400, ""},
		{"a backslash", admin, "GET /x\\..\\admin HTTP/1.1\r\n" + host, 400, ""},
		{"NUL", admin, "GET /admin%00 HTTP/1.1\r\n" + host, 400, ""},
		{"an overlong escape is a name of its own", admin, "GET /x%c0%afadmin HTTP/1.1\r\n" + host, 200, ""},
		{"a query that looks like a path", admin, "GET /?/admin HTTP/1.1\r\n" + host, 200, ""},
		{"an element in another spelling", orders, "GET /users/%37/order%73 HTTP/1.1\r\n" + host, 200, ""},
		{"an element that is two", orders, "GET /users/7%2f8/orders HTTP/1.1\r\n" + host, 400, ""},
		{"an element that is none", orders, "GET /users//orders HTTP/1.1\r\n" + host, 400, ""},
		{"a slash more", orders, "GET /users/7/orders/ HTTP/1.1\r\n" + host, 403, ""},

		{"white space around a value", tenant, "GET / HTTP/1.1\r\nX-Tenant: \t a \t\r\n" + host, 200, ""},
		{"white space inside", tenant, "GET / HTTP/1.1\r\nX-Tenant: a b\r\n" + host, 403, ""},
		{"a folded line", tenant, "GET / HTTP/1.1\r\nX-Tenant: a\r\n b\r\n" + host, 400, ""},
		{"white space before the colon", tenant, "GET / HTTP/1.1\r\nX-Tenant : a\r\n" + host, 400, ""},
		{"another spelling is another field", tenant, "GET / HTTP/1.1\r\nX_Tenant: a\r\n" + host, 403, ""},
		{"and does not come along", tenant, "GET / HTTP/1.1\r\nX-Tenant: a\r\nX_Tenant: b\r\n" + host, 200, "enant: b"},
		{"nor where it must not be", debug, "GET / HTTP/1.1\r\nX_Debug: 1\r\n" + host, 200, "ebug"},
		{"nor one that the next hop does not get", tenant, "GET / HTTP/1.1\r\nX-Tenant: a\r\nConnection: x-tenant\r\n" + host, 403, ""},
		{"a second line", root, "GET / HTTP/1.1\r\nX-Role: root\r\nX-Role: guest\r\n" + host, 403, ""},
		{"a list", root, "GET / HTTP/1.1\r\nX-Role: guest , root\r\n" + host, 403, ""},
		{"another value", root, "GET / HTTP/1.1\r\nX-Role: rooted\r\n" + host, 200, ""},

		{"a claim of another address", near, "GET / HTTP/1.1\r\nX-Forwarded-For: 10.0.0.1\r\nForwarded: for=10.0.0.1\r\nX-Real-IP: 10.0.0.1\r\n" + host, 403, ""},
		{"a claim of an identity", allow(mesh.Rule{Headers: []mesh.HeaderMatch{{Name: "heddle-client-id", Present: true}}}), "GET / HTTP/1.1\r\nHost: a\r\n", 403, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.inbound.Rules = c.rules
			w.publish()
			conn := dial(t, exposed)
			send(t, conn, c.head+"\r\n")
			method, _, _ := strings.Cut(c.head, " ")
			o, _ := exchangeOf(bufio.NewReader(conn), method)
			if o.status != c.want || c.never != "" && strings.Contains(o.body, c.never) {
				t.Errorf("got %+v, want %d without %q", o, c.want, c.never)
			}
		})
	}
}

// TestMappedAddresses: a caller by IPv4 is the same to rules whether the listener is of IPv4 or of both.
func TestMappedAddresses(t *testing.T) {
	w := newWorld(t, application(t, told()), Limits{}, func(w *world) {
		w.inbound.Ports[1].MTLS = mesh.Permissive
		w.inbound.Rules = []mesh.Rule{{ID: "shop/api/allow/near", Action: mesh.Allow, From: []mesh.Peer{{Unauthenticated: true}},
			Networks: []mesh.Network{{CIDR: netip.MustParsePrefix("127.0.0.0/8"), Except: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}}}}}
	})
	both, err := net.Listen("tcp", "[::]:0")
	if err != nil {
		t.Skip("no IPv6 here: ", err)
	}
	ctx, stop := context.WithCancel(w.ctx)
	served := make(chan error, 1)
	go func() { served <- w.in.ServeExposed(ctx, both, "http") }()
	defer func() { stop(); <-served }()
	port := addrPort(both.Addr()).Port()
	for from, want := range map[string]int{"127.0.0.1": 200, "127.0.0.2": 403, "127.0.0.3": 200} {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err := d.Dial("tcp4", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String())
		if err != nil {
			t.Fatal(err)
		}
		send(t, conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if o, _ := exchangeOf(bufio.NewReader(conn), "GET"); o.status != want {
			t.Errorf("from %s: %d, want %d", from, o.status, want)
		}
		conn.Close()
	}
}

// TestTunnelsAreJudgedAgain: a tunnel, of bytes or of an upgraded request, ends when what let it in no longer holds: its
// rule has ended, the policy is too old to be believed, or a new policy would not take its path.
func TestTunnelsAreJudgedAgain(t *testing.T) {
	app := application(t, func(c net.Conn, r *bufio.Reader) {
		if b, _ := r.Peek(1); string(b) == "G" {
			for line := ""; line != "\r\n"; {
				var err error
				if line, err = r.ReadString('\n'); err != nil {
					return
				}
			}
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		}
		io.Copy(c, r)
	})
	me := []mesh.Peer{{Identity: string(spiffe.ServiceID(td, web))}}
	for _, c := range []struct {
		name      string
		port      string // "http" is upgraded
		path      string
		rule      mesh.Rule
		end       func(*world)
		untouched bool
	}{
		{"an upgrade whose rule ends", "http", "/chat", mesh.Rule{From: me, Methods: []string{"GET"}, Until: time.Now().Add(2500 * time.Millisecond)}, func(*world) {}, false},
		{"bytes under old policy", "raw", "", mesh.Rule{From: me}, func(w *world) { w.inDeps.Freshness.Confirm(time.Now().Add(-2 * time.Hour)) }, false},
		{"an upgrade under old policy", "http", "/chat", mesh.Rule{From: me}, func(w *world) { w.inDeps.Freshness.Confirm(time.Now().Add(-2 * time.Hour)) }, false},
		{"an upgrade at a path that rules cannot judge", "http", "/x/../chat", mesh.Rule{From: me}, func(w *world) {
			w.inbound.Ports[1].CanonicalPaths = true
			w.inbound.Rules = append(w.inbound.Rules, mesh.Rule{ID: "shop/api/deny/x", Action: mesh.DenyRule, From: me, Paths: []mesh.PathMatch{{Exact: "/chat"}}})
			w.publish()
		}, false},
		{"an upgrade that a header still allows", "http", "/chat", mesh.Rule{From: me, Headers: []mesh.HeaderMatch{{Name: "x-tenant", Exact: "a"}}}, func(w *world) {
			w.inbound.Rules = append(w.inbound.Rules, mesh.Rule{ID: "shop/api/deny/x", Action: mesh.DenyRule, From: me, Headers: []mesh.HeaderMatch{{Name: "x-tenant", Exact: "b"}}})
			w.publish()
		}, true},
		{"an upgrade that a header no longer allows", "http", "/chat", mesh.Rule{From: me, Headers: []mesh.HeaderMatch{{Name: "x-tenant", Exact: "a"}}}, func(w *world) {
			w.inbound.Rules = append(w.inbound.Rules, mesh.Rule{ID: "shop/api/deny/x", Action: mesh.DenyRule, From: me, Headers: []mesh.HeaderMatch{{Name: "x-tenant", Present: true}}})
			w.publish()
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, app, Limits{}, func(w *world) {
				w.maxStale = time.Hour
				c.rule.ID, c.rule.Action = "shop/api/allow/a", mesh.Allow
				w.inbound.Rules = []mesh.Rule{c.rule}
			})
			alpn := map[string]string{"http": spiffe.ALPNHTTP1, "raw": spiffe.ALPNTCP}[c.port]
			conn, err := w.peer(w.mesh, spiffe.ServiceID(td, web), c.port, alpn)
			if err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(conn)
			if c.port == "http" {
				send(t, conn, "GET "+c.path+" HTTP/1.1\r\nHost: a\r\nX-Tenant: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
				if _, res := exchangeOf(r, "GET"); res == nil || res.StatusCode != 101 {
					t.Fatalf("no upgrade: %+v", res)
				}
			}
			echo := func() error {
				send(t, conn, "ping")
				_, err := io.ReadFull(r, make([]byte, 4))
				return err
			}
			if err := echo(); err != nil {
				t.Fatal(err)
			}
			c.end(w)
			if c.untouched {
				w.in.each(func(c *client) {
					if !c.allowed() {
						t.Error("the tunnel is not allowed any more")
					}
				})
				if err := echo(); err != nil {
					t.Errorf("the tunnel ended: %v", err)
				}
				return
			}
			if _, err := r.ReadByte(); err == nil || err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the tunnel ended with %v, want a reset", err)
			}
		})
	}
}
