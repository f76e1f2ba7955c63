// Package pipeline turns a decoded config into one immutable lookup value that both stacks of the sidecar read: which
// port of its own an inbound connection is for, which upstream a host name or an address means, and what it may say
// about a rule. [Build] checks and refuses; [Current] publishes a value by swapping one pointer. Lookups allocate
// nothing and take no lock.
//
// What outlives a config, because swapping it must not lose connections or what was learned of endpoints, is in
// [Clusters]. This package does no I/O, has no goroutine and knows no protobuf; proxy/config owns the stream.
package pipeline

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/proxy/balance"
	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

// Config is what the sidecar was given, decoded. Build keeps references into it; it must not be written afterwards.
type Config struct {
	Epoch     uint64
	Commit    string // 40 hexadecimal digits
	AppliedAt time.Time
	// Service is the one that this workload runs; its Inbound is enforced.
	Service   mesh.ServiceName
	Settings  *mesh.Settings
	Indexes   []*mesh.Index
	Inbound   []*mesh.Inbound
	Outbound  []*mesh.Outbound
	Endpoints map[mesh.ServiceName][]balance.Address
	Origins   []mesh.Origins
	// Refusals are destinations that the control plane does not serve to this workload.
	Refusals []Refusal
	// Apps is where the application listens, "host:port" by port name. A port without an entry is at
	// 127.0.0.1:<declared port>.
	Apps map[string]string
}

// Refusal says why a destination is not served.
type Refusal struct {
	Service mesh.ServiceName
	Reason  string // "unknown" or "denied"
	Rule    string // the rule id that decided, where denied
	Origin  string // file:line of that rule
}

// Deps are what outlives a Pipeline.
type Deps struct {
	Clusters  *Clusters
	Freshness *Freshness
}

// Pipeline is never written again once built. The zero Pipeline, and that of [New], is the one before the first config:
// every inbound port is unknown and every upstream is in state NoConfig, so that all is refused.
type Pipeline struct {
	Epoch     uint64
	Commit    string
	AppliedAt time.Time
	Service   mesh.ServiceName
	// TrustDomain is empty before the first config.
	TrustDomain string

	maxStale  time.Duration
	freshness *Freshness
	ports     []*InboundPort
	bySNI     map[string]*InboundPort
	byName    map[string]*InboundPort
	hosts     map[string]*host
	upstreams []*Upstream
	origins   map[string]string
	headers   map[string]string
	clusters  map[clusterKey]clusterSpec
}

// InboundPort is a port of the sidecar's own service. Never written again.
type InboundPort struct {
	Service mesh.ServiceName
	Inbound *mesh.Inbound
	Port    *mesh.InboundPort
	// SNI is the TLS server name that addresses the port.
	SNI string
	// App is where the application listens, "host:port".
	App string
}

// Authorize judges a request or a connection, as decide.Authorize does; where the config is too old to be believed
// (see Stale) what an identity would have been allowed is denied, by the same rule.
func (p *Pipeline) Authorize(port *InboundPort, r *decide.Request, now time.Time) decide.Verdict {
	return decide.Verdict{}
}

// State says what is known of a destination.
type State uint8

const (
	// NoConfig: there is no config yet. 503; it may come.
	NoConfig State = iota
	// Unknown: the mesh has no such service. Refuse.
	Unknown
	// UnknownPort: the service has no such port, or no port was named and there is not exactly one HTTP port. Refuse.
	UnknownPort
	// Pending: the service exists but is not subscribed: ask for it (config.Client.Want) and wait.
	Pending
	// Refused: the control plane does not serve it to this workload; Refusal says why.
	Refused
	// Known: Outbound, Port, Cluster and Routes are set.
	Known
)

// String is a lower-case word for logs and headers.
func (s State) String() string {
	return [...]string{"no-config", "unknown-host", "unknown-port", "pending", "refused", "known"}[s]
}

// Upstream is one port of a service, as a destination. Never written again; never nil from a lookup.
type Upstream struct {
	State   State
	Service mesh.ServiceName // empty where Unknown or NoConfig
	// PortName, PortNumber and Protocol are set from state Pending on.
	PortName   string
	PortNumber uint16
	Protocol   mesh.Protocol
	// Authority is the canonical "<service>.<namespace>.mesh:<port>", for labels.
	Authority string
	// Refusal is set where State is Refused.
	Refusal *Refusal

	// The rest is set where State is Known.

	Outbound *mesh.Outbound
	Port     *mesh.OutboundPort
	// Cluster balances over the service's endpoints and keeps their pools. It outlives the Pipeline.
	Cluster *Cluster

	routes map[*mesh.Route]*Route
}

// Route is a route of an Upstream with its backends resolved. Never written again.
type Route struct {
	*mesh.Route
	// Upstreams are the backends', by the index of Route.Backends; each is Known.
	Upstreams []*Upstream
}

// Match finds the route of a request: nil, true where the upstream has no routes and takes it itself; nil, false where
// it has some and none matches (404).
func (u *Upstream) Match(r *decide.Request) (*Route, bool) { return nil, true }

// InboundBySNI finds a port of the own service by TLS server name; nil: there is none.
func (p *Pipeline) InboundBySNI(name string) *InboundPort { return p.bySNI[name] }

// InboundByName finds a port of the own service by its name; nil: there is none.
func (p *Pipeline) InboundByName(name string) *InboundPort { return p.byName[name] }

// InboundPorts are the ports of the own service, sorted by name. Not to be written.
func (p *Pipeline) InboundPorts() []*InboundPort { return p.ports }

// ByName finds a port of a service by name, or by number in decimal.
func (p *Pipeline) ByName(s mesh.ServiceName, port string) *Upstream { return nil }

// ByHost finds the upstream of an authority, "api.shop.mesh" or "api.shop.mesh:8080", in any case and with or without a
// trailing dot. Without a port it is the service's only HTTP port (the only one of protocol http1, else the only one of
// protocol detect). Anything that is no legal authority of the mesh is Unknown.
func (p *Pipeline) ByHost(authority []byte) *Upstream { return nil }

// Origin is where a rule, a route or a default was written, "file:line"; empty where that is not known.
func (p *Pipeline) Origin(id string) string { return p.origins[id] }

// PolicyHeader is the value of heddle-policy for a rule of the own service: "<commit> <rule id> <file:line>".
func (p *Pipeline) PolicyHeader(rule string) string { return p.headers[rule] }

// Stale reports whether the config was last confirmed by a control plane longer ago than Settings.MaxStale: then
// routing goes on, and no identity is allowed anything (decisions.md, 17).
func (p *Pipeline) Stale(now time.Time) bool { return false }

// Freshness is when a control plane last confirmed the config. It is shared by all Pipelines of a sidecar.
type Freshness struct {
	confirmed atomic.Int64 // unix nanoseconds
	lifetime  atomic.Int64 // of the sidecar's SVID, nanoseconds
}

// Confirm records that a control plane confirmed the config at a time.
func (f *Freshness) Confirm(t time.Time) { f.confirmed.Store(t.UnixNano()) }

// Confirmed is the last confirmation; the zero time where there was none.
func (f *Freshness) Confirmed() time.Time {
	if n := f.confirmed.Load(); n != 0 {
		return time.Unix(0, n)
	}
	return time.Time{}
}

// SetLifetime records how long the sidecar's SVIDs live: the bound where the mesh sets none.
func (f *Freshness) SetLifetime(d time.Duration) { f.lifetime.Store(int64(d)) }

// Target is what a pool connects to. A change of anything in it makes a new pool.
type Target struct {
	Service  mesh.ServiceName
	Port     string // the port's name
	Protocol mesh.Protocol
	SNI      string
	// Identities are the SPIFFE IDs of which the server must prove one.
	Identities []spiffe.ID
	Addr       netip.AddrPort
	Workload   string
}

// Pool is what the data path keeps for one endpoint: its connections. It is made by Clusters' function, reached
// through balance.Endpoint.Pool, and retired once, when its endpoint leaves: idle connections are closed at once, those
// in use finish.
type Pool interface {
	Retire()
}

// Endpoint is one endpoint of a cluster.
type Endpoint = balance.Endpoint[Pool]

// Cluster is the endpoints of one port of a service, with their balancing state and pools.
type Cluster struct {
	balance.Set[Pool]
	Service mesh.ServiceName
	Port    string
}

type clusterKey struct {
	service    mesh.ServiceName
	port       string
	protocol   mesh.Protocol
	identities string // joined by spaces
}

type clusterSpec struct {
	cluster   *Cluster
	addresses []balance.Address
}

type host struct{}

// Clusters keeps the Cluster of each (service, port, protocol, identities) over config swaps.
type Clusters struct {
	newPool func(Target) Pool
	now     func() time.Time
	m       map[clusterKey]*Cluster
}

// NewClusters keeps pools that newPool makes. now is the clock.
func NewClusters(newPool func(Target) Pool, now func() time.Time) *Clusters {
	return &Clusters{newPool: newPool, now: now, m: map[clusterKey]*Cluster{}}
}

// Current is the published Pipeline. Use [NewCurrent].
type Current struct {
	p atomic.Pointer[Pipeline]
}

// NewCurrent publishes the empty Pipeline.
func NewCurrent() *Current {
	c := &Current{}
	c.p.Store(&Pipeline{})
	return c
}

// Load is the current Pipeline; never nil. Take it once per request or connection, so that one config decides.
func (c *Current) Load() *Pipeline { return c.p.Load() }

// Publish swaps in a Pipeline of Build: endpoints it adds are there before it serves, those it lacks are retired after.
// The returned Pipeline's watchers are told. Calls must not overlap.
func (c *Current) Publish(p *Pipeline, d Deps) {}

// Changed returns the current Pipeline and a channel that is closed when another one is published.
func (c *Current) Changed() (*Pipeline, <-chan struct{}) { return nil, nil }

// Build checks a config and makes the Pipeline of it. An error names what is wrong; the config must then be refused
// whole. Nothing of d is changed before Publish.
func Build(c Config, d Deps) (*Pipeline, error) { return nil, nil }
