package pipeline

import (
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/proxy/balance"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

// Target is what a pool connects to. A change of anything in it but Workload makes a new pool.
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

// Pool is what the data path keeps for one endpoint: its connections. It is made by the function that [NewClusters] was
// given, reached through Endpoint.Pool, and retired once, when its endpoint leaves: idle connections are closed at once,
// those in use finish. It may still be asked for connections afterwards, by whoever picked the endpoint before.
type Pool interface {
	Retire()
}

// Endpoint is one endpoint of a cluster.
type Endpoint = balance.Endpoint[Pool]

// Cluster is the endpoints of one port of a service, with their balancing state and pools.
type Cluster struct {
	balance.Set[Pool]
	Service mesh.ServiceName
	Port    string // the port's name

	key clusterKey
	sni string
	ids []spiffe.ID
}

// clusterKey is what makes connections interchangeable: one that proved an identity which the service lost must not
// serve it.
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

// Clusters keeps the Cluster of each (service, port, protocol, identities) over config swaps, so that swapping loses
// neither connections nor what was learned of endpoints.
type Clusters struct {
	newPool func(Target) Pool
	now     func() time.Time

	mu sync.Mutex
	m  map[clusterKey]*Cluster // guarded by mu
}

// NewClusters keeps pools that newPool makes. now is the clock, time.Now where nil.
func NewClusters(newPool func(Target) Pool, now func() time.Time) *Clusters {
	if now == nil {
		now = time.Now
	}
	return &Clusters{newPool: newPool, now: now, m: map[clusterKey]*Cluster{}}
}

// cluster finds a cluster, or makes an empty one that is not kept before update.
func (c *Clusters) cluster(o *mesh.Outbound, port *mesh.OutboundPort, ids []spiffe.ID) *Cluster {
	key := clusterKey{o.Service, port.Name, port.Protocol, strings.Join(o.Identities, " ")}
	c.mu.Lock()
	defer c.mu.Unlock()
	if found := c.m[key]; found != nil {
		return found
	}
	return &Cluster{Service: o.Service, Port: port.Name, key: key, sni: spiffe.SNI(o.Service, port.Name), ids: ids}
}

// update keeps exactly the given clusters, gives them their endpoints, and returns the endpoints that left.
func (c *Clusters) update(want map[clusterKey]clusterSpec) (left []*Endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	for key, spec := range want {
		cl := spec.cluster
		c.m[key] = cl
		left = append(left, cl.Update(spec.addresses, now, func(a balance.Address) Pool {
			return c.newPool(Target{
				Service: cl.Service, Port: cl.Port, Protocol: key.protocol, SNI: cl.sni, Identities: cl.ids,
				Addr: a.Addr, Workload: a.Workload,
			})
		})...)
	}
	for key, cl := range c.m {
		if _, ok := want[key]; !ok {
			delete(c.m, key)
			left = append(left, cl.Endpoints()...) // whoever has picked the cluster keeps its endpoints
		}
	}
	return left
}
