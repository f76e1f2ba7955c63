package push

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/controlplane/assign"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
)

// book is what a stream knows of its sidecar: what it holds, what it should hold, what is on its way. It has no clock,
// no lock and does no I/O: events go in, messages come out. One goroutine owns it.
type book struct {
	workload assign.Workload

	// have is what the sidecar holds: sorted by kind and name, with its state hash.
	have   []*proxyapi.ObjectVersion
	state  []byte
	epoch  uint64
	commit string // empty while only the epoch is known, from hello

	input assign.Input // the newest
	// good is the last release that the sidecar took; refused the one that it did not. While the newest is refused, the
	// good one is served, with the endpoints of the moment: a sidecar that refuses policy still learns who is where.
	good, refused *assign.View
	// refusedState is the state that the sidecar refused although it took its release; it is not offered again.
	refusedState []byte
	// why is the reason for holding the newest release back, or the sidecar's for refusing it; empty: neither.
	why string

	target  *assign.Config // nil: there is nothing to offer
	transit *transit       // sent, and not answered yet
	told    []assign.Refused
	last    uint64 // id of the last transaction
}

// transit is a transaction on its way.
type transit struct {
	id     uint64
	config *assign.Config
}

// newBook opens a book with what a sidecar says of itself.
func newBook(w assign.Workload, epoch uint64, have []*proxyapi.ObjectVersion) (*book, error) {
	have = slices.Clone(have)
	slices.SortFunc(have, versions)
	for i, h := range have {
		if len(h.GetHash()) != len(mesh.Hash{}) || h.Kind == "" {
			return nil, fmt.Errorf("object %q of kind %q has no SHA-256", h.GetName(), h.GetKind())
		}
		if i > 0 && versions(have[i-1], h) == 0 {
			return nil, fmt.Errorf("object %q of kind %q is named twice", h.Name, h.Kind)
		}
	}
	return &book{workload: w, have: have, state: proxyapi.StateHash(have), epoch: epoch}, nil
}

func versions(a, b *proxyapi.ObjectVersion) int {
	return cmp.Or(cmp.Compare(a.GetKind(), b.GetKind()), cmp.Compare(a.GetName(), b.GetName()))
}

// update takes a release and endpoints as they are now, with the workload as it is now.
func (b *book) update(input assign.Input) {
	b.input, b.target = input, nil
	view, snap := input.View, input.Endpoints
	if view == nil {
		return // no release yet
	}
	if view.Epoch < b.epoch {
		b.why = fmt.Sprintf("the sidecar has epoch %d, this control plane only %d; it waits for the reconciler", b.epoch, view.Epoch)
		return
	}
	if view.Epoch == b.epoch {
		b.commit = view.Commit
	}
	if view != b.refused {
		c := assign.New(view, snap, &b.workload)
		if len(c.Lacks) == 0 {
			b.target = c
			b.settle()
			return
		}
		b.why = fmt.Sprintf("the release needs %s, which this sidecar cannot enforce; upgrade the sidecar", list(c.Lacks))
	}
	if b.good != nil && b.good.Epoch == b.epoch {
		if c := assign.New(b.good, snap, &b.workload); len(c.Lacks) == 0 {
			b.target = c
		}
	}
}

func list(cs []mesh.Capability) string {
	s := make([]string, len(cs))
	for i, c := range cs {
		s[i] = string(c)
	}
	return strings.Join(s, ", ")
}

// settle notes where the sidecar already is where it should be, as after a reconnect: then nothing is sent.
func (b *book) settle() {
	if b.target != nil && b.transit == nil && b.target.View == b.input.View &&
		b.epoch == b.target.View.Epoch && bytes.Equal(b.state, b.target.State) {
		b.good, b.commit, b.why = b.target.View, b.target.View.Commit, ""
	}
}

// pending reports whether there is a transaction to send.
func (b *book) pending() bool {
	if b.transit != nil || b.target == nil {
		return false
	}
	same := bytes.Equal(b.state, b.target.State)
	if same && b.epoch == b.target.View.Epoch {
		return false
	}
	return b.target.View != b.good || !bytes.Equal(b.target.State, b.refusedState)
}

// transaction is the next one; call it only when pending.
func (b *book) transaction() *proxyapi.Transaction {
	b.last++
	b.transit = &transit{id: b.last, config: b.target}
	t := &proxyapi.Transaction{
		Id: b.last, Epoch: b.target.View.Epoch, Commit: b.target.View.Commit, Full: len(b.have) == 0, State: b.target.State,
	}
	t.Upserts, t.Deletes = assign.Diff(b.have, b.target.Objects)
	return t
}

// ack takes the answer to a transaction. It reports whether it was the one that is on its way.
func (b *book) ack(a *proxyapi.Ack) bool {
	if b.transit == nil || a.GetTransaction() != b.transit.id {
		return false
	}
	c := b.transit.config
	b.transit = nil
	if a.GetNack() == "" {
		b.have, b.state = assign.Versions(c.Objects), c.State
		b.epoch, b.commit, b.good = c.View.Epoch, c.View.Commit, c.View
		b.refusedState = nil
		if c.View == b.input.View {
			b.why = ""
		}
		return true
	}
	b.why = clip(a.GetNack(), 1024)
	if c.View == b.good {
		b.refusedState = c.State
	} else {
		b.refused = c.View
	}
	b.update(b.input)
	return true
}

// heartbeat says what the sidecar holds; ok is false while a transaction is on its way, since nobody knows.
func (b *book) heartbeat() (h *proxyapi.Heartbeat, ok bool) {
	if b.transit != nil {
		return nil, false
	}
	return &proxyapi.Heartbeat{Epoch: b.epoch, Commit: b.commit, State: b.state}, true
}

// refusals are the destinations that the sidecar has not been told yet that it is not served.
func (b *book) refusals() []*proxyapi.Refused {
	if b.target == nil || b.target.View != b.input.View {
		return nil
	}
	var out []*proxyapi.Refused
	for _, r := range b.target.Refused {
		if slices.Contains(b.told, r) {
			continue
		}
		m := &proxyapi.Refused{Service: string(r.Service), Reason: "denied", Rule: r.Rule, Origin: r.Origin}
		if r.Unknown {
			m.Reason = "unknown"
		}
		out = append(out, m)
	}
	b.told = b.target.Refused
	return out
}

func clip(s string, n int) string { return strings.ToValidUTF8(s[:min(len(s), n)], "") }
