package reach

import (
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// Callers are the identities that meshes declare, looked up fast. It is never written after it is made.
type Callers struct {
	owner   map[string]mesh.ServiceName
	several map[string]bool // identities that their service's name does not tell: it has others too, in some mesh
	sorted  []string
	odd     []string            // those that do not say the namespace of their service
	moved   map[string][]string // the namespace in each mesh, of those that went from one to another
	domains []string
}

// NewCallers gathers the identities that services declare. Of one declared in several meshes the last counts.
func NewCallers(meshes ...*mesh.Mesh) *Callers {
	c := &Callers{owner: map[string]mesh.ServiceName{}, several: map[string]bool{}, moved: map[string][]string{}}
	all := map[mesh.ServiceName]map[string]bool{}
	for side, m := range meshes {
		if m == nil {
			continue
		}
		if d := m.Settings.TrustDomain; d != "" && !slices.Contains(c.domains, d) {
			c.domains = append(c.domains, d)
		}
		for i := range m.Inbound {
			for _, id := range m.Inbound[i].Identities {
				if was, ok := c.owner[id]; ok && was.Namespace() != m.Inbound[i].Service.Namespace() {
					c.moves(id, was.Namespace(), m.Inbound[i].Service.Namespace(), side, len(meshes))
				}
				if was, ok := c.owner[id]; ok && was != m.Inbound[i].Service {
					c.several[id] = true
				}
				c.owner[id] = m.Inbound[i].Service
				if all[m.Inbound[i].Service] == nil {
					all[m.Inbound[i].Service] = map[string]bool{}
				}
				all[m.Inbound[i].Service][id] = true
			}
		}
	}
	for _, ids := range all {
		for id := range ids {
			c.several[id] = c.several[id] || len(ids) > 1
		}
	}
	if len(c.domains) == 0 {
		c.domains = []string{"example.org"}
	}
	c.sorted = sortedKeys(c.owner)
	for _, id := range c.sorted {
		if mesh.PeerNamespace(id) != c.owner[id].Namespace() {
			c.odd = append(c.odd, id)
		}
	}
	return c
}

// moves notes that an identity is of another namespace from a mesh on.
func (c *Callers) moves(id, was, is string, side, meshes int) {
	if c.moved[id] == nil {
		c.moved[id] = slices.Repeat([]string{was}, meshes)
	}
	for i := side; i < meshes; i++ {
		c.moved[id][i] = is
	}
}

// Moved reports whether a declared identity is of one namespace in one mesh and of another in another, so that its calls
// go by other consumer routes though nobody wrote to them.
func (c *Callers) Moved() bool { return len(c.moved) > 0 }

// Of is a call as its caller makes it in one of the meshes, by its index: there, its namespace may be another.
func (c *Callers) Of(side int, call *decide.Call) decide.Call {
	out := *call
	if by := c.moved[call.Peer]; by != nil {
		out.Namespace = by[side]
	}
	return out
}

// Owner is the service that declares an identity.
func (c *Callers) Owner(id string) (mesh.ServiceName, bool) { n, ok := c.owner[id]; return n, ok }

// Name is what a person calls a caller, and means the same in every mesh: its service, or the SPIFFE ID where the service
// has several, or had another one, or there is none.
func (c *Callers) Name(id string) string {
	if n, ok := c.owner[id]; ok && !c.several[id] {
		return string(n)
	}
	return id
}

// namespace is what a call by an identity says of its namespace: only what the identity does not.
func (c *Callers) namespace(id string) string {
	if n, ok := c.owner[id]; ok && n.Namespace() != mesh.PeerNamespace(id) {
		return n.Namespace()
	}
	return ""
}

// Under are the declared identities that begin with a prefix, sorted.
func (c *Callers) Under(prefix string) []string {
	from, _ := slices.BinarySearch(c.sorted, prefix)
	to := from
	for to < len(c.sorted) && strings.HasPrefix(c.sorted[to], prefix) {
		to++
	}
	return c.sorted[from:to]
}

// Peer is a class of callers: those that no condition tells apart.
type Peer struct {
	// ID is one of them; "" is a caller that proves no identity.
	ID string
	// Namespace is decide.Call.Namespace.
	Namespace string
	// Named are the identities of the class that conditions name, sorted.
	Named []string
	// Under are the prefixes of SPIFFE IDs below which callers are in the class, and Suffixes the ends: none of either,
	// and the class has none but those named, or everybody else ("Rest").
	Under, Suffixes []string
	Rest            bool

	bits set // of the conditions that hold
	key  string
}

// cutPeers finds a caller for each combination of conditions.
func (s *Space) cutPeers(g *gatherer) {
	named, prefixes, suffixes := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for i := range s.conds {
		for _, p := range s.conds[i].from {
			switch {
			case p.Identity != "":
				named[p.Identity] = true
			case p.Prefix != "":
				prefixes[p.Prefix] = true
			case p.Suffix != "":
				suffixes[p.Suffix] = true
			}
		}
	}
	if !s.spend((len(named) + len(prefixes)*(1+len(suffixes))) * len(s.conds) / 2) {
		return
	}
	byKey := map[string]int{}
	put := func(id string) *Peer {
		ns := s.callers.namespace(id)
		b, key := s.peerKey(id, ns)
		at, ok := byKey[key]
		if !ok {
			at = len(s.Peers)
			byKey[key] = at
			s.Peers = append(s.Peers, Peer{ID: id, Namespace: ns, bits: b, key: key})
		}
		return &s.Peers[at]
	}
	put("")
	for _, id := range sortedKeys(named) {
		p := put(id)
		p.Named = append(p.Named, id)
	}
	if len(g.spaces) > 0 {
		for _, id := range slices.Concat(s.callers.odd, sortedKeys(s.callers.moved)) {
			if p := put(id); !named[id] && !slices.Contains(p.Named, id) {
				p.Named = append(p.Named, id)
			}
		}
	}
	// A caller is told apart by the longest prefix and the longest suffix that it has, and by the namespace in it.
	bases := sortedKeys(prefixes)
	for _, d := range s.callers.domains {
		root := "spiffe://" + d + "/"
		bases = append(bases, root)
		if len(g.spaces) > 0 { // a suffix may look like a namespace, and is none behind another one
			bases = append(bases, root+"ns/any/")
		}
		for _, ns := range g.spaces {
			bases = append(bases, root+"ns/"+ns+"/")
		}
	}
	for _, b := range slices.Clone(bases) {
		for _, ns := range g.spaces {
			if mesh.PeerNamespace(b+"x") == "" {
				bases = append(bases, b+"x/ns/"+ns+"/")
			}
		}
	}
	slices.Sort(bases)
	bases = slices.Compact(bases)
	fresh := "any"
	for contains := true; contains; {
		contains = false
		for _, m := range []map[string]bool{named, prefixes, suffixes} {
			for k := range m {
				contains = contains || strings.Contains(k, fresh)
			}
		}
		if contains {
			fresh += "y"
		}
	}
	ends := append([]string{""}, sortedKeys(suffixes)...)
	for _, base := range bases {
		for _, end := range ends {
			tail := fresh
			if mesh.PeerNamespace(base+"x") == "" && strings.HasSuffix(base, "/ns/") {
				tail = fresh + "/sa/" + fresh
			}
			before := len(s.Peers)
			p := put(base + tail + end)
			if strings.Contains(base, "/x/ns/") && before == len(s.Peers) {
				continue // nothing of its own
			}
			switch {
			case end != "":
				p.Suffixes = append(p.Suffixes, end)
			case prefixes[base] || len(g.spaces) > 0 && strings.Contains(base, "/ns/"):
				p.Under = append(p.Under, base)
			default:
				p.Rest = true
			}
			if len(p.Named) == 0 {
				s.declaredInstead(p, base)
			}
		}
	}
	for i := range s.Peers {
		slices.Sort(s.Peers[i].Named)
	}
}

// declaredInstead lets a declared caller of the class stand for it, if one is soon found: a reader knows it.
func (s *Space) declaredInstead(p *Peer, base string) {
	if _, ok := s.callers.owner[p.ID]; ok {
		return
	}
	for i, id := range s.callers.Under(base) {
		if i == 64 {
			return
		}
		ns := s.callers.namespace(id)
		if b, key := s.peerKey(id, ns); key == p.key {
			p.ID, p.Namespace, p.bits = id, ns, b
			return
		}
	}
}

// peerKey is what the conditions say of a caller.
func (s *Space) peerKey(id, ns string) (set, string) {
	b := newSet(len(s.conds))
	if ns == "" {
		ns = mesh.PeerNamespace(id)
	}
	moved := s.callers.moved[id]
	for i := range s.conds {
		c := &s.conds[i]
		if moved != nil && len(moved) == s.sides {
			ns = moved[c.side]
		}
		if c.namespace != "" && (id == "" || c.namespace != ns) {
			continue
		}
		if c.from == nil || slices.ContainsFunc(c.from, func(p mesh.Peer) bool { return decide.PeerMatches(&p, id) }) {
			b.add(i)
		}
	}
	key := b.key()
	if id == "" {
		key += "-"
	}
	return b, key
}

func (s *Space) peerOf(id, ns string) (int, bool) {
	_, key := s.peerKey(id, ns)
	i := slices.IndexFunc(s.Peers, func(p Peer) bool { return p.key == key })
	return i, i >= 0
}
