package plan

import (
	"math/rand/v2"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/reconciler/reach"
	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// promise is an invariant at random, in the words of policy.
func (a author) promise() v1alpha1.Invariant {
	to := oneOf(a, v1alpha1.Target{Namespace: oneOf(a, v1alpha1.Label("a"), "b")}, v1alpha1.Target{Service: oneOf(a, authorServices...)},
		v1alpha1.Target{Services: some2(a, authorServices...)}, v1alpha1.Target{})
	if a.chance(30) {
		to.Methods = some2(a, v1alpha1.Method("GET"), "POST")
	}
	if a.chance(50) {
		to.Paths = []v1alpha1.RulePath{oneOf(a, v1alpha1.RulePath{Prefix: "/a"}, v1alpha1.RulePath{Exact: "/b"}, v1alpha1.RulePath{Template: "/a/{x}"})}
	}
	from := oneOf(a, v1alpha1.Caller{Namespace: oneOf(a, v1alpha1.Label("a"), "b")}, v1alpha1.Caller{Service: oneOf(a, authorServices...)}, v1alpha1.Caller{Authenticated: true},
		v1alpha1.Caller{Unauthenticated: true}, v1alpha1.Caller{Identity: oneOf(a, authorCustom...)}, v1alpha1.Caller{Anyone: true})
	switch a.IntN(4) {
	case 0:
		return v1alpha1.Invariant{Always: "mtls", To: &v1alpha1.Target{Namespace: to.Namespace, Service: to.Service, Services: to.Services}}
	case 1:
		return v1alpha1.Invariant{Only: &v1alpha1.Flow{From: from, To: to}}
	}
	return v1alpha1.Invariant{Never: &v1alpha1.Flow{From: from, To: to}}
}

// means are the paths that an application may take a path for.
func means(p string) []string {
	out := []string{p, path.Clean(p)}
	if u, err := url.PathUnescape(p); err == nil {
		out = append(out, path.Clean(u))
	}
	return out
}

// forbids reports whether an invariant forbids a call that a door lets in.
func forbids(i *mesh.Invariant, c *decide.Call, raw bool) bool {
	from, to := []mesh.Peer(nil), i.AlwaysMTLS
	f := i.Never
	if i.Only != nil {
		f = i.Only
	}
	if f != nil {
		from, to = f.From, &f.To
	}
	at := (to.Namespace == "" || to.Namespace == c.Service.Namespace()) && (len(to.Services) == 0 || slices.Contains(to.Services, c.Service)) && (len(to.Ports) == 0 || slices.Contains(to.Ports, c.Port))
	if c.HTTP && !raw {
		at = at && (len(to.Methods) == 0 || slices.Contains(to.Methods, c.Method)) && (len(to.Paths) == 0 || slices.ContainsFunc(to.Paths, func(p mesh.PathMatch) bool {
			return slices.ContainsFunc(means(c.Path), func(s string) bool { return decide.PathMatches(&p, s) })
		}))
	}
	if i.AlwaysMTLS != nil {
		return at && c.Peer == ""
	}
	by := f.Anyone || slices.ContainsFunc(from, func(p mesh.Peer) bool {
		if p.Unauthenticated {
			return c.Peer == ""
		}
		return decide.PeerMatches(&p, c.Peer)
	})
	return at && by == (i.Never != nil)
}

// TestPromises: what a proved invariant forbids, no door lets in, however the path is written; and what breaks another one
// is let in.
func TestPromises(t *testing.T) {
	kept, broken := 0, 0
	for seed := range rounds(40) {
		a := author{rand.New(rand.NewPCG(uint64(seed), 123))}
		p, _, _ := a.valid(t, 0)
		for range 12 {
			q := cloneOf(p)
			q.Invariants = map[string]v1alpha1.Invariant{"i": a.promise()}
			if a.chance(40) { // close what is open, so that more is kept
				for ns := range q.Services {
					for n, s := range q.Services[ns] {
						s.Deny = map[string]v1alpha1.Rule{"k": {From: a.from(), Paths: []v1alpha1.RulePath{oneOf(a, v1alpha1.RulePath{Prefix: "/a"}, v1alpha1.RulePath{Prefix: "/"})}, Ports: []string{"http"}}}
						s.Defaults = oneOf(a, nil, &v1alpha1.Defaults{NonCanonicalPaths: "accept"})
						q.Services[ns][n] = s
					}
				}
			}
			m, at, _ := compiled(q)
			if m == nil {
				continue
			}
			inv := &m.Invariants[0]
			if got := reach.Prove(t.Context(), m, at, m.Invariants, authorNow, 0); len(got) > 0 {
				w, _, err := reach.Counterexample(m, inv, authorNow, 0)
				if w == nil {
					if err == nil {
						t.Fatalf("seed %d: %v without a call", seed, got)
					}
					continue
				}
				broken++
				c := w.Call()
				if allowed, _ := lets(m, &c); w.Direct && !allowed || !forbids(inv, &c, !c.HTTP) {
					t.Fatalf("seed %d: %v is no reason: %+v", seed, got, w)
				}
				continue
			}
			kept++
			for range 300 {
				c := a.call([2]*mesh.Mesh{m, m})[0]
				if c.HTTP && c.Path != "*" && a.chance(40) {
					c.Path = oneOf(a, "/"+c.Path, c.Path+"/..", strings.TrimSuffix(c.Path, "/")+"/../a", c.Path+"%2F..", "/./a/b", "/b/x%2F..%2F..%2Fa", "/%2e%2e/a", "/b/../a/c", "/a;v=1")
				}
				in, _ := m.InboundOf(c.Service)
				port, _ := in.Port(c.Port)
				seen := decide.Seen(port.Protocol, c.Request)
				if v, _ := decide.Admit(in, port, &seen); v.Allowed && forbids(inv, &c, !seen.HTTP) {
					t.Fatalf("seed %d: %+v is proved, and %+v is let in by %s", seed, q.Invariants, c, v.Rule)
				}
			}
		}
	}
	if kept < 20 || broken < 20 {
		t.Errorf("%d kept, %d broken", kept, broken)
	}
	t.Logf("%d kept, %d broken", kept, broken)
}
