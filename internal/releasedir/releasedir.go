// Package releasedir keeps releases in a directory: content-addressed blobs and signed, append-only records. The
// reconciler writes one; a control plane on another machine mirrors it into one of its own, from which it starts when
// no reconciler answers.
//
//	blobs/<SHA-256>        a chunk of the compiled mesh, or an origin table; shared between releases
//	records/<epoch>.json   a release.Signed
//
// Files are written whole or not at all (package internal/durable). Blobs are checked by their name and records by
// their signature each time they are read, so who can merely write here decides nothing.
package releasedir

import (
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/release"
)

// Keep is the default number of releases that stay.
const Keep = 20

var (
	// ErrNone means that a directory holds no release that could be used.
	ErrNone = errors.New("there is no usable release")
	// ErrNotFound means that a record or a blob is not there (any more).
	ErrNotFound = errors.New("not in the release directory")
	// ErrDamaged means that a file's bytes are not those that were written.
	ErrDamaged = errors.New("damaged")
	// ErrOld means that a release is older than all that are kept.
	ErrOld = errors.New("older than every release that is kept")
)

// Dir is a directory of releases. It has one writer; it is safe for concurrent use.
type Dir struct {
	path string
	keep int
	mu   sync.Mutex // held while files are written or removed, so that pruning never sees half a release
	pin  uint64     // an epoch that stays; 0: none; guarded by mu
}

// Open creates the directory (0700) if it is missing. keep is the number of newest releases that stay, each with all
// of its blobs; 0 or less is [Keep].
func Open(path string, keep int) (*Dir, error) {
	if keep <= 0 {
		keep = Keep
	}
	for _, sub := range []string{"blobs", "records"} {
		if err := os.MkdirAll(filepath.Join(path, sub), 0o700); err != nil {
			return nil, fmt.Errorf("release directory: %w", err)
		}
	}
	return &Dir{path: path, keep: keep}, nil
}

// Pin has a release stay, however many newer ones there are, until another is pinned: the one that counts is not always
// among the newest, since a writer that dies before it says that a release counts leaves one that does not.
func (d *Dir) Pin(epoch uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pin = epoch
}

func (d *Dir) blobPath(h mesh.Hash) string { return filepath.Join(d.path, "blobs", h.String()) }

func (d *Dir) recordPath(epoch uint64) string {
	return filepath.Join(d.path, "records", strconv.FormatUint(epoch, 10)+".json")
}

// Put stores a release: its blobs first, then the record, so that a record that can be read is complete. blobs holds
// the bytes of those that the record names and the directory does not have yet; it may hold more of the record's.
// Then releases beyond the newest ones that are kept go, but for the pinned one, with the blobs that no other names. The
// signature is the caller's to verify. After an error the record may be there (what was old could not be removed); the
// writer takes it back with [Dir.Remove].
func (d *Dir) Put(signed release.Signed, epoch uint64, blobs map[mesh.Hash][]byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var rec release.Record
	if err := mesh.Decode(signed.Bytes, &rec); err != nil {
		return fmt.Errorf("storing release %d: %w", epoch, err)
	}
	if rec.Epoch != epoch {
		return fmt.Errorf("storing release %d: its record says epoch %d", epoch, rec.Epoch)
	}
	if have, err := d.List(); err != nil {
		return err
	} else if len(have) >= d.keep && epoch < have[d.keep-1] {
		return fmt.Errorf("storing release %d: %w", epoch, ErrOld)
	}
	if err := d.write(&rec, signed, blobs); err != nil {
		// What was written already would fill a disk that is full for good. The first error is the one to mend.
		_ = d.prune()
		return fmt.Errorf("storing release %d: %w", epoch, err)
	}
	return d.prune()
}

// write needs mu.
func (d *Dir) write(rec *release.Record, signed release.Signed, blobs map[mesh.Hash][]byte) error {
	for ref := range refs(rec) {
		b, given := blobs[ref.Hash]
		_, err := d.readOrRemove(ref.Hash)
		switch {
		case err == nil:
			continue
		case !given:
			return err
		case mesh.Hash(sha256.Sum256(b)) != ref.Hash:
			return fmt.Errorf("blob %s: %w", ref.Hash.Short(), ErrDamaged)
		}
		if err := durable.WriteFile(d.blobPath(ref.Hash), b, 0o600); err != nil {
			return err
		}
	}
	b, err := json.Marshal(signed)
	if err != nil {
		return err
	}
	return durable.WriteFile(d.recordPath(rec.Epoch), b, 0o600)
}

// refs are the blobs that a record names.
func refs(rec *release.Record) func(yield func(mesh.ChunkRef) bool) {
	return func(yield func(mesh.ChunkRef) bool) {
		for _, c := range rec.Chunks {
			if !yield(c) {
				return
			}
		}
		yield(rec.Origins)
	}
}

// prune removes old records, then the blobs that no kept record names, among them what interrupted writes left.
func (d *Dir) prune() error {
	epochs, err := d.List()
	if err != nil {
		return err
	}
	named := map[string]bool{}
	for i, epoch := range epochs {
		if i >= d.keep && epoch != d.pin {
			if err := os.Remove(d.recordPath(epoch)); err != nil {
				return fmt.Errorf("removing release %d: %w", epoch, err)
			}
			continue
		}
		signed, err := d.Get(epoch)
		if errors.Is(err, ErrDamaged) {
			continue // it names nothing that could be used
		}
		if err != nil {
			// The disk, or too many open files: not knowing what a release names is no reason to take it away.
			return nil
		}
		var rec release.Record
		if mesh.Decode(signed.Bytes, &rec) != nil {
			continue
		}
		for ref := range refs(&rec) {
			named[ref.Hash.String()] = true
		}
	}
	if err := durable.Clean(filepath.Join(d.path, "records")); err != nil {
		return fmt.Errorf("release directory: %w", err)
	}
	files, err := os.ReadDir(filepath.Join(d.path, "blobs"))
	if err != nil {
		return fmt.Errorf("release directory: %w", err)
	}
	for _, f := range files {
		if ours := isHash(f.Name()) || durable.IsTemp(f.Name()); !ours || named[f.Name()] {
			continue
		}
		if err := os.Remove(filepath.Join(d.path, "blobs", f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("release directory: %w", err)
		}
	}
	return nil
}

// isHash reports whether a file name is that of a blob. Others (a mount point's lost+found) are not ours to remove.
func isHash(name string) bool {
	b, err := hex.DecodeString(name)
	return err == nil && len(b) == len(mesh.Hash{})
}

// Remove takes back a record that its writer has told nobody about; it need not be there. Its blobs go with the next
// Put.
func (d *Dir) Remove(epoch uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := os.Remove(d.recordPath(epoch)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing release %d: %w", epoch, err)
	}
	return nil
}

// List returns the epochs of the records, newest first.
func (d *Dir) List() ([]uint64, error) {
	files, err := os.ReadDir(filepath.Join(d.path, "records"))
	if err != nil {
		return nil, fmt.Errorf("release directory: %w", err)
	}
	var out []uint64
	for _, f := range files {
		digits, ok := strings.CutSuffix(f.Name(), ".json")
		if epoch, err := strconv.ParseUint(digits, 10, 64); ok && err == nil && strconv.FormatUint(epoch, 10) == digits {
			out = append(out, epoch)
		}
	}
	slices.SortFunc(out, func(a, b uint64) int { return cmp.Compare(b, a) })
	return out, nil
}

// Get reads the record of an epoch, unverified. Errors are ErrNotFound and ErrDamaged.
func (d *Dir) Get(epoch uint64) (release.Signed, error) {
	b, err := os.ReadFile(d.recordPath(epoch))
	if errors.Is(err, fs.ErrNotExist) {
		return release.Signed{}, fmt.Errorf("release %d: %w", epoch, ErrNotFound)
	}
	if err != nil {
		return release.Signed{}, fmt.Errorf("reading release %d: %w", epoch, err)
	}
	var s release.Signed
	if err := json.Unmarshal(b, &s); err != nil {
		return release.Signed{}, fmt.Errorf("release %d: %w: %v", epoch, ErrDamaged, err)
	}
	return s, nil
}

// Load is Get, verified: the record of exactly this epoch, signed by key. Its blobs are [Dir.Whole]'s business.
func (d *Dir) Load(epoch uint64, key ed25519.PublicKey) (release.Signed, *release.Record, error) {
	signed, err := d.Get(epoch)
	if err != nil {
		return release.Signed{}, nil, err
	}
	rec, err := signed.Verify(key)
	if err != nil {
		return release.Signed{}, nil, fmt.Errorf("release %d: %w", epoch, err)
	}
	if rec.Epoch != epoch {
		return release.Signed{}, nil, fmt.Errorf("release %d: %w: the record is that of epoch %d", epoch, ErrDamaged, rec.Epoch)
	}
	return signed, rec, nil
}

// Whole returns nil if every blob that the record names is there, with the right bytes.
func (d *Dir) Whole(rec *release.Record) error {
	for ref := range refs(rec) {
		if _, err := d.Blob(ref.Hash); err != nil {
			return fmt.Errorf("release %d: %w", rec.Epoch, err)
		}
	}
	return nil
}

// Latest returns the newest release that is whole and signed by key. Newer ones that are not are passed over: the
// writer, or the reconciler that a mirror watches, makes them good again. With none left it is ErrNone, joined with
// what is wrong with each.
func (d *Dir) Latest(key ed25519.PublicKey) (release.Signed, *release.Record, error) {
	epochs, err := d.List()
	if err != nil {
		return release.Signed{}, nil, err
	}
	failed := []error{ErrNone}
	for _, epoch := range epochs {
		signed, rec, err := d.Load(epoch, key)
		if err == nil {
			err = d.Whole(rec)
		}
		if err == nil {
			return signed, rec, nil
		}
		failed = append(failed, err)
	}
	return release.Signed{}, nil, errors.Join(failed...)
}

// Blob reads the bytes of a hash. A file with other bytes is removed, so that [Dir.Has] says no and it is fetched or
// written again, and the error is ErrDamaged; a missing one is ErrNotFound.
func (d *Dir) Blob(h mesh.Hash) ([]byte, error) {
	b, err := d.read(h)
	if !errors.Is(err, ErrDamaged) {
		return b, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.readOrRemove(h) // again, since Put may have made it good
}

func (d *Dir) read(h mesh.Hash) ([]byte, error) {
	b, err := os.ReadFile(d.blobPath(h))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s: %w", h.Short(), ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("reading blob %s: %w", h.Short(), err)
	}
	if mesh.Hash(sha256.Sum256(b)) != h {
		return nil, fmt.Errorf("blob %s: %w", h.Short(), ErrDamaged)
	}
	return b, nil
}

// readOrRemove needs mu.
func (d *Dir) readOrRemove(h mesh.Hash) ([]byte, error) {
	b, err := d.read(h)
	if errors.Is(err, ErrDamaged) {
		err = errors.Join(err, os.Remove(d.blobPath(h)))
	}
	return b, err
}

// Has reports whether there is a file for a hash; its bytes are checked by [Dir.Blob].
func (d *Dir) Has(h mesh.Hash) bool {
	info, err := os.Stat(d.blobPath(h))
	return err == nil && info.Mode().IsRegular()
}
