package up

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/terminal"
	"github.com/heddle-mesh/heddle/controlplane/observe"
	"github.com/heddle-mesh/heddle/reconciler"
	"github.com/heddle-mesh/heddle/schema/diag"
)

func TestWrap(t *testing.T) {
	for _, c := range []struct {
		line  string
		width int
		want  []string
	}{
		{"  short", 30, []string{"  short"}},
		{"  services/shop/api.cue:14:3: weights sum to 90", 34, []string{"  services/shop/api.cue:14:3:", "    weights sum to 90"}},
		{"unbreakable-and-longer-than-the-width here", 24, []string{"unbreakable-and-longer-than-the-width", "  here"}},
		{"no terminal, no width", 0, []string{"no terminal, no width"}},
	} {
		if got := wrap(c.line, c.width); !slices.Equal(got, c.want) {
			t.Errorf("wrap(%q, %d) = %q, want %q", c.line, c.width, got, c.want)
		}
	}
}

func TestEdgeRow(t *testing.T) {
	number := func(f float64) *float64 { return &f }
	for _, c := range []struct {
		name string
		edge observe.Edge
		mark terminal.Mark
		want string
	}{
		{"fine", observe.Edge{From: "a/b", To: "a/c", MTLS: true, RequestsPerSecond: 20, Success: number(1), P50: number(0.4), P99: number(12.3)},
			terminal.Fine, "a/b|a/c|mTLS||20.0|100.0%|1ms|12ms||"},
		{"success of no requests is no number", observe.Edge{From: "a/b", To: "a/c", MTLS: true}, terminal.Fine, "a/b|a/c|mTLS||0.0|||||"},
		{"a connection that lives", observe.Edge{From: "a/b", To: "a/c", MTLS: true, TCP: true, Open: 3}, terminal.Fine, "a/b|a/c|mTLS|3|0.0|||||"},
		{"nearly all is not all", observe.Edge{From: "a/b", To: "a/c", MTLS: true, RequestsPerSecond: 9, Success: number(0.9999)},
			terminal.Fine, "a/b|a/c|mTLS||9.0|<100%||||"},
		{"plaintext is marked", observe.Edge{From: "", To: "a/c"}, terminal.Warning, "(outside)|a/c|none||0.0|||||"},
		{"a denial has its line", observe.Edge{From: "spiffe://td/ns/a/sa/b", To: "a/c", MTLS: true, DeniedPerSecond: 2, Rule: "r"},
			terminal.Trouble, "a/b|a/c|mTLS||0.0||||2.0|c.cue:3"},
		{"what was never sent has no security", observe.Edge{From: "a/b", To: "a/c", DeniedPerSecond: 2, Rule: "r"},
			terminal.Trouble, "a/b|a/c|||0.0||||2.0|c.cue:3"},
		{"or its rule", observe.Edge{From: "a/b", To: "a/c", MTLS: true, DeniedPerSecond: 2, Rule: "s"},
			terminal.Trouble, "a/b|a/c|mTLS||0.0||||2.0|s"},
	} {
		mark, cells := EdgeRow(c.edge, map[string]string{"r": "c.cue:3"})
		if got := strings.Join(cells, "|"); mark != c.mark || got != c.want {
			t.Errorf("%s: %v %s, want %v %s", c.name, mark, got, c.mark, c.want)
		}
		if len(cells) != len(EdgeColumns()) {
			t.Errorf("%s: %d cells for %d columns", c.name, len(cells), len(EdgeColumns()))
		}
	}
}

// Off a terminal there is one line a change, and none without one.
func TestPlain(t *testing.T) {
	var out strings.Builder
	u := &supervisor{cfg: Config{Out: &out, Ref: "main", State: "/state", Repo: "/repo", Getenv: func(string) string { return "" }},
		repo: "/repo", processes: &Processes{Workloads: make([]Workload, 2)}, book: newBook("/state", nil)}
	p := &plain{supervisor: u}
	status := func(state reconciler.State, acked int, findings ...diag.Finding) view {
		return view{statusAt: time.Now(), status: &reconciler.Status{
			Observed: &reconciler.Observed{Commit: "3f9c2ab0", Subject: "Say \x1b[31mhello", State: state, Findings: findings},
			Applied:  &reconciler.Applied{Commit: "3f9c2ab0", Epoch: 2}, Push: reconciler.Push{Acked: acked, Total: 2},
		}}
	}
	rejected := status(reconciler.Rejected, 2, diag.Finding{ID: diag.WeightSum, Message: "weights sum to 90, not 100", Hint: "add 10",
		Pos: diag.Pos{File: "a.cue", Line: 3, Column: 1}})
	for _, v := range []view{{}, {}, status(reconciler.Pushing, 1), status(reconciler.Pushing, 1), status(reconciler.Converged, 2),
		status(reconciler.Converged, 2), rejected, rejected} {
		if err := p.show(v, nil); err != nil {
			t.Fatal(err)
		}
	}
	want := `repository /repo ref main
state /state
pushing 3f9c2ab epoch 2 acked 1/2 "Say  [31mhello"
converged 3f9c2ab epoch 2 acked 2/2 "Say  [31mhello"
ready
  try: heddle status --state /state
  try: heddle up kill controlplane --state /state
rejected 3f9c2ab "Say  [31mhello"
findings: 1; 3f9c2ab still serves
  a.cue:3:1: weights sum to 90, not 100 [HDL0206]
    hint: add 10
`
	if got := out.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// A repository that cannot be read has no commit to show, and a reason that has to be.
func TestTroubleBeforeTheFirstCommit(t *testing.T) {
	got := new(supervisor).trouble(&reconciler.Status{Fault: "no branch \"x\""})
	if want := []string{`fault: no branch "x"`}; !slices.Equal(got, want) {
		t.Errorf("trouble is %q, want %q", got, want)
	}
}

// A page replaces the one before it; on a window of another size it is drawn anew.
func TestDraw(t *testing.T) {
	var out strings.Builder
	s := &screen{supervisor: &supervisor{cfg: Config{Out: &out}}}
	small, large := terminal.Style{Width: 40, Height: 3}, terminal.Style{Width: 80, Height: 9}
	for _, c := range []struct {
		page []string
		on   terminal.Style
		want string
	}{
		{[]string{"a", "b", "c"}, small, "a\x1b[K\nb\x1b[K\n\x1b[J"},
		{[]string{"d"}, small, "\x1b[2A\rd\x1b[K\n\x1b[J"},
		{[]string{"e", "f", "g"}, large, "\x1b[H\x1b[2Je\x1b[K\nf\x1b[K\ng\x1b[K\n\x1b[J"},
		{[]string{"h"}, large, "\x1b[3A\rh\x1b[K\n\x1b[J"},
	} {
		out.Reset()
		if err := s.draw(c.page, c.on); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); got != c.want {
			t.Errorf("%q is drawn as %q, want %q", c.page, got, c.want)
		}
	}
}
