package mesh

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// Kind is a kind of object on the config stream. Objects of the kinds here travel in the canonical encoding;
// endpoints, bundles and certificates are native protobuf.
type Kind string

const (
	KindSettings Kind = "settings" // Settings; the only object is named "mesh"
	KindIndex    Kind = "index"    // Index; named by namespace
	KindInbound  Kind = "inbound"  // Inbound; named by service
	KindOutbound Kind = "outbound" // Outbound; named by service
	KindWorkload Kind = "workload" // Workload; named by workload; control planes only
	KindOrigin   Kind = "origin"   // Origins of one service; named by service. Not behaviour
)

// Hash is a SHA-256.
type Hash [sha256.Size]byte

// String is lower-case hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Short is the first 12 hexadecimal digits.
func (h Hash) Short() string { return h.String()[:12] }

// ParseHash reads the form of [Hash.String].
func ParseHash(s string) (Hash, error) {
	var h Hash
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(h) {
		return h, fmt.Errorf("hash %q is not %d hexadecimal digits", s, 2*len(h))
	}
	copy(h[:], b)
	return h, nil
}

// MarshalText and UnmarshalText make a Hash a hexadecimal string in JSON.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads the form of [Hash.String].
func (h *Hash) UnmarshalText(b []byte) (err error) { *h, err = ParseHash(string(b)); return err }

// Object is a canonical encoding with its name and hash. Its bytes are never written again.
type Object struct {
	Kind  Kind
	Name  string
	Bytes []byte
	Hash  Hash // of Bytes
}

// NewObject encodes v canonically.
func NewObject(kind Kind, name string, v any) Object {
	b := Canonical(v)
	return Object{Kind: kind, Name: name, Bytes: b, Hash: sha256.Sum256(b)}
}

// Canonical is the one encoding of a mesh value: JSON as encoding/json writes it for our structs (fields in the order
// of their declaration, map keys sorted, omitted where empty), without HTML escapes and without a trailing newline.
// Slices keep the order that the type's documentation gives.
func Canonical(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(fmt.Sprintf("mesh: %T cannot be encoded: %v", v, err)) // plain structs of strings and numbers always can
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// Decode reads a canonical encoding into v and refuses fields that this version does not know: what is not understood
// must not be silently left out.
func Decode(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("bytes after the value")
	}
	return nil
}

// Index is what every sidecar knows of a namespace: which services there are, so that a name is told apart from an
// unknown one without asking, and a mesh destination never becomes plaintext.
type Index struct {
	Namespace string         `json:"namespace"`
	Services  []IndexService `json:"services"` // sorted by name
}

// IndexService is one service of an index.
type IndexService struct {
	Name  string      `json:"name"` // without the namespace
	Ports []IndexPort `json:"ports"`
}

// IndexPort is one port of a service in an index.
type IndexPort struct {
	Name     string   `json:"name"`
	Port     uint16   `json:"port"`
	Protocol Protocol `json:"protocol"`
}

// Indexes are the indexes of all namespaces, sorted. They follow from Outbound and are not behaviour of their own.
func (m *Mesh) Indexes() []Index {
	var out []Index
	for _, o := range m.Outbound {
		if len(out) == 0 || out[len(out)-1].Namespace != o.Service.Namespace() {
			out = append(out, Index{Namespace: o.Service.Namespace()})
		}
		ix := &out[len(out)-1]
		s := IndexService{Name: o.Service.Local()}
		for _, p := range o.Ports {
			s.Ports = append(s.Ports, IndexPort{Name: p.Name, Port: p.Port, Protocol: p.Protocol})
		}
		ix.Services = append(ix.Services, s)
	}
	return out
}

// Chunk is the behaviour of one namespace as canonical bytes: the unit that releases share.
type Chunk struct {
	Namespace string     `json:"namespace"` // "" holds the settings
	Settings  *Settings  `json:"settings,omitempty"`
	Inbound   []Inbound  `json:"inbound,omitempty"`
	Outbound  []Outbound `json:"outbound,omitempty"`
	Workloads []Workload `json:"workloads,omitempty"`
	Groups    []Group    `json:"groups,omitempty"`
	Egress    *Egress    `json:"egress,omitempty"`
	// Invariants stand beside the settings.
	Invariants []Invariant `json:"invariants,omitempty"`
}

// Chunks splits a mesh by namespace, sorted; the first chunk, of namespace "", holds the settings.
func (m *Mesh) Chunks() []Chunk {
	s := m.Settings
	by := map[string]*Chunk{"": {Settings: &s, Invariants: m.Invariants}}
	at := func(ns string) *Chunk {
		c := by[ns]
		if c == nil {
			c = &Chunk{Namespace: ns}
			by[ns] = c
		}
		return c
	}
	for _, v := range m.Inbound {
		c := at(v.Service.Namespace())
		c.Inbound = append(c.Inbound, v)
	}
	for _, v := range m.Outbound {
		c := at(v.Service.Namespace())
		c.Outbound = append(c.Outbound, v)
	}
	for _, v := range m.Workloads {
		ns, _, _ := strings.Cut(v.Name, "/")
		c := at(ns)
		c.Workloads = append(c.Workloads, v)
	}
	for _, v := range m.Groups {
		ns, _, _ := strings.Cut(v.Name, "/")
		c := at(ns)
		c.Groups = append(c.Groups, v)
	}
	for i := range m.Egress {
		at(m.Egress[i].Namespace).Egress = &m.Egress[i]
	}
	out := make([]Chunk, 0, len(by))
	for _, c := range by {
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b Chunk) int { return strings.Compare(a.Namespace, b.Namespace) })
	return out
}

// Join is the inverse of [Mesh.Chunks], for chunks sorted by namespace.
func Join(chunks []Chunk) (*Mesh, error) {
	m := &Mesh{}
	found := false
	for _, c := range chunks {
		if c.Settings != nil {
			m.Settings, found = *c.Settings, true
		}
		m.Invariants = append(m.Invariants, c.Invariants...)
		m.Groups = append(m.Groups, c.Groups...)
		if c.Egress != nil {
			m.Egress = append(m.Egress, *c.Egress)
		}
		m.Inbound = append(m.Inbound, c.Inbound...)
		m.Outbound = append(m.Outbound, c.Outbound...)
		m.Workloads = append(m.Workloads, c.Workloads...)
	}
	if !found {
		return nil, fmt.Errorf("no chunk holds the mesh's settings")
	}
	slices.SortFunc(m.Inbound, func(a, b Inbound) int { return strings.Compare(string(a.Service), string(b.Service)) })
	slices.SortFunc(m.Outbound, func(a, b Outbound) int { return strings.Compare(string(a.Service), string(b.Service)) })
	slices.SortFunc(m.Groups, func(a, b Group) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(m.Egress, func(a, b Egress) int { return strings.Compare(a.Namespace, b.Namespace) })
	slices.SortFunc(m.Workloads, func(a, b Workload) int { return strings.Compare(a.Name, b.Name) })
	return m, nil
}

// BehaviourHash is over the hashes of the chunks, in order, each preceded by its namespace and a zero byte. Two
// commits with the same behaviour hash make the same mesh.
func BehaviourHash(chunks []ChunkRef) Hash {
	h := sha256.New()
	for _, c := range chunks {
		io.WriteString(h, c.Namespace)
		h.Write([]byte{0})
		h.Write(c.Hash[:])
	}
	return Hash(h.Sum(nil))
}

// ChunkRef names a chunk by its content.
type ChunkRef struct {
	Namespace string `json:"namespace"`
	Hash      Hash   `json:"hash"`
	Size      int    `json:"size"` // bytes
}

// Origins says where each rule, route and default was written: stable id → position. It travels beside the behaviour
// and is never part of a behaviour hash. A service's own name is an id too: where the service is declared.
type Origins map[string]diag.Pos

// BuiltIn reports whether the default of a service's port is the built-in one: nobody wrote it, so its origin is the
// service's declaration.
func (o Origins) BuiltIn(s ServiceName, port string) bool {
	at, ok := o[DefaultID(s, port)]
	return ok && at == o[string(s)]
}
