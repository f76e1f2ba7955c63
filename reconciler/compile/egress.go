package compile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// egressDefaultID is the id of what decides about destinations that no entry of a namespace names.
func egressDefaultID(ns string) string { return ns + "/egress-default" }

func egressID(ns, name string) string { return ns + "/egress/" + name }

// compileEgress compiles what is said of destinations outside the mesh, one element a namespace that says anything.
func (c *compiler) compileEgress(outer defaults) (out []mesh.Egress) {
	namespaces := map[string]bool{}
	for ns := range c.doc.Policy.Services {
		namespaces[ns] = true
	}
	for ns := range c.doc.Policy.Namespaces {
		namespaces[ns] = true
	}
	for ns := range c.doc.Policy.Egress {
		namespaces[ns] = true
		c.checkLabel(path("egress").at(ns), "namespace", ns)
	}
	for _, ns := range sortedKeys(namespaces) {
		def := outer.egress
		if d, ok := c.levels[ns]; ok {
			def = d.egress
		}
		src := c.doc.Policy.Egress[ns]
		if !def.set() && len(src) == 0 {
			continue
		}
		e := mesh.Egress{Namespace: ns, Default: def.v, DefaultID: egressDefaultID(ns)}
		c.origins[e.DefaultID] = c.pos(path("egress").at(ns))
		if def.set() {
			c.origins[e.DefaultID] = c.pos(def.from)
		}
		if def.v == mesh.Allow {
			c.need(&e.Needs, mesh.CapEgress, def.from, `egressPolicy "allow"`)
		}
		var entries []egressEntry
		for _, name := range sortedKeys(src) {
			entries = append(entries, c.egressRule(&e, ns, name, src[name]))
		}
		c.checkOverlaps(entries)
		for _, entry := range entries {
			e.Rules = append(e.Rules, entry.rule)
		}
		e.Needs = set(e.Needs)
		out = append(out, e)
	}
	return out
}

// egressEntry is an entry while it is being compiled.
type egressEntry struct {
	at   path
	rule mesh.EgressRule
}

func (c *compiler) egressRule(e *mesh.Egress, ns, name string, src v1alpha1.Egress) egressEntry {
	at := path("egress").at(ns, name)
	r := mesh.EgressRule{ID: egressID(ns, name), Action: mesh.Allow, OriginateTLS: src.OriginateTLS}
	c.checkRuleName(at, "egress entry", name)
	c.origins[r.ID] = c.pos(at)
	c.need(&e.Needs, mesh.CapEgress, at, "egress")
	switch src.Action {
	case "", string(mesh.Allow):
	case string(mesh.DenyRule):
		r.Action = mesh.DenyRule
	default:
		c.find(diag.WrongValue, at.at("action"), fmt.Sprintf("%q is no action", src.Action), `write "allow" or "deny"`)
	}
	for _, l := range []struct {
		field string
		n     int
		isNil bool
	}{{"hosts", len(src.Hosts), src.Hosts == nil}, {"networks", len(src.Networks), src.Networks == nil}, {"ports", len(src.Ports), src.Ports == nil}, {"services", len(src.Services), src.Services == nil}} {
		if c.empty(at.at(l.field), l.n, l.isNil) {
			c.find(diag.WrongValue, at.at(l.field), "an empty list names nothing", "leave the field out, or name what is meant")
		}
	}
	if len(src.Hosts)+len(src.Networks) == 0 {
		c.find(diag.MissingField, at, "the entry names no destination", `write hosts: ["api.example.org"], or networks`)
	}
	r.Hosts = set(c.hosts(at.at("hosts"), hostnames(src.Hosts)))
	for i, h := range r.Hosts {
		if strings.HasSuffix(h, mesh.HostSuffix) {
			j := slices.IndexFunc(src.Hosts, func(s v1alpha1.Hostname) bool { return strings.EqualFold(string(s), h) })
			c.find(diag.WrongValue, at.at("hosts").index(max(i, j)), fmt.Sprintf("%s is a name of the mesh, which egress never decides about", h),
				"delete it: the service's own rules say who may call it")
		}
	}
	r.Networks = c.networks(at.at("networks"), src.Networks)
	seen := map[string]path{}
	for i, p := range src.Ports {
		n := c.portNumber(at.at("ports").index(i), p)
		c.once(seen, fmt.Sprint(n), at.at("ports").index(i), "port")
		r.Ports = append(r.Ports, n)
	}
	if len(r.Ports) == 0 {
		r.Ports = []uint16{mesh.BuiltInEgressPort}
	}
	slices.Sort(r.Ports)
	r.Ports = slices.Compact(r.Ports)
	seen = map[string]path{}
	for i, s := range src.Services {
		at := at.at("services").index(i)
		c.once(seen, s, at, "service")
		if c.services[mesh.Name(ns, s)] != nil {
			r.Services = append(r.Services, mesh.Name(ns, s))
		} else if !c.unread(mesh.Name(ns, s)) {
			c.unknownLocal(at, ns, s, "callers of an egress entry are services of its own namespace")
		}
	}
	r.Services = set(r.Services)
	r.Protocol = mesh.Detect
	switch {
	case src.Protocol != "":
		r.Protocol = c.protocol(at.at("protocol"), mesh.Protocol(src.Protocol))
	case len(r.Ports) == 1 && r.Ports[0] == mesh.BuiltInEgressPort && !r.OriginateTLS:
		r.Protocol = mesh.TLS
	}
	if r.OriginateTLS {
		switch field := at.at("originateTLS"); {
		case r.Action == mesh.DenyRule:
			c.find(diag.WrongValue, field, "what is denied is never connected to", "leave originateTLS out")
		case r.Protocol == mesh.TLS:
			c.find(diag.WrongProtocol, field, "the application speaks TLS by itself there, so the sidecar cannot begin it",
				"say what the application speaks in plaintext, or leave originateTLS out", c.pos(at.at("protocol")))
		case len(r.Hosts) == 0:
			c.find(diag.MissingField, field, "TLS needs the name of the server to check its certificate by", "name hosts")
		default:
			c.need(&e.Needs, mesh.CapEgressTLS, field, "TLS origination")
		}
	}
	return egressEntry{at, r}
}

// checkOverlaps finds entries of a namespace that say different things of one destination. Deny beats allow, so that a
// narrower deny is an exception from a wider allow; an allow that a deny covers whole is not.
func (c *compiler) checkOverlaps(entries []egressEntry) {
	for i := range entries {
		for j := range i {
			a, b := &entries[j].rule, &entries[i].rule
			c.spend(entries[i].at, 1+len(a.Services)*len(b.Services)+len(a.Ports)*len(b.Ports)+len(a.Hosts)*len(b.Hosts)+len(a.Networks)*len(b.Networks))
			if !meet(a.Services, b.Services) || !slices.ContainsFunc(a.Ports, func(p uint16) bool { return slices.Contains(b.Ports, p) }) {
				continue
			}
			at, by := entries[i].at, entries[j].at
			if a.Action != b.Action {
				allow, deny := a, b
				if a.Action == mesh.DenyRule {
					allow, deny = b, a
				} else {
					at, by = by, at
				}
				if what := denied(allow, deny); what != "" {
					c.find(diag.EgressOverlap, at, fmt.Sprintf("%s is denied by %q, so this entry never lets anybody there", what, localID(deny.ID)),
						"deny beats allow: delete one of them, or narrow the deny", c.pos(by))
				}
				continue
			}
			if a.Action == mesh.Allow && (a.Protocol != b.Protocol || a.OriginateTLS != b.OriginateTLS) {
				if what := common(a, b); what != "" {
					c.find(diag.EgressOverlap, at, fmt.Sprintf("%s is in %q too, with another protocol or originateTLS", what, localID(a.ID)),
						"let the entries agree, or name each destination in one of them", c.pos(by))
				}
			}
		}
	}
}

// meet reports whether two lists, of which an empty one stands for all, have something in common.
func meet(a, b []mesh.ServiceName) bool {
	return len(a) == 0 || len(b) == 0 || slices.ContainsFunc(a, func(s mesh.ServiceName) bool { return slices.Contains(b, s) })
}

// denied names a destination of an allow entry that a deny entry covers whole, for all of its callers and ports; "" for
// none.
func denied(allow, deny *mesh.EgressRule) string {
	if len(deny.Services) > 0 && (len(allow.Services) == 0 || slices.ContainsFunc(allow.Services, func(s mesh.ServiceName) bool { return !slices.Contains(deny.Services, s) })) ||
		slices.ContainsFunc(allow.Ports, func(p uint16) bool { return !slices.Contains(deny.Ports, p) }) {
		return ""
	}
	for _, h := range allow.Hosts {
		if slices.ContainsFunc(deny.Hosts, func(d string) bool { return coversHost(d, h) }) {
			return h
		}
	}
	for _, n := range allow.Networks {
		if slices.ContainsFunc(deny.Networks, func(d mesh.Network) bool { return coversNetwork(d, n.CIDR) }) {
			return n.CIDR.String()
		}
	}
	return ""
}

// common names a destination that two entries share, "" for none.
func common(a, b *mesh.EgressRule) string {
	for _, h := range a.Hosts {
		for _, g := range b.Hosts {
			if coversHost(h, g) {
				return g
			}
			if coversHost(g, h) {
				return h
			}
		}
	}
	for _, n := range a.Networks {
		for _, m := range b.Networks {
			if !n.CIDR.Overlaps(m.CIDR) {
				continue
			}
			narrow := n.CIDR
			if m.CIDR.Bits() > narrow.Bits() {
				narrow = m.CIDR
			}
			if !covered(narrow, slices.Concat(n.Except, m.Except)) {
				return narrow.String()
			}
		}
	}
	return ""
}

// coversHost reports whether every name of b is one of a.
func coversHost(a, b string) bool {
	if suffix, ok := strings.CutPrefix(a, "*"); ok {
		return a == b || strings.HasSuffix(b, suffix)
	}
	return a == b
}

// coversNetwork reports whether every address of p is one of n.
func coversNetwork(n mesh.Network, p netip.Prefix) bool {
	return contains(n.CIDR, p) && !slices.ContainsFunc(n.Except, p.Overlaps)
}

// contains reports whether every address of inner is one of outer.
func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

func hostnames(names []v1alpha1.Hostname) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = string(n)
	}
	return out
}

// hosts compiles host names to lower case, in the author's order.
func (c *compiler) hosts(at path, names []string) (out []string) {
	seen := map[string]path{}
	for i, n := range names {
		if h := c.host(at.index(i), n, true); h != "" {
			c.once(seen, h, at.index(i), "host name")
			out = append(out, h)
		}
	}
	return out
}

// host compiles one host name; wild says whether it may begin with "*.". It is "" for none and after a finding.
func (c *compiler) host(at path, name string, wild bool) string {
	if name == "" {
		return ""
	}
	lower := strings.ToLower(name)
	rest, starred := strings.CutPrefix(lower, "*.")
	bad := func(hint string) string {
		c.find(diag.WrongValue, at, fmt.Sprintf("%q is no host name", name), hint)
		return ""
	}
	if starred && !wild {
		return bad("write one whole name")
	}
	if _, err := netip.ParseAddr(rest); err == nil {
		return bad("addresses stand in networks, as in cidr: \"" + rest + "/32\"")
	}
	if len(rest) > 253 {
		return bad("a name has at most 253 characters (RFC 1035)")
	}
	for label := range strings.SplitSeq(rest, ".") {
		if !named(label, "-_", false) {
			return bad(`write a name as in "api.example.org", or "*.example.org"; without scheme, port or path`)
		}
	}
	return lower
}

// prefixes sorts ranges and removes repetitions; it is nil for none.
func prefixes(list []netip.Prefix) []netip.Prefix {
	slices.SortFunc(list, comparePrefixes)
	return slices.Compact(list)
}

// portNumber checks a port number.
func (c *compiler) portNumber(at path, n v1alpha1.PortNumber) uint16 {
	if n < 1 || n > 65535 {
		c.find(diag.WrongValue, at, fmt.Sprintf("%d is no port number", n), "write a number from 1 to 65535")
		return 0
	}
	return uint16(n)
}

// once finds what stands twice in a list.
func (c *compiler) once(seen map[string]path, key string, at path, what string) {
	if other, ok := seen[key]; ok {
		c.find(diag.DuplicateEntry, at, fmt.Sprintf("the same %s again", what), "write it once", c.pos(other))
		return
	}
	seen[key] = at
}
