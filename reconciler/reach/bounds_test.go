package reach

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// heavy is a mesh of services whose ports take rather less than one port's budget each, if a call by headers is to be
// looked for that none allows.
func heavy(services, headers int) *mesh.Mesh {
	m := &mesh.Mesh{Settings: mesh.Settings{TrustDomain: "mesh.example"}}
	for i := range services {
		n := mesh.Name("s", fmt.Sprintf("x%03d", i))
		in := mesh.Inbound{Service: n, Identities: []string{"spiffe://mesh.example/ns/s/sa/" + n.Local()}, Ports: []mesh.InboundPort{{
			Name: "http", Port: 80, Protocol: mesh.HTTP1, MTLS: mesh.Strict, Default: mesh.Deny, DefaultID: mesh.DefaultID(n, "http")}}}
		for h := range headers {
			in.Rules = append(in.Rules, mesh.Rule{ID: fmt.Sprintf("%s/allow/%d", n, h), Action: mesh.Allow, From: []mesh.Peer{{Identity: "spiffe://mesh.example/a"}},
				Methods: []string{"GET"}, Headers: []mesh.HeaderMatch{{Name: fmt.Sprintf("h%d", h), Exact: "v"}}})
		}
		m.Inbound = append(m.Inbound, in)
		m.Outbound = append(m.Outbound, mesh.Outbound{Service: n, Identities: in.Identities, Ports: []mesh.OutboundPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1}}})
	}
	return m
}

// TestProveTogether: what every port of a namespace could take by itself is bounded for all of them together, and what is
// not tried is undecided. A proof that nobody waits for ends.
func TestProveTogether(t *testing.T) {
	never := mesh.Invariant{Name: "no posts", ID: "invariants/no posts", Never: &mesh.Flow{From: []mesh.Peer{{Identity: "spiffe://mesh.example/a"}},
		To: mesh.Target{Namespace: "s", Methods: []string{"POST"}}}}
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	if got := Prove(t.Context(), heavy(3, 4), nil, []mesh.Invariant{never}, now, 0); len(got) > 0 {
		t.Errorf("three small ports: %v", got)
	}
	// Each port may take all that one port may; together they are too many.
	got := Prove(t.Context(), heavy(200, 11), nil, slices.Repeat([]mesh.Invariant{never}, 3), now, 0)
	if len(got) == 0 || got[0].ID != diag.InvariantUndecided || !strings.Contains(got[0].Message, "all invariants together") {
		t.Errorf("two hundred: %v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := Prove(ctx, heavy(200, 11), nil, []mesh.Invariant{never}, now, 0); len(got) != 1 || !strings.Contains(got[0].Message, context.Canceled.Error()) {
		t.Errorf("cancelled: %v", got)
	}
}

// TestCutsAreBounded: rules whose combinations alone are too many are refused before they are multiplied out.
func TestCutsAreBounded(t *testing.T) {
	const n = mesh.ServiceName("s/x")
	for name, rule := range map[string]func(i int, r *mesh.Rule){
		"prefixes × suffixes": func(i int, r *mesh.Rule) {
			r.From = []mesh.Peer{{Prefix: fmt.Sprintf("spiffe://mesh.example/%d/", i)}, {Suffix: fmt.Sprintf("/sa/%d", i)}}
		},
		"methods": func(i int, r *mesh.Rule) { r.Methods = []string{fmt.Sprintf("M%d", i), fmt.Sprintf("N%d", i)} },
		"networks": func(i int, r *mesh.Rule) {
			r.Networks = []mesh.Network{{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)}}
		},
	} {
		m := heavy(1, 0)
		m.Inbound[0].Service, m.Outbound[0].Service = n, n
		for i := range 10_000 {
			r := mesh.Rule{ID: fmt.Sprintf("%s/allow/%05d", n, i), Action: mesh.Allow, From: []mesh.Peer{{Authenticated: true}}}
			rule(i, &r)
			m.Inbound[0].Rules = append(m.Inbound[0].Rules, r)
		}
		if s, err := New(&Question{Service: n, Port: "http", Meshes: []*mesh.Mesh{m}, Callers: NewCallers(m)}); err == nil || s.Spent() > Budget {
			t.Errorf("%s: %v after %d steps", name, err, s.Spent())
		}
	}
}
