package decide

import (
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// Call is a call as its caller makes it: of a service's port, by way of the caller's own sidecar.
type Call struct {
	Request
	Service mesh.ServiceName
	Port    string // the name of a port of Service
	// Namespace is the caller's, for consumer routes; empty: the one in its identity (mesh.PeerNamespace).
	Namespace string
}

// Handling is what becomes of a call.
type Handling int

const (
	// Unknown: there is no such service or port.
	Unknown Handling = iota
	// Unroutable: the port has routes and none takes the request: 404.
	Unroutable
	// Answered: the caller's sidecar answers by itself, by a redirect, a direct response or a certain fault.
	Answered
	// Sent: it goes to backends.
	Sent
)

// Outcome is what a mesh does with a call: routing at the caller and authorization at every backend, together.
type Outcome struct {
	Handling Handling
	// Route is nil where the port has no routes: the service itself takes everything.
	Route *mesh.Route
	// Status is the caller's sidecar's own answer: of Unroutable and Answered.
	Status uint16
	// Shares are the backends that take requests, in the route's order; a backend without weight is not among them.
	Shares []Share
}

// Share is a backend's part of a call.
type Share struct {
	Service mesh.ServiceName
	Port    string
	// Weight is relative to the sum over the outcome's shares.
	Weight uint32
	// Mirror marks a copy whose answer is dropped.
	Mirror bool
	// Sees is the request as the backend gets it, after the route's filters.
	Sees Request
	Verdict
	// Refused says why the backend never came to its rules, or is "".
	Refused Refusal
}

// Refusal is a reason to refuse a call before any rule is asked.
type Refusal string

const (
	// NoBackend: the backend's service or port does not exist.
	NoBackend Refusal = "no-backend"
	// Plaintext: the port takes mTLS only, and the caller proves no identity.
	Plaintext Refusal = "plaintext"
	// NotCanonical: rules of the port judge by path, and the path is not in canonical form: 400.
	NotCanonical Refusal = "not-canonical"
)

// Allowed reports whether every backend that takes requests would let the call in; mirrors do not count.
func (o *Outcome) Allowed() bool {
	some := false
	for i := range o.Shares {
		if o.Shares[i].Mirror {
			continue
		}
		if !o.Shares[i].Verdict.Allowed {
			return false
		}
		some = true
	}
	return o.Handling == Sent && some
}

// Admit is what the sidecar of a service's workload says to a request that came to a port: the checks before its rules,
// and the rules.
func Admit(in *mesh.Inbound, port *mesh.InboundPort, r *Request) (Verdict, Refusal) {
	switch {
	case r.Peer == "" && port.MTLS != mesh.Permissive:
		return Verdict{Rule: port.DefaultID, Default: true}, Plaintext
	case r.HTTP && port.CanonicalPaths && !CanonicalPath(r.Path):
		return Verdict{}, NotCanonical
	}
	return Authorize(in, port, r), ""
}

// Judge is what a mesh does with a call. A caller without an identity has no sidecar: it comes to the service's own door.
func Judge(m *mesh.Mesh, c *Call) Outcome {
	in, ok := m.InboundOf(c.Service)
	if !ok {
		return Outcome{}
	}
	port, ok := in.Port(c.Port)
	if !ok {
		return Outcome{}
	}
	own := func() Outcome {
		v, refused := Admit(in, port, &c.Request)
		return Outcome{Handling: Sent, Shares: []Share{{Service: c.Service, Port: c.Port, Weight: 100, Sees: c.Request, Verdict: v, Refused: refused}}}
	}
	out, ok := m.OutboundOf(c.Service)
	if !ok || c.Peer == "" || !c.HTTP {
		return own()
	}
	ns := c.Namespace
	if ns == "" {
		ns = mesh.PeerNamespace(c.Peer)
	}
	as, ok := out.For(ns, c.Port)
	if !ok {
		return own()
	}
	route, ok := MatchRoute(out, as, &c.Request)
	switch {
	case !ok:
		return Outcome{Handling: Unroutable, Status: 404}
	case route == nil:
		return own()
	}
	o := Outcome{Handling: Sent, Route: route}
	for i := range route.Backends {
		b := &route.Backends[i]
		if b.Weight == 0 {
			continue
		}
		s := Share{Service: b.Service, Port: b.Port, Weight: b.Weight, Sees: c.Request, Refused: NoBackend}
		if in, ok := m.InboundOf(b.Service); ok {
			if p, ok := in.Port(b.Port); ok {
				s.Verdict, s.Refused = Admit(in, p, &s.Sees)
			}
		}
		o.Shares = append(o.Shares, s)
	}
	return o
}
