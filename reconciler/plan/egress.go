package plan

import (
	"cmp"
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

// exitText says how a destination is treated.
func exitText(x *decide.Exit) string {
	switch {
	case !x.Allowed:
		return "denied"
	case x.OriginateTLS:
		return "allowed, " + string(x.Protocol) + ", TLS begun by the sidecar"
	case x.Protocol != "":
		return "allowed, " + string(x.Protocol)
	}
	return "allowed"
}

// sameExit reports whether two exits are one to the caller, whatever rule makes them so.
func sameExit(x, y *decide.Exit) bool {
	return x.Allowed == y.Allowed && (!x.Allowed || x.Protocol == y.Protocol && x.OriginateTLS == y.OriginateTLS)
}

// place is a class of destinations, by name or by address.
type place struct {
	host string
	addr netip.Addr
	text string
}

// placesOf are the classes that the rules of some egress tell apart: hosts, the first of which stands for those that none
// names, and addresses, which begin with those outside every network.
func placesOf(sides ...*mesh.Egress) (hosts, addrs []place) {
	names := map[string]bool{}
	var networks []netip.Prefix
	for _, e := range sides {
		if e == nil {
			continue
		}
		for i := range e.Rules {
			for _, h := range e.Rules[i].Hosts {
				names[h] = true
			}
			for _, n := range e.Rules[i].Networks {
				networks = append(append(networks, n.CIDR), n.Except...)
			}
		}
	}
	other := "x.invalid"
	for len(other) < 64 && slices.ContainsFunc(keys(names), func(h string) bool { return decide.HostMatches(h, other) }) {
		other = "x" + other
	}
	hosts = []place{{host: other, text: "any other host"}}
	for _, h := range keys(names) {
		if suffix, ok := strings.CutPrefix(h, "*."); ok {
			fresh := "x"
			for names[fresh+"."+suffix] {
				fresh += "x"
			}
			hosts = append(hosts, place{host: fresh + "." + suffix, text: h})
		} else if h != "" {
			hosts = append(hosts, place{host: h, text: h})
		}
	}
	// A region of addresses begins where a network begins, or behind one's end.
	within := func(a netip.Addr) string {
		in := make([]byte, len(networks))
		for i, n := range networks {
			in[i] = '0'
			if n.Contains(a) {
				in[i] = '1'
			}
		}
		return string(in)
	}
	seen := map[string]bool{}
	put := func(a netip.Addr, text string) {
		if a.IsValid() && !seen[within(a)] {
			seen[within(a)] = true
			addrs = append(addrs, place{addr: a, text: text})
		}
	}
	put(netip.MustParseAddr("192.0.2.1"), "any other address") // of RFC 5737
	if !strings.Contains(within(addrs[0].addr), "1") {
		put(netip.MustParseAddr("2001:db8::1"), "any other address") // of RFC 3849
	} else {
		addrs[0].text = "addresses like " + addrs[0].addr.String()
		put(netip.MustParseAddr("2001:db8::1"), "addresses like 2001:db8::1")
	}
	for _, n := range networks {
		put(n.Masked().Addr(), n.String())
		if next := reach.Last(n).Next(); next.IsValid() {
			put(next, "addresses like "+next.String())
		}
	}
	return hosts, addrs
}

func (c *comparison) egressOf(ns string, b, a *mesh.Egress) {
	services, ports := map[string]bool{"": true}, map[uint16]bool{}
	for _, e := range []*mesh.Egress{b, a} {
		if e == nil {
			continue
		}
		for i := range e.Rules {
			for _, s := range e.Rules[i].Services {
				services[string(s)] = true
			}
			for _, p := range e.Rules[i].Ports {
				ports[p] = true
			}
		}
	}
	hosts, addrs := placesOf(b, a)
	numbers := []uint16{0} // any other port
	for p := range ports {
		numbers = append(numbers, p)
	}
	slices.Sort(numbers)
	to := "outside, from " + ns
	if len(services)*len(hosts)*len(addrs)*len(numbers) > cmp.Or(c.o.Budget, reach.Budget) {
		c.add(Line{Risk: Widens, MayChange: true, Kind: KindEgress, Subject: "egress", To: to, Before: "too many combinations of destinations to compare them all", After: "may change",
			WhereBefore: where(c.wasAt, idOf(b)), WhereAfter: where(c.isAt, idOf(a))})
		return
	}
	type key struct{ was, is decide.Exit }
	type seen struct{ caller, text string }
	found := map[key][]seen{}
	for _, s := range keys(services) {
		caller, name := s, mesh.ServiceName(s)
		if s == "" {
			caller, name = "services of "+ns, mesh.ServiceName(ns+"/")
			if len(services) > 1 {
				caller = "other services of " + ns
			}
		}
		for _, port := range numbers {
			judge := func(host, addr *place) key {
				d := decide.Departure{Caller: name, Host: host.host, Addr: addr.addr, Port: port}
				return key{decide.Leave(b, &d), decide.Leave(a, &d)}
			}
			note := func(k key, text string) {
				if port == 0 {
					text += ", any other port"
				} else {
					text += ":" + fmt.Sprint(port)
				}
				if !sameExit(&k.was, &k.is) {
					found[k] = append(found[k], seen{caller, text})
				}
			}
			byAddr := make([]key, len(addrs))
			for i := range addrs {
				byAddr[i] = judge(&place{}, &addrs[i])
				note(byAddr[i], addrs[i].text)
			}
			for i := range hosts {
				byHost := judge(&hosts[i], &addrs[0])
				note(byHost, hosts[i].text)
				for j := 1; j < len(addrs); j++ {
					// What the name alone or the address alone already says needs no line of its own.
					if both := judge(&hosts[i], &addrs[j]); both != byHost && both != byAddr[j] {
						note(both, hosts[i].text+" at "+addrs[j].text)
					}
				}
			}
		}
	}
	for k, places := range found {
		l := Line{Risk: Widens, Kind: KindEgress, Subject: "egress", To: to, Before: exitText(&k.was), After: exitText(&k.is),
			WhereBefore: where(c.wasAt, k.was.Rule), WhereAfter: where(c.isAt, k.is.Rule)}
		switch {
		case k.was.Allowed && k.is.Allowed:
			l.Risk = Reroutes
			if k.was.OriginateTLS && !k.is.OriginateTLS {
				l.Risk = DropsEncryption
			}
		case k.was.Allowed:
			l.Risk = Narrows
		}
		for _, x := range places {
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
		c.value(Line{Risk: Neutral, Kind: KindEgress, Subject: "egress rules", To: to}, "as before", "as before", !same(b, a), ns+"/egress-default")
	}
}

// idOf names what decides about destinations that no rule names.
func idOf(e *mesh.Egress) string {
	if e == nil {
		return ""
	}
	return e.DefaultID
}
