package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/reconciler/reach"
	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// egress compares what may leave the mesh: callers × destinations × ports, each cut by the rules of both sides.
func (c *comparison) egress() {
	names := map[string]bool{}
	for i := range c.before.Egress {
		names[c.before.Egress[i].Namespace] = true
	}
	for i := range c.after.Egress {
		names[c.after.Egress[i].Namespace] = true
	}
	for _, ns := range keys(names) {
		b, _ := c.before.EgressOf(ns)
		a, _ := c.after.EgressOf(ns)
		if !same(b, a) {
			c.egressOf(ns, b, a)
		}
	}
}

// way is how a class of destinations is treated.
type way struct {
	allowed bool
	id      string
	how     string // protocol and TLS
}

func (w way) text() string {
	if !w.allowed {
		return "denied"
	}
	if w.how != "" {
		return "allowed, " + w.how
	}
	return "allowed"
}

// leave judges a caller of a namespace that leaves the mesh: deny beats allow, and what no rule names goes by the default;
// a namespace that says nothing says no.
func leave(e *mesh.Egress, caller mesh.ServiceName, host string, addr netip.Addr, port uint16) way {
	if e == nil {
		return way{}
	}
	w := way{id: e.DefaultID, allowed: e.Default == mesh.Allow}
	by := false
	for i := range e.Rules {
		r := &e.Rules[i]
		if len(r.Services) > 0 && !slices.Contains(r.Services, caller) || len(r.Ports) > 0 && !slices.Contains(r.Ports, port) {
			continue
		}
		named := slices.ContainsFunc(r.Hosts, func(h string) bool { return h == "" || host != "" && decide.HostMatches(h, host) })
		inside := slices.ContainsFunc(r.Networks, func(n mesh.Network) bool { return host == "" && decide.InNetwork(&n, addr) })
		if !named && !inside && len(r.Hosts)+len(r.Networks) > 0 {
			continue
		}
		if r.Action == mesh.DenyRule {
			return way{id: r.ID}
		}
		if !by {
			how := string(r.Protocol)
			if r.OriginateTLS {
				how += ", TLS begun by the sidecar"
			}
			w, by = way{allowed: true, id: r.ID, how: how}, true
		}
	}
	return w
}

func (c *comparison) egressOf(ns string, b, a *mesh.Egress) {
	services, hosts, ports := map[string]bool{"": true}, map[string]bool{}, map[uint16]bool{}
	var networks []netip.Prefix
	for _, e := range []*mesh.Egress{b, a} {
		if e == nil {
			continue
		}
		for i := range e.Rules {
			r := &e.Rules[i]
			for _, s := range r.Services {
				services[string(s)] = true
			}
			for _, h := range r.Hosts {
				hosts[h] = true
			}
			for _, p := range r.Ports {
				ports[p] = true
			}
			for _, n := range r.Networks {
				networks = append(append(networks, n.CIDR), n.Except...)
			}
		}
	}
	// Destinations: each host that is named, one under each wildcard, another; each edge of a network, an address outside.
	type place struct {
		host string
		addr netip.Addr
		text string
	}
	other := "x.invalid"
	for len(other) < 64 && slices.ContainsFunc(keys(hosts), func(h string) bool { return decide.HostMatches(h, other) }) {
		other = "x" + other
	}
	places := []place{{host: other, text: "any other host"}}
	for _, h := range keys(hosts) {
		if suffix, ok := strings.CutPrefix(h, "*."); ok {
			fresh := "x"
			for hosts[fresh+"."+suffix] {
				fresh += "x"
			}
			places = append(places, place{host: fresh + "." + suffix, text: h})
		} else if h != "" {
			places = append(places, place{host: h, text: h})
		}
	}
	outside := netip.MustParseAddr("192.0.2.1")
	places = append(places, place{addr: outside, text: "any other address"})
	for _, n := range networks {
		places = append(places, place{addr: n.Masked().Addr(), text: n.String()})
		if next := reach.Last(n).Next(); next.IsValid() {
			places = append(places, place{addr: next, text: "addresses like " + next.String()})
		}
	}
	numbers := []uint16{0}
	for p := range ports {
		numbers = append(numbers, p)
	}
	slices.Sort(numbers)
	type key struct {
		was, is way
	}
	type cell struct{ caller, text string }
	found := map[key][]cell{}
	for _, s := range keys(services) {
		caller := s
		name := mesh.ServiceName(s)
		if s == "" {
			caller, name = "services of "+ns, mesh.ServiceName(ns+"/")
			if len(services) > 1 {
				caller = "other services of " + ns
			}
		}
		for _, p := range places {
			for _, port := range numbers {
				x, y := leave(b, name, p.host, p.addr, port), leave(a, name, p.host, p.addr, port)
				if x.allowed == y.allowed && (!x.allowed || x.how == y.how) {
					continue
				}
				text := p.text + ":" + fmt.Sprint(port)
				if port == 0 {
					text = p.text + ", any other port"
				}
				found[key{x, y}] = append(found[key{x, y}], cell{caller, text})
			}
		}
	}
	for k, cells := range found {
		l := Line{Risk: Widens, Kind: KindEgress, Subject: "egress", To: "outside, from " + ns, Before: k.was.text(), After: k.is.text(),
			WhereBefore: where(c.wasAt, k.was.id), WhereAfter: where(c.isAt, k.is.id)}
		switch {
		case k.was.allowed && k.is.allowed:
			l.Risk = Reroutes
		case k.was.allowed:
			l.Risk = Narrows
		}
		for _, x := range cells {
			if !slices.Contains(l.From, x.caller) {
				l.From = append(l.From, x.caller)
			}
			if !slices.Contains(l.Requests, x.text) {
				l.Requests = append(l.Requests, x.text)
			}
		}
		c.add(l)
	}
	if len(found) == 0 {
		c.value(Line{Risk: Neutral, Kind: KindEgress, Subject: "egress rules", To: "outside, from " + ns}, "as before", "as before", !same(b, a), ns+"/egress-default")
	}
}
