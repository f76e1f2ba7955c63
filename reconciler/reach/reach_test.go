package reach

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// TestEveryPathHasAClass: whatever the patterns, each canonical path satisfies the same of them as some path that is
// tried. (Package plan holds whole comparisons against brute force.)
func TestEveryPathHasAClass(t *testing.T) {
	for seed := range 3000 {
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		path := func(words ...string) string {
			var b strings.Builder
			for range r.IntN(5) {
				b.WriteString("/" + words[r.IntN(len(words))])
			}
			if b.Len() == 0 || r.IntN(5) == 0 {
				b.WriteByte('/')
			}
			return b.String()
		}
		var patterns []mesh.PathMatch
		for range 1 + r.IntN(6) {
			switch r.IntN(3) {
			case 0:
				patterns = append(patterns, mesh.PathMatch{Exact: path("a", "b", "%20")})
			case 1:
				p := strings.TrimSuffix(path("a", "b", "%20"), "/")
				if p == "" {
					p = "/"
				}
				patterns = append(patterns, mesh.PathMatch{Prefix: p})
			default:
				patterns = append(patterns, mesh.PathMatch{Template: path("a", "b", "{v}", "{w}")})
			}
		}
		s := &Space{budget: parts * Budget}
		s.conds = []cond{{paths: [][]mesh.PathMatch{patterns}}}
		s.cutPaths(&gatherer{s: s})
		for range 200 {
			p := path("a", "b", "x", "c", "%20", "%61")
			if !decide.CanonicalPath(p) {
				continue
			}
			if _, ok := s.pathSig[s.pathKey(p)]; !ok {
				t.Fatalf("seed %d: %q is like none of %q, by %+v", seed, p, s.paths, patterns)
			}
		}
	}
}

func TestSamples(t *testing.T) {
	for _, expr := range []string{"/v[0-9]+/.*", "a|b|cc", "(x(y|z))?", "[^/]+", "/a{2,3}", `/\d{4}`, "(?i)abc", ".*", "x*y+"} {
		list := samples(expr)
		full, err := decide.Expression(expr)
		if err != nil || len(list) == 0 {
			t.Errorf("%s: %q, %v", expr, list, err)
			continue
		}
		for _, s := range list {
			if !full.MatchString(s) {
				t.Errorf("%s does not take %q", expr, s)
			}
		}
	}
}

// TestProve shows the findings whole.
func TestProve(t *testing.T) {
	service := func(n mesh.ServiceName, rules ...mesh.Rule) mesh.Inbound {
		return mesh.Inbound{Service: n, Identities: []string{"spiffe://mesh.example/ns/" + n.Namespace() + "/sa/" + n.Local()}, Rules: rules,
			Ports: []mesh.InboundPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1, MTLS: mesh.Strict, Default: mesh.Deny, DefaultID: mesh.DefaultID(n, "http")}}}
	}
	dev := []mesh.Peer{{Prefix: "spiffe://mesh.example/ns/dev/"}}
	m := &mesh.Mesh{Settings: mesh.Settings{TrustDomain: "mesh.example"}, Inbound: []mesh.Inbound{
		service("dev/tool"),
		service("pci/vault",
			mesh.Rule{ID: "pci/vault/allow/health", Action: mesh.Allow, From: []mesh.Peer{{Authenticated: true}}, Methods: []string{"GET"}, Paths: []mesh.PathMatch{{Prefix: "/health"}}},
			mesh.Rule{ID: "pci/vault/deny/dev", Action: mesh.DenyRule, From: dev, Until: time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)}),
	}}
	at := mesh.Origins{"pci/vault/allow/health": {File: "services/pci/vault.cue", Line: 9}, "invariants/apart": {File: "mesh.cue", Line: 4}}
	never := mesh.Invariant{Name: "apart", ID: "invariants/apart", Never: &mesh.Flow{From: dev, To: mesh.Target{Namespace: "pci"}}}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

	// It holds now, and no longer once the rule ends.
	got := Prove(t.Context(), m, at, []mesh.Invariant{never}, now, 0)
	const want = `mesh.cue:4: invariants.apart: "apart" does not hold: GET /health from dev/tool to pci/vault:http is allowed from 2026-05-01T00:00:00Z on by pci/vault/allow/health [HDL0602]`
	if len(got) != 1 || got[0].String() != want || !slices.Equal(got[0].Related, []diag.Pos{{File: "services/pci/vault.cue", Line: 9}}) ||
		!strings.Contains(got[0].Hint, "heddle explain dev/tool pci/vault:http GET /health --at 2026-05-01T00:00:00Z") {
		t.Errorf("got %+v", got)
	}
	m.Inbound[1].Rules[1].Until = time.Time{}
	if got := Prove(t.Context(), m, at, []mesh.Invariant{never, {Name: "mtls", ID: "invariants/mtls", AlwaysMTLS: &mesh.Target{}}}, now, 0); len(got) != 0 {
		t.Errorf("it holds: %v", got)
	}
	// A budget that is too small proves nothing.
	if got := Prove(t.Context(), m, at, []mesh.Invariant{never}, now, 2); len(got) != 1 || got[0].ID != diag.InvariantUndecided {
		t.Errorf("got %v", got)
	}
	// A caller that comes by somebody else's route.
	m.Inbound = append(m.Inbound, service("shop/web"))
	m.Outbound = []mesh.Outbound{{Service: "shop/web", Ports: []mesh.OutboundPort{{Name: "http", Protocol: mesh.HTTP1, Matches: []mesh.Match{{Route: "shop/web/httpRoutes/h", Path: mesh.PathMatch{Prefix: "/h"}}}}},
		Routes: []mesh.Route{{ID: "shop/web/httpRoutes/h", Port: "http", Filters: []mesh.Filter{{Rewrite: &mesh.Rewrite{Path: mesh.PathEdit{Prefix: "/health"}}}}, Backends: []mesh.Backend{{Service: "pci/vault", Port: "http", Weight: 1}}}}}}
	closed := mesh.Invariant{Name: "closed", ID: "invariants/closed", Never: &mesh.Flow{Anyone: true, To: mesh.Target{Services: []mesh.ServiceName{"shop/web"}}}}
	got = Prove(t.Context(), m, at, []mesh.Invariant{closed}, now, 0)
	if len(got) != 1 || !strings.Contains(got[0].Message, "by shop/web/httpRoutes/h and pci/vault/allow/health") {
		t.Errorf("got %v", got)
	}
}

// TestProveOddPaths: a port that takes paths as they are written lets in what only looks like another path.
func TestProveOddPaths(t *testing.T) {
	everyone := []mesh.Peer{{Authenticated: true}}
	allow := func(p ...mesh.PathMatch) mesh.Rule {
		return mesh.Rule{ID: "pci/vault/allow/some", Action: mesh.Allow, From: everyone, Paths: p}
	}
	deny := mesh.Rule{ID: "pci/vault/deny/admin", Action: mesh.DenyRule, From: everyone, Paths: []mesh.PathMatch{{Prefix: "/admin"}}}
	never := []mesh.Invariant{{Name: "admin", ID: "invariants/admin", Never: &mesh.Flow{Anyone: true, To: mesh.Target{Namespace: "pci", Paths: []mesh.PathMatch{{Template: "/admin/{id}"}}}}}}
	for _, c := range []struct {
		rules []mesh.Rule
		odd   string // "": it holds whatever is written
	}{
		{[]mesh.Rule{allow(), deny}, "//admin/x"},
		{[]mesh.Rule{allow(mesh.PathMatch{Prefix: "/public"})}, "/public/../admin/x"},
		{[]mesh.Rule{allow(mesh.PathMatch{Template: "/users/{id}"})}, "/users/x%2F..%2F..%2Fadmin%2Fx"},
		{[]mesh.Rule{allow(mesh.PathMatch{Exact: "/health"})}, ""},
		{[]mesh.Rule{allow(mesh.PathMatch{Prefix: "/public"}), {ID: "pci/vault/deny/all", Action: mesh.DenyRule, From: everyone}}, ""},
	} {
		port := mesh.InboundPort{Name: "http", Port: 80, Protocol: mesh.HTTP1, MTLS: mesh.Strict, Default: mesh.Deny, DefaultID: "pci/vault/default/http"}
		m := &mesh.Mesh{Settings: mesh.Settings{TrustDomain: "mesh.example"}, Inbound: []mesh.Inbound{{Service: "pci/vault", Identities: []string{"spiffe://mesh.example/ns/pci/sa/vault"},
			Rules: c.rules, Ports: []mesh.InboundPort{port}}}}
		got := Prove(t.Context(), m, nil, never, time.Time{}, 0)
		if c.odd == "" && len(got) != 0 || c.odd != "" && (len(got) != 1 || !strings.Contains(got[0].Message, " "+c.odd+" from ")) {
			t.Errorf("%q: %v", c.odd, got)
		}
		m.Inbound[0].Ports[0].CanonicalPaths = true
		if got := Prove(t.Context(), m, nil, never, time.Time{}, 0); len(got) != 0 {
			t.Errorf("where others are refused: %v", got)
		}
	}
}
