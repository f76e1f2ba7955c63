package plan

import (
	"bytes"
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/reconciler/reach"
	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// comparison makes one plan.
type comparison struct {
	p             *Plan
	before, after *mesh.Mesh
	wasAt, isAt   mesh.Origins
	o             Options
	callers       *reach.Callers
	left          int // steps that all ports together may still take
	crowded       []crowd
	params        map[routes][]param
}

func newComparison(p *Plan, before, after *Side, o Options) *comparison {
	c := &comparison{p: p, before: before.Mesh, after: after.Mesh, left: reach.Total, wasAt: before.Origins, isAt: after.Origins, o: o, params: map[routes][]param{}}
	if c.before == nil {
		c.before = &mesh.Mesh{}
	}
	if c.after == nil {
		c.after = &mesh.Mesh{}
	}
	return c
}

// pair is a service on both sides; what is not there is nil.
type pair struct {
	name            mesh.ServiceName
	inWas, inIs     *mesh.Inbound
	outWas, outIs   *mesh.Outbound
	inDiff, outDiff bool
}

// same compares two values: as they stand, and where that fails by their canonical bytes, to which an empty list and none
// are one.
func same[T any](a, b *T) bool {
	if a == b || a == nil || b == nil {
		return a == b
	}
	return reflect.DeepEqual(a, b) || bytes.Equal(mesh.Canonical(a), mesh.Canonical(b))
}

func (c *comparison) run() {
	pairs := c.pairs()
	changed := map[mesh.ServiceName]bool{} // doors
	for i := range pairs {
		if p := &pairs[i]; p.inDiff {
			changed[p.name] = true
		}
	}
	c.callers = reach.NewCallers(c.before, c.after)
	for i := range pairs {
		p := &pairs[i]
		byMoved := c.callers.Moved() && p.outIs != nil && len(p.outIs.Consumers) > 0
		if p.inDiff || p.outDiff || byMoved || leadsTo(p.outIs, changed) || leadsTo(p.outWas, changed) {
			c.service(p)
		}
	}
	for _, q := range c.crowded {
		if !c.port(q.pair, q.port, cmp.Or(c.o.Budget, reach.Budget)) {
			c.undecided(q.pair, q.port)
		}
	}
	c.mesh()
	c.later()
	c.reach(pairs)
	c.p.Lines, c.p.Refused = split(sorted(c.p.Lines))
	c.p.Later = sorted(c.p.Later)
}

// pairs walks both sides, which are sorted, side by side.
func (c *comparison) pairs() []pair {
	byName := make([]pair, 0, len(c.after.Inbound))
	b, a := c.before.Inbound, c.after.Inbound
	for len(b) > 0 || len(a) > 0 {
		var p pair
		switch {
		case len(a) == 0 || len(b) > 0 && b[0].Service < a[0].Service:
			p, b = pair{name: b[0].Service, inWas: &b[0]}, b[1:]
		case len(b) == 0 || a[0].Service < b[0].Service:
			p, a = pair{name: a[0].Service, inIs: &a[0]}, a[1:]
		default:
			p, a, b = pair{name: a[0].Service, inWas: &b[0], inIs: &a[0]}, a[1:], b[1:]
		}
		p.outWas, _ = c.before.OutboundOf(p.name)
		p.outIs, _ = c.after.OutboundOf(p.name)
		p.inDiff, p.outDiff = !same(p.inWas, p.inIs), !same(p.outWas, p.outIs)
		byName = append(byName, p)
	}
	return byName
}

// leadsTo reports whether some route of a service leads to one of some services.
func leadsTo(o *mesh.Outbound, services map[mesh.ServiceName]bool) bool {
	if o == nil || len(services) == 0 {
		return false
	}
	found := false
	see := func(n mesh.ServiceName) { found = found || services[n] }
	for i := range o.Routes {
		reach.EachBackend(&o.Routes[i], see)
	}
	for i := range o.Consumers {
		for j := range o.Consumers[i].Routes {
			reach.EachBackend(&o.Consumers[i].Routes[j], see)
		}
	}
	return found
}

func (c *comparison) add(l Line) { c.p.Lines = append(c.p.Lines, l) }

// where says where ids were written; what the side's table does not have was not there.
func where(at mesh.Origins, ids ...string) (out []Where) {
	for _, id := range ids {
		if _, ok := at[id]; !ok && at != nil {
			continue
		}
		if id != "" && !slices.ContainsFunc(out, func(w Where) bool { return w.ID == id }) {
			out = append(out, Where{ID: id, Pos: at[id]})
		}
	}
	return out
}

// service compares all that is said of one service.
func (c *comparison) service(p *pair) {
	name := string(p.name)
	switch {
	case p.inWas == nil:
		c.add(Line{Risk: Neutral, Kind: KindService, Subject: "new service", To: name, After: "there", WhereAfter: where(c.isAt, name)})
	case p.inIs == nil:
		c.add(Line{Risk: Deletes, Kind: KindService, Subject: "service deleted", To: name, Before: "there", After: "no such service", WhereBefore: where(c.wasAt, name)})
	default:
		c.serviceValues(p)
	}
	var ports []string
	for _, in := range []*mesh.Inbound{p.inWas, p.inIs} {
		if in != nil {
			for i := range in.Ports {
				ports = append(ports, in.Ports[i].Name)
			}
		}
	}
	slices.Sort(ports)
	for _, port := range slices.Compact(ports) {
		c.structure(p, port)
		if !c.port(p, port, few) {
			c.crowded = append(c.crowded, crowd{p, port})
		}
	}
}

// few steps are what nearly every port takes. Those that take more come last, so that one of them leaves the others what
// they need.
const few = 20_000

// crowd is a port that takes more than few steps.
type crowd struct {
	pair *pair
	port string
}

// edge is one way in which a class of calls is judged or routed otherwise.
type edge struct {
	risk          Risk
	kind          Kind
	subject       string
	before, after string
	idBefore      string // separated by spaces where there are several
	idAfter       string
	door          bool // of a service's own door, rather than of a call through a caller's sidecar
	at            time.Time
	refused       bool // of calls that both sides refuse
}

// edges are the classes for each way, by caller.
type edges struct {
	byEdge map[edge]map[int][]reach.Key
	first  map[edge]map[int]*reach.Witness // by caller
}

func (e *edges) add(k edge, cell *reach.Cell) {
	if e.byEdge == nil {
		e.byEdge, e.first = map[edge]map[int][]reach.Key{}, map[edge]map[int]*reach.Witness{}
	}
	if e.byEdge[k] == nil {
		e.byEdge[k], e.first[k] = map[int][]reach.Key{}, map[int]*reach.Witness{}
	}
	if e.first[k][cell.Peer] == nil || !e.first[k][cell.Peer].HTTP && cell.Call.HTTP {
		e.first[k][cell.Peer] = cell.Witness()
	}
	e.byEdge[k][cell.Peer] = append(e.byEdge[k][cell.Peer], cell.Key())
}

// portsOf is a port on both sides; nil: there is none.
func (p *pair) portsOf(name string) (was, is *mesh.InboundPort) {
	if p.inWas != nil {
		was, _ = p.inWas.Port(name)
	}
	if p.inIs != nil {
		is, _ = p.inIs.Port(name)
	}
	return was, is
}

// structure says that a port comes or goes.
func (c *comparison) structure(p *pair, name string) {
	to := string(p.name) + ":" + name
	switch was, is := p.portsOf(name); {
	case was == nil && p.inWas != nil:
		c.add(Line{Risk: Neutral, Kind: KindPort, Subject: "new port", To: to, After: fmt.Sprintf("%d, %s", is.Port, is.Protocol), WhereAfter: where(c.isAt, is.DefaultID)})
	case is == nil && p.inIs != nil:
		c.add(Line{Risk: Deletes, Kind: KindPort, Subject: "port deleted", To: to, Before: fmt.Sprintf("%d, %s", was.Port, was.Protocol), After: "no such port",
			WhereBefore: where(c.wasAt, was.DefaultID)})
	}
}

// port compares all calls to one port, and adds no line where that takes more than most steps.
func (c *comparison) port(p *pair, name string, most int) (decided bool) {
	if most = min(most, cmp.Or(c.o.Budget, most), c.left); most <= 0 {
		return false
	}
	was, is := p.portsOf(name)
	to := string(p.name) + ":" + name
	routed := hasRoutes(p.outWas, name) || hasRoutes(p.outIs, name)
	q := &reach.Question{Service: p.name, Port: name, Meshes: []*mesh.Mesh{c.before, c.after}, Callers: c.callers, Routed: routed, Now: c.o.Now, Budget: most, Differences: true}
	space, err := reach.New(q)
	defer func() { c.left -= space.Spent() }()
	var found edges
	var tally reach.Tally
	if err == nil {
		err = c.cells(space, p, was, is, routed, &found, &tally)
	}
	if err != nil {
		return false
	}
	lines := c.lines(space, &tally, &found, to)
	if space.Regular() {
		if l, some := c.regular(p, name, was, is, routed, lines); some {
			c.add(l)
		}
	}
	c.encryption(to, was, is, lines, true)
	for _, l := range lines {
		c.add(l)
	}
	return true
}

// undecided says that calls to a port may be judged otherwise. What needs no comparison is said all the same.
func (c *comparison) undecided(p *pair, name string) {
	was, is := p.portsOf(name)
	to := string(p.name) + ":" + name
	c.encryption(to, was, is, nil, false)
	l := Line{Risk: Widens, MayChange: true, Kind: KindAccess, Subject: "may change", To: to, From: []string{"every caller"}, Requests: []string{"every request"},
		Before: "too many combinations of conditions to compare them all", After: "may change"}
	if was != nil {
		l.WhereBefore = where(c.wasAt, string(p.name), was.DefaultID)
	}
	if is != nil {
		l.WhereAfter = where(c.isAt, string(p.name), is.DefaultID)
	}
	c.add(l)
}

// hasRoutes reports whether callers do anything else with a port than to call the service itself.
func hasRoutes(o *mesh.Outbound, port string) bool {
	if o == nil {
		return false
	}
	some := func(ps []mesh.OutboundPort) bool {
		return slices.ContainsFunc(ps, func(p mesh.OutboundPort) bool {
			return p.Name == port && (len(p.Matches) > 0 || len(p.Hosts) > 0 || p.Connections != "")
		})
	}
	return some(o.Ports) || slices.ContainsFunc(o.Consumers, func(k mesh.Consumer) bool {
		return slices.ContainsFunc(k.Ports, func(p mesh.OutboundPort) bool { return p.Name == port })
	})
}

// cells judges every class on both sides.
func (c *comparison) cells(space *reach.Space, p *pair, was, is *mesh.InboundPort, routed bool, found *edges, tally *reach.Tally) error {
	return space.Each(func(cell *reach.Cell) bool {
		tally.Add(cell)
		c.compareCall(&cell.Call, p, was, is, routed, func(e edge) { found.add(e, cell) })
		return true
	})
}

// compareCall says how a call is judged and routed otherwise on the two sides.
func (c *comparison) compareCall(call *decide.Call, p *pair, was, is *mesh.InboundPort, routed bool, yield func(edge)) {
	vb, va := admit(p.inWas, was, &call.Request), admit(p.inIs, is, &call.Request)
	if vb.allowed != va.allowed {
		e := edge{kind: KindAccess, subject: "allow", before: vb.text(), after: va.text(), idBefore: vb.id, idAfter: va.id, door: true, risk: Widens}
		if vb.allowed {
			e.subject, e.risk = "refuse", Narrows
			if is == nil {
				e.risk = Deletes
			}
		}
		yield(e)
	}
	if !routed || call.Peer == "" {
		return
	}
	ob, oa := c.judge(call)
	kind, both := differ(&ob, &oa, call.Path), refused(&ob) && refused(&oa)
	if kind != alike {
		own := kind == verdicts && len(ob.Shares) == 1 && ob.Shares[0].Service == call.Service && ob.Shares[0].Port == call.Port &&
			ob.Shares[0].Allowed == vb.allowed && oa.Shares[0].Allowed == va.allowed
		if !own && !(ob.Handling == decide.Unknown || oa.Handling == decide.Unknown) {
			e := edge{kind: KindCall, subject: "route", before: outcomeText(&ob), after: outcomeText(&oa), idBefore: outcomeIDs(&ob), idAfter: outcomeIDs(&oa), risk: Reroutes, refused: both}
			if kind == verdicts {
				e.subject = "call"
			}
			switch gains, loses := standing(&ob, &oa); {
			case gains:
				e.risk = Widens
			case loses:
				e.risk = Narrows
			case both: // it goes elsewhere, to be refused there
				e.risk = Neutral
			}
			yield(e)
		}
	}
	if served(&ob) && served(&oa) {
		for _, d := range c.paramsOf(call, ob.Route, oa.Route, kind == routing) {
			if (ob.Handling == decide.Answered || oa.Handling == decide.Answered) && d.subject != "filters" {
				continue // the caller's sidecar answers, and the rest of the route never comes to pass
			}
			e := edge{kind: d.kind, subject: d.subject, before: d.before, after: d.after, risk: d.risk, refused: both}
			if ob.Route != nil {
				e.idBefore = ob.Route.ID
			}
			if oa.Route != nil {
				e.idAfter = oa.Route.ID
			}
			yield(e)
		}
	}
}

// judge is what becomes of a call on the two sides.
func (c *comparison) judge(call *decide.Call) (was, is decide.Outcome) {
	b, a := c.callers.Of(0, call), c.callers.Of(1, call)
	return decide.Judge(c.before, &b), decide.Judge(c.after, &a)
}

// refused reports whether a call gets to no backend that lets it in.
func refused(o *decide.Outcome) bool {
	return o.Handling != decide.Answered && !slices.ContainsFunc(o.Shares, func(s decide.Share) bool { return s.Allowed || s.Status != 0 })
}

func served(o *decide.Outcome) bool {
	return o.Handling == decide.Sent || o.Handling == decide.Answered
}

// judgement is what a door says.
type judgement struct {
	allowed bool
	id      string
	refused decide.Refusal
	gone    bool
}

const allowed = "allowed"

func (j *judgement) text() string {
	switch {
	case j.gone:
		return "not there"
	case j.allowed:
		return allowed
	}
	return "denied"
}

func admit(in *mesh.Inbound, port *mesh.InboundPort, r *decide.Request) judgement {
	if in == nil || port == nil {
		return judgement{gone: true}
	}
	seen := decide.Seen(port.Protocol, *r)
	v, refused := decide.Admit(in, port, &seen)
	return judgement{allowed: v.Allowed, id: v.Rule, refused: refused}
}

type difference int

const (
	alike difference = iota
	verdicts
	routing
)

// part is a share with the weight as a part of all.
type part struct {
	service mesh.ServiceName
	port    string
	weight  uint64 // of total, in lowest terms
	total   uint64
	mirror  bool
	status  uint16
	path    string
	allowed bool
	rule    string
	refused decide.Refusal
}

// partsOf are the shares of a call for a path. What a path is rewritten to counts; that a port that is not looked into
// hides it does not.
func partsOf(o *decide.Outcome, path string) []part {
	sum := uint64(0)
	out := make([]part, 0, len(o.Shares))
	for i := range o.Shares {
		s := &o.Shares[i]
		p := part{service: s.Service, port: s.Port, mirror: s.Mirror, status: s.Status, path: s.Sees.Path, allowed: s.Allowed, rule: s.Rule, refused: s.Refused}
		if !s.Sees.HTTP || p.path == path {
			p.path = ""
		}
		if s.Status != 0 {
			p.path, p.allowed, p.rule = "", false, ""
		}
		p.weight = uint64(s.Weight)
		if p.mirror {
			p.total = uint64(mesh.AllPPM)
			out = append(out, p)
			continue
		}
		sum += p.weight
		// One backend that is named twice is one backend with both shares.
		twin := slices.IndexFunc(out, func(q part) bool { q.weight = p.weight; return q == p })
		if twin >= 0 {
			out[twin].weight += p.weight
		} else {
			out = append(out, p)
		}
	}
	for i := range out {
		p := &out[i]
		if !p.mirror {
			p.total = sum
		}
		x, y := p.weight, p.total
		for y != 0 {
			x, y = y, x%y
		}
		if x > 0 {
			p.weight, p.total = p.weight/x, p.total/x
		}
	}
	slices.SortStableFunc(out, func(a, b part) int {
		return cmp.Or(boolean(a.mirror, b.mirror), cmp.Compare(a.service, b.service), cmp.Compare(a.port, b.port), cmp.Compare(a.status, b.status),
			cmp.Compare(a.path, b.path), cmp.Compare(a.total, b.total), cmp.Compare(a.weight, b.weight), boolean(a.allowed, b.allowed))
	})
	return out
}

func boolean(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// differ says whether two outcomes are one: to the caller's application, and to who gets its requests.
func differ(b, a *decide.Outcome, path string) difference {
	if b.Handling != a.Handling || b.Status != a.Status {
		return routing
	}
	if len(b.Shares) == 1 && len(a.Shares) == 1 { // nearly always
		x, y := &b.Shares[0], &a.Shares[0]
		if x.Service == y.Service && x.Port == y.Port && x.Mirror == y.Mirror && !x.Mirror && x.Status == y.Status &&
			(x.Sees.Path == y.Sees.Path || !x.Sees.HTTP || !y.Sees.HTTP) {
			if x.Allowed != y.Allowed {
				return verdicts
			}
			return alike
		}
	}
	x, y := partsOf(b, path), partsOf(a, path)
	if len(x) != len(y) {
		return routing
	}
	d := alike
	for i := range x {
		if x[i].allowed != y[i].allowed {
			d = verdicts
		}
		x[i].allowed, x[i].rule, x[i].refused = y[i].allowed, y[i].rule, y[i].refused
		if x[i] != y[i] {
			return routing
		}
	}
	return d
}

// standing says whether the caller may do more than before, or less.
func standing(b, a *decide.Outcome) (gains, loses bool) {
	if b.Allowed() != a.Allowed() && b.Handling != decide.Answered && a.Handling != decide.Answered {
		return a.Allowed(), b.Allowed()
	}
	if b.Handling != decide.Sent || a.Handling != decide.Sent {
		return false, false
	}
	// Which backends let it in, of those that both sides send to.
	let := func(o *decide.Outcome) map[string]bool {
		m := map[string]bool{}
		for i := range o.Shares {
			if s := &o.Shares[i]; s.Status == 0 {
				k := fmt.Sprint(s.Mirror, s.Service, ":", s.Port)
				m[k] = m[k] || s.Allowed
			}
		}
		return m
	}
	x, y := let(b), let(a)
	for k, was := range x {
		if is, ok := y[k]; ok && is != was {
			gains, loses = gains || is, loses || was
		}
	}
	return gains, loses
}

// lines makes lines of what was found: one for each way, and set of requests, with all callers that it is so for.
func (c *comparison) lines(space *reach.Space, tally *reach.Tally, found *edges, to string) []Line {
	var out []Line
	for e, peers := range found.byEdge {
		type group struct {
			requests []string
			peers    []int
		}
		groups := map[string]*group{}
		var order []string
		for p := range len(space.Peers) {
			if len(peers[p]) == 0 {
				continue
			}
			r := space.RequestsOf(tally, peers[p])
			k := strings.Join(r, "\x00")
			if groups[k] == nil {
				groups[k] = &group{requests: r}
				order = append(order, k)
			}
			groups[k].peers = append(groups[k].peers, p)
		}
		for _, k := range order {
			g := groups[k]
			l := Line{Risk: e.risk, Kind: e.kind, Subject: e.subject, From: space.CallersOf(g.peers), To: to, Requests: g.requests, Before: e.before, After: e.after,
				WhereBefore: where(c.wasAt, strings.Fields(e.idBefore)...), WhereAfter: where(c.isAt, strings.Fields(e.idAfter)...), At: e.at,
				cells: map[reach.Key]bool{}, space: space, edge: e}
			for _, p := range g.peers {
				w := found.first[e][p]
				if l.Witness == nil || preferred(w, l.Witness) {
					l.Witness = w
				}
				for _, key := range peers[p] {
					l.cells[key] = true
				}
			}
			if e.door && l.Witness.Identity != "" { // by its routes the caller may come elsewhere
				call := l.Witness.Call()
				ob, oa := c.judge(&call)
				// A rule that ends changes one mesh, and its witness is of the time after.
				l.Witness.Direct = e.at.IsZero() && ob.Allowed() != (e.before == allowed) || oa.Allowed() != (e.after == allowed)
			}
			if l.At.IsZero() && !l.Witness.At.Equal(c.o.Now) { // nothing of it is so now
				l.At = l.Witness.At
			}
			out = append(out, l)
		}
	}
	return out
}

// preferred reports whether a is the better example: now rather than later, of somebody who is known.
func preferred(a, b *reach.Witness) bool {
	if !a.At.Equal(b.At) {
		return a.At.Before(b.At)
	}
	known := func(w *reach.Witness) bool { return w.Identity != "" && !strings.HasPrefix(w.From, "spiffe://") }
	return known(a) && !known(b)
}

// regular compares with every regular expression free to hold or not: what can be so and was not found by examples makes
// a line that may change.
func (c *comparison) regular(p *pair, port string, was, is *mesh.InboundPort, routed bool, lines []Line) (Line, bool) {
	before, after := abstract(c.before, p.name), abstract(c.after, p.name)
	sub := &comparison{p: &Plan{}, before: before, after: after, o: c.o, callers: c.callers, params: map[routes][]param{}}
	inner := &pair{name: p.name}
	inner.inWas, _ = before.InboundOf(p.name)
	inner.inIs, _ = after.InboundOf(p.name)
	var wasPort, isPort *mesh.InboundPort
	if inner.inWas != nil {
		wasPort, _ = inner.inWas.Port(port)
	}
	if inner.inIs != nil {
		isPort, _ = inner.inIs.Port(port)
	}
	may := Line{Risk: Reroutes, MayChange: true, Kind: KindCall, Subject: "may change", To: string(p.name) + ":" + port, Before: "by regular expressions", After: "may change"}
	if was != nil {
		may.WhereBefore = where(c.wasAt, was.DefaultID)
	}
	if is != nil {
		may.WhereAfter = where(c.isAt, is.DefaultID)
	}
	known := map[edge]bool{}
	for i := range lines {
		known[lines[i].edge] = true
	}
	space, err := reach.New(&reach.Question{Service: p.name, Port: port, Meshes: []*mesh.Mesh{before, after}, Callers: c.callers, Routed: routed, Now: c.o.Now, Budget: min(cmp.Or(c.o.Budget, reach.Budget), max(c.left, 1)), Differences: true})
	defer func() { c.left -= space.Spent() }()
	peers := map[int]bool{}
	worst := len(Risks)
	var ids [2][]string
	if err == nil {
		err = space.Each(func(cell *reach.Cell) bool {
			sub.compareCall(&cell.Call, inner, wasPort, isPort, routed, func(e edge) {
				peers[cell.Peer] = true
				if !known[e] {
					worst = min(worst, slices.Index(Risks, e.risk))
					ids[0], ids[1] = append(ids[0], strings.Fields(e.idBefore)...), append(ids[1], strings.Fields(e.idAfter)...)
				}
			})
			return true
		})
	}
	switch {
	case err != nil:
		may.Risk, may.From, may.Requests = Widens, []string{"every caller"}, []string{"every request"}
		return may, true
	case len(peers) == 0:
		return may, false
	}
	var list []int
	for i := range space.Peers {
		if peers[i] {
			list = append(list, i)
		}
	}
	if worst < len(Risks) {
		may.Risk = Risks[worst]
	}
	may.From, may.Requests = space.CallersOf(list), []string{"requests that regular expressions tell apart"}
	if len(ids[0])+len(ids[1]) > 0 {
		may.WhereBefore, may.WhereAfter = where(c.wasAt, firstOf(ids[0])...), where(c.isAt, firstOf(ids[1])...)
	}
	return may, true
}

func firstOf(ids []string) []string {
	slices.Sort(ids)
	ids = slices.Compact(ids)
	return ids[:min(len(ids), 3)]
}

func abstract(m *mesh.Mesh, n mesh.ServiceName) *mesh.Mesh {
	if a := reach.Abstract(m, n); a != nil {
		return a
	}
	return m
}

// encryption says where plaintext is let in or no longer is. Its witness is among the lines, where they could be decided.
func (c *comparison) encryption(to string, was, is *mesh.InboundPort, lines []Line, decided bool) {
	if is == nil {
		return
	}
	stranger := func(risk Risk) *reach.Witness {
		var best *reach.Key
		var space *reach.Space
		for i := range lines {
			if l := &lines[i]; l.Kind == KindAccess && l.Risk == risk {
				for k := range l.cells {
					if l.space.Peers[k.Peer].ID == "" && (best == nil || k.Better(best)) {
						best, space = &k, l.space
					}
				}
			}
		}
		if best == nil {
			return nil
		}
		return space.WitnessOf(*best)
	}
	l := Line{Kind: KindEncryption, Subject: "mTLS off", To: to, After: string(is.MTLS), WhereAfter: where(c.isAt, is.DefaultID)}
	if was != nil {
		l.Before, l.WhereBefore = string(was.MTLS), where(c.wasAt, was.DefaultID)
	}
	switch {
	case is.MTLS == mesh.Permissive && (was == nil || was.MTLS != mesh.Permissive):
		l.Risk = DropsEncryption
		if was == nil {
			l.Before = "not there"
		}
		if l.Witness = stranger(Widens); l.Witness == nil && decided {
			l.After += ", and rules refuse callers without identity"
		}
		c.add(l)
	case was != nil && was.MTLS == mesh.Permissive && is.MTLS != mesh.Permissive:
		l.Risk, l.Subject, l.Witness = AddsEncryption, "mTLS required", stranger(Narrows)
		c.add(l)
	}
	if is.CanonicalPaths && (was == nil || !was.CanonicalPaths) && was != nil {
		l := Line{Risk: Narrows, Kind: KindPaths, Subject: "canonical paths only", To: to, Requests: []string{"paths that are not canonical"},
			Before: "judged", After: "400", WhereBefore: where(c.wasAt, was.DefaultID), WhereAfter: where(c.isAt, is.DefaultID)}
		c.add(l)
	}
	if was != nil && was.CanonicalPaths && !is.CanonicalPaths {
		c.add(Line{Risk: Widens, Kind: KindPaths, Subject: "any path", To: to, Requests: []string{"paths that are not canonical"},
			Before: "400", After: "judged", WhereBefore: where(c.wasAt, was.DefaultID), WhereAfter: where(c.isAt, is.DefaultID)})
	}
}

// later says what will change with no commit, because rules end.
func (c *comparison) later() {
	for i := range c.after.Inbound {
		in := &c.after.Inbound[i]
		var ends []time.Time
		for j := range in.Rules {
			if r := &in.Rules[j]; r.Action != mesh.AuditRule && !r.Shadow && r.Until.After(c.o.Now) {
				ends = append(ends, r.Until)
			}
		}
		if len(ends) == 0 {
			continue
		}
		slices.SortFunc(ends, time.Time.Compare)
		ends = slices.CompactFunc(ends, time.Time.Equal)
		for j := range in.Ports {
			c.endings(in, &in.Ports[j], ends)
		}
	}
}

func (c *comparison) endings(in *mesh.Inbound, port *mesh.InboundPort, ends []time.Time) {
	to := string(in.Service) + ":" + port.Name
	space, err := reach.New(&reach.Question{Service: in.Service, Port: port.Name, Meshes: []*mesh.Mesh{c.after}, Callers: c.callers, Now: c.o.Now,
		Budget: min(cmp.Or(c.o.Budget, reach.Budget), max(c.left, 1))})
	defer func() { c.left -= space.Spent() }()
	var found edges
	var tally reach.Tally
	if err == nil {
		err = space.Each(func(cell *reach.Cell) bool {
			if !cell.Call.Now.Equal(c.o.Now) {
				return true
			}
			tally.Add(cell)
			was := admit(in, port, &cell.Call.Request)
			for _, at := range ends {
				cell.Call.Now = at
				is := admit(in, port, &cell.Call.Request)
				if was.allowed != is.allowed {
					e := edge{risk: Widens, kind: KindAccess, subject: "allow", before: was.text(), after: is.text(), idBefore: was.id, idAfter: is.id, door: true, at: at}
					if was.allowed {
						e.risk, e.subject = Narrows, "refuse"
					}
					found.add(e, cell)
				}
				was = is
			}
			cell.Call.Now = c.o.Now
			return true
		})
	}
	if err != nil {
		for _, at := range ends {
			c.p.Later = append(c.p.Later, Line{Risk: Widens, MayChange: true, Kind: KindAccess, Subject: "may change", To: to, At: at, Before: "too many combinations of conditions to compare them all",
				After: "may change", WhereBefore: where(c.isAt, string(in.Service)), WhereAfter: where(c.isAt, string(in.Service))})
		}
		return
	}
	for _, l := range c.lines(space, &tally, &found, to) {
		l.WhereBefore = relocate(c.isAt, l.WhereBefore)
		c.p.Later = append(c.p.Later, l)
	}
}

// relocate finds ids in the other side's table.
func relocate(at mesh.Origins, list []Where) []Where {
	ids := make([]string, len(list))
	for i := range list {
		ids[i] = list[i].ID
	}
	return where(at, ids...)
}

// reach counts what is touched.
func (c *comparison) reach(pairs []pair) {
	r := &c.p.Reach
	r.Services, r.Callers = []mesh.ServiceName{}, []mesh.ServiceName{}
	touched := map[mesh.ServiceName]bool{}
	callers := map[mesh.ServiceName]bool{}
	for i := range pairs {
		p := &pairs[i]
		if p.inDiff {
			r.Services = append(r.Services, p.name)
			touched[p.name] = true
		}
		if p.outDiff && len(callers) < len(pairs) {
			for _, in := range []*mesh.Inbound{p.inWas, p.inIs} {
				if in != nil {
					c.callersOf(in, pairs, callers)
				}
			}
		}
	}
	for i := range pairs {
		if n := pairs[i].name; callers[n] {
			r.Callers = append(r.Callers, n)
			touched[n] = true
		}
	}
	for i := range c.after.Workloads {
		if touched[c.after.Workloads[i].Service] {
			r.Workloads++
		}
	}
}

// callersOf adds the services that may call one, so that their sidecars hold its routes.
func (c *comparison) callersOf(in *mesh.Inbound, pairs []pair, to map[mesh.ServiceName]bool) {
	see := func(id string) {
		if owner, ok := c.callers.Owner(id); ok && !to[owner] && decide.MayCall(in, id) {
			to[owner] = true
		}
	}
	wide := false
	for i := range in.Ports {
		wide = wide || in.Ports[i].Default != mesh.Deny
	}
	for i := range in.Rules {
		r := &in.Rules[i]
		if r.Action != mesh.Allow || r.Shadow {
			continue
		}
		for _, p := range r.From {
			switch {
			case p.Identity != "":
				see(p.Identity)
			case p.Prefix != "":
				for _, id := range c.callers.Under(p.Prefix) {
					see(id)
				}
			default:
				wide = true
			}
		}
	}
	if !wide {
		return
	}
	for i := range pairs {
		if to[pairs[i].name] {
			continue
		}
		for _, side := range []*mesh.Inbound{pairs[i].inWas, pairs[i].inIs} {
			if side != nil {
				for _, id := range side.Identities {
					see(id)
				}
			}
		}
	}
}

// split sets lines apart that are about calls which both sides refuse.
func split(all []Line) (lines, refused []Line) {
	for _, l := range all {
		if l.edge.refused && l.Risk != Widens && l.Risk != Narrows {
			refused = append(refused, l)
		} else {
			lines = append(lines, l)
		}
	}
	return lines, refused
}

// sorted puts the worst first.
func sorted(lines []Line) []Line {
	key := func(l *Line) string {
		ids := ""
		for _, w := range slices.Concat(l.WhereBefore, l.WhereAfter) {
			ids += w.ID + "\x00"
		}
		return strings.Join([]string{l.To, string(l.Kind), l.Subject, strings.Join(l.From, ","), strings.Join(l.Requests, ","), l.Before, l.After, ids, l.At.UTC().Format(time.RFC3339Nano)}, "\x01")
	}
	slices.SortStableFunc(lines, func(a, b Line) int {
		return cmp.Or(cmp.Compare(slices.Index(Risks, a.Risk), slices.Index(Risks, b.Risk)), a.At.Compare(b.At), strings.Compare(key(&a), key(&b)))
	})
	return lines
}
