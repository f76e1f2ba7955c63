// Package assign turns a release, the endpoints of the moment and one workload into the configuration of that
// workload's sidecar: Config(View, Snapshot, Workload) is a pure function. It also says how two configurations differ.
// Package push sends what it computes; it must not import push, know of streams or read a clock.
//
// A sidecar gets the settings, the index of every namespace, what its own service enforces, and, of the services that
// its operator declared, that policy lets it call, or that it asked for and may call, how to call them and where they
// are; with the backends that their routes name, one step on, since requests really go there. Every object exists once
// per release and is shared by all who are sent it.
package assign

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/controlplane/inventory"
	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
	"github.com/heddle-mesh/heddle/schema/release"
)

// View is a release made ready to be handed out: every object encoded once, and who may call what. It is never written
// again.
type View struct {
	Epoch  uint64
	Commit string
	Mesh   *mesh.Mesh

	origins  mesh.Origins
	common   []*proxyapi.Object // settings and indexes, sorted as objects are
	inbound  map[mesh.ServiceName]*proxyapi.Object
	outbound map[mesh.ServiceName]*proxyapi.Object
	origin   map[mesh.ServiceName]*proxyapi.Object
	backends map[mesh.ServiceName][]mesh.ServiceName
	// open are the services that a caller may call whom no rule of theirs names; named are, by identity, and by the
	// beginning or end of identities ("spiffe://mesh.example/ns/shop/", "/sa/web"), those with a rule that names it,
	// which therefore are judged by themselves.
	open  []mesh.ServiceName
	named map[string][]mesh.ServiceName
}

// Input is a release with the endpoints of one time that go with it: what all configurations of that time follow from.
// The two are published together, so that no sidecar is ever sent the routes of one release and the workloads of another.
// It is never written again. View is nil before the first release.
type Input struct {
	View      *View
	Endpoints *inventory.Snapshot
}

// NewView encodes a release. Objects that are as in the previous view (nil: there is none) are shared with it, so that
// a commit which changes one service costs the memory of one service.
func NewView(r *release.Record, m *mesh.Mesh, origins mesh.Origins, previous *View) *View {
	v := &View{
		Epoch: r.Epoch, Commit: r.Commit(), Mesh: m, origins: origins,
		inbound:  make(map[mesh.ServiceName]*proxyapi.Object, len(m.Inbound)),
		outbound: make(map[mesh.ServiceName]*proxyapi.Object, len(m.Outbound)),
		origin:   make(map[mesh.ServiceName]*proxyapi.Object, len(m.Inbound)),
		backends: map[mesh.ServiceName][]mesh.ServiceName{},
		named:    map[string][]mesh.ServiceName{},
	}
	old := previous
	if old == nil {
		old = &View{}
	}
	before := map[string]*proxyapi.Object{}
	for _, o := range old.common {
		before[o.Kind+"/"+o.Name] = o
	}
	v.common = append(v.common, wire(mesh.NewObject(mesh.KindSettings, "mesh", m.Settings), before[string(mesh.KindSettings)+"/mesh"]))
	for _, ix := range m.Indexes() {
		v.common = append(v.common, wire(mesh.NewObject(mesh.KindIndex, ix.Namespace, ix), before[string(mesh.KindIndex)+"/"+ix.Namespace]))
	}
	by := map[mesh.ServiceName]mesh.Origins{}
	for id, pos := range origins {
		n := serviceOf(id)
		if by[n] == nil {
			by[n] = mesh.Origins{}
		}
		by[n][id] = pos
	}
	for n, o := range by {
		v.origin[n] = wire(mesh.NewObject(mesh.KindOrigin, string(n), o), old.origin[n])
	}
	for i := range m.Inbound {
		in := &m.Inbound[i]
		v.inbound[in.Service] = wire(mesh.NewObject(mesh.KindInbound, string(in.Service), in), old.inbound[in.Service])
		v.callers(in)
	}
	for i := range m.Outbound {
		o := &m.Outbound[i]
		v.outbound[o.Service] = wire(mesh.NewObject(mesh.KindOutbound, string(o.Service), o), old.outbound[o.Service])
		if bs := backends(o); len(bs) > 0 {
			v.backends[o.Service] = bs
		}
	}
	return v
}

// stranger is an identity that no rule names: who may call as it may call as anyone.
const stranger = "spiffe://heddle.invalid/stranger"

// callers notes who may call a service. An identity that none of its rules names is judged as the stranger is, so a
// release costs a judgement for each mention, not one for each pair of sidecar and service.
func (v *View) callers(in *mesh.Inbound) {
	if decide.MayCall(in, stranger) {
		v.open = append(v.open, in.Service)
	}
	for i := range in.Rules {
		for _, p := range in.Rules[i].From {
			key := p.Identity + p.Prefix + p.Suffix // one of them
			if key == "" {
				continue
			}
			if l := v.named[key]; len(l) == 0 || l[len(l)-1] != in.Service {
				v.named[key] = append(l, in.Service)
			}
		}
	}
}

// Callees are the services that an identity may call, sorted: exactly those for which decide.MayCall is true.
func (v *View) Callees(identity string) []mesh.ServiceName {
	named := v.naming(identity)
	var out []mesh.ServiceName
	for _, n := range v.open {
		if _, found := slices.BinarySearch(named, n); !found {
			out = append(out, n)
		}
	}
	for _, n := range named {
		if in, ok := v.Mesh.InboundOf(n); ok && decide.MayCall(in, identity) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// naming are the services with a rule that names an identity, or a beginning or an end of it: sorted.
func (v *View) naming(identity string) []mesh.ServiceName {
	lists := [][]mesh.ServiceName{v.named[identity]}
	rest := strings.TrimPrefix(identity, "spiffe://")
	for i := len(identity) - len(rest); i < len(identity); i++ {
		if identity[i] == '/' {
			lists = append(lists, v.named[identity[:i+1]], v.named[identity[i:]])
		}
	}
	all := slices.Concat(lists...)
	slices.Sort(all)
	return slices.Compact(all)
}

// reaches reports whether an identity may call one of the services that the routes of a service name.
func (v *View) reaches(n mesh.ServiceName, identity string) bool {
	return slices.ContainsFunc(v.backends[n], func(b mesh.ServiceName) bool {
		in, ok := v.Mesh.InboundOf(b)
		return ok && decide.MayCall(in, identity)
	})
}

// serviceOf is the service that a rule, route or default id belongs to: its first two path elements.
func serviceOf(id string) mesh.ServiceName {
	ns, rest, _ := strings.Cut(id, "/")
	local, _, _ := strings.Cut(rest, "/")
	return mesh.Name(ns, local)
}

func backends(o *mesh.Outbound) []mesh.ServiceName {
	var out []mesh.ServiceName
	for i := range o.Routes {
		for _, b := range o.Routes[i].Backends {
			if b.Service != o.Service {
				out = append(out, b.Service)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func wire(o mesh.Object, before *proxyapi.Object) *proxyapi.Object {
	if before != nil && string(before.Hash) == string(o.Hash[:]) {
		return before
	}
	return &proxyapi.Object{Kind: string(o.Kind), Name: o.Name, Hash: o.Hash[:], Bytes: o.Bytes}
}

// Workload is what a configuration depends on of a sidecar.
type Workload struct {
	Service  mesh.ServiceName
	Identity string
	// Declared destinations are served even where no rule allows the call: the operator said that they are wanted, and
	// the callee's own sidecar denies with the line that decides. Subscribed ones are served where policy allows.
	Declared, Subscribed []mesh.ServiceName
	Capabilities         []mesh.Capability
}

// Config is all that one sidecar is to hold. It is never written again.
type Config struct {
	View *View
	// Objects are sorted by kind and name.
	Objects []*proxyapi.Object
	// State is proxyapi.StateHash of Objects.
	State []byte
	// Refused are the destinations that were asked for and are not served, sorted.
	Refused []Refused
	// Lacks are the capabilities that the objects need and the sidecar does not have, sorted; with any, the
	// configuration must not be sent.
	Lacks []mesh.Capability
}

// Refused says why a destination is not served.
type Refused struct {
	Service mesh.ServiceName
	Unknown bool   // else it is denied, by
	Rule    string // this rule,
	Origin  string // written here
}

// New computes the configuration of a workload.
func New(v *View, endpoints *inventory.Snapshot, w *Workload) *Config {
	c := &Config{View: v}
	callees := v.Callees(w.Identity)
	served := make(map[mesh.ServiceName]bool, 2*len(callees))
	serve := func(n mesh.ServiceName) {
		served[n] = true
		for _, b := range v.backends[n] {
			served[b] = true
		}
	}
	for _, n := range callees {
		serve(n)
	}
	refused := map[mesh.ServiceName]Refused{}
	for _, n := range w.Declared {
		if _, ok := v.outbound[n]; ok {
			serve(n)
		} else {
			refused[n] = Refused{Service: n, Unknown: true}
		}
	}
	for _, n := range w.Subscribed {
		in, ok := v.Mesh.InboundOf(n)
		_, called := v.outbound[n]
		switch {
		case !ok || !called:
			refused[n] = Refused{Service: n, Unknown: true}
		case served[n]:
		case v.reaches(n, w.Identity): // the service refuses, one that its routes name does not: each judges for itself
			serve(n)
		default: // not among the callees, so MayCall is false
			refused[n] = v.denial(in, w.Identity)
		}
	}

	lacks := map[mesh.Capability]bool{}
	need := func(needs []mesh.Capability) {
		for _, k := range needs {
			if !slices.Contains(w.Capabilities, k) {
				lacks[k] = true
			}
		}
	}
	need(v.Mesh.Settings.Needs)
	c.Objects = append(make([]*proxyapi.Object, 0, len(v.common)+3*len(served)+2), v.common...)
	if in, ok := v.Mesh.InboundOf(w.Service); ok {
		c.Objects = append(c.Objects, v.inbound[w.Service])
		need(in.Needs)
		if o := v.origin[w.Service]; o != nil && !served[w.Service] {
			c.Objects = append(c.Objects, o)
		}
	}
	for n := range served {
		out, ok := v.Mesh.OutboundOf(n)
		if !ok {
			continue // a backend that the mesh does not have; the compiler refuses such a mesh
		}
		need(out.Needs)
		c.Objects = append(c.Objects, v.outbound[n], endpoints.Service(n).Object)
		if o := v.origin[n]; o != nil {
			c.Objects = append(c.Objects, o)
		}
	}
	slices.SortFunc(c.Objects, compare)
	c.State = State(c.Objects)
	c.Lacks = slices.Sorted(maps.Keys(lacks))
	c.Refused = slices.SortedFunc(maps.Values(refused), func(a, b Refused) int { return cmp.Compare(a.Service, b.Service) })
	return c
}

// denial names the rule by which a peer may do nothing on a service.
func (v *View) denial(in *mesh.Inbound, identity string) Refused {
	r := Refused{Service: in.Service}
	for i := range in.Ports {
		if verdict := decide.Authorize(in, &in.Ports[i], &decide.Request{Peer: identity}); !verdict.Allowed {
			r.Rule = verdict.Rule
			break
		}
	}
	if pos, ok := v.Origin(r.Rule); ok {
		r.Origin = pos.Short()
	}
	return r
}

// Origin says where a rule, route or default was written.
func (v *View) Origin(id string) (diag.Pos, bool) {
	pos, ok := v.origins[id]
	return pos, ok
}

func compare(a, b *proxyapi.Object) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
}

// State is the state hash of a sidecar that holds exactly these objects.
func State(objects []*proxyapi.Object) []byte { return proxyapi.StateHash(Versions(objects)) }

// Versions are the kinds, names and hashes of objects.
func Versions(objects []*proxyapi.Object) []*proxyapi.ObjectVersion {
	out := make([]*proxyapi.ObjectVersion, len(objects))
	for i, o := range objects {
		out[i] = &proxyapi.ObjectVersion{Kind: o.Kind, Name: o.Name, Hash: o.Hash}
	}
	return out
}

// Diff is what turns a sidecar that holds have into one that holds want: both sorted by kind and name. have is known
// by its hashes only, since after a reconnect nothing else is known of it.
func Diff(have []*proxyapi.ObjectVersion, want []*proxyapi.Object) (upserts []*proxyapi.Object, deletes []*proxyapi.ObjectVersion) {
	i := 0
	for _, o := range want {
		for i < len(have) && less(have[i], o) {
			deletes = append(deletes, have[i])
			i++
		}
		if i < len(have) && have[i].Kind == o.Kind && have[i].Name == o.Name {
			if string(have[i].Hash) != string(o.Hash) {
				upserts = append(upserts, o)
			}
			i++
			continue
		}
		upserts = append(upserts, o)
	}
	return upserts, append(deletes, have[i:]...)
}

func less(v *proxyapi.ObjectVersion, o *proxyapi.Object) bool {
	return cmp.Or(cmp.Compare(v.Kind, o.Kind), cmp.Compare(v.Name, o.Name)) < 0
}
