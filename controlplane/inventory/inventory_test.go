package inventory

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

// story runs an inventory in virtual time.
type story struct {
	*Inventory
	t *testing.T
}

func tell(t *testing.T, path string, f func(s *story)) {
	synctest.Test(t, func(t *testing.T) {
		in, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- in.Run(ctx) }()
		f(&story{in, t})
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func at(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), port) }

// lists checks which workloads of api are listed once everything has settled.
func (s *story) lists(want ...string) {
	s.t.Helper()
	time.Sleep(2 * settle)
	synctest.Wait()
	got := []string{}
	for _, e := range s.Snapshot().Service("shop/api").Endpoints {
		got = append(got, e.Workload)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		s.t.Errorf("listed are %v, want %v", got, want)
	}
}

func TestGrace(t *testing.T) {
	tell(t, filepath.Join(t.TempDir(), "inventory"), func(s *story) {
		s.lists()
		a := s.Connect("shop/api-1", "shop/api", at(1))
		b := s.Connect("shop/api-2", "shop/api", at(2))
		c := s.Connect("shop/web-1", "shop/web", at(3))
		s.lists("shop/api-1", "shop/api-2")

		// A short absence is not seen; a long one is.
		_, stale := s.Watch()
		b()
		time.Sleep(Grace / 2)
		s.lists("shop/api-1", "shop/api-2")
		b = s.Connect("shop/api-2", "shop/api", at(2))
		time.Sleep(2 * Grace)
		s.lists("shop/api-1", "shop/api-2")
		select {
		case <-stale:
			t.Error("a short absence made a new snapshot")
		default:
		}
		b()
		time.Sleep(Grace)
		s.lists("shop/api-1")

		// The last one stays, though its peers cannot reach it; with another one back, it leaves.
		a()
		s.Unreached("shop/api", at(1))
		time.Sleep(10 * Grace)
		s.lists("shop/api-1")
		b = s.Connect("shop/api-2", "shop/api", at(2))
		s.lists("shop/api-2")
		b()
		c()
	})
}

func TestConnectFailures(t *testing.T) {
	tell(t, filepath.Join(t.TempDir(), "inventory"), func(s *story) {
		a := s.Connect("shop/api-1", "shop/api", at(1))
		b := s.Connect("shop/api-2", "shop/api", at(2))
		defer a()
		// A peer's word alone takes nothing away: its own network may be at fault.
		s.Unreached("shop/api", at(2))
		s.lists("shop/api-1", "shop/api-2")
		// With the stream gone too, there is no grace.
		b()
		s.Unreached("shop/api", at(2))
		s.lists("shop/api-1")
		// Another address of the same workload is another matter.
		b = s.Connect("shop/api-2", "shop/api", at(4))
		b()
		s.Unreached("shop/api", at(2))
		s.lists("shop/api-1", "shop/api-2")
	})
}

// After a restart of the control plane one sidecar's word takes nothing away: it may be the one that is cut off.
func TestConnectFailuresAfterRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "inventory")
	tell(t, path, func(s *story) {
		for i, n := range []string{"shop/api-1", "shop/api-2", "shop/api-3"} {
			defer s.Connect(n, "shop/api", at(uint16(i+1)))()
		}
		s.lists("shop/api-1", "shop/api-2", "shop/api-3")
	})
	tell(t, path, func(s *story) {
		defer s.Connect("shop/api-1", "shop/api", at(1))()
		s.Unreached("shop/api", at(2))
		s.Unreached("shop/api", at(3))
		s.lists("shop/api-1", "shop/api-2", "shop/api-3")
	})
}

// A control plane that hears few of those it knows was cut off itself: nobody leaves until it hears half of them.
func TestOwnSilence(t *testing.T) {
	tell(t, filepath.Join(t.TempDir(), "inventory"), func(s *story) {
		var leave []func()
		for i, n := range []string{"shop/api-1", "shop/api-2", "shop/api-3", "shop/api-4"} {
			leave = append(leave, s.Connect(n, "shop/api", at(uint16(i+1))))
		}
		s.lists("shop/api-1", "shop/api-2", "shop/api-3", "shop/api-4")
		for _, l := range leave {
			l()
		}
		time.Sleep(5 * Grace)
		a := s.Connect("shop/api-1", "shop/api", at(1))
		defer a()
		time.Sleep(5 * Grace)
		s.lists("shop/api-1", "shop/api-2", "shop/api-3", "shop/api-4")
		b := s.Connect("shop/api-2", "shop/api", at(2)) // half of them: the others had their time
		defer b()
		s.lists("shop/api-1", "shop/api-2")
	})
}

func TestRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "inventory")
	tell(t, path, func(s *story) {
		a := s.Connect("shop/api-1", "shop/api", at(1))
		b := s.Connect("shop/api-2", "shop/api", at(2))
		c := s.Connect("shop/api-3", "shop/api", at(3))
		defer a()
		defer c()
		s.lists("shop/api-1", "shop/api-2", "shop/api-3")
		b()
		time.Sleep(Grace)
		s.lists("shop/api-1", "shop/api-3")
	})
	tell(t, path, func(s *story) {
		s.lists("shop/api-1", "shop/api-3") // what was found dead stays dead
		if !s.Snapshot().Present["shop/api-1"] || s.Snapshot().Present["shop/api-2"] {
			t.Errorf("present are %v", s.Snapshot().Present)
		}
		time.Sleep(3 * Grace)
		s.lists("shop/api-1", "shop/api-3")
	})
	if err := os.WriteFile(path, []byte("heddle-sealed-1 nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	tell(t, path, func(s *story) { // it heals by itself
		if s.damaged == nil {
			t.Error("a damaged file is not noticed")
		}
		s.lists()
		defer s.Connect("shop/api-1", "shop/api", at(1))()
		s.lists("shop/api-1")
	})
	tell(t, path, func(s *story) { s.lists("shop/api-1") })
}

func TestStaticWorkloads(t *testing.T) {
	m := func(ws ...mesh.Workload) *mesh.Mesh { return &mesh.Mesh{Workloads: ws} }
	static := mesh.Workload{Name: "shop/api-1", Service: "shop/api", Address: "10.0.0.9:4143"}
	tell(t, filepath.Join(t.TempDir(), "inventory"), func(s *story) {
		snap := s.SetMesh(m(static))
		if es := snap.Service("shop/api").Endpoints; len(es) != 1 || es[0].Address.String() != static.Address {
			t.Errorf("the snapshot that goes with the mesh lists %v", es)
		}
		if snap.Present["shop/api-1"] {
			t.Error("a workload that was never heard counts as present")
		}
		time.Sleep(10 * Grace)
		s.lists("shop/api-1") // policy says that it is there

		// Policy's address beats the sidecar's; without one the sidecar's counts.
		leave := s.Connect("shop/api-1", "shop/api", at(1))
		s.lists("shop/api-1")
		if es := s.Snapshot().Service("shop/api").Endpoints; es[0].Address.String() != static.Address {
			t.Errorf("listed at %v", es[0].Address)
		}
		static.Address = ""
		s.SetMesh(m(static))
		if es := s.Snapshot().Service("shop/api").Endpoints; es[0].Address != at(1) {
			t.Errorf("listed at %v", es[0].Address)
		}
		leave()
		s.SetMesh(m())
		s.Forget("shop/api-1")
		s.lists()
	})
}

// TestRevokedAfterRestart: a workload that was revoked is not listed on any account, not even as the last one of its
// service, by a control plane that has started since.
func TestRevokedAfterRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "inventory")
	m := &mesh.Mesh{Workloads: []mesh.Workload{{Name: "shop/api-1", Service: "shop/api", Address: "10.0.0.9:4143"}}}
	tell(t, path, func(s *story) {
		s.SetMesh(m)
		s.Connect("shop/api-1", "shop/api", at(1))()
		s.Forget("shop/api-1")
		s.lists()
	})
	tell(t, path, func(s *story) {
		s.SetMesh(m)
		s.lists()
		s.Connect("shop/api-1", "shop/api", at(1)) // enrolled anew
		s.lists("shop/api-1")
	})
}
