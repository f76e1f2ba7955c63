package compile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// route is a route while it is being compiled.
type route struct {
	name     string
	at       path
	id       string
	src      routeSource
	consumer string       // the namespace whose calls it is for; "" is everybody
	port     *port        // nil where it could not be resolved
	matches  []mesh.Match // in precedence
	broken   bool         // matches has findings, so what it holds is not what was meant
	answered bool         // by the caller's sidecar: a redirect or a response of its own
	anyHost  bool         // a TLS route for every name
	compiled mesh.Route   // as callers see it

	timeouts timeouts
	retry    retry
}

// routeSource is what HTTP and gRPC routes have in common.
type routeSource struct {
	kind     routeKind
	port     string
	backends []v1alpha1.Backend
	timeout  v1alpha1.Duration
	response v1alpha1.Duration
	idle     v1alpha1.Duration
	retry    *v1alpha1.Retry
	filters  []v1alpha1.Filter
	rate     *v1alpha1.RateLimit
	breaker  *v1alpha1.Breaker
	http     []v1alpha1.HTTPMatch
	grpc     []v1alpha1.GRPCMatch
}

// routeKind is one of the four kinds of routes of the Gateway API: the field that holds it, which ports it stands on,
// and which it means where none is named.
type routeKind struct {
	field, what string
	speaks      string // what a port of it speaks, in words
	fits        func(*port) bool
	prefers     func(*port) bool // of those that fit; nil: all alike
}

var (
	httpKind = routeKind{field: "httpRoutes", what: "an HTTP route", speaks: "HTTP", fits: (*port).http}
	grpcKind = routeKind{field: "grpcRoutes", what: "a gRPC route", speaks: "gRPC", fits: (*port).grpc,
		prefers: func(p *port) bool { return p.protocol != mesh.Detect }}
	tlsKind = routeKind{field: "tlsRoutes", what: "a TLS route", speaks: "tls", fits: func(p *port) bool { return p.protocol == mesh.TLS }}
	tcpKind = routeKind{field: "tcpRoutes", what: "a TCP route", speaks: "tcp or opaque", fits: (*port).opaque}
	// bytesKind is what a backend of connections has: a port that takes bytes as they come.
	bytesKind = routeKind{speaks: "tls, tcp or opaque", fits: func(p *port) bool { return !p.http() }}
)

func httpSource(r v1alpha1.HTTPRoute) routeSource {
	return routeSource{httpKind, r.Port, r.Backends, r.Timeout, r.ResponseTimeout, r.IdleTimeout, r.Retry, r.Filters, r.RateLimit, r.Breaker, r.Match, nil}
}

func grpcSource(r v1alpha1.GRPCRoute) routeSource {
	return routeSource{grpcKind, r.Port, r.Backends, r.Timeout, r.ResponseTimeout, r.IdleTimeout, r.Retry, r.Filters, r.RateLimit, r.Breaker, nil, r.Match}
}

// compileRoutes compiles the routes of a service as its callers apply them.
func (c *compiler) compileRoutes(s *service) {
	if n := len(s.src.HttpRoutes) + len(s.src.GrpcRoutes); n > 0 {
		s.routes = make([]*route, 0, n)
	}
	for _, name := range sortedKeys(s.src.HttpRoutes) {
		c.requestRoute(s, &s.routes, s.at, string(s.name), "", name, httpSource(s.src.HttpRoutes[name]))
	}
	for _, name := range sortedKeys(s.src.GrpcRoutes) {
		if _, ok := s.src.HttpRoutes[name]; ok {
			c.find(diag.DuplicateEntry, s.at.at("grpcRoutes", name), fmt.Sprintf("an HTTP route is named %q too", name),
				"give it another name: rules name routes without saying of which kind", c.pos(s.at.at("httpRoutes", name)))
		}
		c.requestRoute(s, &s.routes, s.at, string(s.name), "", name, grpcSource(s.src.GrpcRoutes[name]))
	}
	c.defaultRoutes(s)
	c.assemble(s, s.out.Ports, &s.out.Routes, s.routes)
	c.compileConnections(s)
	c.checkRequestDefaults(s)
}

// requestRoute compiles one HTTP or gRPC route and adds it to a list. at and id are of what holds the route: the service,
// or the calls of a namespace.
func (c *compiler) requestRoute(s *service, to *[]*route, at path, id, consumer, name string, src routeSource) {
	r := &route{name: name, at: at.at(src.kind.field, name), id: id + "/" + src.kind.field + "/" + name, src: src, consumer: consumer,
		timeouts: s.defaults.timeouts, retry: s.defaults.retry}
	*to = append(*to, r)
	c.checkRuleName(r.at, "route", name)
	c.origins[r.id] = c.pos(r.at)
	grpc := src.kind.field == grpcKind.field
	r.port = c.routePort(s, r.at, src.port, src.kind)
	before := len(c.findings)
	if grpc {
		r.matches = c.grpcMatches(s, r)
	} else {
		r.matches = c.httpMatches(s, r)
	}
	r.broken = len(c.findings) > before
	needs := &s.out.Needs
	if grpc {
		c.need(needs, mesh.CapGRPCRoute, r.at, "a gRPC route")
	} else {
		c.need(needs, mesh.CapRoute, r.at, "an HTTP route")
	}

	r.compiled = mesh.Route{ID: r.id, GRPC: grpc}
	if r.port != nil {
		r.compiled.Port = r.port.name
	}
	r.answered = answers(src.filters)
	if r.answered {
		c.checkAnswered(r)
	} else {
		fits := httpKind
		if grpc {
			fits = grpcKind
		}
		r.compiled.Backends = c.backends(s, r, src.backends, fits)
	}
	r.compiled.Filters = c.filters(s, r, r.at.at("filters"), src.filters, nil)

	c.overTimeouts(&r.timeouts, src.timeout, src.response, src.idle, r.at, routeLevel)
	c.overRetry(&r.retry, src.retry, r.at.at("retry"), routeLevel)
	if !r.answered {
		r.compiled.Timeouts = r.timeouts.compile()
		r.compiled.Retry = r.retry.compile(grpc)
		c.needTimes(needs, r)
		c.checkRetry(r)
		c.checkTimes(r)
	}
	if src.breaker != nil {
		b := s.defaults.breaker
		c.overBreaker(&b, src.breaker, r.at.at("breaker"), routeLevel)
		r.compiled.Breaker = b.compile()
		c.need(needs, mesh.CapBreaker, r.at.at("breaker"), "a breaker")
	}
}

// compile makes what callers do of the settings in force.
func (t *timeouts) compile() mesh.Timeouts {
	return mesh.Timeouts{Request: t.request.v, Response: t.response.v, Idle: t.idle.v}
}

// needTimes notes what the timeouts and retries of a route take.
func (c *compiler) needTimes(needs *[]mesh.Capability, r *route) {
	note := func(v value[time.Duration], capability mesh.Capability, what string) {
		if v.v > 0 {
			c.need(needs, capability, v.from, what)
		}
	}
	note(r.timeouts.request, mesh.CapTimeout, "a timeout")
	note(r.timeouts.response, mesh.CapResponseTimeout, "a response timeout")
	note(r.timeouts.idle, mesh.CapIdleTimeout, "an idle timeout")
	if r.compiled.Retry != nil {
		c.need(needs, mesh.CapRetry, r.retry.asked.from, "retry")
	}
}

// assemble flattens the matches of routes into ports, in precedence, and looks for those that no request reaches.
func (c *compiler) assemble(s *service, ports []mesh.OutboundPort, to *[]mesh.Route, routes []*route) {
	if len(routes) == 0 {
		return
	}
	*to = slices.Grow(*to, len(routes))
	byID := make(map[string]*route, len(routes))
	for _, r := range routes {
		*to = append(*to, r.compiled)
		byID[r.id] = r
		if r.port == nil {
			continue
		}
		for i := range ports {
			if ports[i].Name == r.port.name {
				ports[i].Matches = append(ports[i].Matches, r.matches...)
			}
		}
	}
	slices.SortFunc(*to, func(a, b mesh.Route) int { return strings.Compare(a.ID, b.ID) })
	for i := range ports {
		slices.SortFunc(ports[i].Matches, precedence)
		c.checkShadowed(ports[i].Matches, byID)
		c.checkRedirects(s, ports[i].Matches, byID)
	}
}

// defaultRoutes gives ports that have no routes one for everything, to the service itself, where a default timeout or
// retry is in force: what `defaults:` says must hold for them too.
func (c *compiler) defaultRoutes(s *service) {
	t, again := s.defaults.timeouts, s.defaults.retry
	if !t.set() && again.compile(false) == nil {
		return
	}
	for _, p := range s.ports {
		if !p.http() || slices.ContainsFunc(s.routes, func(r *route) bool { return r.port == p }) {
			continue
		}
		id, grpc := mesh.DefaultRouteID(s.name, p.name), p.protocol == mesh.GRPC
		r := &route{at: p.at, id: id, port: p, matches: []mesh.Match{{Route: id}}, timeouts: t, retry: again, compiled: mesh.Route{
			ID: id, Port: p.name, GRPC: grpc, Backends: []mesh.Backend{{Service: s.name, Port: p.name, Weight: 100}},
			Timeouts: t.compile(), Retry: again.compile(grpc),
		}}
		s.routes = append(s.routes, r)
		c.need(&s.out.Needs, mesh.CapRoute, p.at, "an HTTP route")
		if grpc {
			c.need(&s.out.Needs, mesh.CapGRPCRoute, p.at, "a default for gRPC calls")
		}
		c.needTimes(&s.out.Needs, r)
		c.checkTimes(r)
		c.origins[id] = c.pos(cmp.Or(t.request.from, t.response.from, t.idle.from, again.asked.from))
	}
}

// checkRequestDefaults finds defaults about requests in a service whose ports show none.
func (c *compiler) checkRequestDefaults(s *service) {
	if slices.ContainsFunc(s.ports, (*port).http) {
		return
	}
	d := &s.defaults
	for _, f := range []struct {
		what  string
		from  path
		level level
	}{
		{"a timeout", d.timeouts.request.from, d.timeouts.request.level},
		{"a response timeout", d.timeouts.response.from, d.timeouts.response.level},
		{"an idle timeout", d.timeouts.idle.from, d.timeouts.idle.level},
		{"a retry", d.retry.asked.from, d.retry.asked.level},
		{"a rate limit", d.rate.total.from, d.rate.total.level},
		{"a rate limit", d.rate.perIdentity.from, d.rate.perIdentity.level},
		{"a rate limit", d.rate.overrides.from, d.rate.overrides.level},
		{"a limit of requests", d.limits.requests.from, d.limits.requests.level},
		{"a limit of waiting requests", d.limits.pending.from, d.limits.pending.level},
	} {
		if f.level == serviceLevel {
			c.find(diag.WrongProtocol, f.from, f.what+" is for requests, and no port of the service speaks HTTP", "leave it out")
		}
	}
}

// routePort resolves the port that a route belongs to.
func (c *compiler) routePort(s *service, at path, name string, kind routeKind) *port {
	if c.noName(at.at("port"), name) {
		return nil
	}
	if name == "" {
		return c.onlyPort(s, at, kind)
	}
	p := s.port(name)
	switch {
	case p == nil:
		c.find(diag.UnknownPort, at.at("port"), fmt.Sprintf("%s has no port named %q", s.name, name),
			nameHint(name, s.portNames(nil), "the service declares no ports"), c.pos(s.at.at("ports")))
	case !kind.fits(p):
		c.find(diag.WrongProtocol, at.at("port"),
			fmt.Sprintf("port %q speaks %s, so no %s can stand on it", name, p.protocol, strings.TrimPrefix(strings.TrimPrefix(kind.what, "an "), "a ")),
			kind.mend()+", or delete the route", c.pos(p.protocolAt))
		return nil
	}
	return p
}

// noName finds a name that was written and is empty, as where something computes it.
func (c *compiler) noName(at path, name string) bool {
	if name != "" {
		return false
	}
	_, written := c.doc.At(string(at))
	if written {
		c.find(diag.WrongValue, at, "an empty name names nothing", "leave the field out for the default")
	}
	return written
}

// noEntries finds a map of conditions that was written and is empty, as where something computes it: what it would ask of
// requests is not asked.
func (c *compiler) noEntries(at path, n int, what string) {
	if _, written := c.doc.At(string(at)); written && n == 0 {
		c.find(diag.WrongValue, at, "no "+what+" are named, so nothing is asked of them", "name them, or leave the field out")
	}
}

// mend says how a port comes to fit.
func (k routeKind) mend() string {
	switch k.field {
	case httpKind.field:
		return `set the port's protocol to "http1" or "detect"`
	case grpcKind.field:
		return `set the port's protocol to "grpc"`
	case tlsKind.field:
		return `set the port's protocol to "tls"`
	}
	return `set the port's protocol to "tcp"`
}

// onlyPort is the port meant where none is named.
func (c *compiler) onlyPort(s *service, at path, kind routeKind) *port {
	names := s.portNames(kind.fits)
	if len(names) > 1 && kind.prefers != nil {
		if preferred := s.portNames(func(p *port) bool { return kind.fits(p) && kind.prefers(p) }); len(preferred) > 0 {
			names = preferred
		}
	}
	switch len(names) {
	case 1:
		return s.port(names[0])
	case 0:
		hint := map[string]string{"HTTP": `declare one with protocol: "http1" or "detect"`, "gRPC": `declare one with protocol: "grpc"`,
			"tls": `declare one with protocol: "tls"`}[kind.speaks]
		c.find(diag.WrongProtocol, at, fmt.Sprintf("no port of %s speaks %s", s.name, kind.speaks),
			cmp.Or(hint, `declare one with protocol: "tcp"`), c.pos(s.at.at("ports")))
	default:
		c.find(diag.AmbiguousPort, at,
			fmt.Sprintf("%s has %d ports that speak %s, and none is named here", s.name, len(names), kind.speaks),
			fmt.Sprintf("write port: %s", quoted(names)), c.pos(s.at.at("ports")))
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

// backends resolves where a route's requests or connections go: sorted, one entry for each service, port and list of
// filters.
func (c *compiler) backends(s *service, r *route, src []v1alpha1.Backend, kind routeKind) []mesh.Backend {
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
	out := make([]mesh.Backend, 0, len(src))
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
		var filters []mesh.Filter
		if len(b.Filters) > 0 && kind.field != httpKind.field && kind.field != grpcKind.field {
			c.find(diag.BadFilter, at.at("filters"), "filters change requests, and the route sends connections",
				"leave them out")
		} else if len(b.Filters) > 0 {
			c.need(&s.out.Needs, mesh.CapFilterBackend, at.at("filters"), "a filter of one backend")
			filters = c.filters(s, r, at.at("filters"), b.Filters, &b)
		}
		target := c.lookup(at.at("service"), b.Service)
		if target == nil {
			continue
		}
		p := c.backendPort(target, r, at, b.Port, kind)
		if p == nil {
			continue
		}
		for j, f := range filters {
			if m := f.Mirror; m != nil && m.Service == target.name && m.Port == p.name {
				c.selfMirror(at.at("filters").index(j).at("mirror"), m.Service, at.at("service"))
			}
		}
		out = append(out, mesh.Backend{Service: target.name, Port: p.name, Weight: uint32(max(w, 0)), Filters: filters})
	}
	switch {
	case complete && sum == 0:
		c.find(diag.NoWeight, at, "no backend has weight, so the route takes requests and sends them nowhere",
			"let the weights sum to 100; to refuse requests, write a deny rule, or a respond filter")
	case complete && sum != 100:
		c.find(diag.WeightSum, at, fmt.Sprintf("the weights sum to %d", sum), "let them sum to 100: they are percentages")
	}
	return merge(out)
}

// merge sorts backends and adds up the weights of those that are the same.
func merge(out []mesh.Backend) []mesh.Backend {
	if len(out) < 2 {
		return out
	}
	spelt := func(b mesh.Backend) string {
		if len(b.Filters) == 0 {
			return ""
		}
		return string(mesh.Canonical(b.Filters))
	}
	compare := func(a, b mesh.Backend) int {
		return cmp.Or(strings.Compare(string(a.Service), string(b.Service)), strings.Compare(a.Port, b.Port), strings.Compare(spelt(a), spelt(b)))
	}
	slices.SortFunc(out, compare)
	merged := out[:0]
	for _, b := range out {
		if n := len(merged); n > 0 && compare(merged[n-1], b) == 0 {
			merged[n-1].Weight += b.Weight
		} else {
			merged = append(merged, b)
		}
	}
	return merged
}

// backendPort resolves a backend's port: the one it names, else the one named as the route's, else its only one that
// fits.
func (c *compiler) backendPort(target *service, r *route, at path, name string, kind routeKind) *port {
	field := at
	if name != "" {
		field = at.at("port")
	}
	if c.noName(at.at("port"), name) {
		return nil
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
		return c.onlyPort(target, at, kind)
	case !kind.fits(p):
		what := map[string]string{"HTTP": "HTTP requests", "gRPC": "gRPC calls"}[kind.speaks]
		c.find(diag.WrongProtocol, field,
			fmt.Sprintf("port %q of %s speaks %s, so it takes no %s", p.name, target.name, p.protocol, cmp.Or(what, "connections as they come")),
			nameHint("", target.portNames(kind.fits), "name a backend that speaks "+kind.speaks), c.pos(p.protocolAt))
		return nil
	}
	return p
}

// compileConnections compiles TLS and TCP routes.
func (c *compiler) compileConnections(s *service) {
	add := func(r *route) {
		if len(r.src.backends) == 0 {
			c.find(diag.MissingField, r.at, "the route has no backends", "name where its connections go")
		} else {
			r.compiled.Backends = c.backends(s, r, r.src.backends, bytesKind)
		}
		if r.port != nil {
			r.compiled.Port = r.port.name
		}
		s.connections = append(s.connections, r)
		s.out.Routes = append(s.out.Routes, r.compiled)
	}
	start := func(kind routeKind, name, port string, backends []v1alpha1.Backend) *route {
		r := &route{name: name, at: s.at.at(kind.field, name), id: string(s.name) + "/" + kind.field + "/" + name,
			src: routeSource{kind: kind, backends: backends}}
		c.checkRuleName(r.at, "route", name)
		c.origins[r.id] = c.pos(r.at)
		r.port = c.routePort(s, r.at, port, kind)
		r.compiled.ID = r.id
		return r
	}
	for _, name := range sortedKeys(s.src.TlsRoutes) {
		src := s.src.TlsRoutes[name]
		r := start(tlsKind, name, src.Port, src.Backends)
		c.need(&s.out.Needs, mesh.CapTLSRoute, r.at, "a TLS route")
		hosts := c.hosts(r.at.at("hostnames"), hostnames(src.Hostnames))
		if c.empty(r.at.at("hostnames"), len(src.Hostnames), src.Hostnames == nil) {
			c.find(diag.WrongValue, r.at.at("hostnames"), "an empty list of names matches nothing", "leave the field out to mean every name")
		}
		if len(src.Hostnames) == 0 {
			hosts, r.anyHost = []string{""}, true
		}
		if r.port != nil {
			p, _ := s.out.Port(r.port.name)
			for _, h := range hosts {
				p.Hosts = append(p.Hosts, mesh.HostMatch{Route: r.id, Name: h})
			}
		}
		add(r)
	}
	taken := map[*port]*route{}
	for _, name := range sortedKeys(s.src.TcpRoutes) {
		src := s.src.TcpRoutes[name]
		r := start(tcpKind, name, src.Port, src.Backends)
		c.need(&s.out.Needs, mesh.CapTCPRoute, r.at, "a TCP route")
		c.overDuration(&r.timeouts.idle, src.IdleTimeout, r.at.at("idleTimeout"), routeLevel)
		if r.compiled.Timeouts.Idle = r.timeouts.idle.v; r.timeouts.idle.v > 0 {
			c.need(&s.out.Needs, mesh.CapIdleTimeout, r.at.at("idleTimeout"), "an idle timeout")
		}
		if r.port != nil {
			if other := taken[r.port]; other != nil {
				c.find(diag.ShadowedRoute, r.at, fmt.Sprintf("route %q takes every connection of port %q already", other.name, r.port.name),
					"delete one of them: a TCP route has no conditions", c.pos(other.at))
			} else {
				taken[r.port] = r
				p, _ := s.out.Port(r.port.name)
				p.Connections = r.id
			}
		}
		add(r)
	}
	if len(s.connections) == 0 {
		return
	}
	slices.SortFunc(s.out.Routes, func(a, b mesh.Route) int { return strings.Compare(a.ID, b.ID) })
	for i := range s.out.Ports {
		hosts := s.out.Ports[i].Hosts
		slices.SortFunc(hosts, hostPrecedence)
		first := map[string]string{}
		for _, h := range hosts {
			earlier, ok := first[h.Name]
			if !ok {
				first[h.Name] = h.Route
				continue
			}
			if earlier == h.Route {
				continue // the same name twice in one route is a finding of the list
			}
			what := fmt.Sprintf("connections for %q", h.Name)
			if h.Name == "" {
				what = "connections for every other name"
			}
			c.find(diag.ShadowedRoute, s.connection(h.Route).at, fmt.Sprintf("route %q takes %s already", localID(earlier), what),
				"name each host in one route only", c.pos(s.connection(earlier).at))
		}
	}
}

// connection finds a TLS or TCP route by its id.
func (s *service) connection(id string) *route {
	return s.connections[slices.IndexFunc(s.connections, func(r *route) bool { return r.id == id })]
}

// hostPrecedence orders names of TLS routes: exact ones, then the longest suffix, then every name (Gateway API).
func hostPrecedence(a, b mesh.HostMatch) int {
	rank := func(h mesh.HostMatch) int {
		switch {
		case h.Name == "":
			return 2
		case strings.HasPrefix(h.Name, "*."):
			return 1
		}
		return 0
	}
	if c := rank(a) - rank(b); c != 0 {
		return c
	}
	if rank(a) == 1 {
		if c := len(b.Name) - len(a.Name); c != 0 {
			return c
		}
	}
	return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Route, b.Route))
}

// compileCalls compiles consumer routes: how a namespace calls services of others (Gateway API: a route in another
// namespace than its parent Service).
func (c *compiler) compileCalls() {
	for _, ns := range sortedKeys(c.doc.Policy.Namespaces) {
		calls := c.doc.Policy.Namespaces[ns].Calls
		for _, name := range sortedKeys(calls) {
			at := path("namespaces").at(ns, "calls", name)
			s := c.lookup(at, v1alpha1.ServiceName(name))
			if s == nil {
				continue
			}
			if s.name.Namespace() == ns {
				c.find(diag.WrongValue, at, fmt.Sprintf("%s is of this namespace: its own routes say how it is called", name),
					"write the routes in the service", c.pos(s.at))
				continue
			}
			src := calls[name]
			if len(src.HttpRoutes)+len(src.GrpcRoutes) == 0 {
				c.find(diag.WrongValue, at, "nothing is said about the calls", "write httpRoutes or grpcRoutes, or delete it")
				continue
			}
			c.need(&s.out.Needs, mesh.CapConsumerRoute, at, "a consumer route")
			id := ns + "/calls/" + name
			var routes []*route
			for _, n := range sortedKeys(src.HttpRoutes) {
				c.requestRoute(s, &routes, at, id, ns, n, httpSource(src.HttpRoutes[n]))
			}
			for _, n := range sortedKeys(src.GrpcRoutes) {
				c.requestRoute(s, &routes, at, id, ns, n, grpcSource(src.GrpcRoutes[n]))
			}
			consumer := mesh.Consumer{Namespace: ns}
			for _, p := range s.ports {
				if slices.ContainsFunc(routes, func(r *route) bool { return r.port == p }) {
					consumer.Ports = append(consumer.Ports, mesh.OutboundPort{Name: p.name, Port: p.number, Protocol: p.protocol})
				}
			}
			for _, r := range routes {
				if r.src.rate != nil {
					c.find(diag.WrongValue, r.at.at("rateLimit"), "how much a service takes is its own to say",
						"leave it out, or write it in the service's routes", c.pos(s.at))
				}
			}
			c.assemble(s, consumer.Ports, &consumer.Routes, routes)
			s.consumers = append(s.consumers, routes...)
			s.out.Consumers = append(s.out.Consumers, consumer)
		}
	}
}

func localID(id string) string { return id[strings.LastIndexByte(id, '/')+1:] }

// sortedKeys are the keys of a map in order; the usual maps are small or empty.
func sortedKeys[V any](m map[string]V) []string {
	if len(m) == 0 {
		return nil
	}
	keys := make([]string, 0, len(m))
	for k := range maps.Keys(m) {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
