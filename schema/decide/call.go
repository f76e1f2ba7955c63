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
	// Unroutable: the port has routes and none takes the call: 404 for a request; a connection is closed.
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
	// Match is the match of the port that chose Route; nil for connections.
	Match *mesh.Match
	// Status is the caller's sidecar's own answer: of Unroutable and Answered. 0 for a connection that is closed.
	Status uint16
	// Shares are the backends that take requests, in the route's order; a backend without weight is not among them.
	Shares []Share
}

// Share is a backend's part of a call.
type Share struct {
	Service mesh.ServiceName
	Port    string
	// Weight is relative to the sum over the outcome's shares that are no mirrors; of a mirror it is the share of the
	// requests that are copied, a mesh.PPM.
	Weight uint32
	// Mirror marks a copy whose answer is dropped.
	Mirror bool
	// Status is set where a filter of this backend answers in its place: then the backend sees nothing, and Verdict and
	// Refused say nothing.
	Status uint16
	// Sees is the request as the backend gets it, after the filters, and as far as the backend's port lets it be seen.
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
	// NotHTTP: the port takes HTTP and other bytes, rules of it are about requests, and in these bytes none is seen.
	NotHTTP Refusal = "not-http"
)

// Allowed reports whether every backend that takes requests would let the call in; mirrors do not count, nor does what
// is answered before it reaches a backend.
func (o *Outcome) Allowed() bool {
	some := false
	for i := range o.Shares {
		if o.Shares[i].Mirror || o.Shares[i].Status != 0 {
			continue
		}
		if !o.Shares[i].Verdict.Allowed {
			return false
		}
		some = true
	}
	return o.Handling == Sent && some
}

// Seen is what a sidecar sees of a request on a port that speaks a protocol: bytes that are not looked into hide the
// request, and only where TLS passes through is the name in it the client's own.
func Seen(p mesh.Protocol, r Request) Request {
	if p != mesh.TLS {
		r.SNI = ""
	}
	if p == mesh.TLS || p == mesh.TCP || p == mesh.Opaque {
		r.HTTP, r.Method, r.Path, r.Header, r.Query, r.Claim = false, "", "", nil, nil, nil
	}
	return r
}

// Admit is what the sidecar of a service's workload says to a request that came to a port: the checks before its rules,
// and the rules.
func Admit(in *mesh.Inbound, port *mesh.InboundPort, r *Request) (Verdict, Refusal) {
	switch {
	case r.Peer == "" && port.MTLS != mesh.Permissive:
		return Verdict{Rule: port.DefaultID, Default: true}, Plaintext
	case r.HTTP && port.CanonicalPaths && !CanonicalPath(r.Path):
		return Verdict{}, NotCanonical
	case !r.HTTP && port.Protocol == mesh.Detect && !CarriesBytes(in, port):
		return Verdict{Rule: port.DefaultID, Default: true}, NotHTTP
	}
	return Authorize(in, port, r), ""
}

// CarriesBytes reports whether a port lets bytes in that are no HTTP: its protocol does, and no enforced rule of it asks
// what only a request can answer (decisions.md, 12).
func CarriesBytes(in *mesh.Inbound, port *mesh.InboundPort) bool {
	switch port.Protocol {
	case mesh.HTTP1, mesh.HTTP2, mesh.GRPC:
		return false
	}
	for i := range in.Rules {
		r := &in.Rules[i]
		if r.Action != mesh.AuditRule && !r.Shadow && AboutRequests(r) && OnPort(r, port.Name) {
			return false
		}
	}
	return true
}

// Judge is what a mesh does with a call. A caller without an identity has no sidecar: it comes to the service's own door.
// A call without HTTP to a port that speaks HTTP asks who may come to the service's own door at all.
func Judge(m *mesh.Mesh, c *Call) Outcome {
	in, ok := m.InboundOf(c.Service)
	if !ok {
		return Outcome{}
	}
	if _, ok := in.Port(c.Port); !ok {
		return Outcome{}
	}
	own := func() Outcome {
		return Outcome{Handling: Sent, Shares: []Share{share(m, c.Service, c.Port, 100, c.Request)}}
	}
	out, ok := m.OutboundOf(c.Service)
	if !ok || c.Peer == "" {
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
	o := Outcome{Handling: Sent}
	r := Seen(as.Protocol, c.Request)
	switch {
	case r.HTTP:
		o.Route, o.Match, ok = Select(out, as, &r)
	case as.Protocol == mesh.TLS || as.Protocol == mesh.TCP || as.Protocol == mesh.Opaque:
		o.Route, ok = MatchConnection(out, as, r.SNI)
	}
	switch {
	case !ok && r.HTTP:
		return Outcome{Handling: Unroutable, Status: 404}
	case !ok:
		return Outcome{Handling: Unroutable}
	case o.Route == nil:
		return own()
	}
	r, copies, status := filtered(o.Route.Filters, o.Match, r)
	if status != 0 {
		o.Handling, o.Status = Answered, status
		return o
	}
	for i := range o.Route.Backends {
		b := &o.Route.Backends[i]
		if b.Weight == 0 {
			continue
		}
		to, more, status := filtered(b.Filters, o.Match, r)
		if status != 0 {
			o.Shares = append(o.Shares, Share{Service: b.Service, Port: b.Port, Weight: b.Weight, Status: status})
			continue
		}
		o.Shares = append(o.Shares, share(m, b.Service, b.Port, b.Weight, to))
		copies = append(copies, more...)
	}
	for _, cp := range copies {
		s := share(m, cp.to.Service, cp.to.Port, uint32(cp.to.Share), cp.request)
		s.Mirror = true
		o.Shares = append(o.Shares, s)
	}
	return o
}

// share is what a backend says to a request.
func share(m *mesh.Mesh, service mesh.ServiceName, port string, weight uint32, r Request) Share {
	s := Share{Service: service, Port: port, Weight: weight, Sees: r, Refused: NoBackend}
	if in, ok := m.InboundOf(service); ok {
		if p, ok := in.Port(port); ok {
			s.Sees = Seen(p.Protocol, r)
			s.Verdict, s.Refused = Admit(in, p, &s.Sees)
		}
	}
	return s
}

// duplicate is a copy of a request on its way to a mirror.
type duplicate struct {
	to      *mesh.Mirror
	request Request
}

// filtered is a request after some filters, in their order, with the copies made on the way; or the status with which
// one of them answers in the backend's place, 0 if none does for certain. What filters do with a share of the requests
// only (faults below 100 %) changes nothing here.
func filtered(filters []mesh.Filter, match *mesh.Match, r Request) (Request, []duplicate, uint16) {
	var copies []duplicate
	for i := range filters {
		f := &filters[i]
		switch {
		case f.Redirect != nil:
			return r, nil, f.Redirect.Status
		case f.Respond != nil:
			return r, nil, f.Respond.Status
		case f.Fault != nil:
			if f.Fault.Abort != 0 && f.Fault.AbortShare >= mesh.AllPPM {
				return r, nil, f.Fault.Abort
			}
		case f.CORS != nil:
			if preflight(&r) {
				return r, nil, 204
			}
		case f.Mirror != nil:
			if f.Mirror.Share > 0 {
				copies = append(copies, duplicate{f.Mirror, r})
			}
		case f.RequestHeaders != nil:
			r.Header = edited(r.Header, f.RequestHeaders)
		case f.Rewrite != nil:
			r.Path = EditPath(r.Path, match, f.Rewrite.Path)
			if host := f.Rewrite.Host; host != "" {
				r.Header = edited(r.Header, &mesh.HeaderEdit{Set: []mesh.HeaderField{{Name: "host", Value: host}}})
			}
		}
	}
	return r, copies, 0
}

// preflight reports whether a request only asks whether another site may call (Fetch standard, 3.2.2).
func preflight(r *Request) bool {
	if r.Method != "OPTIONS" || r.Header == nil {
		return false
	}
	_, origin := r.Header("origin")
	_, method := r.Header("access-control-request-method")
	return origin && method
}

// edited is a view of headers after an edit: remove, then set, then add.
func edited(get func(string) (string, bool), e *mesh.HeaderEdit) func(string) (string, bool) {
	return func(name string) (string, bool) {
		v, ok := "", false
		if get != nil && !contains(e.Remove, name) {
			v, ok = get(name)
		}
		for i := range e.Set {
			if e.Set[i].Name == name {
				v, ok = e.Set[i].Value, true
			}
		}
		for i := range e.Add {
			if e.Add[i].Name != name {
				continue
			}
			if ok {
				v += "," + e.Add[i].Value
			} else {
				v, ok = e.Add[i].Value, true
			}
		}
		return v, ok
	}
}
