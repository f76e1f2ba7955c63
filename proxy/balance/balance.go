// Package balance spreads requests over the endpoints of one cluster: power of two choices over peak-EWMA costs, as
// Linkerd does it. It is a pure core: time and random numbers are arguments, nothing blocks, no goroutine runs, and a
// pick allocates nothing. It knows no wire format and opens no connection; what an endpoint's connections are is the
// type parameter's business. It imports nothing of ours.
package balance

import (
	"math"
	"math/bits"
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
}

// list is never written again once published.
type list[P any] struct {
	endpoints []*Endpoint[P]
	// sums[i] is the sum of the weights up to and including i; nil where all weights are equal.
	sums []uint64
	mean float64 // of the weights
}

// Endpoint is one place of a Set with what was learned of it. Its exported fields are never written again.
type Endpoint[P any] struct {
	Addr     netip.AddrPort
	Workload string
	// Pool is whatever the owner keeps for the endpoint, as its idle connections.
	Pool P

	inflight atomic.Int64
	// The estimate of the round trip in nanoseconds, as float64 bits, and when it was made. Written apart: a reader
	// that sees one of them new ages the estimate slightly wrong for one pick.
	estimate atomic.Uint64
	stamp    atomic.Int64
	// failures counts consecutive connect failures, failed is when the last one counted, until when it may be tried
	// again.
	failures atomic.Int32
	failed   atomic.Int64
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
			e = &Endpoint[P]{Addr: a.Addr, Workload: a.Workload, Pool: pool(a)}
			e.estimate.Store(math.Float64bits(float64(DefaultRTT)))
			e.stamp.Store(now.UnixNano())
		}
		delete(old, a.Addr)
		e.weight.Store(a.Weight)
		equal = equal && a.Weight == max(addresses[0].Weight, 1)
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
		left = append(left, e)
	}
	slices.SortFunc(left, func(a, b *Endpoint[P]) int { return a.Addr.Compare(b.Addr) })
	return left
}

// Pick chooses an endpoint and counts a request in flight there: each pick must be followed by exactly one Done. random
// is uniformly distributed. avoid, where not nil, is passed over if there is any other (a retry's failed endpoint).
// Endpoints that are out are passed over while any is in; where all are out, all are in, since a last hope is better
// than none. Pick returns nil only for an empty set.
func (s *Set[P]) Pick(now time.Time, random uint64, avoid *Endpoint[P]) *Endpoint[P] {
	l := s.list.Load()
	if l == nil || len(l.endpoints) == 0 {
		return nil
	}
	e := l.pick(now.UnixNano(), random, avoid)
	e.inflight.Add(1)
	return e
}

func (l *list[P]) pick(now int64, random uint64, avoid *Endpoint[P]) *Endpoint[P] {
	if len(l.endpoints) == 1 {
		return l.endpoints[0]
	}
	a, b := l.two(random)
	if a.failures.Load()|b.failures.Load() == 0 && a != avoid && b != avoid {
		return l.cheaper(now, a, b)
	}
	// One of them may be out. Sampling again among those that are in keeps the choice uniform, with other random bits:
	// of these it is known whom they hit.
	random = mix(random)
	e := l.among(now, random, func(e *Endpoint[P]) bool { return e != avoid && !e.out(now) })
	if e == nil {
		if e = l.among(now, random, func(e *Endpoint[P]) bool { return e != avoid }); e == nil {
			return l.cheaper(now, a, b)
		}
	}
	if f := e.failures.Load(); f > 0 {
		// Its penalty is over and this is the one probe: until it tells, or the same penalty has passed again, the
		// others go elsewhere.
		if u := e.until.Load(); !e.out(now) {
			e.until.CompareAndSwap(u, now+int64(penalty(f, 0)))
		}
	}
	return e
}

// two samples the candidates: two different ones where all weigh the same, else each in proportion to its weight.
func (l *list[P]) two(random uint64) (a, b *Endpoint[P]) {
	r1, r2 := random>>32, random&(1<<32-1)
	if l.sums != nil {
		return l.byWeight(r1), l.byWeight(r2)
	}
	n := uint64(len(l.endpoints))
	i, j := scale(r1, n), scale(r2, n-1)
	if j >= i {
		j++
	}
	return l.endpoints[i], l.endpoints[j]
}

// byWeight samples an endpoint in proportion to its weight; r has 32 bits.
func (l *list[P]) byWeight(r uint64) *Endpoint[P] {
	total := l.sums[len(l.sums)-1]
	i, _ := slices.BinarySearch(l.sums, scale(r, total)+1)
	return l.endpoints[i]
}

// among does what pick does for those that in accepts, by walking: sets with failures in them are rare and small. What
// in accepts may change meanwhile; the choice is then as good as it was a moment ago. nil: none was accepted.
func (l *list[P]) among(now int64, random uint64, in func(*Endpoint[P]) bool) *Endpoint[P] {
	at := func(r uint64, not *Endpoint[P]) (found *Endpoint[P]) {
		total := uint64(0)
		for _, e := range l.endpoints {
			if e != not && in(e) {
				total += uint64(e.weight.Load())
			}
		}
		left := scale(r, total)
		for _, e := range l.endpoints {
			if e == not || !in(e) {
				continue
			}
			found = e
			if w := uint64(e.weight.Load()); left < w {
				break
			} else {
				left -= w
			}
		}
		return found
	}
	a := at(random>>32, nil)
	if a == nil {
		return nil
	}
	not := a
	if l.sums != nil {
		not = nil // weighted sampling is with replacement, so that shares follow the weights
	}
	b := at(random&(1<<32-1), not)
	if b == nil {
		return a
	}
	return l.cheaper(now, a, b)
}

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood, 2014): another random number made of one.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// scale maps a 32-bit random number to [0, n).
func scale(r, n uint64) uint64 {
	hi, _ := bits.Mul64(r<<32, n)
	return hi
}

func (l *list[P]) cheaper(now int64, a, b *Endpoint[P]) *Endpoint[P] {
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
		was := e.estimate.Load()
		old, sample := math.Float64frombits(was), float64(rtt)
		w := aged(n - e.stamp.Load())
		next := sample
		if old*w > sample {
			next = old*w + sample*(1-w)
		}
		if e.estimate.CompareAndSwap(was, math.Float64bits(next)) {
			e.stamp.Store(max(n, e.stamp.Load()))
			return
		}
	}
}

// Connected tells that a connection came about: the endpoint is in, its failures are forgotten.
func (e *Endpoint[P]) Connected() {
	if e.failures.Load() != 0 {
		e.failures.Store(0)
		e.until.Store(0)
	}
}

// ConnectFailed tells that the endpoint could not be connected to: it is out for a penalty that doubles with every
// failure. random is uniformly distributed. It returns when it may be tried again.
func (e *Endpoint[P]) ConnectFailed(now time.Time, random uint64) time.Time {
	n := now.UnixNano()
	// Requests that were on their way together fail together: they count as one.
	if f := e.failures.Load(); f > 0 && e.out(n) && n-e.failed.Load() < int64(penalty(f, 0))/2 {
		return time.Unix(0, e.until.Load())
	}
	e.failed.Store(n)
	f := e.failures.Add(1)
	u := now.Add(penalty(f, random)).UnixNano()
	e.until.Store(u)
	return time.Unix(0, u)
}

// Out reports whether the endpoint is left out at a time.
func (e *Endpoint[P]) Out(now time.Time) bool { return e.out(now.UnixNano()) }

// out: no penalty is longer than the longest one. What seems to be was given before the clock was set back.
func (e *Endpoint[P]) out(now int64) bool {
	left := e.until.Load() - now
	return 0 < left && left <= int64((1+PenaltyJitter)*float64(MaxPenalty))
}

// penalty is how long the nth consecutive failure leaves an endpoint out.
func penalty(failures int32, random uint64) time.Duration {
	d := MaxPenalty
	if failures < 7 { // 1 s << 6 is past a minute
		d = min(MinPenalty<<max(failures-1, 0), MaxPenalty)
	}
	return d + time.Duration(float64(d)*PenaltyJitter*float64(random>>11)/(1<<53))
}
