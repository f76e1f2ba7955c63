package up

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/process"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/published"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/terminal"
	"github.com/heddle-mesh/heddle/controlplane/observe"
	"github.com/heddle-mesh/heddle/controlplane/push"
	"github.com/heddle-mesh/heddle/internal/operator"
	"github.com/heddle-mesh/heddle/reconciler"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// Periods of watching. Looking costs one request on a local socket.
const (
	lookEvery  = 100 * time.Millisecond
	edgesEvery = time.Second
)

// events collects what is worth a line, bounded, and says that something changed.
type events struct {
	changed chan struct{} // size 1: a child started or exited
	mu      sync.Mutex    // guards lines
	lines   []string      // not printed yet
}

const maxEvents = 256

func newEvents() *events { return &events{changed: make(chan struct{}, 1)} }

func (e *events) add(line string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.lines = append(e.lines, line); len(e.lines) > maxEvents {
		e.lines = e.lines[1:]
	}
}

func (e *events) take() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	lines := e.lines
	e.lines = nil
	return lines
}

// process is told of every start and exit of a child.
func (e *events) process(p process.Event) {
	switch {
	case p.Err != nil:
		e.add(fmt.Sprintf("failed %s cannot be started: %v; trying again in %s", p.Name, p.Err, p.Wait))
	case p.PID == 0:
		why := p.Exit
		if said := complaint(p.Last); said != "" && p.Code > 0 {
			why += ": " + said
		}
		e.add(fmt.Sprintf("exited %s %s; restarting in %s", p.Name, why, p.Wait))
	default:
		e.add(fmt.Sprintf("started %s pid %d", p.Name, p.PID))
	}
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

// view is what is known at a moment. It is never written again.
type view struct {
	status    *reconciler.Status // the last one; nil: none yet
	statusAt  time.Time
	statusErr error
	edges     []observe.Edge
	edgesAt   time.Time
	edgesErr  error
	rules     map[string]string // file:line by rule id, of the rules that denied something
	processes []process.State
	waiting   string
	missing   string // which sidecar is not there
}

// watch looks at the mesh and shows it until ctx ends or, if so configured, the mesh has converged.
func (u *supervisor) watch(ctx context.Context) error {
	reconcilerAPI := operator.NewClient(filepath.Join(u.cfg.State, "reconciler", operator.SocketName))
	controlplaneAPI := operator.NewClient(filepath.Join(u.cfg.State, "controlplane", operator.SocketName))
	var show shower = &plain{supervisor: u}
	if u.cfg.Style.TTY {
		show = &screen{supervisor: u}
	}
	v := view{}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		look, cancel := context.WithTimeout(ctx, time.Second)
		status := new(reconciler.Status)
		if v.statusErr = reconcilerAPI.Get(look, "/v1/status", status); v.statusErr == nil {
			u.countAll(status)
			v.status, v.statusAt = status, time.Now()
			u.hasAnswered(nameReconciler)
		}
		if v.missing != "" || time.Since(v.edgesAt) >= edgesEvery {
			v.missing = u.missing(look, controlplaneAPI)
		}
		if time.Since(v.edgesAt) >= edgesEvery {
			var edges struct {
				Items []observe.Edge `json:"items"`
			}
			if v.edgesErr = controlplaneAPI.Get(look, "/v1/edges", &edges); v.edgesErr == nil {
				v.edges, v.edgesAt = edges.Items, time.Now()
				u.hasAnswered(nameControlplane)
				v.rules = u.places(v.edges)
			}
		}
		cancel()
		v.waiting = cmp.Or(u.whyWaiting(), v.missing)
		v.processes = u.group.States()
		if err := show.show(v, u.events.take()); err != nil {
			return fmt.Errorf("showing the status: %w", err)
		}
		if u.cfg.ExitAfterConverged && u.converged(v) {
			return nil
		}
		select {
		case <-ctx.Done():
			return show.end()
		case <-tick.C:
		}
	}
}

// missing names the first workload whose sidecar is not there, and where it says why: a service that policy does not
// declare, for one, or an enrolment that was revoked.
func (u *supervisor) missing(ctx context.Context, api *operator.Client) string {
	var proxies struct {
		Items []push.Proxy `json:"items"`
	}
	if api.Get(ctx, "/v1/proxies", &proxies) != nil {
		return "" // whether the control plane answers is said elsewhere
	}
	for i := range u.processes.Workloads {
		w := &u.processes.Workloads[i]
		at := slices.IndexFunc(proxies.Items, func(p push.Proxy) bool { return p.Workload == w.Name })
		switch {
		case at < 0:
			return fmt.Sprintf("the sidecar of %s has not enrolled; see %s", w.Name, u.log(w.sidecar()))
		case !proxies.Items[at].Connected:
			return fmt.Sprintf("the sidecar of %s is not connected; see %s", w.Name, u.log(w.sidecar()))
		}
	}
	return ""
}

// countAll counts the workloads that have no sidecar yet: the reconciler has converged when all sidecars that are there
// have acknowledged, and here it is known which are to come.
func (u *supervisor) countAll(s *reconciler.Status) {
	if len(u.processes.Workloads) <= s.Push.Total {
		return
	}
	s.Push.Total = len(u.processes.Workloads)
	if s.Observed != nil && s.Observed.State == reconciler.Converged {
		s.Observed.State = reconciler.Pushing
	}
}

// converged reports whether every workload of the example enforces the newest commit.
func (u *supervisor) converged(v view) bool {
	s := v.status
	return v.statusErr == nil && s != nil && s.Observed != nil && s.Observed.State == reconciler.Converged &&
		s.Push.Acked == s.Push.Total
}

// places finds where the rules were written that denied something lately.
func (u *supervisor) places(edges []observe.Edge) map[string]string {
	denied := slices.ContainsFunc(edges, func(e observe.Edge) bool { return e.DeniedPerSecond > 0 && e.Rule != "" })
	if !denied {
		return nil
	}
	out := map[string]string{}
	releases, err := published.Open(u.cfg.State)
	if err != nil {
		return out // the rule's id is shown instead
	}
	latest, err := releases.Latest()
	if err != nil {
		return out
	}
	for _, e := range edges {
		if pos, ok := latest.Origins[e.Rule]; ok {
			out[e.Rule] = pos.Short()
		}
	}
	return out
}

// shower prints views.
type shower interface {
	show(v view, lines []string) error
	end() error
}

// headline is the newest commit in one line that a program can read: state, commit, epoch, acknowledgements.
func headline(s *reconciler.Status) string {
	if s.Observed == nil {
		return ""
	}
	o := s.Observed
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", o.State, short(o.Commit))
	if s.Applied != nil && (o.State == reconciler.Pushing || o.State == reconciler.Converged) {
		fmt.Fprintf(&b, " epoch %d acked %d/%d", s.Applied.Epoch, s.Push.Acked, s.Push.Total)
	}
	fmt.Fprintf(&b, " %q", terminal.Clean(o.Subject))
	return b.String()
}

// trouble is what the newest commit has against it, with what to do about it.
func (u *supervisor) trouble(s *reconciler.Status) []string {
	var out []string
	o := s.Observed
	if o == nil {
		o = new(reconciler.Observed) // a repository that cannot be read has shown no commit
	}
	switch o.State {
	case reconciler.Rejected:
		serves := "nothing serves yet"
		if s.Applied != nil {
			serves = short(s.Applied.Commit) + " still serves"
		}
		out = append(out, fmt.Sprintf("findings: %d; %s", len(o.Findings), serves))
		for _, f := range o.Findings {
			out = append(out, "  "+terminal.Clean(f.String()))
			if advice := f.Advice(); advice != "" {
				out = append(out, "    hint: "+terminal.Clean(advice))
			}
		}
	case reconciler.Held:
		out = append(out, "held: "+terminal.Clean(o.Reason))
		if o.Accept != "" {
			out = append(out, fmt.Sprintf("  try: heddle resume --accept-%s --state %s", o.Accept, u.cfg.State))
		}
	}
	for _, n := range s.Push.Nacks {
		out = append(out, "nack "+terminal.Clean(n.Workload)+": "+terminal.Clean(n.Reason))
	}
	if s.Fault != "" {
		out = append(out, "fault: "+terminal.Clean(s.Fault))
	}
	return out
}

// next is what a newcomer may try.
func (u *supervisor) next() []string {
	state := ""
	if here, err := filepath.Abs(".heddle"); err != nil || here != u.cfg.State && u.cfg.Getenv("HEDDLE_STATE") == "" {
		state = " --state " + u.cfg.State
	}
	var out []string
	for _, try := range u.processes.Try {
		if u.cfg.Repo != "" && strings.Contains(try, "{repo}") {
			continue // it is about the example's policy, not about theirs
		}
		out = append(out, strings.NewReplacer("{entry}", u.entry(), "{repo}", u.repo, "{state}", state).Replace(try))
	}
	return append(out, "heddle status"+state, "heddle up kill controlplane"+state)
}

func short(commit string) string { return commit[:min(7, len(commit))] }

// plain prints one line a change, for files and pipes.
type plain struct {
	*supervisor
	begun  bool
	ready  bool
	last   string // headline
	detail string // trouble
	down   string // what does not answer

	waiting      string
	waitingSince time.Time
	waitingSaid  bool
}

// patience is how long a workload may wait for its token before a line says so: every first start waits a moment.
const patience = 3 * time.Second

func (p *plain) show(v view, lines []string) error {
	if !p.begun {
		p.begun = true
		lines = append([]string{fmt.Sprintf("repository %s ref %s", p.repo, p.cfg.Ref), "state " + p.cfg.State}, lines...)
	}
	down := ""
	if v.statusErr != nil && v.status != nil {
		down = "reconciler"
	} else if v.edgesErr != nil && v.edges != nil {
		down = "controlplane"
	}
	if down != p.down && p.down != "" {
		lines = append(lines, "reachable "+p.down)
	}
	if down != p.down && down != "" {
		lines = append(lines, "unreachable "+down)
	}
	p.down = down
	if v.waiting != p.waiting {
		p.waiting, p.waitingSince, p.waitingSaid = v.waiting, time.Now(), false
	}
	if p.waiting != "" && !p.waitingSaid && time.Since(p.waitingSince) > patience {
		p.waitingSaid = true
		lines = append(lines, "waiting "+terminal.Clean(v.waiting))
	}
	if v.status != nil && v.statusErr == nil {
		if h := headline(v.status); h != p.last && h != "" {
			p.last = h
			lines = append(lines, h)
		}
		trouble := p.trouble(v.status)
		if d := strings.Join(trouble, "\n"); d != p.detail {
			p.detail = d
			lines = append(lines, trouble...)
		}
	}
	if !p.ready && p.converged(v) {
		p.ready = true
		lines = append(lines, strings.TrimSpace("ready "+p.entry()))
		for _, n := range p.next() {
			lines = append(lines, "  try: "+n)
		}
	}
	for _, l := range lines {
		if _, err := fmt.Fprintln(p.cfg.Out, l); err != nil {
			return err
		}
	}
	return nil
}

func (p *plain) end() error {
	_, err := fmt.Fprintln(p.cfg.Out, "stopping")
	return err
}

// serviceOf shortens an edge's end for people: a service stays, an identity of the mesh loses its trust domain.
func serviceOf(end string) string {
	if rest, ok := strings.CutPrefix(end, "spiffe://"); ok {
		if _, path, ok := strings.Cut(rest, "/ns/"); ok {
			return string(mesh.ServiceName(strings.Replace(path, "/sa/", "/", 1)))
		}
	}
	if end == "" {
		return "(outside)"
	}
	return end
}
