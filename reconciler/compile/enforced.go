package compile

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// gate is the last stage of checking (decisions.md, 38). All policy is compiled to its form in the mesh; on the way,
// [compiler.need] notes what it takes to enforce it. What the chosen version lacks becomes a finding here and nowhere
// else, so that the table of mesh.Enforced alone decides.
type gate struct {
	version  string
	enforced map[mesh.Capability]bool
	lacks    []lack
}

// lack is a use of a capability that is not there.
type lack struct {
	cap  mesh.Capability
	at   path
	what string
}

// newGate chooses a version of heddle-proxy: "" is this source tree's, and "any" lets everything through.
func newGate(version string) (*gate, error) {
	version = cmp.Or(version, mesh.Version)
	caps, ok := mesh.EnforcedBy(version)
	if !ok {
		return nil, fmt.Errorf("no heddle-proxy %q is known here", version)
	}
	return gateOf(version, caps), nil
}

func gateOf(version string, caps []mesh.Capability) *gate {
	g := &gate{version: version, enforced: make(map[mesh.Capability]bool, len(caps))}
	for _, c := range caps {
		g.enforced[c] = true
	}
	return g
}

// need notes that an object takes a capability; on is the object's Needs, or nil for what no sidecar is sent. what names
// what the author wrote at the path, as in `protocol "http2"`.
func (c *compiler) need(on *[]mesh.Capability, capability mesh.Capability, at path, what string) {
	if on != nil && !slices.Contains(*on, capability) {
		*on = append(*on, capability)
	}
	if !c.gate.enforced[capability] {
		c.gate.lacks = append(c.gate.lacks, lack{capability, at, what})
	}
}

// closeGate turns what is lacking into findings.
func (c *compiler) closeGate() {
	for _, l := range c.gate.lacks {
		who := "heddle-proxy " + c.gate.version
		if elsewhere[l.cap] {
			who = "this version of Heddle (" + mesh.Version + ")"
		}
		c.find(diag.NotEnforced, l.at, fmt.Sprintf("%s is not enforced by %s", l.what, who), instead(l.cap))
	}
}

// elsewhere are the capabilities that are the reconciler's or the control plane's, not the sidecar's.
var elsewhere = map[mesh.Capability]bool{
	mesh.CapSelector: true, mesh.CapGroup: true, mesh.CapStaged: true, mesh.CapJWKSURL: true, mesh.CapRemoteSource: true,
}

// instead says what to write in place of what needs a capability.
func instead(capability mesh.Capability) string {
	switch capability {
	case mesh.CapHTTP2, mesh.CapGRPC, mesh.CapTLS:
		return `write "http1" or "detect", or "tcp" to carry the bytes uninspected`
	case mesh.CapRouteRegex:
		return "write exact or prefix"
	case mesh.CapRouteQuery:
		return "match by path, method or headers"
	case mesh.CapGRPCRoute, mesh.CapTLSRoute, mesh.CapTCPRoute:
		return "leave the route out: without routes everything goes to the service itself"
	case mesh.CapConsumerRoute:
		return "leave it out, or write the routes in the service itself"
	case mesh.CapResponseTimeout, mesh.CapIdleTimeout:
		return "leave it out, or write timeout, which bounds the whole exchange"
	case mesh.CapAuthorizePattern:
		return "name the identities one by one, or services"
	case mesh.CapAuthorizeRequest:
		return "write the conditions as an HTTP route, and name it in the rule's routes"
	case mesh.CapAuthorizeUntil:
		return "leave it out, and delete the rule when its time has come"
	case mesh.CapAudit:
		return "leave it out until it is meant: nothing would be recorded"
	case mesh.CapCluster:
		return `write "deny", "all-authenticated" or "all-unauthenticated"`
	case mesh.CapSelector, mesh.CapGroup:
		return "declare each workload under workloads, without labels"
	case mesh.CapJWKSURL:
		return "write the key set into jwks"
	case mesh.CapStaged:
		return "leave it out: releases go to all at once"
	case mesh.CapRemoteSource:
		return "give the team a directory of this repository"
	case mesh.CapFilterBackend:
		return "put the filter on the route, or split the route by match"
	case mesh.CapNonCanonical:
		return `leave it out: requests whose path is not canonical are refused`
	}
	return "leave it out, or check for a newer heddle-proxy with --proxy-version"
}

// needProtocol notes what carrying a port takes.
func (c *compiler) needProtocol(on *[]mesh.Capability, p *port) {
	what := fmt.Sprintf("protocol %q", p.protocol)
	for _, capability := range carried[p.protocol] {
		c.need(on, capability, p.protocolAt, what)
	}
}

// needLevel notes what it takes to enforce the defaults that the mesh or a namespace sets, whether or not a service goes by
// them: they would hold for the next one. It says what is said where a service does.
func (c *compiler) needLevel(d *defaults, l level) {
	if d.protocol.level == l {
		for _, capability := range carried[d.protocol.v] {
			c.need(nil, capability, d.protocol.from, fmt.Sprintf("protocol %q", d.protocol.v))
		}
	}
	for _, n := range []struct {
		on         bool
		level      level
		capability mesh.Capability
		at         path
		what       string
	}{
		{d.mtls.v == mesh.Permissive, d.mtls.level, mesh.CapPermissive, d.mtls.from, `mtls "permissive"`},
		{d.timeouts.request.v > 0, d.timeouts.request.level, mesh.CapTimeout, d.timeouts.request.from, "a timeout"},
		{d.timeouts.response.v > 0, d.timeouts.response.level, mesh.CapResponseTimeout, d.timeouts.response.from, "a response timeout"},
		{d.timeouts.idle.v > 0, d.timeouts.idle.level, mesh.CapIdleTimeout, d.timeouts.idle.from, "an idle timeout"},
		{d.retry.asked.set() && d.retry.retries.v > 0, d.retry.asked.level, mesh.CapRetry, d.retry.asked.from, "retry"},
		{d.balancer.policy.v == consistentHash, d.balancer.policy.level, mesh.CapHash, d.balancer.policy.from, "consistent hashing"},
		{d.balancer.warmUp.v > 0, d.balancer.warmUp.level, mesh.CapWarmUp, d.balancer.warmUp.from, "a warm-up"},
		{d.limits.connections.set(), d.limits.connections.level, mesh.CapLimits, d.limits.connections.from, "a limit"},
		{d.limits.requests.set(), d.limits.requests.level, mesh.CapLimits, d.limits.requests.from, "a limit"},
		{d.limits.pending.set(), d.limits.pending.level, mesh.CapLimits, d.limits.pending.from, "a limit"},
		{d.rate.total.set(), d.rate.total.level, mesh.CapRateLimit, d.rate.total.from, "a rate limit"},
		{!d.rate.total.set() && d.rate.perIdentity.set(), d.rate.perIdentity.level, mesh.CapRateLimit, d.rate.perIdentity.from, "a rate limit"},
		{!d.rate.total.set() && !d.rate.perIdentity.set() && d.rate.overrides.set(), d.rate.overrides.level, mesh.CapRateLimit, d.rate.overrides.from, "a rate limit"},
		{d.egress.v == mesh.Allow, d.egress.level, mesh.CapEgress, d.egress.from, `egressPolicy "allow"`},
	} {
		if n.on && n.level == l {
			c.need(nil, n.capability, n.at, n.what)
		}
	}
	if at := d.breaker.nearest(); at != "" && (d.breaker.consecutive.level == l || d.breaker.successRate.level == l || d.breaker.window.level == l ||
		d.breaker.minRequests.level == l || d.breaker.penalty.level == l || d.breaker.ejectionFloor.level == l) {
		c.need(nil, mesh.CapBreaker, at, "a breaker")
	}
}

// carried is what it takes to carry a protocol.
var carried = map[mesh.Protocol][]mesh.Capability{
	mesh.Detect: {mesh.CapDetect, mesh.CapHTTP1, mesh.CapTCP},
	mesh.HTTP1:  {mesh.CapHTTP1},
	mesh.HTTP2:  {mesh.CapHTTP2},
	mesh.GRPC:   {mesh.CapGRPC},
	mesh.TLS:    {mesh.CapTLS},
	mesh.TCP:    {mesh.CapTCP},
	mesh.Opaque: {mesh.CapTCP},
}

// set sorts and removes repetitions; it is nil for none.
func set[T ~string](list []T) []T {
	slices.Sort(list)
	return slices.Compact(list)
}
