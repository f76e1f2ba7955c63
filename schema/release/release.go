// Package release is the record of a release: pure types that name, by content, everything that decided how the mesh
// behaves at one epoch, and the signature over it. The reconciler writes and signs records, control planes verify them;
// who can merely write files or messages decides nothing. No I/O happens here.
package release

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

// Record is one release. It is append-only history: a rollback is a new record with an old behaviour hash.
type Record struct {
	// Epoch counts up by one with every release, from 1. Sidecars refuse an older one than they have.
	Epoch   uint64   `json:"epoch"`
	Sources []Source `json:"sources"` // one is normal
	Env     string   `json:"env,omitempty"`
	// Compiler is the version of Heddle that compiled it.
	Compiler  string          `json:"compiler"`
	Behaviour mesh.Hash       `json:"behaviour"` // mesh.BehaviourHash of Chunks
	Chunks    []mesh.ChunkRef `json:"chunks"`    // sorted by namespace; blobs of mesh.Chunk in canonical encoding
	// Origins is the blob of the origin table (mesh.Origins in canonical encoding).
	Origins mesh.ChunkRef `json:"origins"`
	// Guards are what the next candidate is judged by (a commit never authorises itself).
	Guards Guards `json:"guards"`
	// Previous is the SHA-256 of the previous record's bytes; zero for the first.
	Previous  mesh.Hash `json:"previous"`
	Published time.Time `json:"published"` // UTC
}

// Source is a repository at a commit.
type Source struct {
	Name    string    `json:"name"` // "policy" for the only one
	URL     string    `json:"url"`  // credentials masked
	Ref     string    `json:"ref"`
	Commit  string    `json:"commit"`
	Subject string    `json:"subject"`
	Author  string    `json:"author"`
	Time    time.Time `json:"time"` // of the commit
}

// Guards hold facts of the applied release that a candidate may not change without an operator.
type Guards struct {
	TrustDomain string `json:"trustDomain"`
	Services    int    `json:"services"` // a candidate with none, where there were some, deletes everything
	// Invariants hold for the next commit too, whatever it says of them; sorted by name.
	Invariants []mesh.Invariant `json:"invariants,omitempty"`
	// Fences are the directories that others write; sorted by name.
	Fences []Fence `json:"fences,omitempty"`
}

// Fence is a directory that somebody else writes, and what it may say.
type Fence struct {
	Name      string `json:"name"`
	Directory string `json:"directory"`
	// Namespaces are names, or beginnings of names followed by "*"; sorted. Kinds are sorted too.
	Namespaces []string `json:"namespaces"`
	Kinds      []string `json:"kinds"`
}

// Commit is the commit of the first source.
func (r *Record) Commit() string {
	if len(r.Sources) == 0 {
		return ""
	}
	return r.Sources[0].Commit
}

// Signed is a record as it is stored and sent: its canonical bytes and the Ed25519 signature (RFC 8032) over the
// context "heddle release v1\x00" followed by them.
type Signed struct {
	Bytes     []byte `json:"record"`
	Signature []byte `json:"signature"`
}

const context = "heddle release v1\x00"

// Sign encodes and signs a record.
func Sign(key ed25519.PrivateKey, r *Record) Signed {
	b := mesh.Canonical(r)
	return Signed{Bytes: b, Signature: ed25519.Sign(key, append([]byte(context), b...))}
}

// ErrSignature means that a record was not signed by the key it should have been signed by.
var ErrSignature = errors.New("the release's signature does not match the reconciler's key")

// Verify checks the signature and decodes the record.
func (s Signed) Verify(key ed25519.PublicKey) (*Record, error) {
	if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, append([]byte(context), s.Bytes...), s.Signature) {
		return nil, ErrSignature
	}
	return s.decode()
}

func (s Signed) decode() (*Record, error) {
	r := new(Record)
	if err := mesh.Decode(s.Bytes, r); err != nil {
		return nil, fmt.Errorf("release record: %w", err)
	}
	if got := mesh.BehaviourHash(r.Chunks); got != r.Behaviour {
		return nil, fmt.Errorf("release %d: the chunks' hash is %s, the record says %s", r.Epoch, got.Short(), r.Behaviour.Short())
	}
	return r, nil
}

// Hash is what the next record calls Previous.
func (s Signed) Hash() mesh.Hash { return sha256.Sum256(s.Bytes) }

// Assemble decodes the mesh of a record from its blobs, checking each blob's hash. blob returns the bytes of a hash.
func (r *Record) Assemble(blob func(mesh.Hash) ([]byte, error)) (*mesh.Mesh, mesh.Origins, error) {
	read := func(ref mesh.ChunkRef, v any) error {
		b, err := blob(ref.Hash)
		if err != nil {
			return err
		}
		if mesh.Hash(sha256.Sum256(b)) != ref.Hash {
			return fmt.Errorf("blob %s is corrupt", ref.Hash.Short())
		}
		return mesh.Decode(b, v)
	}
	chunks := make([]mesh.Chunk, len(r.Chunks))
	for i, ref := range r.Chunks {
		if err := read(ref, &chunks[i]); err != nil {
			return nil, nil, fmt.Errorf("release %d, namespace %q: %w", r.Epoch, ref.Namespace, err)
		}
		// A namespace has one chunk, and it is what the record says it is: what is shown and staged by namespace goes by
		// the record's word.
		if chunks[i].Namespace != ref.Namespace || i > 0 && ref.Namespace <= r.Chunks[i-1].Namespace {
			return nil, nil, fmt.Errorf("release %d: chunk %s of namespace %q is out of place", r.Epoch, ref.Hash.Short(), ref.Namespace)
		}
	}
	m, err := mesh.Join(chunks)
	if err != nil {
		return nil, nil, fmt.Errorf("release %d: %w", r.Epoch, err)
	}
	var o mesh.Origins
	if err := read(r.Origins, &o); err != nil {
		return nil, nil, fmt.Errorf("release %d, origins: %w", r.Epoch, err)
	}
	return m, o, nil
}

// keyPrefix starts a printed public key, so that a key is never mistaken for another kind of secret or name.
const keyPrefix = "heddle-key-1:"

// FormatKey prints a public key as `heddle key` shows it.
func FormatKey(k ed25519.PublicKey) string {
	return keyPrefix + base64.RawURLEncoding.EncodeToString(k)
}

// ParseKey reads the form of [FormatKey].
func ParseKey(s string) (ed25519.PublicKey, error) {
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(strings.TrimSpace(s), keyPrefix))
	if err != nil || len(b) != ed25519.PublicKeySize || !strings.HasPrefix(strings.TrimSpace(s), keyPrefix) {
		return nil, fmt.Errorf("%q is not a Heddle public key; `heddle key` prints one, like %s…", s, keyPrefix)
	}
	return b, nil
}
