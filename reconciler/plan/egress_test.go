package plan

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

func (g *gen) egress() *mesh.Egress {
	e := &mesh.Egress{Namespace: "s", Default: pick(g, mesh.DenyRule, mesh.Allow), DefaultID: "s/egress-default"}
	for range g.IntN(4) {
		r := mesh.EgressRule{ID: "s/egress/" + pick(g, "a", "b", "c", "d"), Action: pick(g, mesh.Allow, mesh.DenyRule), Ports: []uint16{pick(g, uint16(25), 443)}, Protocol: pick(g, mesh.TLS, mesh.TCP)}
		if g.chance(50) {
			r.Hosts = []string{pick(g, "a.example", "*.example", "*.b.example", "x.example")}
		} else {
			n := mesh.Network{CIDR: netip.MustParsePrefix(pick(g, "10.0.0.0/8", "10.0.0.0/9", "198.51.100.0/24", "0.0.0.0/0"))}
			if g.chance(40) {
				n.Except = []netip.Prefix{netip.MustParsePrefix(pick(g, "10.0.0.0/9", "10.0.0.0/10"))}
			}
			r.Networks = []mesh.Network{n}
		}
		if g.chance(40) {
			r.Services = []mesh.ServiceName{pick(g, names[0], names[1])}
		}
		e.Rules = append(e.Rules, r)
	}
	slices.SortFunc(e.Rules, func(a, b mesh.EgressRule) int { return strings.Compare(a.ID, b.ID) })
	e.Rules = slices.CompactFunc(e.Rules, func(a, b mesh.EgressRule) bool { return a.ID == b.ID })
	return e
}

// TestEgressAgainstBruteForce: a destination that is newly let out, or no longer, has a line of that risk and port.
func TestEgressAgainstBruteForce(t *testing.T) {
	differing := 0
	for seed := range 1000 {
		g := &gen{Rand: rand.New(rand.NewPCG(uint64(seed), 5))}
		b, a := &mesh.Mesh{Egress: []mesh.Egress{*g.egress()}}, &mesh.Mesh{Egress: []mesh.Egress{*g.egress()}}
		p := Compare(&Side{Mesh: b}, &Side{Mesh: a}, Options{})
		named := map[uint16]bool{}
		for _, r := range slices.Concat(a.Egress[0].Rules, b.Egress[0].Rules) {
			named[r.Ports[0]] = true
		}
		for range 200 {
			caller, port := pick(g, names[0], names[1], "s/zz"), pick(g, uint16(25), 443, 8080)
			host, addr := "", netip.MustParseAddr(pick(g, "10.1.1.1", "10.65.1.1", "10.200.0.1", "198.51.100.9", "203.0.113.9", "11.0.0.1"))
			if g.chance(50) {
				host = pick(g, "a.example", "x.example", "zz.example", "x.b.example", "zz.test")
			}
			d := decide.Departure{Caller: caller, Host: host, Addr: addr, Port: port}
			was, is := decide.Leave(&b.Egress[0], &d), decide.Leave(&a.Egress[0], &d)
			if was.Allowed == is.Allowed {
				continue
			}
			differing++
			risk, who, on := Narrows, string(caller), ":443"
			if is.Allowed {
				risk = Widens
			}
			switch port {
			case 25:
				on = ":25"
			case 8080:
				on = ", any other port"
			}
			if !slices.ContainsFunc(p.Lines, func(l Line) bool {
				return l.Risk == risk && l.Kind == KindEgress &&
					slices.ContainsFunc(l.From, func(f string) bool {
						return f == who || strings.HasPrefix(f, "services of") || strings.HasPrefix(f, "other services of")
					}) &&
					slices.ContainsFunc(l.Requests, func(r string) bool {
						return strings.HasSuffix(r, on) || strings.HasSuffix(r, ", any other port") && !named[port]
					}) &&
					len(l.WhereBefore)+len(l.WhereAfter) > 0 && (l.WhereBefore[0].ID == was.Rule && l.WhereAfter[0].ID == is.Rule)
			}) {
				t.Fatalf("seed %d: %s to %s%s%s is %s and then %s (%s, %s), in none of %d lines", seed, caller, host, addr, on, exitText(&was), exitText(&is), was.Rule, is.Rule, len(p.Lines))
			}
		}
	}
	if differing < 10_000 {
		t.Errorf("only %d differ", differing)
	}
}
