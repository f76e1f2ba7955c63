package compile

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// kinds are the maps of rules, by the field that holds them.
var kinds = []struct {
	field  string
	action mesh.Action
	of     func(*v1alpha1.Service) map[string]v1alpha1.Rule
}{
	{"allow", mesh.Allow, func(s *v1alpha1.Service) map[string]v1alpha1.Rule { return s.Allow }},
	{"audit", mesh.AuditRule, func(s *v1alpha1.Service) map[string]v1alpha1.Rule { return s.Audit }},
	{"deny", mesh.DenyRule, func(s *v1alpha1.Service) map[string]v1alpha1.Rule { return s.Deny }},
}

// rule is a rule while it is being compiled.
type rule struct {
	at     path
	action mesh.Action
	src    *v1alpha1.Rule
	ports  []*port  // that it is about, in the order of their names
	routes []*route // that it names
	// out is what becomes of it.
	out mesh.Rule
	// spend counts what it takes to compare the rule with others; see limits.go.
	spend func(steps int)
}

// observes reports whether a rule changes nothing of what is let in.
func (r *rule) observes() bool { return r.action == mesh.AuditRule || r.out.Shadow }

// compileRules compiles the rules of a service, and what its ports carry for them.
func (c *compiler) compileRules(s *service) {
	var rules []*rule
	before := c.failures
	for _, k := range kinds {
		sources := k.of(s.src)
		for _, name := range slices.Sorted(maps.Keys(sources)) {
			src := sources[name]
			r := &rule{at: s.at.at(k.field, name), action: k.action, src: &src}
			r.spend = func(steps int) { c.spend(r.at, steps) }
			r.out = mesh.Rule{ID: string(s.name) + "/" + k.field + "/" + name, Action: k.action}
			c.checkRuleName(r.at, "rule", name)
			c.origins[r.out.ID] = c.pos(r.at)
			c.compileRule(s, r)
			rules = append(rules, r)
		}
	}
	if len(rules) > 0 {
		s.in.Rules = make([]mesh.Rule, 0, len(rules))
	}
	for _, r := range rules {
		s.in.Rules = append(s.in.Rules, r.out)
		r.spend(len(r.ports) * len(s.ports))
		for _, p := range r.ports {
			to, _ := s.in.Port(p.name)
			if len(r.out.Routes) > 0 {
				// The sidecar must tell which of the port's routes takes a request.
				from, _ := s.out.Port(p.name)
				to.Matches = from.Matches
			}
			judges := len(r.out.Paths) > 0 || len(r.out.Routes) > 0 && slices.ContainsFunc(to.Matches, judgesPath)
			// A rule that only observes must not make the sidecar refuse anything.
			if judges && !r.observes() {
				to.CanonicalPaths = true
			}
		}
	}
	for i := range s.in.Ports {
		switch s.in.Ports[i].Default {
		case mesh.ClusterAuthenticated, mesh.ClusterUnauthenticated:
			s.in.ClusterNetworks = c.clusterNetworks()
		}
	}
	c.checkOpenDefaults(s)
	if c.failures == before {
		c.checkDeadAllows(s, rules)
	}
}

func judgesPath(m mesh.Match) bool { return m.Path != mesh.PathMatch{} }

// compileRule compiles one rule.
func (c *compiler) compileRule(s *service, r *rule) {
	src, at := r.src, r.at
	before := len(c.findings)
	r.out.From = c.from(at.at("from"), src.From)
	r.out.Networks = c.networks(at.at("networks"), src.Networks)
	r.out.Methods = c.ruleMethods(at.at("methods"), src.Methods)
	r.out.Paths = c.rulePaths(at.at("paths"), src.Paths)
	c.noEntries(at.at("headers"), len(src.Headers), "headers")
	r.out.Headers = c.ruleHeaders(at.at("headers"), src.Headers)
	r.out.SNI = c.ruleSNI(at.at("sni"), src.Sni)
	r.out.JWT = c.jwt(at.at("jwt"), src.Jwt)
	r.out.Shadow = src.Enforce != nil && !*src.Enforce
	c.until(r)
	c.onPorts(s, r)
	if len(c.findings) == before {
		c.checkDead(s, r)
	}
	c.ruleNeeds(s, r)
}

// ruleNeeds notes what it takes to enforce a rule.
func (c *compiler) ruleNeeds(s *service, r *rule) {
	c.need(&s.in.Needs, mesh.CapAuthorize, r.at, "a rule")
	for _, n := range []struct {
		set        bool
		capability mesh.Capability
		field      string
		what       string
	}{
		{len(r.src.Routes) > 0, mesh.CapAuthorizeL7, "routes", "a rule by routes"},
		{slices.ContainsFunc(r.out.From, func(p mesh.Peer) bool { return p.Prefix != "" || p.Suffix != "" }), mesh.CapAuthorizePattern, "from",
			"a caller by namespace, identityPrefix or identitySuffix"},
		{len(r.src.Networks) > 0, mesh.CapAuthorizeNetwork, "networks", "a rule by networks"},
		{len(r.src.Methods) > 0, mesh.CapAuthorizeRequest, "methods", "a rule by methods"},
		{len(r.src.Paths) > 0, mesh.CapAuthorizeRequest, "paths", "a rule by paths"},
		{len(r.src.Headers) > 0, mesh.CapAuthorizeRequest, "headers", "a rule by headers"},
		{len(r.src.Sni) > 0, mesh.CapAuthorizeSNI, "sni", "a rule by sni"},
		{r.src.Jwt != nil, mesh.CapAuthorizeJWT, "jwt", "a rule by jwt"},
		{!r.out.Until.IsZero(), mesh.CapAuthorizeUntil, "until", "until"},
		{r.out.Shadow, mesh.CapAudit, "enforce", "enforce: false"},
	} {
		if n.set {
			c.need(&s.in.Needs, n.capability, r.at.at(n.field), n.what)
		}
	}
	if r.action == mesh.AuditRule {
		c.need(&s.in.Needs, mesh.CapAudit, r.at, "an audit rule")
	}
}

// until compiles the end of a rule.
func (c *compiler) until(r *rule) {
	at := r.at.at("until")
	if _, written := c.doc.At(string(at)); r.src.Until == "" && !written {
		return
	}
	t, err := time.Parse(time.RFC3339, r.src.Until)
	if err != nil || t.IsZero() {
		c.find(diag.WrongValue, at, fmt.Sprintf("%q is no time", r.src.Until), `write RFC 3339, as in "2027-01-31T00:00:00Z"`)
		return
	}
	r.out.Until = t.UTC()
	const week = 7 * 24 * time.Hour
	switch left := t.Sub(c.now); {
	case c.now.IsZero() || left > week:
	case left <= 0 && r.action == mesh.Allow && !r.out.Shadow:
		c.warn(diag.Expired, at, "the rule has ended: it allows nobody, and its ports still deny what no other rule allows",
			"delete the rule, or write a later time")
	case left <= 0:
		c.warn(diag.Expired, at, "the rule has ended: it does nothing any more", "delete the rule, or write a later time")
	case r.action == mesh.DenyRule && !r.out.Shadow:
		c.warn(diag.Expired, at, "the rule ends within a week, and what it denies is let in then where another rule allows it",
			"write a later time, or leave until out, if that is not meant")
	default:
		c.warn(diag.Expired, at, "the rule ends within a week", "write a later time, or leave until out, if that is not meant")
	}
}

// onPorts resolves the ports and routes of a rule. A rule that says nothing of ports is about all those on which its
// conditions can hold: those of its routes, those that speak HTTP, those that pass TLS through.
func (c *compiler) onPorts(s *service, r *rule) {
	at := r.at
	named := c.rulePorts(s, at.at("ports"), r.src.Ports)
	r.routes = c.ruleRoutes(s, at, r.src.Routes, named)
	for _, rt := range r.routes {
		r.out.Routes = append(r.out.Routes, rt.id)
	}
	r.out.Routes = set(r.out.Routes)
	requests := r.requestField()
	switch {
	case len(s.ports) == 0:
		c.find(diag.DeadRule, at, fmt.Sprintf("%s declares no ports, so nobody calls it", s.name),
			"declare a port, or delete the rule")
		return
	case requests != "" && len(r.src.Sni) > 0:
		c.find(diag.DeadRule, at.at("sni"),
			fmt.Sprintf("no port fits both sni and %s: where TLS passes through, no request is seen, and where one is seen, sni is the mesh's own", requests),
			"write two rules")
		return
	case len(r.src.Ports) > 0:
		r.ports = named
		c.checkPortsFit(r, requests)
	case len(r.src.Routes) > 0:
		for _, p := range s.ports {
			if slices.ContainsFunc(r.routes, func(rt *route) bool { return rt.port == p }) {
				r.ports = append(r.ports, p)
			}
		}
	case requests != "":
		if r.ports = keep(s.ports, (*port).http); len(r.ports) == 0 {
			c.find(diag.DeadRule, at.at(requests), fmt.Sprintf("the rule judges requests, and no port of %s speaks HTTP", s.name),
				fmt.Sprintf("declare the protocol of the port that does, or leave %s out", requests), c.pos(s.at.at("ports")))
		}
	case len(r.src.Sni) > 0:
		if r.ports = keep(s.ports, func(p *port) bool { return p.protocol == mesh.TLS }); len(r.ports) == 0 {
			c.find(diag.DeadRule, at.at("sni"), fmt.Sprintf("the rule judges by the name in a TLS handshake, and no port of %s speaks tls", s.name),
				`declare a port with protocol: "tls", or leave sni out`, c.pos(s.at.at("ports")))
		}
	default:
		r.ports = s.ports
		return // every port, those too that are declared later
	}
	for _, p := range r.ports {
		r.out.Ports = append(r.out.Ports, p.name)
	}
	r.out.Ports = set(r.out.Ports)
}

// requestField is the first field of a rule, besides routes, that only a request can answer; "" where there is none.
func (r *rule) requestField() string {
	switch {
	case len(r.src.Methods) > 0:
		return "methods"
	case len(r.src.Paths) > 0:
		return "paths"
	case len(r.src.Headers) > 0:
		return "headers"
	case r.src.Jwt != nil:
		return "jwt"
	}
	return ""
}

// checkPortsFit checks that the ports a rule names can answer what it asks.
func (c *compiler) checkPortsFit(r *rule, requests string) {
	for i, n := range r.src.Ports {
		j := slices.IndexFunc(r.ports, func(p *port) bool { return p.name == n })
		if j < 0 {
			continue
		}
		p, at := r.ports[j], r.at.at("ports").index(i)
		switch {
		case requests != "" && !p.http():
			c.find(diag.WrongProtocol, at,
				fmt.Sprintf("the rule judges by %s, and port %q speaks %s: its requests cannot be seen", requests, p.name, p.protocol),
				"leave the port out, or write a rule without "+requests+" for it", c.pos(p.at.at("protocol")))
		case len(r.src.Sni) > 0 && p.protocol != mesh.TLS:
			c.find(diag.WrongProtocol, at,
				fmt.Sprintf("the rule judges by sni, and port %q speaks %s: only on ports that speak tls does the client's name come through", p.name, p.protocol),
				"leave the port out, or write a rule without sni for it", c.pos(p.at.at("protocol")))
		}
	}
}

func keep(ports []*port, fits func(*port) bool) (out []*port) {
	for _, p := range ports {
		if fits(p) {
			out = append(out, p)
		}
	}
	return out
}

// rulePorts resolves the ports that a rule names; nil stands for every port.
func (c *compiler) rulePorts(s *service, at path, names []string) (ports []*port) {
	if c.empty(at, len(names), names == nil) {
		c.find(diag.WrongValue, at, "an empty list of ports matches nothing", "leave the field out to mean every port")
	}
	for i, n := range names {
		switch p := s.port(n); {
		case p == nil:
			c.find(diag.UnknownPort, at.index(i), fmt.Sprintf("%s has no port named %q", s.name, n),
				nameHint(n, s.portNames(nil), "the service declares no ports"), c.pos(s.at.at("ports")))
		case slices.Contains(ports, p):
			c.duplicate(at, i, slices.Index(names, n), fmt.Sprintf("port %q", n))
		default:
			ports = append(ports, p)
		}
	}
	return ports
}

// ruleRoutes resolves the routes of a rule that names the given ports.
func (c *compiler) ruleRoutes(s *service, at path, names []string, ports []*port) (routes []*route) {
	if c.empty(at.at("routes"), len(names), names == nil) {
		c.find(diag.WrongValue, at.at("routes"), "an empty list of routes matches nothing",
			"leave the field out to mean every request")
	}
	failed := false
	for i, n := range names {
		field := at.at("routes")
		if j := slices.Index(names, n); j < i {
			c.duplicate(field, i, j, fmt.Sprintf("route %q", n))
			continue
		}
		at := field.index(i)
		found := false
		for _, r := range s.routes {
			if r.name != n || !strings.Contains(r.id, "/httpRoutes/") && !strings.Contains(r.id, "/grpcRoutes/") {
				continue
			}
			found = true
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
		if !found {
			failed = true
			c.find(diag.UnknownRoute, at, fmt.Sprintf("%s has no HTTP route named %q", s.name, n),
				nameHint(n, c.routeNames(s), "declare it in the service's httpRoutes"))
		}
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

// routeNames are the names that a rule may give, sorted.
func (c *compiler) routeNames(s *service) []string {
	return set(slices.Concat(slices.Collect(maps.Keys(s.src.HttpRoutes)), slices.Collect(maps.Keys(s.src.GrpcRoutes))))
}

// duplicate finds an element of a list that is there already.
func (c *compiler) duplicate(list path, i, first int, what string) {
	c.find(diag.DuplicateEntry, list.index(i), what+" is in the list already", "delete the repetition", c.pos(list.index(first)))
}

// warn adds a finding that rejects nothing.
func (c *compiler) warn(id string, at path, message, hint string, related ...diag.Pos) {
	c.find(id, at, message, hint, related...)
	c.findings[len(c.findings)-1].Severity = diag.Warning
	c.failures--
}

// nonEmpty checks a list of conditions: an empty one matches nothing.
func (c *compiler) nonEmpty(at path, n int, isNil bool, what string) {
	if c.empty(at, n, isNil) {
		c.find(diag.WrongValue, at, "an empty list of "+what+" matches nothing", "leave the field out to mean any")
	}
}

// ruleMethods compiles methods: sorted.
func (c *compiler) ruleMethods(at path, src []v1alpha1.Method) (out []string) {
	c.nonEmpty(at, len(src), src == nil, "methods")
	for i, m := range src {
		switch m := string(m); {
		case !token(m):
			c.find(diag.WrongValue, at.index(i), fmt.Sprintf("%q is no HTTP method", m), `write it as in "GET"`)
		case strings.ToUpper(m) != m:
			c.find(diag.WrongValue, at.index(i), fmt.Sprintf("%q is no HTTP method", m),
				fmt.Sprintf("methods are case-sensitive; write %q", strings.ToUpper(m)))
		case slices.Contains(out, m):
			c.duplicate(at, i, slices.Index(src, v1alpha1.Method(m)), "method "+m)
		default:
			out = append(out, m)
		}
	}
	slices.Sort(out)
	return out
}

// rulePaths compiles paths to their one spelling: sorted, exact ones first.
func (c *compiler) rulePaths(at path, src []v1alpha1.RulePath) (out []mesh.PathMatch) {
	c.nonEmpty(at, len(src), src == nil, "paths")
	first := map[string]int{}
	for i, p := range src {
		at := at.index(i)
		n := 0
		for _, s := range []string{string(p.Exact), string(p.Prefix), p.Template} {
			if s != "" {
				n++
			}
		}
		if n != 1 {
			c.find(diag.WrongValue, at, fmt.Sprintf("a path is exactly one of exact, prefix, template; %d are set", n),
				`write it as in {prefix: "/cart"}`)
			continue
		}
		before := len(c.findings)
		var m mesh.PathMatch
		switch {
		case p.Exact != "":
			m.Exact = c.spelling(at.at("exact"), string(p.Exact))
		case p.Prefix != "":
			m.Prefix = c.spelling(at.at("prefix"), string(p.Prefix))
			if m.Prefix != "/" {
				m.Prefix = strings.TrimSuffix(m.Prefix, "/")
			}
		default:
			m.Template = c.template(at.at("template"), p.Template)
		}
		if len(c.findings) > before {
			continue
		}
		key := patternOf(m).key()
		if j, ok := first[key]; ok {
			c.duplicate(at[:strings.LastIndexByte(string(at), '.')], i, j, "path "+m.Exact+m.Prefix+m.Template)
			continue
		}
		first[key] = i
		out = append(out, m)
	}
	slices.SortFunc(out, comparePaths)
	return out
}

func comparePaths(a, b mesh.PathMatch) int {
	kind := func(m mesh.PathMatch) int {
		switch {
		case m.Exact != "":
			return 0
		case m.Prefix != "":
			return 1
		}
		return 2
	}
	if d := kind(a) - kind(b); d != 0 {
		return d
	}
	return strings.Compare(a.Exact+a.Prefix+a.Template, b.Exact+b.Prefix+b.Template)
}

// template checks a path template and returns its one spelling.
func (c *compiler) template(at path, t string) string {
	const hint = `write it as in "/users/{id}/orders": a name in braces stands for one whole element`
	if !strings.HasPrefix(t, "/") {
		c.find(diag.BadPattern, at, fmt.Sprintf("%q does not start with \"/\"", t), fmt.Sprintf("write %q", "/"+t))
		return ""
	}
	elements := strings.Split(t[1:], "/")
	plain := slices.Clone(elements) // what the template would be, if it were a path
	var names []string
	for i, e := range elements {
		name, ok := strings.CutPrefix(e, "{")
		if ok {
			name, ok = strings.CutSuffix(name, "}")
		}
		switch {
		case ok && named(name, "-_", true) && slices.Contains(names, name):
			c.find(diag.BadPattern, at, fmt.Sprintf("{%s} stands twice in %q", name, t), "give each element a name of its own")
			return ""
		case ok && named(name, "-_", true):
			names = append(names, name)
			plain[i] = "x"
		case strings.ContainsAny(e, "{}*"):
			c.find(diag.BadPattern, at, fmt.Sprintf("%q is no element of a template", e), hint)
			return ""
		default:
			elements[i] = decide.SpellPath(e)
		}
	}
	if len(names) == 0 {
		c.find(diag.BadPattern, at, fmt.Sprintf("%q has no name in braces", t), "write it as exact, or "+strings.TrimPrefix(hint, "write it "))
		return ""
	}
	before := len(c.findings)
	if c.spelling(at, "/"+strings.Join(plain, "/")); len(c.findings) > before {
		return ""
	}
	return "/" + strings.Join(elements, "/")
}

// ruleHeaders compiles header conditions, sorted by lower-case name.
func (c *compiler) ruleHeaders(at path, src map[string]v1alpha1.HeaderValue) (out []mesh.HeaderMatch) {
	seen := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(src)) {
		h, at := src[name], at.at(name)
		lower := strings.ToLower(name)
		if !c.headerName(at, name, seen) {
			continue
		}
		n := 0
		for _, set := range []bool{h.Exact != "", h.OneOf != nil || c.empty(at.at("oneOf"), len(h.OneOf), h.OneOf == nil), h.Present} {
			if set {
				n++
			}
		}
		if n != 1 {
			c.find(diag.WrongValue, at, fmt.Sprintf("a header is exactly one of exact, oneOf, present; %d are set", n),
				`write it as in {exact: "value"}`)
			continue
		}
		m := mesh.HeaderMatch{Name: lower, Present: h.Present}
		if h.Exact != "" && c.headerValue(at.at("exact"), h.Exact) {
			m.Exact = h.Exact
		}
		if !h.Present && h.Exact == "" {
			c.nonEmpty(at.at("oneOf"), len(h.OneOf), h.OneOf == nil, "values")
			for i, v := range h.OneOf {
				switch {
				case slices.Contains(m.OneOf, v):
					c.duplicate(at.at("oneOf"), i, slices.Index(h.OneOf, v), fmt.Sprintf("value %q", v))
				case c.headerValue(at.at("oneOf").index(i), v):
					m.OneOf = append(m.OneOf, v)
				}
			}
			slices.Sort(m.OneOf)
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b mesh.HeaderMatch) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// headerName checks the name of a header condition; seen has those before it by their lower-case form.
func (c *compiler) headerName(at path, name string, seen map[string]string) bool {
	lower := strings.ToLower(name)
	if !token(name) {
		c.find(diag.WrongValue, at, fmt.Sprintf("%q is no header name", name), `write a name as in "x-tenant"`)
		return false
	}
	if other, ok := seen[lower]; ok {
		c.find(diag.WrongValue, at, fmt.Sprintf("header names are case-insensitive: %q is %q again", name, other), "write it once")
		return false
	}
	seen[lower] = name
	if why := notPassedOn(lower); why != "" {
		c.find(diag.WrongValue, at, fmt.Sprintf("header %s %s, so it is no condition", lower, why),
			"judge by another header, or by the caller (from)")
		return false
	}
	return true
}

// headerValue checks the value of a header condition.
func (c *compiler) headerValue(at path, v string) bool {
	if v != "" && utf8.ValidString(v) && strings.TrimSpace(v) == v && !strings.ContainsFunc(v, unicode.IsControl) {
		return true
	}
	c.find(diag.WrongValue, at, fmt.Sprintf("no header has the value %q", v),
		"leave out control characters, and spaces at the ends, and write UTF-8")
	return false
}

// ruleSNI compiles names that a client may ask for: lower case, sorted.
func (c *compiler) ruleSNI(at path, src []string) (out []string) {
	c.nonEmpty(at, len(src), src == nil, "names")
	for i, n := range src {
		lower := strings.ToLower(n)
		switch {
		case !dnsName(strings.TrimPrefix(lower, "*.")):
			c.find(diag.WrongValue, at.index(i), fmt.Sprintf("%q is no host name", n),
				`write it as in "api.example.org", or "*.example.org" for all names under it`)
		case slices.Contains(out, lower):
			first := slices.IndexFunc(src, func(s string) bool { return strings.EqualFold(s, n) })
			c.duplicate(at, i, first, fmt.Sprintf("name %q", n))
		default:
			out = append(out, lower)
		}
	}
	slices.Sort(out)
	return out
}

// dnsName reports whether a lower-case name can stand in a TLS handshake: labels and dots, and no IP address (RFC 6066, 3).
func dnsName(name string) bool {
	if len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if !named(label, "-_", false) {
			return false
		}
	}
	_, err := netip.ParseAddr(name)
	return err != nil
}
