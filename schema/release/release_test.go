package release

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

func key(seed byte) (ed25519.PublicKey, ed25519.PrivateKey) {
	private := ed25519.NewKeyFromSeed(append(make([]byte, ed25519.SeedSize-1), seed))
	return private.Public().(ed25519.PublicKey), private
}

// published is a release with the blobs that it names.
func published(t testing.TB) (*Record, map[mesh.Hash][]byte, *mesh.Mesh, mesh.Origins) {
	t.Helper()
	m := &mesh.Mesh{
		Settings: mesh.Settings{TrustDomain: "corp.example"},
		Inbound: []mesh.Inbound{{Service: "shop/web", Identities: []string{"spiffe://corp.example/web"},
			Ports: []mesh.InboundPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1, MTLS: mesh.Strict, Default: mesh.Deny, DefaultID: "shop/web/default/http"}}}},
		Outbound: []mesh.Outbound{{Service: "shop/web", Identities: []string{"spiffe://corp.example/web"},
			Ports: []mesh.OutboundPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1}}}},
		Workloads: []mesh.Workload{{Name: "vm/web-1", Service: "shop/web", Identity: "spiffe://corp.example/web"}},
	}
	origins := mesh.Origins{"shop/web/default/http": diag.Pos{File: "services/shop/web.cue", Line: 3, Column: 1}}
	blobs := map[mesh.Hash][]byte{}
	put := func(ns string, v any) mesh.ChunkRef {
		b := mesh.Canonical(v)
		h := mesh.Hash(sha256.Sum256(b))
		blobs[h] = b
		return mesh.ChunkRef{Namespace: ns, Hash: h, Size: len(b)}
	}
	r := &Record{
		Epoch:     7,
		Sources:   []Source{{Name: "policy", URL: "https://git.example/p", Ref: "main", Commit: "3f9c2ab", Subject: "Close <everything>", Author: "a", Time: time.Unix(1e9, 0).UTC()}},
		Env:       "prod",
		Compiler:  "0.1.0",
		Guards:    Guards{TrustDomain: "corp.example", Services: 1},
		Previous:  mesh.Hash{1, 2, 3},
		Published: time.Unix(1e9, 5).UTC(),
	}
	for _, c := range m.Chunks() {
		r.Chunks = append(r.Chunks, put(c.Namespace, c))
	}
	r.Origins = put("", origins)
	r.Behaviour = mesh.BehaviourHash(r.Chunks)
	return r, blobs, m, origins
}

func reader(blobs map[mesh.Hash][]byte) func(mesh.Hash) ([]byte, error) {
	return func(h mesh.Hash) ([]byte, error) {
		b, ok := blobs[h]
		if !ok {
			return nil, fmt.Errorf("no blob %s", h.Short())
		}
		return b, nil
	}
}

func TestRoundTrip(t *testing.T) {
	public, private := key(1)
	r, blobs, m, origins := published(t)
	signed := Sign(private, r)
	got, err := signed.Verify(public)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(r, got); d != "" {
		t.Errorf("the record did not survive:\n%s", d)
	}
	gotMesh, gotOrigins, err := got.Assemble(reader(blobs))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(m, gotMesh) + cmp.Diff(origins, gotOrigins); d != "" {
		t.Errorf("the mesh did not survive:\n%s", d)
	}
	if got.Commit() != "3f9c2ab" || (&Record{}).Commit() != "" {
		t.Errorf("commit %q", got.Commit())
	}
	if again := Sign(private, r); again.Hash() != signed.Hash() || signed.Hash() != mesh.Hash(sha256.Sum256(signed.Bytes)) {
		t.Error("the same record has another hash")
	}
}

// TestTamper: no bit of a signed record can be changed, and no other key or context stands in for the reconciler's.
func TestTamper(t *testing.T) {
	public, private := key(1)
	r, _, _, _ := published(t)
	signed := Sign(private, r)
	refused := func(what string, s Signed, by ed25519.PublicKey) {
		t.Helper()
		if got, err := s.Verify(by); !errors.Is(err, ErrSignature) || got != nil {
			t.Errorf("%s: %v, %v", what, got, err)
		}
	}
	for i := range signed.Bytes {
		s := Signed{slices.Clone(signed.Bytes), signed.Signature}
		s.Bytes[i] ^= 1
		refused(fmt.Sprintf("byte %d of the record", i), s, public)
	}
	for i := range signed.Signature {
		s := Signed{signed.Bytes, slices.Clone(signed.Signature)}
		s.Signature[i] ^= 1
		refused(fmt.Sprintf("byte %d of the signature", i), s, public)
	}
	other, _ := key(2)
	refused("another key", signed, other)
	refused("no key", signed, nil)
	refused("half a key", signed, public[:16])
	refused("no signature", Signed{Bytes: signed.Bytes}, public)
	refused("nothing", Signed{}, public)
	refused("an appended byte", Signed{append(slices.Clone(signed.Bytes), ' '), signed.Signature}, public)
	refused("a signature without the context", Signed{signed.Bytes, ed25519.Sign(private, signed.Bytes)}, public)
}

// TestSignedNonsense: even what the right key signed is refused where it does not agree with itself.
func TestSignedNonsense(t *testing.T) {
	public, private := key(1)
	for name, change := range map[string]func(*Record){
		"a behaviour hash of other chunks": func(r *Record) { r.Behaviour[0] ^= 1 },
		"a chunk left out":                 func(r *Record) { r.Chunks = r.Chunks[1:] },
		"a chunk of another namespace":     func(r *Record) { r.Chunks[1].Namespace = "other" },
	} {
		r, _, _, _ := published(t)
		change(r)
		if _, err := Sign(private, r).Verify(public); err == nil || errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, b := range map[string]string{"an unknown field": `{"epoch":1,"later":true}`, "no JSON": `epoch 1`} {
		s := Signed{[]byte(b), ed25519.Sign(private, append([]byte(context), b...))}
		if _, err := s.Verify(public); err == nil || errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAssembleRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*Record, map[mesh.Hash][]byte){
		"a missing chunk":   func(r *Record, b map[mesh.Hash][]byte) { delete(b, r.Chunks[1].Hash) },
		"a corrupt chunk":   func(r *Record, b map[mesh.Hash][]byte) { b[r.Chunks[1].Hash] = append(b[r.Chunks[1].Hash], ' ') },
		"a swapped chunk":   func(r *Record, b map[mesh.Hash][]byte) { b[r.Chunks[1].Hash] = b[r.Chunks[0].Hash] },
		"missing origins":   func(r *Record, b map[mesh.Hash][]byte) { delete(b, r.Origins.Hash) },
		"corrupt origins":   func(r *Record, b map[mesh.Hash][]byte) { b[r.Origins.Hash] = nil },
		"no settings":       func(r *Record, _ map[mesh.Hash][]byte) { r.Chunks = r.Chunks[1:] },
		"no chunks":         func(r *Record, _ map[mesh.Hash][]byte) { r.Chunks = nil },
		"a chunk twice":     func(r *Record, _ map[mesh.Hash][]byte) { r.Chunks = append(r.Chunks, r.Chunks[len(r.Chunks)-1]) },
		"chunks unsorted":   func(r *Record, _ map[mesh.Hash][]byte) { slices.Reverse(r.Chunks) },
		"a chunk misplaced": func(r *Record, _ map[mesh.Hash][]byte) { r.Chunks[1].Namespace = "other" },
		"a chunk of a later version": func(r *Record, b map[mesh.Hash][]byte) {
			later := []byte(`{"namespace":"shop","gateways":[]}`)
			h := mesh.Hash(sha256.Sum256(later))
			b[h], r.Chunks[1].Hash = later, h
		},
	} {
		r, blobs, _, _ := published(t)
		spoil(r, blobs)
		if m, o, err := r.Assemble(reader(blobs)); err == nil || m != nil || o != nil {
			t.Errorf("%s was assembled", name)
		} else if !strings.Contains(err.Error(), "release 7") {
			t.Errorf("%s: the error does not say which release: %v", name, err)
		}
	}
}

func TestKeys(t *testing.T) {
	public, _ := key(3)
	s := FormatKey(public)
	got, err := ParseKey(" " + s + "\n")
	if err != nil || !got.Equal(public) || !strings.HasPrefix(s, "heddle-key-1:") {
		t.Errorf("%s: %v %v", s, got, err)
	}
	for _, bad := range []string{"", "heddle-key-1:", s[:len(s)-2], s + "AA", strings.TrimPrefix(s, "heddle-key-1:"), "ssh-ed25519 AAAA", "heddle-key-2:" + s[13:]} {
		if _, err := ParseKey(bad); err == nil {
			t.Errorf("%q is a key", bad)
		}
	}
}
