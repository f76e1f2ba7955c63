package compile

import (
	"cmp"
	"fmt"
	"maps"
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

// route is an HTTP route while it is being compiled.
type route struct {
	name     string
	at       path
	id       string
	port     *port        // nil where it could not be resolved
	matches  []mesh.Match // in precedence
	broken   bool         // matches has findings, so what it holds is not what was meant
	compiled mesh.Route   // as callers see it
	timeout  value[time.Duration]
}

// compileRoutes compiles the routes of a service as its callers apply them.
func (c *compiler) compileRoutes(s *service) {
	for _, name := range slices.Sorted(maps.Keys(s.src.HttpRoutes)) {
		src := s.src.HttpRoutes[name]
		r := &route{name: name, at: s.at.at("httpRoutes", name), id: string(s.name) + "/httpRoutes/" + name, timeout: s.defaults.timeout}
		c.checkRuleName(r.at, "route", name)
		c.origins[r.id] = c.pos(r.at)
		r.port = c.routePort(s, r, src.Port)
		before := len(c.findings)
		r.matches = c.matches(r, src.Match)
		r.broken = len(c.findings) > before
		if src.Timeout != "" {
			if d, ok := c.duration(r.at.at("timeout"), src.Timeout); ok {
				r.timeout = value[time.Duration]{d, r.at.at("timeout"), false}
			}
		}
		if src.Retry != nil {
			c.notEnforced(r.at.at("retry"), "retry", "leave it out")
		}
		if len(src.Filters) > 0 {
			c.notEnforced(r.at.at("filters"), "a filter", "leave filters out")
		}
		r.compiled = mesh.Route{ID: r.id, Backends: c.backends(s, r, src.Backends), Timeouts: mesh.Timeouts{Request: r.timeout.v}}
		if r.port != nil {
			r.compiled.Port = r.port.name
		}
		s.routes = append(s.routes, r)
	}
	c.defaultRoutes(s)
	if len(s.routes) > 0 {
		s.out.Routes = make([]mesh.Route, 0, len(s.routes))
	}
	for _, r := range s.routes {
		s.out.Routes = append(s.out.Routes, r.compiled)
		if r.port != nil {
			p, _ := s.out.Port(r.port.name)
			p.Matches = append(p.Matches, r.matches...)
		}
	}
	slices.SortFunc(s.out.Routes, func(a, b mesh.Route) int { return strings.Compare(a.ID, b.ID) })
	for i := range s.out.Ports {
		slices.SortFunc(s.out.Ports[i].Matches, precedence)
	}
	c.checkShadowed(s)
	if t := s.defaults.timeout; t.from != "" && !t.shared && len(s.portNames((*port).http)) == 0 {
		c.find(diag.WrongProtocol, t.from, "a timeout is for requests, and no port of the service speaks HTTP",
			"leave it out")
	}
}

// defaultRoutes gives ports that have no routes one for everything, to the service itself, where a default timeout
// is in force: what `defaults:` says must hold for them too.
func (c *compiler) defaultRoutes(s *service) {
	t := s.defaults.timeout
	if t.v == 0 {
		return
	}
	for _, p := range s.ports {
		if !p.http() || slices.ContainsFunc(s.routes, func(r *route) bool { return r.port == p }) {
			continue
		}
		id := mesh.DefaultRouteID(s.name, p.name)
		s.routes = append(s.routes, &route{at: p.at, id: id, port: p, matches: []mesh.Match{{Route: id}}, timeout: t, compiled: mesh.Route{
			ID: id, Port: p.name, Backends: []mesh.Backend{{Service: s.name, Port: p.name, Weight: 100}}, Timeouts: mesh.Timeouts{Request: t.v},
		}})
		c.origins[id] = c.pos(t.from)
	}
}

// routePort resolves the port that a route belongs to.
func (c *compiler) routePort(s *service, r *route, name string) *port {
	if name == "" {
		return c.onlyHTTPPort(s, r.at, "port")
	}
	p := s.port(name)
	switch {
	case p == nil:
		c.find(diag.UnknownPort, r.at.at("port"), fmt.Sprintf("%s has no port named %q", s.name, name),
			nameHint(name, s.portNames(nil), "the service declares no ports"), c.pos(s.at.at("ports")))
	case !p.http():
		c.find(diag.WrongProtocol, r.at.at("port"),
			fmt.Sprintf("port %q speaks %s, so no HTTP route can stand on it", name, p.protocol),
			`set the port's protocol to "http1" or "detect", or delete the route`, c.pos(p.at.at("protocol")))
		return nil
	}
	return p
}

// onlyHTTPPort is the port meant where none is named.
func (c *compiler) onlyHTTPPort(s *service, at path, field string) *port {
	names := s.portNames((*port).http)
	switch len(names) {
	case 1:
		return s.port(names[0])
	case 0:
		c.find(diag.WrongProtocol, at, fmt.Sprintf("no port of %s speaks HTTP", s.name),
			`declare one with protocol: "http1" or "detect"`, c.pos(s.at.at("ports")))
	default:
		c.find(diag.AmbiguousPort, at,
			fmt.Sprintf("%s has %d ports that speak HTTP, and none is named here", s.name, len(names)),
			fmt.Sprintf("write %s: %s", field, quoted(names)), c.pos(s.at.at("ports")))
	}
	return nil
}

func quoted(names []string) string {
	q := make([]string, len(names))
	for i, n := range names {
		q[i] = fmt.Sprintf("%q", n)
	}
	return strings.Join(q, " or ")
}

// backends resolves where a route's requests go: sorted, one entry for each service and port.
func (c *compiler) backends(s *service, r *route, src []v1alpha1.Backend) []mesh.Backend {
	at := r.at.at("backends")
	if c.empty(at, len(src), src == nil) {
		c.find(diag.WrongValue, at, "an empty list of backends takes no requests",
			"leave the field out to mean the service itself")
	}
	if len(src) == 0 {
		if r.port == nil {
			return nil
		}
		return []mesh.Backend{{Service: s.name, Port: r.port.name, Weight: 100}}
	}
	var out []mesh.Backend
	sum, complete := int64(0), true
	for i, b := range src {
		at := at.index(i)
		w := int64(100)
		switch {
		case b.Weight == nil && len(src) > 1:
			complete = false
			c.find(diag.MissingField, at, "one of several backends needs a weight",
				"write weight: and let the weights sum to 100")
		case b.Weight != nil && (*b.Weight < 0 || *b.Weight > 100):
			complete = false
			c.find(diag.WrongValue, at.at("weight"), fmt.Sprintf("%d is no percentage", *b.Weight),
				"write a number from 0 to 100")
		case b.Weight != nil:
			w = *b.Weight
		}
		sum += w
		target := c.lookup(at.at("service"), b.Service)
		if target == nil {
			continue
		}
		p := c.backendPort(target, r, at, b.Port)
		if p == nil {
			continue
		}
		out = append(out, mesh.Backend{Service: target.name, Port: p.name, Weight: uint32(max(w, 0))})
	}
	if complete && sum != 100 {
		c.find(diag.WeightSum, at, fmt.Sprintf("the weights sum to %d", sum), "let them sum to 100: they are percentages")
	}
	slices.SortFunc(out, func(a, b mesh.Backend) int {
		return cmp.Or(strings.Compare(string(a.Service), string(b.Service)), strings.Compare(a.Port, b.Port))
	})
	merged := out[:0]
	for _, b := range out {
		if n := len(merged); n > 0 && merged[n-1].Service == b.Service && merged[n-1].Port == b.Port {
			merged[n-1].Weight += b.Weight
		} else {
			merged = append(merged, b)
		}
	}
	return merged
}

// backendPort resolves a backend's port: the one it names, else the one named as the route's, else its only HTTP port.
func (c *compiler) backendPort(target *service, r *route, at path, name string) *port {
	field := at
	if name != "" {
		field = at.at("port")
	}
	p := target.port(name)
	if name == "" && r.port != nil {
		p = target.port(r.port.name)
	}
	switch {
	case p == nil && name != "":
		c.find(diag.UnknownPort, field, fmt.Sprintf("%s has no port named %q", target.name, name),
			nameHint(name, target.portNames(nil), "the service declares no ports"), c.pos(target.at.at("ports")))
	case p == nil && r.port == nil:
		return nil // the route's own port is a finding already; which one the backend's would be is a guess
	case p == nil:
		return c.onlyHTTPPort(target, at, "port")
	case !p.http():
		c.find(diag.WrongProtocol, field,
			fmt.Sprintf("port %q of %s speaks %s, so it takes no HTTP requests", p.name, target.name, p.protocol),
			nameHint("", target.portNames((*port).http), "name a backend that speaks HTTP"), c.pos(p.at.at("protocol")))
		return nil
	}
	return p
}

// matches compiles the conditions of a route, in precedence. A route without any takes every request.
func (c *compiler) matches(r *route, src []v1alpha1.HTTPMatch) []mesh.Match {
	at := r.at.at("match")
	if c.empty(at, len(src), src == nil) {
		c.find(diag.WrongValue, at, "an empty list of conditions matches nothing",
			"leave the field out to match every request")
	}
	if len(src) == 0 {
		return []mesh.Match{{Route: r.id}}
	}
	out := make([]mesh.Match, 0, len(src))
	for i, m := range src {
		at := at.index(i)
		match := mesh.Match{Route: r.id, Method: string(m.Method), Headers: c.headers(at.at("headers"), m.Headers)}
		if m.Path != nil {
			match.Path = c.path(at.at("path"), m.Path)
		}
		if m.Method != "" && (!token(string(m.Method)) || strings.ToUpper(string(m.Method)) != string(m.Method)) {
			c.find(diag.WrongValue, at.at("method"), fmt.Sprintf("%q is no HTTP method", m.Method),
				fmt.Sprintf("methods are case-sensitive; write %q", strings.ToUpper(string(m.Method))))
		}
		out = append(out, match)
	}
	slices.SortFunc(out, precedence)
	return out
}

// path compiles a path match to its one spelling.
func (c *compiler) path(at path, src *v1alpha1.PathMatch) mesh.PathMatch {
	n := 0
	for _, s := range []string{string(src.Exact), string(src.Prefix), src.Regex} {
		if s != "" {
			n++
		}
	}
	if n != 1 {
		c.find(diag.WrongValue, at, fmt.Sprintf("a path match is exactly one of exact, prefix, regex; %d are set", n),
			`write path: prefix: "/cart"`)
		return mesh.PathMatch{}
	}
	switch {
	case src.Regex != "":
		c.notEnforced(at.at("regex"), "a regular expression over the path", "write exact or prefix")
		return mesh.PathMatch{}
	case src.Exact != "":
		return mesh.PathMatch{Exact: c.spelling(at.at("exact"), string(src.Exact))}
	}
	p := c.spelling(at.at("prefix"), string(src.Prefix))
	// Every path has the prefix "/", and so has the "*" of OPTIONS for this purpose: it is no condition at all.
	return mesh.PathMatch{Prefix: strings.TrimSuffix(p, "/")}
}

// spelling checks a path of policy and returns its one spelling.
func (c *compiler) spelling(at path, p string) string {
	switch {
	case !strings.HasPrefix(p, "/"):
		c.find(diag.WrongValue, at, fmt.Sprintf("%q does not start with \"/\"", p), fmt.Sprintf("write %q", "/"+p))
	case strings.ContainsAny(p, "?#"):
		c.find(diag.WrongValue, at, fmt.Sprintf("%q has a query or a fragment, which a path match never sees", p),
			fmt.Sprintf("write %q", p[:strings.IndexAny(p, "?#")]))
	case !decide.CanonicalPath(p):
		c.find(diag.WrongValue, at, fmt.Sprintf("%q is not canonical, so no request that is let in has it", p),
			`leave out "//", dot segments, "\", ";", and escapes of "/", "\", "." and NUL`)
	default:
		return decide.SpellPath(p)
	}
	return p
}

// headers compiles header conditions, sorted by lower-case name.
func (c *compiler) headers(at path, src map[string]v1alpha1.HeaderMatch) (out []mesh.HeaderMatch) {
	seen := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(src)) {
		h, at := src[name], at.at(name)
		lower := strings.ToLower(name)
		if !token(name) {
			c.find(diag.WrongValue, at, fmt.Sprintf("%q is no header name", name), `write a name as in "x-tenant"`)
			continue
		}
		if other, ok := seen[lower]; ok {
			c.find(diag.WrongValue, at, fmt.Sprintf("header names are case-insensitive: %q is %q again", name, other),
				"write it once")
			continue
		}
		seen[lower] = name
		if why := notPassedOn(lower); why != "" {
			c.find(diag.WrongValue, at, fmt.Sprintf("header %s %s, so it is no condition", lower, why),
				"judge by another header, or by the caller (from)")
			continue
		}
		switch {
		case h.Regex != "" && h.Exact != "":
			c.find(diag.WrongValue, at, "a header match is exactly one of exact, regex; 2 are set", `write exact: "value"`)
		case h.Regex != "":
			c.notEnforced(at.at("regex"), "a regular expression over a header", "write exact")
		case h.Exact == "":
			c.find(diag.WrongValue, at, "the header match names no value", `write exact: "value"`)
		case !utf8.ValidString(h.Exact) || strings.TrimSpace(h.Exact) != h.Exact || strings.ContainsFunc(h.Exact, unicode.IsControl):
			c.find(diag.WrongValue, at.at("exact"), fmt.Sprintf("no header has the value %q", h.Exact),
				"leave out control characters, and spaces at the ends, and write UTF-8")
		default:
			out = append(out, mesh.HeaderMatch{Name: lower, Exact: h.Exact})
		}
	}
	slices.SortFunc(out, func(a, b mesh.HeaderMatch) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// notPassedOn says why a header cannot be judged on both sides of a connection, or "". Sidecars strip what only they may
// write, from whomever it comes, and what ends with one hop (RFC 9110, 7.6.1): a rule by one would never match a mesh
// peer, and match whatever a stranger claims.
func notPassedOn(lower string) string {
	switch spelt := strings.ReplaceAll(lower, "_", "-"); {
	case strings.HasPrefix(spelt, "heddle-"), spelt == "x-forwarded-client-cert":
		return "is written by sidecars and stripped from what callers send"
	}
	switch lower {
	case "connection", "keep-alive", "proxy-connection", "proxy-authorization", "proxy-authenticate", "te", "trailer",
		"transfer-encoding", "content-length", "upgrade":
		return "belongs to one connection and is not passed on as it came"
	}
	return ""
}

// token reports whether s is a token (RFC 9110, 5.6.2).
func token(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	}) < 0
}

// precedence orders matches as the Gateway API does: exact paths, longest prefix, method, most headers. It breaks ties
// by the route's id, where the Gateway API takes the older object: a commit has no older objects. What ties beyond that
// is ordered by content, so that the order in which an author lists a route's conditions is no behaviour.
func precedence(a, b mesh.Match) int {
	flag := func(set bool) int {
		if set {
			return 0
		}
		return 1
	}
	if c := cmp.Or(
		flag(a.Path.Exact != "")-flag(b.Path.Exact != ""),
		len(b.Path.Prefix)-len(a.Path.Prefix),
		flag(a.Method != "")-flag(b.Method != ""),
		len(b.Headers)-len(a.Headers),
		strings.Compare(a.Route, b.Route),
	); c != 0 {
		return c
	}
	return strings.Compare(conditions(a), conditions(b))
}

// conditions spells out all that a match asks for; two matches with the same conditions match the same requests.
func conditions(m mesh.Match) string {
	var b strings.Builder
	part := func(s string) { b.WriteString(s); b.WriteByte('\n') } // stands in none of the parts
	part(m.Path.Exact)
	part(m.Path.Prefix)
	part(m.Method)
	for _, h := range m.Headers {
		part(h.Name)
		part(h.Exact)
	}
	return b.String()
}

// checkShadowed finds matches that no request reaches. In the order of precedence a match is covered by an earlier one
// only where both ask for the same: a wider path, fewer headers or any method always come later.
func (c *compiler) checkShadowed(s *service) {
	for i := range s.out.Ports {
		matches := s.out.Ports[i].Matches
		if len(matches) < 2 {
			continue
		}
		first := make(map[string]string, len(matches)) // conditions → route
		for _, m := range matches {
			if s.route(m.Route).broken {
				continue
			}
			key := conditions(m)
			earlier, ok := first[key]
			if !ok {
				first[key] = m.Route
				continue
			}
			at, by := s.route(m.Route).at, s.route(earlier).at
			if at == by {
				c.find(diag.ShadowedRoute, at.at("match"), "two of the route's matches ask for the same",
					"delete one of them")
				continue
			}
			c.find(diag.ShadowedRoute, at,
				fmt.Sprintf("route %q takes every request of one of this route's matches first", localID(earlier)),
				"make one of them more specific (path, method, header), or delete it", c.pos(by))
		}
	}
}

// route finds one of the service's routes by its id.
func (s *service) route(id string) *route {
	return s.routes[slices.IndexFunc(s.routes, func(r *route) bool { return r.id == id })]
}

func localID(id string) string { return id[strings.LastIndexByte(id, '/')+1:] }

// unconditional reports whether a match takes every request.
func unconditional(m mesh.Match) bool {
	return m.Path == mesh.PathMatch{} && m.Method == "" && len(m.Headers) == 0
}

// hop is a port of a service.
type hop struct {
	service mesh.ServiceName
	port    string
}

// checkLoops finds ports that hand every request on in a round; see the package's comment for what that means.
func (c *compiler) checkLoops(services []*service) {
	next := map[hop][]hop{}
	where := map[hop]path{}
	var order []hop
	for _, s := range services {
		if !slices.ContainsFunc(s.routes, func(r *route) bool { return len(r.matches) > 0 && unconditional(r.matches[len(r.matches)-1]) }) {
			continue // the unconditional match is the last in precedence
		}
		for _, p := range s.ports {
			at := hop{s.name, p.name}
			keeps := false
			for _, r := range s.routes {
				if r.port != p {
					continue
				}
				var to []hop
				for _, b := range r.compiled.Backends {
					keeps = keeps || b.Weight > 0 && b.Service == s.name
					if b.Weight > 0 {
						to = append(to, hop{b.Service, b.Port})
					}
				}
				if next[at] == nil && !r.broken && unconditional(r.matches[len(r.matches)-1]) {
					next[at], where[at] = to, r.at.at("backends")
				}
			}
			if keeps {
				delete(next, at)
			} else if len(next[at]) > 0 {
				order = append(order, at)
			}
		}
	}
	for {
		// What leads nowhere is in no round.
		for changed := true; changed; {
			changed = false
			for _, h := range order {
				to := slices.DeleteFunc(next[h], func(t hop) bool { return len(next[t]) == 0 })
				changed = changed || len(to) == 0 && len(next[h]) > 0
				next[h] = to
			}
		}
		order = slices.DeleteFunc(order, func(h hop) bool { return len(next[h]) == 0 })
		if len(order) == 0 {
			return
		}
		// From what is left every step leads on, so walking ends in a round.
		walk := []hop{order[0]}
		start := -1
		for start < 0 {
			to := next[walk[len(walk)-1]][0]
			start = slices.Index(walk, to)
			walk = append(walk, to)
		}
		round := walk[start : len(walk)-1]
		names, related := make([]string, 0, len(round)+1), []diag.Pos{}
		first := slices.IndexFunc(order, func(h hop) bool { return slices.Contains(round, h) })
		turn := slices.Index(round, order[first])
		round = slices.Concat(round[turn:], round[:turn])
		for i, h := range round {
			names = append(names, string(h.service))
			if i > 0 {
				related = append(related, c.pos(where[h]))
			}
			next[h] = nil
		}
		c.find(diag.RouteLoop, where[round[0]],
			"routes hand all requests round: "+strings.Join(append(names, names[0]), " → "),
			"routes are applied once, by the caller; let one of the services keep a share of its own requests", related...)
	}
}
