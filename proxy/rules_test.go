package proxy

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

// TestRules has each condition that the sidecar enforces (mesh.Enforced) on the wire: real mutual TLS, real requests, one
// that a rule lets in and its neighbour that it does not.
func TestRules(t *testing.T) {
	const other = "spiffe://test.mesh/ns/other/sa/job"
	anyone, proven := []mesh.Peer{{Unauthenticated: true}}, []mesh.Peer{{Authenticated: true}}
	local := netip.MustParsePrefix("127.0.0.0/8")
	w := newWorld(t, application(t, told()), Limits{}, nil)
	plain := w.expose("http")
	for _, c := range []struct {
		name    string
		rules   []mesh.Rule
		mode    mesh.InboundMode
		cluster string // networks
		peer    spiffe.ID
		request string
		want    int
	}{
		// mesh.CapAuthorizePattern
		{"a prefix", []mesh.Rule{{Action: mesh.Allow, From: []mesh.Peer{{Prefix: "spiffe://test.mesh/ns/other/"}}}}, "", "", other, "GET /", 200},
		{"beside the prefix", []mesh.Rule{{Action: mesh.Allow, From: []mesh.Peer{{Prefix: "spiffe://test.mesh/ns/others/"}}}}, "", "", other, "GET /", 403},
		{"a suffix", []mesh.Rule{{Action: mesh.Allow, From: []mesh.Peer{{Suffix: "/sa/job"}}}}, "", "", other, "GET /", 200},
		{"another suffix", []mesh.Rule{{Action: mesh.Allow, From: []mesh.Peer{{Suffix: "/a/job"}}}}, "", "", other, "GET /", 403},
		{"a prefix denies", []mesh.Rule{{Action: mesh.Allow, From: proven}, {Action: mesh.DenyRule, From: []mesh.Peer{{Prefix: "spiffe://test.mesh/ns/other/"}}}}, "", "", other, "GET /", 403},
		// mesh.CapAuthorizeNetwork
		{"inside", []mesh.Rule{{Action: mesh.Allow, From: proven, Networks: []mesh.Network{{CIDR: local}}}}, "", "", other, "GET /", 200},
		{"inside, in plaintext", []mesh.Rule{{Action: mesh.Allow, From: anyone, Networks: []mesh.Network{{CIDR: local}}}}, "", "", "", "GET /", 200},
		{"outside", []mesh.Rule{{Action: mesh.Allow, From: anyone, Networks: []mesh.Network{{CIDR: netip.MustParsePrefix("10.0.0.0/8")}}}}, "", "", "", "GET /", 403},
		{"excepted", []mesh.Rule{{Action: mesh.Allow, From: anyone, Networks: []mesh.Network{{CIDR: local, Except: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}}}}, "", "", "", "GET /", 403},
		// mesh.CapAuthorizeRequest
		{"a method", []mesh.Rule{{Action: mesh.Allow, From: proven, Methods: []string{"GET"}}}, "", "", other, "GET /", 200},
		{"another method", []mesh.Rule{{Action: mesh.Allow, From: proven, Methods: []string{"GET"}}}, "", "", other, "POST /", 403},
		{"a template", []mesh.Rule{{Action: mesh.Allow, From: proven, Paths: []mesh.PathMatch{{Template: "/users/{id}/orders"}}}}, "", "", other, "GET /users/7/orders?all", 200},
		{"not filled", []mesh.Rule{{Action: mesh.Allow, From: proven, Paths: []mesh.PathMatch{{Template: "/users/{id}/orders"}}}}, "", "", other, "GET /users/7/8/orders", 403},
		{"an escape is no way around a deny rule", []mesh.Rule{{Action: mesh.Allow, From: proven}, {Action: mesh.DenyRule, From: anyone, Paths: []mesh.PathMatch{{Prefix: "/admin"}}}}, "", "", other, "GET /%61dmin/x", 403},
		{"nor is another form of the path", []mesh.Rule{{Action: mesh.Allow, From: proven}, {Action: mesh.DenyRule, From: anyone, Paths: []mesh.PathMatch{{Prefix: "/admin"}}}}, "", "", other, "GET /x/../admin", 400},
		{"a header", []mesh.Rule{{Action: mesh.Allow, From: proven, Headers: []mesh.HeaderMatch{{Name: "x-tenant", OneOf: []string{"a", "b"}}}}}, "", "", other, "GET / X-Tenant:b", 200},
		{"another value", []mesh.Rule{{Action: mesh.Allow, From: proven, Headers: []mesh.HeaderMatch{{Name: "x-tenant", OneOf: []string{"a", "b"}}}}}, "", "", other, "GET / X-Tenant:c", 403},
		{"repeated lines are one value", []mesh.Rule{{Action: mesh.Allow, From: proven, Headers: []mesh.HeaderMatch{{Name: "x-tenant", Exact: "a"}}}}, "", "", other, "GET / X-Tenant:a X-Tenant:b", 403},
		{"a header that is there", []mesh.Rule{{Action: mesh.Allow, From: proven}, {Action: mesh.DenyRule, From: proven, Headers: []mesh.HeaderMatch{{Name: "x-debug", Present: true}}}}, "", "", other, "GET / X-Debug:", 403},
		{"and one that is not", []mesh.Rule{{Action: mesh.Allow, From: proven}, {Action: mesh.DenyRule, From: proven, Headers: []mesh.HeaderMatch{{Name: "x-debug", Present: true}}}}, "", "", other, "GET /", 200},
		{"leaving a header out is no way around a deny rule", []mesh.Rule{{Action: mesh.Allow, From: proven}, {Action: mesh.DenyRule, From: proven, Headers: []mesh.HeaderMatch{{Name: "x-tenant", Exact: "b"}}}}, "", "", other, "GET /", 403},
		// mesh.CapNonCanonical
		{"a path that is accepted as it is", []mesh.Rule{{Action: mesh.Allow, From: proven}, {Action: mesh.DenyRule, From: anyone, Paths: []mesh.PathMatch{{Prefix: "/admin"}}}}, "", "", other, "GET //x", 200},
		{"and still judged", []mesh.Rule{{Action: mesh.Allow, From: proven}, {Action: mesh.DenyRule, From: anyone, Paths: []mesh.PathMatch{{Prefix: "/admin"}}}}, "", "", other, "GET /admin//x", 403},
		// mesh.CapAuthorizeUntil
		{"before the end", []mesh.Rule{{Action: mesh.Allow, From: proven, Until: time.Now().Add(time.Hour)}}, "", "", other, "GET /", 200},
		{"after it", []mesh.Rule{{Action: mesh.Allow, From: proven, Until: time.Now().Add(-time.Second)}}, "", "", other, "GET /", 403},
		{"what has ended guards still", []mesh.Rule{{Action: mesh.Allow, From: proven, Until: time.Now().Add(-time.Second)}}, mesh.AllUnauthenticated, "", other, "GET /", 403},
		{"a deny rule that has ended", []mesh.Rule{{Action: mesh.Allow, From: proven}, {Action: mesh.DenyRule, From: anyone, Until: time.Now().Add(-time.Second)}}, "", "", other, "GET /", 200},
		// mesh.CapCluster
		{"in the cluster", nil, mesh.ClusterUnauthenticated, "127.0.0.0/8", "", "GET /", 200},
		{"out of the cluster", nil, mesh.ClusterUnauthenticated, "10.0.0.0/8", "", "GET /", 403},
		{"in the cluster with an identity", nil, mesh.ClusterAuthenticated, "127.0.0.0/8", other, "GET /", 200},
		{"in the cluster without one", nil, mesh.ClusterAuthenticated, "127.0.0.0/8", "", "GET /", 403},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.inbound.Rules, w.inbound.ClusterNetworks = nil, nil
			for i, r := range c.rules {
				r.ID = "shop/api/" + string(r.Action) + "/" + string(rune('a'+i))
				w.inbound.Rules = append(w.inbound.Rules, r)
			}
			p := &w.inbound.Ports[1]
			p.MTLS, p.Default, p.CanonicalPaths = mesh.Permissive, mesh.Deny, !strings.Contains(c.request, "//")
			if c.mode != "" {
				p.Default = c.mode
			}
			if c.cluster != "" {
				w.inbound.ClusterNetworks = []netip.Prefix{netip.MustParsePrefix(c.cluster)}
			}
			w.publish()
			var conn net.Conn = nil
			if c.peer == "" {
				conn = dial(t, plain)
			} else {
				mtls, err := w.peer(w.mesh, c.peer, "http", spiffe.ALPNHTTP1)
				if err != nil {
					t.Fatal(err)
				}
				conn = mtls
			}
			f := strings.Fields(c.request)
			head := f[0] + " " + f[1] + " HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n"
			for _, h := range f[2:] {
				head += h + "\r\n"
			}
			send(t, conn, head+"\r\n")
			o, _ := exchangeOf(bufio.NewReader(conn), f[0])
			if o.status != c.want {
				t.Errorf("%d, want %d: %s", o.status, c.want, o.body)
			}
		})
	}
}

// TestRulesOnBytes: rules by network and by pattern hold for connections, and a port with a rule about requests lets
// no bytes in that are none.
func TestRulesOnBytes(t *testing.T) {
	local := []mesh.Network{{CIDR: netip.MustParsePrefix("127.0.0.0/8")}}
	far := []mesh.Network{{CIDR: netip.MustParsePrefix("10.0.0.0/8")}}
	w := newWorld(t, application(t, func(c net.Conn, r *bufio.Reader) { io.Copy(c, r) }), Limits{}, nil)
	for _, c := range []struct {
		name, port string
		rule       mesh.Rule
		want       bool
	}{
		{"a prefix", "raw", mesh.Rule{From: []mesh.Peer{{Prefix: "spiffe://test.mesh/ns/shop/"}}}, true},
		{"another prefix", "raw", mesh.Rule{From: []mesh.Peer{{Prefix: "spiffe://test.mesh/ns/other/"}}}, false},
		{"inside", "raw", mesh.Rule{From: []mesh.Peer{{Authenticated: true}}, Networks: local}, true},
		{"outside", "raw", mesh.Rule{From: []mesh.Peer{{Authenticated: true}}, Networks: far}, false},
		{"nothing about requests", "auto", mesh.Rule{From: []mesh.Peer{{Authenticated: true}}}, true},
		{"about methods", "auto", mesh.Rule{From: []mesh.Peer{{Authenticated: true}}, Methods: []string{"GET"}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.rule.ID, c.rule.Action = "shop/api/allow/a", mesh.Allow
			w.inbound.Rules = []mesh.Rule{c.rule}
			w.publish()
			if got := w.echoes(c.port); got != c.want {
				t.Errorf("bytes come through: %t", got)
			}
		})
	}
}

// echoes reports whether bytes of web's come to an echo behind a port of api and back.
func (w *world) echoes(port string) bool {
	conn, err := w.peer(w.mesh, spiffe.ServiceID(td, web), port, spiffe.ALPNTCP)
	if err != nil {
		w.t.Fatal(err)
	}
	return echoed(conn)
}

func echoed(conn *tls.Conn) bool {
	if _, err := io.WriteString(conn, "\x00ing"); err != nil {
		return false
	}
	_, err := io.ReadFull(conn, make([]byte, 4))
	return err == nil
}

// TestTunnelEndsWithItsRule: a connection that only a rule with an end allows is closed at that end, without a change of
// policy; one that another rule allows is not.
func TestTunnelEndsWithItsRule(t *testing.T) {
	const lasting = spiffe.ID("spiffe://test.mesh/ns/shop/sa/lasting")
	end := time.Now().Add(1500 * time.Millisecond)
	w := newWorld(t, application(t, func(c net.Conn, r *bufio.Reader) { io.Copy(c, r) }), Limits{}, func(w *world) {
		w.inbound.Rules = []mesh.Rule{
			{ID: "shop/api/allow/ends", Action: mesh.Allow, From: []mesh.Peer{{Authenticated: true}}, Until: end},
			{ID: "shop/api/allow/lasts", Action: mesh.Allow, From: []mesh.Peer{{Identity: string(lasting)}}},
		}
	})
	open := func(id spiffe.ID) *tls.Conn {
		conn, err := w.peer(w.mesh, id, "raw", spiffe.ALPNTCP)
		if err != nil {
			t.Fatal(err)
		}
		if !echoed(conn) {
			t.Fatal("the connection is not allowed")
		}
		return conn
	}
	ends, lasts := open(spiffe.ServiceID(td, web)), open(lasting)
	if _, err := ends.Read(make([]byte, 1)); err == nil {
		t.Error("bytes out of nowhere")
	}
	if now := time.Now(); now.Before(end) {
		t.Errorf("the connection was closed %s before its rule ended", end.Sub(now))
	}
	if !echoed(lasts) {
		t.Error("a connection that another rule allows was closed")
	}
}

// TestObserved: audit rules, shadow rules and the audit mode let in what would be let in without them, and record what
// they match: a counter and a line of the log for each.
func TestObserved(t *testing.T) {
	w := newWorld(t, application(t, told()), Limits{}, func(w *world) {
		proven := []mesh.Peer{{Authenticated: true}}
		w.inbound.Ports[0].Default, w.inbound.Ports[1].Default, w.inbound.Ports[2].Default = mesh.AllAuthenticated, mesh.AllAuthenticated, mesh.Audit
		w.inbound.Rules = []mesh.Rule{
			{ID: "shop/api/allow/shadow", Action: mesh.Allow, From: []mesh.Peer{{Identity: "spiffe://test.mesh/ns/none/sa/none"}}, Shadow: true},
			{ID: "shop/api/audit/bytes", Action: mesh.AuditRule, From: proven, Ports: []string{"raw"}},
			{ID: "shop/api/audit/posts", Action: mesh.AuditRule, From: proven, Methods: []string{"POST"}, Ports: []string{"auto", "http"}},
			{ID: "shop/api/audit/reads", Action: mesh.AuditRule, From: proven, Methods: []string{"GET"}, Ports: []string{"auto", "http"}},
			{ID: "shop/api/deny/over", Action: mesh.DenyRule, From: proven, Shadow: true, Until: time.Now()},
			{ID: "shop/api/deny/shadow", Action: mesh.DenyRule, From: proven, Paths: []mesh.PathMatch{{Prefix: "/admin"}}, Shadow: true, Ports: []string{"http"}},
		}
	})
	conn := dial(t, w.to("http"))
	r := bufio.NewReader(conn)
	for _, path := range []string{"/admin", "/x", "/admin/y"} {
		send(t, conn, "GET "+path+" HTTP/1.1\r\nHost: a\r\n\r\n")
		if o, _ := exchangeOf(r, "GET"); o.status != 200 {
			t.Fatalf("%s: %d: %s", path, o.status, o.body)
		}
	}
	for _, port := range []string{"raw", "auto"} { // a shadow of a rule about requests keeps no bytes out
		c, err := w.peer(w.mesh, spiffe.ServiceID(td, web), port, spiffe.ALPNTCP)
		if err != nil {
			t.Fatal(err)
		}
		send(t, c, "GET / HTTP/1.0\r\n\r\n") // what the application answers; in opaque bytes
		if b, err := io.ReadAll(io.LimitReader(c, 8)); string(b) != "HTTP/1.1" {
			t.Fatalf("%s: %q, %v", port, b, err)
		}
	}
	var b strings.Builder
	w.inEnv.Metrics.WriteText(&b)
	for want, n := range map[string]string{
		`inbound_http_authz_observed_total{*authz_kind="audit",authz_name="shop/api/audit/reads"} `:  "3",
		`inbound_http_authz_observed_total{*authz_kind="deny",authz_name="shop/api/deny/shadow"} `:   "2",
		`inbound_tcp_authz_observed_total{*authz_kind="audit",authz_name="shop/api/audit/bytes"} `:   "1",
		`inbound_tcp_authz_observed_total{*authz_kind="default",authz_name="shop/api/default/raw"} `: "1",
		`inbound_tcp_authz_observed_total{*authz_kind="audit",authz_name="shop/api/audit/posts"} `:   "1", // what it asks cannot be seen
	} {
		family, labels, _ := strings.Cut(want, "*")
		found := false
		for line := range strings.Lines(b.String()) {
			found = found || strings.HasPrefix(line, family) && strings.HasSuffix(strings.TrimSpace(line), labels+n)
		}
		if !found {
			t.Errorf("no %s%s in\n%s", want, n, b.String())
		}
	}
	for _, never := range []string{"audit/posts\"} 2", "deny/over", "allow/shadow"} {
		if strings.Contains(b.String(), never) {
			t.Errorf("%s in\n%s", never, b.String())
		}
	}
	logs := w.logs.String()
	for _, rule := range []string{"shop/api/audit/reads", "shop/api/deny/shadow", "shop/api/audit/bytes", "shop/api/default/raw"} {
		some := false
		for line := range strings.Lines(logs) {
			some = some || strings.Contains(line, `"policy":"`+rule+`"`) && strings.Contains(line, `"message":"observed"`)
		}
		if !some {
			t.Errorf("%s was not logged:\n%s", rule, logs)
		}
	}
}

// TestObservedIsNotDenied: the default of a port in the audit mode denied under the policy before; what it lets in now is
// a line of its own at once, and no denial.
func TestObservedIsNotDenied(t *testing.T) {
	logs := &logBuffer{}
	log, now, d := zerolog.New(logs), time.Now(), denials{}
	for _, observed := range []bool{false, true, true} {
		d.note(&log, now, denial{denialKey: denialKey{rule: "shop/api/default/http", peer: "spiffe://test.mesh/a", observed: observed}})
	}
	d.flush(&log, now.Add(denialEvery))
	said := regexp.MustCompile(`"count":\d+,"message":"\w+"`).FindAllString(logs.String(), -1)
	if want := []string{`"count":1,"message":"denied"`, `"count":1,"message":"observed"`, `"count":1,"message":"observed"`}; !slices.Equal(said, want) {
		t.Errorf("%s", logs.String())
	}
}

// TestRoutes has each condition of a route on the wire: what it takes goes on, and what it does not is nobody's.
func TestRoutes(t *testing.T) {
	const id = "shop/api/httpRoutes/r"
	w := newWorld(t, application(t, told()), Limits{}, func(w *world) {
		w.outbound.Routes = []mesh.Route{{ID: id, Port: "http", Backends: []mesh.Backend{{Service: api, Port: "auto", Weight: 1}, {Service: api, Port: "raw", Weight: 0}}}}
	})
	addr := w.to("http")
	for _, c := range []struct {
		name        string
		match       mesh.Match
		takes, nots []string
	}{
		{"exact", mesh.Match{Path: mesh.PathMatch{Exact: "/a"}}, []string{"GET /a", "GET /%61?q"}, []string{"GET /a/", "GET /ab", "GET /A"}},
		{"prefix", mesh.Match{Path: mesh.PathMatch{Prefix: "/a"}}, []string{"GET /a", "GET /a/b"}, []string{"GET /ab", "GET /b/a"}},
		{"method", mesh.Match{Method: "PUT"}, []string{"PUT /"}, []string{"GET /", "put /"}},
		{"header", mesh.Match{Headers: []mesh.HeaderMatch{{Name: "x-a", Exact: "1"}}}, []string{"GET / X-A:1"}, []string{"GET /", "GET / X-A:2", "GET / X-A:1 X-A:1", "GET / X_A:1"}},
	} {
		c.match.Route = id
		w.outbound.Ports[1].Matches = []mesh.Match{c.match}
		w.publish()
		for i, request := range slices.Concat(c.takes, c.nots) {
			f, want := strings.Fields(request), 200
			if i >= len(c.takes) {
				want = 404
			}
			conn := dial(t, addr)
			send(t, conn, f[0]+" "+f[1]+" HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n"+strings.Join(append(f[2:], "\r\n"), "\r\n"))
			if o, _ := exchangeOf(bufio.NewReader(conn), f[0]); o.status != want {
				t.Errorf("%s, %s: %+v, want %d", c.name, request, o, want)
			}
		}
	}
}
