package decide

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"path"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

const (
	web   = "spiffe://corp.example/ns/shop/sa/web"
	guest = "spiffe://corp.example/ns/shop/sa/guest"
)

// service is an Inbound with an HTTP port and a TCP port; the rules are given, each a line of
//
//	allow|deny name callers [ports=a,b] [routes=x,y]
//
// where a caller is an identity, "authenticated" or "unauthenticated", joined by commas.
func service(t testing.TB, mode mesh.InboundMode, rules ...string) *mesh.Inbound {
	t.Helper()
	in := &mesh.Inbound{
		Service: "shop/api",
		Ports: []mesh.InboundPort{
			{Name: "http", Port: 80, Protocol: mesh.HTTP1, MTLS: mesh.Strict, Default: mode, DefaultID: "default/http", Matches: []mesh.Match{
				{Route: "post", Method: "POST", Path: mesh.PathMatch{Exact: "/pay"}},
				{Route: "admin", Path: mesh.PathMatch{Prefix: "/admin"}},
				{Route: "vip", Headers: []mesh.HeaderMatch{{Name: "x-vip", Exact: "1"}}},
				{Route: "all"},
			}},
			{Name: "tcp", Port: 81, Protocol: mesh.TCP, MTLS: mesh.Strict, Default: mode, DefaultID: "default/tcp"},
		},
	}
	for _, line := range rules {
		f := strings.Fields(line)
		r := mesh.Rule{ID: f[1], Action: mesh.Action(f[0])}
		for _, c := range strings.Split(f[2], ",") {
			switch c {
			case "authenticated":
				r.From = append(r.From, mesh.Peer{Authenticated: true})
			case "unauthenticated":
				r.From = append(r.From, mesh.Peer{Unauthenticated: true})
			default:
				r.From = append(r.From, mesh.Peer{Identity: c})
			}
		}
		for _, opt := range f[3:] {
			switch k, v, _ := strings.Cut(opt, "="); k {
			case "ports":
				r.Ports = strings.Split(v, ",")
			case "routes":
				r.Routes = strings.Split(v, ",")
			default:
				t.Fatal(line)
			}
		}
		in.Rules = append(in.Rules, r)
	}
	return in
}

func headers(pairs ...string) func(string) (string, bool) {
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return func(name string) (string, bool) { v, ok := m[name]; return v, ok }
}

// TestTruthTable is the rule algebra as the reference prints it (decisions.md, 15 and 36).
func TestTruthTable(t *testing.T) {
	get := func(peer, path string, h ...string) Request {
		return Request{Peer: peer, HTTP: true, Method: "GET", Path: path, Header: headers(h...)}
	}
	conn := func(peer string) Request { return Request{Peer: peer} }
	rules := func(r ...string) []string { return r }
	for _, c := range []struct {
		name  string
		mode  mesh.InboundMode
		rules []string
		port  string
		r     Request
		want  string // "allow" or "deny", and the id that decided
	}{
		// No rule: the port's default decides.
		{"deny is closed to all", mesh.Deny, nil, "http", get(web, "/"), "deny default/http"},
		{"deny is closed to strangers", mesh.Deny, nil, "http", get("", "/"), "deny default/http"},
		{"all-authenticated takes the proven", mesh.AllAuthenticated, nil, "http", get(web, "/"), "allow default/http"},
		{"all-authenticated keeps out the rest", mesh.AllAuthenticated, nil, "http", get("", "/"), "deny default/http"},
		{"all-unauthenticated takes all", mesh.AllUnauthenticated, nil, "http", get("", "/"), "allow default/http"},
		{"an unknown mode is closed", "open", nil, "http", get(web, "/"), "deny default/http"},
		{"no mode is closed", "", nil, "http", get(web, "/"), "deny default/http"},
		{"each port has its own default", mesh.AllUnauthenticated, nil, "tcp", conn(""), "allow default/tcp"},

		// Allow.
		{"an allow rule allows whom it names", mesh.Deny, rules("allow a " + web), "http", get(web, "/"), "allow a"},
		{"and nobody else", mesh.Deny, rules("allow a " + web), "http", get(guest, "/"), "deny default/http"},
		{"and no stranger", mesh.Deny, rules("allow a " + web), "http", get("", "/"), "deny default/http"},
		{"a guarded port denies the rest, whatever its mode", mesh.AllUnauthenticated, rules("allow a " + web), "http", get(guest, "/"), "deny default/http"},
		{"an allow rule that can not match still guards", mesh.AllUnauthenticated, rules("allow a " + web + " routes=admin"), "tcp", conn(guest), "deny default/tcp"},
		{"a rule for another port does not guard", mesh.AllAuthenticated, rules("allow a " + web + " ports=tcp"), "http", get(guest, "/"), "allow default/http"},
		{"nor allow", mesh.Deny, rules("allow a " + web + " ports=tcp"), "http", get(web, "/"), "deny default/http"},
		{"a rule without ports is for every port", mesh.Deny, rules("allow a " + web), "tcp", conn(web), "allow a"},
		{"authenticated is any proven identity", mesh.Deny, rules("allow a authenticated"), "http", get(guest, "/"), "allow a"},
		{"and no stranger", mesh.Deny, rules("allow a authenticated"), "http", get("", "/"), "deny default/http"},
		{"unauthenticated is everybody", mesh.Deny, rules("allow a unauthenticated"), "http", get("", "/"), "allow a"},
		{"proven ones too", mesh.Deny, rules("allow a unauthenticated"), "http", get(web, "/"), "allow a"},
		{"callers are an or", mesh.Deny, rules("allow a " + guest + "," + web), "http", get(web, "/"), "allow a"},
		{"rules are an or; the first that matches is named", mesh.Deny, rules("allow a "+guest, "allow b "+web, "allow c authenticated"), "http", get(web, "/"), "allow b"},
		{"an identity is exact", mesh.Deny, rules("allow a " + web), "http", get(web+"x", "/"), "deny default/http"},
		{"an empty identity is nobody", mesh.Deny, rules("allow a ,"), "http", get("", "/"), "deny default/http"},

		// Deny.
		{"deny beats allow", mesh.Deny, rules("allow a "+web, "deny d "+web), "http", get(web, "/"), "deny d"},
		{"in any order", mesh.Deny, rules("deny d "+web, "allow a "+web), "http", get(web, "/"), "deny d"},
		{"deny beats an open default", mesh.AllUnauthenticated, rules("deny d " + guest), "http", get(guest, "/"), "deny d"},
		{"a deny rule does not guard", mesh.AllUnauthenticated, rules("deny d " + guest), "http", get(web, "/"), "allow default/http"},
		{"a deny rule for another port does nothing", mesh.AllUnauthenticated, rules("deny d " + guest + " ports=tcp"), "http", get(guest, "/"), "allow default/http"},
		{"the brake: deny everybody", mesh.AllUnauthenticated, rules("allow a "+web, "deny d unauthenticated"), "http", get(web, "/"), "deny d"},
		{"deny the authenticated, not strangers", mesh.AllUnauthenticated, rules("deny d authenticated"), "http", get("", "/"), "allow default/http"},

		// Routes.
		{"allow on a route", mesh.Deny, rules("allow a " + web + " routes=admin"), "http", get(web, "/admin/x"), "allow a"},
		{"off the route", mesh.Deny, rules("allow a " + web + " routes=admin"), "http", get(web, "/adminx"), "deny default/http"},
		{"routes are an or", mesh.Deny, rules("allow a " + web + " routes=post,admin"), "http", get(web, "/admin"), "allow a"},
		{"a route without conditions is every request", mesh.Deny, rules("allow a " + web + " routes=all"), "http", get(web, "/x"), "allow a"},
		{"but no connection", mesh.Deny, rules("allow a " + web + " routes=all"), "http", conn(web), "deny default/http"},
		{"a route of another port matches nothing", mesh.Deny, rules("allow a " + web + " routes=other"), "http", get(web, "/"), "deny default/http"},
		{"an unknown route allows nothing", mesh.Deny, rules("allow a " + web + " routes=gone"), "http", get(web, "/"), "deny default/http"},
		{"conditions are an and", mesh.Deny, rules("allow a " + web + " routes=post"), "http", get(web, "/pay"), "deny default/http"},
		{"callers and routes are an and", mesh.Deny, rules("allow a " + guest + " routes=admin"), "http", get(web, "/admin"), "deny default/http"},
		{"deny on a route", mesh.AllUnauthenticated, rules("deny d unauthenticated routes=admin"), "http", get(web, "/admin"), "deny d"},
		{"off the route", mesh.AllUnauthenticated, rules("deny d unauthenticated routes=admin"), "http", get(web, "/"), "allow default/http"},
		{"an escape does not hide a path from a deny", mesh.AllUnauthenticated, rules("deny d unauthenticated routes=admin"), "http", get(web, "/%61dmin/x"), "deny d"},

		// What cannot be seen fails an allow and matches a deny.
		{"a connection has no route: deny matches", mesh.AllUnauthenticated, rules("deny d unauthenticated routes=admin"), "http", conn(web), "deny d"},
		{"a header that is there: allow", mesh.Deny, rules("allow a " + web + " routes=vip"), "http", get(web, "/", "x-vip", "1"), "allow a"},
		{"another value: no allow", mesh.Deny, rules("allow a " + web + " routes=vip"), "http", get(web, "/", "x-vip", "2"), "deny default/http"},
		{"missing: no allow", mesh.Deny, rules("allow a " + web + " routes=vip"), "http", get(web, "/"), "deny default/http"},
		{"a header that is there: deny", mesh.AllUnauthenticated, rules("deny d " + web + " routes=vip"), "http", get(web, "/", "x-vip", "1"), "deny d"},
		{"another value: no deny", mesh.AllUnauthenticated, rules("deny d " + web + " routes=vip"), "http", get(web, "/", "x-vip", "2"), "allow default/http"},
		{"missing: deny", mesh.AllUnauthenticated, rules("deny d " + web + " routes=vip"), "http", get(web, "/"), "deny d"},
		{"no headers at all: deny", mesh.AllUnauthenticated, rules("deny d " + web + " routes=vip"), "http", Request{Peer: web, HTTP: true, Method: "GET", Path: "/"}, "deny d"},
		{"no headers at all: no allow", mesh.Deny, rules("allow a " + web + " routes=vip"), "http", Request{Peer: web, HTTP: true, Method: "GET", Path: "/"}, "deny default/http"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := service(t, c.mode, c.rules...)
			port, _ := in.Port(c.port)
			v := Authorize(in, port, &c.r)
			got := "deny " + v.Rule
			if v.Allowed {
				got = "allow " + v.Rule
			}
			if got != c.want || v.Default != strings.Contains(c.want, " default/") {
				t.Errorf("got %q (default: %t), want %q", got, v.Default, c.want)
			}
		})
	}
}

// TestMayCallCoversAuthorize: whoever is allowed anything may call. A control plane that went by a narrower test would
// hide a service from somebody who may use it.
func TestMayCallCoversAuthorize(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	allowed, refused := 0, 0
	for range 20000 {
		var rules []string
		for i := range r.IntN(4) {
			rules = append(rules, fmt.Sprintf("%s r%d %s%s%s", pick("allow", "deny"), i, pick(web, guest, "authenticated", "unauthenticated", web+","+guest),
				pick("", "", " ports=http", " ports=tcp", " ports=http,tcp"), pick("", "", " routes=admin", " routes=all", " routes=vip,post", " routes=other")))
		}
		in := service(t, mesh.InboundMode(pick("deny", "all-authenticated", "all-unauthenticated")), rules...)
		for _, peer := range []string{"", web, guest} {
			any := false
			for i := range in.Ports {
				for _, req := range []Request{
					{Peer: peer},
					{Peer: peer, HTTP: true, Method: "GET", Path: "/x", Header: headers("x-vip", "2")},
					{Peer: peer, HTTP: true, Method: "GET", Path: "/admin", Header: headers("x-vip", "2")},
					{Peer: peer, HTTP: true, Method: "POST", Path: "/pay", Header: headers("x-vip", "1")},
				} {
					any = any || Authorize(in, &in.Ports[i], &req).Allowed
				}
			}
			if may := MayCall(in, peer); any && !may {
				t.Fatalf("%q is allowed something, and MayCall says no: %q", peer, rules)
			}
			if any {
				allowed++
			} else {
				refused++
			}
		}
	}
	if allowed < 1000 || refused < 1000 {
		t.Errorf("the cases are lopsided: %d allowed, %d refused", allowed, refused)
	}
}

func TestMayCall(t *testing.T) {
	for _, c := range []struct {
		rule string
		mode mesh.InboundMode
		peer string
		want bool
	}{
		{"", mesh.Deny, web, false},
		{"", mesh.AllAuthenticated, web, true},
		{"", mesh.AllAuthenticated, "", false},
		{"", mesh.AllUnauthenticated, "", true},
		{"allow a " + web, mesh.Deny, web, true},
		{"allow a " + web, mesh.AllUnauthenticated, guest, false},
		{"allow a " + web + " ports=tcp", mesh.Deny, web, true},
		{"deny d " + web, mesh.AllUnauthenticated, web, false},
		{"deny d " + web + " ports=tcp", mesh.AllUnauthenticated, web, true},
		{"deny d " + web + " routes=admin", mesh.AllUnauthenticated, web, true},
	} {
		var rules []string
		if c.rule != "" {
			rules = append(rules, c.rule)
		}
		if got := MayCall(service(t, c.mode, rules...), c.peer); got != c.want {
			t.Errorf("%q, %s, %q: %t", c.rule, c.mode, c.peer, got)
		}
	}
}

func TestMatchRoute(t *testing.T) {
	// In the order of precedence, as the compiler writes them.
	o := &mesh.Outbound{
		Service: "shop/web",
		Ports: []mesh.OutboundPort{
			{Name: "http", Protocol: mesh.HTTP1, Matches: []mesh.Match{
				{Route: "exact", Path: mesh.PathMatch{Exact: "/a/b"}},
				{Route: "long", Path: mesh.PathMatch{Prefix: "/a/b"}},
				{Route: "get", Path: mesh.PathMatch{Prefix: "/a"}, Method: "GET"},
				{Route: "two", Path: mesh.PathMatch{Prefix: "/a"}, Headers: []mesh.HeaderMatch{{Name: "x", Exact: "1"}, {Name: "y", Exact: "2"}}},
				{Route: "one", Path: mesh.PathMatch{Prefix: "/a"}, Headers: []mesh.HeaderMatch{{Name: "x", Exact: "1"}}},
				{Route: "short", Path: mesh.PathMatch{Prefix: "/a"}},
				{Route: "lost", Path: mesh.PathMatch{Prefix: "/lost"}},
			}},
			{Name: "bare", Protocol: mesh.HTTP1},
		},
		Routes: []mesh.Route{{ID: "exact"}, {ID: "get"}, {ID: "long"}, {ID: "one"}, {ID: "short"}, {ID: "two"}},
	}
	for _, c := range []struct {
		port, method, path string
		h                  []string
		want               string
	}{
		{"http", "GET", "/a/b", nil, "exact"},
		{"http", "GET", "/a/b/", nil, "long"},
		{"http", "POST", "/a/b/c", nil, "long"},
		{"http", "GET", "/a/c", []string{"x", "1"}, "get"},
		{"http", "get", "/a/c", nil, "short"}, // methods are case-sensitive
		{"http", "POST", "/a", []string{"x", "1", "y", "2"}, "two"},
		{"http", "POST", "/a", []string{"x", "1", "y", "3"}, "one"},
		{"http", "POST", "/a", []string{"x", "1"}, "one"},
		{"http", "POST", "/a", []string{"x", ""}, "short"},
		{"http", "POST", "/a", nil, "short"},
		{"http", "POST", "/%61", nil, "short"},
		{"http", "POST", "/A", nil, "404"}, // case is never folded
		{"http", "POST", "/ab", nil, "404"},
		{"http", "OPTIONS", "*", nil, "404"},
		{"http", "POST", "/lost", nil, "404"}, // a match without its route must not fall through to the service itself
		{"bare", "GET", "/anything", nil, "self"},
	} {
		port, _ := o.Port(c.port)
		route, ok := MatchRoute(o, port, &Request{HTTP: true, Method: c.method, Path: c.path, Header: headers(c.h...)})
		got := "404"
		if ok && route == nil {
			got = "self"
		} else if ok {
			got = route.ID
		}
		if got != c.want {
			t.Errorf("%s %s %s %q: %s, want %s", c.port, c.method, c.path, c.h, got, c.want)
		}
	}
}

// TestPickBackend counts every residue: each backend gets exactly its share.
func TestPickBackend(t *testing.T) {
	for _, weights := range [][]uint32{{100}, {90, 10}, {0, 100}, {50, 0, 50}, {1, 2, 3, 4}, {0, 0}, {}, {1 << 31, 1 << 31}} {
		route := &mesh.Route{}
		for _, w := range weights {
			route.Backends = append(route.Backends, mesh.Backend{Weight: w})
		}
		for mask := range 1 << len(weights) {
			available := func(i int) bool { return mask>>i&1 == 1 }
			total := uint64(0)
			for i, w := range weights {
				if available(i) {
					total += uint64(w)
				}
			}
			if total == 0 {
				if got := PickBackend(route, rand.Uint64(), available); got != -1 {
					t.Errorf("%v, available %b: picked %d where none has weight", weights, mask, got)
				}
				continue
			}
			if total > 1000 {
				// The edges only: the first and the last number of each share.
				at := uint64(0)
				for i, w := range weights {
					if !available(i) {
						continue
					}
					for _, n := range []uint64{at, at + uint64(w) - 1} {
						if got := PickBackend(route, n, available); got != i {
							t.Errorf("%v, available %b, %d: %d, want %d", weights, mask, n, got, i)
						}
					}
					at += uint64(w)
				}
				continue
			}
			count := make([]uint32, len(weights))
			for n := range total {
				got := PickBackend(route, n+3*total, available)
				if got < 0 || !available(got) {
					t.Fatalf("%v, available %b: picked %d", weights, mask, got)
				}
				count[got]++
			}
			for i, w := range weights {
				if available(i) && count[i] != w || !available(i) && count[i] != 0 {
					t.Errorf("%v, available %b: counted %v", weights, mask, count)
				}
			}
		}
		if mask := len(weights); mask > 0 && weights[0] > 0 && PickBackend(route, 0, nil) != 0 {
			t.Errorf("%v: nil is not all", weights)
		}
	}
}

func TestCanonicalPath(t *testing.T) {
	good := []string{"/", "*", "/a", "/a/", "/a/b.c", "/a..b", "/...", "/.a", "/a.", "/%20", "/%41", "/caf%C3%A9", "/caf%c3%a9", "/café",
		"/a:b@c", "/%25", "/%252F", "/~x", "/%3F", "/-._~!$&'()*+,=:@"}
	bad := []string{"", "a", "a/b", "**", "*/", "//", "//a", "/a//b", "/a//", "/.", "/..", "/./a", "/../a", "/a/.", "/a/..", "/a/./b", "/a/../b", "/./", "/../",
		"/a\\b", "\\", "/\\", "/a%2fb", "/a%2Fb", "/%2f", "/a%5cb", "/a%5Cb", "/%2e", "/%2E/a", "/%2e%2e/a", "/.%2e/a", "/%2e./a", "/a%2eb", "/a%00b", "/%00",
		"/%", "/%4", "/a%", "/a%4", "/%zz", "/%4g", "/%g4", "/%/a", "/%4/a", "/\x00", "/a\nb", "/a\tb", "/\x7f", "/%%41", "/a;b=c", "/admin;x/y", "/;", "/a#b"}
	for _, p := range good {
		if !CanonicalPath(p) {
			t.Errorf("%q is refused", p)
		}
	}
	for _, p := range bad {
		if CanonicalPath(p) {
			t.Errorf("%q is let in", p)
		}
	}
}

func TestHasPathPrefix(t *testing.T) {
	for _, c := range []struct {
		path, prefix string
		want         bool
	}{
		{"/a", "/a", true}, {"/a/", "/a", true}, {"/a/b", "/a", true}, {"/ab", "/a", false}, {"/", "/a", false}, {"/b", "/a", false}, {"/A", "/a", false},
		{"/", "/", true}, {"/a", "/", true}, {"*", "/", false}, {"", "/", false}, {"", "/a", false}, {"*", "/a", false},
		{"/%61", "/a", true}, {"/%61/b", "/a", true}, {"/%61b", "/a", false}, {"/a%62", "/a", false}, {"/caf%c3%a9/x", "/caf%C3%A9", true},
		{"/café", "/caf%C3%A9", true}, {"/%63af\xc3%a9", "/caf%C3%A9", true}, {"/caf%C3", "/caf%C3%A9", false},
		{"/a%2Fb", "/a", false}, {"/a%2fb", "/a/b", false}, {"/a%2", "/a", false}, {"/%2561", "/a", false}, {"/%2561", "/%61", false},
		{"/a%252Fb", "/a%2Fb", false}, {"/a%2Fb", "/a%252Fb", false}, {"/x%40y", "/x@y", true}, {"/%", "/%25", false},
	} {
		if got := HasPathPrefix(c.path, c.prefix); got != c.want {
			t.Errorf("HasPathPrefix(%q, %q) = %t", c.path, c.prefix, got)
		}
	}
}

func TestSpellPath(t *testing.T) {
	for in, want := range map[string]string{
		"/": "/", "/a/b/": "/a/b/", "/%61%2D%7e": "/a-~", "/caf%c3%a9": "/caf%C3%A9", "/café": "/caf%C3%A9", "/a b": "/a%20b", "/%40%24": "/@$", "/%3f%23%25": "/%3F%23%25",
	} {
		if got := SpellPath(in); got != want || SpellPath(got) != want {
			t.Errorf("SpellPath(%q) = %q, then %q; want %q", in, got, SpellPath(got), want)
		}
	}
}

// FuzzPaths holds the path functions against net/url and path: what is canonical has one meaning, the meaning decides,
// and comparing spellings is comparing meanings.
func FuzzPaths(f *testing.F) {
	for _, s := range []string{"/", "/a", "/a/b", "/%61/b", "/a%2fb", "/a/../b", "/caf%c3%a9", "/caf\xc3\xa9", "/a//b", "*", "/%", "/a%252F", "/a\\b"} {
		f.Add(s, "/a")
		f.Add("/a/b/c", s)
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, p, q string) {
		if !CanonicalPath(p) || !CanonicalPath(q) || p == "*" || q == "*" {
			return
		}
		mp, err := url.PathUnescape(p)
		if err != nil {
			t.Fatalf("%q is canonical and cannot be unescaped: %v", p, err)
		}
		mq, _ := url.PathUnescape(q)
		if clean := path.Clean(mp); clean != mp && clean+"/" != mp {
			t.Fatalf("%q is canonical, and %q resolves to %q", p, mp, clean)
		}
		if strings.ContainsAny(mp, "\\\x00") || strings.Count(mp, "/") != strings.Count(p, "/") {
			t.Fatalf("%q is canonical and hides something: %q", p, mp)
		}
		s := SpellPath(p)
		if ms, err := url.PathUnescape(s); err != nil || ms != mp || SpellPath(s) != s || !CanonicalPath(s) {
			t.Fatalf("SpellPath(%q) = %q", p, s)
		}
		if same := SpellPath(q) == s; same != (mp == mq) || same != (consume(p, q) == len(p)) {
			t.Fatalf("%q and %q: one spelling %t, one meaning %t", p, q, same, mp == mq)
		}
		if prefix := strings.TrimSuffix(mq, "/"); prefix != "" {
			want := mp == prefix || strings.HasPrefix(mp, prefix+"/")
			if got := HasPathPrefix(p, strings.TrimSuffix(q, "/")); got != want {
				t.Fatalf("HasPathPrefix(%q, %q) = %t", p, q, got)
			}
		}
	})
}

// TestNoAllocations: the verdict is on the path of every request.
func TestNoAllocations(t *testing.T) {
	in := service(t, mesh.Deny, "allow a "+guest+" routes=post", "allow b "+web+" routes=vip,admin", "deny d "+guest)
	port, _ := in.Port("http")
	o := &mesh.Outbound{Ports: []mesh.OutboundPort{{Name: "http", Matches: []mesh.Match{
		{Route: "x", Path: mesh.PathMatch{Exact: "/x%20y"}}, {Route: "r", Path: mesh.PathMatch{Prefix: "/admin"}, Method: "GET"},
	}}}, Routes: []mesh.Route{{ID: "r", Backends: []mesh.Backend{{Weight: 90}, {Weight: 10}}}}}
	r := &Request{Peer: web, HTTP: true, Method: "GET", Path: "/%61dmin/caf%c3%a9", Header: headers("x-vip", "2")}
	allowed, picked := true, 0
	if n := testing.AllocsPerRun(100, func() {
		allowed = allowed && Authorize(in, port, r).Allowed && MayCall(in, r.Peer) && CanonicalPath(r.Path)
		route, ok := MatchRoute(o, &o.Ports[0], r)
		allowed = allowed && ok
		picked += PickBackend(route, 99, nil)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if !allowed || picked != 101 { // AllocsPerRun runs once more to warm up
		t.Errorf("the run decided nothing: %t %d", allowed, picked)
	}
}
