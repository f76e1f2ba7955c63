// Package pipeline turns a decoded config into one immutable lookup value that both stacks of the sidecar read: which
// port of its own an inbound connection is for, which upstream a host name or an address means, and what it may say
// about a rule. [Build] checks and refuses; [Current] publishes a value by swapping one pointer. Lookups allocate
// nothing and take no lock.
//
// What outlives a config, because swapping it must not lose connections or what was learned of endpoints, is in
// [Clusters]. This package does no I/O, has no goroutine and knows no protobuf; proxy/config owns the stream.
package pipeline

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// Pipeline is never written again once built. The zero Pipeline is the one before the first config: every inbound port
// is unknown and every upstream is in state NoConfig, so that all is refused.
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
	hosts     map[string]*service // by "<service>.<namespace>.mesh"
	services  map[mesh.ServiceName]*service
	upstreams []*Upstream
	origins   map[string]string
	headers   map[string]string
	ends      []time.Time // of the own service's rules
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
	// Judged are the headers, in lower case, that enforced rules of the port go by.
	Judged []string
	// Observes is set where something is recorded beside the verdicts: audit and shadow rules, and the audit mode.
	Observes bool
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
	// Known: Outbound, Port, Cluster and the routes are set.
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
	// Authority is the canonical "<service>.<namespace>.mesh:<port>", for labels. Without a port it is where State is
	// UnknownPort, and empty where Service is.
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
// it has some and none matches (404). The Upstream must be Known.
func (u *Upstream) Match(r *decide.Request) (*Route, bool) {
	route, ok := decide.MatchRoute(u.Outbound, u.Port, r)
	if route == nil {
		return nil, ok
	}
	return u.routes[route], true
}

// InboundBySNI finds a port of the own service by TLS server name; nil: there is none.
func (p *Pipeline) InboundBySNI(name string) *InboundPort { return p.bySNI[name] }

// InboundByName finds a port of the own service by its name; nil: there is none.
func (p *Pipeline) InboundByName(name string) *InboundPort {
	for _, in := range p.ports {
		if in.Port.Name == name {
			return in
		}
	}
	return nil
}

// InboundPorts are the ports of the own service, sorted by name. Not to be written.
func (p *Pipeline) InboundPorts() []*InboundPort { return p.ports }

// Upstreams are all that are Known, sorted by service and port name. Not to be written.
func (p *Pipeline) Upstreams() []*Upstream { return p.upstreams }

// Authorize judges a request or a connection as decide.Authorize does, with one difference: while the config is too old
// to be believed (see Stale), a proven identity allows nothing that a stranger would not be allowed. Denials hold. The
// request is judged at now, which is noted in it.
func (p *Pipeline) Authorize(port *InboundPort, r *decide.Request, now time.Time) decide.Verdict {
	r.Now = now
	v := decide.Authorize(port.Inbound, port.Port, r)
	if v.Allowed && r.Peer != "" && p.Stale(now) {
		stranger := *r
		stranger.Peer = ""
		if s := decide.Authorize(port.Inbound, port.Port, &stranger); !s.Allowed {
			return s
		}
	}
	return v
}

// Ended reports whether a rule of the own service ended after a time and not after another one: what was allowed then
// must be judged again.
func (p *Pipeline) Ended(after, until time.Time) bool {
	return slices.ContainsFunc(p.ends, func(t time.Time) bool { return t.After(after) && !t.After(until) })
}

// Origin is where a rule, a route or a default was written, "file:line"; empty where that is not known.
func (p *Pipeline) Origin(id string) string { return p.origins[id] }

// PolicyHeader is the value of heddle-policy for a rule of the own service: "<commit> <rule id> <file:line>", with "-"
// for an origin that is not known.
func (p *Pipeline) PolicyHeader(rule string) string { return p.headers[rule] }

// Stale reports whether the config was last confirmed by a control plane longer ago than Settings.MaxStale: then
// routing goes on, and no identity is allowed anything (decisions.md, 17).
func (p *Pipeline) Stale(now time.Time) bool {
	if p.freshness == nil {
		return false
	}
	bound := cmp.Or(p.maxStale, time.Duration(p.freshness.lifetime.Load()))
	return bound > 0 && now.Sub(p.freshness.Confirmed()) > bound
}

// ConfirmedAt is when a control plane last confirmed the config; the zero time where there is none.
func (p *Pipeline) ConfirmedAt() time.Time {
	if p.freshness == nil {
		return time.Time{}
	}
	return p.freshness.Confirmed()
}

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

// Current is the published Pipeline. Use [NewCurrent].
type Current struct {
	p atomic.Pointer[published]
}

type published struct {
	pipeline *Pipeline
	replaced chan struct{} // closed when another one is published
}

// NewCurrent publishes the empty Pipeline.
func NewCurrent() *Current {
	c := &Current{}
	c.p.Store(&published{&Pipeline{}, make(chan struct{})})
	return c
}

// Load is the current Pipeline; never nil. Take it once per request or connection, so that one config decides.
func (c *Current) Load() *Pipeline { return c.p.Load().pipeline }

// Changed returns the current Pipeline and a channel that is closed when another one is published.
func (c *Current) Changed() (*Pipeline, <-chan struct{}) {
	p := c.p.Load()
	return p.pipeline, p.replaced
}

// Publish swaps in a Pipeline of Build, which had the same Clusters: endpoints that it adds are there before it serves,
// those that it lacks are retired after. Calls must not overlap, nor one with a Build.
func (c *Current) Publish(p *Pipeline, clusters *Clusters) {
	retire := clusters.update(p.clusters)
	old := c.p.Swap(&published{p, make(chan struct{})})
	close(old.replaced)
	for _, e := range retire {
		e.Pool.Retire()
	}
}
