// Package compile turns an evaluated policy repository (a v1alpha1.Document) into the compiled mesh (a mesh.Mesh), the
// table of where each rule was written (mesh.Origins), and everything that is wrong with it (a diag.List).
//
// It is a pure function: no I/O, no clock, no goroutine, no log, and no order of Go's maps in what it returns, so that
// the same commit gives the same bytes on any machine. It resolves what only a whole repository can answer: defaults
// (the nearest level that sets a field wins), names of services, ports, routes and identities, and the mandates. It
// refuses whatever the sidecar would not enforce: what policy says and no sidecar does is the worst fault a mesh can
// have. Everything is compiled first; what the chosen version lacks is found last, by the table of mesh.Enforced (see
// gate). A [Cache] compiles what a commit changed, with the same outcome; [Effective] says what is in force and why. The
// reconciler's loop owns it; `heddle check`, `plan` and `explain` call it too. It must not import CUE, go-git or any
// other package of the reconciler.
//
// # Choices
//
// A service's routes are applied once, by its callers, and are not followed into the routes of their backends (as in
// the Gateway API for meshes), so no request can go round in circles. What can go round is the author's intent: a port
// that hands every request to another service, whose port hands every request on, and so back to the first. Each
// caller lands one step further on, which nobody means; that is the finding RouteLoop. A port that keeps a share of its
// requests for its own service, or that no route without conditions stands on, ends the round.
//
// Two services may not claim one identity: `from: {service: A}` admits by identity, so it would admit B too, and a
// workload of B could answer in A's name.
//
// A deny rule that leaves an allow rule nothing to allow is a warning and rejects nothing: deny is the emergency brake,
// and a brake that asks for a tidy-up first is none. For the same reason an exemption from a mandate that is no longer
// needed is no finding: tightening a service must never wait for a change of mesh.cue.
package compile

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// Options say for what to compile. The zero Options are what the reconciler publishes by.
type Options struct {
	// ProxyVersion is the version of heddle-proxy whose enforcement the gate judges by; empty is this source tree's, and
	// "any" leaves the gate out: see mesh.EnforcedBy.
	ProxyVersion string
	// Now is when the check is made, for warnings about rules that end; the zero time makes none. It changes nothing
	// else: the same document always compiles to the same mesh.
	Now time.Time
}

// Compile compiles a document. It returns a mesh with its origins and at most warnings, or all findings, sorted, and
// neither: nothing half compiled can be published. A document with unread
// namespaces never makes a mesh, even where it has no findings of its own; references into those namespaces are not
// judged. doc is not written, and what is returned shares no memory with it that anybody writes.
func Compile(doc *v1alpha1.Document, opts Options) (*mesh.Mesh, mesh.Origins, diag.List) {
	g, err := newGate(opts.ProxyVersion)
	if err != nil {
		return nil, nil, diag.List{{ID: diag.NotEnforced, Message: err.Error(),
			Hint: fmt.Sprintf("choose %q, or %q to leave the question out", mesh.Version, "any")}}
	}
	return newCompiler(doc, opts, g).run()
}

// compiler is one compilation.
type compiler struct {
	authorization
	doc      *v1alpha1.Document
	gate     *gate
	findings diag.List
	failures int // of findings, those that reject
	origins  mesh.Origins

	trustDomain   string
	outermost     defaults            // of the mesh
	levels        map[string]defaults // of namespaces that are spoken of
	services      map[mesh.ServiceName]*service
	ordered       []*service // by name
	names         []string   // of services, sorted, for hints
	rateOverrides map[path][]mesh.RateOverride
	steps         map[string]int // comparisons, by namespace; see limits.go
	callers       map[string]int // bytes of identities, by namespace

	// Of a Cache: the compilation before, of which namespaces are taken over but those that changed; nil: none are.
	last    *compiler
	changed map[string]bool
}

func newCompiler(doc *v1alpha1.Document, opts Options, g *gate) *compiler {
	c := &compiler{
		doc: doc, gate: g, origins: mesh.Origins{}, levels: map[string]defaults{},
		services: map[mesh.ServiceName]*service{}, rateOverrides: map[path][]mesh.RateOverride{},
		steps: map[string]int{}, callers: map[string]int{},
	}
	c.now = opts.Now
	return c
}

func (c *compiler) run() (m *mesh.Mesh, origins mesh.Origins, findings diag.List) {
	if !bounded(func() { m, origins, findings = c.compile() }) {
		return nil, nil, c.findings.Sorted()
	}
	return m, origins, findings
}

func (c *compiler) compile() (*mesh.Mesh, mesh.Origins, diag.List) {
	m := &mesh.Mesh{}
	c.declareAll(m)
	c.compileIssuers()
	if c.last != nil && !c.takeOver() {
		return nil, nil, nil
	}
	fresh := c.fresh()
	for _, s := range fresh {
		c.checkSize(s)
	}

	// Every service's routes come before any service's rules, which name them.
	for _, s := range fresh {
		before := len(c.findings)
		c.compileRoutes(s)
		s.warnings = slices.Clone(c.findings[before:])
	}
	if c.last == nil {
		c.compileCalls()
	}
	c.checkLoops(c.ordered)
	for _, s := range fresh {
		before := len(c.findings)
		c.compileRules(s)
		c.compileResilience(s)
		c.compileRates(s)
		c.needPorts(s)
		s.warnings = append(s.warnings, c.findings[before:]...)
	}
	m.Settings.JWTIssuers = c.namedIssuers()
	m.Invariants = c.compileInvariants()
	m.Workloads = c.compileWorkloads()
	m.Groups = c.compileGroups()
	c.checkSelectors()
	m.Egress = c.compileEgress(c.outermost)
	c.checkSkipped(c.ordered)
	c.checkMandates(c.ordered)
	c.checkCallers(c.ordered)
	c.closeGate()

	if c.failures > 0 || len(c.doc.Unread) > 0 {
		return nil, nil, c.findings.Sorted()
	}
	if n := len(c.ordered); n > 0 {
		m.Inbound, m.Outbound = make([]mesh.Inbound, 0, n), make([]mesh.Outbound, 0, n)
	}
	for _, s := range fresh {
		s.in.Needs, s.out.Needs = set(append(s.in.Needs, s.in.Requires()...)), set(append(s.out.Needs, s.out.Requires()...))
	}
	for _, s := range c.ordered {
		m.Inbound = append(m.Inbound, s.in)
		m.Outbound = append(m.Outbound, s.out)
	}
	m.Settings.Needs = set(append(m.Settings.Needs, m.Settings.Requires()...))
	return m, c.origins, c.findings.Sorted()
}

// declareAll is the first pass: what holds for the mesh and for namespaces, and what services are, so that every name can
// be resolved afterwards.
func (c *compiler) declareAll(m *mesh.Mesh) {
	c.outermost = c.settings(&m.Settings)
	c.needLevel(&c.outermost, meshLevel)
	for _, ns := range sortedKeys(c.doc.Policy.Namespaces) {
		at := path("namespaces").at(ns)
		c.checkLabel(at, "namespace", ns)
		d := c.over(c.outermost, c.doc.Policy.Namespaces[ns].Defaults, at.at("defaults"), namespaceLevel)
		c.needLevel(&d, namespaceLevel)
		c.levels[ns] = d
		c.checkInhabited(at, ns)
	}
	for _, ns := range sortedKeys(c.doc.Policy.Services) {
		c.checkLabel(path("services").at(ns), "namespace", ns)
		outer, ok := c.levels[ns]
		if !ok {
			outer = c.outermost
		}
		for _, name := range sortedKeys(c.doc.Policy.Services[ns]) {
			if s := c.reused(ns, mesh.Name(ns, name)); s != nil {
				c.services[s.name] = s
				continue
			}
			c.declare(ns, name, &outer)
		}
	}
	c.ordered = slices.SortedFunc(maps.Values(c.services), func(a, b *service) int {
		return strings.Compare(string(a.name), string(b.name))
	})
	c.names = make([]string, 0, len(c.ordered))
	for _, s := range c.ordered {
		c.names = append(c.names, string(s.name))
	}
	c.checkIdentities(c.ordered)
}

// checkInhabited warns of a namespace in which nothing runs: what is said of it holds for nobody.
func (c *compiler) checkInhabited(at path, ns string) {
	if c.namespaceKnown(ns) || slices.ContainsFunc(c.doc.Unread, func(u string) bool { return mesh.ServiceName(u).Namespace() == ns }) {
		return
	}
	hint := "declare its services, or delete what is said of it"
	if near := diag.Nearest(ns, c.namespaces()); near != "" {
		hint = fmt.Sprintf("did you mean %q?", near)
	}
	c.warn(diag.UnknownService, at, fmt.Sprintf("nothing is declared in namespace %q, so this holds for nobody", ns), hint)
}

// needPorts notes what a sidecar must be able to do for the ports of a service, on both sides.
func (c *compiler) needPorts(s *service) {
	c.need(&s.in.Needs, mesh.CapAuthorize, s.at, "a service")
	for i, p := range s.ports {
		c.needProtocol(&s.in.Needs, p)
		c.needProtocol(&s.out.Needs, p)
		if p.mtls.v == mesh.Permissive {
			c.need(&s.in.Needs, mesh.CapPermissive, p.mtls.from, `mtls "permissive"`)
		}
		switch p.policy.v {
		case mesh.ClusterAuthenticated, mesh.ClusterUnauthenticated:
			c.need(&s.in.Needs, mesh.CapCluster, p.policy.from, fmt.Sprintf("inboundPolicy %q", p.policy.v))
		case mesh.Audit:
			c.need(&s.in.Needs, mesh.CapAudit, p.policy.from, `inboundPolicy "audit"`)
		}
		if s.defaults.paths.v == acceptPaths && s.in.Ports[i].CanonicalPaths {
			s.in.Ports[i].CanonicalPaths = false
			c.need(&s.in.Needs, mesh.CapNonCanonical, s.defaults.paths.from, `nonCanonicalPaths "accept"`)
		}
	}
}

// service is one service while it is being compiled.
type service struct {
	name mesh.ServiceName
	at   path
	src  *v1alpha1.Service

	defaults    defaults
	ports       []*port  // sorted by name
	routes      []*route // HTTP and gRPC routes, and those that defaults make
	connections []*route // TLS and TCP routes
	consumers   []*route // of other namespaces
	warnings    diag.List
	in          mesh.Inbound
	out         mesh.Outbound
}

// port is a port of a service, with where its settings come from.
type port struct {
	name       string
	at         path
	number     uint16
	protocol   mesh.Protocol
	protocolAt path // of the field that says so; the port's own where none does
	speaks     value[mesh.Protocol]
	policy     value[mesh.InboundMode]
	mtls       value[mesh.MTLSMode]
	rate       rate
}

// http reports whether requests can be seen on the port: it speaks HTTP, or gRPC, which is carried by it.
func (p *port) http() bool { return !p.opaque() && p.protocol != mesh.TLS }

// grpc reports whether gRPC calls may be seen on the port.
func (p *port) grpc() bool {
	return p.protocol == mesh.GRPC || p.protocol == mesh.HTTP2 || p.protocol == mesh.Detect
}

// opaque reports whether the port's bytes are never inspected.
func (p *port) opaque() bool { return p.protocol == mesh.TCP || p.protocol == mesh.Opaque }

// port finds a port by name.
func (s *service) port(name string) *port {
	for _, p := range s.ports {
		if p.name == name {
			return p
		}
	}
	return nil
}

// portNames are the names of all ports for which keep holds (nil: all), sorted.
func (s *service) portNames(keep func(*port) bool) (names []string) {
	for _, p := range s.ports {
		if keep == nil || keep(p) {
			names = append(names, p.name)
		}
	}
	return names
}

// declare is the first pass over a service: its identities, ports and defaults.
func (c *compiler) declare(ns, name string, outer *defaults) {
	src := c.doc.Policy.Services[ns][name]
	s := &service{name: mesh.Name(ns, name), at: path("services").at(ns, name), src: &src}
	c.services[s.name] = s
	c.checkLabel(s.at, "service", name)
	s.defaults = c.over(*outer, src.Defaults, s.at.at("defaults"), serviceLevel)

	numbers := map[int64]*port{}
	for _, pn := range sortedKeys(src.Ports) {
		p := c.port(s, pn, src.Ports[pn])
		if other := numbers[int64(src.Ports[pn].Port)]; other != nil {
			c.find(diag.DuplicateAddress, p.at.at("port"), fmt.Sprintf("port %d is %s's already", p.number, other.name),
				"give each port of a service a number of its own: callers know it by that", c.pos(other.at.at("port")))
		} else {
			numbers[int64(src.Ports[pn].Port)] = p
		}
		s.ports = append(s.ports, p)
	}

	ids := c.identities(s)
	s.in = mesh.Inbound{Service: s.name, Identities: ids, Ports: make([]mesh.InboundPort, 0, len(s.ports))}
	s.out = mesh.Outbound{Service: s.name, Identities: ids, Ports: make([]mesh.OutboundPort, 0, len(s.ports))}
	c.selector(s)
	for _, p := range s.ports {
		id := mesh.DefaultID(s.name, p.name)
		s.in.Ports = append(s.in.Ports, mesh.InboundPort{
			Name: p.name, Port: p.number, Protocol: p.protocol, MTLS: p.mtls.v, Default: p.policy.v, DefaultID: id,
		})
		s.out.Ports = append(s.out.Ports, mesh.OutboundPort{Name: p.name, Port: p.number, Protocol: p.protocol})
	}
	c.noteDeclaration(s)
}

// noteDeclaration notes where a service is declared, and where the defaults of its ports come from. Where nobody wrote
// one, the declaration stands for it; mesh.Origins.BuiltIn tells them apart.
func (c *compiler) noteDeclaration(s *service) {
	at := c.pos(s.at)
	c.origins[string(s.name)] = at
	for _, p := range s.ports {
		id := mesh.DefaultID(s.name, p.name)
		c.origins[id] = at
		if p.policy.from != "" {
			c.origins[id] = c.pos(p.policy.from)
		}
	}
}

// port compiles one port; a setting of its own is nearer than any default.
func (c *compiler) port(s *service, name string, src v1alpha1.Port) *port {
	d := &s.defaults
	p := &port{name: name, at: s.at.at("ports", name), speaks: d.protocol, policy: d.policy, mtls: d.mtls, rate: d.rate}
	c.checkLabel(p.at, "port", name)
	p.number = c.portNumber(p.at.at("port"), src.Port)
	if src.Protocol != "" {
		at := p.at.at("protocol")
		p.speaks.at(at, portLevel, c.protocol(at, mesh.Protocol(src.Protocol)))
	}
	p.protocol, p.protocolAt = p.speaks.v, p.speaks.from
	if p.protocolAt == "" {
		p.protocolAt = p.at.at("protocol")
	}
	if src.Mtls != "" {
		at := p.at.at("mtls")
		p.mtls.at(at, portLevel, c.mtls(at, src.Mtls))
	}
	if src.InboundPolicy != "" {
		at := p.at.at("inboundPolicy")
		p.policy.at(at, portLevel, c.policy(at, src.InboundPolicy))
	}
	if src.RateLimit != nil {
		at := p.at.at("rateLimit")
		c.overRate(&p.rate, src.RateLimit, at, portLevel)
	}
	return p
}

// path is a policy path: field names and indices joined by dots.
type path string

// at is the path of something inside.
func (p path) at(parts ...string) path { return p + "." + path(strings.Join(parts, ".")) }

// index is the path of an element of a list.
func (p path) index(i int) path { return p + path("."+strconv.Itoa(i)) }

// namespace is the second part of a path, which is that of the namespace in all that a namespace writes.
func (p path) namespace() string {
	_, rest, _ := strings.Cut(string(p), ".")
	ns, _, _ := strings.Cut(rest, ".")
	return ns
}

// pos is the position of a path, or of its nearest ancestor that the author wrote.
func (c *compiler) pos(p path) diag.Pos {
	for at := string(p); at != ""; {
		if pos, ok := c.doc.At(at); ok {
			return pos
		}
		at = at[:max(strings.LastIndexByte(at, '.'), 0)]
	}
	return diag.Pos{}
}

// empty reports whether the author wrote a list and left it empty. An empty list never means "all" (a decoder that
// makes nil of it is seen through by the position of the field).
func (c *compiler) empty(p path, n int, isNil bool) bool {
	if n > 0 || !isNil {
		return n == 0
	}
	_, written := c.doc.At(string(p))
	return written
}

// find adds a finding at a path.
func (c *compiler) find(id string, at path, message, hint string, related ...diag.Pos) {
	related = slices.DeleteFunc(related, diag.Pos.IsZero)
	related = related[:min(len(related), maxRelated)]
	c.full(at)
	c.failures++
	c.findings.Add(diag.Finding{ID: id, Path: clip(string(at)), Message: clip(message), Hint: clip(hint), Pos: c.pos(at), Related: related})
}

// named reports whether a name has 1 to 63 letters and digits, or other characters but at its ends; upper allows
// upper-case letters.
func named(name, others string, upper bool) bool {
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', upper && 'A' <= c && c <= 'Z':
		case i > 0 && i < len(name)-1 && strings.IndexByte(others, c) >= 0:
		default:
			return false
		}
	}
	return 0 < len(name) && len(name) <= 63
}

// checkLabel checks a name that becomes part of a host name.
func (c *compiler) checkLabel(at path, what, name string) {
	if !named(name, "-", false) {
		c.find(diag.WrongValue, at, fmt.Sprintf("%q is no name for %s", name, article(what)),
			"use lower-case letters, digits and '-', at most 63, no '-' at the ends (RFC 1123)")
	}
}

// article puts the indefinite one before a noun.
func article(noun string) string {
	if strings.ContainsRune("aeiou", rune(noun[0])) {
		return "an " + noun
	}
	return "a " + noun
}

// checkRuleName checks a name that becomes part of a rule's or route's id, and so of headers, logs and metric labels.
func (c *compiler) checkRuleName(at path, what, name string) {
	if !named(name, "-_", true) {
		c.find(diag.WrongValue, at, fmt.Sprintf("%q is no name for %s", name, article(what)),
			"use letters, digits, '-' and '_', at most 63, with a letter or digit at the ends")
	}
}

// lookup finds a service that a field names. It returns nil after a finding, or where the namespace could not be read.
func (c *compiler) lookup(at path, name v1alpha1.ServiceName) *service {
	if s := c.services[mesh.ServiceName(name)]; s != nil {
		return s
	}
	if c.unread(mesh.ServiceName(name)) {
		return nil
	}
	c.find(diag.UnknownService, at, fmt.Sprintf("no service is named %q", name), c.serviceHint(string(name)))
	return nil
}

// unread reports whether a service, or all of its namespace, has findings already and could therefore not be read.
func (c *compiler) unread(name mesh.ServiceName) bool {
	return slices.Contains(c.doc.Unread, name.Namespace()) || slices.Contains(c.doc.Unread, string(name))
}

// serviceHint guesses which service was meant: a slip of the hand, else the same name in the only namespace that has it.
func (c *compiler) serviceHint(name string) string {
	if !c.guesses() {
		return "declare it, or name one that exists"
	}
	known := slices.Clone(c.names)
	for _, n := range c.doc.Unread { // what could not be read may still be what was meant
		if strings.Contains(n, "/") {
			known = append(known, n)
		}
	}
	if n := diag.Nearest(name, known); n != "" {
		return fmt.Sprintf("did you mean %q?", n)
	}
	local := mesh.ServiceName(name).Local()
	if !strings.Contains(name, "/") {
		local = name
	}
	var same []string
	for _, n := range c.names {
		if mesh.ServiceName(n).Local() == local {
			same = append(same, n)
		}
	}
	if len(same) == 1 {
		return fmt.Sprintf("did you mean %q?", same[0])
	}
	if !strings.Contains(name, "/") {
		return `a service is named "namespace/name"`
	}
	return "declare it under services/" + mesh.ServiceName(name).Namespace() + "/, or name one that exists"
}

// nameHint guesses which name was meant, or lists them.
func nameHint(name string, known []string, none string) string {
	if n := diag.Nearest(name, known); n != "" {
		return fmt.Sprintf("did you mean %q?", n)
	}
	if len(known) == 0 {
		return none
	}
	const most = 20 // a line is to be read
	if more := len(known) - most; more > 1 {
		return fmt.Sprintf("known: %s and %d more", strings.Join(known[:most], ", "), more)
	}
	return "known: " + strings.Join(known, ", ")
}
