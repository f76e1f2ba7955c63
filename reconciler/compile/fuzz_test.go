package compile

import (
	"fmt"
	"regexp/syntax"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// FuzzValues writes one text into every field that is parsed: paths, templates, expressions, networks, host names, times,
// durations, identities, names. No text makes a compilation panic, whatever is found is told in few words, and what
// compiles compiles to the same again.
func FuzzValues(f *testing.F) {
	for _, s := range []string{"", "/", "/a/{id}/b", "/a/../b", "/%2e", "x{1000}", "(a|b)*c", "10.0.0.0/8", "::ffff:10.0.0.0/104", "2001:db8::/33", "*.a.example", "1m30s", "-1s", "9e9h",
		"2027-01-31T00:00:00Z", "spiffe://corp.example/ns/a/sa/b", "spiffe://corp.example/", "/sa/x", "shop/web", "GET", "5xx", "500-504", "unavailable", "X-Tenant", "\x00", "\xff", "a\nb"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 1<<14 {
			t.Skip()
		}
		doc := func() *v1alpha1.Document {
			match := v1alpha1.HTTPMatch{Path: &v1alpha1.PathMatch{Prefix: v1alpha1.Path(s)}, Method: v1alpha1.Method(s),
				Headers: map[string]v1alpha1.HeaderMatch{s: {Exact: s}, "x-r": {Regex: s}}, Query: map[string]v1alpha1.HeaderMatch{s: {Regex: s}}}
			route := v1alpha1.HTTPRoute{Match: []v1alpha1.HTTPMatch{match, {Path: &v1alpha1.PathMatch{Exact: v1alpha1.Path(s)}}, {Path: &v1alpha1.PathMatch{Regex: s}}},
				Timeout: v1alpha1.Duration(s), Retry: &v1alpha1.Retry{On: []string{s}, Timeout: v1alpha1.Duration(s)},
				Filters: []v1alpha1.Filter{{Redirect: &v1alpha1.Redirect{Host: v1alpha1.Hostname(s)}}}, Backends: []v1alpha1.Backend{{Service: v1alpha1.ServiceName(s), Port: s}}}
			rule := v1alpha1.Rule{From: []v1alpha1.From{{Service: v1alpha1.ServiceName(s)}, {Namespace: v1alpha1.Label(s)}, {Identity: v1alpha1.SpiffeID(s)}, {IdentityPrefix: s}, {IdentitySuffix: s}},
				Networks: []v1alpha1.Network{{Cidr: v1alpha1.CIDR(s), Except: []v1alpha1.CIDR{v1alpha1.CIDR(s)}}}, Ports: []string{s}, Routes: []string{s},
				Methods: []v1alpha1.Method{v1alpha1.Method(s)}, Paths: []v1alpha1.RulePath{{Exact: v1alpha1.Path(s)}, {Prefix: v1alpha1.Path(s)}, {Template: s}},
				Headers: map[string]v1alpha1.HeaderValue{s: {OneOf: []string{s}}}, Until: s}
			d := one(v1alpha1.Service{HttpRoutes: map[string]v1alpha1.HTTPRoute{"r": route}, Allow: map[string]v1alpha1.Rule{s: rule},
				Deny:       map[string]v1alpha1.Rule{"sni": {From: anybody, Sni: []string{s}}, "path": {From: anybody, Paths: []v1alpha1.RulePath{{Prefix: v1alpha1.Path(s)}}}},
				Identities: []v1alpha1.SpiffeID{v1alpha1.SpiffeID(s)}})
			d.Policy.Services["shop"]["plain"] = v1alpha1.Service{Ports: map[string]v1alpha1.Port{"http": {Port: 80, Protocol: "http1"}},
				Deny: map[string]v1alpha1.Rule{"path": {From: anybody, Paths: []v1alpha1.RulePath{{Template: s}}}}}
			d.Policy.Egress = map[string]map[string]v1alpha1.Egress{"shop": {s: {Hosts: []v1alpha1.Hostname{v1alpha1.Hostname(s)}, Networks: []v1alpha1.Network{{Cidr: v1alpha1.CIDR(s)}}}}}
			return d
		}
		m, _, findings := Compile(doc(), Options{ProxyVersion: "any"})
		again, _, _ := Compile(doc(), Options{ProxyVersion: "any"})
		if d := cmp.Diff(m, again); d != "" {
			t.Errorf("another mesh: %s", d)
		}
		if (m == nil) != (len(findings.Errors()) > 0) {
			t.Errorf("a mesh: %t; %v", m != nil, findings)
		}
		for _, f := range findings {
			if f.ID == "" || f.Message == "" || len(f.Message) > 1100 || len(f.Hint) > 1100 {
				t.Errorf("%+v", f)
			}
		}
	})
}

// FuzzExpressions: an expression that is not refused by its estimated size has a program that is at most the estimate,
// and so is bounded; and what is said of one expression and a prefix is true of what the expression matches.
func FuzzExpressions(f *testing.F) {
	for _, s := range []string{"", "/", "/a.*", "/a/[0-9]+", "(/b|/c)x{5}", "(?i:/A)", "/a(/.*)?", "x*|y+", `\pL{3}`, "/a{0,9}", `\Q/a.b\E`, "^/a$", `\b/a`} {
		f.Add(s, "/a")
	}
	f.Fuzz(func(t *testing.T, expr, prefix string) {
		if len(expr) > maxRegex || len(prefix) > 64 || !strings.HasPrefix(prefix, "/") {
			t.Skip()
		}
		re, err := syntax.Parse("^(?:"+expr+")$", syntax.Perl)
		if _, own := syntax.Parse(expr, syntax.Perl); err != nil || own != nil {
			t.Skip()
		}
		estimate := instructions(re, 4*maxRegexProgram)
		if estimate >= 4*maxRegexProgram {
			return
		}
		prog, err := syntax.Compile(re.Simplify())
		if err != nil {
			t.Fatal(err)
		}
		if len(prog.Inst) > 4*estimate+16 {
			t.Errorf("%q: estimated %d, and has %d", expr, estimate, len(prog.Inst))
		}
		literal, whole := literalPrefix(expr)
		machine, err := syntax.Parse(expr, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		if whole && machine.Op == syntax.OpLiteral && machine.Flags&syntax.FoldCase == 0 && literal != string(machine.Rune) {
			t.Errorf("%q is %q", expr, literal)
		}
		inside := matchPathInside(&mesh.Match{Path: mesh.PathMatch{Prefix: strings.TrimSuffix(prefix, "/")}}, &mesh.Match{Path: mesh.PathMatch{Regex: expr}})
		if inside && whole && prefix != "/" && !strings.HasPrefix(literal, strings.TrimSuffix(prefix, "/")) && !strings.Contains(literal+prefix, "%") {
			t.Errorf("%q is under %q: %s", expr, prefix, fmt.Sprint(literal))
		}
	})
}
