package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// disk keeps parts from one process to the next, one sealed file each, under the hash of everything that decided them.
// It is a convenience of the command line: what cannot be read is evaluated again, what cannot be written is not kept,
// and neither is a fault. Several processes may use one directory at the same time: files are replaced as a whole, and
// two that write one name write the same.
type disk struct {
	dir   string
	limit int64 // bytes
	salt  key   // of all that decides beside the keys of parts
	wrote bool  // something, since the last sweep; guarded by mu
	mu    sync.Mutex
}

// defaultCacheBytes bounds the directory: some ten times what 10,000 services come to.
const defaultCacheBytes = 512 << 20

// openDisk prepares a directory, or returns nil if it cannot be used or others could write to it: its content is believed.
func openDisk(o Options) *disk {
	if o.CacheDir == "" {
		return nil
	}
	if err := os.MkdirAll(o.CacheDir, 0o700); err != nil {
		return nil
	}
	if info, err := os.Stat(o.CacheDir); err != nil || !info.IsDir() || info.Mode().Perm()&0o022 != 0 || !ownedByUs(info) {
		return nil
	}
	return &disk{dir: o.CacheDir, limit: o.CacheBytes, salt: key(sha256.Sum256(
		fmt.Appendf(nil, "%s %s %d %d %d", program(), v1alpha1.Digest(), o.CPU, o.Heap, o.Output)))}
}

// program tells two programs apart: what one of them evaluated says nothing about what another would make of it. A
// release has its version; a program that somebody is working on, the time at which it was built.
var program = sync.OnceValue(func() string {
	s := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		s = info.String()
	}
	exe, err := os.Executable()
	if err != nil {
		return s
	}
	if info, err := os.Stat(exe); err == nil {
		s += fmt.Sprintf(" %d %d", info.Size(), info.ModTime().UnixNano())
	}
	return s
})

// ownedByUs reports whether a file belongs to whom this process works for.
func ownedByUs(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

func (d *disk) path(k key) string {
	sum := sha256.Sum256(append(d.salt[:], k[:]...))
	name := hex.EncodeToString(sum[:])
	return filepath.Join(d.dir, name[:2], name[2:])
}

// usedAgain is how old a file's time may be before a use renews it: what is not used goes first.
const usedAgain = time.Hour

// get returns a part that was kept, or nil.
func (d *disk) get(k key) *part {
	path := d.path(k)
	data, err := durable.ReadSealed(path)
	if err != nil {
		return nil
	}
	p, err := decodePart(data)
	if err != nil {
		return nil
	}
	if info, err := os.Stat(path); err == nil && time.Since(info.ModTime()) > usedAgain {
		now := time.Now()
		_ = os.Chtimes(path, now, now) // else it goes sooner than it should
	}
	return p
}

// put keeps a part, unless the machine had a share in it: what ran away here may pass elsewhere, or later.
func (d *disk) put(k key, p *part, r result) {
	if p.skipped || slices.ContainsFunc(p.findings, func(f diag.Finding) bool { return f.ID == diag.Runaway || f.ID == diag.EvalCrashed }) {
		return
	}
	data, err := encodePart(p, r)
	if err != nil {
		return
	}
	path := d.path(k)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return
	}
	if durable.WriteSealedUnsynced(path, data, 0o600) != nil {
		return
	}
	d.mu.Lock()
	d.wrote = true
	d.mu.Unlock()
}

// sweep bounds the directory after something was written: the least recently used files go, and what killed processes
// left unfinished.
func (d *disk) sweep() {
	d.mu.Lock()
	wrote := d.wrote
	d.wrote = false
	d.mu.Unlock()
	if !wrote {
		return
	}
	type entry struct {
		path string
		size int64
		used time.Time
	}
	var all []entry
	var sum int64
	_ = filepath.WalkDir(d.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil // what cannot be read cannot be counted either
		}
		info, err := e.Info()
		if err != nil {
			return nil // another process swept it
		}
		if durable.IsTemp(e.Name()) {
			if time.Since(info.ModTime()) > usedAgain {
				_ = os.Remove(path)
			}
			return nil
		}
		all = append(all, entry{path, info.Size(), info.ModTime()})
		sum += info.Size()
		return nil
	})
	if sum <= d.limit {
		return
	}
	slices.SortFunc(all, func(a, b entry) int { return a.used.Compare(b.used) })
	for _, e := range all {
		if sum <= d.limit*9/10 { // so that the next one does not sweep again
			return
		}
		if os.Remove(e.path) == nil {
			sum -= e.size
		}
	}
}

// rest is what of a part is small, and any encoding does.
type rest struct {
	Findings   diag.List `json:"findings,omitempty"`
	Echoes     diag.List `json:"echoes,omitempty"`
	MeshHash   string    `json:"meshHash,omitempty"`
	Touches    diag.Pos  `json:"touches,omitzero"`
	Broken     []string  `json:"broken,omitempty"`
	PlaceFiles []string  `json:"placeFiles,omitempty"`
}

// values are the fields of a part that hold policy.
func (p *part) values() []reflect.Value {
	v := reflect.ValueOf
	return []reflect.Value{
		v(&p.mesh).Elem(), v(&p.invariants).Elem(), v(&p.namespace).Elem(), v(&p.services).Elem(), v(&p.workloads).Elem(),
		v(&p.groups).Elem(), v(&p.egress).Elem(), v(&p.tests).Elem(),
	}
}

// encodePart writes a part down: the length of each of three sections, and them. r is what the child said of it, since a
// part has no paths any more.
func encodePart(p *part, r result) ([]byte, error) {
	small, err := json.Marshal(rest{p.findings, p.echoes, p.meshHash, p.touches, p.broken, r.PlaceFiles})
	if err != nil {
		return nil, err
	}
	var values, places []byte
	for _, v := range p.values() {
		values = planOf(v.Type()).write(values, v)
	}
	if err := r.eachPlace(func(path string, file, line, column int) {
		places = binary.AppendUvarint(places, uint64(file))
		places = binary.AppendUvarint(places, uint64(line))
		places = binary.AppendUvarint(places, uint64(column))
		places = append(binary.AppendUvarint(places, uint64(len(path))), path...)
	}); err != nil {
		return nil, err
	}
	var b []byte
	for _, section := range [][]byte{small, values, places} {
		b = binary.AppendUvarint(b, uint64(len(section)))
	}
	return slices.Concat(b, small, values, places), nil
}

// decodePart reads what encodePart wrote.
func decodePart(data []byte) (*part, error) {
	head := &reader{rest: string(data[:min(len(data), 3*binary.MaxVarintLen64)])}
	before := len(head.rest)
	var size [3]uint64
	for i := range size {
		size[i] = head.uint()
	}
	data = data[before-len(head.rest):]
	if head.bad || size[0] > uint64(len(data)) || size[1] > uint64(len(data))-size[0] || size[2] != uint64(len(data))-size[0]-size[1] {
		return nil, errPart
	}
	var small rest
	d := json.NewDecoder(bytes.NewReader(data[:size[0]]))
	d.DisallowUnknownFields()
	if err := d.Decode(&small); err != nil {
		return nil, err
	}
	p := &part{findings: small.Findings, echoes: small.Echoes, meshHash: small.MeshHash, touches: small.Touches, broken: small.Broken}
	values := &reader{rest: string(data[size[0] : size[0]+size[1]])} // which the strings of policy go on using
	for _, v := range p.values() {
		planOf(v.Type()).read(values, v)
	}
	places := &reader{rest: string(data[size[0]+size[1]:])}
	p.places = v1alpha1.NewPlaces(small.PlaceFiles, func(add func(path string, file, line, column int)) {
		for len(places.rest) > 0 && !places.bad {
			file, line, column := places.uint(), places.uint(), places.uint()
			add(places.text(), int(file), int(line), int(column))
		}
	})
	if values.bad || len(values.rest) > 0 || places.bad {
		return nil, errPart
	}
	return p, nil
}
