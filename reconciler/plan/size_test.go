package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

// crowded is a mesh of one service whose one port has very much said about it, by what is counted in size.
func crowded(headers, paths, callers, claims, networks, templates int) *mesh.Mesh {
	const n = mesh.ServiceName("s/x")
	in := mesh.Inbound{Service: n, Identities: []string{"spiffe://mesh.example/ns/s/sa/x"}, Ports: []mesh.InboundPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1,
		MTLS: mesh.Strict, Default: mesh.Deny, DefaultID: mesh.DefaultID(n, "http"), CanonicalPaths: true}}}
	add := func(kind string, i int, r mesh.Rule) {
		r.ID, r.Action = fmt.Sprintf("s/x/allow/%s-%04d", kind, i), mesh.Allow
		if r.From == nil {
			r.From = []mesh.Peer{{Authenticated: true}}
		}
		in.Rules = append(in.Rules, r)
	}
	for i := range headers {
		add("header", i, mesh.Rule{Headers: []mesh.HeaderMatch{{Name: fmt.Sprintf("x-%d", i), OneOf: []string{"1", "2"}}}})
	}
	for i := range paths {
		add("path", i, mesh.Rule{Paths: []mesh.PathMatch{{Prefix: fmt.Sprintf("/p%d", i)}}, Methods: []string{"GET"}})
	}
	for i := range callers {
		add("caller", i, mesh.Rule{From: []mesh.Peer{{Identity: fmt.Sprintf("spiffe://mesh.example/ns/t/sa/c%d", i)}}, Methods: []string{"POST"}})
	}
	for i := range claims {
		add("claim", i, mesh.Rule{JWT: &mesh.JWTMatch{Issuer: "idp", Claims: []mesh.ClaimMatch{{Name: fmt.Sprintf("c%d", i), Values: []string{"a", "b"}}}}})
	}
	for i := range networks {
		add("network", i, mesh.Rule{Networks: []mesh.Network{{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i / 256), byte(i), 0}), 24)}}})
	}
	for i := range templates {
		t := ""
		for k := range 12 {
			if (i>>k)&1 == 1 {
				t += "/{v}"
			} else {
				t += "/a"
			}
		}
		add("template", i, mesh.Rule{Paths: []mesh.PathMatch{{Template: t}}})
	}
	slices.SortFunc(in.Rules, func(a, b mesh.Rule) int { return strings.Compare(a.ID, b.ID) })
	return &mesh.Mesh{Settings: mesh.Settings{TrustDomain: "mesh.example"}, Inbound: []mesh.Inbound{in}, Outbound: []mesh.Outbound{{Service: n, Identities: in.Identities,
		Ports: []mesh.OutboundPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1}}}}}
}

// TestCrowded: whatever is said of a port, a change is in the plan, if need be as what may change.
func TestCrowded(t *testing.T) {
	for _, c := range []struct {
		headers, paths, callers, claims, networks, templates int

		one, all bool // decided, of one new rule and of another default
	}{
		{12, 30, 20, 3, 0, 0, false, false}, {0, 0, 0, 30, 0, 0, false, false}, {30, 0, 0, 0, 0, 0, false, false},
		{3, 30, 20, 0, 5, 0, true, false}, {0, 300, 0, 0, 0, 0, true, true}, {0, 100, 300, 0, 0, 0, true, false}, {0, 0, 500, 0, 0, 0, true, true},
		{0, 30, 0, 0, 200, 0, true, true}, {0, 0, 0, 0, 0, 1000, false, false}, {2, 200, 500, 0, 2, 0, false, false},
	} {
		before, after := crowded(c.headers, c.paths, c.callers, c.claims, c.networks, c.templates), crowded(c.headers, c.paths, c.callers, c.claims, c.networks, c.templates)
		after.Inbound[0].Rules = append(after.Inbound[0].Rules, mesh.Rule{ID: "s/x/deny/z", Action: mesh.DenyRule, From: []mesh.Peer{{Authenticated: true}}, Paths: []mesh.PathMatch{{Prefix: "/p1"}}})
		p := Compare(&Side{Mesh: before}, &Side{Mesh: after}, Options{Budget: 200_000})
		if len(p.Lines) == 0 || p.Lines[0].MayChange == c.one {
			t.Errorf("%+v: %d lines", c, len(p.Lines))
		}
		after.Inbound[0].Ports[0].Default, after.Inbound[0].Ports[0].MTLS = mesh.AllAuthenticated, mesh.Permissive
		p = Compare(&Side{Mesh: before}, &Side{Mesh: after}, Options{Budget: 200_000})
		if len(p.Lines) == 0 || slices.ContainsFunc(p.Lines, func(l Line) bool { return l.MayChange }) == c.all || p.Worst() != DropsEncryption {
			t.Errorf("%+v, another default: %d lines", c, len(p.Lines))
		}
	}
}
