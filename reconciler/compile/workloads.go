package compile

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// inboundPort is where a sidecar's inbound mesh listener is unless a workload says otherwise.
const inboundPort = 4143

// compileWorkloads compiles the statically declared workloads, sorted by name.
func (c *compiler) compileWorkloads() (out []mesh.Workload) {
	taken := map[string]path{}
	for _, ns := range slices.Sorted(maps.Keys(c.doc.Policy.Workloads)) {
		c.checkLabel(path("workloads").at(ns), "namespace", ns)
		for _, name := range slices.Sorted(maps.Keys(c.doc.Policy.Workloads[ns])) {
			src := c.doc.Policy.Workloads[ns][name]
			at := path("workloads").at(ns, name)
			c.checkLabel(at, "workload", name)
			w := mesh.Workload{Name: ns + "/" + name, Service: mesh.Name(ns, src.Service), Address: c.address(at, src)}
			if w.Address != "" {
				if other, ok := taken[w.Address]; ok {
					c.find(diag.DuplicateAddress, at.at("address"),
						fmt.Sprintf("%s is the address of %s already", w.Address, other),
						"give each workload an address, or a port, of its own", c.pos(other.at("address")))
				} else {
					taken[w.Address] = at
				}
			}
			if s := c.services[w.Service]; s != nil {
				w.Identity = c.workloadIdentity(at, src, s)
			} else if !c.unread(w.Service) {
				c.unknownWorkloadService(at.at("service"), ns, src.Service)
			}
			out = append(out, w)
		}
	}
	slices.SortFunc(out, func(a, b mesh.Workload) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (c *compiler) unknownWorkloadService(at path, ns, name string) {
	if strings.Contains(name, "/") {
		c.find(diag.UnknownService, at, fmt.Sprintf("%q is not a name of namespace %s", name, ns),
			"write the service's name without its namespace: a workload runs a service of its own namespace")
		return
	}
	c.find(diag.UnknownService, at, fmt.Sprintf("no service is named %q", mesh.Name(ns, name)),
		nameHint(name, slices.Sorted(maps.Keys(c.doc.Policy.Services[ns])), "declare it under services/"+ns+"/"))
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
	p := uint16(inboundPort)
	if src.Port != 0 {
		p = uint16(src.Port)
	}
	return netip.AddrPortFrom(ip.Unmap(), p).String()
}

// workloadIdentity is which of its service's identities a workload has.
func (c *compiler) workloadIdentity(at path, src v1alpha1.Workload, s *service) string {
	ids := s.in.Identities
	switch {
	case src.Identity != "" && slices.Contains(ids, string(src.Identity)):
		return string(src.Identity)
	case src.Identity != "":
		if c.identity(at.at("identity"), src.Identity) {
			c.find(diag.BadIdentity, at.at("identity"), fmt.Sprintf("%s is not an identity of %s", src.Identity, s.name),
				nameHint(string(src.Identity), ids, "name it in the service's identities first"), c.pos(s.at.at("identities")))
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
