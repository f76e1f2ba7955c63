package decide

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

var (
	noon   = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	before = noon.Add(-time.Hour)
)

// TestEveryCombination makes rules and a request for every combination of the truth table's columns, wants exactly one
// row for it, and Authorize to say what the row says.
func TestEveryCombination(t *testing.T) {
	inside, outside := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("192.0.2.7")
	rows := make([]int, len(TruthTable))
	any := []mesh.Peer{{Unauthenticated: true}}
	states := []State{NoRule, Unmatched, Over, Matched}
	rulesOf := func(action mesh.Action, s State) []mesh.Rule {
		other := mesh.Rule{ID: string(action) + "-other", Action: action, From: []mesh.Peer{{Identity: guest}}}
		switch s {
		case Unmatched:
			return []mesh.Rule{other}
		case Over:
			return []mesh.Rule{{ID: string(action) + "-ended", Action: action, From: any, Until: before}}
		case Matched:
			return []mesh.Rule{other, {ID: string(action), Action: action, From: any, Until: noon.Add(time.Second)}}
		}
		return nil
	}
	observing := func(s State) (out []mesh.Rule) {
		if s == NoRule {
			return nil
		}
		for _, r := range slices.Concat(rulesOf(mesh.AuditRule, s), rulesOf(mesh.Allow, s), rulesOf(mesh.DenyRule, s)) {
			r.ID, r.Shadow = "shadow-"+r.ID, r.Action != mesh.AuditRule
			out = append(out, r)
		}
		return out
	}
	fits := func(r *Row, deny, allow, obs State, mode mesh.InboundMode, caller Caller, place Place) bool {
		return in(r.Deny, deny) && in(r.Allow, allow) && in(r.Observing, obs) && in(r.Mode, mode) && in(r.Caller, caller) && in(r.Place, place)
	}
	n := 0
	for _, deny := range states {
		for _, allow := range states {
			for _, obs := range states {
				for _, mode := range []mesh.InboundMode{mesh.Deny, mesh.AllAuthenticated, mesh.AllUnauthenticated, mesh.ClusterAuthenticated, mesh.ClusterUnauthenticated, mesh.Audit} {
					for _, caller := range []Caller{Proven, Stranger} {
						for _, place := range []Place{Inside, Outside, Nowhere} {
							n++
							name := fmt.Sprint("deny ", deny, ", allow ", allow, ", observing ", obs, ", ", mode, ", ", caller, ", ", place)
							in := service(t, mode)
							in.ClusterNetworks = mesh.DefaultClusterNetworks
							in.Rules = slices.Concat(rulesOf(mesh.Allow, allow), observing(obs), rulesOf(mesh.DenyRule, deny))
							req := Request{HTTP: true, Method: "GET", Path: "/", Now: noon}
							if caller == Proven {
								req.Peer = web
							}
							req.Addr = map[Place]netip.Addr{Inside: inside, Outside: outside}[place]
							row := -1
							for i := range TruthTable {
								if !fits(&TruthTable[i], deny, allow, obs, mode, caller, place) {
									continue
								}
								if row >= 0 {
									t.Fatalf("%s: in rows %d and %d", name, row, i)
								}
								row = i
							}
							if row < 0 {
								t.Fatalf("%s: in no row", name)
							}
							rows[row]++
							want := Verdict{Allowed: TruthTable[row].Allowed}
							switch TruthTable[row].By {
							case ByDeny:
								want.Rule = "deny"
							case ByAllow:
								want.Rule = "allow"
							case ByDefault:
								want.Rule, want.Default = "default/http", true
							}
							port, _ := in.Port("http")
							if got := Authorize(in, port, &req); got != want {
								t.Errorf("%s: %+v, row %d (%s) says %+v", name, got, row, TruthTable[row].Why, want)
							}
							if Authorize(in, port, &req).Allowed && !MayCall(in, req.Peer) {
								t.Errorf("%s: allowed, and MayCall says no", name)
							}
						}
					}
				}
			}
		}
	}
	for i, n := range rows {
		if n == 0 || TruthTable[i].Why == "" {
			t.Errorf("row %d (%s) is of no use", i, TruthTable[i].Why)
		}
	}
	if want := 4 * 4 * 4 * 6 * 2 * 3; n != want {
		t.Errorf("%d combinations, want %d", n, want)
	}
}

func in[T comparable](list []T, v T) bool { return list == nil || slices.Contains(list, v) }

// TestMissing holds Authorize to the table of what is missing: one rule of each action with the condition alone, and a
// request that does not tell.
func TestMissing(t *testing.T) {
	header := func(string) (string, bool) { return "", false }
	request := Request{Peer: web, HTTP: true, Method: "GET", Path: "/", Header: header, Query: header, Addr: netip.MustParseAddr("192.0.2.7")}
	several := request
	several.Header = func(string) (string, bool) { return "7, 1", true }
	connection := Request{Peer: web}
	token := request
	token.Claim = func(issuer, claim string) ([]string, bool) { return nil, claim == "" }
	routed := func(m mesh.Match) func(*mesh.Rule, *mesh.InboundPort) {
		return func(r *mesh.Rule, p *mesh.InboundPort) {
			m.Route = "x"
			r.Routes, p.Matches = []string{"x"}, []mesh.Match{m}
		}
	}
	type example struct {
		set func(*mesh.Rule, *mesh.InboundPort)
		r   Request
	}
	unseen := "bytes in which no request is seen"
	examples := map[[2]string]example{
		{"from", "the caller proves no identity"}: {func(r *mesh.Rule, _ *mesh.InboundPort) { r.From = []mesh.Peer{{Authenticated: true}} }, Request{HTTP: true}},
		{"networks", "the caller's address is not known"}: {func(r *mesh.Rule, _ *mesh.InboundPort) {
			r.Networks = []mesh.Network{{CIDR: netip.MustParsePrefix("10.0.0.0/8")}}
		}, connection},
		{"sni", "the client asked for no name"}: {func(r *mesh.Rule, _ *mesh.InboundPort) { r.SNI = []string{"a.example"} }, connection},
		{"routes", unseen}:                      {routed(mesh.Match{}), connection},
		{"methods", unseen}:                     {func(r *mesh.Rule, _ *mesh.InboundPort) { r.Methods = []string{"GET"} }, connection},
		{"paths", unseen}:                       {func(r *mesh.Rule, _ *mesh.InboundPort) { r.Paths = []mesh.PathMatch{{Prefix: "/"}} }, connection},
		{"headers", unseen}:                     {func(r *mesh.Rule, _ *mesh.InboundPort) { r.Headers = []mesh.HeaderMatch{{Name: "x", Present: true}} }, connection},
		{"headers: exact", "the request does not have the header"}: {func(r *mesh.Rule, _ *mesh.InboundPort) {
			r.Headers = []mesh.HeaderMatch{{Name: "x", Exact: "1"}}
		}, request},
		{"headers: oneOf", "the request does not have the header"}: {func(r *mesh.Rule, _ *mesh.InboundPort) {
			r.Headers = []mesh.HeaderMatch{{Name: "x", OneOf: []string{"1"}}}
		}, request},
		{"headers: exact", "the value is one of several"}: {func(r *mesh.Rule, _ *mesh.InboundPort) {
			r.Headers = []mesh.HeaderMatch{{Name: "x", Exact: "1"}}
		}, several},
		{"headers: oneOf", "the value is one of several"}: {func(r *mesh.Rule, _ *mesh.InboundPort) {
			r.Headers = []mesh.HeaderMatch{{Name: "x", OneOf: []string{"1", "2"}}}
		}, several},
		{"headers: present", "the request does not have the header"}: {func(r *mesh.Rule, _ *mesh.InboundPort) {
			r.Headers = []mesh.HeaderMatch{{Name: "x", Present: true}}
		}, request},
		{"routes, by a header", "the request does not have the header"}:     {routed(mesh.Match{Headers: []mesh.HeaderMatch{{Name: "x", Exact: "1"}}}), request},
		{"routes, by the query", "the request does not have the parameter"}: {routed(mesh.Match{Query: []mesh.HeaderMatch{{Name: "x", Exact: "1"}}}), request},
		{"jwt", "the request has no valid token of the issuer, or the issuer's keys are not known"}: {func(r *mesh.Rule, _ *mesh.InboundPort) {
			r.JWT = &mesh.JWTMatch{Issuer: "login"}
		}, request},
		{"jwt: claims", "the token does not have the claim"}: {func(r *mesh.Rule, _ *mesh.InboundPort) {
			r.JWT = &mesh.JWTMatch{Issuer: "login", Claims: []mesh.ClaimMatch{{Name: "role", Values: []string{"a"}}}}
		}, token},
		{"jwt", unseen}: {func(r *mesh.Rule, _ *mesh.InboundPort) { r.JWT = &mesh.JWTMatch{Issuer: "login"} }, connection},
	}
	for _, row := range MissingTable {
		e, ok := examples[[2]string{row.Condition, row.Where}]
		if !ok {
			t.Errorf("no example of %s where %s", row.Condition, row.Where)
			continue
		}
		delete(examples, [2]string{row.Condition, row.Where})
		for action, want := range map[mesh.Action]bool{mesh.Allow: row.Allow, mesh.DenyRule: row.Deny, mesh.AuditRule: row.Audit} {
			in := service(t, mesh.Deny)
			port, _ := in.Port("http")
			r := mesh.Rule{ID: "r", Action: action, From: []mesh.Peer{{Unauthenticated: true}}}
			e.set(&r, port)
			in.Rules = []mesh.Rule{r}
			var got bool
			switch action {
			case mesh.AuditRule:
				Observed(in, port, &e.r, func(_ *mesh.Rule, matched bool) { got = matched })
			default:
				got = Authorize(in, port, &e.r).Rule == "r"
			}
			if got != want {
				t.Errorf("%s where %s: a rule to %s matches: %t", row.Condition, row.Where, action, got)
			}
			// A shadow rule counts as what it would be.
			in.Rules[0].Shadow = true
			shadow := false
			Observed(in, port, &e.r, func(_ *mesh.Rule, matched bool) { shadow = matched })
			if shadow != want || action != mesh.AuditRule && (Preview(in, port, &e.r).Rule == "r") != want {
				t.Errorf("%s where %s: a shadow rule to %s matches: %t", row.Condition, row.Where, action, shadow)
			}
		}
	}
	for e := range examples {
		t.Errorf("an example of %s where %s, which is no row", e[0], e[1])
	}
}

// TestConditions has each condition holding, and failing by a hair.
func TestConditions(t *testing.T) {
	at := func(a string) Request { return Request{Peer: web, Addr: netip.MustParseAddr(a)} }
	get := func(path string, h ...string) Request {
		return Request{Peer: web, HTTP: true, Method: "GET", Path: path, Header: headers(h...)}
	}
	from := func(peer string) Request { return Request{Peer: peer} }
	sni := func(name string) Request { return Request{Peer: web, SNI: name} }
	token := func(claims map[string][]string) Request {
		r := get("/")
		r.Claim = func(issuer, claim string) ([]string, bool) {
			if issuer != "login" || claim == "" {
				return nil, issuer == "login"
			}
			v, ok := claims[claim]
			return v, ok
		}
		return r
	}
	prefix := func(s string) netip.Prefix { return netip.MustParsePrefix(s) }
	anyone := []mesh.Peer{{Unauthenticated: true}}
	ten := mesh.Rule{From: anyone, Networks: []mesh.Network{{CIDR: prefix("10.0.0.0/8"), Except: []netip.Prefix{prefix("10.9.0.0/16")}}}}
	local := mesh.Rule{From: anyone, Networks: []mesh.Network{{CIDR: prefix("fe80::/10")}}}
	paths := func(m ...mesh.PathMatch) mesh.Rule { return mesh.Rule{From: anyone, Paths: m} }
	orders := paths(mesh.PathMatch{Template: "/users/{id}/orders"})
	names := mesh.Rule{From: anyone, SNI: []string{"*.example.org", "a.test"}}
	admin := mesh.Rule{From: anyone, JWT: &mesh.JWTMatch{Issuer: "login", Claims: []mesh.ClaimMatch{{Name: "role", Values: []string{"admin", "ops"}}, {Name: "tenant", Values: []string{"t"}}}}}
	for _, c := range []struct {
		name string
		rule mesh.Rule
		r    Request
		want bool
	}{
		{"under the prefix", mesh.Rule{From: []mesh.Peer{{Prefix: "spiffe://corp.example/ns/shop/"}}}, from(web), true},
		{"beside the prefix", mesh.Rule{From: []mesh.Peer{{Prefix: "spiffe://corp.example/ns/shop/"}}}, from("spiffe://corp.example/ns/shopping/sa/web"), false},
		{"a prefix is no stranger", mesh.Rule{From: []mesh.Peer{{Prefix: "spiffe://corp.example/ns/shop/"}}}, from(""), false},
		{"the suffix", mesh.Rule{From: []mesh.Peer{{Suffix: "/sa/web"}}}, from(web), true},
		{"the suffix by whole elements", mesh.Rule{From: []mesh.Peer{{Suffix: "/sa/web"}}}, from("spiffe://corp.example/ns/shop/usa/web"), false},
		{"the suffix never reaches into the trust domain", mesh.Rule{From: []mesh.Peer{{Suffix: "/corp.example/x"}}}, from("spiffe://corp.example/x"), false},

		{"inside", ten, at("10.1.2.3"), true},
		{"outside", ten, at("11.1.2.3"), false},
		{"excepted", ten, at("10.9.2.3"), false},
		{"an IPv4 address in its IPv6 form", ten, at("::ffff:10.1.2.3"), true},
		{"and excepted in it", ten, at("::ffff:10.9.2.3"), false},
		{"a zone plays no part", local, at("fe80::1%eth0"), true},

		{"the template", orders, get("/users/7/orders"), true},
		{"escaped", orders, get("/%75sers/a%20b/orders"), true},
		{"an empty element", orders, get("/users//orders"), false},
		{"a longer path", orders, get("/users/7/orders/1"), false},
		{"a shorter path", orders, get("/users/7"), false},
		{"a trailing slash is another form", orders, get("/users/7/orders/"), false},
		{"two elements for one name", orders, get("/users/7/8/orders"), false},
		{"a name at the end", paths(mesh.PathMatch{Template: "/a/{b}"}), get("/a/x"), true},
		{"and nothing for it", paths(mesh.PathMatch{Template: "/a/{b}"}), get("/a/"), false},
		{"exact", paths(mesh.PathMatch{Exact: "/a"}), get("/%61"), true},
		{"exact is no prefix", paths(mesh.PathMatch{Exact: "/a"}), get("/a/b"), false},
		{"one of several", paths(mesh.PathMatch{Exact: "/b"}, mesh.PathMatch{Prefix: "/a"}), get("/a/b"), true},
		{"the prefix / takes the * of OPTIONS", paths(mesh.PathMatch{Prefix: "/"}), get("*"), true},

		{"a method", mesh.Rule{From: anyone, Methods: []string{"GET", "HEAD"}}, get("/"), true},
		{"another method", mesh.Rule{From: anyone, Methods: []string{"HEAD"}}, get("/"), false},
		{"a header's value", mesh.Rule{From: anyone, Headers: []mesh.HeaderMatch{{Name: "x", OneOf: []string{"1", "2"}}}}, get("/", "x", "2"), true},
		{"another value", mesh.Rule{From: anyone, Headers: []mesh.HeaderMatch{{Name: "x", OneOf: []string{"1", "2"}}}}, get("/", "x", "12"), false},
		{"there, though empty", mesh.Rule{From: anyone, Headers: []mesh.HeaderMatch{{Name: "x", Present: true}}}, get("/", "x", ""), true},
		{"headers are an and", mesh.Rule{From: anyone, Headers: []mesh.HeaderMatch{{Name: "x", Present: true}, {Name: "y", Exact: "1"}}}, get("/", "x", "", "y", "2"), false},

		{"under the name", names, sni("b.a.Example.ORG"), true},
		{"the name itself is not under it", names, sni("example.org"), false},
		{"beside the name", names, sni("xexample.org"), false},
		{"a trailing dot", names, sni("A.test."), true},

		{"claims", admin, token(map[string][]string{"role": {"x", "ops"}, "tenant": {"t"}}), true},
		{"claims are an and", admin, token(map[string][]string{"role": {"ops"}, "tenant": {"u"}}), false},
		{"a claim without values", admin, token(map[string][]string{"role": {}, "tenant": {"t"}}), false},

		{"conditions are an and", mesh.Rule{From: anyone, Methods: []string{"GET"}, Paths: []mesh.PathMatch{{Exact: "/b"}}}, get("/a"), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			// Nothing is missing here, so all actions agree.
			for _, action := range []mesh.Action{mesh.Allow, mesh.DenyRule} {
				in := service(t, mesh.Deny)
				port, _ := in.Port("http")
				c.rule.ID, c.rule.Action = "r", action
				in.Rules = []mesh.Rule{c.rule}
				if got := Authorize(in, port, &c.r).Rule == "r"; got != c.want {
					t.Errorf("%s: matches: %t", action, got)
				}
			}
		})
	}
}

// TestRoutesTake: a rule about a route is about what the route takes, not about what a more specific one takes.
func TestRoutesTake(t *testing.T) {
	get := func(path string, h ...string) Request {
		return Request{Peer: web, HTTP: true, Method: "GET", Path: path, Header: headers(h...)}
	}
	for _, c := range []struct {
		rule string
		r    Request
		want string
	}{
		{"allow a " + web + " routes=all", get("/x"), "a"},
		{"allow a " + web + " routes=all", get("/admin/x"), "default/http"},
		{"allow a " + web + " routes=admin,all", get("/admin/x"), "a"},
		{"allow a " + web + " routes=all", get("/x", "x-vip", "1"), "default/http"},
		{"deny d " + web + " routes=all", get("/x"), "d"},
		{"deny d " + web + " routes=all", get("/admin"), "default/http"},
		{"deny d " + web + " routes=vip", get("/x"), "d"},                // the header is missing, and it may be meant
		{"deny d " + web + " routes=vip", get("/admin"), "default/http"}, // taken before the header is looked at
	} {
		in := service(t, mesh.Deny, c.rule)
		port, _ := in.Port("http")
		if got := Authorize(in, port, &c.r).Rule; got != c.want {
			t.Errorf("%s, %s: %s, want %s", c.rule, c.r.Path, got, c.want)
		}
	}
}
