// Package mesh is the compiled mesh: plain values that say how the mesh behaves, with one canonical encoding and
// hashes over it. `reconciler/compile` makes a Mesh out of policy; control planes hand out its objects; sidecars
// decide by them, through package decide.
//
// The values hold behaviour only. Where a rule was written is kept apart, in [Origins], so that a commit which only
// moves lines leaves every behaviour hash as it was. Rules and routes are named by stable ids that are paths:
// "shop/web/allow/gateway". A Mesh and all that it holds is immutable once compiled. No I/O happens here.
package mesh

import (
	"slices"
	"strings"
	"time"
)

// ServiceName is "<namespace>/<name>", both DNS labels (RFC 1123).
type ServiceName string

// Name joins a namespace and a service's own name.
func Name(namespace, name string) ServiceName { return ServiceName(namespace + "/" + name) }

// Namespace is the part before the slash.
func (n ServiceName) Namespace() string { ns, _, _ := strings.Cut(string(n), "/"); return ns }

// Local is the part after the slash.
func (n ServiceName) Local() string { _, l, _ := strings.Cut(string(n), "/"); return l }

// HostSuffix ends every name that the mesh resolves: "<service>.<namespace>.mesh".
const HostSuffix = ".mesh"

// Host is the name by which callers address the service: "<service>.<namespace>.mesh".
func (n ServiceName) Host() string { return n.Local() + "." + n.Namespace() + HostSuffix }

// DefaultID is the rule id of a port's default, InboundPort.DefaultID.
func DefaultID(s ServiceName, port string) string { return string(s) + "/default/" + port }

// DefaultRouteID is the id of the route that the compiler adds to an HTTP port without routes of its own where a
// default timeout is in force. It sends everything to the service itself.
func DefaultRouteID(s ServiceName, port string) string { return string(s) + "/default-route/" + port }

// Protocol is what a port speaks, named as in Linkerd and the Gateway API.
type Protocol string

// Sidecars of this version carry detect, http1, tcp and opaque; the others are refused in policy (see [Enforced]).
const (
	Detect Protocol = "detect" // HTTP/1 if the first bytes parse as it, else opaque bytes
	HTTP1  Protocol = "http1"
	HTTP2  Protocol = "http2"
	GRPC   Protocol = "grpc"
	TLS    Protocol = "tls"
	TCP    Protocol = "tcp"    // bytes, never inspected
	Opaque Protocol = "opaque" // bytes, never inspected; for server-first protocols. The same as tcp on the wire
)

// MTLSMode says whether a port also takes plaintext.
type MTLSMode string

const (
	// Strict admits only connections whose peer proved a SPIFFE identity. It is the default.
	Strict MTLSMode = "strict"
	// Permissive admits plaintext too; its callers count as unauthenticated.
	Permissive MTLSMode = "permissive"
)

// InboundMode decides about a request that no rule matched, on a port without enforced allow rules.
type InboundMode string

const (
	Deny               InboundMode = "deny"              // the default
	AllAuthenticated   InboundMode = "all-authenticated" // any proven identity of the trust domain
	AllUnauthenticated InboundMode = "all-unauthenticated"
)

// Action is what a matching rule does. Deny beats allow.
type Action string

const (
	Allow    Action = "allow"
	DenyRule Action = "deny"
)

// Mesh is the whole compiled mesh.
type Mesh struct {
	Settings Settings
	// Inbound and Outbound have one element a service, sorted by service.
	Inbound  []Inbound
	Outbound []Outbound
	// Workloads are the statically declared ones, sorted by name.
	Workloads []Workload
}

// Settings hold for the mesh as a whole.
type Settings struct {
	TrustDomain string `json:"trustDomain"`
	// MaxStale bounds the age of a last known good config by which identity-based allows still hold, in nanoseconds;
	// 0 means the lifetime of the sidecar's own SVID.
	MaxStale time.Duration `json:"maxStale,omitempty"`
}

// Inbound is what the sidecars of a service enforce.
type Inbound struct {
	Service ServiceName `json:"service"`
	// Identities are the SPIFFE IDs that workloads of the service have, sorted; at least one.
	Identities []string      `json:"identities"`
	Ports      []InboundPort `json:"ports"`            // sorted by name
	Rules      []Rule        `json:"rules,omitempty"`  // sorted by id
	Routes     []Route       `json:"routes,omitempty"` // those that rules name; sorted by id
	// Needs are the capabilities a sidecar must have to enforce all of it, sorted.
	Needs []Capability `json:"needs,omitempty"`
}

// InboundPort is a declared port, seen from its owner.
type InboundPort struct {
	Name     string      `json:"name"`
	Port     uint16      `json:"port"` // the declared one; where the application really listens is the sidecar's business
	Protocol Protocol    `json:"protocol"`
	MTLS     MTLSMode    `json:"mtls"`
	Default  InboundMode `json:"default"`
	// DefaultID is the rule id of the port's default: "<service>/default/<port>".
	DefaultID string `json:"defaultID"`
	// CanonicalPaths makes a request whose raw path is not canonical a 400: set where a rule judges by path.
	CanonicalPaths bool `json:"canonicalPaths,omitempty"`
}

// Rule allows or denies callers. All that is set must hold; each list is an "or".
type Rule struct {
	ID     string   `json:"id"` // "<service>/allow/<name>" or "<service>/deny/<name>"
	Action Action   `json:"action"`
	From   []Peer   `json:"from"`             // at least one
	Ports  []string `json:"ports,omitempty"`  // port names; none set: every port
	Routes []string `json:"routes,omitempty"` // ids of Routes; none set: every request and every connection
}

// Peer matches callers. Exactly one field is set.
type Peer struct {
	// Identity is one exact SPIFFE ID. `from: {service: …}` is compiled to the service's identities.
	Identity string `json:"identity,omitempty"`
	// Authenticated matches any proven identity.
	Authenticated bool `json:"authenticated,omitempty"`
	// Unauthenticated matches every caller, proven or not.
	Unauthenticated bool `json:"unauthenticated,omitempty"`
}

// Outbound is what the sidecars of a service's callers do.
type Outbound struct {
	Service ServiceName `json:"service"`
	// Identities are the SPIFFE IDs that a server of the service may prove, sorted.
	Identities []string       `json:"identities"`
	Ports      []OutboundPort `json:"ports"` // sorted by name
	Routes     []Route        `json:"routes,omitempty"`
	Needs      []Capability   `json:"needs,omitempty"`
}

// OutboundPort is a declared port, seen by a caller.
type OutboundPort struct {
	Name     string   `json:"name"`
	Port     uint16   `json:"port"`
	Protocol Protocol `json:"protocol"`
	// Matches are all matches of all routes on this port, flattened and in Gateway API precedence (exact path, then
	// the longest prefix, then method, then the number of headers, then the route's id): the first that matches wins.
	// None: every request goes to the service itself. Some but none matching: 404.
	Matches []Match `json:"matches,omitempty"`
}

// Route says where matching requests go. In Inbound only ID, Port and Matches are set.
type Route struct {
	ID       string    `json:"id"` // "<service>/httpRoutes/<name>", or DefaultRouteID
	Port     string    `json:"port"`
	Matches  []Match   `json:"matches,omitempty"` // of an Inbound's route, in any order; an Outbound's are on its ports
	Backends []Backend `json:"backends,omitempty"`
	Timeouts Timeouts  `json:"timeouts,omitzero"`
}

// Match is one conjunction; the zero Match (but for Route) matches every request.
type Match struct {
	Route   string        `json:"route"` // the id of the route it selects
	Path    PathMatch     `json:"path,omitzero"`
	Method  string        `json:"method,omitempty"`  // upper case; empty: any
	Headers []HeaderMatch `json:"headers,omitempty"` // sorted by name
}

// PathMatch matches the path of a request, without its query. At most one field is set; none: any path.
type PathMatch struct {
	Exact string `json:"exact,omitempty"`
	// Prefix matches by whole path elements, as Gateway API's PathPrefix: /a matches /a and /a/b, not /ab. It has no
	// trailing slash unless it is "/".
	Prefix string `json:"prefix,omitempty"`
}

// HeaderMatch matches one header. Name is lower case; repeated header lines are joined by "," before comparing
// (RFC 9110, 5.3).
type HeaderMatch struct {
	Name  string `json:"name"`
	Exact string `json:"exact"`
}

// Backend is a share of a route's requests.
type Backend struct {
	Service ServiceName `json:"service"`
	Port    string      `json:"port"` // a port name of Service
	// Weight is relative to the sum of the available backends' weights; 0 takes no requests.
	Weight uint32 `json:"weight"`
}

// Timeouts of a route, in nanoseconds; 0 is none.
type Timeouts struct {
	// Request bounds the whole exchange, from the last byte of the request's head to the last byte of the response.
	Request time.Duration `json:"request,omitempty"`
}

// Workload is a statically declared place where a service runs, behind a sidecar of its own.
type Workload struct {
	Name     string      `json:"name"` // "<namespace>/<workload>"
	Service  ServiceName `json:"service"`
	Identity string      `json:"identity"` // a SPIFFE ID, one of the service's
	// Address is "IP:port" of the sidecar's inbound mesh listener; empty when the workload reports it at enrolment.
	Address string `json:"address,omitempty"`
}

// InboundOf finds a service by binary search.
func (m *Mesh) InboundOf(n ServiceName) (*Inbound, bool) {
	i, ok := slices.BinarySearchFunc(m.Inbound, n, func(in Inbound, n ServiceName) int { return strings.Compare(string(in.Service), string(n)) })
	if !ok {
		return nil, false
	}
	return &m.Inbound[i], true
}

// OutboundOf finds a service by binary search.
func (m *Mesh) OutboundOf(n ServiceName) (*Outbound, bool) {
	i, ok := slices.BinarySearchFunc(m.Outbound, n, func(o Outbound, n ServiceName) int { return strings.Compare(string(o.Service), string(n)) })
	if !ok {
		return nil, false
	}
	return &m.Outbound[i], true
}

// Port finds a port by name.
func (in *Inbound) Port(name string) (*InboundPort, bool) {
	for i := range in.Ports {
		if in.Ports[i].Name == name {
			return &in.Ports[i], true
		}
	}
	return nil, false
}

// Port finds a port by name.
func (o *Outbound) Port(name string) (*OutboundPort, bool) {
	for i := range o.Ports {
		if o.Ports[i].Name == name {
			return &o.Ports[i], true
		}
	}
	return nil, false
}

// Route finds a route by id.
func (o *Outbound) Route(id string) (*Route, bool) {
	for i := range o.Routes {
		if o.Routes[i].ID == id {
			return &o.Routes[i], true
		}
	}
	return nil, false
}
