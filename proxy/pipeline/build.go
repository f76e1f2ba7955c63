package pipeline

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/proxy/balance"
	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

// Config is what the sidecar was given, decoded. Build keeps references into it; it must not be written afterwards.
type Config struct {
	Epoch     uint64
	Commit    string // 40 hexadecimal digits
	AppliedAt time.Time
	// Service is the one that this workload runs, as long as there is no Inbound that says so.
	Service   mesh.ServiceName
	Settings  *mesh.Settings
	Indexes   []*mesh.Index
	Inbound   []*mesh.Inbound // the own service's: one, or none where policy has no such service
	Outbound  []*mesh.Outbound
	Endpoints map[mesh.ServiceName][]balance.Address
	Origins   []mesh.Origins
	// Refusals are destinations that the control plane does not serve to this workload.
	Refusals []Refusal
	// Apps is where the application listens, "host:port" by port name. A port without an entry is at
	// 127.0.0.1:<declared port>.
	Apps map[string]string
}

// Refusal says why a destination is not served.
type Refusal struct {
	Service mesh.ServiceName
	Reason  string // "unknown" or "denied"
	Rule    string // the rule id that decided, where denied
	Origin  string // file:line of that rule
}

// Deps are what outlives a Pipeline.
type Deps struct {
	Clusters  *Clusters
	Freshness *Freshness
}

// Build checks a config and makes the Pipeline of it. An error names what is wrong; the config must then be refused
// whole: unknown capabilities, protocols and modes, references that lead nowhere, identities and addresses that are
// none. Nothing of d is changed before [Current.Publish].
func Build(c Config, d Deps) (*Pipeline, error) {
	if c.Settings == nil {
		return nil, fmt.Errorf("the config has no settings object")
	}
	if err := spiffe.CheckTrustDomain(c.Settings.TrustDomain); err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	if err := supported("settings", c.Settings.Needs, c.Settings.Requires()); err != nil {
		return nil, err
	}
	b := &builder{
		config: c, deps: d,
		p: &Pipeline{
			Epoch: c.Epoch, Commit: c.Commit, AppliedAt: c.AppliedAt, Service: c.Service,
			TrustDomain: c.Settings.TrustDomain, maxStale: c.Settings.MaxStale, freshness: d.Freshness,
			bySNI: map[string]*InboundPort{}, hosts: map[string]*service{}, services: map[mesh.ServiceName]*service{},
			origins: map[string]string{}, headers: map[string]string{}, clusters: map[clusterKey]clusterSpec{},
		},
	}
	for _, o := range c.Origins {
		for id, pos := range o {
			b.p.origins[id] = pos.Short()
		}
	}
	for _, step := range []func() error{b.inbound, b.index, b.outbound, b.routes, b.refusals} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return b.p, nil
}

type builder struct {
	config Config
	deps   Deps
	p      *Pipeline
}

// supported checks what an object says that it needs, and what it takes by all that it sets, against what this sidecar
// enforces.
func supported(of string, needs, requires []mesh.Capability) error {
	for _, n := range slices.Concat(needs, requires) {
		if !slices.Contains(mesh.Enforced, n) {
			return fmt.Errorf("%s needs capability %q, which this sidecar does not have; upgrade heddle-proxy", of, n)
		}
	}
	return nil
}

func carried(p mesh.Protocol, of string) error {
	if !slices.Contains(mesh.EnforcedProtocols, p) {
		return fmt.Errorf("%s has protocol %q, which this sidecar does not carry; upgrade heddle-proxy", of, p)
	}
	return nil
}

// inbound checks the own service's Inbound as strictly as it will be trusted: a rule that refers to nothing would
// silently not deny.
func (b *builder) inbound() error {
	for _, in := range b.config.Inbound {
		if b.p.ports != nil {
			return fmt.Errorf("inbound %s and %s: a workload runs one service", b.p.Service, in.Service)
		}
		b.p.Service = in.Service
		of := "inbound " + string(in.Service)
		if err := supported(of, in.Needs, in.Requires()); err != nil {
			return err
		}
		b.p.ports = []*InboundPort{}
		for i := range in.Ports {
			port := &in.Ports[i]
			of := fmt.Sprintf("%s, port %s", of, port.Name)
			if err := carried(port.Protocol, of); err != nil {
				return err
			}
			switch {
			case b.p.InboundByName(port.Name) != nil:
				return fmt.Errorf("%s is there twice", of)
			case port.Port == 0:
				return fmt.Errorf("%s has number 0", of)
			case port.MTLS != mesh.Strict && port.MTLS != mesh.Permissive:
				return fmt.Errorf("%s has mTLS mode %q, which this sidecar does not know; upgrade heddle-proxy", of, port.MTLS)
			case !slices.Contains(knownModes, port.Default):
				return fmt.Errorf("%s has default %q, which this sidecar does not know; upgrade heddle-proxy", of, port.Default)
			}
			app := b.config.Apps[port.Name]
			if app == "" {
				app = net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port.Port)))
			}
			ip := &InboundPort{Service: in.Service, Inbound: in, Port: port, SNI: spiffe.SNI(in.Service, port.Name), App: app, Observes: port.Default == mesh.Audit}
			b.p.ports = append(b.p.ports, ip)
			b.p.bySNI[ip.SNI] = ip
			b.header(port.DefaultID)
		}
		slices.SortFunc(b.p.ports, func(x, y *InboundPort) int { return strings.Compare(x.Port.Name, y.Port.Name) })
		for i := range in.Rules {
			if err := b.rule(in, &in.Rules[i]); err != nil {
				return fmt.Errorf("%s: %w", of, err)
			}
		}
	}
	return nil
}

var knownModes = []mesh.InboundMode{mesh.Deny, mesh.AllAuthenticated, mesh.AllUnauthenticated, mesh.ClusterAuthenticated, mesh.ClusterUnauthenticated, mesh.Audit}

func (b *builder) rule(in *mesh.Inbound, r *mesh.Rule) error {
	switch {
	case r.ID == "":
		return fmt.Errorf("a rule has no id")
	case r.Action != mesh.Allow && r.Action != mesh.DenyRule && r.Action != mesh.AuditRule:
		return fmt.Errorf("rule %s has action %q, which this sidecar does not know; upgrade heddle-proxy", r.ID, r.Action)
	case len(r.From) == 0:
		return fmt.Errorf("rule %s is from nobody", r.ID)
	}
	for i, p := range r.From {
		n := 0
		for _, set := range []bool{p.Identity != "", p.Prefix != "", p.Suffix != "", p.Authenticated, p.Unauthenticated} {
			if set {
				n++
			}
		}
		if n != 1 {
			return fmt.Errorf("rule %s: peer %d sets %d fields instead of one", r.ID, i, n)
		}
	}
	for _, name := range r.Ports {
		if _, ok := in.Port(name); !ok {
			return fmt.Errorf("rule %s names port %q, which there is not", r.ID, name)
		}
	}
	for i, n := range r.Networks {
		if !n.CIDR.IsValid() || slices.ContainsFunc(n.Except, func(p netip.Prefix) bool { return !p.IsValid() }) {
			return fmt.Errorf("rule %s: network %d is no range of addresses", r.ID, i)
		}
	}
	for i, p := range r.Paths {
		n := 0
		for _, set := range []bool{p.Exact != "", p.Prefix != "", p.Template != ""} {
			if set {
				n++
			}
		}
		if n != 1 || p.Regex != "" {
			return fmt.Errorf("rule %s: path %d is not one of exact, prefix, template", r.ID, i)
		}
	}
	for i, h := range r.Headers {
		if h.Regex != "" || h.Name == "" || !h.Present && h.Exact == "" && len(h.OneOf) == 0 {
			return fmt.Errorf("rule %s: header %d is not one of exact, oneOf, present", r.ID, i)
		}
	}
	for _, p := range b.p.ports {
		switch {
		case !decide.OnPort(r, p.Port.Name):
		case r.Shadow || r.Action == mesh.AuditRule:
			p.Observes = true
		default:
			p.judges(r.Headers)
			if len(r.Routes) > 0 {
				for i := range p.Port.Matches {
					p.judges(p.Port.Matches[i].Headers)
				}
			}
		}
	}
	if !r.Until.IsZero() {
		b.p.ends = append(b.p.ends, r.Until)
	}
	for _, id := range r.Routes {
		if !slices.ContainsFunc(in.Ports, func(p mesh.InboundPort) bool {
			return slices.ContainsFunc(p.Matches, func(m mesh.Match) bool { return m.Route == id })
		}) {
			return fmt.Errorf("rule %s names route %s, which no port has", r.ID, id)
		}
	}
	b.header(r.ID)
	return nil
}

// judges notes headers that a rule goes by.
func (p *InboundPort) judges(headers []mesh.HeaderMatch) {
	for i := range headers {
		if !slices.Contains(p.Judged, headers[i].Name) {
			p.Judged = append(p.Judged, headers[i].Name)
		}
	}
}

// header makes the value of heddle-policy before anybody asks.
func (b *builder) header(rule string) {
	origin := b.p.origins[rule]
	if origin == "" {
		origin = "-"
	}
	b.p.headers[rule] = b.config.Commit + " " + rule + " " + origin
}

// index lists what exists; all of it is pending until an Outbound or a refusal says more.
func (b *builder) index() error {
	for _, ix := range b.config.Indexes {
		for _, s := range ix.Services {
			svc, err := b.service(mesh.Name(ix.Namespace, s.Name))
			if err != nil {
				return fmt.Errorf("index %s: %w", ix.Namespace, err)
			}
			for _, port := range s.Ports {
				svc.add(&Upstream{State: Pending, PortName: port.Name, PortNumber: port.Port, Protocol: port.Protocol})
			}
		}
	}
	return nil
}

// service finds or makes a service.
func (b *builder) service(n mesh.ServiceName) (*service, error) {
	if s := b.p.services[n]; s != nil {
		return s, nil
	}
	host := n.Host()
	if !legalHost(host) {
		return nil, fmt.Errorf("%q is no legal name of a service", n)
	}
	s := &service{name: n, unknown: &Upstream{State: UnknownPort, Service: n, Authority: host}}
	b.p.services[n], b.p.hosts[host] = s, s
	return s, nil
}

// outbound makes the Known upstreams and their clusters.
func (b *builder) outbound() error {
	for _, o := range b.config.Outbound {
		of := "outbound " + string(o.Service)
		if err := supported(of, o.Needs, o.Requires()); err != nil {
			return err
		}
		svc, err := b.service(o.Service)
		if err != nil {
			return fmt.Errorf("%s: %w", of, err)
		}
		if svc.known {
			return fmt.Errorf("%s is there twice", of)
		}
		svc.known, svc.ports = true, nil // where the index differs, this is the newer truth
		ids := make([]spiffe.ID, len(o.Identities))
		for i, s := range o.Identities {
			if ids[i], err = spiffe.ParseID(s); err != nil {
				return fmt.Errorf("%s: %w", of, err)
			}
		}
		if len(ids) == 0 {
			return fmt.Errorf("%s has no identity that a server could prove", of)
		}
		addresses, err := b.endpoints(o.Service)
		if err != nil {
			return err
		}
		for i := range o.Ports {
			port := &o.Ports[i]
			if err := carried(port.Protocol, of+", port "+port.Name); err != nil {
				return err
			}
			if port.Port == 0 || svc.port(port.Name) != nil {
				return fmt.Errorf("%s, port %s has number 0 or is there twice", of, port.Name)
			}
			cl := b.deps.Clusters.cluster(o, port, ids)
			b.p.clusters[cl.key] = clusterSpec{cl, addresses}
			u := &Upstream{
				State: Known, PortName: port.Name, PortNumber: port.Port, Protocol: port.Protocol,
				Outbound: o, Port: port, Cluster: cl,
			}
			svc.add(u)
			b.p.upstreams = append(b.p.upstreams, u)
		}
	}
	slices.SortFunc(b.p.upstreams, func(x, y *Upstream) int {
		if c := strings.Compare(string(x.Service), string(y.Service)); c != 0 {
			return c
		}
		return strings.Compare(x.PortName, y.PortName)
	})
	return nil
}

// endpoints are the addresses of a service. One that is there twice, as while a workload takes over another's address,
// counts once.
func (b *builder) endpoints(s mesh.ServiceName) ([]balance.Address, error) {
	list := make([]balance.Address, 0, len(b.config.Endpoints[s]))
	seen := make(map[netip.AddrPort]bool, cap(list))
	for _, a := range b.config.Endpoints[s] {
		if ip := a.Addr.Addr(); !a.Addr.IsValid() || a.Addr.Port() == 0 || ip.IsUnspecified() || ip.IsMulticast() {
			return nil, fmt.Errorf("endpoints of %s: %s is no address to connect to", s, a.Addr)
		}
		if !seen[a.Addr] {
			seen[a.Addr] = true
			list = append(list, a)
		}
	}
	return list, nil
}

// routes resolves backends, once every upstream is there.
func (b *builder) routes() error {
	for _, u := range b.p.upstreams {
		for i := range u.Port.Matches {
			id := u.Port.Matches[i].Route
			route, ok := u.Outbound.Route(id)
			if !ok {
				return fmt.Errorf("outbound %s: a match names route %s, which there is not", u.Service, id)
			}
			if u.routes[route] != nil {
				continue
			}
			r := &Route{Route: route, Upstreams: make([]*Upstream, len(route.Backends))}
			for j, be := range route.Backends {
				svc := b.p.services[be.Service]
				if svc == nil || !svc.known {
					return fmt.Errorf("route %s: backend %s has no outbound object in this config", id, be.Service)
				}
				if r.Upstreams[j] = svc.port(be.Port); r.Upstreams[j] == nil {
					return fmt.Errorf("route %s: backend %s has no port %q", id, be.Service, be.Port)
				}
			}
			if u.routes == nil {
				u.routes = map[*mesh.Route]*Route{}
			}
			u.routes[route] = r
		}
	}
	return nil
}

func (b *builder) refusals() error {
	for i := range b.config.Refusals {
		r := &b.config.Refusals[i]
		if b.p.services[r.Service] == nil && r.Reason == "unknown" {
			continue // as lookups say of themselves
		}
		svc, err := b.service(r.Service)
		if err != nil {
			continue // somebody asked for what can be no service: ByHost says unknown anyway
		}
		if svc.known {
			continue // an upsert takes a refusal back
		}
		svc.refuse(r)
	}
	return nil
}
