package compile

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// checkDead finds rules that can never do what they say.
func (c *compiler) checkDead(s *service, r *rule) {
	c.checkStrangers(r)
	c.checkDisjoint(s, r)
}

// checkStrangers finds allow rules for callers without an identity where none ever gets in. Deny and audit rules for
// them are about everybody, on strict ports too.
func (c *compiler) checkStrangers(r *rule) {
	i := slices.IndexFunc(r.src.From, func(f v1alpha1.From) bool { return f.Unauthenticated })
	if r.action != mesh.Allow || i < 0 || slices.ContainsFunc(r.ports, func(p *port) bool { return p.mtls.v == mesh.Permissive }) {
		return
	}
	at := r.at.at("from").index(i)
	if len(r.src.Networks) > 0 {
		c.find(diag.OutsideCaller, at,
			"callers known by their network alone are outside the mesh, and every port of the rule is mtls \"strict\"",
			`set mtls: "permissive" on the port that takes plaintext, or write authenticated: true beside networks`, c.pos(r.at.at("networks")))
		return
	}
	c.find(diag.DeadRule, at,
		"callers without an identity never get this far: every port of the rule is mtls \"strict\"",
		`set mtls: "permissive" on the port that takes plaintext, or write authenticated: true`)
}

// checkOpenDefaults warns of defaults for callers without an identity where none ever gets in. Those of the mesh and of
// namespaces are about other services too, and are left alone.
func (c *compiler) checkOpenDefaults(s *service) {
	instead := map[mesh.InboundMode]mesh.InboundMode{mesh.AllUnauthenticated: mesh.AllAuthenticated, mesh.ClusterUnauthenticated: mesh.ClusterAuthenticated}
	told := map[path]bool{}
	for _, p := range s.ports {
		from := p.policy.from
		narrow, open := instead[p.policy.v]
		if !open || p.policy.level.shared() || told[from] ||
			slices.ContainsFunc(s.ports, func(q *port) bool { return q.policy.from == from && q.mtls.v == mesh.Permissive }) {
			continue
		}
		told[from] = true
		c.warn(diag.OutsideCaller, from,
			fmt.Sprintf("inboundPolicy is %q, and callers without an identity never get this far: every port of it is mtls \"strict\"", p.policy.v),
			fmt.Sprintf(`set mtls: "permissive" on the port that takes plaintext, or write %q`, narrow))
	}
}

// checkDisjoint finds what a rule asks for and its routes never take: routes, paths and methods that are in vain.
func (c *compiler) checkDisjoint(s *service, r *rule) {
	if len(r.routes) == 0 || slices.ContainsFunc(s.routes, func(rt *route) bool { return rt.broken || len(rt.matches) == 0 }) {
		return
	}
	turns := s.turns(r)
	found := false
	for i, n := range r.src.Routes {
		if !slices.ContainsFunc(turns, func(t turn) bool { return t.route.name == n && r.takes(&t, r.out.Methods, r.out.Paths) }) {
			found = true
			c.find(diag.DeadRule, r.at.at("routes").index(i),
				fmt.Sprintf("no request that route %q takes satisfies the rule's other conditions", n),
				"leave the route out, or change the rule's methods, paths or headers", c.pos(r.routeAt(n)))
		}
	}
	if found {
		return
	}
	some := func(methods []string, paths []mesh.PathMatch) bool {
		return slices.ContainsFunc(turns, func(t turn) bool { return r.takes(&t, methods, paths) })
	}
	for i, m := range r.src.Methods {
		if !some([]string{string(m)}, r.out.Paths) {
			c.find(diag.DeadRule, r.at.at("methods").index(i), fmt.Sprintf("none of the rule's routes takes a %s request that the rule is about", m), "leave the method out")
		}
	}
	for i := range r.src.Paths {
		if p := r.pathMatch(i); !some(r.out.Methods, []mesh.PathMatch{p}) {
			c.find(diag.DeadRule, r.at.at("paths").index(i), fmt.Sprintf("none of the rule's routes takes a request for %s that the rule is about", p.Exact+p.Prefix+p.Template), "leave the path out")
		}
	}
}

// turn is a match of a route, with those whose turn comes before.
type turn struct {
	route  *route // nil, with match: what no match takes
	match  *mesh.Match
	before []*mesh.Match
}

// turns are the matches of a rule's routes, on all ports. Those of one of its routes take nothing away from another.
func (s *service) turns(r *rule) (out []turn) {
	for _, p := range s.ports {
		port, _ := s.out.Port(p.name)
		r.spend(len(s.ports) + len(port.Matches)*(1+len(r.routes))/4)
		var before []*mesh.Match
		for i := range port.Matches {
			m := &port.Matches[i]
			if j := slices.IndexFunc(r.routes, func(rt *route) bool { return rt.id == m.Route }); j >= 0 {
				out = append(out, turn{r.routes[j], m, slices.Clip(before)})
			} else {
				before = append(before, m)
			}
		}
	}
	return out
}

// turnsOn is every request to a port, cut by the routes that take it where that matters.
func (s *service) turnsOn(p *port, cut bool) (out []turn) {
	if !cut {
		return []turn{{}}
	}
	port, _ := s.out.Port(p.name)
	var before []*mesh.Match
	for i := range port.Matches {
		m := &port.Matches[i]
		if j := slices.IndexFunc(s.routes, func(rt *route) bool { return rt.id == m.Route }); j >= 0 {
			out = append(out, turn{s.routes[j], m, slices.Clip(before)})
		}
		before = append(before, m)
	}
	return append(out, turn{before: before})
}

func (r *rule) routeAt(name string) path {
	for _, rt := range r.routes {
		if rt.name == name {
			return rt.at
		}
	}
	return r.at
}

// pathMatch is the compiled form of a rule's i-th path.
func (r *rule) pathMatch(i int) mesh.PathMatch {
	src := r.src.Paths[i]
	m := mesh.PathMatch{Exact: decide.SpellPath(string(src.Exact)), Prefix: decide.SpellPath(string(src.Prefix)), Template: src.Template}
	if len(m.Prefix) > 1 {
		m.Prefix = strings.TrimSuffix(m.Prefix, "/")
	}
	return m
}

// takes reports whether some request that takes its turn at a match of a route satisfies a rule's headers and some of
// the methods and paths.
func (r *rule) takes(t *turn, methods []string, paths []mesh.PathMatch) bool {
	for call := range r.calls(t, methods, paths) {
		r.spend(compares * (1 + len(t.before)))
		if !slices.ContainsFunc(t.before, func(by *mesh.Match) bool { return call.takenBy(by) }) {
			return true
		}
	}
	return false
}

// calls are the requests that satisfy the match of a turn and a rule's headers, by each of the methods and
// paths; none where they contradict each other.
func (r *rule) calls(t *turn, methods []string, paths []mesh.PathMatch) iter.Seq[call] {
	return func(yield func(call) bool) {
		m := cmp.Or(t.match, &mesh.Match{})
		one := call{query: m.Query, regex: m.Path.Regex}
		headers := r.headersWith(m.Headers)
		if r.action != mesh.Allow {
			// What a request does not say counts as said here, so that nothing is known of its headers.
			headers, one.query = [][]mesh.HeaderMatch{nil}, nil
		}
		if m.Method != "" {
			if len(methods) > 0 && !slices.Contains(methods, m.Method) {
				return
			}
			methods = []string{m.Method}
		}
		if len(methods) == 0 {
			methods = []string{""}
		}
		if len(paths) == 0 {
			paths = []mesh.PathMatch{{}}
		}
		for _, p := range paths {
			r.spend(compares)
			var ok bool
			if one.path, ok = meetPaths(patternOf(m.Path), patternOf(p)); !ok {
				continue
			}
			for _, one.method = range methods {
				for _, one.headers = range headers {
					if !yield(one) {
						return
					}
				}
			}
		}
	}
}

// headersWith are the conditions on headers of a route and those of an allow rule, once for each choice among values; none
// where they contradict each other.
func (r *rule) headersWith(asked []mesh.HeaderMatch) [][]mesh.HeaderMatch {
	out := [][]mesh.HeaderMatch{asked}
	for _, h := range r.out.Headers {
		choices := []mesh.HeaderMatch{h}
		if n := len(h.OneOf); n > 0 && n*len(out) <= mostCalls {
			choices = choices[:0]
			for _, v := range h.OneOf {
				choices = append(choices, mesh.HeaderMatch{Name: h.Name, Exact: v})
			}
		}
		var next [][]mesh.HeaderMatch
		for _, choice := range choices {
			j := slices.IndexFunc(asked, func(x mesh.HeaderMatch) bool { return x.Name == h.Name })
			if j >= 0 && !h.Present && !slices.ContainsFunc(values(&choice), func(v string) bool { return decide.ValueMatches(&asked[j], v) }) {
				continue
			}
			for _, o := range out {
				next = append(next, append(slices.Clip(o), choice))
			}
		}
		out = next
	}
	return out
}

// call is a set of requests: those of a method ("" is any), a path, and with all of some headers and parameters.
type call struct {
	method         string
	path           pattern
	regex          string // that the path satisfies besides; "" is none
	headers, query []mesh.HeaderMatch
}

// takenBy reports whether a match takes all of a set of requests.
func (c *call) takenBy(m *mesh.Match) bool {
	return (m.Method == "" || m.Method == c.method) && c.under(m.Path) && c.says(m.Headers) &&
		fieldsInside(m.Query, c.query)
}

// under reports whether all paths of the set satisfy a condition.
func (c *call) under(p mesh.PathMatch) bool {
	if p.Regex != "" {
		return p.Regex == c.regex || everyText(p.Regex)
	}
	return patternInside(p, c.path) ||
		c.regex != "" && matchPathInside(&mesh.Match{Path: p}, &mesh.Match{Path: mesh.PathMatch{Regex: c.regex}})
}

// says reports whether all requests of the set satisfy conditions on headers, of which the set may have several.
func (c *call) says(asked []mesh.HeaderMatch) bool {
	return !slices.ContainsFunc(asked, func(a mesh.HeaderMatch) bool {
		return !slices.ContainsFunc(c.headers, func(h mesh.HeaderMatch) bool { return h.Name == a.Name && valueInside(&a, &h) })
	})
}

// values are those that a rule's header may have; nil where any will do.
func values(h *mesh.HeaderMatch) []string {
	if h.Exact != "" {
		return []string{h.Exact}
	}
	return h.OneOf
}

// pattern is a path condition as elements: wild stands for one that is not empty, and open says that more may follow.
type pattern struct {
	elements []string
	open     bool
}

// wild stands in no path that policy can write.
const wild = "\x00"

func patternOf(m mesh.PathMatch) pattern {
	switch {
	case m.Exact != "":
		return pattern{strings.Split(m.Exact[1:], "/"), false}
	case m.Prefix != "" && m.Prefix != "/":
		return pattern{strings.Split(m.Prefix[1:], "/"), true}
	case m.Template != "":
		e := strings.Split(m.Template[1:], "/")
		for i := range e {
			if strings.HasPrefix(e[i], "{") {
				e[i] = wild
			}
		}
		return pattern{e, false}
	}
	return pattern{nil, true}
}

// key is the same for patterns that match the same paths.
func (p pattern) key() string { return fmt.Sprint(p.open, p.elements) }

// meetPaths is the pattern of the paths that satisfy both; false: none does. Of a regular expression nothing is known, and its
// pattern is every path.
func meetPaths(p, q pattern) (pattern, bool) {
	if len(p.elements) > len(q.elements) {
		p, q = q, p
	}
	if len(p.elements) < len(q.elements) && !p.open {
		return pattern{}, false
	}
	out := pattern{slices.Clone(q.elements), q.open && (p.open || len(p.elements) < len(q.elements))}
	for i, e := range p.elements {
		switch f := q.elements[i]; {
		case e == f, e == wild && f != "":
		case f == wild && e != "":
			out.elements[i] = e
		default:
			return pattern{}, false
		}
	}
	return out, true
}

// patternInside reports whether every path of a pattern satisfies a condition.
func patternInside(a mesh.PathMatch, q pattern) bool {
	if a.Regex != "" {
		return false
	}
	p := patternOf(a)
	if len(p.elements) > len(q.elements) || !p.open && (q.open || len(p.elements) != len(q.elements)) {
		return false
	}
	for i, e := range p.elements {
		if f := q.elements[i]; e != f && !(e == wild && f != "") {
			return false
		}
	}
	return true
}

// mostCalls bounds what a rule is cut into, so that one with long lists costs no more than others.
const mostCalls = 4096

// checkDeadAllows warns of allow rules that deny rules leave nothing: whatever a caller of the rule does on a port of it,
// some deny rule covers.
func (c *compiler) checkDeadAllows(s *service, rules []*rule) {
	for _, a := range rules {
		if a.action != mesh.Allow || a.out.Shadow {
			continue
		}
		by := s.deniedBy(a, rules)
		if len(by) == 0 {
			continue
		}
		var names []string
		var related []diag.Pos
		for _, d := range by {
			names = append(names, strings.TrimPrefix(d.out.ID, string(s.name)+"/"))
			related = append(related, c.pos(d.at))
		}
		c.warn(diag.DeadAllow, a.at, "the rule allows nothing: all of it is denied by "+strings.Join(names, " and "),
			"delete the rule, or narrow what denies", related...)
	}
}

// deniedBy are the deny rules that together cover all that an allow rule allows; none where they do not.
func (s *service) deniedBy(a *rule, rules []*rule) (by []*rule) {
	left := mostCalls
	for _, p := range a.ports {
		a.spend(len(rules))
		var denies []*rule
		for _, d := range rules {
			if d.action == mesh.DenyRule && !d.out.Shadow && slices.Contains(d.ports, p) && tokenInside(d.out.JWT, a.out.JWT) &&
				(d.out.Until.IsZero() || !a.out.Until.IsZero() && !a.out.Until.After(d.out.Until)) {
				denies = append(denies, d)
			}
		}
		if len(denies) == 0 {
			return nil
		}
		turns := slices.DeleteFunc(s.turns(a), func(t turn) bool { return t.route.port != p })
		if len(a.routes) == 0 {
			port, _ := s.out.Port(p.name)
			a.spend(len(port.Matches) * (1 + len(s.routes)) / 4)
			turns = s.turnsOn(p, slices.ContainsFunc(denies, func(d *rule) bool { return len(d.out.Routes) > 0 }))
		}
		for i := range a.out.From {
			for j := range turns {
				for call := range a.calls(&turns[j], a.out.Methods, a.out.Paths) {
					if left--; left < 0 {
						return nil
					}
					covering, ok := cover(denies, a, &a.out.From[i], &turns[j], &call, p)
					if !ok {
						return nil
					}
					for _, d := range covering {
						if !slices.Contains(by, d) {
							by = append(by, d)
						}
					}
				}
			}
		}
	}
	return by
}

// cover are those of some deny rules that together match every call of a caller that is in a set of requests, at a turn of
// the routes, on a port; false: some such call no one matches.
func cover(denies []*rule, a *rule, caller *mesh.Peer, t *turn, call *call, p *port) (by []*rule, ok bool) {
	if slices.ContainsFunc(t.before, func(m *mesh.Match) bool { return call.takenBy(m) }) {
		return nil, true // no such request comes
	}
	var some []*rule // all but for its networks
	for _, d := range denies {
		r := &d.out
		a.spend(1 + len(r.From) + len(r.Methods) + len(r.Routes) + compares*len(r.Paths) + len(r.Headers)*len(call.headers))
		if slices.ContainsFunc(r.From, func(q mesh.Peer) bool { return peerInside(&q, caller, p) }) &&
			(len(r.Methods) == 0 || slices.Contains(r.Methods, call.method)) &&
			(len(r.Routes) == 0 || t.route != nil && slices.Contains(r.Routes, t.route.id)) &&
			(len(r.Paths) == 0 || slices.ContainsFunc(r.Paths, call.under)) &&
			within(r.SNI, a.out.SNI, nameInside) && call.says(r.Headers) {
			if len(r.Networks) == 0 {
				return []*rule{d}, true
			}
			some = append(some, d)
		}
	}
	var denied []mesh.Network
	for _, d := range some {
		denied = append(denied, d.out.Networks...)
	}
	return some, len(some) > 0 && len(a.out.Networks) > 0 && !slices.ContainsFunc(a.out.Networks, func(n mesh.Network) bool {
		return !coveredBy(n.CIDR, n.Except, denied, a.spend)
	})
}

// coveredBy reports whether every address of a range, but for some that are left out, is one of the networks.
func coveredBy(p netip.Prefix, left []netip.Prefix, by []mesh.Network, spend func(steps int)) bool {
	spend(len(left) + len(by))
	if slices.ContainsFunc(left, func(e netip.Prefix) bool { return contains(e, p) }) ||
		slices.ContainsFunc(by, func(n mesh.Network) bool { return networkInside(n, mesh.Network{CIDR: p}) }) {
		return true
	}
	apart := func(q netip.Prefix) bool { return !p.Overlaps(q) || contains(q, p) }
	if p.IsSingleIP() || !slices.ContainsFunc(by, func(n mesh.Network) bool { return p.Overlaps(n.CIDR) }) ||
		!slices.ContainsFunc(left, func(e netip.Prefix) bool { return !apart(e) }) && !slices.ContainsFunc(by, func(n mesh.Network) bool {
			return !apart(n.CIDR) || slices.ContainsFunc(n.Except, func(e netip.Prefix) bool { return !apart(e) })
		}) {
		return false // nothing below it differs from it
	}
	low := netip.PrefixFrom(p.Addr(), p.Bits()+1)
	return coveredBy(low, left, by, spend) && coveredBy(netip.PrefixFrom(sibling(low), low.Bits()), left, by, spend)
}

// within reports whether each of b is inside one of a; a list that is not set is everything.
func within[T any](a, b []T, inside func(a, b T) bool) bool {
	if len(a) == 0 {
		return true
	}
	return len(b) > 0 && !slices.ContainsFunc(b, func(y T) bool {
		return !slices.ContainsFunc(a, func(x T) bool { return inside(x, y) })
	})
}

// peerInside reports whether a covers all callers of b that reach a port.
func peerInside(a, b *mesh.Peer, p *port) bool {
	switch {
	case a.Unauthenticated:
		return true
	case b.Unauthenticated:
		return a.Authenticated && p.mtls.v == mesh.Strict
	case a.Authenticated:
		return true
	case b.Identity != "":
		return decide.PeerMatches(a, b.Identity)
	case a.Prefix != "" && b.Prefix != "":
		return strings.HasPrefix(b.Prefix, a.Prefix)
	case a.Suffix != "" && b.Suffix != "":
		return strings.HasSuffix(b.Suffix, a.Suffix)
	}
	return false
}

// networkInside reports whether a network covers another one.
func networkInside(a, b mesh.Network) bool {
	if a.CIDR.Bits() > b.CIDR.Bits() || !a.CIDR.Contains(b.CIDR.Addr()) {
		return false
	}
	return !slices.ContainsFunc(a.Except, func(e netip.Prefix) bool {
		return e.Overlaps(b.CIDR) && !(b.CIDR.Bits() <= e.Bits() && covered(e, b.Except))
	})
}

// nameInside reports whether a pattern of names covers another one.
func nameInside(a, b string) bool {
	if suffix, ok := strings.CutPrefix(b, "*"); ok {
		cover, wide := strings.CutPrefix(a, "*")
		return wide && strings.HasSuffix(suffix, cover)
	}
	return decide.HostMatches(a, b)
}

// tokenInside reports whether a deny rule's condition on tokens holds wherever an allow rule's does.
func tokenInside(a, b *mesh.JWTMatch) bool {
	if a == nil {
		return true
	}
	if b == nil || a.Issuer != b.Issuer {
		return false
	}
	for _, claim := range a.Claims {
		j := slices.IndexFunc(b.Claims, func(x mesh.ClaimMatch) bool { return x.Name == claim.Name })
		if j < 0 || slices.ContainsFunc(b.Claims[j].Values, func(v string) bool { return !slices.Contains(claim.Values, v) }) {
			return false
		}
	}
	return true
}

// checkCallers warns of services that nobody may call, as long as nothing says that it is meant. It waits until nothing
// is refused: what is missing may be what does not compile yet.
func (c *compiler) checkCallers(services []*service) {
	if c.failures > 0 || len(c.doc.Unread) > 0 {
		return
	}
	for _, s := range services {
		c.checkCallersOf(s)
	}
}

func (c *compiler) checkCallersOf(s *service) {
	if len(s.ports) == 0 || slices.ContainsFunc(s.in.Ports, func(p mesh.InboundPort) bool { return p.Default != mesh.Deny }) {
		return
	}
	shadow := false
	for i := range s.in.Rules {
		r := &s.in.Rules[i]
		shadow = shadow || r.Action == mesh.Allow && r.Shadow
		if r.Action == mesh.Allow && !r.Shadow {
			return
		}
		if r.Action == mesh.DenyRule && !r.Shadow && decide.Unconditional(r) && len(r.Ports) == 0 &&
			slices.Contains(r.From, mesh.Peer{Unauthenticated: true}) {
			return // said in so many words
		}
	}
	hint := "write an allow rule; or, if that is meant, deny: everyone: from: [{unauthenticated: true}]"
	if shadow {
		hint = "enforce an allow rule; or, if that is meant, write deny: everyone: from: [{unauthenticated: true}]"
	}
	c.warn(diag.NobodyCalls, s.at, "nobody may call the service: no rule allows anybody, and what no rule allows is denied", hint)
}
