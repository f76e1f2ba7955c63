// Package plan turns two compiled meshes into what a commit does: lines that say who may call what and no longer may,
// which traffic moves, which encryption goes, each with its risk, the lines of policy that decide on both sides, and one
// concrete request that shows it.
//
// Access and routing are compared by package reach, over every class of canonical requests and of callers that the rules
// can tell apart, with the very code that sidecars decide with; the rest is compared as values. A plan without lines means
// that no call is judged or routed otherwise. Where the comparison cannot decide, the line says "may change". The package
// is pure: it reads no clock and does no I/O, and its results do not depend on map order.
package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/reconciler/reach"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// Risk is what a reviewer must think about, worst first.
type Risk string

const (
	DropsEncryption Risk = "drops-encryption"
	Widens          Risk = "widens" // somebody may do what they could not
	Deletes         Risk = "deletes"
	Narrows         Risk = "narrows"  // somebody may no longer do what they could
	Reroutes        Risk = "reroutes" // requests go elsewhere, are changed, or are answered otherwise
	AddsEncryption  Risk = "adds-encryption"
	Neutral         Risk = "neutral"
)

// Risks are all of them, worst first.
var Risks = []Risk{DropsEncryption, Widens, Deletes, Narrows, Reroutes, AddsEncryption, Neutral}

// ParseRisks reads a comma-separated list of risks, as `--fail-on` takes it.
func ParseRisks(s string) ([]Risk, error) {
	var out []Risk
	for _, word := range strings.Split(s, ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		if !slices.Contains(Risks, Risk(word)) {
			known := make([]string, len(Risks))
			for i, r := range Risks {
				known[i] = string(r)
			}
			return nil, fmt.Errorf("%q is no risk; known: %s", word, strings.Join(known, ", "))
		}
		out = append(out, Risk(word))
	}
	return out, nil
}

// Side is one of the two meshes. It is only read.
type Side struct {
	Mesh    *mesh.Mesh   // nil: there is nothing yet, as before the first commit
	Origins mesh.Origins // may be nil
	// Document is what it was compiled from, for the guards that are no part of a mesh: mandates, delegation, expectations.
	// nil: they are not known, and not compared.
	Document *v1alpha1.Document
	// Commit and Subject say what it was compiled from; they are only shown.
	Commit, Subject string
	// Dirty says that the tree has changes that are in no commit.
	Dirty bool
}

// Options are the caller's wishes; the zero Options are good.
type Options struct {
	// Name tells plans of several repositories or environments apart on one pull request; default "mesh-policy".
	Name string
	// Now is when the plan is made: rules that have ended by then play no part. The zero time is before every end.
	Now time.Time
	// Budget is how many steps the calls to one port may take to compare; beyond it the port's line says "may change". 0:
	// [reach.Budget]. All ports together take at most [reach.Total].
	Budget int
}

// Plan is what a change does. It is never written again once made.
type Plan struct {
	Name          string
	Before, After Revision
	// Lines are sorted by risk, worst first, then by subject.
	Lines []Line
	// Refused are lines about calls that both sides refuse: only who would refuse them, or how they would have been
	// treated, changes. They are not part of the verdict.
	Refused []Line
	// Later is what will change with no commit: rules of the after side that end. It is not part of the verdict.
	Later []Line
	// Reach is what is touched by the change.
	Reach Reach
}

// Revision says what a side was made from.
type Revision struct {
	Commit  string `json:"commit,omitempty"`
	Subject string `json:"subject,omitempty"`
	Dirty   bool   `json:"dirty,omitempty"`
}

// Reach counts what is touched.
type Reach struct {
	// Services whose own sidecars get new rules, and Callers whose sidecars get new routes; sorted.
	Services []mesh.ServiceName `json:"services"`
	Callers  []mesh.ServiceName `json:"callers"`
	// Workloads is the number of statically declared workloads of both.
	Workloads int `json:"workloads"`
}

// Kind is what a line is about.
type Kind string

const (
	KindAccess     Kind = "access"     // who a service lets in
	KindCall       Kind = "call"       // what becomes of a call, routes and rules together
	KindEncryption Kind = "encryption" // mTLS, or what a sidecar can see of a port
	KindPaths      Kind = "paths"      // canonical paths only
	KindTimeout    Kind = "timeout"
	KindRetry      Kind = "retry"
	KindFilter     Kind = "filter"
	KindBreaker    Kind = "breaker"
	KindBalancer   Kind = "balancer"
	KindLimit      Kind = "limit"
	KindService    Kind = "service"
	KindPort       Kind = "port"
	KindIdentity   Kind = "identity"
	KindWorkload   Kind = "workload"
	KindGroup      Kind = "group"
	KindEgress     Kind = "egress"
	KindGuard      Kind = "guard" // what judges the next commit
	KindMesh       Kind = "mesh"  // settings of the whole mesh
	KindObserved   Kind = "observed"
)

// Line is one thing that a change does.
type Line struct {
	Risk Risk `json:"risk"`
	// MayChange says that the comparison could not decide; then the line has no witness.
	MayChange bool `json:"mayChange,omitempty"`
	Kind      Kind `json:"kind"`
	// Subject is what changes, in a few words, such as "allow" or "timeout".
	Subject string `json:"subject"`
	// From are the callers: services, SPIFFE IDs, or sets of callers in words; none: the line is not about callers.
	From []string `json:"from,omitempty"`
	// To is "<service>:<port>", or the name of what changes.
	To string `json:"to,omitempty"`
	// Requests are those concerned, such as "GET /admin/*" or "every request"; none: the line is not about requests.
	Requests []string `json:"requests,omitempty"`
	Before   string   `json:"before,omitempty"`
	After    string   `json:"after,omitempty"`
	// WhereBefore and WhereAfter are the rules, routes and defaults that decide on the two sides.
	WhereBefore []Where `json:"whereBefore,omitempty"`
	WhereAfter  []Where `json:"whereAfter,omitempty"`
	// At is when it happens, where that is later than the plan.
	At time.Time `json:"at,omitzero"`
	// Witness is one call that the two sides judge or route differently: [decide.Judge] shows it, or where it is Direct,
	// [decide.Admit]. Of a parameter, such as a timeout, it is one call that it is about.
	Witness *reach.Witness `json:"witness,omitempty"`

	cells map[reach.Key]bool // which classes it is about
	space *reach.Space
	edge  edge
}

// Where is a rule, a route or a default, and the line of policy that wrote it.
type Where struct {
	ID  string   `json:"id"`
	Pos diag.Pos `json:"pos,omitzero"`
}

// Compare says what becomes of a mesh. It never fails: what it cannot decide it says in a line that may change.
func Compare(before, after *Side, o Options) *Plan {
	p := &Plan{
		Name:   cmp.Or(o.Name, "mesh-policy"),
		Before: Revision{before.Commit, before.Subject, before.Dirty},
		After:  Revision{after.Commit, after.Subject, after.Dirty},
	}
	c := newComparison(p, before, after, o)
	c.guards(before.Document, after.Document)
	c.run()
	return p
}

// FailOn reports whether a plan has a line of one of some risks; a line that may change counts.
func (p *Plan) FailOn(risks []Risk) bool {
	return slices.ContainsFunc(p.Lines, func(l Line) bool { return slices.Contains(risks, l.Risk) })
}

// Worst is the risk of the first line, or "" where nothing changes: a fresh comment is due where it rises.
func (p *Plan) Worst() Risk {
	if len(p.Lines) == 0 {
		return ""
	}
	return p.Lines[0].Risk
}

// Empty reports whether nothing changes.
func (p *Plan) Empty() bool { return len(p.Lines) == 0 }
