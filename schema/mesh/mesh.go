// Package mesh is the compiled mesh: plain values that say how the mesh behaves, with one canonical encoding and
// hashes over it. `reconciler/compile` makes a Mesh out of policy; control planes hand out its objects; sidecars
// decide by them, through package decide.
//
// The values hold behaviour only. Where a rule was written is kept apart, in [Origins], so that a commit which only
// moves lines leaves every behaviour hash as it was. Rules and routes are named by stable ids that are paths:
// "shop/web/allow/gateway". A Mesh and all that it holds is immutable once compiled. No I/O happens here.
package mesh

import (
	"net/netip"
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
	// The cluster modes admit callers whose address is in Inbound.ClusterNetworks.
	ClusterAuthenticated   InboundMode = "cluster-authenticated"
	ClusterUnauthenticated InboundMode = "cluster-unauthenticated"
	// Audit lets everybody in and records it.
	Audit InboundMode = "audit"
)

// Action is what a matching rule does. Deny beats allow.
type Action string

const (
	Allow    Action = "allow"
	DenyRule Action = "deny"
	// AuditRule only records: it never changes what is let in.
	AuditRule Action = "audit"
)

// Mesh is the whole compiled mesh.
type Mesh struct {
	Settings Settings
	// Inbound and Outbound have one element a service, sorted by service.
	Inbound  []Inbound
	Outbound []Outbound
	// Workloads are the statically declared ones, sorted by name.
	Workloads []Workload
	// Groups are sets of workloads that come and go, sorted by name.
	Groups []Group
	// Egress has what is said of destinations outside, one element a namespace that says anything, sorted.
	Egress []Egress
	// Invariants must hold of the mesh, sorted by name. Sidecars never see them; the reconciler judges the next commit by
	// those of the release that is applied.
	Invariants []Invariant
}

// Settings hold for the mesh as a whole.
type Settings struct {
	TrustDomain string `json:"trustDomain"`
	// MaxStale bounds the age of a last known good config by which identity-based allows still hold, in nanoseconds;
	// 0 means the lifetime of the sidecar's own SVID.
	MaxStale time.Duration `json:"maxStale,omitempty"`
	// ClusterNetworks are the cluster's own, sorted; none set: [DefaultClusterNetworks].
	ClusterNetworks []netip.Prefix `json:"clusterNetworks,omitempty"`
	// OpaquePorts and the skip ports hold for destinations outside the mesh; nil: the built-in ones (see [BuiltIn]),
	// empty but not nil never occurs.
	OpaquePorts  []uint16     `json:"opaquePorts,omitempty"`
	SkipInbound  []uint16     `json:"skipInbound,omitempty"`
	SkipOutbound []uint16     `json:"skipOutbound,omitempty"`
	Telemetry    Telemetry    `json:"telemetry,omitzero"`
	Rollout      Rollout      `json:"rollout,omitzero"`
	JWTIssuers   []JWTIssuer  `json:"jwtIssuers,omitempty"` // those that rules name, sorted by name
	Needs        []Capability `json:"needs,omitempty"`
}

// Telemetry is what sidecars report.
type Telemetry struct {
	Labels    []string `json:"labels,omitempty"` // sorted
	MaxSeries uint32   `json:"maxSeries,omitempty"`
	Tracing   PPM      `json:"tracing,omitempty"`   // share of requests traced where no caller decided
	AccessLog string   `json:"accessLog,omitempty"` // "json" or "apache"; empty: off
}

// Rollout is how a release reaches the sidecars; the zero Rollout is all at once.
type Rollout struct {
	Steps        []PPM         `json:"steps,omitempty"` // shares of services, rising; the last is all
	Pause        time.Duration `json:"pause,omitempty"`
	HaltNacks    uint32        `json:"haltNacks,omitempty"`
	HaltDenials  PPM           `json:"haltDenials,omitempty"`
	HaltFailures PPM           `json:"haltFailures,omitempty"`
}

// PPM is a share in parts per million: percents of policy with four decimals, as integers, so that they have one
// encoding.
type PPM uint32

// AllPPM is everything.
const AllPPM PPM = 1_000_000

// JWTIssuer is who signs tokens (RFC 7519) and how they are checked.
type JWTIssuer struct {
	Name      string   `json:"name"`
	Issuer    string   `json:"issuer"`
	Audiences []string `json:"audiences"` // sorted
	// JWKS is the key set (RFC 7517) as it stands in policy; else URL says where it is published.
	JWKS   string `json:"jwks,omitempty"`
	URL    string `json:"url,omitempty"`
	Header string `json:"header"` // lower case; "authorization" by default
}

// Inbound is what the sidecars of a service enforce.
type Inbound struct {
	Service ServiceName `json:"service"`
	// Identities are the SPIFFE IDs that workloads of the service have, sorted; at least one.
	Identities []string      `json:"identities"`
	Ports      []InboundPort `json:"ports"`            // sorted by name
	Rules      []Rule        `json:"rules,omitempty"`  // sorted by id
	Routes     []Route       `json:"routes,omitempty"` // those that have a rate limit, sorted by id
	// ClusterNetworks are what cluster modes go by, set where a port has one of them.
	ClusterNetworks []netip.Prefix `json:"clusterNetworks,omitempty"`
	// Selector are the labels of the workloads that the service runs in, for control planes; none: those workloads and
	// groups that name the service.
	Selector map[string]string `json:"selector,omitempty"`
	// MaxConnections and MaxRequests bound what one sidecar takes at once; 0 is no bound.
	MaxConnections uint32 `json:"maxConnections,omitempty"`
	MaxRequests    uint32 `json:"maxRequests,omitempty"`
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
	// Matches are those of the port in Outbound, in the same order, set where a rule names a route of the port, or a route
	// of it has a rate limit: both are about the requests that the route takes, and not about those that a more specific
	// one takes.
	Matches []Match `json:"matches,omitempty"`
	// RateLimit is of the port; nil: none.
	RateLimit *RateLimit `json:"rateLimit,omitempty"`
}

// RateLimit is a GCRA limit of one sidecar, with a second of burst (as Linkerd's). In requests a second; 0 is none.
type RateLimit struct {
	Total       uint32         `json:"total,omitempty"`
	PerIdentity uint32         `json:"perIdentity,omitempty"`
	Overrides   []RateOverride `json:"overrides,omitempty"` // the first that matches a caller counts for it
}

// RateOverride is another limit for each of some callers.
type RateOverride struct {
	From              []Peer `json:"from"`
	RequestsPerSecond uint32 `json:"requestsPerSecond"`
}

// Rule allows, denies or records calls. All that is set must hold; each list is an "or".
type Rule struct {
	ID     string   `json:"id"` // "<service>/allow/<name>", "<service>/deny/<name>" or "<service>/audit/<name>"
	Action Action   `json:"action"`
	From   []Peer   `json:"from"`            // at least one
	Ports  []string `json:"ports,omitempty"` // port names, sorted; none set: every port
	// Routes are ids of the service's routes, sorted: the request must be one that one of them takes, by the port's
	// Matches. None set: every request and every connection.
	Routes []string `json:"routes,omitempty"`
	// Networks that the caller's address must be in one of; none set: any address.
	Networks []Network `json:"networks,omitempty"`
	// Methods, Paths, Headers, SNI and JWT are conditions on what is asked; with any of the first three, or JWT, a rule is
	// about requests, and never allows a connection in which no request can be seen.
	Methods []string      `json:"methods,omitempty"` // sorted
	Paths   []PathMatch   `json:"paths,omitempty"`   // exact, prefix or template
	Headers []HeaderMatch `json:"headers,omitempty"` // all must hold; sorted by name
	SNI     []string      `json:"sni,omitempty"`     // lower case; "*.example.org" covers all names under it
	JWT     *JWTMatch     `json:"jwt,omitempty"`
	// Until is when the rule ends (UTC); the zero time is never. From then on it is as if it were not there, but for one
	// thing: a port that an enforced allow rule guards stays guarded when the rule has ended, and denies what no other
	// rule allows. Time never opens a port to its default.
	Until time.Time `json:"until,omitzero"`
	// Shadow makes the rule observe only (`enforce: false`): it never changes a verdict, nor a port's default.
	Shadow bool `json:"shadow,omitempty"`
}

// Network is a range of addresses without some ranges inside it.
type Network struct {
	CIDR   netip.Prefix   `json:"cidr"`
	Except []netip.Prefix `json:"except,omitempty"` // sorted
}

// JWTMatch asks for a valid token of an issuer, with claims.
type JWTMatch struct {
	Issuer string       `json:"issuer"`           // JWTIssuer.Name
	Claims []ClaimMatch `json:"claims,omitempty"` // all must hold; sorted by name
}

// ClaimMatch asks that a claim, or an element of it, is one of some values.
type ClaimMatch struct {
	Name   string   `json:"name"`
	Values []string `json:"values"` // sorted
}

// Peer matches callers. Exactly one field is set.
type Peer struct {
	// Identity is one exact SPIFFE ID. `from: {service: …}` is compiled to the service's identities.
	Identity string `json:"identity,omitempty"`
	// Prefix matches SPIFFE IDs that begin so; it ends with "/". `from: {namespace: …}` is compiled to one.
	Prefix string `json:"prefix,omitempty"`
	// Suffix matches SPIFFE IDs whose path ends so; it begins with "/".
	Suffix string `json:"suffix,omitempty"`
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
	Ports      []OutboundPort `json:"ports"`            // sorted by name
	Routes     []Route        `json:"routes,omitempty"` // sorted by id
	// Consumers are how callers of some namespaces call the service instead, sorted by namespace.
	Consumers []Consumer `json:"consumers,omitempty"`
	Balancer  Balancer   `json:"balancer,omitzero"`
	// Breaker is for all routes that have none of their own; nil: the built-in one.
	Breaker *Breaker `json:"breaker,omitempty"`
	// MaxPending bounds the requests of one caller that wait for a connection; 0: the built-in 10000.
	MaxPending uint32       `json:"maxPending,omitempty"`
	Needs      []Capability `json:"needs,omitempty"`
}

// Consumer replaces the routes of a service's ports for callers of one namespace (consumer routes of the Gateway API).
// A port that is not here is called as everybody calls it.
type Consumer struct {
	Namespace string         `json:"namespace"`
	Ports     []OutboundPort `json:"ports"`  // sorted by name
	Routes    []Route        `json:"routes"` // sorted by id
}

// Balancer is how callers choose among a service's workloads; the zero Balancer is P2C with peak EWMA (Linkerd's).
type Balancer struct {
	Hash   *HashKey      `json:"hash,omitempty"` // consistent hashing by this key
	WarmUp time.Duration `json:"warmUp,omitempty"`
}

// HashKey is what a request is hashed by; exactly one field is set.
type HashKey struct {
	Header string `json:"header,omitempty"` // lower case
	Cookie string `json:"cookie,omitempty"`
	Source bool   `json:"source,omitempty"` // the caller's address
}

// Breaker is when callers stop using a workload that fails. Every field is resolved: nothing is left to a default.
type Breaker struct {
	Consecutive   uint32        `json:"consecutive,omitempty"` // failures in a row; 0 is off
	SuccessRate   PPM           `json:"successRate,omitempty"` // 0 is off
	Window        time.Duration `json:"window,omitempty"`
	MinRequests   uint32        `json:"minRequests,omitempty"`
	PenaltyMin    time.Duration `json:"penaltyMin,omitempty"`
	PenaltyMax    time.Duration `json:"penaltyMax,omitempty"`
	EjectionFloor PPM           `json:"ejectionFloor,omitempty"`
}

// OutboundPort is a declared port, seen by a caller.
type OutboundPort struct {
	Name     string   `json:"name"`
	Port     uint16   `json:"port"`
	Protocol Protocol `json:"protocol"`
	// Matches are all matches of all routes on this port, flattened and in Gateway API precedence (exact path, then
	// the longest prefix, then regular expressions, then any path; then method, then the number of headers, then of
	// query parameters, then the route's id): the first that matches wins.
	// None: every request goes to the service itself. Some but none matching: 404.
	Matches []Match `json:"matches,omitempty"`
	// Hosts are the names of TLS routes, exact ones first, then the longest suffix: the first that matches wins, and a
	// connection that none takes is closed. Only on ports that speak tls.
	Hosts []HostMatch `json:"hosts,omitempty"`
	// Connections is the id of the route that takes all connections of a tcp or opaque port; empty: the service itself.
	Connections string `json:"connections,omitempty"`
}

// HostMatch sends connections for a name to a route.
type HostMatch struct {
	Route string `json:"route"`
	// Name is a lower-case host name, "*." and one for all names under it, or "" for every connection.
	Name string `json:"name,omitempty"`
}

// Route says where matching requests go. In Inbound only ID, Port, Matches and RateLimit are set.
type Route struct {
	// ID is "<service>/httpRoutes/<name>" (or grpcRoutes, tlsRoutes, tcpRoutes), DefaultRouteID, or for a consumer's
	// "<namespace>/calls/<service>/httpRoutes/<name>".
	ID       string    `json:"id"`
	Port     string    `json:"port"`
	GRPC     bool      `json:"grpc,omitempty"`    // its requests are gRPC calls: failures are gRPC statuses
	Matches  []Match   `json:"matches,omitempty"` // of an Inbound's route, in any order; an Outbound's are on its ports
	Backends []Backend `json:"backends,omitempty"`
	Timeouts Timeouts  `json:"timeouts,omitzero"`
	Retry    *Retry    `json:"retry,omitempty"`
	Filters  []Filter  `json:"filters,omitempty"` // in the author's order
	Breaker  *Breaker  `json:"breaker,omitempty"`
	// RateLimit is enforced by the service's own sidecars, so it is set in Inbound only.
	RateLimit *RateLimit `json:"rateLimit,omitempty"`
}

// Retry is how failed requests are tried again. Every field is resolved.
type Retry struct {
	Tries uint32 `json:"tries"` // beyond the first
	// Statuses are ranges of HTTP statuses, sorted and apart; GRPC are codes, sorted. Failures to connect and refused
	// streams are always retried.
	Statuses     []StatusRange `json:"statuses,omitempty"`
	GRPC         []uint32      `json:"grpc,omitempty"`
	Timeout      time.Duration `json:"timeout,omitempty"` // of one try; 0: none
	BackoffMin   time.Duration `json:"backoffMin"`
	BackoffMax   time.Duration `json:"backoffMax"`
	Budget       PPM           `json:"budget"`       // of the requests
	MinPerSecond uint32        `json:"minPerSecond"` // retries allowed in any case
	Window       time.Duration `json:"window"`
	// Idempotent lets requests of every method be tried again; else only GET, HEAD, OPTIONS, TRACE, PUT and DELETE are
	// (RFC 9110, 9.2.2).
	Idempotent bool `json:"idempotent,omitempty"`
}

// StatusRange is inclusive.
type StatusRange struct {
	From uint16 `json:"from"`
	To   uint16 `json:"to"`
}

// Filter is one change; exactly one field is set.
type Filter struct {
	RequestHeaders  *HeaderEdit     `json:"requestHeaders,omitempty"`
	ResponseHeaders *HeaderEdit     `json:"responseHeaders,omitempty"`
	Redirect        *Redirect       `json:"redirect,omitempty"`
	Rewrite         *Rewrite        `json:"rewrite,omitempty"`
	Mirror          *Mirror         `json:"mirror,omitempty"`
	CORS            *CORS           `json:"cors,omitempty"`
	Respond         *DirectResponse `json:"respond,omitempty"`
	Fault           *Fault          `json:"fault,omitempty"`
}

// HeaderEdit removes, then sets, then adds. Names are lower case; lists are sorted by name.
type HeaderEdit struct {
	Remove []string      `json:"remove,omitempty"`
	Set    []HeaderField `json:"set,omitempty"`
	Add    []HeaderField `json:"add,omitempty"`
}

// HeaderField is a header line.
type HeaderField struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Redirect answers with a redirection; what is empty stays as it was.
type Redirect struct {
	Scheme string   `json:"scheme,omitempty"`
	Host   string   `json:"host,omitempty"`
	Port   uint16   `json:"port,omitempty"`
	Path   PathEdit `json:"path,omitzero"`
	Status uint16   `json:"status"`
}

// Rewrite changes the request for the backend.
type Rewrite struct {
	Host string   `json:"host,omitempty"`
	Path PathEdit `json:"path,omitzero"`
}

// PathEdit replaces the whole path or the prefix that the match named; at most one field is set.
type PathEdit struct {
	Full   string `json:"full,omitempty"`
	Prefix string `json:"prefix,omitempty"`
}

// Mirror sends copies of a share of the requests to another service, whose answers are dropped.
type Mirror struct {
	Service ServiceName `json:"service"`
	Port    string      `json:"port"`
	Share   PPM         `json:"share"`
}

// CORS answers preflight requests and marks responses (Fetch standard, 3.2).
type CORS struct {
	AllowOrigins     []string      `json:"allowOrigins"`
	AllowMethods     []string      `json:"allowMethods,omitempty"`
	AllowHeaders     []string      `json:"allowHeaders,omitempty"`
	ExposeHeaders    []string      `json:"exposeHeaders,omitempty"`
	AllowCredentials bool          `json:"allowCredentials,omitempty"`
	MaxAge           time.Duration `json:"maxAge"`
}

// DirectResponse answers in place of the backend.
type DirectResponse struct {
	Status uint16 `json:"status"`
	Body   string `json:"body,omitempty"`
}

// Fault delays or fails a share of the requests.
type Fault struct {
	Delay      time.Duration `json:"delay,omitempty"`
	DelayShare PPM           `json:"delayShare,omitempty"`
	Abort      uint16        `json:"abort,omitempty"` // status
	AbortShare PPM           `json:"abortShare,omitempty"`
}

// Match is one conjunction; the zero Match (but for Route) matches every request.
type Match struct {
	Route   string        `json:"route"` // the id of the route it selects
	Path    PathMatch     `json:"path,omitzero"`
	Method  string        `json:"method,omitempty"`  // upper case; empty: any
	Headers []HeaderMatch `json:"headers,omitempty"` // sorted by name
	// Query are conditions on parameters of the query, after form decoding; of a repeated one the first counts. Sorted by
	// name, which is case-sensitive.
	Query []HeaderMatch `json:"query,omitempty"`
}

// PathMatch matches the path of a request, without its query. At most one field is set; none: any path.
type PathMatch struct {
	Exact string `json:"exact,omitempty"`
	// Prefix matches by whole path elements, as Gateway API's PathPrefix: /a matches /a and /a/b, not /ab. It has no
	// trailing slash unless it is "/".
	Prefix string `json:"prefix,omitempty"`
	// Template matches element by element; an element "{name}" stands for any one that is not empty. Rules only.
	Template string `json:"template,omitempty"`
	// Regex is RE2 over the whole path, as it came. Routes only.
	Regex string `json:"regex,omitempty"`
}

// HeaderMatch matches one header. Name is lower case; repeated header lines are joined by "," before comparing
// (RFC 9110, 5.3). Exactly one of the others is set.
type HeaderMatch struct {
	Name    string   `json:"name"`
	Exact   string   `json:"exact,omitempty"`
	OneOf   []string `json:"oneOf,omitempty"`   // sorted. Rules only
	Present bool     `json:"present,omitempty"` // whatever it says. Rules only
	Regex   string   `json:"regex,omitempty"`   // RE2 over the whole value. Routes only
}

// Backend is a share of a route's requests.
type Backend struct {
	Service ServiceName `json:"service"`
	Port    string      `json:"port"` // a port name of Service
	// Weight is relative to the sum of the available backends' weights; 0 takes no requests.
	Weight uint32 `json:"weight"`
	// Filters change this backend's requests, after the route's own.
	Filters []Filter `json:"filters,omitempty"`
}

// Timeouts of a route, in nanoseconds; 0 is none.
type Timeouts struct {
	// Request bounds the whole exchange, from the last byte of the request's head to the last byte of the response.
	Request time.Duration `json:"request,omitempty"`
	// Response bounds the time from the last byte of the request to the last byte of the response.
	Response time.Duration `json:"response,omitempty"`
	// Idle bounds how long both sides may be silent.
	Idle time.Duration `json:"idle,omitempty"`
}

// Workload is a statically declared place where a service runs, behind a sidecar of its own.
type Workload struct {
	Name     string      `json:"name"` // "<namespace>/<workload>"
	Service  ServiceName `json:"service"`
	Identity string      `json:"identity"` // a SPIFFE ID, one of the service's
	// Address is "IP:port" of the sidecar's inbound mesh listener; empty when the workload reports it at enrolment.
	Address string            `json:"address,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	// Weight is the workload's share against its service's others; nil: 100.
	Weight *uint32 `json:"weight,omitempty"`
	Zone   string  `json:"zone,omitempty"`
}

// Group is a set of workloads that come and go, enrolled by a token of the group.
type Group struct {
	Name     string            `json:"name"` // "<namespace>/<group>"
	Service  ServiceName       `json:"service"`
	Identity string            `json:"identity"`
	Labels   map[string]string `json:"labels,omitempty"`
	Zone     string            `json:"zone,omitempty"`
	Max      uint32            `json:"max"`
}

// Egress is what a namespace says of destinations outside the mesh.
type Egress struct {
	Namespace string `json:"namespace"`
	// Default decides about what no rule names: "deny" or "allow".
	Default   Action       `json:"default"`
	DefaultID string       `json:"defaultID"`       // "<namespace>/egress-default"
	Rules     []EgressRule `json:"rules,omitempty"` // sorted by id
	Needs     []Capability `json:"needs,omitempty"`
}

// EgressRule allows or denies destinations; deny beats allow.
type EgressRule struct {
	ID       string        `json:"id"` // "<namespace>/egress/<name>"
	Action   Action        `json:"action"`
	Services []ServiceName `json:"services,omitempty"` // callers, sorted; none: every one of the namespace
	Hosts    []string      `json:"hosts,omitempty"`    // as HostMatch.Name, sorted
	Networks []Network     `json:"networks,omitempty"`
	Ports    []uint16      `json:"ports"` // sorted
	Protocol Protocol      `json:"protocol"`
	// OriginateTLS makes the caller's plaintext TLS on the way out.
	OriginateTLS bool `json:"originateTLS,omitempty"`
}

// Invariant is what must hold of a mesh; exactly one of Never, AlwaysMTLS and Only is set.
type Invariant struct {
	Name string `json:"name"`
	ID   string `json:"id"` // "invariants/<name>"
	// Never: no call of the flow is allowed. Only: no call to Flow.To is allowed but from Flow.From.
	Never *Flow `json:"never,omitempty"`
	Only  *Flow `json:"only,omitempty"`
	// AlwaysMTLS: no port of the target lets a caller in that proves no identity.
	AlwaysMTLS *Target `json:"alwaysMTLS,omitempty"`
}

// Flow is a set of calls.
type Flow struct {
	From []Peer `json:"from"` // as a rule's, but Unauthenticated means only those that prove no identity
	// Anyone is every caller, proven or not; From is empty then.
	Anyone bool   `json:"anyone,omitempty"`
	To     Target `json:"to"`
}

// Target is a set of requests to services.
type Target struct {
	Namespace string        `json:"namespace,omitempty"` // every service of it, or
	Services  []ServiceName `json:"services,omitempty"`  // these, sorted; neither: the whole mesh
	Ports     []string      `json:"ports,omitempty"`     // names; none: all
	Methods   []string      `json:"methods,omitempty"`   // none: all requests, and connections
	Paths     []PathMatch   `json:"paths,omitempty"`
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

// Route finds a route by id, a consumer's too.
func (o *Outbound) Route(id string) (*Route, bool) {
	for i := range o.Routes {
		if o.Routes[i].ID == id {
			return &o.Routes[i], true
		}
	}
	for i := range o.Consumers {
		for j := range o.Consumers[i].Routes {
			if o.Consumers[i].Routes[j].ID == id {
				return &o.Consumers[i].Routes[j], true
			}
		}
	}
	return nil, false
}

// For is a port as callers of a namespace use it: with their own routes, where they have some on it.
func (o *Outbound) For(namespace, port string) (*OutboundPort, bool) {
	for i := range o.Consumers {
		if o.Consumers[i].Namespace != namespace {
			continue
		}
		for j := range o.Consumers[i].Ports {
			if o.Consumers[i].Ports[j].Name == port {
				return &o.Consumers[i].Ports[j], true
			}
		}
	}
	return o.Port(port)
}

// EgressOf finds what a namespace says of destinations outside.
func (m *Mesh) EgressOf(namespace string) (*Egress, bool) {
	for i := range m.Egress {
		if m.Egress[i].Namespace == namespace {
			return &m.Egress[i], true
		}
	}
	return nil, false
}

// PeerNamespace is the namespace of an identity of the form spiffe://<trust domain>/ns/<namespace>/…, else "".
func PeerNamespace(identity string) string {
	_, rest, ok := strings.Cut(strings.TrimPrefix(identity, "spiffe://"), "/ns/")
	if !ok {
		return ""
	}
	ns, _, _ := strings.Cut(rest, "/")
	return ns
}
