// Package release turns a compiled mesh into a published release, and hands releases to control planes.
//
// [Build] is the pure part: mesh and origins become content-addressed blobs and a record that names them. A [Store]
// signs records, keeps them in a release directory, and owns the applied pointer: the one fact that says which release
// counts. A [Server] tells control planes over gRPC and hears from them how far each release has come. The values
// themselves are schema/release's. Package release knows neither Git nor CUE.
package release

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/internal/releasedir"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/release"
)

var (
	// ErrNoPointer means that the state directory says nothing about an applied release.
	ErrNoPointer = errors.New("there is no applied pointer")
	// ErrBadPointer means that there is an applied pointer, but it, or the release that it names, cannot be trusted.
	ErrBadPointer = errors.New("the applied pointer cannot be trusted")
	// ErrMoved means that another release was applied since the candidate was judged.
	ErrMoved = errors.New("another release was applied in the meantime")
)

// Candidate is what a release is made of, but for its place in history.
type Candidate struct {
	Source   release.Source
	Env      string
	Compiler string // the version of Heddle
	Mesh     *mesh.Mesh
	Origins  mesh.Origins
	Fences   []release.Fence // sorted by name
}

// Build encodes the mesh by namespace and fills the record, without Epoch, Previous and Published. The blobs are those
// that the record names. Equal candidates give equal bytes.
func Build(c Candidate) (release.Record, map[mesh.Hash][]byte) {
	blobs := map[mesh.Hash][]byte{}
	put := func(namespace string, v any) mesh.ChunkRef {
		b := mesh.Canonical(v)
		h := mesh.Hash(sha256.Sum256(b))
		blobs[h] = b
		return mesh.ChunkRef{Namespace: namespace, Hash: h, Size: len(b)}
	}
	rec := release.Record{
		Sources:  []release.Source{c.Source},
		Env:      c.Env,
		Compiler: c.Compiler,
		Guards: release.Guards{TrustDomain: c.Mesh.Settings.TrustDomain, Services: len(c.Mesh.Inbound),
			Invariants: c.Mesh.Invariants, Fences: c.Fences},
	}
	for _, chunk := range c.Mesh.Chunks() {
		rec.Chunks = append(rec.Chunks, put(chunk.Namespace, chunk))
	}
	origins := c.Origins
	if origins == nil {
		origins = mesh.Origins{}
	}
	rec.Origins = put("", origins)
	rec.Behaviour = mesh.BehaviourHash(rec.Chunks)
	return rec, blobs
}

// Release is a record with its signed form.
type Release struct {
	Signed release.Signed
	Record *release.Record
}

// pointer is the content of the applied pointer, a sealed file.
type pointer struct {
	Epoch  uint64    `json:"epoch"`
	Commit string    `json:"commit"`
	Record mesh.Hash `json:"record"` // of the signed record's bytes
}

// Store is the state that the reconciler keeps besides Git: signed releases and the applied pointer. One process owns
// it; it is safe for concurrent use.
type Store struct {
	state string
	dir   *releasedir.Dir
	key   ed25519.PrivateKey
}

// Open opens the store in a state directory: <state>/releases and <state>/applied.json. keep is the number of releases
// that stay (0: releasedir.Keep).
func Open(state string, key ed25519.PrivateKey, keep int) (*Store, error) {
	dir, err := releasedir.Open(filepath.Join(state, "releases"), keep)
	if err != nil {
		return nil, err
	}
	return &Store{state: state, dir: dir, key: key}, nil
}

func (s *Store) pointerPath() string { return filepath.Join(s.state, "applied.json") }

// Dir is the directory of releases, for reading.
func (s *Store) Dir() *releasedir.Dir { return s.dir }

func (s *Store) public() ed25519.PublicKey { return s.key.Public().(ed25519.PublicKey) }

func (s *Store) readPointer() (*pointer, error) {
	b, err := durable.ReadSealed(s.pointerPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoPointer
	}
	if errors.Is(err, durable.ErrCorrupt) {
		return nil, fmt.Errorf("%w: %w", ErrBadPointer, err)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the applied pointer: %w", err)
	}
	p := new(pointer)
	if err := json.Unmarshal(b, p); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadPointer, err)
	}
	return p, nil
}

// Applied is the release that counts: the one the applied pointer names, signed by our key. The error is ErrNoPointer or
// ErrBadPointer when an operator has to say how to go on, anything else when the disk failed. Blobs may be missing:
// compiling the same commit again brings them back, see [Store.Whole].
func (s *Store) Applied() (*Release, error) {
	p, err := s.readPointer()
	if err != nil {
		return nil, err
	}
	signed, rec, err := s.dir.Load(p.Epoch, s.public())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadPointer, err)
	}
	if signed.Hash() != p.Record || rec.Commit() != p.Commit {
		return nil, fmt.Errorf("%w: release %d is not the one that was applied", ErrBadPointer, p.Epoch)
	}
	return &Release{signed, rec}, nil
}

// Whole returns nil if all blobs of a release are there.
func (s *Store) Whole(r *Release) error { return s.dir.Whole(r.Record) }

// Mend writes those blobs of a stored release again that are lost or damaged. blobs are what its commit compiles to; where
// they are others than its record names, nothing is mended and that is the error.
func (s *Store) Mend(r *Release, blobs map[mesh.Hash][]byte) error {
	return s.dir.Put(r.Signed, r.Record.Epoch, blobs)
}

// Newest is the newest release that our key signed and that is whole, whatever the applied pointer says: what control
// planes are given when the pointer is lost, because it is what they have. It is releasedir.ErrNone if there is none.
func (s *Store) Newest() (*Release, error) {
	signed, rec, err := s.dir.Latest(s.public())
	if err != nil {
		return nil, err
	}
	return &Release{signed, rec}, nil
}

// Empty reports whether the store never held a release, as in a mesh that begins.
func (s *Store) Empty() (bool, error) {
	epochs, err := s.dir.List()
	if err != nil {
		return false, err
	}
	_, err = os.Lstat(s.pointerPath())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("looking for the applied pointer: %w", err)
	}
	return len(epochs) == 0 && err != nil, nil
}

// Publish makes the candidate the applied release: it gets the next epoch, is signed and stored, and the applied
// pointer moves from the release that the candidate was judged by (judgedBy; nil if there was none that could be
// trusted) to the new one. If the pointer has moved since, nothing is stored and the error is ErrMoved. A crash
// between storing and moving leaves a release that never counted; its epoch is not used again.
func (s *Store) Publish(judgedBy *Release, rec release.Record, blobs map[mesh.Hash][]byte, now time.Time) (*Release, error) {
	unlock, err := durable.Lock(s.pointerPath() + ".lock")
	if err != nil {
		return nil, fmt.Errorf("publishing: %w", err)
	}
	defer unlock()

	current, err := s.Applied()
	switch {
	case errors.Is(err, ErrNoPointer), errors.Is(err, ErrBadPointer):
		if judgedBy != nil {
			return nil, fmt.Errorf("publishing: %w: %w", ErrMoved, err)
		}
	case err != nil:
		return nil, fmt.Errorf("publishing: %w", err)
	case judgedBy == nil || current.Signed.Hash() != judgedBy.Signed.Hash():
		return nil, fmt.Errorf("publishing: %w (epoch %d)", ErrMoved, current.Record.Epoch)
	}

	if current != nil {
		s.dir.Pin(current.Record.Epoch) // until the pointer has moved it is the one that counts, however few are kept
	}

	epochs, err := s.dir.List()
	if err != nil {
		return nil, fmt.Errorf("publishing: %w", err)
	}
	rec.Epoch = 1
	if len(epochs) > 0 {
		rec.Epoch = epochs[0] + 1
	}
	if p, err := s.readPointer(); err == nil {
		rec.Epoch = max(rec.Epoch, p.Epoch+1)
	}
	if judgedBy != nil {
		rec.Previous = judgedBy.Signed.Hash()
	}
	rec.Published = now.UTC()

	signed := release.Sign(s.key, &rec)
	if err := s.dir.Put(signed, rec.Epoch, blobs); err != nil {
		return nil, errors.Join(fmt.Errorf("publishing: %w", err), s.dir.Remove(rec.Epoch))
	}
	b, err := json.Marshal(pointer{Epoch: rec.Epoch, Commit: rec.Commit(), Record: signed.Hash()})
	if err != nil {
		return nil, fmt.Errorf("publishing: %w", err)
	}
	if err := durable.WriteSealed(s.pointerPath(), b, 0o600); err != nil {
		err = fmt.Errorf("publishing: moving the applied pointer: %w", err)
		// It may have moved and only not be safe from a power cut yet. Then the record has to stay, and the next try finds
		// what it is judged by moved.
		if p, now := s.readPointer(); now == nil && p.Record == signed.Hash() {
			return nil, err
		}
		// Tries that pile up records would push others out of those that are kept.
		return nil, errors.Join(err, s.dir.Remove(rec.Epoch))
	}
	s.dir.Pin(rec.Epoch)
	return &Release{signed, &rec}, nil
}

// Entry is a release of the history.
type Entry struct {
	*release.Record
	// Applied is true of the one release that counts now.
	Applied bool
	// Unchanged is true when it behaves as the one it followed.
	Unchanged bool
}

// History lists the kept releases that our key signed, newest first. Records that cannot be read or verified are left
// out, and joined in the error beside the entries.
func (s *Store) History() ([]Entry, error) {
	epochs, err := s.dir.List()
	if err != nil {
		return nil, err
	}
	applied, err := s.readPointer()
	if err != nil {
		applied = &pointer{}
	}
	var (
		out    []Entry
		failed []error
		hashes = map[mesh.Hash]mesh.Hash{} // of a record → its behaviour
	)
	for _, epoch := range epochs {
		signed, err := s.dir.Get(epoch)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		rec, err := signed.Verify(s.public())
		if err != nil {
			failed = append(failed, fmt.Errorf("release %d: %w; it is passed over, and goes when newer ones come", epoch, err))
			continue
		}
		hashes[signed.Hash()] = rec.Behaviour
		out = append(out, Entry{Record: rec, Applied: epoch == applied.Epoch && signed.Hash() == applied.Record})
	}
	for i := range out {
		before, ok := hashes[out[i].Previous]
		out[i].Unchanged = ok && before == out[i].Behaviour
	}
	return out, errors.Join(failed...)
}
