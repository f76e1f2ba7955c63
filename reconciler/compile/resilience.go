package compile

import (
	"fmt"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// compileResilience compiles how callers choose among a service's workloads, and how much the service takes.
func (c *compiler) compileResilience(s *service) {
	b := &s.defaults.balancer
	switch hashed := b.policy.v == consistentHash; {
	case hashed && b.hash.v == nil:
		c.find(diag.MissingField, b.policy.from, "consistent-hash needs a key", `write hash: {source: true}, or hash: header: "x-user"`)
	case !hashed && b.hash.set() && b.hash.level >= b.policy.level:
		c.find(diag.WrongValue, b.hash.from, "the key is never used: the balancer is p2c-ewma", `write policy: "consistent-hash" beside it, or leave it out`)
	case hashed:
		h := b.hash.v
		s.out.Balancer.Hash = &mesh.HashKey{Header: strings.ToLower(h.Header), Cookie: h.Cookie, Source: h.Source}
		c.need(&s.out.Needs, mesh.CapHash, b.policy.from, "consistent hashing")
		if b.hash.level == serviceLevel && !h.Source && !slices.ContainsFunc(s.ports, (*port).http) {
			c.find(diag.WrongProtocol, b.hash.from, "the key is of requests, and no port of the service speaks HTTP", "write hash: {source: true}")
		}
	}
	if s.out.Balancer.WarmUp = b.warmUp.v; b.warmUp.v > 0 {
		c.need(&s.out.Needs, mesh.CapWarmUp, b.warmUp.from, "a warm-up")
	}
	if br := &s.defaults.breaker; br.set() {
		s.out.Breaker = br.compile()
		c.need(&s.out.Needs, mesh.CapBreaker, br.nearest(), "a breaker")
	}
	if l := &s.defaults.limits; l.pending.set() {
		s.out.MaxPending = l.pending.v
		c.need(&s.out.Needs, mesh.CapLimits, l.pending.from, "a limit")
	}
	l := &s.defaults.limits
	s.in.MaxConnections, s.in.MaxRequests = l.connections.v, l.requests.v
	for _, v := range []value[uint32]{l.connections, l.requests} {
		if v.set() {
			c.need(&s.in.Needs, mesh.CapLimits, v.from, "a limit")
		}
	}
}

// compile makes what callers do of the settings in force.
func (b *breaker) compile() *mesh.Breaker {
	return &mesh.Breaker{
		Consecutive: b.consecutive.v, SuccessRate: b.successRate.v, Window: b.window.v, MinRequests: b.minRequests.v,
		PenaltyMin: b.penalty.v.min, PenaltyMax: b.penalty.v.max, EjectionFloor: b.ejectionFloor.v,
	}
}

// nearest is the field that the nearest level set.
func (b *breaker) nearest() path {
	at, l := path(""), builtInLevel
	for _, f := range []struct {
		from  path
		level level
	}{{b.consecutive.from, b.consecutive.level}, {b.successRate.from, b.successRate.level}, {b.window.from, b.window.level},
		{b.minRequests.from, b.minRequests.level}, {b.penalty.from, b.penalty.level}, {b.ejectionFloor.from, b.ejectionFloor.level}} {
		if f.level > l {
			at, l = f.from, f.level
		}
	}
	return at
}

// compileRates compiles how many requests ports and routes take in a time; rules have been compiled before.
func (c *compiler) compileRates(s *service) {
	for i, p := range s.ports {
		if !p.rate.set() {
			continue
		}
		if !p.http() {
			if p.rate.total.level == portLevel || p.rate.perIdentity.level == portLevel || p.rate.overrides.level == portLevel {
				c.find(diag.WrongProtocol, p.at.at("rateLimit"), fmt.Sprintf("a rate limit counts requests, and port %q speaks %s", p.name, p.protocol),
					"limit connections instead, in the service's defaults: limits", c.pos(p.protocolAt))
			}
			continue
		}
		s.in.Ports[i].RateLimit = c.rate(s, &p.rate)
	}
	for _, r := range s.routes {
		if r.src.rate == nil {
			continue
		}
		var own rate
		c.overRate(&own, r.src.rate, r.at.at("rateLimit"), routeLevel)
		if !own.set() {
			continue // a finding already
		}
		limit := c.rate(s, &own)
		if r.port != nil {
			if p := &r.port.rate; p.total.set() && own.total.v > p.total.v {
				c.find(diag.LimitOrder, own.total.from, fmt.Sprintf("the route may take %d requests a second, its port only %d", own.total.v, p.total.v),
					"lower the route's limit, or raise the port's", c.pos(p.total.from))
			}
		}
		j := slices.IndexFunc(s.in.Routes, func(m mesh.Route) bool { return m.ID == r.id })
		if j < 0 {
			j = len(s.in.Routes)
			s.in.Routes = append(s.in.Routes, mesh.Route{ID: r.id, Port: r.compiled.Port, GRPC: r.compiled.GRPC, Matches: r.matches})
		}
		s.in.Routes[j].RateLimit = limit
		if r.port != nil { // the sidecar must tell which of the port's routes takes a request
			to, _ := s.in.Port(r.port.name)
			from, _ := s.out.Port(r.port.name)
			to.Matches = from.Matches
		}
	}
	slices.SortFunc(s.in.Routes, func(a, b mesh.Route) int { return strings.Compare(a.ID, b.ID) })
}

// rate compiles the limits in force.
func (c *compiler) rate(s *service, r *rate) *mesh.RateLimit {
	at := r.total.from
	if at == "" {
		at = r.perIdentity.from
	}
	if at == "" {
		at = r.overrides.from
	}
	c.need(&s.in.Needs, mesh.CapRateLimit, at, "a rate limit")
	out := &mesh.RateLimit{Total: r.total.v, PerIdentity: r.perIdentity.v, Overrides: c.overrides(s, r.overrides)}
	if r.total.set() && r.perIdentity.v > r.total.v {
		c.find(diag.LimitOrder, r.perIdentity.from, fmt.Sprintf("each identity may make %d requests a second, all together only %d", r.perIdentity.v, r.total.v),
			"lower perIdentity, or raise total", c.pos(r.total.from))
	}
	for i, o := range r.overrides.v {
		if r.total.set() && o.RequestsPerSecond > int64(r.total.v) {
			c.find(diag.LimitOrder, r.overrides.from.index(i).at("requestsPerSecond"),
				fmt.Sprintf("these callers may make %d requests a second, all together only %d", o.RequestsPerSecond, r.total.v),
				"lower it, or raise total", c.pos(r.total.from))
		}
	}
	return out
}

// overrides compiles other limits for some callers. The first that matches a caller counts, so that exact callers come
// before patterns: the order in which an author lists them is no behaviour, and two that name one caller are a finding.
func (c *compiler) overrides(s *service, src value[[]v1alpha1.RateOverride]) []mesh.RateOverride {
	if len(src.v) == 0 {
		return nil
	}
	if done, ok := c.rateOverrides[src.from]; ok { // a default that many services have
		c.needPeers(s, src.from, done)
		return done
	}
	out := make([]mesh.RateOverride, 0, len(src.v))
	seen := map[mesh.Peer]path{}
	for i, o := range src.v {
		at := src.from.index(i)
		if o.RequestsPerSecond < 1 || o.RequestsPerSecond > 10_000_000 {
			c.find(diag.WrongValue, at.at("requestsPerSecond"), fmt.Sprintf("%d is out of range", o.RequestsPerSecond), "write a number from 1 to 10000000")
			continue
		}
		m := mesh.RateOverride{From: c.from(at.at("from"), o.From), RequestsPerSecond: uint32(o.RequestsPerSecond)}
		for _, p := range m.From {
			if other, ok := seen[p]; ok {
				c.find(diag.DuplicateEntry, at.at("from"), "another override names the same caller, and only one can hold",
					"name each caller once", c.pos(other))
			}
			seen[p] = at.at("from")
		}
		out = append(out, m)
	}
	narrow := func(o mesh.RateOverride) (n int) {
		for _, p := range o.From {
			n = max(n, width(p))
		}
		return n
	}
	slices.SortFunc(out, func(a, b mesh.RateOverride) int {
		if n := narrow(a) - narrow(b); n != 0 {
			return n
		}
		return strings.Compare(string(mesh.Canonical(a.From)), string(mesh.Canonical(b.From)))
	})
	c.rateOverrides[src.from] = out
	c.needPeers(s, src.from, out)
	return out
}

// needPeers notes what telling the callers of overrides apart takes.
func (c *compiler) needPeers(s *service, at path, overrides []mesh.RateOverride) {
	for _, o := range overrides {
		if slices.ContainsFunc(o.From, func(p mesh.Peer) bool { return p.Prefix != "" || p.Suffix != "" }) {
			c.need(&s.in.Needs, mesh.CapAuthorizePattern, at, "a pattern of identities")
		}
	}
}

// width orders kinds of callers from one to all: the longer a pattern, the fewer it matches.
func width(p mesh.Peer) int {
	switch {
	case p.Identity != "":
		return 0
	case p.Prefix != "" || p.Suffix != "":
		return 10_000 - min(len(p.Prefix)+len(p.Suffix), 9_000)
	case p.Authenticated:
		return 20_000
	}
	return 30_000
}
