package expect

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/spiffe"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// Stranger is how a caller that proves no identity is written.
const Stranger = "-"

// Question is a call as a person writes it: the fields of an expectation but for what is expected.
type Question struct {
	From, To     string
	Method, Path string // both or neither; neither asks about a connection
	Query        map[string]string
	Headers      map[string]string // by name, in any case
	// JWT has claims of a valid token by the issuer's name in policy.
	JWT map[string]map[string][]string
	// Address is the caller's; empty: one outside every network that the mesh names.
	Address string
	// SNI is the name that a connection to a port that speaks tls asks for.
	SNI string
	// At is when it is asked; the zero time is before every rule's end.
	At time.Time

	elsewhere *netip.Addr // what outside says of the mesh, where it was asked before
}

// Miss is a question about nothing: a name that does not exist, or conditions that cannot stand together.
type Miss struct {
	Field   string // of v1alpha1.#Test, as in "to", "backends.0" or "headers"
	Message string // one line
	Hint    string // what to do; may be empty
}

func (m *Miss) Error() string { return m.Message }

// Caller is who asks.
type Caller struct {
	// Identities are the SPIFFE IDs that the caller may have; a service may have several. "" is a stranger's.
	Identities []string
	// Namespace is the caller's own where it is a service, for consumer routes; else "".
	Namespace string
}

// Calls resolves a question against a mesh: one call for each identity of the caller. issuers are the names of the token
// issuers that policy knows; nil stands for those that rules of the mesh judge by. The error is a [*Miss].
func Calls(m *mesh.Mesh, q *Question, issuers []string) ([]decide.Call, error) {
	caller, err := callerOf(m, q.From)
	if err != nil {
		return nil, err
	}
	http := q.Method != "" || q.Path != ""
	switch {
	case http && q.Path == "":
		return nil, &Miss{"method", fmt.Sprintf("method %s without a path", q.Method), "add the path, or leave the method out to ask about a connection"}
	case http && q.Method == "":
		return nil, &Miss{"path", fmt.Sprintf("path %s without a method", q.Path), "add the method, or leave the path out to ask about a connection"}
	case http && !strings.HasPrefix(q.Path, "/") && q.Path != "*":
		return nil, &Miss{"path", fmt.Sprintf("path %q does not start with /", q.Path), "write the path alone, without scheme and host"}
	case http && strings.Contains(q.Path, "?"):
		return nil, &Miss{"path", fmt.Sprintf("path %q has a query", q.Path), "write parameters of the query under query"}
	}
	if !http {
		for field, n := range map[string]int{"headers": len(q.Headers), "jwt": len(q.JWT), "query": len(q.Query)} {
			if n > 0 {
				return nil, &Miss{field, "a connection has no " + map[string]string{"headers": "headers", "jwt": "token", "query": "query"}[field],
					"add method and path to ask about a request"}
			}
		}
	}
	in, port, err := destination(m, q.To, http)
	if err != nil {
		return nil, err
	}
	r := decide.Request{HTTP: http, Method: q.Method, Path: q.Path, SNI: strings.ToLower(q.SNI), Now: q.At}
	if q.Address != "" {
		if r.Addr, err = netip.ParseAddr(q.Address); err != nil {
			return nil, &Miss{"address", fmt.Sprintf("%q is no IP address", q.Address), `write it as in "192.0.2.7" or "2001:db8::7"`}
		}
		r.Addr = r.Addr.Unmap()
	} else if q.elsewhere != nil {
		r.Addr = *q.elsewhere
	} else {
		r.Addr = outside(m)
	}
	if http {
		headers := make(map[string]string, len(q.Headers))
		for name, value := range q.Headers {
			headers[strings.ToLower(name)] = value
		}
		r.Header = func(name string) (string, bool) { v, ok := headers[name]; return v, ok }
		query := maps.Clone(q.Query)
		r.Query = func(name string) (string, bool) { v, ok := query[name]; return v, ok }
	}
	if len(q.JWT) > 0 {
		if issuers == nil {
			for i := range m.Settings.JWTIssuers {
				issuers = append(issuers, m.Settings.JWTIssuers[i].Name)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(q.JWT)) {
			if !slices.Contains(issuers, name) {
				return nil, &Miss{"jwt", fmt.Sprintf("no issuer of tokens is named %q", name), guess(name, issuers, "declare it under mesh.jwtIssuers")}
			}
		}
		tokens := q.JWT
		r.Claim = func(issuer, claim string) ([]string, bool) {
			token, ok := tokens[issuer]
			if claim == "" || !ok {
				return nil, ok
			}
			values, ok := token[claim]
			return values, ok
		}
	}
	calls := make([]decide.Call, 0, len(caller.Identities))
	for _, id := range caller.Identities {
		c := decide.Call{Request: r, Service: in.Service, Port: port.Name, Namespace: caller.Namespace}
		c.Peer = id
		calls = append(calls, c)
	}
	return calls, nil
}

func callerOf(m *mesh.Mesh, from string) (Caller, error) {
	switch {
	case from == Stranger:
		return Caller{Identities: []string{""}}, nil
	case strings.HasPrefix(from, "spiffe://"):
		id, err := spiffe.ParseID(from)
		if err != nil {
			return Caller{}, &Miss{"from", err.Error(), "write it as in spiffe://" + m.Settings.TrustDomain + "/ns/<namespace>/sa/<name>"}
		}
		return Caller{Identities: []string{string(id)}}, nil
	}
	in, ok := m.InboundOf(mesh.ServiceName(from))
	if !ok {
		return Caller{}, unknownService(m, "from", from)
	}
	return Caller{Identities: in.Identities, Namespace: in.Service.Namespace()}, nil
}

// destination finds the service and the port of "namespace/name" or "namespace/name:port".
func destination(m *mesh.Mesh, to string, http bool) (*mesh.Inbound, *mesh.InboundPort, error) {
	service, name, _ := strings.Cut(to, ":")
	in, ok := m.InboundOf(mesh.ServiceName(service))
	if !ok {
		return nil, nil, unknownService(m, "to", service)
	}
	var names []string
	var fits []*mesh.InboundPort
	var found *mesh.InboundPort
	for i := range in.Ports {
		p := &in.Ports[i]
		names = append(names, p.Name)
		switch {
		case name != "" && (name == p.Name || name == strconv.Itoa(int(p.Port))):
			found = p
		case name == "" && (!http || carriesHTTP(p.Protocol)):
			fits = append(fits, p)
		}
	}
	all := strings.Join(names, ", ")
	switch {
	case len(names) == 0:
		return nil, nil, &Miss{"to", fmt.Sprintf("%s has no ports: nobody calls it", in.Service), "name a service with a port"}
	case found != nil && http && !carriesHTTP(found.Protocol):
		return nil, nil, &Miss{"path", fmt.Sprintf("port %s of %s speaks %s: no request can be seen there", found.Name, in.Service, found.Protocol),
			"leave method and path out to ask about a connection"}
	case found != nil:
		return in, found, nil
	case name != "":
		return nil, nil, &Miss{"to", fmt.Sprintf("%s has no port %q", in.Service, name), guess(name, names, "")}
	case len(fits) == 1:
		return in, fits[0], nil
	case len(fits) == 0:
		return nil, nil, &Miss{"path", fmt.Sprintf("no port of %s speaks HTTP; it has %s", in.Service, all),
			"leave method and path out to ask about a connection"}
	}
	return nil, nil, &Miss{"to", fmt.Sprintf("%s has several ports: %s", in.Service, all), fmt.Sprintf("write %s:%s", in.Service, fits[0].Name)}
}

// carriesHTTP reports whether requests can be seen on a port of a protocol.
func carriesHTTP(p mesh.Protocol) bool {
	return p == mesh.Detect || p == mesh.HTTP1 || p == mesh.HTTP2 || p == mesh.GRPC
}

func unknownService(m *mesh.Mesh, field, name string) error {
	names := make([]string, 0, len(m.Inbound))
	for i := range m.Inbound {
		names = append(names, string(m.Inbound[i].Service))
	}
	return &Miss{field, fmt.Sprintf("there is no service %q", name), guess(name, names, `write it as "namespace/name"`)}
}

// guess says which name was probably meant, or which there are.
func guess(name string, known []string, none string) string {
	if near := diag.Nearest(name, known); near != "" {
		return fmt.Sprintf("did you mean %s?", near)
	}
	if len(known) == 0 {
		return none
	}
	text := "there are " + strings.Join(known[:min(len(known), 8)], ", ")
	if len(known) > 8 {
		text += fmt.Sprintf(" and %d more", len(known)-8)
	}
	if len(known) == 1 {
		text = "there is only " + known[0]
	}
	return text
}

// outside is an address in none of the networks that the mesh names: those of rules, and the cluster's own. It is the
// zero address, which no network holds either, in the odd case that they cover everything.
func outside(m *mesh.Mesh) netip.Addr {
	networks := slices.Clone(m.Settings.ClusterNetworks)
	for i := range m.Inbound {
		networks = append(networks, m.Inbound[i].ClusterNetworks...)
		for j := range m.Inbound[i].Rules {
			for _, n := range m.Inbound[i].Rules[j].Networks {
				networks = append(networks, n.CIDR)
			}
		}
	}
	free := func(a netip.Addr) bool {
		return a.IsValid() && !slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	// The ranges for documentation (RFC 5737, RFC 3849) mislead nobody who reads them.
	for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 1}), netip.AddrFrom4([4]byte{198, 51, 100, 1}),
		netip.AddrFrom4([4]byte{203, 0, 113, 1}), netip.MustParseAddr("2001:db8::1")} {
		if free(a) {
			return a
		}
	}
	// Else the lowest one. Of two networks one holds the other or they are apart, so that in order, wide ones first, none
	// behind holds what was passed.
	slices.SortFunc(networks, func(p, q netip.Prefix) int {
		return cmp.Or(p.Addr().Compare(q.Addr()), cmp.Compare(p.Bits(), q.Bits()))
	})
	for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		for _, p := range networks {
			if p.Contains(a) {
				a = last(p).Next()
			}
		}
		if a.IsValid() {
			return a
		}
	}
	return netip.Addr{}
}

// last is the highest address of a range.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Allow and Deny are verdicts.
const (
	Allow = "allow"
	Deny  = "deny"
)

// Decision is what decided about a call at one service, with where that was written.
type Decision struct {
	Service mesh.ServiceName `json:"service"`
	Verdict string           `json:"verdict"` // Allow or Deny
	Reason  string           `json:"reason"`  // one line
	Rule    string           `json:"rule,omitempty"`
	Default bool             `json:"default,omitempty"` // no rule matched
	Pos     diag.Pos         `json:"pos,omitzero"`
	Weight  *uint32          `json:"weight,omitempty"` // of a backend
	Mirror  bool             `json:"mirror,omitempty"` // its answers are dropped, and it decides nothing
}

// Same reports whether two decisions are alike, and for the same reason.
func (d *Decision) Same(other *Decision) bool {
	return d.Verdict == other.Verdict && d.Rule == other.Rule && d.Service == other.Service && (d.Rule != "" || d.Reason == other.Reason)
}

// Place is where a decision was written or, where no line says it, why it was made.
func (d *Decision) Place() string {
	if d.Pos.IsZero() {
		return d.Reason
	}
	return d.Pos.Short()
}

// Answer is a judged call.
type Answer struct {
	Decision
	Call     decide.Call
	Port     *mesh.InboundPort // that was called
	Route    *mesh.Route       // nil: the service itself takes the call
	RoutePos diag.Pos
	// Backends are those of the route that take requests, in its order; none where there is no route.
	Backends []Decision
}

// Same reports whether two answers are alike: the same verdict for the same reason, by the same route.
func (a *Answer) Same(b *Answer) bool {
	id := func(r *mesh.Route) string {
		if r == nil {
			return ""
		}
		return r.ID
	}
	return a.Decision.Same(&b.Decision) && id(a.Route) == id(b.Route)
}

// Judge answers a call that [Calls] made of the same mesh: what the caller's sidecar and those of the backends decide
// together, and by which lines.
func Judge(m *mesh.Mesh, origins mesh.Origins, c *decide.Call) *Answer {
	a := &Answer{Call: *c, Decision: Decision{Service: c.Service, Verdict: Deny}}
	if in, ok := m.InboundOf(c.Service); ok {
		a.Port, _ = in.Port(c.Port)
	}
	o := decide.Judge(m, c)
	if a.Route = o.Route; a.Route != nil {
		a.RoutePos = origins[a.Route.ID]
	}
	switch o.Handling {
	case decide.Unknown:
		a.Reason = fmt.Sprintf("%s has no port %s", c.Service, c.Port)
		return a
	case decide.Unroutable:
		a.Reason = fmt.Sprintf("no route of %s matches the request: %d", c.Service, o.Status)
		return a
	case decide.Answered:
		a.Reason, a.Pos = fmt.Sprintf("the caller's own sidecar answers: %d", o.Status), a.RoutePos
		if a.Route != nil {
			a.Rule = a.Route.ID
		}
		return a
	}
	decided := -1
	for i := range o.Shares {
		s := &o.Shares[i]
		d := decision(m, origins, s)
		a.Backends = append(a.Backends, d)
		// The call is allowed where every backend that takes requests allows it; what denies is what a reader looks for.
		if !s.Mirror && (decided < 0 || d.Verdict == Deny && a.Backends[decided].Verdict == Allow) {
			decided = i
		}
	}
	if decided < 0 {
		a.Reason = fmt.Sprintf("no backend of %s takes requests: every weight is 0", c.Service)
		if a.Route != nil {
			a.Pos = a.RoutePos
		}
		return a
	}
	a.Decision = a.Backends[decided]
	a.Weight = nil
	if a.Route == nil {
		a.Backends = nil
	}
	return a
}

// JudgeDirect answers a call that comes to the service's own door without going by its routes, as a hostile caller may:
// what the sidecar of the service decides by itself.
func JudgeDirect(m *mesh.Mesh, origins mesh.Origins, c *decide.Call) *Answer {
	a := &Answer{Call: *c, Decision: Decision{Service: c.Service, Verdict: Deny, Reason: fmt.Sprintf("%s has no port %s", c.Service, c.Port)}}
	in, ok := m.InboundOf(c.Service)
	if !ok {
		return a
	}
	if a.Port, ok = in.Port(c.Port); !ok {
		return a
	}
	s := decide.Share{Service: c.Service, Port: c.Port, Sees: c.Request}
	s.Verdict, s.Refused = decide.Admit(in, a.Port, &c.Request)
	a.Decision = decision(m, origins, &s)
	a.Weight = nil
	return a
}

// decision puts what a backend's sidecar decides into words.
func decision(m *mesh.Mesh, origins mesh.Origins, s *decide.Share) Decision {
	weight := s.Weight
	d := Decision{Service: s.Service, Verdict: Deny, Weight: &weight, Mirror: s.Mirror}
	peer := s.Sees.Peer
	d.Rule, d.Default, d.Pos = s.Rule, s.Default, origins[s.Rule]
	switch s.Refused {
	case decide.NoBackend:
		d.Reason = "it does not exist"
		return d
	case decide.Plaintext:
		d.Reason = fmt.Sprintf("port %s takes mTLS only, and the caller proves no identity", s.Port)
		return d
	case decide.NotCanonical:
		d.Reason = "the path is not in canonical form, and rules of the port judge by path: 400"
		return d
	case decide.NotHTTP:
		d.Reason = fmt.Sprintf("rules of port %s are about requests, so bytes that are no HTTP are not let in; "+
			"ask with a method and a path about a request", s.Port)
		return d
	case "":
	default:
		d.Reason = string(s.Refused)
		return d
	}
	switch {
	case s.Verdict.Allowed && s.Default:
		d.Verdict, d.Reason = Allow, "no rule matches, and the port's default lets it in"
		if in, ok := m.InboundOf(s.Service); ok {
			if p, ok := in.Port(s.Port); ok {
				d.Reason = fmt.Sprintf("no rule matches, and the port's default is %s", p.Default)
			}
		}
	case s.Verdict.Allowed:
		d.Verdict, d.Reason = Allow, "rule "+s.Rule
	case s.Default && peer == "":
		d.Reason = "no rule allows a caller without identity (default deny)"
	case s.Default:
		d.Reason = fmt.Sprintf("no rule allows %s (default deny)", peer)
	default:
		d.Reason = "rule " + s.Rule
	}
	return d
}

// question makes one of an expectation.
func question(t *v1alpha1.Test, now time.Time) (*Question, error) {
	q := &Question{From: t.From, To: t.To, Method: string(t.Method), Path: string(t.Path), Query: t.Query, Headers: t.Headers, JWT: t.Jwt,
		Address: t.Address, At: now}
	if t.At != "" {
		at, err := time.Parse(time.RFC3339, t.At)
		if err != nil {
			return nil, &Miss{"at", fmt.Sprintf("%q is no time", t.At), `write it as RFC 3339 does, as in "2027-01-31T12:00:00Z"`}
		}
		q.At = at
	}
	return q, nil
}
