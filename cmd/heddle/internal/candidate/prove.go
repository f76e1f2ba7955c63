package candidate

import (
	"context"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/reconciler/reach"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// prove proves the invariants of a candidate's mesh over all requests.
func (c *Candidate) prove() diag.List {
	return reach.Prove(context.Background(), c.Mesh, c.Origins, c.Mesh.Invariants, Moment(c.Files.repo.opts.Now, c.Mesh), 0)
}

// Moment is when meshes are judged: now, if a rule of theirs ends. Else the time does not matter, and the zero time, which
// is before every end, gives the same words whenever it is asked. A nil mesh is none.
func Moment(now time.Time, meshes ...*mesh.Mesh) time.Time {
	for _, m := range meshes {
		if m == nil {
			continue
		}
		for i := range m.Inbound {
			if slices.ContainsFunc(m.Inbound[i].Rules, func(r mesh.Rule) bool { return !r.Until.IsZero() }) {
				return now
			}
		}
	}
	return time.Time{}
}
