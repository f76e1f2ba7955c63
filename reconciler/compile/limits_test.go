package compile

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// numbered makes a map of n things.
func numbered[V any](n int, f func(i int) V) map[string]V {
	out := make(map[string]V, n)
	for i := range n {
		out[fmt.Sprintf("n%05d", i)] = f(i)
	}
	return out
}

// listed makes a list of n things.
func listed[V any](n int, f func(i int) V) []V {
	out := make([]V, n)
	for i := range out {
		out[i] = f(i)
	}
	return out
}

func of(services map[string]v1alpha1.Service) *v1alpha1.Document {
	for name, s := range services {
		if s.Ports == nil {
			s.Ports = map[string]v1alpha1.Port{"http": {Port: 80, Protocol: "http1"}}
			services[name] = s
		}
	}
	return &v1alpha1.Document{Policy: v1alpha1.Policy{
		Mesh:     &v1alpha1.Mesh{TrustDomain: "corp.example"},
		Services: map[string]map[string]v1alpha1.Service{"shop": services},
	}}
}

func one(s v1alpha1.Service) *v1alpha1.Document { return of(map[string]v1alpha1.Service{"web": s}) }

var anybody = []v1alpha1.From{{Authenticated: true}}

// TestTooMuch: what would take minutes, or more memory than there is, is refused by a count and named. Each of these
// documents is small enough to be evaluated within the limits of package policy.
func TestTooMuch(t *testing.T) {
	path := func(format string) func(int) v1alpha1.RulePath {
		return func(i int) v1alpha1.RulePath { return v1alpha1.RulePath{Exact: v1alpha1.Path(fmt.Sprintf(format, i))} }
	}
	match := func(format string) func(int) v1alpha1.HTTPMatch {
		return func(i int) v1alpha1.HTTPMatch {
			return v1alpha1.HTTPMatch{Path: &v1alpha1.PathMatch{Regex: fmt.Sprintf(format, i)}}
		}
	}
	for name, c := range map[string]struct {
		doc  *v1alpha1.Document
		want string // how the finding begins
	}{
		"ports": {one(v1alpha1.Service{Ports: numbered(maxPorts+1, func(i int) v1alpha1.Port { return v1alpha1.Port{Port: v1alpha1.PortNumber(1 + i)} })}),
			"services.shop.web: shop/web has 257 ports"},
		"rules": {one(v1alpha1.Service{Deny: numbered(maxRules+1, func(int) v1alpha1.Rule { return v1alpha1.Rule{From: anybody} })}),
			"services.shop.web: shop/web has 2001 rules"},
		"routes": {one(v1alpha1.Service{HttpRoutes: numbered(maxRoutes+1, func(int) v1alpha1.HTTPRoute { return v1alpha1.HTTPRoute{} })}),
			"services.shop.web: shop/web has 2001 routes"},
		"methods × paths × matches": {one(v1alpha1.Service{
			HttpRoutes: map[string]v1alpha1.HTTPRoute{"r": {Match: listed(1500, func(i int) v1alpha1.HTTPMatch {
				return v1alpha1.HTTPMatch{Path: &v1alpha1.PathMatch{Prefix: v1alpha1.Path(fmt.Sprintf("/b/%d", i))}}
			})}},
			Allow: map[string]v1alpha1.Rule{"a": {From: anybody, Routes: []string{"r"},
				Methods: listed(1000, func(i int) v1alpha1.Method { return v1alpha1.Method("M" + strings.Repeat("X", i)) }),
				Paths:   append(listed(1500, path("/a/%d")), path("/b/%d")(0))}},
		}), "services.shop.web.allow.a: the conditions of namespace shop are too many"},
		"expressions": {one(v1alpha1.Service{HttpRoutes: map[string]v1alpha1.HTTPRoute{
			"a": {Match: listed(1500, match("/a/%dx{500}"))}, "b": {Match: listed(1500, match("/(b|c)/%dx{500}"))}}}),
			"services.shop.web.httpRoutes.b: the conditions of namespace shop are too many"},
		"rules × ports": {one(v1alpha1.Service{
			Ports: numbered(maxPorts, func(i int) v1alpha1.Port { return v1alpha1.Port{Port: v1alpha1.PortNumber(1 + i), Protocol: "http1"} }),
			Allow: numbered(1000, func(i int) v1alpha1.Rule { return v1alpha1.Rule{From: anybody} }),
			Deny: numbered(1000, func(i int) v1alpha1.Rule {
				return v1alpha1.Rule{From: anybody, Paths: []v1alpha1.RulePath{path("/x/%d")(i)}}
			}),
		}), "services.shop.web.allow."},
		"rules × identities": {one(v1alpha1.Service{
			Identities: listed(5000, func(i int) v1alpha1.SpiffeID { return v1alpha1.SpiffeID(fmt.Sprintf("spiffe://corp.example/x/%d", i)) }),
			Allow: numbered(1000, func(i int) v1alpha1.Rule {
				return v1alpha1.Rule{From: []v1alpha1.From{{Namespace: "shop"}}}
			}),
		}), "services.shop.web.allow.n00"},
		"findings": {one(v1alpha1.Service{Allow: map[string]v1alpha1.Rule{"a": {
			From: listed(50_000, func(i int) v1alpha1.From {
				return v1alpha1.From{Service: v1alpha1.ServiceName(fmt.Sprintf("shop/unknown-%d", i))}
			})}}}),
			"services.shop.web.allow.a.from.1000.service: from here on nothing was looked at: 1000 findings"},
	} {
		t.Run(name, func(t *testing.T) {
			m, _, findings := Compile(c.doc, Options{ProxyVersion: "any"})
			if m != nil || len(findings) > maxFindings+1 {
				t.Fatalf("a mesh: %t; %d findings", m != nil, len(findings))
			}
			for _, f := range findings {
				if f.ID == diag.TooMuch && strings.HasPrefix(strings.TrimPrefix(f.String(), "-: "), c.want) {
					return
				}
			}
			t.Errorf("no finding begins with %q: %v", c.want, findings[:min(3, len(findings))])
		})
	}
}

// TestLongPath: a path of a hundred thousand elements is refused before it is taken apart.
func TestLongPath(t *testing.T) {
	long := strings.Repeat("/x", 100_000)
	_, _, findings := Compile(one(v1alpha1.Service{Allow: map[string]v1alpha1.Rule{
		"a": {From: anybody, Paths: []v1alpha1.RulePath{{Prefix: v1alpha1.Path(long)}, {Template: long + "/{id}"}, {Exact: "/x"}}}}}), Options{})
	for i := range 2 {
		if len(findings) != 2 || !strings.Contains(findings[i].Message, "bytes; 2048 are the most") || len(findings.Error()) > 1000 {
			t.Fatalf("%d findings: %v", len(findings), findings)
		}
	}
}

// TestNoEcho: a finding about an address with a password does not say the password.
func TestNoEcho(t *testing.T) {
	for _, u := range []string{"https://user:hunter2@idp.example/keys", "http://hunter2@idp.example", "https://user:hunter2%zz@idp.example/"} {
		doc := one(v1alpha1.Service{})
		doc.Policy.Mesh.JwtIssuers = map[string]v1alpha1.JWTIssuer{"idp": {Issuer: "https://idp.example", Audiences: []string{"a"}, JwksURL: u}}
		_, _, findings := Compile(doc, Options{ProxyVersion: "any"})
		if text := findings.Error(); strings.Contains(text, "hunter2") || !strings.Contains(text, "is no https URL") {
			t.Errorf("%s: %s", u, text)
		}
	}
}

// TestRegexSize: an expression is measured before anything as large as it says is built.
func TestRegexSize(t *testing.T) {
	match := func(expr string) *v1alpha1.Document {
		return one(v1alpha1.Service{HttpRoutes: map[string]v1alpha1.HTTPRoute{"a": {Match: []v1alpha1.HTTPMatch{{Path: &v1alpha1.PathMatch{Regex: expr}}}}}})
	}
	for expr, want := range map[string]string{
		"/" + strings.Repeat("x{1000}", 100): "more than 16384 instructions",
		"/(b{0,5000})?":                      "cannot be read",
		"/" + strings.Repeat("x{1000}", 5):   "compiles to 5005",
		"/" + strings.Repeat("x{1000}", 3):   "",
	} {
		_, _, findings := Compile(match(expr), Options{ProxyVersion: "any"})
		if text := findings.Errors().Error(); !strings.Contains(text, want) || want == "" && text != "" {
			t.Errorf("%s: %s; want %q", expr, text, want)
		}
	}
}

// TestNotTooMuch: a large namespace that people could write is none.
func TestNotTooMuch(t *testing.T) {
	services := numbered(300, func(i int) v1alpha1.Service {
		return v1alpha1.Service{
			Selector: map[string]string{"app": fmt.Sprint("a", i)},
			Allow: numbered(20, func(j int) v1alpha1.Rule {
				return v1alpha1.Rule{From: []v1alpha1.From{{Service: v1alpha1.ServiceName(fmt.Sprintf("shop/n%05d", (i+j)%300))}}, Routes: []string{"n00001"}}
			}),
			HttpRoutes: numbered(30, func(j int) v1alpha1.HTTPRoute {
				return v1alpha1.HTTPRoute{Match: []v1alpha1.HTTPMatch{{Path: &v1alpha1.PathMatch{Prefix: v1alpha1.Path(fmt.Sprintf("/r%d", j))}},
					{Path: &v1alpha1.PathMatch{Regex: fmt.Sprintf("/x/[0-9]+/%d/.*", j)}}}}
			}),
		}
	})
	c := newCompiler(of(maps.Clone(services)), Options{}, gateOf("any", mesh.Capabilities))
	if _, _, findings := c.run(); len(findings.Errors()) > 0 {
		t.Errorf("%d findings, the first: %v", len(findings), findings[0])
	}
	if c.steps["shop"] > maxSteps/4 {
		t.Errorf("%d steps", c.steps["shop"])
	}
}
