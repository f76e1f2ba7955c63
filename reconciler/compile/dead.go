package compile

import (
	"fmt"
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
	c.checkDisjoint(r)
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

// checkDisjoint finds what a rule asks for and its routes never take: routes, paths and methods that are in vain.
func (c *compiler) checkDisjoint(r *rule) {
	if len(r.routes) == 0 || slices.ContainsFunc(r.routes, func(rt *route) bool { return rt.broken || len(rt.matches) == 0 }) {
		return
	}
	all := func(m *mesh.Match) bool { return r.takes(m, r.out.Methods, r.out.Paths) }
	found := false
	for i, n := range r.src.Routes {
		fits := false
		for _, rt := range r.routes {
			fits = fits || rt.name == n && slices.ContainsFunc(rt.matches, func(m mesh.Match) bool { return all(&m) })
		}
		if !fits {
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
		return slices.ContainsFunc(r.routes, func(rt *route) bool {
			return slices.ContainsFunc(rt.matches, func(m mesh.Match) bool { return r.takes(&m, methods, paths) })
		})
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

// takes reports whether some request could satisfy a match of a route and a rule's methods, paths and headers.
func (r *rule) takes(m *mesh.Match, methods []string, paths []mesh.PathMatch) bool {
	if m.Method != "" && len(methods) > 0 && !slices.Contains(methods, m.Method) {
		return false
	}
	if len(paths) > 0 && !slices.ContainsFunc(paths, func(p mesh.PathMatch) bool { return overlap(m.Path, p) }) {
		return false
	}
	for i := range r.out.Headers {
		h := &r.out.Headers[i]
		j := slices.IndexFunc(m.Headers, func(x mesh.HeaderMatch) bool { return x.Name == h.Name })
		if j < 0 || h.Present {
			continue
		}
		if !slices.ContainsFunc(values(h), func(v string) bool { return decide.ValueMatches(&m.Headers[j], v) }) {
			return false
		}
	}
	return true
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

// overlap reports whether some path satisfies both conditions. Of a regular expression that is not known.
func overlap(a, b mesh.PathMatch) bool {
	if a.Regex != "" || b.Regex != "" {
		return true
	}
	p, q := patternOf(a), patternOf(b)
	if len(p.elements) > len(q.elements) {
		p, q = q, p
	}
	if len(p.elements) < len(q.elements) && !p.open {
		return false
	}
	for i, e := range p.elements {
		if f := q.elements[i]; e != f && !(e == wild && f != "") && !(f == wild && e != "") {
			return false
		}
	}
	return true
}

// pathInside reports whether every path that satisfies b satisfies a.
func pathInside(a, b mesh.PathMatch) bool {
	if a.Regex != "" || b.Regex != "" {
		return a == b
	}
	p, q := patternOf(a), patternOf(b)
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

// checkDeadAllows warns of allow rules that deny rules leave nothing: whatever a caller of the rule does on a port of it,
// one deny rule covers.
func (c *compiler) checkDeadAllows(s *service, rules []*rule) {
	for _, a := range rules {
		if a.action != mesh.Allow || a.out.Shadow {
			continue
		}
		var by []*rule
		dead := true
		for _, p := range a.ports {
			for i := range a.out.From {
				j := slices.IndexFunc(rules, func(d *rule) bool {
					return d.action == mesh.DenyRule && !d.out.Shadow && slices.Contains(d.ports, p) && covers(&d.out, &a.out, &a.out.From[i], p)
				})
				if j < 0 {
					dead = false
					break
				}
				if !slices.Contains(by, rules[j]) {
					by = append(by, rules[j])
				}
			}
		}
		if !dead || len(by) == 0 {
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

// covers reports whether a deny rule matches every call of one caller that an allow rule matches on a port.
func covers(d, a *mesh.Rule, caller *mesh.Peer, p *port) bool {
	return slices.ContainsFunc(d.From, func(q mesh.Peer) bool { return peerInside(&q, caller, p) }) &&
		(d.Until.IsZero() || !a.Until.IsZero() && !a.Until.After(d.Until)) &&
		within(d.Methods, a.Methods, func(x, y string) bool { return x == y }) &&
		within(d.Routes, a.Routes, func(x, y string) bool { return x == y }) &&
		within(d.Paths, a.Paths, pathInside) &&
		within(d.Networks, a.Networks, networkInside) &&
		within(d.SNI, a.SNI, nameInside) &&
		headersInside(d.Headers, a.Headers) && tokenInside(d.JWT, a.JWT)
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

// headersInside reports whether header conditions of a deny rule hold of every request that satisfies those of an allow
// rule. A header that is missing satisfies exact and oneOf in a deny rule too, but the allow rule must say something of
// it for that to be known.
func headersInside(a, b []mesh.HeaderMatch) bool {
	for i := range a {
		h := &a[i]
		j := slices.IndexFunc(b, func(x mesh.HeaderMatch) bool { return x.Name == h.Name })
		if j < 0 || !h.Present && (b[j].Present ||
			slices.ContainsFunc(values(&b[j]), func(v string) bool { return !slices.Contains(values(h), v) })) {
			return false
		}
	}
	return true
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
