package push

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/controlplane/assign"
	"github.com/heddle-mesh/heddle/controlplane/inventory"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
	"github.com/heddle-mesh/heddle/schema/release"
)

// inputs are releases that differ in who may call whom, each with some endpoints.
func inputs(t *testing.T, r *rand.Rand, n int) (out []assign.Input) {
	inv, err := inventory.Open(filepath.Join(t.TempDir(), "inventory"))
	if err != nil {
		t.Fatal(err)
	}
	var last *assign.View
	for e := range n {
		m := &mesh.Mesh{Settings: mesh.Settings{TrustDomain: "mesh.test"}}
		for i := range 6 {
			name := mesh.Name("n", fmt.Sprintf("s%d", i))
			in := mesh.Inbound{Service: name, Identities: []string{"spiffe://mesh.test/s"}, Ports: []mesh.InboundPort{{Name: "p", Default: mesh.Deny}}}
			if r.IntN(2) == 0 {
				in.Rules = []mesh.Rule{{ID: string(name) + "/allow/x", Action: mesh.Allow, From: []mesh.Peer{{Identity: "spiffe://mesh.test/me"}}}}
			}
			m.Inbound = append(m.Inbound, in)
			m.Outbound = append(m.Outbound, mesh.Outbound{Service: name, Ports: []mesh.OutboundPort{{Name: "p", Port: uint16(1 + r.IntN(3))}}})
			m.Workloads = append(m.Workloads, mesh.Workload{Name: string(name) + "-1", Service: name,
				Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(3))}), 1).String()})
		}
		last = assign.NewView(&release.Record{Epoch: uint64(e + 1), Sources: []release.Source{{Commit: fmt.Sprint(e)}}}, m, nil, last)
		out = append(out, assign.Input{View: last, Endpoints: inv.SetMesh(m)})
	}
	return out
}

// TestBook plays random histories: releases, subscriptions, refusals, reconnects, in any order, with answers that come
// late. Whenever the sidecar took a transaction, it holds exactly what a full snapshot of the offered config has; epochs
// never go back; and when it refuses nothing more, it ends where a fresh sidecar would.
func TestBook(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 7))
		all := inputs(t, r, 5)
		held, epoch := map[string]*proxyapi.ObjectVersion{}, uint64(0)
		versions := func() (out []*proxyapi.ObjectVersion) {
			for _, v := range held {
				out = append(out, v)
			}
			return out
		}
		w := assign.Workload{Service: "n/s0", Identity: "spiffe://mesh.test/me"}
		open := func() *book {
			b, err := newBook(w, epoch, versions())
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		b, at := open(), 0
		var sent *proxyapi.Transaction
		answer := func(refuse bool) {
			if sent == nil {
				return
			}
			a := &proxyapi.Ack{Transaction: sent.Id, Epoch: sent.Epoch}
			if refuse {
				a.Nack = "no"
			} else {
				if sent.Epoch < epoch {
					t.Fatalf("seed %d: epoch %d after %d", seed, sent.Epoch, epoch)
				}
				if sent.Full {
					clear(held)
				}
				for _, o := range sent.Upserts {
					held[o.Kind+o.Name] = &proxyapi.ObjectVersion{Kind: o.Kind, Name: o.Name, Hash: o.Hash}
				}
				for _, d := range sent.Deletes {
					delete(held, d.Kind+d.Name)
				}
				epoch = sent.Epoch
				if !bytes.Equal(proxyapi.StateHash(versions()), sent.State) {
					t.Fatalf("seed %d: the state is another than the transaction says", seed)
				}
			}
			sent = nil
			if !b.ack(a) {
				t.Fatalf("seed %d: the answer was not expected", seed)
			}
		}
		send := func() {
			if sent == nil && b.pending() {
				sent = b.transaction()
			}
		}
		b.update(all[0])
		for range 60 {
			switch r.IntN(7) {
			case 0:
				at = min(at+1, len(all)-1)
				b.update(all[at])
			case 1:
				b.workload.Subscribed = []mesh.ServiceName{mesh.Name("n", fmt.Sprintf("s%d", r.IntN(7)))}
				b.update(all[at])
			case 2:
				answer(r.IntN(3) == 0)
			case 3:
				w.Subscribed = b.workload.Subscribed
				sent = nil // on its way when the stream broke: it may not have been applied
				b = open()
				b.update(all[at])
			default:
				send()
			}
			if h, ok := b.heartbeat(); ok && !bytes.Equal(h.State, proxyapi.StateHash(versions())) {
				t.Fatalf("seed %d: a heartbeat has another state than the sidecar", seed)
			}
		}
		// A last release that it takes.
		final := inputs(t, r, 6)[5]
		for range 10 {
			answer(false)
			b.update(final)
			send()
		}
		answer(false)
		want := assign.New(final.View, final.Endpoints, &b.workload)
		if b.pending() || epoch != final.View.Epoch || !bytes.Equal(proxyapi.StateHash(versions()), want.State) || b.why != "" {
			t.Fatalf("seed %d: it ends at epoch %d, pending %v, %q", seed, epoch, b.pending(), b.why)
		}
	}
}

func TestBookRefusesNonsense(t *testing.T) {
	hash := make([]byte, 32)
	for what, have := range map[string][]*proxyapi.ObjectVersion{
		"twice":      {{Kind: "index", Name: "a", Hash: hash}, {Kind: "index", Name: "a", Hash: hash}},
		"no hash":    {{Kind: "index", Name: "a"}},
		"short hash": {{Kind: "index", Name: "a", Hash: hash[1:]}},
		"no kind":    {{Name: "a", Hash: hash}},
	} {
		if _, err := newBook(assign.Workload{}, 1, have); err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
	// A sidecar that is ahead, as after the loss of this control plane's mirror, is sent nothing older.
	in := inputs(t, rand.New(rand.NewPCG(1, 1)), 1)[0]
	b, err := newBook(assign.Workload{Service: "n/s0", Identity: "spiffe://mesh.test/me"}, 9, nil)
	if err != nil {
		t.Fatal(err)
	}
	b.update(in)
	if b.pending() || b.why == "" {
		t.Errorf("a sidecar at epoch 9 is offered epoch 1; why is %q", b.why)
	}
}

func TestBucketPacesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bucket{every: 10 * time.Millisecond, burst: 5}
		start := time.Now()
		for i := range 25 {
			if err := b.wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got, want := time.Since(start), time.Duration(max(0, i-4))*10*time.Millisecond; got != want {
				t.Errorf("number %d passed after %v, want %v", i, got, want)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if b.wait(ctx) == nil {
			t.Error("a caller that is gone was admitted")
		}
	})
}
