package releasedir

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/release"
)

var key = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

func public() ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

// made is a release whose two chunks hold the given texts.
func made(epoch uint64, chunks ...string) (release.Signed, map[mesh.Hash][]byte) {
	rec := release.Record{Epoch: epoch}
	blobs := map[mesh.Hash][]byte{}
	ref := func(ns, text string) mesh.ChunkRef {
		h := mesh.Hash(sha256.Sum256([]byte(text)))
		blobs[h] = []byte(text)
		return mesh.ChunkRef{Namespace: ns, Hash: h, Size: len(text)}
	}
	for i, text := range chunks {
		rec.Chunks = append(rec.Chunks, ref(fmt.Sprintf("ns%d", i), text))
	}
	rec.Origins = ref("", fmt.Sprintf("origins %d", epoch))
	rec.Behaviour = mesh.BehaviourHash(rec.Chunks)
	return release.Sign(key, &rec), blobs
}

func hash(text string) mesh.Hash { return sha256.Sum256([]byte(text)) }

func TestKeepsTheNewestAndWhatTheyName(t *testing.T) {
	d, err := Open(t.TempDir(), 3)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Latest(public()); !errors.Is(err, ErrNone) {
		t.Fatalf("empty: %v", err)
	}
	for epoch := uint64(1); epoch <= 6; epoch++ {
		signed, blobs := made(epoch, "shared", fmt.Sprintf("own %d", epoch))
		if epoch > 1 {
			delete(blobs, hash("shared")) // named again, and there already
		}
		if err := d.Put(signed, epoch, blobs); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := d.List(); err != nil || !slices.Equal(got, []uint64{6, 5, 4}) {
		t.Errorf("kept %v, %v", got, err)
	}
	files, err := os.ReadDir(filepath.Join(d.path, "blobs"))
	if err != nil || len(files) != 1+3+3 {
		t.Errorf("%d blobs (%v); want the shared one, three of their own, three origin tables", len(files), err)
	}
	for text, want := range map[string]bool{"shared": true, "own 6": true, "own 4": true, "own 3": false} {
		if d.Has(hash(text)) != want {
			t.Errorf("Has(%s) = %v", text, !want)
		}
	}
	if _, rec, err := d.Latest(public()); err != nil || rec.Epoch != 6 {
		t.Errorf("latest: %v, %v", rec, err)
	}
	if err := d.Remove(6); err != nil {
		t.Error(err)
	}
	if _, rec, err := d.Latest(public()); err != nil || rec.Epoch != 5 {
		t.Errorf("latest after taking 6 back: %v, %v", rec, err)
	}
	signed, blobs := made(7, "shared", "own 7")
	if err := d.Put(signed, 7, blobs); err != nil || d.Has(hash("own 6")) {
		t.Errorf("the blobs of what was taken back stay (%v)", err)
	}
	signed, blobs = made(3, "late")
	if err := d.Put(signed, 3, blobs); !errors.Is(err, ErrOld) || d.Has(hash("late")) {
		t.Errorf("a release that would go at once: %v", err)
	}
	if _, err := d.Get(3); !errors.Is(err, ErrNotFound) {
		t.Errorf("a pruned record: %v", err)
	}
}

// The release that counts stays, however many came after it that never counted.
func TestPinnedStays(t *testing.T) {
	d, err := Open(t.TempDir(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for epoch := uint64(1); epoch <= 3; epoch++ {
		signed, blobs := made(epoch, fmt.Sprintf("own %d", epoch))
		if err := d.Put(signed, epoch, blobs); err != nil {
			t.Fatal(err)
		}
		if epoch == 1 {
			d.Pin(1)
		}
	}
	if got, err := d.List(); err != nil || !slices.Equal(got, []uint64{3, 1}) {
		t.Errorf("kept %v, %v; want the newest and the pinned one", got, err)
	}
	if _, rec, err := d.Load(1, public()); err != nil || d.Whole(rec) != nil {
		t.Errorf("the pinned release is not whole: %v", err)
	}
}

// A release that could not be stored leaves nothing: on a full disk its blobs would be what keeps the next one out.
func TestFailureLeavesNothing(t *testing.T) {
	d, err := Open(t.TempDir(), 3)
	if err != nil {
		t.Fatal(err)
	}
	signed, blobs := made(1, "shared", "own 1")
	if err := d.Put(signed, 1, blobs); err != nil {
		t.Fatal(err)
	}
	inTheWay := d.blobPath(hash("origins 2"))
	if err := os.MkdirAll(filepath.Join(inTheWay, "kept"), 0o700); err != nil {
		t.Fatal(err)
	}
	signed, blobs = made(2, "shared", "own 2")
	if err := d.Put(signed, 2, blobs); err == nil || !strings.Contains(err.Error(), inTheWay) {
		t.Errorf("stored over a directory: %v", err)
	}
	if d.Has(hash("own 2")) || !d.Has(hash("shared")) || !d.Has(hash("own 1")) {
		t.Error("after the failure: the blobs of the failed release stay, or others went with them")
	}
}

// A record that cannot be read now may be read later: what it names stays.
func TestUnreadableRecordKeepsItsBlobs(t *testing.T) {
	d, err := Open(t.TempDir(), 3)
	if err != nil {
		t.Fatal(err)
	}
	signed, blobs := made(1, "own 1")
	if err := d.Put(signed, 1, blobs); err != nil {
		t.Fatal(err)
	}
	// Reading a directory fails for root too, and with another error than that of a damaged or missing file.
	if err := errors.Join(os.Rename(d.recordPath(1), d.path+"/away"), os.Mkdir(d.recordPath(1), 0o700)); err != nil {
		t.Fatal(err)
	}
	signed, blobs = made(2, "own 2")
	if err := d.Put(signed, 2, blobs); err != nil {
		t.Fatal(err)
	}
	if !d.Has(hash("own 1")) {
		t.Error("the blobs of a release that could not be read are gone")
	}
}

// Whatever else somebody puts into the directory is not ours to remove, and nothing to fail on.
func TestForeignFilesAreLeftAlone(t *testing.T) {
	d, err := Open(t.TempDir(), 1)
	if err != nil {
		t.Fatal(err)
	}
	foreign := []string{"blobs/lost+found/kept", "blobs/README"}
	for _, name := range foreign {
		path := filepath.Join(d.path, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for epoch := uint64(1); epoch <= 2; epoch++ {
		signed, blobs := made(epoch, fmt.Sprintf("own %d", epoch))
		if err := d.Put(signed, epoch, blobs); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range foreign {
		if _, err := os.Stat(filepath.Join(d.path, name)); err != nil {
			t.Error(err)
		}
	}
}

func TestRefusesWhatIsNotWhole(t *testing.T) {
	d, err := Open(t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	signed, blobs := made(1, "a", "b")
	missing := map[mesh.Hash][]byte{hash("a"): []byte("a")}
	wrong := map[mesh.Hash][]byte{hash("a"): []byte("a"), hash("b"): []byte("x"), hash("origins 1"): []byte("origins 1")}
	for name, err := range map[string]error{
		"a missing blob": d.Put(signed, 1, missing), "wrong bytes": d.Put(signed, 1, wrong), "another epoch": d.Put(signed, 2, blobs),
	} {
		if err == nil {
			t.Errorf("%s: stored", name)
		}
	}
	if got, err := d.List(); err != nil || len(got) != 0 {
		t.Errorf("records %v, %v", got, err)
	}
}

// What was changed on disk is found, passed over, and made good by the next Put.
func TestDamage(t *testing.T) {
	d, err := Open(t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for epoch := uint64(1); epoch <= 2; epoch++ {
		signed, blobs := made(epoch, fmt.Sprintf("chunk %d", epoch))
		if err := d.Put(signed, epoch, blobs); err != nil {
			t.Fatal(err)
		}
	}
	latest := func() uint64 {
		t.Helper()
		_, rec, err := d.Latest(public())
		if err != nil {
			t.Fatal(err)
		}
		return rec.Epoch
	}

	h := hash("chunk 2")
	if err := os.WriteFile(d.blobPath(h), []byte("chunk X"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := latest(); got != 1 {
		t.Errorf("latest with a damaged blob is %d", got)
	}
	if d.Has(h) {
		t.Error("the damaged blob would not be fetched again")
	}
	signed, blobs := made(2, "chunk 2")
	if err := d.Put(signed, 2, blobs); err != nil {
		t.Fatal(err)
	}
	if got := latest(); got != 2 {
		t.Errorf("latest after the repair is %d", got)
	}

	record, err := os.ReadFile(d.recordPath(2))
	if err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(d.recordPath(1))
	if err != nil {
		t.Fatal(err)
	}
	_, other, _ := ed25519.GenerateKey(nil)
	foreign, err := json.Marshal(release.Sign(other, &release.Record{Epoch: 2}))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"cut short":              record[:len(record)/2],
		"a flipped bit":          flip(record),
		"the record of epoch 1":  first,
		"signed by somebody":     foreign,
		"not even a JSON object": []byte("null"),
	} {
		if err := os.WriteFile(d.recordPath(2), content, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := latest(); got != 1 {
			t.Errorf("%s: latest is %d", name, got)
		}
		if _, _, err := d.Load(2, public()); err == nil {
			t.Errorf("%s: loaded", name)
		}
	}
}

// flip changes one bit within the base64 text of the record.
func flip(b []byte) []byte {
	b = slices.Clone(b)
	i := len(`{"record":"`) + 8
	b[i] ^= 1
	return b
}
