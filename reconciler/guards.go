package reconciler

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/reconciler/expect"
	"github.com/heddle-mesh/heddle/reconciler/reach"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/release"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// A hold is a guard's answer: why a commit may not pass, and the word by which an operator lets it. Guards are facts of
// the last applied release; nothing that a candidate says about itself counts.
type hold struct {
	accept Accept
	reason string
}

// ancestry is how a tip stands to the applied commit.
type ancestry int

const (
	descends  ancestry = iota // or is the same
	older                     // the applied commit descends from the tip
	unrelated                 // neither, or the applied commit is gone from the repository
)

// judgeHistory lets only those commits pass that carry all that was applied before. A revert is such a commit.
func judgeHistory(applied *release.Record, tip string, how ancestry) *hold {
	switch how {
	case older:
		return &hold{AcceptRewind, fmt.Sprintf("the branch was moved back: %s is older than the applied commit %s; "+
			"undo a change with git revert, or accept the rewind", short(tip), short(applied.Commit()))}
	case unrelated:
		return &hold{AcceptRewind, fmt.Sprintf("the history was rewritten: %s does not descend from the applied commit %s; "+
			"restore the branch, or accept the rewind", short(tip), short(applied.Commit()))}
	}
	return nil
}

// judgeMesh compares the compiled candidate with what serves.
func judgeMesh(applied, candidate release.Guards) []hold {
	var out []hold
	if applied.TrustDomain != candidate.TrustDomain {
		out = append(out, hold{AcceptTrustDomain, fmt.Sprintf("the trust domain changes from %q to %q, which renames every identity; "+
			"restore it, or accept that all sidecars have to enrol again", applied.TrustDomain, candidate.TrustDomain)})
	}
	if applied.Services > 0 && candidate.Services == 0 {
		out = append(out, hold{AcceptEmpty, fmt.Sprintf("the commit leaves no service where there are %d, which closes the whole "+
			"mesh; revert it, or accept the empty mesh", applied.Services)})
	}
	return out
}

// judgeFences compares what directories of others may write, for those that the candidate has files in. Widening a
// delegation and using it are two commits: the first is reviewed by the owners of mesh.cue, and fences the second.
func judgeFences(applied *release.Guards, candidate []release.Fence, used func(directory string) bool) []hold {
	for _, f := range candidate {
		covered := slices.ContainsFunc(applied.Fences, func(a release.Fence) bool {
			return a.Directory == f.Directory && v1alpha1.Covers(a.Kinds, f.Kinds) && v1alpha1.Covers(a.Namespaces, f.Namespaces)
		})
		if !covered && used(f.Directory) {
			return []hold{{AcceptFences, fmt.Sprintf("mesh.sources.%s lets %s/ write what the applied release does not, and the commit has "+
				"policy there; delegate in one commit and write in the next, or accept both at once", f.Name, f.Directory)}}
		}
	}
	return nil
}

// permit is what an operator let pass: some holds of one commit.
type permit struct {
	commit  string
	accepts []Accept
}

// first returns the first of the holds that the permit does not cover, nil if it covers all.
func (p permit) first(commit string, holds ...hold) *hold {
	for i := range holds {
		if p.commit != commit || !slices.Contains(p.accepts, holds[i].accept) {
			return &holds[i]
		}
	}
	return nil
}

// short is a commit as people read it.
func short(commit string) string { return commit[:min(len(commit), 7)] }

// judgeClaims asks whether what a repository says of itself is so: its expectations and its invariants.
func judgeClaims(ctx context.Context, doc *v1alpha1.Document, m *mesh.Mesh, origins mesh.Origins, now time.Time) diag.List {
	_, findings := expect.Run(doc, m, origins, now)
	return append(findings, reach.Prove(ctx, m, origins, m.Invariants, now, 0)...)
}

// judgeInvariants holds a candidate to the invariants of the applied release that it drops or changes, so that no commit
// breaks one and drops it in the same breath. A revert of the commit that brought an invariant may be such a one, so an
// operator can let it pass.
func judgeInvariants(ctx context.Context, applied *release.Guards, m *mesh.Mesh, origins mesh.Origins, now time.Time) []hold {
	dropped := slices.DeleteFunc(slices.Clone(applied.Invariants), func(i mesh.Invariant) bool {
		return slices.ContainsFunc(m.Invariants, func(j mesh.Invariant) bool { return reflect.DeepEqual(i, j) }) // proved already
	})
	broken := reach.Prove(ctx, m, origins, dropped, now, 0)
	if len(broken) == 0 {
		return nil
	}
	f := broken[0]
	if f.Pos.IsZero() && len(f.Related) > 0 { // the invariant is gone; what breaks it is there
		f.Pos = f.Related[0]
	}
	more := ""
	if len(broken) > 1 {
		more = fmt.Sprintf(" (and %d more)", len(broken)-1)
	}
	return []hold{{AcceptInvariants, fmt.Sprintf("the commit drops or changes an invariant of the applied release, and breaks it: %s: %s%s; "+
		"change the invariant in a commit of its own first, or accept both at once", f.Pos.Short(), f.Message, more)}}
}
