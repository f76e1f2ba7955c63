package plan

import (
	"testing"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// TestGuards: what judges the next commit is in the plan though no call is judged otherwise, and what is relaxed widens.
func TestGuards(t *testing.T) {
	type setting func(*v1alpha1.Policy)
	mandates := func(m v1alpha1.Mandates) setting {
		return func(p *v1alpha1.Policy) { p.Mesh.Mandates = &m }
	}
	source := func(s v1alpha1.Source) setting {
		return func(p *v1alpha1.Policy) { p.Mesh.Sources = map[string]v1alpha1.Source{"pay": s} }
	}
	pay := v1alpha1.Source{Directory: "teams/pay", Namespaces: []string{"pay", "pay-*"}, Kinds: []string{"services"}}
	with := func(change func(*v1alpha1.Source)) setting {
		s := pay
		change(&s)
		return source(s)
	}
	expectations := func(names ...string) setting {
		return func(p *v1alpha1.Policy) {
			p.Tests = map[string]v1alpha1.Test{}
			for _, n := range names {
				p.Tests[n[:1]] = v1alpha1.Test{From: "-", To: "shop/web", Expect: n}
			}
		}
	}
	nothing := func(*v1alpha1.Policy) {}
	for _, c := range []struct {
		was, is       setting
		risk          Risk // "": no line
		to            string
		before, after string
	}{
		{mandates(v1alpha1.Mandates{Mtls: "strict"}), nothing, Widens, "mesh.mandates.mtls", "strict", "none"},
		{nothing, mandates(v1alpha1.Mandates{Mtls: "strict"}), Neutral, "mesh.mandates.mtls", "none", "strict"},
		{mandates(v1alpha1.Mandates{EgressPolicy: "deny"}), mandates(v1alpha1.Mandates{}), Widens, "mesh.mandates.egressPolicy", "deny", "none"},
		{mandates(v1alpha1.Mandates{InboundPolicy: "deny"}), nothing, Widens, "mesh.mandates.inboundPolicy", "deny", "none"},
		{mandates(v1alpha1.Mandates{MaxTimeout: "30s"}), nothing, Widens, "mesh.mandates.maxTimeout", "30s", "none"},
		{mandates(v1alpha1.Mandates{MaxTimeout: "30s"}), mandates(v1alpha1.Mandates{MaxTimeout: "1m"}), Widens, "mesh.mandates.maxTimeout", "30s", "1m"},
		{mandates(v1alpha1.Mandates{MaxTimeout: "60s"}), mandates(v1alpha1.Mandates{MaxTimeout: "1m"}), "", "", "", ""},
		{mandates(v1alpha1.Mandates{MaxTimeout: "60s"}), mandates(v1alpha1.Mandates{MaxTimeout: "5s"}), Neutral, "mesh.mandates.maxTimeout", "1m", "5s"},
		{mandates(v1alpha1.Mandates{MaxRetries: ptr[int64](0)}), nothing, Widens, "mesh.mandates.maxRetries", "0", "none"},
		{mandates(v1alpha1.Mandates{MaxRetries: ptr[int64](1)}), mandates(v1alpha1.Mandates{MaxRetries: ptr[int64](2)}), Widens, "mesh.mandates.maxRetries", "1", "2"},
		{mandates(v1alpha1.Mandates{Exempt: []v1alpha1.ServiceName{"b/b", "a/a"}}), mandates(v1alpha1.Mandates{Exempt: []v1alpha1.ServiceName{"a/a", "b/b"}}), "", "", "", ""},
		{mandates(v1alpha1.Mandates{Exempt: []v1alpha1.ServiceName{"b/b"}}), mandates(v1alpha1.Mandates{Exempt: []v1alpha1.ServiceName{"b/b", "a/a"}}), Widens, "mesh.mandates.exempt", "b/b", "a/a b/b"},
		{mandates(v1alpha1.Mandates{Exempt: []v1alpha1.ServiceName{"b/b", "a/a"}}), mandates(v1alpha1.Mandates{Exempt: []v1alpha1.ServiceName{"b/b"}}), Neutral, "mesh.mandates.exempt", "a/a b/b", "b/b"},
		{nothing, source(pay), Widens, "mesh.sources.pay", "none", "teams/pay writes services of pay pay-*"},
		{source(pay), nothing, Neutral, "mesh.sources.pay", "teams/pay writes services of pay pay-*", "none"},
		{source(pay), with(func(s *v1alpha1.Source) { s.Namespaces = []string{"pay-eu"} }), Neutral, "mesh.sources.pay", "teams/pay writes services of pay pay-*", "teams/pay writes services of pay-eu"},
		{source(pay), with(func(s *v1alpha1.Source) { s.Namespaces = []string{"pa*"} }), Widens, "mesh.sources.pay", "teams/pay writes services of pay pay-*", "teams/pay writes services of pa*"},
		{source(pay), with(func(s *v1alpha1.Source) { s.Kinds = nil }), Widens, "mesh.sources.pay", "teams/pay writes services of pay pay-*", "teams/pay writes defaults egress groups services workloads of pay pay-*"},
		{source(pay), with(func(s *v1alpha1.Source) { s.Directory = "teams/p" }), Widens, "mesh.sources.pay", "teams/pay writes services of pay pay-*", "teams/p writes services of pay pay-*"},
		{expectations("allow", "deny"), expectations("b", "deny"), Neutral, "tests", "2", "2: 1 removed, 1 added"},
		{expectations("allow", "deny"), expectations("a", "deny"), Neutral, "tests", "2", "2: 1 changed"},
		{expectations("allow", "deny"), expectations("deny", "allow"), "", "", "", ""},
	} {
		side := func(set setting, line int) *Side {
			d := &v1alpha1.Document{Policy: v1alpha1.Policy{Mesh: &v1alpha1.Mesh{}}, Positions: map[string]diag.Pos{}}
			set(&d.Policy)
			for _, path := range []string{"mesh", "tests", c.to} {
				d.Positions[path] = diag.Pos{File: "mesh.cue", Line: line}
			}
			return &Side{Mesh: &mesh.Mesh{Settings: mesh.Settings{TrustDomain: "mesh.example"}}, Document: d}
		}
		p := Compare(side(c.was, 3), side(c.is, 4), Options{})
		if c.risk == "" {
			if !p.Empty() {
				t.Errorf("%+v", p.Lines)
			}
			continue
		}
		if len(p.Lines) != 1 {
			t.Errorf("%s: %d lines", c.to, len(p.Lines))
			continue
		}
		l := &p.Lines[0]
		if l.Risk != c.risk || l.Kind != KindGuard || l.To != c.to || l.Before != c.before || l.After != c.after ||
			len(l.WhereBefore) != 1 || l.WhereBefore[0].Pos.Line != 3 || len(l.WhereAfter) != 1 || l.WhereAfter[0].Pos.Line != 4 {
			t.Errorf("want %+v, got %+v", c, l)
		}
	}
	// Documents that are not known say nothing.
	if p := Compare(&Side{Mesh: &mesh.Mesh{}}, &Side{Mesh: &mesh.Mesh{}, Document: &v1alpha1.Document{}}, Options{}); !p.Empty() {
		t.Errorf("%+v", p.Lines)
	}
}

// TestInvariantGuards: an invariant that surely forbids no less than it did is not relaxed; every other change widens.
func TestInvariantGuards(t *testing.T) {
	dev, qa := mesh.Peer{Prefix: "spiffe://mesh.example/ns/dev/"}, mesh.Peer{Identity: "spiffe://mesh.example/ns/qa/sa/x"}
	pci := mesh.Target{Namespace: "pci"}
	vault := mesh.Target{Services: []mesh.ServiceName{"pci/vault"}}
	admin := mesh.Target{Namespace: "pci", Paths: []mesh.PathMatch{{Prefix: "/admin"}}}
	never := func(f mesh.Flow) *mesh.Invariant { return &mesh.Invariant{Name: "i", ID: "invariants/i", Never: &f} }
	only := func(f mesh.Flow) *mesh.Invariant { return &mesh.Invariant{Name: "i", ID: "invariants/i", Only: &f} }
	always := func(to mesh.Target) *mesh.Invariant {
		return &mesh.Invariant{Name: "i", ID: "invariants/i", AlwaysMTLS: &to}
	}
	for i, c := range []struct {
		was, is *mesh.Invariant
		risk    Risk
	}{
		{nil, always(pci), Neutral},
		{always(pci), nil, Widens},
		{always(pci), always(mesh.Target{}), Neutral},
		{always(mesh.Target{}), always(pci), Widens},
		{always(vault), always(pci), Neutral},
		{always(pci), always(vault), Widens},
		{always(pci), never(mesh.Flow{Anyone: true, To: pci}), Widens}, // it may forbid more, but that is not for a plan to find
		{never(mesh.Flow{From: []mesh.Peer{dev}, To: pci}), never(mesh.Flow{From: []mesh.Peer{dev, qa}, To: pci}), Neutral},
		{never(mesh.Flow{From: []mesh.Peer{dev, qa}, To: pci}), never(mesh.Flow{From: []mesh.Peer{dev}, To: pci}), Widens},
		{never(mesh.Flow{From: []mesh.Peer{dev}, To: pci}), never(mesh.Flow{Anyone: true, To: pci}), Neutral},
		{never(mesh.Flow{Anyone: true, To: pci}), never(mesh.Flow{From: []mesh.Peer{dev}, To: pci}), Widens},
		{never(mesh.Flow{From: []mesh.Peer{dev}, To: admin}), never(mesh.Flow{From: []mesh.Peer{dev}, To: pci}), Neutral},
		{never(mesh.Flow{From: []mesh.Peer{dev}, To: pci}), never(mesh.Flow{From: []mesh.Peer{dev}, To: admin}), Widens},
		{only(mesh.Flow{From: []mesh.Peer{dev}, To: pci}), only(mesh.Flow{From: []mesh.Peer{dev, qa}, To: pci}), Widens},
		{only(mesh.Flow{From: []mesh.Peer{dev, qa}, To: pci}), only(mesh.Flow{From: []mesh.Peer{dev}, To: pci}), Neutral},
	} {
		side := func(i *mesh.Invariant) *Side {
			m := &mesh.Mesh{Settings: mesh.Settings{TrustDomain: "mesh.example"}}
			if i != nil {
				m.Invariants = []mesh.Invariant{*i}
			}
			return &Side{Mesh: m}
		}
		if p := Compare(side(c.was), side(c.is), Options{}); len(p.Lines) != 1 || p.Lines[0].Risk != c.risk || p.Lines[0].Kind != KindGuard {
			t.Errorf("%d: want %s, got %+v", i, c.risk, p.Lines)
		}
	}
}
