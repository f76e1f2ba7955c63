// Package reach answers questions about all calls at once. It cuts the calls to one port of one service into finitely
// many classes by the rules and routes that can influence them: within a class no rule, no route and no condition can
// tell two calls apart, so one representative judged by package decide stands for all of them. What is found so holds of
// every canonical request of every caller, and what is found comes with a concrete call that shows it.
//
// A class is a combination of one value for each of: the caller, whether a request is seen, path, method, headers,
// parameters of the query, tokens' claims, server name, address, and the time with respect to rules that end. Regular
// expressions of routes are the one thing that is not cut exactly: they get sample strings and, for proofs, stand as
// conditions that may or may not hold on their own ([Abstract]).
//
// Package plan compares two meshes by it; [Prove] proves invariants. It knows nothing of CUE or Git, does no I/O and
// looks at no clock; the work is bounded by a count of classes, never by time, so that results are the same everywhere.
package reach

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// Budget is how many steps the calls to one port may take, and Total those of all ports that one question is about, if
// the caller does not say otherwise. A step is the work of judging one class of calls where little is said of a port,
// about a microsecond; it takes more of them the more is said. Steps are counted and not timed, so that results are the
// same everywhere.
const (
	Budget = 2_000_000
	Total  = 8 * Budget
)

// ErrBudget says that it would take more steps than there may be.
var ErrBudget = errors.New("too many classes of calls to judge them all")

// Space is the calls to one port of one service, cut into classes.
type Space struct {
	Service mesh.ServiceName
	Port    string
	// Peers are the classes of callers.
	Peers []Peer

	conds    []cond
	patterns []mesh.PathMatch // whose outcomes tell paths apart
	paths    []string
	pathSig  map[string]int
	pathBits []set // of conds whose path holds
	methods  []string
	other    int // the index of the method that stands for all that no condition names
	methBits []set
	dims     []dim
	slots    map[string]int // of dims, by kind and name
	http     bool           // requests can be seen
	callers  *Callers
	sides    int     // of the question's meshes
	words    []named // of the patterns, once somebody asks
	budget   int     // in parts
	spent    int     // in parts
	overflow bool
	partly   bool // only classes that a condition concerns which changed
}

// Question is what a space is about.
type Question struct {
	Service mesh.ServiceName
	Port    string
	// Meshes are those in which calls will be judged: one, or the two sides of a change.
	Meshes []*mesh.Mesh
	// Callers are the identities that Meshes declare, in that order; see [NewCallers].
	Callers *Callers
	// Routed says that callers' routes and the backends behind them count, not only the service's own door.
	Routed bool
	// Now is the earliest time of interest.
	Now time.Time
	// Budget is in steps; 0 for [Budget].
	Budget int
	// Flow cuts along an invariant's borders too.
	Flow *mesh.Flow
	// Differences says that only calls which the two meshes may judge or route differently are wanted: Each passes by
	// classes that no rule and no match concerns which is on one side only.
	Differences bool
}

// cond is a conjunction of conditions somewhere in a rule or a match; what it asks for makes the cuts.
type cond struct {
	from      []mesh.Peer // nil: anybody
	namespace string      // of the caller, for consumer routes; "": any
	methods   []string
	paths     [][]mesh.PathMatch // each of the lists must hold by one of its elements
	loose     bool               // it judges a path that was rewritten: paths do not bound where it counts
	headers   []mesh.HeaderMatch
	lists     bool // one of several values of a header may be the one
	query     []mesh.HeaderMatch
	networks  []netip.Prefix
	sni       []string
	jwt       *mesh.JWTMatch
	until     time.Time
	dims      set // which dimensions it looks at

	side, group int    // of Question.Meshes, and which list of rules or matches it is of
	key         string // all that the rule or the match says, and where it leads
	changed     bool
}

// set is a set of small numbers.
type set []uint64

func newSet(n int) set       { return make(set, (n+63)/64) }
func (s set) add(i int)      { s[i/64] |= 1 << (i % 64) }
func (s set) has(i int) bool { return s[i/64]>>(i%64)&1 == 1 }
func (s set) meets(other set) bool {
	for i := range other {
		if s[i]&other[i] != 0 {
			return true
		}
	}
	return false
}
func (s set) addAll(other set) {
	for i := range other {
		s[i] |= other[i]
	}
}
func (s set) key() string {
	b := make([]byte, 0, 8*len(s))
	for _, w := range s {
		for k := range 8 {
			b = append(b, byte(w>>(8*k)))
		}
	}
	return string(b)
}
func (s set) each(f func(i int)) {
	for k, w := range s {
		for w != 0 {
			f(64*k + bits.TrailingZeros64(w))
			w &= w - 1
		}
	}
}

// parts are the parts of a step in which work is counted.
const parts = 16

// Spent is how many steps were taken so far.
func (s *Space) Spent() int { return s.spent/parts + 1 }

// spend counts parts of steps, and reports whether they may still be taken.
func (s *Space) spend(n int) bool {
	if s.overflow = s.overflow || n > s.budget-s.spent; s.overflow {
		return false // and what is not done costs nothing
	}
	s.spent += n
	return true
}

// New cuts the calls to a port. It returns [ErrBudget] where a single dimension is already too large.
func New(q *Question) (*Space, error) {
	s := &Space{Service: q.Service, Port: q.Port, callers: q.Callers, sides: len(q.Meshes), budget: parts * cmp.Or(q.Budget, Budget), slots: map[string]int{}}
	g := &gatherer{s: s, port: q.Port}
	for side, m := range q.Meshes {
		g.side = side
		if m == nil {
			continue
		}
		if in, ok := m.InboundOf(q.Service); ok {
			if p, ok := in.Port(q.Port); ok {
				s.http = s.http || !bytesOnly(p.Protocol)
			}
			g.door(in, q.Port, nil)
		}
		if out, ok := m.OutboundOf(q.Service); ok && q.Routed {
			g.routes(m, out)
		}
	}
	if q.Differences && len(q.Meshes) == 2 {
		s.partly = g.sameOtherwise(q) && !(len(g.spaces) > 0 && q.Callers.Moved())
		markChanged(s.conds)
	}
	if f := q.Flow; f != nil {
		c := cond{from: f.From, methods: f.To.Methods}
		if len(f.To.Paths) > 0 {
			c.paths = [][]mesh.PathMatch{f.To.Paths}
		}
		for _, p := range f.From {
			// A flow's "unauthenticated" means those without an identity only, which are a class of their own anyway.
			if p.Unauthenticated {
				c.from = nil
			}
		}
		g.add(c)
		for _, p := range f.From {
			if !p.Unauthenticated {
				g.add(cond{from: []mesh.Peer{p}})
			}
		}
	}
	for _, cut := range []func(){
		func() { s.cutPaths(g) }, s.cutMethods, func() { s.cutRest(g, q.Now) }, func() { s.cutPeers(g) },
	} {
		if cut(); s.overflow {
			return s, ErrBudget
		}
	}
	return s, nil
}

// gatherer collects conditions.
type gatherer struct {
	s      *Space
	port   string
	extra  []mesh.PathMatch    // patterns of backends, pulled back through rewrites
	added  map[string][]string // values that filters add to a header
	spaces []string            // namespaces with routes of their own
	side   int
	groups map[string]int
	doors  map[[2]string]bool // services and ports whose rules were taken
	list   int                // the group of the list at hand
	says   string             // the key of the rule or match at hand
}

func (g *gatherer) add(c cond) {
	c.side, c.group, c.key = g.side, g.list, g.says
	g.s.conds = append(g.s.conds, c)
}

// in begins a list of rules or matches, and returns how to go back to the one before.
func (g *gatherer) in(name string) (back func()) {
	if g.groups == nil {
		g.groups = map[string]int{}
	}
	if _, ok := g.groups[name]; !ok {
		g.groups[name] = len(g.groups)
	}
	list, says := g.list, g.says
	g.list, g.says = g.groups[name], ""
	return func() { g.list, g.says = list, says }
}

// door takes the conditions of a service's own rules on one of its ports. pull, if any, are the rewrites of paths on the
// way there.
func (g *gatherer) door(in *mesh.Inbound, port string, pull []rewrite) {
	p, ok := in.Port(port)
	if !ok {
		return
	}
	if p.Default == mesh.ClusterAuthenticated || p.Default == mesh.ClusterUnauthenticated {
		g.add(cond{networks: in.ClusterNetworks})
	}
	if g.doors == nil {
		g.doors = map[[2]string]bool{}
	}
	g.doors[[2]string{string(in.Service), port}] = true
	back := g.in("rules of " + string(in.Service) + ":" + port)
	defer func() { back() }()
	raw, routed, denied := bytesOnly(p.Protocol), false, false
	for i := range in.Rules {
		r := &in.Rules[i]
		if r.Action == mesh.AuditRule || r.Shadow || !decide.OnPort(r, port) {
			continue
		}
		g.says = string(mesh.Canonical(r))
		c := cond{from: r.From, sni: r.SNI, until: r.Until, loose: len(pull) > 0, lists: r.Action == mesh.DenyRule}
		for _, n := range r.Networks {
			c.networks = append(append(c.networks, n.CIDR), n.Except...)
		}
		if !raw { // where no request is seen, nothing can be said of it
			c.methods, c.headers, c.jwt = r.Methods, r.Headers, r.JWT
			if len(r.Paths) > 0 {
				c.paths = [][]mesh.PathMatch{r.Paths}
				g.pullBack(r.Paths, pull)
			}
			routed = routed || len(r.Routes) > 0
			denied = denied || len(r.Routes) > 0 && r.Action == mesh.DenyRule
		}
		g.add(c)
	}
	if routed { // a rule about a route asks which of all routes takes the request
		back()
		back = g.in("matches of " + string(in.Service) + ":" + port)
		for i := range p.Matches {
			g.says = string(mesh.Canonical(p.Matches[i]))
			g.add(g.with(cond{loose: len(pull) > 0, lists: denied}, &p.Matches[i], pull))
		}
	}
}

// sameOtherwise reports whether all that rules and matches do not say is the same in two meshes. Then a call that no rule
// and no match concerns which only one of them has is judged and routed alike: verdicts do not depend on the order of
// rules, and of matches that both have in one order the first that takes the call is the same.
func (g *gatherer) sameOtherwise(q *Question) bool {
	g.doors[[2]string{string(q.Service), q.Port}] = true
	for d := range g.doors {
		if doorOf(q.Meshes[0], d) != doorOf(q.Meshes[1], d) {
			return false
		}
	}
	return !q.Routed || outsideOf(q.Meshes[0], q) == outsideOf(q.Meshes[1], q)
}

// doorOf is what decides about a port besides its rules; whether there is any enforced allow rule is part of that, and
// whether there is any that asks about requests, where bytes that are none are then not let in.
func doorOf(m *mesh.Mesh, d [2]string) string {
	in, ok := m.InboundOf(mesh.ServiceName(d[0]))
	if !ok {
		return ""
	}
	p, ok := in.Port(d[1])
	if !ok {
		return ""
	}
	port := *p
	port.Matches, port.RateLimit = nil, nil
	guarded, asks := false, false
	for i := range in.Rules {
		if r := &in.Rules[i]; r.Action != mesh.AuditRule && !r.Shadow && decide.OnPort(r, p.Name) {
			guarded = guarded || r.Action == mesh.Allow
			asks = asks || decide.AboutRequests(r)
		}
	}
	return fmt.Sprint(string(mesh.Canonical(port)), guarded, asks, in.ClusterNetworks)
}

// outsideOf is what decides about calls to a port besides matches and where they lead.
func outsideOf(m *mesh.Mesh, q *Question) string {
	out, ok := m.OutboundOf(q.Service)
	if !ok {
		return ""
	}
	var parts []any
	port := func(ns string, p *mesh.OutboundPort) {
		var others []mesh.Route // those that take connections
		for i := range p.Hosts {
			if r, ok := out.Route(p.Hosts[i].Route); ok {
				others = append(others, *r)
			}
		}
		if r, ok := out.Route(p.Connections); ok {
			others = append(others, *r)
		}
		parts = append(parts, ns, p.Protocol, len(p.Matches) > 0, p.Hosts, p.Connections, others)
	}
	if p, ok := out.Port(q.Port); ok {
		port("", p)
	}
	for i := range out.Consumers {
		for j := range out.Consumers[i].Ports {
			if p := &out.Consumers[i].Ports[j]; p.Name == q.Port {
				port(out.Consumers[i].Namespace, p)
			}
		}
	}
	return string(mesh.Canonical(parts))
}

// markChanged marks the conditions that one side only has: of each list those between what both begin with and what both
// end with.
func markChanged(conds []cond) {
	type list struct{ at [2][]int }
	lists := map[int]*list{}
	for i := range conds {
		c := &conds[i]
		if lists[c.group] == nil {
			lists[c.group] = &list{}
		}
		lists[c.group].at[c.side] = append(lists[c.group].at[c.side], i)
		c.changed = true
	}
	for _, l := range lists {
		a, b := l.at[0], l.at[1]
		for len(a) > 0 && len(b) > 0 && conds[a[0]].key == conds[b[0]].key {
			conds[a[0]].changed, conds[b[0]].changed = false, false
			a, b = a[1:], b[1:]
		}
		for len(a) > 0 && len(b) > 0 && conds[a[len(a)-1]].key == conds[b[len(b)-1]].key {
			conds[a[len(a)-1]].changed, conds[b[len(b)-1]].changed = false, false
			a, b = a[:len(a)-1], b[:len(b)-1]
		}
	}
}

// bytesOnly reports whether a port's sidecar looks into nothing.
func bytesOnly(p mesh.Protocol) bool { return p == mesh.TCP || p == mesh.Opaque || p == mesh.TLS }

// with is a condition that also asks for what a match does.
func (g *gatherer) with(c cond, m *mesh.Match, pull []rewrite) cond {
	c.headers, c.query = m.Headers, m.Query
	if m.Method != "" {
		c.methods = []string{m.Method}
	}
	if m.Path != (mesh.PathMatch{}) {
		one := []mesh.PathMatch{m.Path}
		c.paths = [][]mesh.PathMatch{one}
		g.pullBack(one, pull)
	}
	return c
}

// routes takes the conditions of a service's routes, and of the doors of all backends behind them.
func (g *gatherer) routes(m *mesh.Mesh, out *mesh.Outbound) {
	take := func(ns string, p *mesh.OutboundPort) {
		defer g.in("routes of " + ns)()
		used := map[string][]*mesh.Match{}
		routes := map[string]string{}
		for i := range p.Matches {
			match := &p.Matches[i]
			if _, ok := routes[match.Route]; !ok {
				if r, ok := out.Route(match.Route); ok {
					routes[match.Route] = string(mesh.Canonical(r))
				}
			}
			g.says = string(mesh.Canonical(match)) + routes[match.Route]
			g.add(g.with(cond{namespace: ns}, match, nil))
			used[match.Route] = append(used[match.Route], match)
		}
		for _, h := range p.Hosts {
			if h.Name != "" {
				g.add(cond{namespace: ns, sni: []string{h.Name}})
			}
			used[h.Route] = append(used[h.Route], nil)
		}
		if p.Connections != "" {
			used[p.Connections] = append(used[p.Connections], nil)
		}
		for _, id := range sortedKeys(used) {
			if r, ok := out.Route(id); ok {
				g.backends(m, r, used[id])
			}
		}
	}
	if p, ok := out.Port(g.port); ok {
		take("", p)
	}
	for i := range out.Consumers {
		c := &out.Consumers[i]
		for j := range c.Ports {
			if c.Ports[j].Name == g.port {
				g.spaces = append(g.spaces, c.Namespace)
				g.add(cond{namespace: c.Namespace})
				take(c.Namespace, &c.Ports[j])
			}
		}
	}
}

// backends takes the doors behind a route.
func (g *gatherer) backends(m *mesh.Mesh, r *mesh.Route, matches []*mesh.Match) {
	behind := func(service mesh.ServiceName, port string, pull []rewrite) {
		if in, ok := m.InboundOf(service); ok {
			g.door(in, port, pull)
		}
	}
	pull := g.edits(nil, r.Filters, matches)
	for _, f := range r.Filters {
		if f.Mirror != nil {
			behind(f.Mirror.Service, f.Mirror.Port, pull)
		}
	}
	for i := range r.Backends {
		b := &r.Backends[i]
		own := g.edits(pull, b.Filters, matches)
		behind(b.Service, b.Port, own)
		for _, f := range b.Filters {
			if f.Mirror != nil {
				behind(f.Mirror.Service, f.Mirror.Port, own)
			}
		}
	}
}

// edits is what filters do to a path, after what was done before, and notes the headers that they add to.
func (g *gatherer) edits(before []rewrite, filters []mesh.Filter, matches []*mesh.Match) []rewrite {
	out := slices.Clone(before)
	for _, f := range filters {
		if f.CORS != nil { // it answers what only asks whether another site may call (Fetch standard, 3.2.2)
			g.add(cond{methods: []string{"OPTIONS"}, headers: []mesh.HeaderMatch{
				{Name: "origin", Present: true}, {Name: "access-control-request-method", Present: true}}})
		}
		if f.RequestHeaders != nil {
			for _, h := range f.RequestHeaders.Add {
				if g.added == nil {
					g.added = map[string][]string{}
				}
				g.added[h.Name] = append(g.added[h.Name], h.Value)
			}
		}
		if f.Rewrite == nil || f.Rewrite.Path == (mesh.PathEdit{}) {
			continue
		}
		earlier := slices.Clone(out)
		for _, m := range matches {
			from := ""
			if m != nil {
				from = strings.TrimSuffix(m.Path.Prefix, "/")
			}
			e := rewrite{from: from, to: strings.TrimSuffix(f.Rewrite.Path.Prefix, "/"), full: f.Rewrite.Path.Full}
			out = append(out, e)
			// One edit after another: what the second reads is what the first wrote.
			for _, first := range earlier {
				e.first = &first
				out = append(out, e)
			}
		}
	}
	return out
}

// slot finds a dimension.
func (s *Space) slot(kind dimKind, name string) (int, bool) {
	i, ok := s.slots[string(kind)+"\x00"+name]
	return i, ok
}

// Cell is one class of calls, with its representative. It is reused from one to the next.
type Cell struct {
	// Call is the representative; its functions look at the cell, so they are good only until the next one.
	Call decide.Call
	Peer int // of Space.Peers

	path, method int
	vals         []int // of each dimension; -1: nothing looks at it
	s            *Space
}

// Key names the class within its space.
func (c *Cell) Key() Key {
	k := Key{Peer: c.Peer, Path: -1, Method: -1}
	if c.Call.HTTP {
		k.Path, k.Method = c.path, c.method
	}
	b := make([]byte, 0, len(c.vals))
	for _, v := range c.vals {
		b = append(b, byte(v+1), byte((v+1)>>8))
	}
	k.Rest = string(b)
	return k
}

// Key is a comparable name of a class.
type Key struct {
	Peer, Path, Method int
	Rest               string
}

// Better reports whether a class makes a better example than another of the same space: a request rather than a
// connection, and then the one that comes first.
func (k *Key) Better(other *Key) bool {
	if (k.Path < 0) != (other.Path < 0) {
		return k.Path >= 0
	}
	return cmp.Or(cmp.Compare(k.Peer, other.Peer), cmp.Compare(k.Path, other.Path), cmp.Compare(k.Method, other.Method), cmp.Compare(k.Rest, other.Rest)) < 0
}

// Each yields one cell for each class until yield says no. It returns [ErrBudget], at the first class that is too many.
func (s *Space) Each(yield func(*Cell) bool) error {
	if s.overflow {
		return ErrBudget
	}
	c := &Cell{s: s, vals: make([]int, len(s.dims))}
	c.Call.Service, c.Call.Port = s.Service, s.Port
	live, changed, mask := newSet(len(s.conds)), newSet(len(s.conds)), newSet(len(s.dims))
	for i := range s.conds {
		if s.conds[i].changed || !s.partly {
			changed.add(i)
		}
	}
	visit := func(http bool) bool {
		if !s.spend(1 + len(s.conds)/1024) {
			return false
		}
		if s.partly && !live.meets(changed) {
			return true
		}
		clear(mask)
		live.each(func(i int) { mask.addAll(s.conds[i].dims) })
		var order []int
		total := 1
		for d := range s.dims {
			c.vals[d] = -1
			if mask.has(d) && (http || s.dims[d].kind.raw()) {
				order = append(order, d)
				if total *= len(s.dims[d].vals); total > s.budget {
					return s.spend(total)
				}
			}
		}
		if !s.spend(total * (parts + len(s.conds)/8)) {
			return false
		}
		c.Call.HTTP = http
		return c.walk(order, yield)
	}
	stopped := false
	inner := yield
	yield = func(c *Cell) bool {
		if !inner(c) {
			stopped = true
		}
		return !stopped
	}
	for p := range s.Peers {
		c.Peer = p
		c.Call.Peer, c.Call.Namespace = s.Peers[p].ID, s.Peers[p].Namespace
		copy(live, s.Peers[p].bits)
		c.Call.Method, c.Call.Path = "", ""
		if !visit(false) {
			return over(stopped)
		}
		if !s.http {
			continue
		}
		for i, path := range s.paths {
			for j, method := range s.methods {
				if path == "*" { // only OPTIONS may ask so (RFC 9112, 3.2.4)
					if j != s.optionsAt() {
						continue
					}
				}
				for w := range live {
					live[w] = s.Peers[p].bits[w] & s.pathBits[i][w] & s.methBits[j][w]
				}
				c.path, c.method = i, j
				c.Call.Path, c.Call.Method = path, method
				if path == "*" {
					c.Call.Method = "OPTIONS"
				}
				if !visit(true) {
					return over(stopped)
				}
			}
		}
	}
	return nil
}

func over(stopped bool) error {
	if stopped {
		return nil
	}
	return ErrBudget
}

// optionsAt is the method that "*" is asked with: OPTIONS, or the one that stands for it.
func (s *Space) optionsAt() int {
	if i := slices.Index(s.methods, "OPTIONS"); i >= 0 {
		return i
	}
	return s.other
}

// walk goes through the product of some dimensions.
func (c *Cell) walk(order []int, yield func(*Cell) bool) bool {
	if len(order) == 0 {
		c.fill()
		return yield(c)
	}
	d := order[0]
	n := len(c.s.dims[d].vals)
	if at := c.s.dims[d].token; at >= 0 && c.vals[at] == 0 {
		n = 1 // without a token there are no claims
	}
	for v := range n {
		c.vals[d] = v
		if !c.walk(order[1:], yield) {
			return false
		}
	}
	return true
}

// fill lets the call say what the values are.
func (c *Cell) fill() {
	c.Call.Addr, c.Call.SNI, c.Call.Now = netip.Addr{}, "", time.Time{}
	for d, v := range c.vals {
		dim := &c.s.dims[d]
		if v < 0 {
			if dim.kind == dimTime || dim.kind == dimAddr {
				v = 0 // nothing looks at it; but a time is always the present one, and an address always there
			} else {
				continue
			}
		}
		val := &dim.vals[v]
		switch dim.kind {
		case dimTime:
			c.Call.Now = val.at
		case dimAddr:
			c.Call.Addr = val.addr
		case dimSNI:
			c.Call.SNI = val.text
		}
	}
	if !c.Call.HTTP {
		c.Call.Header, c.Call.Query, c.Call.Claim = nil, nil, nil
		return
	}
	c.Call.Header, c.Call.Query, c.Call.Claim = c.header, c.query, c.claim
}

func (c *Cell) header(name string) (string, bool) { return c.field(dimHeader, name) }
func (c *Cell) query(name string) (string, bool)  { return c.field(dimQuery, name) }

func (c *Cell) field(kind dimKind, name string) (string, bool) {
	for d, v := range c.vals {
		if dim := &c.s.dims[d]; dim.kind == kind && dim.name == name && v >= 0 {
			return dim.vals[v].text, dim.vals[v].there
		}
	}
	return "", false
}

func (c *Cell) claim(issuer, claim string) ([]string, bool) {
	for d, v := range c.vals {
		dim := &c.s.dims[d]
		if dim.issuer != issuer || v < 0 {
			continue
		}
		switch {
		case dim.kind == dimToken && (!dim.vals[v].there || claim == ""):
			return nil, dim.vals[v].there
		case dim.kind == dimClaim && dim.name == claim:
			return dim.vals[v].list, dim.vals[v].there
		}
	}
	return nil, false
}

// Witness is the cell's representative as a value of its own.
func (c *Cell) Witness() *Witness {
	w := &Witness{From: "-", Identity: c.Call.Peer, Namespace: c.Call.Namespace, To: c.Call.Service, Port: c.Call.Port, HTTP: c.Call.HTTP,
		Method: c.Call.Method, Path: c.Call.Path, Address: c.Call.Addr, SNI: c.Call.SNI, At: c.Call.Now,
		present: c.vals[c.s.slots[string(dimTime)+"\x00"]] <= 0 && c.Call.Now.Equal(c.s.dims[0].vals[0].at)}
	if c.Call.Peer != "" {
		w.From = c.s.callers.Name(c.Call.Peer)
	}
	if !w.HTTP {
		return w
	}
	put := func(m *map[string]string, k, v string) {
		if *m == nil {
			*m = map[string]string{}
		}
		(*m)[k] = v
	}
	for d, v := range c.vals {
		dim := &c.s.dims[d]
		if v < 0 || !dim.vals[v].there {
			continue
		}
		switch dim.kind {
		case dimHeader:
			put(&w.Headers, dim.name, dim.vals[v].text)
		case dimQuery:
			put(&w.Query, dim.name, dim.vals[v].text)
		case dimToken, dimClaim:
			if w.Tokens == nil {
				w.Tokens = map[string]map[string][]string{}
			}
			if w.Tokens[dim.issuer] == nil {
				w.Tokens[dim.issuer] = map[string][]string{}
			}
			if dim.kind == dimClaim {
				w.Tokens[dim.issuer][dim.name] = dim.vals[v].list
			}
		}
	}
	return w
}

// Classify finds the class of a call. It is the proof's other half: a call whose class is not in the space, or whose
// class is judged otherwise than the call itself, would be a hole.
func (s *Space) Classify(c *decide.Call) (Key, error) {
	c = &decide.Call{Request: c.Request, Service: c.Service, Port: c.Port, Namespace: c.Namespace}
	c.HTTP = c.HTTP && s.http
	cell := &Cell{s: s, Call: *c, vals: make([]int, len(s.dims))}
	p, ok := s.peerOf(c.Peer, c.Namespace)
	if !ok {
		return Key{}, fmt.Errorf("no class for the caller %q", c.Peer)
	}
	cell.Peer = p
	live := slices.Clone(s.Peers[p].bits)
	if c.HTTP {
		if cell.path, ok = s.pathSig[s.pathKey(c.Path)]; !ok {
			return Key{}, fmt.Errorf("no class for the path %q", c.Path)
		}
		cell.method = slices.Index(s.methods, c.Method)
		if cell.method < 0 {
			cell.method = s.other
		}
		if s.paths[cell.path] == "*" {
			cell.method = s.optionsAt()
		}
		for w := range live {
			live[w] &= s.pathBits[cell.path][w] & s.methBits[cell.method][w]
		}
	}
	mask := newSet(len(s.dims))
	live.each(func(i int) { mask.addAll(s.conds[i].dims) })
	for d := range s.dims {
		dim := &s.dims[d]
		cell.vals[d] = -1
		if !mask.has(d) || !c.HTTP && !dim.kind.raw() {
			continue
		}
		if dim.token >= 0 && cell.vals[dim.token] == 0 {
			cell.vals[d] = 0
			continue
		}
		v, ok := dim.index[dim.keyOf(c)]
		if !ok {
			return Key{}, fmt.Errorf("no class for the %s %s", dim.kind, dim.name)
		}
		cell.vals[d] = v
	}
	return cell.Key(), nil
}

// Regular reports whether a regular expression takes part: then classes are only samples of what it tells apart.
func (s *Space) Regular() bool {
	for i := range s.conds {
		c := &s.conds[i]
		for _, list := range c.paths {
			for _, p := range list {
				if p.Regex != "" {
					return true
				}
			}
		}
		for _, h := range slices.Concat(c.headers, c.query) {
			if h.Regex != "" {
				return true
			}
		}
	}
	return false
}

// WitnessOf is the representative of a class.
func (s *Space) WitnessOf(k Key) *Witness {
	c := &Cell{s: s, Peer: k.Peer, path: k.Path, method: k.Method, vals: make([]int, len(s.dims))}
	c.Call.Service, c.Call.Port = s.Service, s.Port
	c.Call.Peer, c.Call.Namespace = s.Peers[k.Peer].ID, s.Peers[k.Peer].Namespace
	for d := range s.dims {
		c.vals[d] = int(k.Rest[2*d]) | int(k.Rest[2*d+1])<<8 - 1
	}
	if k.Path >= 0 {
		c.Call.HTTP, c.Call.Path, c.Call.Method = true, s.paths[k.Path], s.methods[k.Method]
		if c.Call.Path == "*" {
			c.Call.Method = "OPTIONS"
		}
	}
	c.fill()
	return c.Witness()
}
