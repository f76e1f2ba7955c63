package policy

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// file is one .cue file, named by its slash-separated path in the repository.
type file struct {
	Name string `json:"name"`
	Data []byte `json:"data"`
}

// unit is what is evaluated at a time: one directory. Its ancestors' files belong to the same CUE instance.
type unit struct {
	// Dir is "" for mesh.cue, "services" for the files beside the namespaces, else "services/<namespace>".
	Dir   string `json:"dir"`
	Files []file `json:"files"`
}

// namespace is the namespace a unit may write, "" for the units above namespaces.
func (u unit) namespace() string {
	if len(u.Dir) > len("services/") {
		return u.Dir[len("services/"):]
	}
	return ""
}

// request is all that a child process gets: what to evaluate and how much of the machine it may use for it.
type request struct {
	Language string `json:"language"` // the module's language version
	Env      string `json:"env"`      // value of the `env` tag; "" leaves the file's own default
	// Mesh and Above are the ancestors: mesh.cue, and the .cue files directly under services/.
	Mesh  []file `json:"mesh"`
	Above []file `json:"above"`
	Units []unit `json:"units"`

	CPUSeconds int   `json:"cpuSeconds"` // per unit
	HeapBytes  int64 `json:"heapBytes"`
	Cap        bool  `json:"cap"` // set RLIMIT_AS; impossible under the race detector
}

// result is what a child says about one unit. Values are JSON of the unit's fenced part. With findings they are not set,
// unless Broken is: then they are all of it but the services that Broken names.
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

	Mesh      json.RawMessage     `json:"mesh,omitempty"`
	Namespace json.RawMessage     `json:"namespace,omitempty"`
	Services  json.RawMessage     `json:"services,omitempty"`
	Workloads json.RawMessage     `json:"workloads,omitempty"`
	Positions map[string]diag.Pos `json:"positions,omitempty"`
	Broken    []string            `json:"broken,omitempty"`

	skipped bool // the parent's own: no child was asked
}

// maxRequest bounds a request: the source's own limit on a tree, base64, and some air.
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
