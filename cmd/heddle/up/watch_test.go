package up

import (
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/reconciler"
)

// While sidecars are still to come nothing has converged, though all that are there have acknowledged.
func TestConvergedCountsAll(t *testing.T) {
	var out strings.Builder
	u := &supervisor{cfg: Config{Out: &out, State: "/state", Getenv: func(string) string { return "" }},
		processes: &Processes{Workloads: make([]Workload, 6)}, book: newBook("/state", nil)}
	p := &plain{supervisor: u, begun: true}
	for _, push := range []reconciler.Push{{}, {Acked: 1, Total: 1}, {Acked: 4, Total: 4}, {Acked: 5, Total: 6}, {Acked: 6, Total: 6}} {
		s := &reconciler.Status{Observed: &reconciler.Observed{Commit: "3f9c2ab0", Subject: "s", State: reconciler.Converged},
			Applied: &reconciler.Applied{Commit: "3f9c2ab0", Epoch: 1}, Push: push}
		if push.Acked < push.Total {
			s.Observed.State = reconciler.Pushing
		}
		u.countAll(s)
		if v := (view{status: s}); u.converged(v) != (push.Acked == 6) {
			t.Errorf("%+v: converged is %t", push, u.converged(v))
		} else if err := p.show(v, nil); err != nil {
			t.Fatal(err)
		}
	}
	want := `pushing 3f9c2ab epoch 1 acked 0/6 "s"
pushing 3f9c2ab epoch 1 acked 1/6 "s"
pushing 3f9c2ab epoch 1 acked 4/6 "s"
pushing 3f9c2ab epoch 1 acked 5/6 "s"
converged 3f9c2ab epoch 1 acked 6/6 "s"
ready
`
	if got := out.String(); !strings.HasPrefix(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
