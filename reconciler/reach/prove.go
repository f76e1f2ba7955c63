package reach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// Prove tells which invariants a mesh breaks, over all calls: at the doors of the services that an invariant is about,
// where a hostile caller can come with any request, and by the routes of the calls to them, which may lead elsewhere. It
// must hold at a time and whenever a rule ends after it. A finding has one call that shows it; the lines that permit it
// are related. Where there are more classes than the budget (of one port, 0: [Budget]) or a regular expression decides,
// the invariant is undecided, which is an error too; so it is where all invariants together would take too long, which is a
// count as well. When ctx is done it returns soon, with findings that mean nothing.
func Prove(ctx context.Context, m *mesh.Mesh, at mesh.Origins, invariants []mesh.Invariant, now time.Time, budget int) diag.List {
	var out diag.List
	if len(invariants) == 0 {
		return nil
	}
	callers := NewCallers(m)
	left := provable
	for i := range invariants {
		inv := &invariants[i]
		p := &prover{ctx: ctx, m: m, at: at, inv: inv, now: now, budget: budget, callers: callers, left: left}
		if f, bad := p.prove(); bad {
			out.Add(f)
		}
		left = p.left
	}
	return out.Sorted()
}

// provable is how many steps all invariants together may take: some twenty seconds. Most ports of a large mesh take none, and
// others a thousand for each invariant.
const provable = 2 * Total

var errTogether = errors.New("all invariants together ask of too many combinations of conditions to try them all")

type prover struct {
	ctx     context.Context // of the one Prove that the prover is for
	left    int             // steps that may still be taken, for this invariant and those behind it
	m       *mesh.Mesh
	at      mesh.Origins
	inv     *mesh.Invariant
	now     time.Time
	budget  int
	callers *Callers
}

// flow is the invariant as calls that must not be: from whom (inverted for only), to where.
func (p *prover) flow() (f mesh.Flow, inverted bool) {
	switch {
	case p.inv.Never != nil:
		return *p.inv.Never, false
	case p.inv.Only != nil:
		return *p.inv.Only, true
	}
	return mesh.Flow{From: []mesh.Peer{{Unauthenticated: true}}, To: *p.inv.AlwaysMTLS}, false
}

// concerns reports whether a call is one of those that the invariant forbids.
func concerns(f *mesh.Flow, inverted bool, c *decide.Call) bool {
	if c.HTTP {
		if len(f.To.Methods) > 0 && !slices.Contains(f.To.Methods, c.Method) {
			return false
		}
		if len(f.To.Paths) > 0 && !slices.ContainsFunc(f.To.Paths, func(m mesh.PathMatch) bool { return decide.PathMatches(&m, c.Path) }) {
			return false
		}
	}
	// A connection in which no request is seen may carry any.
	from := f.Anyone || slices.ContainsFunc(f.From, func(q mesh.Peer) bool {
		if q.Unauthenticated {
			return c.Peer == ""
		}
		return decide.PeerMatches(&q, c.Peer)
	})
	return from != inverted
}

// targets are the services that an invariant is about.
func (p *prover) targets(t *mesh.Target) (out []mesh.ServiceName) {
	for i := range p.m.Inbound {
		n := p.m.Inbound[i].Service
		if t.Namespace != "" && n.Namespace() != t.Namespace || len(t.Services) > 0 && !slices.Contains(t.Services, n) {
			continue
		}
		out = append(out, n)
	}
	return out
}

// Counterexample is a call that breaks an invariant, with the ids of what permits it; nil: there is none, and the
// invariant holds. The error says in words why that could not be decided.
func Counterexample(m *mesh.Mesh, inv *mesh.Invariant, now time.Time, budget int) (*Witness, []string, error) {
	p := &prover{ctx: context.Background(), m: m, inv: inv, now: now, budget: budget, callers: NewCallers(m), left: provable}
	return p.find()
}

func (p *prover) find() (*Witness, []string, error) {
	flow, inverted := p.flow()
	var undecided error
	for _, n := range p.targets(&flow.To) {
		in, _ := p.m.InboundOf(n)
		for i := range in.Ports {
			port := &in.Ports[i]
			if len(flow.To.Ports) > 0 && !slices.Contains(flow.To.Ports, port.Name) || p.inv.AlwaysMTLS != nil && port.MTLS != mesh.Permissive {
				continue
			}
			if !p.mayConcern(in, port, &flow, inverted) {
				continue
			}
			if err := p.ctx.Err(); err != nil {
				return nil, nil, err
			}
			w, related, err := p.port(p.m, n, port.Name, &flow, inverted)
			if w != nil {
				return w, related, nil
			}
			if p.left <= 0 {
				return nil, nil, fmt.Errorf("%w; %s:%s was the last of them", errTogether, n, port.Name)
			}
			if err == nil {
				// Samples found nothing; is there nothing whatever the expressions say?
				if a := Abstract(p.m, n); a != nil {
					if w, _, err = p.port(a, n, port.Name, &flow, inverted); w != nil {
						undecided = fmt.Errorf("a regular expression decides about calls of %s to %s:%s", w.From, n, port.Name)
					}
				}
			}
			if err != nil {
				undecided = fmt.Errorf("there are too many combinations of conditions on %s:%s to try them all", n, port.Name)
			}
		}
	}
	return nil, nil, undecided
}

func (p *prover) prove() (diag.Finding, bool) {
	w, related, err := p.find()
	switch {
	case w != nil:
		return p.violated(w, related), true
	case err != nil:
		return diag.Finding{ID: diag.InvariantUndecided, Path: "invariants." + p.inv.Name, Pos: p.at[p.inv.ID],
			Message: fmt.Sprintf("it cannot be decided whether %q holds: %v", p.inv.Name, err),
			Hint:    "deny the calls by a rule without conditions, or let exact paths and prefixes take the place of expressions"}, true
	}
	return diag.Finding{}, false
}

// mayConcern reports whether the callers that an invariant is about could be let in anywhere behind a port, going by who
// they are alone. Most ports of a large mesh need no closer look.
func (p *prover) mayConcern(in *mesh.Inbound, port *mesh.InboundPort, f *mesh.Flow, inverted bool) bool {
	if opens(in, port, f, inverted) {
		return true
	}
	out, ok := p.m.OutboundOf(in.Service)
	if !ok || p.inv.AlwaysMTLS != nil {
		return false
	}
	behind := false
	see := func(n mesh.ServiceName) {
		if n == in.Service && len(in.Ports) == 1 || behind {
			return
		}
		if b, ok := p.m.InboundOf(n); ok {
			for i := range b.Ports {
				behind = behind || opens(b, &b.Ports[i], f, inverted)
			}
		}
	}
	for i := range out.Routes {
		EachBackend(&out.Routes[i], see)
	}
	for i := range out.Consumers {
		for j := range out.Consumers[i].Routes {
			EachBackend(&out.Consumers[i].Routes[j], see)
		}
	}
	return behind
}

// opens reports whether one of those callers could be let in by a port's default or by one of its allow rules.
func opens(in *mesh.Inbound, port *mesh.InboundPort, f *mesh.Flow, inverted bool) bool {
	if port.Default != mesh.Deny {
		return true
	}
	for i := range in.Rules {
		r := &in.Rules[i]
		if r.Action != mesh.Allow || r.Shadow || !decide.OnPort(r, port.Name) {
			continue
		}
		for j := range r.From {
			if inverted && !within(&r.From[j], f) || !inverted && (f.Anyone || slices.ContainsFunc(f.From, func(q mesh.Peer) bool { return meet(&r.From[j], &q) })) {
				return true
			}
		}
	}
	return false
}

// meet reports whether a caller could be one of both; it says yes where it does not know.
func meet(a, b *mesh.Peer) bool {
	switch {
	case a.Identity != "" && (b.Identity != "" || b.Prefix != "" || b.Suffix != ""):
		return decide.PeerMatches(b, a.Identity)
	case b.Identity != "" && (a.Prefix != "" || a.Suffix != ""):
		return decide.PeerMatches(a, b.Identity)
	case a.Prefix != "" && b.Prefix != "":
		return strings.HasPrefix(a.Prefix, b.Prefix) || strings.HasPrefix(b.Prefix, a.Prefix)
	}
	return true
}

// within reports whether all of some callers are surely among those of a flow.
func within(a *mesh.Peer, f *mesh.Flow) bool {
	return f.Anyone || slices.ContainsFunc(f.From, func(q mesh.Peer) bool {
		switch {
		case a.Unauthenticated, q.Unauthenticated:
			return false
		case q.Authenticated:
			return true
		case a.Identity != "":
			return decide.PeerMatches(&q, a.Identity)
		}
		return a.Prefix != "" && q.Prefix != "" && strings.HasPrefix(a.Prefix, q.Prefix)
	})
}

// port looks for a call to one port that the invariant forbids and the mesh allows.
func (p *prover) port(m *mesh.Mesh, n mesh.ServiceName, name string, f *mesh.Flow, inverted bool) (w *Witness, related []string, err error) {
	in, ok := m.InboundOf(n)
	if !ok {
		return nil, nil, nil
	}
	port, ok := in.Port(name)
	if !ok {
		return nil, nil, nil
	}
	routed := p.inv.AlwaysMTLS == nil // a caller without identity has no sidecar that routes
	space, err := New(&Question{Service: n, Port: name, Meshes: []*mesh.Mesh{m}, Callers: p.callers, Routed: routed, Now: p.now,
		Budget: min(cmp.Or(p.budget, Budget), max(p.left, 1)), Flow: f})
	defer func() { p.left -= space.Spent() }()
	if err != nil {
		return nil, nil, err
	}
	var odd *oddPaths
	if space.http && !port.CanonicalPaths && len(f.To.Paths) > 0 {
		odd = newOddPaths(f)
	}
	err = space.Each(func(c *Cell) bool {
		if odd != nil && w == nil && c.Call.HTTP && concerns(&odd.flow, inverted, &c.Call) {
			path := c.Call.Path
			for c.Call.Path = range odd.of(path) {
				seen := decide.Seen(port.Protocol, c.Call.Request)
				if v, _ := decide.Admit(in, port, &seen); v.Allowed {
					w, related = c.Witness(), []string{v.Rule}
					w.Direct = c.Call.Peer != ""
					break
				}
			}
			c.Call.Path = path
		}
		if !concerns(f, inverted, &c.Call) {
			return true
		}
		seen := decide.Seen(port.Protocol, c.Call.Request)
		if v, _ := decide.Admit(in, port, &seen); v.Allowed {
			if w == nil || c.Call.HTTP {
				w, related = c.Witness(), []string{v.Rule}
				o := decide.Judge(m, &c.Call)
				w.Direct = c.Call.Peer != "" && !o.Allowed()
			}
			return !c.Call.HTTP && space.http // a request shows more than a connection
		}
		if !routed || c.Call.Peer == "" || w != nil {
			return true
		}
		o := decide.Judge(m, &c.Call)
		for i := range o.Shares {
			if s := &o.Shares[i]; s.Allowed && !s.Mirror && s.Status == 0 {
				w, related = c.Witness(), []string{s.Rule}
				if o.Route != nil {
					related = []string{o.Route.ID, s.Rule}
				}
				return false
			}
		}
		return true
	})
	if w != nil {
		err = nil
	}
	return w, related, err
}

// oddPaths are spellings of the paths of a flow that are not canonical. A port that takes them as they are lets its rules
// judge what is written, and the application may resolve it to what is meant: "/public/../admin" is below /public.
type oddPaths struct {
	flow    mesh.Flow // without its paths
	targets []string
}

func newOddPaths(f *mesh.Flow) *oddPaths {
	odd := &oddPaths{flow: *f}
	odd.flow.To.Paths = nil
	for _, p := range f.To.Paths {
		elements := strings.Split(p.Exact+p.Prefix+p.Template, "/") // one of them is set
		for i, e := range elements {
			if p.Template != "" && strings.HasPrefix(e, "{") {
				elements[i] = "x"
			}
		}
		odd.targets = append(odd.targets, strings.Join(elements, "/"))
	}
	return odd
}

// of yields spellings that begin as a canonical path does, so that what is said of paths which begin so is said of them.
func (o *oddPaths) of(path string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		if path == "*" {
			return
		}
		path = strings.TrimSuffix(path, "/")
		up := strings.Count(path, "/")
		for _, t := range o.targets {
			// Up by elements of their own, and within the last one, where a template has a variable.
			last := path[:strings.LastIndexByte(path, '/')+1] + "x" + strings.Repeat("%2F..", up) + strings.ReplaceAll(t, "/", "%2F")
			if !yield("/"+t) || !yield(path+strings.Repeat("/..", up)+t) || up > 0 && !yield(last) {
				return
			}
		}
	}
}

func (p *prover) violated(w *Witness, related []string) diag.Finding {
	what := map[bool]string{true: fmt.Sprintf("%s %s", w.Method, w.Path), false: "a connection"}[w.HTTP]
	from := w.From
	if from == "-" {
		from = "a caller without identity"
	}
	msg := fmt.Sprintf("%q does not hold: %s from %s to %s:%s is allowed", p.inv.Name, what, from, w.To, w.Port)
	if w.At.After(p.now) {
		msg += " from " + w.At.UTC().Format(time.RFC3339) + " on"
	}
	var by []string
	f := diag.Finding{ID: diag.InvariantViolated, Path: "invariants." + p.inv.Name, Pos: p.at[p.inv.ID],
		Hint: "see it with " + w.Command() + "; change the rule that allows it, or the invariant in a commit of its own"}
	for _, id := range related {
		if pos := p.at[id]; !pos.IsZero() {
			f.Related = append(f.Related, pos)
		}
		by = append(by, id)
	}
	f.Message = msg + " by " + strings.Join(by, " and ")
	return f
}
