package policy

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// file is one .cue file, named by its slash-separated path in the repository.
type file struct {
	Name string `json:"name"`
	Data []byte `json:"data"`
}

// unit is what is evaluated at a time: one directory. Its ancestors' files belong to the same CUE instance.
type unit struct {
	// Dir is the directory's path in the repository, "" for mesh.cue, which is a unit by itself.
	Dir string `json:"dir"`
	// Namespace is the one that it may write; "" for the units that write none.
	Namespace string `json:"namespace,omitempty"`
	// Roots are the top-level fields that it may write, in the order of [kindsOf].
	Roots []string `json:"roots,omitempty"`
	// Source names the delegation that the directory belongs to, as in mesh.sources; "" for the repository's own.
	Source string `json:"source,omitempty"`
	// Above are the directories whose files are seen here, outermost first; "" for mesh.cue.
	Above []string `json:"above,omitempty"`
	Files []file   `json:"files"`
}

// request is all that a child process gets before the units: what they share, and how much of the machine it may use.
type request struct {
	Language string `json:"language"` // the module's language version
	Env      string `json:"env"`      // value of the `env` tag; "" leaves the file's own default
	// Shared are the files of the directories that units name as being above them.
	Shared map[string][]file `json:"shared"`
	Units  int               `json:"units"` // how many follow

	CPUSeconds int   `json:"cpuSeconds"` // per unit
	HeapBytes  int64 `json:"heapBytes"`
	Cap        bool  `json:"cap"` // set RLIMIT_AS; impossible under the race detector
}

// result is what a child says about one unit. With findings there are no Values, unless Broken is set: then they are all
// of it but the services that Broken names.
type result struct {
	Dir      string    `json:"dir"`
	Findings diag.List `json:"findings,omitempty"`
	// Echoes are findings that the ancestors' own units are to tell. Where they have none, the fault lies between the two.
	Echoes diag.List `json:"echoes,omitempty"`
	// Touches is the first place where the unit writes a hidden field or definition that a file above writes too: where to
	// look if the mesh's value differs in it.
	Touches diag.Pos `json:"touches,omitzero"`
	// Stopped says that a limit ended the child: "cpu" or "heap". Nothing else is set then.
	Stopped string `json:"stopped,omitempty"`

	// Values are the parts of the policy that the unit may write, by top-level field: JSON of the whole field or, where it
	// holds namespaces, of the unit's own namespace. Of mesh.cue with findings elsewhere, mesh.sources may be there.
	Values map[string]json.RawMessage `json:"values,omitempty"`
	// Mesh is a hash over mesh and invariants as this unit sees them, which nobody but mesh.cue may change.
	Mesh string `json:"mesh,omitempty"`
	// Places are the positions of fields, as lines of the file's index among PlaceFiles, line, column and path: they are too
	// many for JSON.
	PlaceFiles []string `json:"placeFiles,omitempty"`
	Places     string   `json:"places,omitempty"`
	Broken     []string `json:"broken,omitempty"`

	skipped bool // the parent's own: no child was asked
}

// setPlaces writes positions down for the parent.
func (r *result) setPlaces(at map[string]diag.Pos) {
	index := map[string]int{}
	for _, pos := range at {
		index[pos.File] = 0
	}
	r.PlaceFiles = slices.Sorted(maps.Keys(index))
	for i, name := range r.PlaceFiles {
		index[name] = i
	}
	var b []byte
	for path, pos := range at {
		if strings.Contains(path, "\n") {
			continue // the field around it has a place
		}
		b = strconv.AppendInt(b, int64(index[pos.File]), 10)
		b = strconv.AppendInt(append(b, ' '), int64(pos.Line), 10)
		b = strconv.AppendInt(append(b, ' '), int64(pos.Column), 10)
		b = append(append(append(b, ' '), path...), '\n')
	}
	r.Places = string(b)
}

// places reads what setPlaces wrote.
func (r *result) places() (*v1alpha1.Places, error) {
	var bad error
	p := v1alpha1.NewPlaces(r.PlaceFiles, func(add func(path string, file, line, column int)) { bad = r.eachPlace(add) })
	return p, bad
}

// eachPlace calls add for every position.
func (r *result) eachPlace(add func(path string, file, line, column int)) error {
	for text := range strings.Lines(r.Places) {
		var n [3]int
		rest := text
		for i := range n {
			field, more, _ := strings.Cut(rest, " ")
			v, err := strconv.Atoi(field)
			if err != nil || v < 0 {
				return fmt.Errorf("a position reads %s", clip(strconv.Quote(text)))
			}
			n[i], rest = v, more
		}
		add(strings.TrimSuffix(rest, "\n"), n[0], n[1], n[2])
	}
	return nil
}

// maxRequest bounds a frame to the child: the source's own limit on a tree, base64, and some air.
const maxRequest = 128 << 20

// writeFrame sends v as JSON behind its length, four bytes, big endian.
func writeFrame(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b))), b...))
	return err
}

// readFrame reads one frame of at most limit bytes into v, and returns its size. io.EOF means that there is none.
func readFrame(r io.Reader, limit int, v any) (int, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint32(head[:]))
	if n > limit {
		return n, fmt.Errorf("frame of %d bytes; at most %d are taken", n, limit)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return n, fmt.Errorf("truncated frame: %w", err)
	}
	return n, json.Unmarshal(b, v)
}
