package balance_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/proxy/balance"
)

var t0 = time.Unix(1_700_000_000, 0)

func address(n int, weight uint32) balance.Address {
	return balance.Address{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), 4143), Weight: weight}
}

// set makes endpoints of the given weights; their pools are their names: a, b, c, …
func set(weights ...uint32) *balance.Set[string] {
	s := &balance.Set[string]{}
	var as []balance.Address
	for i, w := range weights {
		as = append(as, address(i+1, w))
	}
	s.Update(as, t0, name)
	return s
}

func name(a balance.Address) string { ip := a.Addr.Addr().As4(); return string(rune('a' + ip[3] - 1)) }

// TestEstimate follows one endpoint's estimate: every step is (time since the last one, sample) and what comes out.
func TestEstimate(t *testing.T) {
	const ms = time.Millisecond
	type step struct {
		after, sample time.Duration // sample < 0: none
		want          time.Duration
	}
	for _, test := range []struct {
		name  string
		steps []step
	}{
		{"seeded at 30 ms", []step{{0, -1, 30 * ms}}},
		{"ages to 1/e in ten seconds", []step{{10 * time.Second, -1, 11036383 * time.Nanosecond}}},
		{"a peak replaces", []step{{0, 200 * ms, 200 * ms}}},
		{"a lower sample at once changes nothing", []step{{0, 200 * ms, 200 * ms}, {0, 10 * ms, 200 * ms}}},
		// 200·e⁻¹ + 10·(1 − e⁻¹)
		{"a lower sample later is blended in", []step{{0, 200 * ms, 200 * ms}, {10 * time.Second, 10 * ms, 79897094 * time.Nanosecond}}},
		{"what is long ago counts no more", []step{{0, 200 * ms, 200 * ms}, {10 * time.Minute, 10 * ms, 10 * ms}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, now := set(1), t0
			e := s.Endpoints()[0]
			for i, st := range test.steps {
				now = now.Add(st.after)
				s.Pick(now, 0, nil).Done(now, st.sample)
				if got := e.RTT(now); (got - st.want).Abs() > time.Microsecond {
					t.Fatalf("step %d: the estimate is %v, want %v", i, got, st.want)
				}
			}
			if n := e.Inflight(); n != 0 {
				t.Errorf("%d in flight after all are done", n)
			}
		})
	}
}

// shares picks n times, each done after what rtt says, one after the other, and counts.
func shares(s *balance.Set[string], n int, now time.Time, avoid string, rtt func(string) time.Duration) map[string]int {
	r := rand.New(rand.NewPCG(1, 2))
	var not *balance.Endpoint[string]
	for _, e := range s.Endpoints() {
		if e.Pool == avoid {
			not = e
		}
	}
	got := map[string]int{}
	for range n {
		e := s.Pick(now, r.Uint64(), not)
		got[e.Pool]++
		d := time.Duration(-1)
		if rtt != nil {
			d = rtt(e.Pool)
		}
		e.Done(now, d)
	}
	return got
}

func TestPick(t *testing.T) {
	all := func(string) time.Duration { return 30 * time.Millisecond }
	for _, test := range []struct {
		name    string
		weights []uint32
		out     string // endpoints that cannot be connected to
		avoid   string
		rtt     func(string) time.Duration
		want    map[string]float64 // shares
	}{
		{"one", []uint32{1}, "", "", all, map[string]float64{"a": 1}},
		{"one that is out is still the last hope", []uint32{1}, "a", "", nil, map[string]float64{"a": 1}},
		{"one to avoid is still the only one", []uint32{1}, "", "a", nil, map[string]float64{"a": 1}},
		{"equal", []uint32{1, 1, 1, 1}, "", "", all, map[string]float64{"a": .25, "b": .25, "c": .25, "d": .25}},
		{"zero is one", []uint32{0, 1}, "", "", all, map[string]float64{"a": .5, "b": .5}},
		{"weights are shares", []uint32{3, 1}, "", "", all, map[string]float64{"a": .75, "b": .25}},
		{"weights of those that are in", []uint32{3, 1, 4}, "c", "", nil, map[string]float64{"a": .75, "b": .25}},
		{"the dead get nothing", []uint32{1, 1, 1}, "b", "", nil, map[string]float64{"a": .5, "c": .5}},
		{"the last one living gets all", []uint32{1, 1, 1}, "bc", "", nil, map[string]float64{"a": 1}},
		{"all dead: all are tried", []uint32{1, 1}, "ab", "", nil, map[string]float64{"a": .5, "b": .5}},
		{"a retry goes elsewhere", []uint32{1, 1, 1}, "", "a", nil, map[string]float64{"b": .5, "c": .5}},
		{"a retry goes to a dead one rather than where it failed", []uint32{1, 1}, "b", "a", nil, map[string]float64{"b": 1}},
		// Two of three pairs hold b, which always loses.
		{"the slow one of three", []uint32{1, 1, 1}, "", "", func(n string) time.Duration {
			if n == "b" {
				return time.Second
			}
			return 30 * time.Millisecond
		}, map[string]float64{"a": .5, "c": .5}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := set(test.weights...)
			for _, e := range s.Endpoints() {
				for _, o := range test.out {
					if e.Pool == string(o) {
						e.ConnectFailed(t0, 0)
					}
				}
			}
			const n = 20000
			got := shares(s, n, t0, test.avoid, test.rtt)
			for k, c := range got {
				if share := float64(c) / n; share-test.want[k] > .03 || test.want[k]-share > .03 {
					t.Errorf("%s got %.3f of the requests, want %.3f", k, share, test.want[k])
				}
			}
		})
	}
}

// TestInflight: who is busy is passed over, whatever the random numbers say.
func TestInflight(t *testing.T) {
	s := set(1, 1)
	r := rand.New(rand.NewPCG(3, 4))
	held := map[string]int{}
	for range 100 {
		held[s.Pick(t0, r.Uint64(), nil).Pool]++
	}
	if diff := cmp.Diff(map[string]int{"a": 50, "b": 50}, held); diff != "" {
		t.Errorf("in flight (-want +got):\n%s", diff)
	}
}

// TestPenalty is the life of an endpoint that dies and comes back, in virtual time.
func TestPenalty(t *testing.T) {
	s, now := set(1, 1), t0
	b := s.Endpoints()[1]
	wait := func(want time.Duration) {
		t.Helper()
		if got := b.ConnectFailed(now, 0).Sub(now); got != want {
			t.Fatalf("out for %v, want %v", got, want)
		}
		if got := b.ConnectFailed(now.Add(want/4), 0).Sub(now); got != want {
			t.Fatalf("a failure that was on its way changes the penalty to %v", got)
		}
		now = now.Add(want - 1)
		if got := shares(s, 100, now, "", nil); got["b"] != 0 {
			t.Fatalf("%d requests to a dead endpoint", got["b"])
		}
		now = now.Add(1)
		if got := shares(s, 1000, now, "", nil); got["b"] != 1 {
			t.Fatalf("%d probes at the end of a penalty of %v, want 1", got["b"], want)
		}
	}
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		wait(want * time.Second)
	}
	// A clock that is set back prolongs nothing.
	b.ConnectFailed(now, 0)
	if back := now.Add(-time.Hour); b.Out(back) || shares(s, 1000, back, "", nil)["b"] != 1 {
		t.Fatal("an endpoint whose penalty is an hour away is not probed")
	}
	now = now.Add(time.Minute)
	// A probe that never tells is followed by another one.
	now = now.Add(time.Minute)
	if got := shares(s, 1000, now, "", nil); got["b"] != 1 {
		t.Fatalf("%d probes after one that was lost, want 1", got["b"])
	}
	b.Connected()
	if got := shares(s, 1000, now, "", nil); got["b"] < 400 {
		t.Fatalf("%d of 1000 requests to an endpoint that is back", got["b"])
	}
	if got := b.ConnectFailed(now, ^uint64(0)).Sub(now); got < 1400*time.Millisecond || got > 1500*time.Millisecond {
		t.Fatalf("the first penalty with all jitter is %v, want 1.5 s", got)
	}
}

// TestUpdate: what stays keeps its pool and what was learned; what leaves is handed back once.
func TestUpdate(t *testing.T) {
	s := set(1, 1)
	b := s.Endpoints()[1]
	s.Endpoints()[1].Done(t0, 500*time.Millisecond)
	made := 0
	left := s.Update([]balance.Address{address(2, 5), address(3, 1)}, t0, func(a balance.Address) string { made++; return name(a) })
	if len(left) != 1 || left[0].Pool != "a" || made != 1 || s.Endpoints()[0] != b || b.RTT(t0) != 500*time.Millisecond {
		t.Errorf("left %v, made %d, endpoints %v", left, made, s.Endpoints())
	}
	left = s.Update(nil, t0, name)
	if len(left) != 2 || s.Len() != 0 || s.Pick(t0, 0, nil) != nil {
		t.Errorf("an empty set: left %v, %d endpoints", left, s.Len())
	}
}

func TestPickAllocatesNothing(t *testing.T) {
	for _, test := range []struct {
		name    string
		weights []uint32
		out     bool
	}{{"equal", []uint32{1, 1, 1}, false}, {"weighted", []uint32{1, 2, 3}, false}, {"one out", []uint32{1, 1, 1}, true}} {
		s, r := set(test.weights...), uint64(7)
		if test.out {
			s.Endpoints()[0].ConnectFailed(t0, 0)
		}
		if n := testing.AllocsPerRun(1000, func() {
			r = r*6364136223846793005 + 1442695040888963407
			s.Pick(t0, r, nil).Done(t0, time.Millisecond)
		}); n != 0 {
			t.Errorf("%s: %v allocations a pick", test.name, n)
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for _, n := range []int{1, 3, 100} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := set(make([]uint32, n)...)
			for b.Loop() {
				s.Pick(t0, rand.Uint64(), nil).Done(t0, time.Millisecond)
			}
		})
	}
}
