package plan

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/heddle-mesh/heddle/reconciler/reach"
	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

func (g *gen) invariant(services []mesh.ServiceName) *mesh.Invariant {
	inv := &mesh.Invariant{Name: "i", ID: "invariants/i"}
	to := mesh.Target{}
	switch g.IntN(3) {
	case 0:
		to.Namespace = pick(g, "s", "t")
	case 1:
		to.Services = []mesh.ServiceName{pick(g, services...)}
	}
	if g.chance(30) {
		to.Ports = []string{"http"}
	}
	if g.chance(30) {
		to.Methods = []string{pick(g, "GET", "PUT")}
	}
	if g.chance(40) {
		to.Paths = []mesh.PathMatch{g.rulePath()}
	}
	f := &mesh.Flow{From: []mesh.Peer{pick(g, mesh.Peer{Prefix: "spiffe://mesh.example/ns/s/"}, mesh.Peer{Identity: id(pick(g, services...))}, mesh.Peer{Unauthenticated: true},
		mesh.Peer{Authenticated: true}, mesh.Peer{Prefix: "spiffe://mesh.example/ns/zz/"})}, To: to}
	switch g.IntN(5) {
	case 0:
		inv.AlwaysMTLS = &to
		to.Methods, to.Paths = nil, nil
	case 1, 2:
		inv.Only = f
	case 3:
		f.From, f.Anyone = nil, true
		inv.Never = f
	default:
		inv.Never = f
	}
	return inv
}

// breaks says whether a call breaks an invariant, written apart from the code under test.
func breaks(m *mesh.Mesh, inv *mesh.Invariant, c *decide.Call) bool {
	f := inv.Never
	if inv.Only != nil {
		f = inv.Only
	}
	to := mesh.Target{}
	if f != nil {
		to = f.To
	} else {
		to = *inv.AlwaysMTLS
	}
	switch {
	case to.Namespace != "" && c.Service.Namespace() != to.Namespace,
		len(to.Services) > 0 && !slices.Contains(to.Services, c.Service),
		len(to.Ports) > 0 && !slices.Contains(to.Ports, c.Port),
		c.HTTP && len(to.Methods) > 0 && !slices.Contains(to.Methods, c.Method),
		c.HTTP && len(to.Paths) > 0 && !decide.PathMatches(&to.Paths[0], c.Path):
		return false
	}
	if inv.AlwaysMTLS != nil {
		return c.Peer == "" && door(m, c)
	}
	from := f.Anyone
	if len(f.From) > 0 {
		p := f.From[0]
		from = p.Unauthenticated && c.Peer == "" || !p.Unauthenticated && decide.PeerMatches(&p, c.Peer)
	}
	if from != (inv.Never != nil) {
		return false
	}
	o := decide.Judge(m, c)
	answered := slices.ContainsFunc(o.Shares, func(s decide.Share) bool { return !s.Mirror && s.Status == 0 && s.Allowed })
	return door(m, c) || answered
}

// TestInvariantsAgainstBruteForce proves random invariants of random meshes and holds the proofs against random calls.
func TestInvariantsAgainstBruteForce(t *testing.T) {
	held, broken, undecided, tried := 0, 0, 0, 0
	for seed := range 1500 {
		g := &gen{Rand: rand.New(rand.NewPCG(uint64(seed), 9)), regex: seed%5 == 0}
		m := g.mesh()
		services := make([]mesh.ServiceName, len(m.Inbound))
		for i := range m.Inbound {
			services[i] = m.Inbound[i].Service
		}
		for range 3 {
			inv := g.invariant(services)
			w, _, err := reach.Counterexample(m, inv, day0, 0)
			switch {
			case err != nil:
				undecided++
				continue
			case w != nil:
				broken++
				c := w.Call()
				if !breaks(m, inv, &c) {
					t.Fatalf("seed %d: %s does not break %s", seed, w.Command(), mesh.Canonical(inv))
				}
				continue
			}
			held++
			for range 100 {
				c := g.call(m, m)
				if c.HTTP && !decide.CanonicalPath(c.Path) {
					continue
				}
				tried++
				if breaks(m, inv, c) {
					t.Fatalf("seed %d: %s %s from %q to %s:%s breaks %s, and it was proved\n%s", seed, c.Method, c.Path, c.Peer, c.Service, c.Port, mesh.Canonical(inv), show(t, m, m))
				}
			}
		}
	}
	t.Logf("%d held (%d calls tried), %d broken, %d undecided", held, tried, broken, undecided)
	if held < 200 || broken < 200 || undecided*5 > held+broken {
		t.Error("the cases are lopsided")
	}
}
