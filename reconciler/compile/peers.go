package compile

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/spiffe"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// from compiles callers: sorted, without repetitions.
func (c *compiler) from(at path, from []v1alpha1.From) []mesh.Peer {
	if len(from) == 0 {
		c.find(diag.NoCaller, at, "the rule names no caller, so it matches nobody",
			`name one, as in from: [{service: "shop/web"}], or delete the rule`)
	}
	peers := make([]mesh.Peer, 0, len(from))
	first := map[mesh.Peer]int{}
	for i, f := range from {
		at := at.index(i)
		n := 0
		for _, set := range []bool{f.Service != "", f.Namespace != "", f.Identity != "", f.IdentityPrefix != "", f.IdentitySuffix != "",
			f.Authenticated, f.Unauthenticated} {
			if set {
				n++
			}
		}
		if n != 1 {
			c.find(diag.WrongValue, at,
				fmt.Sprintf("a caller is exactly one of service, namespace, identity, identityPrefix, identitySuffix, authenticated, unauthenticated; %d are set", n),
				"write one list element for each kind of caller")
			continue
		}
		var these []mesh.Peer
		switch {
		case f.Service != "":
			if s := c.lookup(at.at("service"), f.Service); s != nil {
				these = c.peersOf(s)
			}
		case f.Namespace != "":
			if c.namespace(at.at("namespace"), string(f.Namespace)) {
				these = c.peersIn(string(f.Namespace))
			}
		case f.Identity != "":
			if c.identity(at.at("identity"), f.Identity) {
				these = []mesh.Peer{{Identity: string(f.Identity)}}
			}
		case f.IdentityPrefix != "":
			if c.identityPrefix(at.at("identityPrefix"), f.IdentityPrefix) {
				these = []mesh.Peer{{Prefix: f.IdentityPrefix}}
			}
		case f.IdentitySuffix != "":
			if c.identitySuffix(at.at("identitySuffix"), f.IdentitySuffix) {
				these = []mesh.Peer{{Suffix: f.IdentitySuffix}}
			}
		default:
			these = []mesh.Peer{{Authenticated: f.Authenticated, Unauthenticated: f.Unauthenticated}}
		}
		fresh, again := false, 0
		for _, p := range these {
			if j, ok := first[p]; ok {
				again = j
			} else {
				first[p], fresh = i, true
			}
		}
		if len(these) > 0 && !fresh {
			c.duplicate(at[:strings.LastIndexByte(string(at), '.')], i, again, "the caller")
		}
		c.countCallers(at, these)
		peers = append(peers, these...)
	}
	return sortPeers(peers)
}

// sortPeers orders callers from narrow to wide, without repetitions.
func sortPeers(peers []mesh.Peer) []mesh.Peer {
	slices.SortFunc(peers, func(a, b mesh.Peer) int {
		return cmp.Or(rank(a)-rank(b), strings.Compare(a.Identity+a.Prefix+a.Suffix, b.Identity+b.Prefix+b.Suffix))
	})
	return slices.Compact(peers)
}

func rank(p mesh.Peer) int {
	switch {
	case p.Unauthenticated:
		return 4
	case p.Authenticated:
		return 3
	case p.Suffix != "":
		return 2
	case p.Prefix != "":
		return 1
	}
	return 0
}

// peersOf are the identities of a service.
func (c *compiler) peersOf(s *service) (peers []mesh.Peer) {
	for _, id := range s.in.Identities {
		peers = append(peers, mesh.Peer{Identity: id})
	}
	return peers
}

// peersIn are the identities of a namespace: all under its path, and those that its services declare elsewhere.
func (c *compiler) peersIn(ns string) []mesh.Peer {
	under := mesh.Peer{Prefix: "spiffe://" + c.trustDomain + "/ns/" + ns + "/"}
	peers := []mesh.Peer{under}
	for _, name := range slices.Sorted(maps.Keys(c.doc.Policy.Services[ns])) {
		for _, p := range c.peersOf(c.services[mesh.Name(ns, name)]) {
			if !strings.HasPrefix(p.Identity, under.Prefix) {
				peers = append(peers, p)
			}
		}
	}
	return sortPeers(peers)
}

// namespace checks the name of a namespace that a field refers to. It reports false for one that is not there, or could
// not be read.
func (c *compiler) namespace(at path, ns string) bool {
	if c.namespaceKnown(ns) {
		return true
	}
	if slices.ContainsFunc(c.doc.Unread, func(u string) bool { return mesh.ServiceName(u).Namespace() == ns }) {
		return false
	}
	hint := "declare services under services/" + ns + "/"
	if c.guesses() {
		hint = nameHint(ns, c.namespaces(), hint)
	}
	if !strings.HasPrefix(hint, "did you mean") {
		hint += "; identities that no service here declares are named by identity or identityPrefix"
	}
	c.find(diag.UnknownService, at, fmt.Sprintf("no namespace is named %q", ns), hint)
	return false
}

func (c *compiler) namespaceKnown(ns string) bool {
	p := &c.doc.Policy
	return len(p.Services[ns]) > 0 || len(p.Workloads[ns]) > 0 || len(p.Groups[ns]) > 0
}

// namespaces are the names of all namespaces in which something runs, sorted.
func (c *compiler) namespaces() []string {
	p := &c.doc.Policy
	all := set(slices.Concat(slices.Collect(maps.Keys(p.Services)), slices.Collect(maps.Keys(p.Workloads)), slices.Collect(maps.Keys(p.Groups))))
	return slices.DeleteFunc(all, func(ns string) bool { return !c.namespaceKnown(ns) })
}

// identityPrefix checks the beginning of identities.
func (c *compiler) identityPrefix(at path, prefix string) bool {
	root := "spiffe://" + c.trustDomain + "/"
	switch {
	case !strings.HasSuffix(prefix, "/"):
		c.find(diag.BadIdentity, at, fmt.Sprintf("%q does not end with \"/\", so it would cut a name in two", prefix),
			fmt.Sprintf("write %q, or name one identity by identity", prefix+"/"))
		return false
	case prefix == root:
		c.find(diag.BadIdentity, at, "every identity of the mesh begins so", "write authenticated: true")
		return false
	}
	return c.identity(at, v1alpha1.SpiffeID(strings.TrimSuffix(prefix, "/")))
}

// identitySuffix checks the end of identities' paths.
func (c *compiler) identitySuffix(at path, suffix string) bool {
	if _, err := spiffe.ParseID("spiffe://suffix.example" + suffix); err != nil || !strings.HasPrefix(suffix, "/") {
		c.find(diag.BadIdentity, at, fmt.Sprintf("%q is no end of an identity's path", suffix), `write it as in "/sa/web": it begins with "/"`)
		return false
	}
	return true
}

// networks compiles ranges of addresses: sorted.
func (c *compiler) networks(at path, src []v1alpha1.Network) (out []mesh.Network) {
	c.nonEmpty(at, len(src), src == nil, "networks")
	first := map[string]int{}
	for i, n := range src {
		list, at := at, at.index(i)
		cidr, ok := c.cidr(at.at("cidr"), n.Cidr)
		if !ok {
			continue
		}
		before := len(c.findings)
		network := mesh.Network{CIDR: cidr, Except: c.exceptions(at.at("except"), cidr, n.Except)}
		if len(c.findings) > before {
			continue
		}
		key := fmt.Sprint(network)
		if j, ok := first[key]; ok {
			c.duplicate(list, i, j, "network "+cidr.String())
			continue
		}
		first[key] = i
		out = append(out, network)
	}
	slices.SortFunc(out, func(a, b mesh.Network) int {
		return cmp.Or(comparePrefixes(a.CIDR, b.CIDR), slices.CompareFunc(a.Except, b.Except, comparePrefixes))
	})
	return out
}

// exceptions compiles the ranges that a network leaves out: sorted, each inside it.
func (c *compiler) exceptions(at path, cidr netip.Prefix, src []v1alpha1.CIDR) (out []netip.Prefix) {
	if c.empty(at, len(src), src == nil) {
		c.find(diag.BadNetwork, at, "an empty list of exceptions excepts nothing", "leave it out")
	}
	for i, s := range src {
		p, ok := c.cidr(at.index(i), s)
		switch {
		case !ok:
		case p == cidr:
			c.find(diag.BadNetwork, at.index(i), fmt.Sprintf("the exception %s is the whole network", p), "except a part of it, or leave the network out")
		case p.Bits() < cidr.Bits() || !cidr.Contains(p.Addr()):
			c.find(diag.BadNetwork, at.index(i), fmt.Sprintf("the exception %s is not inside %s", p, cidr), "except a range inside the network, or delete the exception")
		case slices.Contains(out, p):
			c.duplicate(at, i, slices.IndexFunc(src, func(s v1alpha1.CIDR) bool { q, err := netip.ParsePrefix(string(s)); return err == nil && q == p }), "exception "+p.String())
		default:
			out = append(out, p)
		}
	}
	slices.SortFunc(out, comparePrefixes)
	if len(out) > 1 && covered(cidr, out) {
		c.find(diag.BadNetwork, at, fmt.Sprintf("the exceptions leave nothing of %s", cidr), "except less, or leave the network out")
	}
	return out
}

// covered reports whether some ranges together cover another one.
func covered(p netip.Prefix, by []netip.Prefix) bool {
	some := false
	for _, b := range by {
		if b.Bits() <= p.Bits() && b.Contains(p.Addr()) {
			return true
		}
		some = some || p.Overlaps(b)
	}
	if !some || p.IsSingleIP() {
		return false
	}
	low := netip.PrefixFrom(p.Addr(), p.Bits()+1)
	return covered(low, by) && covered(netip.PrefixFrom(sibling(low), low.Bits()), by)
}

// sibling is the first address of the other half of the range that is twice as large.
func sibling(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	b[(p.Bits()-1)/8] ^= 0x80 >> ((p.Bits() - 1) % 8)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// cidr reads a range of addresses in its one spelling.
func (c *compiler) cidr(at path, s v1alpha1.CIDR) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(string(s))
	if err != nil {
		hint := `write it as in "10.0.0.0/8" or "2001:db8::/32"`
		if a, err := netip.ParseAddr(string(s)); err == nil && a.Zone() == "" {
			hint = fmt.Sprintf("for the one address write %q", netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()))
		}
		c.find(diag.BadNetwork, at, fmt.Sprintf("%q is no range of addresses", s), hint)
		return p, false
	}
	if a := p.Addr(); a.Is4In6() {
		hint := "write the IPv4 range"
		if p.Bits() >= 96 {
			hint = fmt.Sprintf("write %q", netip.PrefixFrom(a.Unmap(), p.Bits()-96).Masked())
		}
		c.find(diag.BadNetwork, at, fmt.Sprintf("%s is an IPv4 range in its IPv6 form, which no caller's address has", p), hint)
		return p, false
	}
	if p != p.Masked() {
		c.find(diag.BadNetwork, at, fmt.Sprintf("%s begins inside its range", p), fmt.Sprintf("write %q", p.Masked()))
		return p, false
	}
	return p, true
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// clusterNetworks are the cluster's own networks, sorted: the mesh's, or the built-in ones. What cannot be read of them
// is a finding of the mesh's settings.
func (c *compiler) clusterNetworks() (out []netip.Prefix) {
	if m := c.doc.Policy.Mesh; m != nil {
		for _, s := range m.ClusterNetworks {
			if p, err := netip.ParsePrefix(string(s)); err == nil {
				out = append(out, p)
			}
		}
	}
	if len(out) == 0 {
		out = slices.Clone(mesh.DefaultClusterNetworks)
	}
	slices.SortFunc(out, comparePrefixes)
	return slices.Compact(out)
}
