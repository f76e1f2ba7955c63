// Package observe counts what the sidecar does, and writes it down as Prometheus text and as a summary per edge.
//
// Metric names and labels are Linkerd's where a dashboard would break otherwise. A series is found by looking up a
// comparable [Key], without allocation; the number of series is bounded, and what does not fit is counted in an overflow
// series; series that nothing happens to leave after ten minutes. There is no client library: it would cost more memory
// than the rest of an idle sidecar. The package does no I/O and starts no goroutine; proxy/admin serves what it writes.
package observe

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
)

// Direction is seen from the workload: inbound traffic is for it, outbound traffic is its own.
type Direction string

const (
	Inbound  Direction = "inbound"
	Outbound Direction = "outbound"
)

// Limits of a Registry.
const (
	// MaxSeries bounds the label sets of each family; one more for each direction takes the overflow.
	MaxSeries = 4096
	// MaxEdges bounds the peers of the traffic summary.
	MaxEdges = 1024
	// maxCodes bounds the status codes of one label set; what does not fit is counted as code 0.
	maxCodes = 32
	// IdleAfter is how long a series stays that nothing happens to.
	IdleAfter = 10 * time.Minute
)

// Key is the labels that all traffic series share. Every string in it must be one that lives anyway (of the Pipeline,
// of the connection's peer), so that making a Key allocates nothing, and none may be the caller's choice.
type Key struct {
	Direction Direction
	// TLS is whether the mesh's side of the connection was mutually authenticated.
	TLS bool
	// Peer is the client's SPIFFE ID (inbound) or the server's (outbound); empty: none was proven.
	Peer string
	// Service and Port are the destination: the own service (inbound) or the one that was asked for (outbound).
	Service mesh.ServiceName
	Port    uint16
	// Authority is the canonical one of pipeline.Upstream; outbound only. Never what a client sent.
	Authority string
	// Route is the id of the matched route, if any.
	Route string
	// Backend is the service that the route chose, if another than Service.
	Backend mesh.ServiceName

	overflow bool // the labels of what does not fit
}

// Registry has all series. Its methods may be called by any number of goroutines. Use [New].
type Registry struct {
	now     func() time.Time
	started time.Time
	http    family[Key, HTTP]
	tcp     family[Key, TCP]
	authz   family[authzKey, authz]
	errors  family[errorKey, counter]
	edges   family[edgeKey, edge]

	mu         sync.Mutex // guards collectors
	collectors []func(*Writer)
}

type authzKey struct {
	Key
	rule         string
	allowed, tcp bool
	observed     bool // by a rule that decides nothing
}

type authz struct {
	counter
	edge *edge
}

type errorKey struct {
	direction Direction
	tcp       bool
	reason    string
}

type counter struct{ n atomic.Uint64 }

func (c *counter) total() uint64 { return c.n.Load() }

// New returns an empty Registry. now is the clock, time.Now where nil.
func New(now func() time.Time) *Registry {
	if now == nil {
		now = time.Now
	}
	r := &Registry{now: now, started: now()}
	r.edges = newFamily(MaxEdges, func(edgeKey) *edge { return &edge{} }, func(k edgeKey) edgeKey {
		return edgeKey{service: otherPeers, inbound: k.inbound, tcp: k.tcp}
	})
	r.http = newFamily(MaxSeries, func(k Key) *HTTP { return &HTTP{edge: r.outboundEdge(k, false), tls: k.TLS} }, overflow)
	r.tcp = newFamily(MaxSeries, func(k Key) *TCP {
		t := &TCP{tls: k.TLS}
		if dialled(k) {
			t.edge = r.outboundEdge(k, true)
		}
		return t
	}, overflow)
	r.authz = newFamily(MaxSeries, func(k authzKey) *authz {
		a := &authz{}
		switch {
		case k.observed:
		case k.Direction == Outbound:
			a.edge = r.outboundEdge(k.Key, k.tcp)
		case !k.allowed:
			a.edge = r.edges.get(edgeKey{caller(k.Peer), true, k.tcp})
		}
		return a
	}, func(k authzKey) authzKey {
		return authzKey{Key: overflow(k.Key), allowed: k.allowed, tcp: k.tcp, observed: k.observed}
	})
	r.errors = newFamily(256, func(errorKey) *counter { return &counter{} },
		func(k errorKey) errorKey { return errorKey{direction: k.direction, tcp: k.tcp} })
	return r
}

// overflow is the label set of what does not fit.
func overflow(k Key) Key { return Key{Direction: k.Direction, overflow: true} }

// outboundEdge is the peer that a label set's traffic goes to.
func (r *Registry) outboundEdge(k Key, tcp bool) *edge {
	if k.Direction != Outbound || k.Service == "" {
		return nil
	}
	return r.edges.get(edgeKey{string(cmp.Or(k.Backend, k.Service)), false, tcp})
}

// dialled tells an outbound connection that carries bytes to a sidecar, whose server was proven, from one that the
// application made to speak HTTP: the requests of that one are counted themselves.
func dialled(k Key) bool { return k.Direction == Outbound && k.Peer != "" }

// HTTP finds or makes the series of a key. Take it for each request, and do not keep it longer: a series that was idle
// leaves, and what is then added to it is lost.
func (r *Registry) HTTP(k Key) *HTTP { return r.http.get(k) }

// HTTP counts the requests of one Key.
type HTTP struct {
	requests atomic.Uint64
	latency  Histogram
	codes    codes
	edge     *edge
	tls      bool
}

func (h *HTTP) total() uint64 { return h.requests.Load() + h.latency.count() }

// Request counts a request whose head was read (and, outbound, sent on).
func (h *HTTP) Request() { h.requests.Add(1) }

// Response counts a finished exchange: the status the caller got, whether it counts as a success (a status below 500
// and a body that came whole), and the time from the request's head to the response's last byte.
func (h *HTTP) Response(status int, success bool, latency time.Duration) {
	h.codes.add(status, success)
	h.latency.Observe(latency)
	if h.edge != nil {
		h.edge.requests.Add(1)
		if success {
			h.edge.successes.Add(1)
		}
		h.edge.latency.Observe(latency)
		if h.tls { // else there was no connection: what goes out is never plaintext
			h.edge.mtls.Store(true)
		}
	}
}

// TCP finds or makes the series of a key. It may be kept while a connection of it is open.
func (r *Registry) TCP(k Key) *TCP { return r.tcp.get(k) }

// TCP counts the connections of one Key; those that carry HTTP are TCP connections too.
type TCP struct {
	opened, closed      atomic.Uint64
	readBytes, wroteAll atomic.Uint64
	lived               Histogram
	errnos              sync.Map // string → *counter; few
	edge                *edge
	tls                 bool
}

func (t *TCP) total() uint64 {
	// An open connection keeps its series: the sum is never the same twice while there is one.
	if open := t.opened.Load() - t.closed.Load(); open != 0 {
		return ^uint64(0)
	}
	return t.opened.Load() + t.readBytes.Load() + t.wroteAll.Load()
}

// Open counts a connection that was accepted or dialled. Each is followed by one Close.
func (t *TCP) Open() {
	t.opened.Add(1)
	if t.edge != nil {
		t.edge.open.Add(1)
		t.edge.mtls.Store(t.tls)
	}
}

// Close counts its end. errno is "" for a clean end, else a word such as "ECONNRESET"; it must be one of few. failed
// says whether it ended by a fault of the upstream.
func (t *TCP) Close(errno string, lived time.Duration, failed bool) {
	c, ok := t.errnos.Load(errno)
	if !ok {
		c, _ = t.errnos.LoadOrStore(errno, &counter{})
	}
	c.(*counter).n.Add(1)
	t.lived.Observe(lived)
	t.closed.Add(1)
	if t.edge != nil {
		t.edge.open.Add(-1)
		t.edge.requests.Add(1)
		if !failed {
			t.edge.successes.Add(1)
		}
	}
}

// Read counts bytes read from the peer.
func (t *TCP) Read(n int) { t.readBytes.Add(uint64(n)) }

// Write counts bytes written to the peer.
func (t *TCP) Write(n int) { t.wroteAll.Add(uint64(n)) }

// Authz counts a verdict about an HTTP request, or about a connection, to a port of the own service. k.Peer is the
// caller.
func (r *Registry) Authz(k Key, rule string, allowed, tcp bool) {
	a := r.authz.get(authzKey{Key: k, rule: rule, allowed: allowed, tcp: tcp})
	a.n.Add(1)
	if a.edge != nil {
		a.edge.deny(rule)
		a.edge.mtls.Store(k.TLS)
	}
}

// Observed counts a request, or a connection, that a rule matched which only observes, or that a port's audit mode let in.
func (r *Registry) Observed(k Key, rule string, tcp bool) {
	r.authz.get(authzKey{Key: k, rule: rule, tcp: tcp, observed: true}).n.Add(1)
}

// Refused counts an outbound request or connection that policy refused: the control plane does not serve the
// destination, or the server's sidecar said so. rule is the id of the rule that decided, where it is known.
func (r *Registry) Refused(k Key, rule string, tcp bool) {
	a := r.authz.get(authzKey{Key: k, rule: rule, tcp: tcp})
	a.n.Add(1)
	if a.edge != nil {
		a.edge.deny(rule)
	}
}

// Error counts a request or a connection that the sidecar itself ended, by the reason in heddle-error. reason must be
// one of few.
func (r *Registry) Error(d Direction, tcp bool, reason string) {
	r.errors.get(errorKey{d, tcp, reason}).n.Add(1)
}

// caller is the name of the other side in the traffic summary: the service of an identity of the usual form, else the
// identity itself.
func caller(id string) string {
	const ns, sa = "/ns/", "/sa/"
	if id == "" {
		return "unauthenticated"
	}
	s := mesh.ServiceName("")
	for i := len("spiffe://"); i+len(ns) < len(id); i++ {
		if id[i] == '/' {
			if rest := id[i:]; rest[:len(ns)] == ns {
				for j := len(ns); j+len(sa) < len(rest); j++ {
					if rest[j] == '/' {
						if rest[j:j+len(sa)] == sa {
							s = mesh.Name(rest[len(ns):j], rest[j+len(sa):])
						}
						break
					}
				}
			}
			break
		}
	}
	if s == "" || slices.Contains([]byte(s.Local()), '/') {
		return id
	}
	return string(s)
}

// otherPeers is the name of the peers that do not fit into the traffic summary.
const otherPeers = "other"

// edgeKey is one direction of traffic with one peer. Bytes are apart from requests: a peer may have ports of both kinds,
// and a connection is no request.
type edgeKey struct {
	service      string
	inbound, tcp bool
}

type edge struct {
	requests, successes, denied atomic.Uint64
	open                        atomic.Int64 // connections that carry bytes
	mtls                        atomic.Bool
	latency                     Histogram
	rule                        atomic.Pointer[string]
}

func (e *edge) total() uint64 { return ^uint64(0) } // edges are cumulative since the process started: they stay

func (e *edge) deny(rule string) {
	e.denied.Add(1)
	if p := e.rule.Load(); p == nil || *p != rule {
		r := rule // so that only a change allocates
		e.rule.Store(&r)
	}
}

// Edge is the traffic with one peer since the process started; see proxyapi.EdgeTraffic.
type Edge struct {
	Service                     string
	Inbound                     bool
	Requests, Successes, Denied uint64
	Open                        uint64 // TCP connections that are open now
	MTLS, TCP                   bool
	Latency                     []uint64 // by proxyapi.LatencyBounds, the last one is +Inf
	Rule                        string
}

// Edges are sorted by direction and service, TCP after HTTP.
func (r *Registry) Edges() []Edge {
	var out []Edge
	for k, e := range r.edges.all() {
		x := Edge{
			Service: k.service, Inbound: k.inbound, Requests: e.requests.Load(), Successes: e.successes.Load(),
			Denied: e.denied.Load(), Open: uint64(max(e.open.Load(), 0)), MTLS: e.mtls.Load(), TCP: k.tcp, Latency: e.latency.counts(),
		}
		if p := e.rule.Load(); p != nil {
			x.Rule = *p
		}
		if x.Requests+x.Denied+x.Open > 0 {
			out = append(out, x)
		}
	}
	slices.SortFunc(out, func(a, b Edge) int {
		return cmp.Or(before(a.Inbound, b.Inbound), cmp.Compare(a.Service, b.Service), before(a.TCP, b.TCP))
	})
	return out
}

// before orders false before true.
func before(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// Histogram counts durations by proxyapi.LatencyBounds. The zero Histogram is empty.
type Histogram struct {
	buckets [26]atomic.Uint64
	micros  atomic.Uint64 // the sum, in microseconds
}

var bounds = func() (b [25]time.Duration) {
	for i, ms := range proxyapi.LatencyBounds {
		b[i] = time.Duration(ms * float64(time.Millisecond))
	}
	return b
}()

// Observe counts one duration.
func (h *Histogram) Observe(d time.Duration) {
	i, _ := slices.BinarySearch(bounds[:], d)
	h.buckets[i].Add(1)
	h.micros.Add(uint64(max(d, 0).Microseconds()))
}

func (h *Histogram) counts() []uint64 {
	out := make([]uint64, len(h.buckets))
	for i := range h.buckets {
		out[i] = h.buckets[i].Load()
	}
	return out
}

func (h *Histogram) count() (n uint64) {
	for i := range h.buckets {
		n += h.buckets[i].Load()
	}
	return n
}

// codes counts responses by status and class. The list only grows and is never written again once published.
type codes struct {
	list atomic.Pointer[[]*code]
	mu   sync.Mutex // orders those who add
}

type code struct {
	counter
	status  int
	success bool
}

func (c *codes) all() []*code {
	if l := c.list.Load(); l != nil {
		return *l
	}
	return nil
}

func (c *codes) find(status int, success bool) *code {
	for _, x := range c.all() {
		if x.status == status && x.success == success {
			return x
		}
	}
	return nil
}

func (c *codes) add(status int, success bool) {
	x := c.find(status, success)
	if x == nil {
		c.mu.Lock()
		if len(c.all()) >= maxCodes-2 { // room for code 0 of both classes
			status = 0
		}
		if x = c.find(status, success); x == nil {
			x = &code{status: status, success: success}
			next := append(slices.Clone(c.all()), x)
			c.list.Store(&next)
		}
		c.mu.Unlock()
	}
	x.n.Add(1)
}
