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

// compileWorkloads compiles the statically declared workloads, sorted by name.
func (c *compiler) compileWorkloads() (out []mesh.Workload) {
	taken := map[string]path{}
	for _, ns := range sortedKeys(c.doc.Policy.Workloads) {
		c.checkLabel(path("workloads").at(ns), "namespace", ns)
		for _, name := range sortedKeys(c.doc.Policy.Workloads[ns]) {
			src := c.doc.Policy.Workloads[ns][name]
			at := path("workloads").at(ns, name)
			c.checkLabel(at, "workload", name)
			w := mesh.Workload{Name: ns + "/" + name, Service: mesh.Name(ns, src.Service), Address: c.address(at, src),
				Labels: c.labels(at.at("labels"), src.Labels), Zone: src.Zone}
			if len(src.Labels) > 0 { // which nobody but selectors asks for
				c.need(nil, mesh.CapSelector, at.at("labels"), "a workload's set of labels")
			}
			if w.Address != "" {
				if other, ok := taken[w.Address]; ok {
					c.find(diag.DuplicateAddress, at.at("address"),
						fmt.Sprintf("%s is the address of %s already", w.Address, other),
						"give each workload an address, or a port, of its own", c.pos(other.at("address")))
				} else {
					taken[w.Address] = at
				}
			}
			// Those who balance over a service's workloads are its callers, so that it is theirs to be able to.
			var needs *[]mesh.Capability
			if s := c.services[w.Service]; s != nil {
				w.Identity, needs = c.workloadIdentity(at, src.Identity, s), &s.out.Needs
			} else if !c.unread(w.Service) {
				c.unknownLocal(at.at("service"), ns, src.Service, "a workload runs a service of its own namespace")
			}
			if src.Weight != nil {
				w.Weight = new(uint32)
				if *src.Weight < 0 || *src.Weight > 10_000 {
					c.find(diag.WrongValue, at.at("weight"), fmt.Sprintf("%d is out of range", *src.Weight), "write a relative weight from 0 to 10000")
				} else {
					*w.Weight = uint32(*src.Weight)
				}
				c.need(needs, mesh.CapWeight, at.at("weight"), "a workload's weight")
			}
			c.zone(needs, at.at("zone"), src.Zone)
			out = append(out, w)
		}
	}
	slices.SortFunc(out, func(a, b mesh.Workload) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// unknownLocal says that a namespace has no service of the name.
func (c *compiler) unknownLocal(at path, ns, name, why string) {
	if strings.Contains(name, "/") {
		c.find(diag.UnknownService, at, fmt.Sprintf("%q is not a name of namespace %s", name, ns),
			"write the service's name without its namespace: "+why)
		return
	}
	c.find(diag.UnknownService, at, fmt.Sprintf("no service is named %q", mesh.Name(ns, name)),
		nameHint(name, sortedKeys(c.doc.Policy.Services[ns]), "declare it under services/"+ns+"/"))
}

// address is the workload's mesh listener, in one spelling.
func (c *compiler) address(at path, src v1alpha1.Workload) string {
	if src.Port < 0 || src.Port > 65535 {
		c.find(diag.WrongValue, at.at("port"), fmt.Sprintf("%d is no port number", src.Port),
			"write a number from 1 to 65535")
		return ""
	}
	if src.Address == "" {
		if src.Port != 0 {
			c.find(diag.WrongValue, at.at("port"), "a port without an address says nothing",
				"write the address too, or leave both out: the sidecar reports them when it enrols")
		}
		return ""
	}
	ip, err := netip.ParseAddr(src.Address)
	if err != nil || ip.Zone() != "" || ip.IsUnspecified() || ip.IsMulticast() {
		c.find(diag.WrongValue, at.at("address"), fmt.Sprintf("%q is not the IP address of a host", src.Address),
			`write one as in "10.0.3.7" or "2001:db8::7", without a port; names are not resolved`)
		return ""
	}
	p := uint16(mesh.BuiltInInboundPort)
	if src.Port != 0 {
		p = uint16(src.Port)
	}
	return netip.AddrPortFrom(ip.Unmap(), p).String()
}

// workloadIdentity is which of its service's identities a workload, or a member of a group, has.
func (c *compiler) workloadIdentity(at path, own v1alpha1.SpiffeID, s *service) string {
	ids := s.in.Identities
	switch {
	case own != "" && slices.Contains(ids, string(own)):
		return string(own)
	case own != "":
		if c.identity(at.at("identity"), own) {
			c.find(diag.BadIdentity, at.at("identity"), fmt.Sprintf("%s is not an identity of %s", own, s.name),
				nameHint(string(own), ids, "name it in the service's identities first"), c.pos(s.at.at("identities")))
		}
	case len(ids) > 1:
		c.find(diag.BadIdentity, at,
			fmt.Sprintf("%s has %d identities and the workload does not say which is its own", s.name, len(ids)),
			"write identity: "+strings.Join(ids, " or "), c.pos(s.at.at("identities")))
	case len(ids) == 1:
		return ids[0]
	}
	return ""
}

// zone checks where a workload is.
func (c *compiler) zone(needs *[]mesh.Capability, at path, zone string) {
	if zone == "" {
		return
	}
	if !named(zone, "-_.", true) {
		c.find(diag.WrongValue, at, fmt.Sprintf("%q is no name of a zone", zone), `write a name as in "eu-west-1a"`)
	}
	c.need(needs, mesh.CapZone, at, "a zone")
}

// labels checks labels, or a selector of them, as Kubernetes has them: a name, with a DNS name and "/" before it or not.
func (c *compiler) labels(at path, src map[string]string) map[string]string {
	if len(src) == 0 {
		return nil
	}
	out := make(map[string]string, len(src))
	for _, k := range sortedKeys(src) {
		prefix, name, prefixed := strings.Cut(k, "/")
		if !prefixed {
			prefix, name = "x", k
		}
		if !named(name, "-_.", true) || len(prefix) > 253 || slices.ContainsFunc(strings.Split(prefix, "."), func(l string) bool { return !named(l, "-", false) }) {
			c.find(diag.WrongValue, at.at(k), fmt.Sprintf("%q is no name of a label", k), `write a name as in "app" or "example.org/app"`)
		}
		if v := src[k]; v != "" && !named(v, "-_.", true) {
			c.find(diag.WrongValue, at.at(k), fmt.Sprintf("%q is no value of a label", v), "write at most 63 letters, digits, '-', '_' and '.', with a letter or digit at the ends")
		}
		out[k] = src[k]
	}
	return out
}

// compileGroups compiles groups of workloads that come and go, sorted by name.
func (c *compiler) compileGroups() (out []mesh.Group) {
	for _, ns := range sortedKeys(c.doc.Policy.Groups) {
		c.checkLabel(path("groups").at(ns), "namespace", ns)
		for _, name := range sortedKeys(c.doc.Policy.Groups[ns]) {
			src := c.doc.Policy.Groups[ns][name]
			at := path("groups").at(ns, name)
			c.checkLabel(at, "group", name)
			c.need(nil, mesh.CapGroup, at, "a group of workloads")
			g := mesh.Group{Name: ns + "/" + name, Service: mesh.Name(ns, src.Service), Labels: c.labels(at.at("labels"), src.Labels), Zone: src.Zone}
			if _, ok := c.doc.Policy.Workloads[ns][name]; ok {
				c.find(diag.DuplicateEntry, at, fmt.Sprintf("a workload is named %q too", name), "give it another name: both enrol by it",
					c.pos(path("workloads").at(ns, name)))
			}
			var needs *[]mesh.Capability
			if s := c.services[g.Service]; s != nil {
				g.Identity, needs = c.workloadIdentity(at, src.Identity, s), &s.out.Needs
			} else if !c.unread(g.Service) {
				c.unknownLocal(at.at("service"), ns, src.Service, "a group runs a service of its own namespace")
			}
			c.zone(needs, at.at("zone"), src.Zone)
			if src.Max < 1 || src.Max > 100_000 {
				c.find(diag.WrongValue, at.at("max"), fmt.Sprintf("%d is out of range", src.Max), "write a number of workloads from 1 to 100000")
			} else {
				g.Max = uint32(src.Max)
			}
			out = append(out, g)
		}
	}
	slices.SortFunc(out, func(a, b mesh.Group) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// selector compiles which workloads a service runs in.
func (c *compiler) selector(s *service) {
	at := s.at.at("selector")
	if _, written := c.doc.At(string(at)); len(s.src.Selector) == 0 {
		if written || s.src.Selector != nil {
			c.find(diag.WrongValue, at, "an empty selector never means every workload",
				"leave it out for those workloads that name the service, or write labels")
		}
		return
	}
	s.in.Selector = c.labels(at, s.src.Selector)
	c.need(&s.in.Needs, mesh.CapSelector, at, "a selector")
}

// checkSelectors finds workloads that two services would claim. Among selectors it looks for one that takes all that
// another takes; among declared workloads, for those that another service's selector takes, or their own's leaves out.
func (c *compiler) checkSelectors() {
	selecting := map[string][]*service{}
	for _, s := range c.ordered {
		if len(s.src.Selector) > 0 {
			selecting[s.name.Namespace()] = append(selecting[s.name.Namespace()], s)
		}
	}
	if len(selecting) == 0 {
		return
	}
	const hint = "give the services' workloads labels that tell them apart"
	for _, ns := range sortedKeys(selecting) {
		for i, s := range selecting[ns] {
			c.spend(s.at.at("selector"), i)
			for _, other := range selecting[ns][:i] {
				a, b := s, other // a takes all that b takes
				if !selects(a.src.Selector, b.src.Selector) {
					a, b = other, s
				}
				if selects(a.src.Selector, b.src.Selector) {
					c.find(diag.SelectorOverlap, s.at.at("selector"), fmt.Sprintf("every workload that %s selects is selected by %s too", b.name, a.name),
						hint, c.pos(other.at.at("selector")))
				}
			}
		}
	}
	check := func(ns, service string, labels map[string]string, at path) {
		c.spend(at, len(selecting[ns]))
		for _, s := range selecting[ns] {
			taken := selects(s.src.Selector, labels)
			switch {
			case s.name == mesh.Name(ns, service) && !taken:
				c.find(diag.UnknownWorkload, at.at("service"), fmt.Sprintf("the selector of %s leaves this workload out", s.name),
					"give it the labels that the service selects by", c.pos(s.at.at("selector")))
			case s.name != mesh.Name(ns, service) && taken:
				c.find(diag.SelectorOverlap, at.at("labels"), fmt.Sprintf("%s selects this workload, which runs %s", s.name, mesh.Name(ns, service)),
					hint, c.pos(s.at.at("selector")))
			}
		}
	}
	for _, ns := range sortedKeys(c.doc.Policy.Workloads) {
		for _, name := range sortedKeys(c.doc.Policy.Workloads[ns]) {
			w := c.doc.Policy.Workloads[ns][name]
			check(ns, w.Service, w.Labels, path("workloads").at(ns, name))
		}
	}
	for _, ns := range sortedKeys(c.doc.Policy.Groups) {
		for _, name := range sortedKeys(c.doc.Policy.Groups[ns]) {
			g := c.doc.Policy.Groups[ns][name]
			check(ns, g.Service, g.Labels, path("groups").at(ns, name))
		}
	}
}

// selects reports whether a selector takes everything that has the labels.
func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}
