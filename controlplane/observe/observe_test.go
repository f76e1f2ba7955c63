package observe

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/schema/proxyapi"
)

func report(edges ...*proxyapi.EdgeTraffic) *proxyapi.TrafficReport {
	return &proxyapi.TrafficReport{Edges: edges}
}

func only(t *testing.T, edges []Edge) Edge {
	t.Helper()
	if len(edges) != 1 {
		t.Fatalf("edges are %+v", edges)
	}
	return edges[0]
}

func near(a, b float64) bool { return math.Abs(a-b) < 1e-9 }

func TestEdges(t *testing.T) {
	tr, now := New(), time.Now()
	tr.Report("shop/web-1", report(&proxyapi.EdgeTraffic{Service: "shop/api", Requests: 5}), now)
	if es := tr.Edges(now); len(es) != 0 {
		t.Errorf("a workload that never connected reports %+v", es)
	}
	tr.Connect("shop/web-1", "shop/web", "i1", false)
	tr.Connect("shop/web-2", "shop/web", "i1", false)
	latency := make([]uint64, len(proxyapi.LatencyBounds)+1)
	for i := range 10 {
		now = now.Add(2 * time.Second)
		latency[5] += 20 // between 5 and 10 ms
		n := uint64(20 * (i + 1))
		for _, w := range []string{"shop/web-1", "shop/web-2"} {
			tr.Report(w, report(&proxyapi.EdgeTraffic{Service: "shop/api", Requests: n, Successes: n / 2, Mtls: true, Latency: latency}), now)
		}
	}
	e := only(t, tr.Edges(now))
	// The window of ten seconds takes in six reports, of which the first covers what came before it.
	if e.From != "shop/web" || e.To != "shop/api" || !e.MTLS || e.TCP || !near(e.RequestsPerSecond, 2*6*20/10.) || !near(*e.Success, 0.5) {
		t.Errorf("the edge is %+v", e)
	}
	if !near(*e.P50, 7.5) || !near(*e.P99, 9.95) || e.Age != 0 {
		t.Errorf("p50 %v, p99 %v, age %v", *e.P50, *e.P99, e.Age)
	}

	// Silence: rates fall to nothing, and nothing is not success.
	quiet := only(t, tr.Edges(now.Add(time.Minute)))
	if quiet.RequestsPerSecond != 0 || quiet.Success != nil || quiet.P50 != nil || quiet.Age != 60 {
		t.Errorf("a minute later the edge is %+v", quiet)
	}
	// A new process counts from zero again.
	later := now.Add(time.Minute)
	tr.Connect("shop/web-1", "shop/web", "i2", false)
	tr.Report("shop/web-1", report(&proxyapi.EdgeTraffic{Service: "shop/api", Requests: 10, Successes: 10}), later)
	if e := only(t, tr.Edges(later)); !near(e.RequestsPerSecond, 1) || *e.Success != 1 {
		t.Errorf("after a restart the edge is %+v", e)
	}
	if es := tr.Edges(later.Add(time.Hour)); len(es) != 0 {
		t.Errorf("an hour later there is %+v", es)
	}
}

// A connection is an edge while it lives, however long it says nothing, and is none of a sidecar that is gone.
func TestOpenConnections(t *testing.T) {
	tr, now := New(), time.Now()
	tr.Connect("shop/api-1", "shop/api", "i", false)
	tr.Connect("shop/api-2", "shop/api", "i", false)
	for range 40 {
		for _, w := range []string{"shop/api-1", "shop/api-2"} {
			tr.Report(w, report(&proxyapi.EdgeTraffic{Service: "shop/ledger", Open: 2, Mtls: true, Tcp: true}), now)
		}
		now = now.Add(proxyapi.OpenEvery)
	}
	e := only(t, tr.Edges(now))
	if e.From != "shop/api" || e.To != "shop/ledger" || !e.TCP || !e.MTLS || e.Open != 4 || e.RequestsPerSecond != 0 || e.Success != nil {
		t.Errorf("the edge is %+v", e)
	}
	tr.Connect("shop/api-2", "shop/api", "another process", false)
	if e := only(t, tr.Edges(now)); e.Open != 2 {
		t.Errorf("after a restart of one of two the edge is %+v", e)
	}
	if e := only(t, tr.Edges(now.Add(5*time.Minute))); e.Open != 0 {
		t.Errorf("five minutes after the last report the edge is %+v", e)
	}
}

// An edge that was quiet for so long that it is not shown goes on where it was: its past is no traffic of the moment.
func TestQuietEdge(t *testing.T) {
	tr, now := New(), time.Now()
	tr.Connect("shop/web-1", "shop/web", "i", false)
	tr.Report("shop/web-1", report(&proxyapi.EdgeTraffic{Service: "shop/api", Requests: 1e6, Successes: 1e6}), now)
	now = now.Add(2 * forget)
	if es := tr.Edges(now); len(es) != 0 {
		t.Errorf("after %v of silence there is %+v", 2*forget, es)
	}
	tr.Report("shop/web-1", report(&proxyapi.EdgeTraffic{Service: "shop/api", Requests: 1e6 + 20, Successes: 1e6 + 20}), now)
	if e := only(t, tr.Edges(now)); !near(e.RequestsPerSecond, 2) {
		t.Errorf("the edge is %+v", e)
	}
}

func TestDenialsAreCountedOnce(t *testing.T) {
	tr, now := New(), time.Now()
	tr.Connect("shop/web-1", "shop/web", "i", false)
	tr.Connect("shop/api-1", "shop/api", "i", false)
	tr.Report("shop/web-1", report(&proxyapi.EdgeTraffic{Service: "shop/api", Requests: 8, Denied: 8}), now)
	tr.Report("shop/api-1", report(&proxyapi.EdgeTraffic{Service: "shop/web", Inbound: true, Denied: 10, Rule: "shop/api/deny/web"}), now)
	if e := only(t, tr.Edges(now)); e.From != "shop/web" || e.To != "shop/api" || !near(e.DeniedPerSecond, 5) || e.Rule != "shop/api/deny/web" || *e.Success != 0 {
		t.Errorf("the edge is %+v", e)
	}
}

// What a process counted before this control plane started is not traffic of the moment; a first denial of one that was
// quiet is.
func TestBaseline(t *testing.T) {
	tr, now := New(), time.Now()
	tr.Connect("shop/web-1", "shop/web", "i", true)
	tr.Report("shop/web-1", report(&proxyapi.EdgeTraffic{Service: "shop/api", Requests: 1e6, Successes: 1e6}), now)
	if e := only(t, tr.Edges(now)); e.RequestsPerSecond != 0 || e.Success != nil {
		t.Errorf("history counts as traffic: %+v", e)
	}
	tr.Report("shop/web-1", report(&proxyapi.EdgeTraffic{Service: "shop/api", Requests: 1e6 + 4, Successes: 1e6 + 4}), now.Add(2*time.Second))
	if e := only(t, tr.Edges(now.Add(2*time.Second))); !near(e.RequestsPerSecond, 1) {
		t.Errorf("the edge is %+v", e)
	}
	tr.Connect("shop/api-1", "shop/api", "i", false)
	tr.Report("shop/api-1", report(&proxyapi.EdgeTraffic{Service: "shop/web", Inbound: true, Denied: 1, Rule: "r"}), now.Add(2*time.Second))
	if e := only(t, tr.Edges(now.Add(2*time.Second))); e.DeniedPerSecond == 0 {
		t.Errorf("the first denial is lost: %+v", e)
	}
}

func TestBounded(t *testing.T) {
	tr, now := New(), time.Now()
	tr.Connect("shop/web-1", "shop/web", "i", false)
	for i := range 10 * maxEdges {
		tr.Report("shop/web-1", report(&proxyapi.EdgeTraffic{Service: fmt.Sprint(i), Requests: 1, Latency: make([]uint64, 1000)}), now)
	}
	if n := len(tr.Edges(now)); n != maxEdges {
		t.Errorf("%d edges are kept of one workload", n)
	}
	for _, r := range tr.reporters {
		for _, e := range r.edges {
			if len(e.total.latency) > len(proxyapi.LatencyBounds)+1 {
				t.Fatal("buckets that do not exist are kept")
			}
		}
	}
}

func TestQuantile(t *testing.T) {
	last := len(proxyapi.LatencyBounds)
	bucket := func(at map[int]uint64) []uint64 {
		b := make([]uint64, last+1)
		for i, n := range at {
			b[i] = n
		}
		return b
	}
	for name, c := range map[string]struct {
		buckets []uint64
		q, want float64
	}{
		"the first bucket starts at zero": {bucket(map[int]uint64{0: 4}), 0.5, 0.5},
		"interpolated":                    {bucket(map[int]uint64{5: 10}), 0.5, 7.5},
		"across buckets":                  {bucket(map[int]uint64{0: 99, 10: 1}), 0.995, 75},
		"beyond the last bound":           {bucket(map[int]uint64{last: 1}), 0.5, proxyapi.LatencyBounds[last-1]},
	} {
		if got := quantile(c.buckets, c.q); got == nil || !near(*got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
	if quantile(bucket(nil), 0.5) != nil {
		t.Error("no requests have a latency")
	}
}

// TestReportsWithoutPause: memory does not grow with how often a sidecar reports, and nothing that it counted is lost.
func TestReportsWithoutPause(t *testing.T) {
	tr, now := New(), time.Now()
	tr.Connect("shop/web-1", "shop/web", "i1", false)
	for i := range 10_000 {
		now = now.Add(time.Millisecond / 2)
		tr.Report("shop/web-1", report(&proxyapi.EdgeTraffic{Service: "shop/api", Requests: uint64(i + 1), Successes: uint64(i + 1)}), now)
	}
	// Five seconds, and those that the first report may have covered.
	if e := only(t, tr.Edges(now)); math.Round(e.RequestsPerSecond) != 1429 || *e.Success != 1 {
		t.Errorf("the edge is %+v", e)
	}
	for _, r := range tr.reporters {
		for _, e := range r.edges {
			if n := len(e.samples); n > 2*int(Window/proxyapi.TrafficEvery)+2 {
				t.Errorf("%d samples are kept", n)
			}
		}
	}
}

// TestForeignNames: names and rules are shown to operators, on terminals too.
func TestForeignNames(t *testing.T) {
	tr, now := New(), time.Now()
	tr.Connect("shop/web-1", "shop/web", "i1", false)
	tr.Report("shop/web-1", report(
		&proxyapi.EdgeTraffic{Service: "shop/\x1b[2Japi", Requests: 1},
		&proxyapi.EdgeTraffic{Service: "shop/\xff", Requests: 1},
		&proxyapi.EdgeTraffic{Service: "shop/\u202eapi", Requests: 1},
		&proxyapi.EdgeTraffic{Service: "shop/api", Denied: 1, Rule: "shop/api/deny/\nx"}), now)
	if e := only(t, tr.Edges(now)); e.To != "shop/api" || e.Rule != "" {
		t.Errorf("the edge is %+v", e)
	}
}

// TestPeersThatCameAndWent make room for new ones.
func TestPeersThatCameAndWent(t *testing.T) {
	tr, now := New(), time.Now()
	tr.Connect("shop/web-1", "shop/web", "i1", false)
	for i := range maxEdges {
		tr.Report("shop/web-1", report(&proxyapi.EdgeTraffic{Service: fmt.Sprint("shop/old-", i), Requests: 1000}), now)
	}
	now = now.Add(2 * forget)
	tr.Report("shop/web-1", report(&proxyapi.EdgeTraffic{Service: "shop/new", Requests: 1}), now)
	if e := only(t, tr.Edges(now)); e.To != "shop/new" {
		t.Errorf("the edge is %+v", e)
	}
	// One that was forgotten and returns brings its whole past; that is not traffic of the moment.
	tr.Report("shop/web-1", report(&proxyapi.EdgeTraffic{Service: "shop/old-0", Requests: 1001}), now)
	for _, e := range tr.Edges(now) {
		if e.To == "shop/old-0" && e.RequestsPerSecond > 10 {
			t.Errorf("the edge is %+v", e)
		}
	}
}
