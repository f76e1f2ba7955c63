package compile

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// The findings that say that something is in vain (a match that no request reaches, a rule that never matches, an allow
// rule that allows nothing) are held against every request of a small world, as package decide judges it. The world has a
// value that no policy names for each thing that has no end of values, so that what holds in it holds.

type vain struct{ *rand.Rand }

func pick[T any](v vain, from ...T) T { return from[v.IntN(len(from))] }

// some are up to n of a list, none twice.
func some[T any](v vain, n int, from ...T) (out []T) {
	for _, i := range v.Perm(len(from))[:v.IntN(min(n, len(from))+1)] {
		out = append(out, from[i])
	}
	return out
}

func (v vain) path() v1alpha1.Path {
	return v1alpha1.Path(pick(v, "/", "/a", "/b", "/a/b", "/a/c", "/b/a", "/a/"))
}

func (v vain) match(expressions bool) (m v1alpha1.HTTPMatch) {
	switch v.IntN(5) {
	case 0:
		m.Path = &v1alpha1.PathMatch{Exact: v.path()}
	case 1, 2:
		m.Path = &v1alpha1.PathMatch{Prefix: v.path()}
	case 3:
		if expressions {
			m.Path = &v1alpha1.PathMatch{Regex: pick(v, ".*", "/.*", "/a(/.*)?", "/a/?", "/[ab]", "/a/.+", "(?i)/A", "/a|/a/b", "^/b$", "/b.*")}
		}
	}
	m.Method = v1alpha1.Method(pick(v, "", "", "GET", "POST"))
	value := func() v1alpha1.HeaderMatch {
		if expressions && v.IntN(3) == 0 {
			return v1alpha1.HeaderMatch{Regex: pick(v, ".*", "1", "1|2", "[0-9]")}
		}
		return v1alpha1.HeaderMatch{Exact: pick(v, "1", "2")}
	}
	for _, name := range some(v, 2, "x", "y") {
		if v.IntN(2) == 0 {
			m.Headers = with(m.Headers, name, value())
		}
	}
	if v.IntN(6) == 0 {
		m.Query = with(m.Query, "q", value())
	}
	if m.Path == nil && m.Method == "" && m.Headers == nil && m.Query == nil {
		m.Method = "GET"
	}
	return m
}

func with[V any](m map[string]V, k string, v V) map[string]V {
	if m == nil {
		m = map[string]V{}
	}
	m[k] = v
	return m
}

func (v vain) rule(routes []string, deny bool) (r v1alpha1.Rule) {
	r.From = some(v, 2, v1alpha1.From{Identity: "spiffe://corp.example/x/1"}, v1alpha1.From{IdentityPrefix: "spiffe://corp.example/x/"},
		v1alpha1.From{IdentitySuffix: "/1"}, v1alpha1.From{Authenticated: true})
	if len(r.From) == 0 || deny && v.IntN(2) == 0 {
		r.From = []v1alpha1.From{{Authenticated: true}}
	}
	if v.IntN(3) == 0 {
		r.Routes = some(v, 2, routes...)
	}
	if v.IntN(3) == 0 {
		r.Methods = some(v, 2, v1alpha1.Method("GET"), "POST")
	}
	if v.IntN(2) == 0 {
		r.Paths = some(v, 2, v1alpha1.RulePath{Exact: "/a"}, v1alpha1.RulePath{Prefix: "/a"}, v1alpha1.RulePath{Prefix: "/b"}, v1alpha1.RulePath{Exact: "/a/b"},
			v1alpha1.RulePath{Template: "/{one}"}, v1alpha1.RulePath{Template: "/a/{one}"}, v1alpha1.RulePath{Prefix: "/"})
	}
	if v.IntN(4) == 0 {
		r.Headers = map[string]v1alpha1.HeaderValue{"x": pick(v, v1alpha1.HeaderValue{Exact: "1"}, v1alpha1.HeaderValue{OneOf: []string{"1", "2"}}, v1alpha1.HeaderValue{Present: true})}
	}
	if v.IntN(4) == 0 {
		r.Networks = some(v, 2, v1alpha1.Network{Cidr: "10.0.0.0/8"}, v1alpha1.Network{Cidr: "10.0.0.0/9"}, v1alpha1.Network{Cidr: "10.128.0.0/9"},
			v1alpha1.Network{Cidr: "10.0.0.0/8", Except: []v1alpha1.CIDR{"10.128.0.0/9"}})
	}
	return r
}

// everything is every request of the small world.
func everything() (out []decide.Request) {
	values := []string{"", "1", "2", "other"}
	for _, method := range []string{"GET", "POST", "OTHER", "OPTIONS"} {
		for _, path := range []string{"/", "/a", "/a/", "/b", "/b/", "/a/b", "/a/b/", "/a/b/other", "/a/c", "/a/c/", "/a/other", "/a/other/other", "/b/a", "/b/a/", "/b/a/other",
			"/b/other", "/other", "/other/", "/other/a", "/ab", "/A", "/bother", "*"} {
			if path == "*" && method != "OPTIONS" {
				continue
			}
			for i := range len(values) * len(values) * len(values) {
				get := func(name string) (string, bool) {
					value := values[map[string]int{"x": i, "y": i / 4, "q": i / 16}[name]%4]
					return value, value != ""
				}
				out = append(out, decide.Request{HTTP: true, Method: method, Path: path, Header: get, Query: get})
			}
		}
	}
	return out
}

var (
	callers   = []string{"spiffe://corp.example/x/1", "spiffe://corp.example/x/other", "spiffe://corp.example/other/1", "spiffe://corp.example/other"}
	addresses = []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.200.0.1"), netip.MustParseAddr("11.0.0.1")}
)

// small compiles one service whatever is wrong with it.
func small(src v1alpha1.Service) (*service, diag.List) {
	doc := &v1alpha1.Document{Policy: v1alpha1.Policy{Mesh: &v1alpha1.Mesh{TrustDomain: "corp.example"},
		Services: map[string]map[string]v1alpha1.Service{"s": {"a": src}}}}
	c := newCompiler(doc, Options{}, gateOf("any", mesh.Capabilities))
	_, _, findings := c.run()
	return c.services["s/a"], findings
}

func TestShadowedIsWhatNoRequestReaches(t *testing.T) {
	all := everything()
	found, missed := 0, 0
	for seed := range uint64(600) {
		v := vain{rand.New(rand.NewPCG(seed, 6))}
		expressions := seed%2 == 1
		src := v1alpha1.Service{Ports: map[string]v1alpha1.Port{"http": {Port: 80, Protocol: "http1"}}, HttpRoutes: map[string]v1alpha1.HTTPRoute{}}
		for i := range 1 + v.IntN(4) {
			var r v1alpha1.HTTPRoute
			for range v.IntN(3) {
				r.Match = append(r.Match, v.match(expressions))
			}
			src.HttpRoutes[string(rune('a'+i))] = r
		}
		s, findings := small(src)
		port, _ := s.out.Port("http")
		reached := make([]bool, len(port.Matches))
		for i := range all {
			if j := slices.IndexFunc(port.Matches, func(m mesh.Match) bool { return decide.Matches(&m, &all[i]) }); j >= 0 {
				reached[j] = true
			}
		}
		for _, r := range s.routes {
			dead := slices.ContainsFunc(port.Matches, func(m mesh.Match) bool {
				return m.Route == r.id && !reached[slices.IndexFunc(port.Matches, func(o mesh.Match) bool { return fmt.Sprint(o) == fmt.Sprint(m) })]
			})
			twice := 0 // the same conditions twice in one route, of which the first is reached
			for i, m := range port.Matches {
				if m.Route == r.id && slices.ContainsFunc(port.Matches[:i], func(o mesh.Match) bool { return fmt.Sprint(o) == fmt.Sprint(m) }) {
					twice++
				}
			}
			said := slices.ContainsFunc(findings, func(f diag.Finding) bool {
				return f.ID == diag.ShadowedRoute && (f.Path == string(r.at) || strings.HasPrefix(f.Path, string(r.at)+"."))
			})
			switch dead = dead || twice > 0; {
			case said && !dead, dead && !said && !expressions:
				t.Errorf("seed %d: route %s: found %v, unreachable %v\n%+v\n%v", seed, r.id, said, dead, port.Matches, findings)
			case said:
				found++
			case dead:
				missed++ // what one expression takes of another is not always known
			}
		}
	}
	if found < 100 || missed > found {
		t.Errorf("found %d, missed %d: the policies say nothing", found, missed)
	}
}

func TestDeadIsWhatNeverMatches(t *testing.T) {
	all := everything()
	dead, deadAllows := 0, 0
	for seed := range uint64(500) {
		v := vain{rand.New(rand.NewPCG(seed, 7))}
		src := v1alpha1.Service{Ports: map[string]v1alpha1.Port{"http": {Port: 80, Protocol: "http1"}},
			HttpRoutes: map[string]v1alpha1.HTTPRoute{}, Allow: map[string]v1alpha1.Rule{}, Deny: map[string]v1alpha1.Rule{}}
		routes := []string{"a", "b", "c"}[:1+v.IntN(3)]
		for _, name := range routes {
			var r v1alpha1.HTTPRoute
			for range v.IntN(2) {
				r.Match = append(r.Match, v.match(false))
			}
			src.HttpRoutes[name] = r
		}
		src.Allow["one"] = v.rule(routes, false)
		for i := range 1 + v.IntN(3) {
			src.Deny[string(rune('a'+i))] = v.rule(routes, true)
		}
		s, findings := small(src)
		in := s.in
		port, _ := in.Port("http")
		out, _ := s.out.Port("http")
		port.Matches = out.Matches
		if slices.ContainsFunc(findings, func(f diag.Finding) bool {
			return f.ID != diag.DeadRule && f.ID != diag.DeadAllow && f.ID != diag.NobodyCalls && f.ID != diag.ShadowedRoute
		}) {
			t.Fatalf("seed %d: %v", seed, findings)
		}
		lives := func(rules ...mesh.Rule) bool { // the first rule decides something
			one := in
			one.Rules = rules
			for i := range all {
				for _, peer := range callers {
					for _, addr := range addresses {
						r := all[i]
						r.Peer, r.Addr = peer, addr
						if decide.Authorize(&one, port, &r).Rule == rules[0].ID {
							return true
						}
					}
				}
			}
			return false
		}
		shadowed := slices.ContainsFunc(findings, func(f diag.Finding) bool { return f.ID == diag.ShadowedRoute })
		anyDead := false
		for _, r := range in.Rules {
			at := "services.s.a." + strings.TrimPrefix(strings.ReplaceAll(r.ID, "/", "."), "s.a.")
			said := 0
			for _, f := range findings {
				if f.ID == diag.DeadRule && strings.HasPrefix(f.Path, at+".routes.") {
					said++
				}
			}
			anyDead = anyDead || slices.ContainsFunc(findings, func(f diag.Finding) bool { return f.ID == diag.DeadRule })
			if len(r.Routes) == 0 || shadowed {
				continue
			}
			if is := !lives(r); is != (said == len(r.Routes)) {
				t.Errorf("seed %d: %s: %d of %d routes found dead, never matches: %v\n%+v\n%+v\n%v", seed, r.ID, said, len(r.Routes), is, r, port.Matches, findings)
			} else if is {
				dead++
			}
		}
		if anyDead || shadowed {
			continue
		}
		said := slices.ContainsFunc(findings, func(f diag.Finding) bool { return f.ID == diag.DeadAllow })
		if is := !lives(in.Rules...); is != said {
			t.Errorf("seed %d: allows nothing: %v, found: %v\n%+v\n%+v\n%v", seed, is, said, in.Rules, port.Matches, findings)
		} else if is {
			deadAllows++
		}
	}
	if dead < 10 || deadAllows < 20 {
		t.Errorf("%d dead rules and %d dead allow rules: the policies say nothing", dead, deadAllows)
	}
}
