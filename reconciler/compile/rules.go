package compile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// kinds are the two maps of rules, by the field that holds them.
var kinds = []struct {
	field  string
	action mesh.Action
	of     func(*v1alpha1.Service) map[string]v1alpha1.Rule
}{
	{"allow", mesh.Allow, func(s *v1alpha1.Service) map[string]v1alpha1.Rule { return s.Allow }},
	{"deny", mesh.DenyRule, func(s *v1alpha1.Service) map[string]v1alpha1.Rule { return s.Deny }},
}

// compileRules compiles the rules of a service.
func (c *compiler) compileRules(s *service) {
	if n := len(s.src.Allow) + len(s.src.Deny); n > 0 {
		s.in.Rules = make([]mesh.Rule, 0, n)
	}
	for _, k := range kinds {
		rules := k.of(s.src)
		for _, name := range slices.Sorted(maps.Keys(rules)) {
			src := rules[name]
			at := s.at.at(k.field, name)
			c.checkRuleName(at, "rule", name)
			r := mesh.Rule{ID: string(s.name) + "/" + k.field + "/" + name, Action: k.action, From: c.from(at.at("from"), src.From)}
			c.origins[r.ID] = c.pos(at)
			if _, written := c.doc.Positions[string(at.at("until"))]; src.Until != "" || written {
				c.notEnforced(at.at("until"), "until", "leave it out, and delete the rule when its time has come")
			}
			if src.Enforce != nil && !*src.Enforce {
				c.notEnforced(at.at("enforce"), "enforce: false", "leave the rule out until it is meant")
			}
			ports := c.rulePorts(s, at.at("ports"), src.Ports)
			routes := c.ruleRoutes(s, at, src.Routes, ports)
			for _, rt := range routes {
				r.Routes = append(r.Routes, rt.id)
				if ports == nil {
					// The rule speaks of routes, so it speaks of their ports and leaves the others alone.
					r.Ports = append(r.Ports, rt.port.name)
				}
				// The sidecar must tell which of the port's routes takes a request.
				to, _ := s.in.Port(rt.port.name)
				from, _ := s.out.Port(rt.port.name)
				to.Matches = from.Matches
				to.CanonicalPaths = slices.ContainsFunc(to.Matches, judgesPath)
			}
			for _, p := range ports {
				r.Ports = append(r.Ports, p.name)
			}
			r.Ports, r.Routes = set(r.Ports), set(r.Routes)
			c.checkDead(s, at, k.action, &src, r.Ports)
			s.in.Rules = append(s.in.Rules, r)
		}
	}
}

func judgesPath(m mesh.Match) bool { return m.Path != mesh.PathMatch{} }

// ruleAt is the path of a compiled rule.
func (s *service) ruleAt(r *mesh.Rule) path {
	return s.at + path(strings.ReplaceAll(strings.TrimPrefix(r.ID, string(s.name)), "/", "."))
}

// from compiles callers: sorted, without repetitions.
func (c *compiler) from(at path, from []v1alpha1.From) []mesh.Peer {
	if len(from) == 0 {
		c.find(diag.NoCaller, at, "the rule names no caller, so it matches nobody",
			`name one, as in from: [{service: "shop/web"}], or delete the rule`)
	}
	peers := make([]mesh.Peer, 0, len(from))
	for i, f := range from {
		at := at.index(i)
		n := 0
		for _, set := range []bool{f.Service != "", f.Identity != "", f.Authenticated, f.Unauthenticated} {
			if set {
				n++
			}
		}
		if n != 1 {
			c.find(diag.WrongValue, at,
				fmt.Sprintf("a caller is exactly one of service, identity, authenticated, unauthenticated; %d are set", n),
				"write one list element for each kind of caller")
			continue
		}
		switch {
		case f.Service != "":
			if s := c.lookup(at.at("service"), f.Service); s != nil {
				for _, id := range s.in.Identities {
					peers = append(peers, mesh.Peer{Identity: id})
				}
			}
		case f.Identity != "":
			if c.identity(at.at("identity"), f.Identity) {
				peers = append(peers, mesh.Peer{Identity: string(f.Identity)})
			}
		default:
			peers = append(peers, mesh.Peer{Authenticated: f.Authenticated, Unauthenticated: f.Unauthenticated})
		}
	}
	slices.SortFunc(peers, func(a, b mesh.Peer) int { return cmp.Or(rank(a)-rank(b), strings.Compare(a.Identity, b.Identity)) })
	return slices.Compact(peers)
}

// rank orders kinds of callers from narrow to wide.
func rank(p mesh.Peer) int {
	switch {
	case p.Unauthenticated:
		return 2
	case p.Authenticated:
		return 1
	}
	return 0
}

// rulePorts resolves the ports of a rule; nil stands for every port.
func (c *compiler) rulePorts(s *service, at path, names []string) (ports []*port) {
	if c.empty(at, len(names), names == nil) {
		c.find(diag.WrongValue, at, "an empty list of ports matches nothing", "leave the field out to mean every port")
	}
	for i, n := range names {
		if p := s.port(n); p != nil {
			ports = append(ports, p)
		} else {
			c.find(diag.UnknownPort, at.index(i), fmt.Sprintf("%s has no port named %q", s.name, n),
				nameHint(n, s.portNames(nil), "the service declares no ports"), c.pos(s.at.at("ports")))
		}
	}
	return ports
}

// ruleRoutes resolves the routes of a rule that stands on the given ports.
func (c *compiler) ruleRoutes(s *service, at path, names []string, ports []*port) (routes []*route) {
	if c.empty(at.at("routes"), len(names), names == nil) {
		c.find(diag.WrongValue, at.at("routes"), "an empty list of routes matches nothing",
			"leave the field out to mean every request")
	}
	failed := false
	for i, n := range names {
		at := at.at("routes").index(i)
		j := slices.IndexFunc(s.routes, func(r *route) bool { return r.name == n })
		if j < 0 {
			failed = true
			c.find(diag.UnknownRoute, at, fmt.Sprintf("%s has no HTTP route named %q", s.name, n),
				nameHint(n, slices.Sorted(maps.Keys(s.src.HttpRoutes)), "declare it in the service's httpRoutes"))
			continue
		}
		r := s.routes[j]
		if r.port == nil || !r.port.http() {
			failed = true // a finding of the route's own
			continue
		}
		if ports != nil && !slices.Contains(ports, r.port) {
			c.find(diag.DeadRule, at, fmt.Sprintf("route %q is on port %q, which the rule leaves out", n, r.port.name),
				fmt.Sprintf("add %q to the rule's ports, or leave ports out: the routes say which", r.port.name), c.pos(r.at))
			continue
		}
		routes = append(routes, r)
	}
	if len(names) == 0 || failed {
		return routes
	}
	for i, p := range ports {
		at := at.at("ports").index(i)
		switch {
		case !p.http():
			c.find(diag.WrongProtocol, at,
				fmt.Sprintf("the rule judges by routes, and port %q speaks %s: its requests cannot be seen", p.name, p.protocol),
				"leave the port out, or write a rule without routes for it", c.pos(p.at.at("protocol")))
		case !slices.ContainsFunc(routes, func(r *route) bool { return r.port == p }):
			c.find(diag.DeadRule, at, fmt.Sprintf("none of the rule's routes is on port %q", p.name), "leave the port out")
		}
	}
	return routes
}

// checkDead finds rules that can never do what they say.
func (c *compiler) checkDead(s *service, at path, action mesh.Action, src *v1alpha1.Rule, ports []string) {
	if len(s.ports) == 0 {
		c.find(diag.DeadRule, at, fmt.Sprintf("%s declares no ports, so nobody calls it", s.name),
			"declare a port, or delete the rule")
		return
	}
	if action != mesh.Allow {
		return // `deny: from: [{unauthenticated: true}]` denies everybody, on strict ports too
	}
	i := slices.IndexFunc(src.From, func(f v1alpha1.From) bool { return f.Unauthenticated })
	if i < 0 {
		return
	}
	for _, p := range s.ports {
		if (len(ports) == 0 || slices.Contains(ports, p.name)) && p.mtls.v == mesh.Permissive {
			return
		}
	}
	c.find(diag.DeadRule, at.at("from").index(i),
		"callers without an identity never get this far: every port of the rule is mtls \"strict\"",
		`set mtls: "permissive" on the port that takes plaintext, or write authenticated: true`)
}
