// Package published reads what a reconciler on this machine has published, without asking it: what serves can be
// explained while nothing runs. It turns a state directory into verified meshes with their origins, and writes nothing.
package published

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/heddle-mesh/heddle/internal/pinned"
	"github.com/heddle-mesh/heddle/internal/releasedir"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/release"
)

// keptReleases is how many releases a reconciler keeps; a reader must not ask for fewer.
const keptReleases = 20

// ErrNone means that a state directory holds no releases.
var ErrNone = errors.New("there are no releases")

// Releases are those that a reconciler keeps.
type Releases struct {
	dir *releasedir.Dir
	key ed25519.PublicKey
}

// Open finds the releases of a mesh's state directory, the one that holds reconciler/; there may be none: ErrNone.
func Open(state string) (*Releases, error) {
	own := filepath.Join(state, "reconciler")
	key, err := pinned.LoadKey(filepath.Join(own, "key"))
	if err == nil {
		_, err = os.Stat(filepath.Join(own, "releases")) // opening it would make it
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: %w", state, ErrNone)
	case err != nil:
		return nil, fmt.Errorf("reading releases: %w", err)
	}
	dir, err := releasedir.Open(filepath.Join(own, "releases"), keptReleases)
	if err != nil {
		return nil, fmt.Errorf("reading releases: %w", err)
	}
	return &Releases{dir: dir, key: pinned.Public(key)}, nil
}

// Release is a release with the mesh that it makes.
type Release struct {
	Record  *release.Record
	Mesh    *mesh.Mesh
	Origins mesh.Origins
}

// Epochs are those that are kept, newest first.
func (r *Releases) Epochs() ([]uint64, error) {
	epochs, err := r.dir.List()
	if err != nil {
		return nil, fmt.Errorf("listing releases: %w", err)
	}
	slices.Sort(epochs)
	slices.Reverse(epochs)
	return epochs, nil
}

// Record verifies one record, without its mesh.
func (r *Releases) Record(epoch uint64) (*release.Record, error) {
	signed, err := r.dir.Get(epoch)
	if err != nil {
		return nil, fmt.Errorf("release %d: %w", epoch, err)
	}
	return signed.Verify(r.key)
}

// Load verifies and decodes one release.
func (r *Releases) Load(epoch uint64) (*Release, error) {
	record, err := r.Record(epoch)
	if err != nil {
		return nil, err
	}
	m, origins, err := record.Assemble(r.dir.Blob)
	if err != nil {
		return nil, err
	}
	return &Release{record, m, origins}, nil
}

// Latest is the newest release that is whole.
func (r *Releases) Latest() (*Release, error) {
	_, record, err := r.dir.Latest(r.key)
	if err != nil {
		return nil, fmt.Errorf("the newest release: %w", err)
	}
	return r.Load(record.Epoch)
}
