package compile

import (
	"fmt"
	"slices"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// sidecar is the sidecar that policy is compiled for.
type sidecar struct {
	version      string
	capabilities []mesh.Capability
	protocols    []mesh.Protocol
}

var thisSidecar = sidecar{version: mesh.Version, capabilities: mesh.Enforced, protocols: mesh.EnforcedProtocols}

var allProtocols = []mesh.Protocol{mesh.Detect, mesh.HTTP1, mesh.HTTP2, mesh.GRPC, mesh.TLS, mesh.TCP, mesh.Opaque}

// notEnforced refuses what policy says and the sidecar does not do. What has a form in the mesh is refused by the table
// of mesh.Enforced (see checkNeeds) and of mesh.EnforcedProtocols; what has none (retry, filters, until, …) is refused
// where it is read, whatever the table says, since there is nothing to enforce it by.
func (c *compiler) notEnforced(at path, what, hint string) {
	c.find(diag.NotEnforced, at, fmt.Sprintf("%s is not enforced by heddle-proxy %s", what, c.version), hint)
}

// needs are the capabilities of ports of the given protocols.
func needs(ports []*port) []mesh.Capability {
	var caps []mesh.Capability
	for _, p := range ports {
		switch p.protocol {
		case mesh.Detect:
			caps = append(caps, mesh.CapDetect, mesh.CapHTTP1, mesh.CapTCP)
		case mesh.HTTP1:
			caps = append(caps, mesh.CapHTTP1)
		case mesh.TCP, mesh.Opaque:
			caps = append(caps, mesh.CapTCP)
		}
	}
	return caps
}

// checkNeeds fills in what a sidecar must be able to do for a service, and refuses what this one cannot.
func (c *compiler) checkNeeds(s *service) {
	in, out := append(append(needs(s.ports), s.in.Needs...), mesh.CapAuthorize), needs(s.ports)
	need := func(list *[]mesh.Capability, cap mesh.Capability, at path, what string) {
		if !slices.Contains(c.capabilities, cap) {
			c.notEnforced(at, what, "leave it out, or compile for a newer heddle-proxy")
		}
		*list = append(*list, cap)
	}
	for _, p := range s.ports {
		if p.mtls.v == mesh.Permissive {
			need(&in, mesh.CapPermissive, p.mtls.from, `mtls "permissive"`)
		}
	}
	for _, r := range s.routes {
		need(&out, mesh.CapRoute, r.at, "an HTTP route")
		if r.compiled.Timeouts.Request > 0 {
			need(&out, mesh.CapTimeout, r.at.at("timeout"), "a timeout")
		}
	}
	s.in.Needs, s.out.Needs = set(in), set(out)
}

// set sorts and removes repetitions; it is nil for none.
func set[T ~string](list []T) []T {
	slices.Sort(list)
	return slices.Compact(list)
}
