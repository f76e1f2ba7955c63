package release

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/internal/pinned"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
	"github.com/heddle-mesh/heddle/schema/release"
)

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// candidate is a mesh of two namespaces; ports are the port numbers of shop/web and pay/api.
func candidate(commit string, web, api uint16, line int) Candidate {
	var m mesh.Mesh
	m.Settings.TrustDomain = "example.org"
	origins := mesh.Origins{}
	for _, s := range []struct {
		name mesh.ServiceName
		port uint16
	}{{"pay/api", api}, {"shop/web", web}} {
		id := string(s.name) + "/default/http"
		m.Inbound = append(m.Inbound, mesh.Inbound{Service: s.name, Identities: []string{"spiffe://example.org/" + string(s.name)},
			Ports: []mesh.InboundPort{{Name: "http", Port: s.port, Protocol: mesh.HTTP1, MTLS: mesh.Strict, Default: mesh.Deny, DefaultID: id}}})
		m.Outbound = append(m.Outbound, mesh.Outbound{Service: s.name, Identities: []string{"spiffe://example.org/" + string(s.name)},
			Ports: []mesh.OutboundPort{{Name: "http", Port: s.port, Protocol: mesh.HTTP1}}})
		origins[id] = diag.Pos{File: "services/" + string(s.name) + ".cue", Line: line}
	}
	return Candidate{Source: release.Source{Name: "policy", Ref: "main", Commit: commit}, Compiler: "v0", Mesh: &m, Origins: origins}
}

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// publish makes c the release after before.
func publish(t *testing.T, s *Store, before *Release, c Candidate) *Release {
	t.Helper()
	rec, blobs := Build(c)
	r, err := s.Publish(before, rec, blobs, noon)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func open(t *testing.T, state string, key ed25519.PrivateKey, keep int) *Store {
	t.Helper()
	s, err := Open(state, key, keep)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The behaviour hash is of behaviour only, and namespaces that did not change are shared.
func TestBuild(t *testing.T) {
	a, blobsA := Build(candidate("a", 80, 81, 1))
	again, blobsAgain := Build(candidate("a", 80, 81, 1))
	if !bytes.Equal(mesh.Canonical(a), mesh.Canonical(again)) || !cmp.Equal(blobsA, blobsAgain) {
		t.Error("equal candidates gave different bytes")
	}
	moved, _ := Build(candidate("b", 80, 81, 7)) // a comment shifted every line
	if moved.Behaviour != a.Behaviour || moved.Origins.Hash == a.Origins.Hash {
		t.Errorf("moved lines: behaviour %s → %s, origins %s → %s", a.Behaviour.Short(), moved.Behaviour.Short(),
			a.Origins.Hash.Short(), moved.Origins.Hash.Short())
	}
	b, blobsB := Build(candidate("b", 80, 99, 1))
	if b.Behaviour == a.Behaviour {
		t.Error("another port, the same behaviour")
	}
	same := 0
	for h := range blobsB {
		if _, ok := blobsA[h]; ok {
			same++
		}
	}
	if same != 3 { // settings, shop, origins
		t.Errorf("%d blobs are shared; want all but pay's", same)
	}
	if want := (release.Guards{TrustDomain: "example.org", Services: 2}); !reflect.DeepEqual(a.Guards, want) {
		t.Errorf("guards %+v, want %+v", a.Guards, want)
	}
	m, origins, err := a.Assemble(func(h mesh.Hash) ([]byte, error) { return blobsA[h], nil })
	if err != nil {
		t.Fatal(err)
	}
	c := candidate("a", 80, 81, 1)
	if d := cmp.Diff(c.Mesh, m) + cmp.Diff(c.Origins, origins); d != "" {
		t.Errorf("assembled again (-want +got):\n%s", d)
	}
}

func TestHistory(t *testing.T) {
	state, key := t.TempDir(), newKey(t)
	s := open(t, state, key, 3)
	if _, err := s.Applied(); !errors.Is(err, ErrNoPointer) {
		t.Fatalf("a new store: %v", err)
	}
	if empty, err := s.Empty(); err != nil || !empty {
		t.Fatalf("a new store is not empty: %v", err)
	}
	var last *Release
	for i, port := range []uint16{80, 81, 80, 80, 82} {
		r := publish(t, s, last, candidate(fmt.Sprint("commit ", i+1), port, 90, i))
		if r.Record.Epoch != uint64(i+1) {
			t.Fatalf("epoch %d after %d releases", r.Record.Epoch, i)
		}
		if last != nil && r.Record.Previous != last.Signed.Hash() {
			t.Errorf("release %d does not name its predecessor", r.Record.Epoch)
		}
		last = r
	}
	s = open(t, state, key, 3) // as after a restart
	got, err := s.Applied()
	if err != nil || got.Record.Epoch != 5 || s.Whole(got) != nil {
		t.Fatalf("applied %+v, %v", got, err)
	}
	entries, err := s.History()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, e := range entries {
		lines = append(lines, fmt.Sprint(e.Epoch, " ", e.Commit(), " applied=", e.Applied, " unchanged=", e.Unchanged))
	}
	want := []string{"5 commit 5 applied=true unchanged=false", "4 commit 4 applied=false unchanged=true",
		"3 commit 3 applied=false unchanged=false"}
	if d := cmp.Diff(want, lines); d != "" {
		t.Errorf("history (-want +got):\n%s", d)
	}
}

// The pointer moves only from the release that the candidate was judged by.
func TestCompareAndSwap(t *testing.T) {
	state, key := t.TempDir(), newKey(t)
	s := open(t, state, key, 0)
	one := publish(t, s, nil, candidate("one", 80, 90, 1))
	two := publish(t, s, one, candidate("two", 81, 90, 1))
	rec, blobs := Build(candidate("three", 82, 90, 1))
	for name, judgedBy := range map[string]*Release{"an older release": one, "none": nil} {
		if _, err := s.Publish(judgedBy, rec, blobs, noon); !errors.Is(err, ErrMoved) {
			t.Errorf("judged by %s: %v", name, err)
		}
	}
	unlock, err := durable.Lock(s.pointerPath() + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Publish(two, rec, blobs, noon); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("while another writes: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	if epochs, err := s.Dir().List(); err != nil || !slices.Equal(epochs, []uint64{2, 1}) {
		t.Errorf("refused candidates were stored: %v, %v", epochs, err)
	}
	// A crash between storing and moving: the record is there, the pointer is not. Its epoch is burnt.
	rec.Epoch = 3
	if err := s.Dir().Put(release.Sign(key, &rec), 3, blobs); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Applied(); err != nil || got.Record.Epoch != 2 {
		t.Errorf("after the crash %+v, %v", got, err)
	}
	rec.Epoch = 0
	if next, err := s.Publish(two, rec, blobs, noon); err != nil || next.Record.Epoch != 4 {
		t.Errorf("the next epoch is %+v, %v; want 4", next, err)
	}
}

// However few releases are kept, one that never counted does not push out the one that does.
func TestCrashKeepsTheApplied(t *testing.T) {
	state, key := t.TempDir(), newKey(t)
	s := open(t, state, key, 1)
	publish(t, s, publish(t, s, nil, candidate("one", 80, 90, 1)), candidate("two", 81, 90, 1))
	rec, blobs := Build(candidate("three", 82, 90, 1))
	rec.Epoch = 3
	if err := s.Dir().Put(release.Sign(key, &rec), 3, blobs); err != nil { // and the process dies before the pointer moves
		t.Fatal(err)
	}
	s = open(t, state, key, 1)
	two, err := s.Applied()
	if err != nil || two.Record.Epoch != 2 || s.Whole(two) != nil {
		t.Fatalf("after the crash %+v, %v", two, err)
	}
	if next := publish(t, s, two, candidate("three", 82, 90, 1)); next.Record.Epoch != 4 {
		t.Errorf("the next epoch is %d, want 4", next.Record.Epoch)
	}
	if epochs, err := s.Dir().List(); err != nil || slices.Contains(epochs, 3) {
		t.Errorf("kept %v, %v", epochs, err)
	}
}

// Whatever happened to pointer and record, what cannot be trusted is not applied.
func TestDistrust(t *testing.T) {
	key, other := newKey(t), newKey(t)
	edit := func(path string, f func([]byte) []byte) func(string) error {
		return func(state string) error {
			b, err := os.ReadFile(filepath.Join(state, path))
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(state, path), f(b), 0o600)
		}
	}
	// resign replaces release 2 by one with other services' numbers, signed by key.
	resign := func(by ed25519.PrivateKey) func([]byte) []byte {
		return func(b []byte) []byte {
			var s release.Signed
			var rec release.Record
			if json.Unmarshal(b, &s) != nil || mesh.Decode(s.Bytes, &rec) != nil {
				t.Fatal("the record cannot be read")
			}
			rec.Guards.Services = 0
			out, err := json.Marshal(release.Sign(by, &rec))
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
	}
	tampered := func(b []byte) []byte {
		var s release.Signed
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatal(err)
		}
		s.Bytes = bytes.Replace(s.Bytes, []byte(`"services":2`), []byte(`"services":0`), 1)
		if _, err := s.Verify(key.Public().(ed25519.PublicKey)); !errors.Is(err, release.ErrSignature) {
			t.Fatalf("Verify: %v", err)
		}
		out, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for name, c := range map[string]struct {
		spoil func(state string) error
		want  error
	}{
		"pointer gone":          {func(state string) error { return os.Remove(filepath.Join(state, "applied.json")) }, ErrNoPointer},
		"pointer cut short":     {edit("applied.json", func(b []byte) []byte { return b[:len(b)-5] }), ErrBadPointer},
		"pointer edited":        {edit("applied.json", func(b []byte) []byte { return bytes.Replace(b, []byte(`:2,`), []byte(`:1,`), 1) }), ErrBadPointer},
		"record gone":           {func(state string) error { return os.Remove(filepath.Join(state, "releases", "records", "2.json")) }, ErrBadPointer},
		"record tampered with":  {edit("releases/records/2.json", tampered), ErrBadPointer},
		"signed by another key": {edit("releases/records/2.json", resign(other)), ErrBadPointer},
		"another one, resigned": {edit("releases/records/2.json", resign(key)), ErrBadPointer},
	} {
		t.Run(name, func(t *testing.T) {
			state := t.TempDir()
			s := open(t, state, key, 0)
			one := publish(t, s, nil, candidate("one", 80, 90, 1))
			two := publish(t, s, one, candidate("two", 81, 90, 1))
			if err := c.spoil(state); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Applied(); !errors.Is(err, c.want) {
				t.Fatalf("applied %+v, %v; want %v", got, err, c.want)
			}
			if empty, err := s.Empty(); err != nil || empty {
				t.Errorf("it passes for a new mesh (%v)", err)
			}
			rec, blobs := Build(candidate("three", 82, 90, 1))
			if _, err := s.Publish(two, rec, blobs, noon); !errors.Is(err, ErrMoved) {
				t.Errorf("published on what cannot be trusted: %v", err)
			}
			if _, err := s.Publish(nil, rec, blobs, noon); err != nil {
				t.Errorf("an operator's start: %v", err)
			}
		})
	}
}

// service is a running Releases service with one control plane that may connect.
type service struct {
	*Server
	store *Store
	addr  string
	key   ed25519.PrivateKey // the reconciler's
	plane ed25519.PrivateKey
}

func start(t *testing.T) *service {
	t.Helper()
	key := newKey(t)
	store := open(t, t.TempDir(), key, 2)
	s := serve(t, NewServer(store.Dir()), key)
	s.store = store
	return s
}

func serve(t *testing.T, server *Server, key ed25519.PrivateKey) *service {
	t.Helper()
	s := &service{Server: server, key: key, plane: newKey(t)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- s.Serve(ctx, l, s.key, func(k ed25519.PublicKey) bool { return k.Equal(pinned.Public(s.plane)) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

func (s *service) client(t *testing.T, key ed25519.PrivateKey) proxyapi.ReleasesClient {
	t.Helper()
	c, err := grpc.NewClient(s.addr, grpc.WithTransportCredentials(credentials.NewTLS(pinned.ClientTLS(key, pinned.Public(s.key)))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return proxyapi.NewReleasesClient(c)
}

// receive takes the next release off a watch and verifies it as a control plane does.
func (s *service) receive(t *testing.T, w grpc.ServerStreamingClient[proxyapi.SignedRecord]) *release.Record {
	t.Helper()
	m, err := w.Recv()
	if err != nil {
		t.Fatal(err)
	}
	rec, err := release.Signed{Bytes: m.GetRecord(), Signature: m.GetSignature()}.Verify(pinned.Public(s.key))
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// A control plane gets each release with its blobs, from whatever epoch it has, and assembles the mesh.
func TestWatch(t *testing.T) {
	s := start(t)
	one := publish(t, s.store, nil, candidate("one", 80, 90, 1))
	s.Announce(one)
	c := s.client(t, s.plane)
	w, err := c.Watch(t.Context(), &proxyapi.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if rec := s.receive(t, w); rec.Commit() != "one" {
		t.Fatalf("first %+v", rec)
	}
	again, err := c.Watch(t.Context(), &proxyapi.WatchRequest{Epoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	two := publish(t, s.store, one, candidate("two", 81, 90, 1))
	s.Announce(two)
	for _, w := range []grpc.ServerStreamingClient[proxyapi.SignedRecord]{w, again} {
		rec := s.receive(t, w)
		if rec.Commit() != "two" {
			t.Fatalf("then %+v", rec)
		}
		m, _, err := rec.Assemble(func(h mesh.Hash) ([]byte, error) {
			blobs, err := c.Blobs(t.Context(), &proxyapi.BlobsRequest{Hashes: [][]byte{h[:]}})
			if err != nil {
				return nil, err
			}
			b, err := blobs.Recv()
			return b.GetBytes(), err
		})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(candidate("two", 81, 90, 1).Mesh, m); d != "" {
			t.Errorf("the mesh (-want +got):\n%s", d)
		}
	}
}

// A watcher that does not read holds nobody up, and finds the newest release when it does.
func TestSlowWatcher(t *testing.T) {
	s := start(t)
	w, err := s.client(t, s.plane).Watch(t.Context(), &proxyapi.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	// Records of 48 KiB fill the stream's window of 64 KiB after one or two: the rest cannot be sent before it is read.
	const releases = 40
	var last *Release
	for i := range releases {
		c := candidate(fmt.Sprint("commit ", i+1), uint16(i+1), 90, 1)
		c.Source.Subject = strings.Repeat("x", 48<<10)
		last = publish(t, s.store, last, c)
		s.Announce(last)
	}
	seen := 0
	for epoch := uint64(0); epoch < releases; seen++ {
		rec := s.receive(t, w)
		if rec.Epoch <= epoch {
			t.Fatalf("epoch %d after %d", rec.Epoch, epoch)
		}
		epoch = rec.Epoch
	}
	if seen == releases {
		t.Error("every release was queued for a watcher that did not read")
	}
}

// Whoever connects and says nothing is sent away: strangers must not use up what control planes need.
func TestSilentStranger(t *testing.T) {
	s := NewServer(open(t, t.TempDir(), newKey(t), 0).Dir())
	s.handshake = 10 * time.Millisecond
	svc := serve(t, s, newKey(t))
	c, err := net.Dial("tcp", svc.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection of a stranger who said nothing is still open")
	}
}

func TestRefusals(t *testing.T) {
	s := start(t)
	one := publish(t, s.store, nil, candidate("one", 80, 90, 1))
	gone := one.Record.Chunks[2].Hash // shop's, as it is in the first release only
	for i := range 2 {
		one = publish(t, s.store, one, candidate("later", 81, 90, i))
	}
	c := s.client(t, s.plane)
	unknown := sha256.Sum256([]byte("unknown"))
	for name, call := range map[string]struct {
		hashes [][]byte
		want   codes.Code
	}{
		"a blob of a release that is no longer kept": {[][]byte{gone[:]}, codes.NotFound},
		"an unknown blob":           {[][]byte{unknown[:]}, codes.NotFound},
		"no hash":                   {[][]byte{[]byte("../../key")}, codes.InvalidArgument},
		"more than anybody can use": {make([][]byte, maxBlobs+1), codes.InvalidArgument},
		"none":                      {nil, codes.OK},
	} {
		stream, err := c.Blobs(t.Context(), &proxyapi.BlobsRequest{Hashes: call.hashes})
		if err == nil {
			_, err = stream.Recv()
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		if status.Code(err) != call.want {
			t.Errorf("%s: %v, want %v", name, err, call.want)
		}
	}
	stranger := s.client(t, newKey(t))
	if _, err := stranger.Report(t.Context(), &proxyapi.PushReport{}); status.Code(err) != codes.Unavailable {
		t.Errorf("a stranger's report: %v", err)
	}
}

// Progress counts the sidecars of the control planes that watch, by their last word.
func TestProgress(t *testing.T) {
	s := start(t)
	one := publish(t, s.store, nil, candidate("one", 80, 90, 1))
	s.Announce(one)
	c := s.client(t, s.plane)
	report := func(epoch uint64, acked, total uint32, nacks ...*proxyapi.ProxyNack) {
		t.Helper()
		r := &proxyapi.PushReport{ControlPlane: "cp", Epoch: epoch, Acked: acked, Total: total, Nacks: nacks}
		if _, err := c.Report(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want Progress, converged bool) {
		t.Helper()
		for {
			got, changed := s.Progress()
			if cmp.Equal(want, got) {
				if got.Converged() != converged {
					t.Errorf("%+v: converged is %v", got, !converged)
				}
				return
			}
			select {
			case <-changed: // watchers come and go on their own goroutines
			case <-time.After(time.Minute):
				t.Fatalf("progress (-want +got):\n%s", cmp.Diff(want, got))
			}
		}
	}
	ctx, leave := context.WithCancel(t.Context())
	w, err := c.Watch(ctx, &proxyapi.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	s.receive(t, w)
	expect(Progress{Epoch: 1, ControlPlanes: 1}, false)
	report(1, 0, 0)
	expect(Progress{Epoch: 1, ControlPlanes: 1, Reported: true}, false)
	report(1, 1, 3, &proxyapi.ProxyNack{Workload: "shop/b", Reason: strings.Repeat("n", 2*maxReason)}, &proxyapi.ProxyNack{Workload: "shop/a", Reason: "no"})
	expect(Progress{Epoch: 1, ControlPlanes: 1, Reported: true, Acked: 1, Total: 3,
		Nacks: []Nack{{"shop/a", "no"}, {"shop/b", strings.Repeat("n", maxReason) + "…"}}}, false)
	report(1, 3, 3)
	expect(Progress{Epoch: 1, ControlPlanes: 1, Reported: true, Acked: 3, Total: 3}, true)

	s.Announce(publish(t, s.store, one, candidate("two", 81, 90, 1)))
	expect(Progress{Epoch: 2, ControlPlanes: 1, Total: 3}, false) // nobody has it yet
	report(2, 3, 3)
	leave()
	expect(Progress{Epoch: 2, Reported: true, Acked: 3, Total: 3}, true) // its last word, while it is away
}
