package decide

import (
	"net/netip"
	"testing"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

func TestLeave(t *testing.T) {
	networks := func(cidr string, except ...string) []mesh.Network {
		n := mesh.Network{CIDR: netip.MustParsePrefix(cidr)}
		for _, e := range except {
			n.Except = append(n.Except, netip.MustParsePrefix(e))
		}
		return []mesh.Network{n}
	}
	e := &mesh.Egress{Namespace: "shop", Default: mesh.DenyRule, DefaultID: "shop/egress-default", Rules: []mesh.EgressRule{
		{ID: "api", Action: mesh.Allow, Hosts: []string{"*.example.org"}, Ports: []uint16{443}, Protocol: mesh.TLS},
		{ID: "bank", Action: mesh.Allow, Services: []mesh.ServiceName{"shop/pay"}, Hosts: []string{"bank.example"}, Ports: []uint16{80}, Protocol: mesh.HTTP1, OriginateTLS: true},
		{ID: "inner", Action: mesh.DenyRule, Networks: networks("10.0.0.0/8", "10.9.0.0/16")},
		{ID: "lan", Action: mesh.Allow, Networks: networks("10.0.0.0/7"), Ports: []uint16{5432}, Protocol: mesh.TCP},
		{ID: "leak", Action: mesh.DenyRule, Hosts: []string{"leak.example.org"}},
	}}
	open := &mesh.Egress{Namespace: "dev", Default: mesh.Allow, DefaultID: "dev/egress-default", Rules: e.Rules[4:]}
	for _, c := range []struct {
		e                  *mesh.Egress
		caller, host, addr string
		port               uint16
		want               Exit
	}{
		{nil, "shop/web", "x.example.org", "192.0.2.1", 443, Exit{}},
		{e, "shop/web", "x.example.org", "192.0.2.1", 443, Exit{Allowed: true, Rule: "api", Protocol: mesh.TLS}},
		{e, "shop/web", "X.y.Example.org.", "192.0.2.1", 443, Exit{Allowed: true, Rule: "api", Protocol: mesh.TLS}},
		{e, "shop/web", "example.org", "192.0.2.1", 443, Exit{Rule: "shop/egress-default"}},
		{e, "shop/web", "x.example.org", "192.0.2.1", 80, Exit{Rule: "shop/egress-default"}},
		{e, "shop/web", "leak.example.org", "192.0.2.1", 443, Exit{Rule: "leak"}},
		{e, "shop/pay", "bank.example", "192.0.2.1", 80, Exit{Allowed: true, Rule: "bank", Protocol: mesh.HTTP1, OriginateTLS: true}},
		{e, "shop/web", "bank.example", "192.0.2.1", 80, Exit{Rule: "shop/egress-default"}},
		{e, "shop/web", "", "192.0.2.1", 443, Exit{Rule: "shop/egress-default"}},
		{e, "shop/web", "", "11.0.0.1", 5432, Exit{Allowed: true, Rule: "lan", Protocol: mesh.TCP}},
		{e, "shop/web", "", "10.1.0.1", 5432, Exit{Rule: "inner"}},
		{e, "shop/web", "", "10.9.0.1", 5432, Exit{Allowed: true, Rule: "lan", Protocol: mesh.TCP}},
		{e, "shop/web", "", "::ffff:10.1.0.1", 5432, Exit{Rule: "inner"}},
		// A name does not carry a connection past a network that is denied.
		{e, "shop/web", "x.example.org", "10.1.0.1", 443, Exit{Rule: "inner"}},
		// Nor is one judged by a network before it is resolved.
		{e, "shop/web", "x.example.org", "", 443, Exit{Allowed: true, Rule: "api", Protocol: mesh.TLS}},
		{open, "dev/tool", "any.example", "192.0.2.1", 1, Exit{Allowed: true, Rule: "dev/egress-default"}},
		{open, "dev/tool", "leak.example.org", "192.0.2.1", 1, Exit{Rule: "leak"}},
	} {
		d := Departure{Caller: mesh.ServiceName(c.caller), Host: c.host, Port: c.port}
		if c.addr != "" {
			d.Addr = netip.MustParseAddr(c.addr)
		}
		if got := Leave(c.e, &d); got != c.want {
			t.Errorf("%+v: %+v, not %+v", d, got, c.want)
		}
	}
}
