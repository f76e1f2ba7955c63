package decide

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

// TestEditPath has the table of the Gateway API's HTTPPathModifier, and what it leaves open.
func TestEditPath(t *testing.T) {
	for _, c := range []struct{ path, prefix, with, want string }{
		{"/foo/bar", "/foo", "/xyz", "/xyz/bar"},
		{"/foo/bar", "/foo", "/xyz/", "/xyz/bar"},
		{"/foo/bar", "/foo/", "/xyz", "/xyz/bar"},
		{"/foo/bar", "/foo/", "/xyz/", "/xyz/bar"},
		{"/foo", "/foo", "/xyz", "/xyz"},
		{"/foo/", "/foo", "/xyz", "/xyz/"},
		{"/foo/bar", "/foo", "/", "/bar"},
		{"/foo/", "/foo", "/", "/"},
		{"/foo", "/foo", "/", "/"},
		{"/%66oo/b%61r", "/foo", "/xyz", "/xyz/b%61r"}, // what is left stays as it was spelt
		{"/bar", "", "/xyz", "/xyz/bar"},               // a match without a prefix has "/"
		{"/", "", "/xyz", "/xyz/"},
		{"*", "", "/xyz", "*"},
	} {
		m := &mesh.Match{Path: mesh.PathMatch{Prefix: c.prefix}}
		if got := EditPath(c.path, m, mesh.PathEdit{Prefix: c.with}); got != c.want {
			t.Errorf("%s, %q replaced by %q: %s, want %s", c.path, c.prefix, c.with, got, c.want)
		}
	}
	if got := EditPath("/a/b", nil, mesh.PathEdit{Full: "/c"}); got != "/c" {
		t.Errorf("full: %s", got)
	}
	if got := EditPath("/a/b", nil, mesh.PathEdit{}); got != "/a/b" {
		t.Errorf("none: %s", got)
	}
}

// TestJudge composes routing at the caller with rules at the backends.
func TestJudge(t *testing.T) {
	const (
		api = "spiffe://corp.example/ns/shop/sa/api"
		dev = "spiffe://corp.example/ns/dev/sa/tool"
	)
	anyone := []mesh.Peer{{Authenticated: true}}
	inbound := func(name mesh.ServiceName, protocol mesh.Protocol, rules ...mesh.Rule) mesh.Inbound {
		return mesh.Inbound{Service: name, Rules: rules, Ports: []mesh.InboundPort{{Name: "p", Port: 80, Protocol: protocol, MTLS: mesh.Strict,
			Default: mesh.Deny, DefaultID: string(name) + "/default/p", CanonicalPaths: protocol == mesh.HTTP1}}}
	}
	allow := func(r mesh.Rule) mesh.Rule { r.ID, r.Action, r.From = "allow", mesh.Allow, anyone; return r }
	route := func(id string, filters []mesh.Filter, backends ...mesh.Backend) mesh.Route {
		return mesh.Route{ID: id, Port: "p", Filters: filters, Backends: backends}
	}
	own := mesh.Backend{Service: "a/web", Port: "p", Weight: 90}
	v2 := mesh.Backend{Service: "a/v2", Port: "p", Weight: 10}
	m := &mesh.Mesh{
		Inbound: []mesh.Inbound{
			inbound("a/hosted", mesh.HTTP1, allow(mesh.Rule{Headers: []mesh.HeaderMatch{{Name: "host", Exact: "new.example"}, {Name: "x", Exact: "1,2"}}, Paths: []mesh.PathMatch{{Prefix: "/new"}}})),
			inbound("a/sql", mesh.TCP, allow(mesh.Rule{})),
			inbound("a/tls", mesh.TLS, allow(mesh.Rule{SNI: []string{"*.example"}})),
			inbound("a/v2", mesh.HTTP1),
			inbound("a/web", mesh.HTTP1, allow(mesh.Rule{})),
		},
		Outbound: []mesh.Outbound{
			{Service: "a/sql", Ports: []mesh.OutboundPort{{Name: "p", Protocol: mesh.TCP, Connections: "sql"}}, Routes: []mesh.Route{route("sql", nil, mesh.Backend{Service: "a/sql", Port: "p", Weight: 1})}},
			{Service: "a/tls", Ports: []mesh.OutboundPort{{Name: "p", Protocol: mesh.TLS, Hosts: []mesh.HostMatch{{Route: "one", Name: "one.example"}, {Route: "any", Name: "*.example"}}}},
				Routes: []mesh.Route{route("any", nil, mesh.Backend{Service: "a/tls", Port: "p", Weight: 1}), route("one", nil, mesh.Backend{Service: "a/sql", Port: "p", Weight: 1})}},
			{Service: "a/v2"},
			{Service: "a/web",
				Ports: []mesh.OutboundPort{{Name: "p", Protocol: mesh.HTTP1, Matches: []mesh.Match{
					{Route: "regex", Path: mesh.PathMatch{Regex: "/r[0-9]+|/s"}},
					{Route: "split", Path: mesh.PathMatch{Prefix: "/split"}},
					{Route: "gone", Path: mesh.PathMatch{Prefix: "/gone"}},
					{Route: "redirect", Path: mesh.PathMatch{Prefix: "/redirect"}},
					{Route: "respond", Path: mesh.PathMatch{Prefix: "/respond"}},
					{Route: "abort", Path: mesh.PathMatch{Prefix: "/abort"}},
					{Route: "maybe", Path: mesh.PathMatch{Prefix: "/maybe"}},
					{Route: "cors", Path: mesh.PathMatch{Prefix: "/cors"}},
					{Route: "rewrite", Path: mesh.PathMatch{Prefix: "/old"}},
					{Route: "mirror", Path: mesh.PathMatch{Prefix: "/mirror"}},
					{Route: "query", Query: []mesh.HeaderMatch{{Name: "q", Exact: "1"}}},
				}}},
				Routes: []mesh.Route{
					route("abort", []mesh.Filter{{Fault: &mesh.Fault{Abort: 503, AbortShare: mesh.AllPPM}}}, own),
					route("cors", []mesh.Filter{{CORS: &mesh.CORS{}}}, own),
					route("gone", nil, mesh.Backend{Service: "a/none", Port: "p", Weight: 1}),
					route("maybe", []mesh.Filter{{Fault: &mesh.Fault{Abort: 503, AbortShare: mesh.AllPPM - 1}}}, own),
					route("mirror", []mesh.Filter{{Mirror: &mesh.Mirror{Service: "a/v2", Port: "p", Share: 250_000}}}, own),
					route("query", nil, own),
					route("redirect", []mesh.Filter{{Redirect: &mesh.Redirect{Status: 301}}}, own),
					route("regex", nil, own),
					route("respond", []mesh.Filter{{Respond: &mesh.DirectResponse{Status: 418}}}, own),
					route("rewrite", []mesh.Filter{
						{RequestHeaders: &mesh.HeaderEdit{Remove: []string{"y"}, Set: []mesh.HeaderField{{Name: "x", Value: "1"}}, Add: []mesh.HeaderField{{Name: "x", Value: "2"}, {Name: "z", Value: "3"}}}},
						{Rewrite: &mesh.Rewrite{Host: "new.example", Path: mesh.PathEdit{Prefix: "/new"}}},
					}, mesh.Backend{Service: "a/hosted", Port: "p", Weight: 1}, mesh.Backend{Service: "a/web", Port: "p", Weight: 0},
						mesh.Backend{Service: "a/v2", Port: "p", Weight: 1, Filters: []mesh.Filter{{Respond: &mesh.DirectResponse{Status: 200}}}}),
					route("split", nil, own, v2),
				},
				Consumers: []mesh.Consumer{{Namespace: "dev", Ports: []mesh.OutboundPort{{Name: "p", Protocol: mesh.HTTP1, Matches: []mesh.Match{{Route: "devs"}}}},
					Routes: []mesh.Route{route("devs", nil, v2)}}}},
		},
	}
	get := func(service mesh.ServiceName, peer, path string, h ...string) Call {
		return Call{Service: service, Port: "p", Request: Request{Peer: peer, HTTP: true, Method: "GET", Path: path, Header: headers(h...),
			Query: headers("q", "1")}}
	}
	conn := func(service mesh.ServiceName, peer, sni string) Call {
		return Call{Service: service, Port: "p", Request: Request{Peer: peer, SNI: sni}}
	}
	preflight := get("a/web", api, "/cors", "origin", "https://b.example", "access-control-request-method", "PUT")
	preflight.Method = "OPTIONS"
	noquery := get("a/web", api, "/x")
	noquery.Query = nil
	http := get("a/sql", api, "/x")
	for _, c := range []struct {
		name string
		call Call
		want string
	}{
		{"no service", get("a/none", api, "/"), "unknown"},
		{"no port", Call{Service: "a/web", Port: "q"}, "unknown"},
		{"split", get("a/web", api, "/split"), "split: a/web 90 allowed by allow, a/v2 10 denied by a/v2/default/p; denied"},
		{"404", noquery, "unroutable 404"},
		{"a parameter of the query", get("a/web", api, "/x"), "query: a/web 90 allowed by allow; allowed"},
		{"a regular expression is over the whole path", get("a/web", api, "/r17"), "regex: a/web 90 allowed by allow; allowed"},
		{"and alternatives too", get("a/web", api, "/s"), "regex: a/web 90 allowed by allow; allowed"},
		{"not over a part of it", get("a/web", api, "/r17/x"), "query: a/web 90 allowed by allow; allowed"},
		{"no backend", get("a/web", api, "/gone"), "gone: a/none 1 no-backend; denied"},
		{"redirected", get("a/web", api, "/redirect"), "redirect: answered 301"},
		{"answered", get("a/web", api, "/respond"), "respond: answered 418"},
		{"aborted for certain", get("a/web", api, "/abort"), "abort: answered 503"},
		{"aborted now and then", get("a/web", api, "/maybe"), "maybe: a/web 90 allowed by allow; allowed"},
		{"a preflight request", preflight, "cors: answered 204"},
		{"no preflight request", get("a/web", api, "/cors"), "cors: a/web 90 allowed by allow; allowed"},
		{"rewritten", get("a/web", api, "/old/x", "host", "old.example", "x", "9", "y", "1"), "rewrite: a/hosted 1 allowed by allow sees /new/x y=- z=3, a/v2 1 answered 200; allowed"},
		{"not canonical where rules judge by path", get("a/web", api, "/split//x"), "split: a/web 90 not-canonical, a/v2 10 not-canonical; denied"},
		{"mirrored", get("a/web", api, "/mirror"), "mirror: a/web 90 allowed by allow, mirror a/v2 250000 denied by a/v2/default/p; allowed"},
		{"a consumer's routes", get("a/web", dev, "/split"), "devs: a/v2 10 denied by a/v2/default/p; denied"},
		{"a stranger comes to the door", get("a/web", "", "/redirect"), "-: a/web 100 plaintext; denied"},
		{"a connection asks for the door", conn("a/web", api, ""), "-: a/web 100 allowed by allow; allowed"},
		{"no routes", get("a/v2", api, "/"), "-: a/v2 100 denied by a/v2/default/p; denied"},
		{"a route of bytes", conn("a/sql", api, ""), "sql: a/sql 1 allowed by allow; allowed"},
		{"bytes hide a request", http, "sql: a/sql 1 allowed by allow; allowed"},
		{"by name", conn("a/tls", api, "One.example"), "one: a/sql 1 allowed by allow; allowed"},
		{"by a wider name", conn("a/tls", api, "two.example"), "any: a/tls 1 allowed by allow; allowed"},
		{"by no name", conn("a/tls", api, ""), "unroutable 0"},
		{"by another name", conn("a/tls", api, "example"), "unroutable 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := Judge(m, &c.call)
			if got := tell(&o, c.name == "rewritten"); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
	o := Judge(m, &http)
	if s := o.Shares[0].Sees; s.HTTP || s.Method != "" || s.Path != "" || s.Header != nil || s.SNI != "" {
		t.Errorf("bytes show %+v", s)
	}
}

// TestCarriesBytes: bytes come in where the protocol allows for them and no enforced rule asks about requests.
func TestCarriesBytes(t *testing.T) {
	asks := mesh.Rule{ID: "r", Action: mesh.Allow, From: []mesh.Peer{{Authenticated: true}}, Methods: []string{"GET"}, Ports: []string{"p"}}
	open := mesh.Rule{ID: "a", Action: mesh.Allow, From: []mesh.Peer{{Authenticated: true}}}
	shadow, audit, elsewhere := asks, asks, asks
	shadow.Shadow, audit.Action, elsewhere.Ports = true, mesh.AuditRule, []string{"q"}
	for _, c := range []struct {
		protocol mesh.Protocol
		rule     mesh.Rule
		want     bool
	}{
		{mesh.Detect, asks, false},
		{mesh.Detect, shadow, true},
		{mesh.Detect, audit, true},
		{mesh.Detect, elsewhere, true},
		{mesh.TCP, elsewhere, true},
		{mesh.HTTP1, elsewhere, false},
		{mesh.GRPC, elsewhere, false},
	} {
		in := &mesh.Inbound{Rules: []mesh.Rule{open, c.rule}, Ports: []mesh.InboundPort{{Name: "p", Protocol: c.protocol, DefaultID: "d"}}}
		if got := CarriesBytes(in, &in.Ports[0]); got != c.want {
			t.Errorf("%s, %+v: carries bytes: %t", c.protocol, c.rule, got)
		}
		if c.protocol != mesh.Detect { // where only HTTP is spoken, a connection asks for the door
			continue
		}
		v, refused := Admit(in, &in.Ports[0], &Request{Peer: web})
		if (refused == "") != c.want || v.Allowed != c.want || !c.want && (refused != NotHTTP || v.Rule != "d") {
			t.Errorf("%s, %+v: bytes of a caller that a rule allows get %+v %q", c.protocol, c.rule, v, refused)
		}
		if v, refused := Admit(in, &in.Ports[0], &Request{Peer: web, HTTP: true, Method: "GET", Path: "/"}); !v.Allowed || refused != "" {
			t.Errorf("%s, %+v: a request gets %+v %q", c.protocol, c.rule, v, refused)
		}
	}
}

// tell writes an outcome in a line.
func tell(o *Outcome, sees bool) string {
	id := "-"
	if o.Route != nil {
		id = o.Route.ID
	}
	switch o.Handling {
	case Unknown:
		return "unknown"
	case Unroutable:
		return fmt.Sprint("unroutable ", o.Status)
	case Answered:
		return fmt.Sprint(id, ": answered ", o.Status)
	}
	var parts []string
	for i := range o.Shares {
		s := &o.Shares[i]
		p := fmt.Sprint(s.Service, " ", s.Weight)
		if s.Mirror {
			p = "mirror " + p
		}
		switch {
		case s.Status != 0:
			p += fmt.Sprint(" answered ", s.Status)
		case s.Refused != "":
			p += " " + string(s.Refused)
		case s.Verdict.Allowed:
			p += " allowed by " + s.Rule
		default:
			p += " denied by " + s.Rule
		}
		if sees && s.Status == 0 {
			y, ok := s.Sees.Header("y")
			if !ok {
				y = "-"
			}
			z, _ := s.Sees.Header("z")
			p += fmt.Sprintf(" sees %s y=%s z=%s", s.Sees.Path, y, z)
		}
		parts = append(parts, p)
	}
	verdict := "denied"
	if o.Allowed() {
		verdict = "allowed"
	}
	return id + ": " + strings.Join(parts, ", ") + "; " + verdict
}

// TestExpressions: what is no expression matches nothing, and the memory of expressions is bounded.
func TestExpressions(t *testing.T) {
	for pattern, want := range map[string]bool{"a.c": true, "a": false, "c$": false, "^abc$": true, "a|abc": true, "x)|(abc": false, "(": false, "(?i)ABC": true} {
		if wholly(pattern, "abc") != want {
			t.Errorf("%q: %t", pattern, !want)
		}
	}
	for i := range mostExpressions + 10 {
		remember(fmt.Sprint("x", i))
	}
	expressionsMu.RLock()
	defer expressionsMu.RUnlock()
	if len(expressions) > mostExpressions {
		t.Errorf("%d expressions are remembered", len(expressions))
	}
}

// TestNoAllocationsAtAll has every kind of condition on the way of one request.
func TestNoAllocationsAtAll(t *testing.T) {
	in := service(t, mesh.ClusterAuthenticated)
	in.ClusterNetworks = mesh.DefaultClusterNetworks
	port := &in.Ports[0]
	from := []mesh.Peer{{Suffix: "/sa/nobody"}, {Prefix: "spiffe://corp.example/ns/shop/"}}
	in.Rules = []mesh.Rule{
		{ID: "allow", Action: mesh.Allow, From: from, Networks: []mesh.Network{{CIDR: netip.MustParsePrefix("10.0.0.0/8")}}, Methods: []string{"GET"},
			Paths: []mesh.PathMatch{{Template: "/caf%C3%A9/{x}"}}, Headers: []mesh.HeaderMatch{{Name: "x", OneOf: []string{"1"}}},
			JWT: &mesh.JWTMatch{Issuer: "login", Claims: []mesh.ClaimMatch{{Name: "role", Values: []string{"a"}}}}, Routes: []string{"all"}, Until: noon},
		{ID: "audit", Action: mesh.AuditRule, From: from},
		{ID: "deny", Action: mesh.DenyRule, From: from, SNI: []string{"*.example"}},
	}
	role := []string{"a"}
	r := &Request{Peer: web, HTTP: true, Method: "GET", Path: "/caf%c3%a9/7", Header: headers("x", "1"), Addr: netip.MustParseAddr("::ffff:10.0.0.1"),
		SNI: "a.test", Now: before, Claim: func(_, claim string) ([]string, bool) { return role, true }, Query: headers("q", "7")}
	o := &mesh.Outbound{Ports: []mesh.OutboundPort{{Name: "http", Matches: []mesh.Match{
		{Route: "a", Path: mesh.PathMatch{Regex: "/[a-z]+"}}, {Route: "r", Path: mesh.PathMatch{Regex: "/caf.*"}, Query: []mesh.HeaderMatch{{Name: "q", Regex: "[0-9]"}}},
	}}}, Routes: []mesh.Route{{ID: "r"}}}
	all, seen := true, 0
	observe := func(*mesh.Rule, bool) { seen++ }
	if n := testing.AllocsPerRun(100, func() {
		v, refused := Admit(in, port, r)
		all = all && v.Allowed && refused == "" && Preview(in, port, r).Allowed && MayCall(in, r.Peer)
		Observed(in, port, r, observe)
		_, ok := MatchRoute(o, &o.Ports[0], r)
		all = all && ok
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if !all || seen != 101 {
		t.Errorf("the run decided nothing: %t %d", all, seen)
	}
}
