// Package balance spreads requests over the endpoints of one cluster: power of two choices over peak-EWMA costs, as
// Linkerd does it. It is a pure core: time and random numbers are arguments, nothing blocks, no goroutine runs, and a
// pick allocates nothing. It knows no wire format and opens no connection; what an endpoint's connections are is the
// type parameter's business. It imports nothing of ours.
package balance

import (
	"math"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

// Linkerd's constants (linkerd2-proxy, balancer defaults).
const (
	// DefaultRTT seeds the estimate of an endpoint that was never measured.
	DefaultRTT = 30 * time.Millisecond
	// Decay is the time constant by which estimates age.
	Decay = 10 * time.Second
	// MinPenalty and MaxPenalty bound how long an endpoint that cannot be connected to is left out. The time doubles
	// with each consecutive failure.
	MinPenalty = time.Second
	MaxPenalty = time.Minute
	// PenaltyJitter is the largest share by which a penalty is prolonged, so that clients do not probe in step.
	PenaltyJitter = 0.5
)

// Address is one place where a service runs, as discovery names it.
type Address struct {
	Addr netip.AddrPort
	// Weight is relative to the others'; 0 is read as 1.
	Weight uint32
	// Workload is the name of what runs there; it may be empty.
	Workload string
}

// Set is the balancing state of one cluster. Pick and the methods of endpoints may be called by any number of
// goroutines; Update by one at a time.
type Set[P any] struct {
	list atomic.Pointer[list[P]]
	// out counts the endpoints that have failed and not been reached since, so that the common case needs no look at
	// each. It may lag by the calls in flight; a wrong value costs a scan or one pick of a bad endpoint.
	out atomic.Int32
}

// list is never written again once published.
type list[P any] struct {
	endpoints []*Endpoint[P]
	// sums[i] is the sum of the weights up to and including i; nil where all weights are equal.
	sums []uint64
	mean float64 // of the weights
}

// Endpoint is one place of a Set with what was learned of it. Addr and Pool are never written again.
type Endpoint[P any] struct {
	Address
	// Pool is whatever the owner keeps for the endpoint, as its idle connections.
	Pool P

	set      *Set[P]
	inflight atomic.Int64
	// The estimate of the round trip in nanoseconds, as float64 bits, and when it was made. Written apart: a reader
	// that sees one of them new ages the estimate slightly wrong for one pick.
	estimate atomic.Uint64
	stamp    atomic.Int64
	// failures counts consecutive connect failures; until is when it may be tried again.
	failures atomic.Int32
	until    atomic.Int64
	weight   atomic.Uint32
}

// Endpoints returns the endpoints, in the order of Update. The slice is not to be written.
func (s *Set[P]) Endpoints() []*Endpoint[P] {
	if l := s.list.Load(); l != nil {
		return l.endpoints
	}
	return nil
}

// Len is the number of endpoints, out or not.
func (s *Set[P]) Len() int { return len(s.Endpoints()) }

// Update replaces the endpoints. Those that stay keep what was learned of them and their Pool; for the new ones pool
// is called. It returns the ones that left, for the caller to retire: picks made before may still use them.
func (s *Set[P]) Update(addresses []Address, now time.Time, pool func(Address) P) (left []*Endpoint[P]) {
	old := map[netip.AddrPort]*Endpoint[P]{}
	for _, e := range s.Endpoints() {
		old[e.Addr] = e
	}
	l := &list[P]{endpoints: make([]*Endpoint[P], 0, len(addresses))}
	equal, total := true, uint64(0)
	for _, a := range addresses {
		a.Weight = max(a.Weight, 1)
		e := old[a.Addr]
		if e == nil {
			e = &Endpoint[P]{Address: a, Pool: pool(a), set: s}
			e.estimate.Store(math.Float64bits(float64(DefaultRTT)))
			e.stamp.Store(now.UnixNano())
		}
		delete(old, a.Addr)
		e.weight.Store(a.Weight)
		equal = equal && a.Weight == addresses[0].weightOr1()
		total += uint64(a.Weight)
		l.endpoints = append(l.endpoints, e)
		l.sums = append(l.sums, total)
	}
	if equal {
		l.sums = nil
	}
	if n := len(l.endpoints); n > 0 {
		l.mean = float64(total) / float64(n)
	}
	s.list.Store(l)
	for _, e := range old {
		if e.failures.Swap(0) > 0 {
			s.out.Add(-1)
		}
		left = append(left, e)
	}
	slices.SortFunc(left, func(a, b *Endpoint[P]) int { return a.Addr.Compare(b.Addr) })
	return left
}

func (a Address) weightOr1() uint32 { return max(a.Weight, 1) }

// Pick chooses an endpoint and counts a request in flight there: each pick must be followed by exactly one Done. random
// is uniformly distributed. avoid, where not nil, is passed over if there is any other (a retry's failed endpoint).
// Endpoints that are out are passed over while any is in; where all are out, all are in, since a last hope is better
// than none. Pick returns nil only for an empty set.
func (s *Set[P]) Pick(now time.Time, random uint64, avoid *Endpoint[P]) *Endpoint[P] {
	l := s.list.Load()
	if l == nil || len(l.endpoints) == 0 {
		return nil
	}
	n := now.UnixNano()
	var e *Endpoint[P]
	switch {
	case len(l.endpoints) == 1:
		e = l.endpoints[0]
	case s.out.Load() == 0 && avoid == nil:
		e = l.pick(n, random)
	default:
		e = l.pickAmong(n, random, avoid)
	}
	e.inflight.Add(1)
	return e
}

// pick is the choice where every endpoint is in.
func (l *list[P]) pick(now int64, random uint64) *Endpoint[P] {
	r1, r2 := random>>32, random&(1<<32-1)
	if l.sums != nil {
		return cheaper(l, now, l.byWeight(r1), l.byWeight(r2))
	}
	n := uint64(len(l.endpoints))
	i, j := r1*n>>32, r2*(n-1)>>32
	if j >= i {
		j++ // two different ones
	}
	return cheaper(l, now, l.endpoints[i], l.endpoints[j])
}

// byWeight samples an endpoint in proportion to its weight; r has 32 bits.
func (l *list[P]) byWeight(r uint64) *Endpoint[P] {
	total := l.sums[len(l.sums)-1]
	i, _ := slices.BinarySearch(l.sums, r*total>>32+1)
	return l.endpoints[i]
}

// pickAmong passes over those that are out, and avoid.
func (l *list[P]) pickAmong(now int64, random uint64, avoid *Endpoint[P]) *Endpoint[P] {
	usable := func(e *Endpoint[P]) bool { return e != avoid && e.until.Load() <= now }
	count := 0
	for _, e := range l.endpoints {
		if usable(e) {
			count++
		}
	}
	if count == 0 {
		usable = func(e *Endpoint[P]) bool { return e != avoid }
		for _, e := range l.endpoints {
			if usable(e) {
				count++
			}
		}
	}
	// The weights of those that are in, sampled by walking: sets with failures in them are rare and small.
	total := uint64(0)
	for _, e := range l.endpoints {
		if usable(e) {
			total += uint64(e.weight.Load())
		}
	}
	if count == 0 || total == 0 {
		return l.pick(now, random)
	}
	at := func(r uint64) *Endpoint[P] {
		left := r * total >> 32
		var last *Endpoint[P]
		for _, e := range l.endpoints {
			if !usable(e) {
				continue
			}
			last = e
			if w := uint64(e.weight.Load()); left < w {
				break
			} else {
				left -= w
			}
		}
		return last // usable by a moment ago, at least
	}
	e := at(random >> 32)
	if f := at(random & (1<<32 - 1)); f != nil && e != nil {
		e = cheaper(l, now, e, f)
	}
	if e == nil {
		return l.pick(now, random)
	}
	if e.failures.Load() > 0 {
		// Its penalty is over and this is the one probe: until it tells, or the same penalty has passed again, the
		// others go elsewhere.
		if u := e.until.Load(); u <= now {
			e.until.CompareAndSwap(u, now+int64(penalty(e.failures.Load(), 0)))
		}
	}
	return e
}

func cheaper[P any](l *list[P], now int64, a, b *Endpoint[P]) *Endpoint[P] {
	if b.cost(now, l.mean) < a.cost(now, l.mean) {
		return b
	}
	return a
}

// cost is rtt × (in flight + 1), the requests in flight counted relative to the endpoint's weight.
func (e *Endpoint[P]) cost(now int64, mean float64) float64 {
	load := float64(e.inflight.Load()) * mean / float64(e.weight.Load())
	return e.rtt(now) * (load + 1)
}

// rtt is the estimate in nanoseconds, aged: what was slow once is tried again.
func (e *Endpoint[P]) rtt(now int64) float64 {
	return math.Float64frombits(e.estimate.Load()) * aged(now-e.stamp.Load())
}

// aged is e^(−Δt/decay).
func aged(dt int64) float64 {
	if dt <= 0 {
		return 1
	}
	return math.Exp(-float64(dt) / float64(Decay))
}

// RTT is the estimate of the time to the first byte of a response, for reports.
func (e *Endpoint[P]) RTT(now time.Time) time.Duration { return time.Duration(e.rtt(now.UnixNano())) }

// Inflight is the number of picks that are not done.
func (e *Endpoint[P]) Inflight() int { return int(e.inflight.Load()) }

// Done ends a pick at the first byte of its response (or, for TCP, at the end of the connection's dialling), rtt after
// the request was sent. A sample above the estimate replaces it, one below is blended in by e^(−Δt/decay). rtt < 0 only
// ends the pick: there was no response to measure.
func (e *Endpoint[P]) Done(now time.Time, rtt time.Duration) {
	e.inflight.Add(-1)
	if rtt < 0 {
		return
	}
	n := now.UnixNano()
	for {
		bits := e.estimate.Load()
		old, sample := math.Float64frombits(bits), float64(rtt)
		w := aged(n - e.stamp.Load())
		next := sample
		if old*w > sample {
			next = old*w + sample*(1-w)
		}
		if e.estimate.CompareAndSwap(bits, math.Float64bits(next)) {
			e.stamp.Store(max(n, e.stamp.Load()))
			return
		}
	}
}

// Connected tells that a connection came about: the endpoint is in, its failures are forgotten.
func (e *Endpoint[P]) Connected() {
	if e.failures.Load() != 0 && e.failures.Swap(0) > 0 {
		e.set.out.Add(-1)
	}
	e.until.Store(0)
}

// ConnectFailed tells that the endpoint could not be connected to: it is out for a penalty that doubles with every
// failure. random is uniformly distributed. It returns when it may be tried again.
func (e *Endpoint[P]) ConnectFailed(now time.Time, random uint64) time.Time {
	// Requests that were on their way together fail together: they count as one.
	if u := e.until.Load(); e.failures.Load() > 0 && now.UnixNano() < u-int64(penalty(e.failures.Load(), 0))/2 {
		return time.Unix(0, u)
	}
	f := e.failures.Add(1)
	if f == 1 {
		e.set.out.Add(1)
	}
	u := now.Add(penalty(f, random)).UnixNano()
	e.until.Store(u)
	return time.Unix(0, u)
}

// Out reports whether the endpoint is left out at a time.
func (e *Endpoint[P]) Out(now time.Time) bool { return e.until.Load() > now.UnixNano() }

// penalty is how long the nth consecutive failure leaves an endpoint out.
func penalty(failures int32, random uint64) time.Duration {
	d := MaxPenalty
	if failures < 7 { // 1 s << 6 is past a minute
		d = min(MinPenalty<<max(failures-1, 0), MaxPenalty)
	}
	return d + time.Duration(float64(d)*PenaltyJitter*float64(random>>11)/(1<<53))
}
