package decide

import (
	"net/netip"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

// Departure is a connection that leaves the mesh.
type Departure struct {
	Caller mesh.ServiceName
	// Host is the name by which the application calls; empty: by the address alone.
	Host string
	// Addr is where it goes: what Host resolved to, or what the application named. The zero Addr is not known yet, and lies
	// in no network; whoever resolves a name judges again with what came of it.
	Addr netip.Addr
	Port uint16
}

// Exit is the outcome of a departure, with what decided it.
type Exit struct {
	Allowed bool
	// Rule is the id of the rule that decided, or of the namespace's default; "" where the namespace says nothing.
	Rule string
	// Protocol and OriginateTLS are the deciding rule's, of what is let out; of a default they are zero.
	Protocol     mesh.Protocol
	OriginateTLS bool
}

// Leave judges a departure by what its caller's namespace says of destinations outside the mesh: a rule that denies
// beats every other, then the first that allows decides, then the default. A namespace that says nothing (nil) lets
// nothing out. A rule is about a departure by its host, or by its address: a name does not carry a connection past a
// rule that denies the network it resolves to.
func Leave(e *mesh.Egress, d *Departure) Exit {
	if e == nil {
		return Exit{}
	}
	out := Exit{Rule: e.DefaultID, Allowed: e.Default == mesh.Allow}
	allowed := false
	for i := range e.Rules {
		r := &e.Rules[i]
		if !leavesBy(r, d) {
			continue
		}
		if r.Action == mesh.DenyRule {
			return Exit{Rule: r.ID}
		}
		if !allowed {
			out, allowed = Exit{Allowed: true, Rule: r.ID, Protocol: r.Protocol, OriginateTLS: r.OriginateTLS}, true
		}
	}
	return out
}

// leavesBy reports whether a rule is about a departure.
func leavesBy(r *mesh.EgressRule, d *Departure) bool {
	if len(r.Services) > 0 && !contains(r.Services, d.Caller) || len(r.Ports) > 0 && !contains(r.Ports, d.Port) {
		return false
	}
	for _, h := range r.Hosts {
		if h == "" || d.Host != "" && HostMatches(h, d.Host) {
			return true
		}
	}
	for i := range r.Networks {
		if d.Addr.IsValid() && InNetwork(&r.Networks[i], d.Addr) {
			return true
		}
	}
	return len(r.Hosts)+len(r.Networks) == 0
}
