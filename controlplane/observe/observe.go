// Package observe turns the cumulative counters that sidecars report into what an operator asks of the last seconds:
// for each pair of services, requests a second, the share that succeeded, latencies, denials and whether mTLS was on.
// It keeps a short window in memory and nothing on disk; it is bounded whatever sidecars report. It imports no stream.
package observe

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/heddle-mesh/heddle/schema/proxyapi"
)

const (
	// Window is what rates and latencies are taken over: long enough for five reports, short enough to follow a commit.
	Window = 10 * time.Second
	// forget is how long an edge without a report is shown.
	forget = 10 * time.Minute
	// openFor is how long a report of open connections is believed. Sidecars repeat it while there are any.
	openFor = 3 * proxyapi.OpenEvery
	// maxEdges bounds the edges of one workload. Who reports more loses the rest: names come from peers.
	maxEdges = 512
)

// Edge is the traffic from one service to another over the last [Window].
type Edge struct {
	From string `json:"from"` // a service, or an identity where no service is known
	To   string `json:"to"`
	TCP  bool   `json:"tcp"`
	MTLS bool   `json:"mtls"`
	// Open is the number of TCP connections that were open when their sidecars last reported. HTTP has requests instead.
	Open uint64 `json:"open"`
	// RequestsPerSecond counts HTTP requests answered, or TCP connections closed.
	RequestsPerSecond float64 `json:"requestsPerSecond"`
	// Success is the share of requests that succeeded, from 0 to 1; null where there were none.
	Success *float64 `json:"success"`
	// DeniedPerSecond counts what policy refused, on whichever side saw more.
	DeniedPerSecond float64 `json:"deniedPerSecond"`
	// P50, P95 and P99 are latencies in milliseconds, interpolated within their buckets; null where there were no
	// requests.
	P50 *float64 `json:"p50"`
	P95 *float64 `json:"p95"`
	P99 *float64 `json:"p99"`
	// Rule is the rule id of the last denial; empty: none was seen.
	Rule string `json:"rule,omitempty"`
	// Age is the time since the last report, in seconds.
	Age float64 `json:"age"`
}

// counters are what adds up.
type counters struct {
	requests, successes, denied uint64
	latency                     []uint64
}

func (c *counters) add(d counters) {
	c.requests += d.requests
	c.successes += d.successes
	c.denied += d.denied
	if len(c.latency) < len(d.latency) {
		c.latency = append(c.latency, make([]uint64, len(d.latency)-len(c.latency))...)
	}
	for i, n := range d.latency {
		c.latency[i] += n
	}
}

// since is c minus what was counted before. A counter that went back has started anew.
func (c counters) since(old counters) counters {
	less := func(now, before uint64) uint64 {
		if now < before {
			return now
		}
		return now - before
	}
	d := counters{requests: less(c.requests, old.requests), successes: less(c.successes, old.successes), denied: less(c.denied, old.denied)}
	d.latency = slices.Clone(c.latency)
	for i := range min(len(d.latency), len(old.latency)) {
		d.latency[i] = less(d.latency[i], old.latency[i])
	}
	return d
}

type sample struct {
	at time.Time
	counters
}

// edge is one direction between a workload and a peer.
type edge struct {
	total   counters // as last reported
	samples []sample // within the window, oldest first
	first   time.Time
	last    time.Time
	mtls    bool
	open    uint64
	rule    string
}

// key names an edge within a workload.
type key struct {
	peer    string
	inbound bool
	tcp     bool
}

type reporter struct {
	service  string
	instance string
	baseline bool // the next report is where counting starts, not traffic of the moment
	dropped  bool // edges that are not shown any more were dropped, with what they had counted
	edges    map[key]*edge
}

// Traffic is the windows of all edges. It is safe for concurrent use.
type Traffic struct {
	mu        sync.Mutex // guards what follows
	reporters map[string]*reporter
}

// New returns an empty Traffic.
func New() *Traffic { return &Traffic{reporters: map[string]*reporter{}} }

// Connect says which process of a workload reports from now on. running is set for one that was at work before this
// control plane started: the counters of its first report are history, not traffic of the moment.
func (t *Traffic) Connect(workload, service, instance string, running bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.reporters[workload]
	if r != nil && r.instance == instance && r.service == service {
		return
	}
	fresh := &reporter{service: service, instance: instance, baseline: running && r == nil, edges: map[key]*edge{}}
	if r != nil && r.service == service {
		for k, e := range r.edges { // what its predecessor saw stays in the window
			e.total, e.open = counters{}, 0
			fresh.edges[k] = e
		}
	}
	t.reporters[workload] = fresh
}

// Report takes the counters of a workload that has connected.
func (t *Traffic) Report(workload string, report *proxyapi.TrafficReport, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.reporters[workload]
	if r == nil {
		return
	}
	for _, g := range report.GetEdges() {
		k := key{peer: g.Service, inbound: g.Inbound, tcp: g.Tcp}
		e, fresh := r.edges[k], false
		if e == nil {
			if len(g.Service) > 2048 || !shown(g.Service) || !r.room(now) {
				continue
			}
			e = &edge{first: now}
			r.edges[k] = e
			fresh = r.dropped // it may be one that was dropped, with all of its past
		}
		total := counters{requests: g.Requests, successes: g.Successes, denied: g.Denied,
			latency: slices.Clone(g.Latency[:min(len(g.Latency), len(proxyapi.LatencyBounds)+1)])}
		e.samples = recent(e.samples, now)
		if d := total.since(e.total); !r.baseline && !fresh && d.requests+d.denied > 0 {
			e.take(d, now)
		}
		e.total, e.last, e.mtls, e.open = total, now, g.Mtls, g.Open
		if g.Rule != "" && len(g.Rule) <= 512 && shown(g.Rule) {
			e.rule = g.Rule
		}
	}
	r.baseline = false
}

// take adds to the window. Reports that come faster than sidecars send them share a sample.
func (e *edge) take(d counters, now time.Time) {
	if n := len(e.samples); n > 0 && now.Sub(e.samples[n-1].at) < proxyapi.TrafficEvery/2 {
		e.samples[n-1].add(d)
		return
	}
	e.samples = append(e.samples, sample{at: now, counters: d})
}

// room reports whether there is room for one more edge, if need be in place of those that nobody is shown any more.
func (r *reporter) room(now time.Time) bool {
	if len(r.edges) >= maxEdges {
		maps.DeleteFunc(r.edges, func(_ key, e *edge) bool { return now.Sub(e.last) > forget })
		r.dropped = true
	}
	return len(r.edges) < maxEdges
}

// shown reports whether a text of a sidecar's may be shown to an operator as it is.
func shown(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }) < 0
}

// Forget drops a workload that was revoked.
func (t *Traffic) Forget(workload string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.reporters, workload)
}

func recent(samples []sample, now time.Time) []sample {
	i := 0
	for i < len(samples) && now.Sub(samples[i].at) > Window {
		i++
	}
	return samples[i:]
}

// sum is an edge between services, over all workloads.
type sum struct {
	Edge
	counters
	inbound, outbound uint64 // denials, as each side saw them
	last              time.Time
	first             time.Time
}

// Edges returns the edges sorted by their ends, TCP after HTTP. Those that nobody reported for ten minutes are left out.
func (t *Traffic) Edges(now time.Time) []Edge {
	t.mu.Lock()
	defer t.mu.Unlock()
	type pair struct {
		from, to string
		tcp      bool
	}
	sums := map[pair]*sum{}
	for _, r := range t.reporters {
		for k, e := range r.edges {
			if now.Sub(e.last) > forget {
				continue // its counters are kept: they are where counting goes on when it comes back
			}
			p := pair{from: r.service, to: k.peer, tcp: k.tcp}
			if k.inbound {
				p.from, p.to = p.to, p.from
			}
			s := sums[p]
			if s == nil {
				s = &sum{Edge: Edge{From: p.from, To: p.to, TCP: p.tcp}, first: e.first}
				sums[p] = s
			}
			if e.first.Before(s.first) {
				s.first = e.first
			}
			var c counters
			for _, sample := range recent(e.samples, now) {
				c.add(sample.counters)
			}
			if k.inbound { // the other side counts the requests; this one knows what it denied
				s.inbound += c.denied
			} else {
				s.outbound += c.denied
				s.add(c)
				if now.Sub(e.last) <= openFor {
					s.Open += e.open
				}
			}
			if !e.last.Before(s.last) {
				s.last, s.MTLS = e.last, e.mtls
				if e.rule != "" {
					s.Rule = e.rule
				}
			} else if s.Rule == "" {
				s.Rule = e.rule
			}
		}
	}
	out := make([]Edge, 0, len(sums))
	for _, s := range sums {
		// A young edge's first report covers what came before it; a rate over less than that would be too high.
		seconds := min(Window, max(now.Sub(s.first)+proxyapi.TrafficEvery, proxyapi.TrafficEvery)).Seconds()
		s.Age = now.Sub(s.last).Seconds()
		s.RequestsPerSecond = float64(s.requests) / seconds
		s.DeniedPerSecond = float64(max(s.inbound, s.outbound)) / seconds
		if s.requests > 0 {
			share := min(1, float64(s.successes)/float64(s.requests))
			s.Success = &share
		}
		s.P50, s.P95, s.P99 = quantile(s.latency, 0.50), quantile(s.latency, 0.95), quantile(s.latency, 0.99)
		out = append(out, s.Edge)
	}
	slices.SortFunc(out, func(a, b Edge) int {
		tcp := func(e Edge) int {
			if e.TCP {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To), cmp.Compare(tcp(a), tcp(b)))
	})
	return out
}

// quantile interpolates within the bucket that holds the q-th request, as Prometheus does; what lies beyond the last
// bound is given as that bound. It is nil without requests.
func quantile(buckets []uint64, q float64) *float64 {
	total := uint64(0)
	for _, n := range buckets {
		total += n
	}
	if total == 0 {
		return nil
	}
	rank, seen, lower := q*float64(total), 0.0, 0.0
	for i, n := range buckets {
		if i >= len(proxyapi.LatencyBounds) {
			break
		}
		upper := proxyapi.LatencyBounds[i]
		if n > 0 && seen+float64(n) >= rank {
			v := lower + (upper-lower)*(rank-seen)/float64(n)
			return &v
		}
		seen += float64(n)
		lower = upper
	}
	v := proxyapi.LatencyBounds[len(proxyapi.LatencyBounds)-1]
	return &v
}
