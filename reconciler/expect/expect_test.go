package expect

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/reconciler/compile"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// document is a small shop: a door for strangers, an API behind routes with two backends, and a database.
func document(tests map[string]v1alpha1.Test) *v1alpha1.Document {
	weight := func(n int64) *int64 { return &n }
	caller := func(name string) map[string]v1alpha1.Rule {
		return map[string]v1alpha1.Rule{"caller": {From: []v1alpha1.From{{Service: v1alpha1.ServiceName(name)}}}}
	}
	d := &v1alpha1.Document{Policy: v1alpha1.Policy{
		Mesh: &v1alpha1.Mesh{TrustDomain: "shop.example"},
		Services: map[string]map[string]v1alpha1.Service{"shop": {
			"web": {
				Ports: map[string]v1alpha1.Port{"http": {Port: 8080, Protocol: "http1", Mtls: "permissive"}},
				Allow: map[string]v1alpha1.Rule{"all": {From: []v1alpha1.From{{Unauthenticated: true}}}},
			},
			"api": {
				Ports: map[string]v1alpha1.Port{"http": {Port: 8080, Protocol: "http1"}, "raw": {Port: 9000, Protocol: "tcp"}},
				Allow: caller("shop/web"),
				HttpRoutes: map[string]v1alpha1.HTTPRoute{
					"items": {
						Match:    []v1alpha1.HTTPMatch{{Path: &v1alpha1.PathMatch{Prefix: "/items"}}},
						Backends: []v1alpha1.Backend{{Service: "shop/api", Weight: weight(90)}, {Service: "shop/next", Weight: weight(10)}},
					},
					"own": {Match: []v1alpha1.HTTPMatch{{Path: &v1alpha1.PathMatch{Prefix: "/own"}}}},
				},
			},
			"next": {
				Ports: map[string]v1alpha1.Port{"http": {Port: 8080, Protocol: "http1"}},
				Allow: caller("shop/web"),
				Deny: map[string]v1alpha1.Rule{"admin": {From: []v1alpha1.From{{Authenticated: true}},
					Routes: nil, Ports: []string{"http"}}},
			},
			"twins": {
				Ports:      map[string]v1alpha1.Port{"http": {Port: 8080, Protocol: "http1"}},
				Identities: []v1alpha1.SpiffeID{"spiffe://shop.example/one", "spiffe://shop.example/two"},
				Allow:      map[string]v1alpha1.Rule{"one": {From: []v1alpha1.From{{Identity: "spiffe://shop.example/one"}}}},
			},
		}},
		Tests: tests,
	}, Positions: map[string]diag.Pos{
		"services.shop.web":              {File: "web.cue", Line: 1},
		"services.shop.web.allow.all":    {File: "web.cue", Line: 5},
		"services.shop.api":              {File: "api.cue", Line: 1},
		"services.shop.api.allow.caller": {File: "api.cue", Line: 7},
		"services.shop.next":             {File: "next.cue", Line: 1},
		"services.shop.next.deny.admin":  {File: "next.cue", Line: 9},
		"services.shop.twins":            {File: "twins.cue", Line: 1},
	}}
	n := 0
	for name := range tests {
		n++
		d.Positions["tests."+name] = diag.Pos{File: "tests/t.cue", Line: 10}
		d.Positions["tests."+name+".to"] = diag.Pos{File: "tests/t.cue", Line: 11}
	}
	return d
}

func run(t *testing.T, one v1alpha1.Test) (Result, diag.List) {
	t.Helper()
	d := document(map[string]v1alpha1.Test{"one": one})
	m, origins, findings := compile.Compile(d, compile.Options{})
	if m == nil {
		t.Fatalf("the shop does not compile: %v", findings)
	}
	results, findings := Run(d, m, origins, time.Time{})
	if len(results) != 1 {
		t.Fatalf("%d results", len(results))
	}
	return results[0], findings
}

func TestRun(t *testing.T) {
	items := func(expect string, more func(*v1alpha1.Test)) v1alpha1.Test {
		one := v1alpha1.Test{From: "shop/web", To: "shop/api", Method: "GET", Path: "/items/7", Expect: expect}
		if more != nil {
			more(&one)
		}
		return one
	}
	for _, c := range []struct {
		name string
		test v1alpha1.Test
		got  string // "" where the expectation holds
		why  string
		at   string
	}{
		{"a stranger at the door", v1alpha1.Test{From: "-", To: "shop/web", Method: "GET", Path: "/", Expect: "allow"}, "", "", ""},
		{"a stranger inside", v1alpha1.Test{From: "-", To: "shop/api:http", Method: "GET", Path: "/", Expect: "deny"}, "", "", ""},
		{"a stranger inside, hoped for", v1alpha1.Test{From: "-", To: "shop/api:8080", Method: "GET", Path: "/", Expect: "allow"},
			"deny", "takes mTLS only", "api.cue:1"},
		{"one backend that denies denies", items("allow", nil), "deny", "rule shop/next/deny/admin", "next.cue:9"},
		{"and is expected to", items("deny", func(one *v1alpha1.Test) {
			one.Route = "items"
			one.Backends = []v1alpha1.ServiceName{"shop/next", "shop/api"}
		}), "", "", ""},
		{"another route", items("deny", func(one *v1alpha1.Test) { one.Route = "own" }), "deny by route items", "route shop/api/httpRoutes/items", "api.cue:1"},
		{"not all backends", items("deny", func(one *v1alpha1.Test) { one.Backends = []v1alpha1.ServiceName{"shop/api"} }),
			"deny to shop/api, shop/next", "", "api.cue:1"},
		{"a route to the service itself", v1alpha1.Test{From: "shop/web", To: "shop/api", Method: "GET", Path: "/own", Expect: "allow", Route: "own",
			Backends: []v1alpha1.ServiceName{"shop/api"}}, "", "", ""},
		{"no route", v1alpha1.Test{From: "shop/web", To: "shop/api", Method: "GET", Path: "/", Expect: "allow"}, "deny", "no route of shop/api matches the request: 404", ""},
		{"a connection", v1alpha1.Test{From: "shop/web", To: "shop/api:raw", Expect: "allow"}, "", "", ""},
		{"of an identity that nobody declares", v1alpha1.Test{From: "spiffe://shop.example/x", To: "shop/api:raw", Expect: "deny"}, "", "", ""},
		{"every identity of a service counts", v1alpha1.Test{From: "shop/twins", To: "shop/twins", Method: "GET", Path: "/", Expect: "allow"},
			"deny", "(as spiffe://shop.example/two)", "twins.cue:1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, findings := run(t, c.test)
			if r.Pass != (c.got == "") || r.Pass != (len(findings) == 0) {
				t.Fatalf("%+v, %v", r, findings)
			}
			if r.Pass {
				return
			}
			if f := findings[0]; r.Got != c.got || !strings.Contains(r.Because, c.why) || c.at != "" && r.Decided.Short() != c.at ||
				f.ID != diag.TestFailed || f.Pos.Short() != "tests/t.cue:10" || f.Path != "tests.one" {
				t.Errorf("%+v\n%v", r, f)
			}
		})
	}
}

// An expectation about nothing would hold for ever: it is a finding, with what was probably meant.
func TestAboutNothing(t *testing.T) {
	web := v1alpha1.Test{From: "shop/web", To: "shop/api", Method: "GET", Path: "/items", Expect: "allow"}
	with := func(f func(*v1alpha1.Test)) v1alpha1.Test { one := web; f(&one); return one }
	for _, c := range []struct {
		test             v1alpha1.Test
		path, what, hint string
	}{
		{with(func(t *v1alpha1.Test) { t.From = "shop/weeb" }), "from", `no service "shop/weeb"`, "shop/web"},
		{with(func(t *v1alpha1.Test) { t.From = "spiffe://" }), "from", "", "spiffe://shop.example/ns/"},
		{with(func(t *v1alpha1.Test) { t.To = "shop/apu" }), "to", `no service "shop/apu"`, "shop/api"},
		{with(func(t *v1alpha1.Test) { t.To = "shop/api:htp" }), "to", `no port "htp"`, "http"},
		{with(func(t *v1alpha1.Test) { t.To = "shop/api:raw" }), "path", "speaks tcp", "leave method and path out"},
		{v1alpha1.Test{From: "shop/web", To: "shop/api", Expect: "allow"}, "to", "several ports", "shop/api:http"},
		{with(func(t *v1alpha1.Test) { t.Method = "" }), "path", "without a method", "add the method"},
		{with(func(t *v1alpha1.Test) { t.Path = "" }), "method", "without a path", "add the path"},
		{with(func(t *v1alpha1.Test) { t.Path = "items" }), "path", "does not start with /", ""},
		{with(func(t *v1alpha1.Test) { t.Path = "/items?x=1" }), "path", "has a query", "under query"},
		{v1alpha1.Test{From: "shop/web", To: "shop/api:raw", Expect: "allow", Headers: map[string]string{"x": "y"}}, "headers", "no headers", ""},
		{with(func(t *v1alpha1.Test) { t.Route = "item" }), "route", `no route "item"`, "items"},
		{with(func(t *v1alpha1.Test) { t.Backends = []v1alpha1.ServiceName{"shop/api", "shop/nxt"} }), "backends.1", `no service "shop/nxt"`, "shop/next"},
		{with(func(t *v1alpha1.Test) { t.Jwt = map[string]map[string][]string{"corp": {}} }), "jwt", `"corp"`, "jwtIssuers"},
		{with(func(t *v1alpha1.Test) { t.Address = "10.0.0" }), "address", "no IP address", "192.0.2.7"},
		{with(func(t *v1alpha1.Test) { t.At = "tomorrow" }), "at", "no time", "RFC 3339"},
	} {
		r, findings := run(t, c.test)
		if r.Pass || len(findings) != 1 {
			t.Errorf("%+v: %+v, %v", c.test, r, findings)
			continue
		}
		f := findings[0]
		if f.ID != diag.BadTest || f.Path != "tests.one."+c.path || !strings.Contains(f.Message, c.what) || !strings.Contains(f.Hint, c.hint) ||
			f.Pos.File != "tests/t.cue" || r.Got != "" {
			t.Errorf("%s: %+v\n%+v", c.path, r, f)
		}
	}
}

// The address of a caller that names none is in no network that a rule could mean.
func TestOutside(t *testing.T) {
	with := func(cidrs ...string) *mesh.Mesh {
		m := &mesh.Mesh{Inbound: []mesh.Inbound{{Rules: []mesh.Rule{{}}}}}
		for _, c := range cidrs {
			m.Inbound[0].Rules[0].Networks = append(m.Inbound[0].Rules[0].Networks, mesh.Network{CIDR: netip.MustParsePrefix(c)})
		}
		return m
	}
	for _, c := range []struct {
		want  string // "": any that is outside
		cidrs []string
	}{
		{"192.0.2.1", nil},
		{"198.51.100.1", []string{"192.0.2.0/24"}},
		{"2001:db8::1", []string{"0.0.0.0/0"}},
		{"", []string{"128.0.0.0/1", "::/0", "64.0.0.0/2", "32.0.0.0/3"}},
		{"", []string{"192.0.0.0/8", "198.0.0.0/8", "203.0.0.0/8", "::/0", "0.0.0.0/8", "10.0.0.0/8"}},
		{"invalid IP", []string{"0.0.0.0/0", "::/0"}},
	} {
		got := outside(with(c.cidrs...))
		if c.want != "" && got.String() != c.want || c.want == "" && !got.IsValid() {
			t.Errorf("%v: %s, want %s", c.cidrs, got, c.want)
		}
		for _, cidr := range c.cidrs {
			if netip.MustParsePrefix(cidr).Contains(got) {
				t.Errorf("%v: %s is inside", c.cidrs, got)
			}
		}
	}
}

func TestMissIsAnError(t *testing.T) {
	_, err := Calls(&mesh.Mesh{}, &Question{From: "-", To: "a/b"}, nil)
	if miss := new(Miss); !errors.As(err, &miss) || miss.Field != "to" {
		t.Errorf("%v", err)
	}
}
