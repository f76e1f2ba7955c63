package mesh

import "slices"

// What an object needs follows from what it says, and the methods here read it off. The compiler writes it into Needs,
// for those who know less; a sidecar reads it off again, so that a setting which it does not enforce is refused though
// nobody said so.

// needs are capabilities, sorted, each once.
type needs []Capability

func (n *needs) add(set bool, capability Capability) {
	if !set {
		return
	}
	if i, found := slices.BinarySearch(*n, capability); !found {
		*n = slices.Insert(*n, i, capability)
	}
}

// Requires are the capabilities that it takes to enforce the settings, sorted.
func (s *Settings) Requires() []Capability {
	var n needs
	n.add(len(s.ClusterNetworks) > 0, CapNetworks)
	n.add(len(s.OpaquePorts) > 0, CapOpaquePorts)
	n.add(len(s.SkipInbound)+len(s.SkipOutbound) > 0, CapSkipPorts)
	n.add(len(s.Telemetry.Labels) > 0 || s.Telemetry.MaxSeries > 0, CapTelemetry)
	n.add(s.Telemetry.Tracing > 0, CapTracing)
	n.add(s.Telemetry.AccessLog != "", CapAccessLog)
	r := &s.Rollout
	n.add(len(r.Steps) > 0 || r.Pause > 0 || r.HaltNacks > 0 || r.HaltDenials > 0 || r.HaltFailures > 0, CapStaged)
	n.add(len(s.JWTIssuers) > 0, CapAuthorizeJWT)
	return n
}

// Requires are the capabilities that it takes to enforce the rules and limits of a service, sorted.
func (in *Inbound) Requires() []Capability {
	n := needs{CapAuthorize}
	for i := range in.Ports {
		p := &in.Ports[i]
		n.protocol(p.Protocol)
		n.add(p.MTLS == Permissive, CapPermissive)
		n.add(p.Default == Audit, CapAudit)
		n.add(p.Default == ClusterAuthenticated || p.Default == ClusterUnauthenticated, CapCluster)
		n.rate(p.RateLimit)
		n.matches(p.Matches)
	}
	n.add(len(in.ClusterNetworks) > 0, CapCluster)
	n.add(len(in.Selector) > 0, CapSelector)
	n.add(in.MaxConnections > 0 || in.MaxRequests > 0, CapLimits)
	for i := range in.Routes {
		n.add(true, CapRateLimit) // no other routes are here
		n.route(&in.Routes[i])
	}
	for i := range in.Rules {
		r := &in.Rules[i]
		n.peers(r.From)
		n.add(r.Action == AuditRule || r.Shadow, CapAudit)
		n.add(len(r.Routes) > 0, CapAuthorizeL7)
		n.add(len(r.Networks) > 0, CapAuthorizeNetwork)
		n.add(len(r.Methods)+len(r.Paths)+len(r.Headers) > 0, CapAuthorizeRequest)
		n.add(len(r.SNI) > 0, CapAuthorizeSNI)
		n.add(r.JWT != nil, CapAuthorizeJWT)
		n.add(!r.Until.IsZero(), CapAuthorizeUntil)
	}
	return n
}

// Requires are the capabilities that it takes to call a service as it says, sorted.
func (o *Outbound) Requires() []Capability {
	var n needs
	n.ports(o.Ports)
	for i := range o.Routes {
		n.route(&o.Routes[i])
	}
	for i := range o.Consumers {
		n.add(true, CapConsumerRoute)
		n.ports(o.Consumers[i].Ports)
		for j := range o.Consumers[i].Routes {
			n.route(&o.Consumers[i].Routes[j])
		}
	}
	n.add(o.Balancer.Hash != nil, CapHash)
	n.add(o.Balancer.WarmUp > 0, CapWarmUp)
	n.add(o.Breaker != nil, CapBreaker)
	n.add(o.MaxPending > 0, CapLimits)
	return n
}

// protocol notes what it takes to carry a protocol; one that is not known takes what nobody has.
func (n *needs) protocol(p Protocol) {
	switch p {
	case Detect:
		n.add(true, CapDetect)
		n.add(true, CapHTTP1)
		n.add(true, CapTCP)
	case HTTP1:
		n.add(true, CapHTTP1)
	case HTTP2:
		n.add(true, CapHTTP2)
	case GRPC:
		n.add(true, CapGRPC)
	case TLS:
		n.add(true, CapTLS)
	case TCP, Opaque:
		n.add(true, CapTCP)
	default:
		n.add(true, Capability("protocol "+string(p)))
	}
}

func (n *needs) ports(ports []OutboundPort) {
	for i := range ports {
		p := &ports[i]
		n.protocol(p.Protocol)
		n.add(len(p.Matches) > 0, CapRoute)
		n.matches(p.Matches)
		n.add(len(p.Hosts) > 0, CapTLSRoute)
		n.add(p.Connections != "", CapTCPRoute)
	}
}

func (n *needs) matches(matches []Match) {
	for i := range matches {
		m := &matches[i]
		n.add(m.Path.Regex != "" || slices.ContainsFunc(m.Headers, byRegex) || slices.ContainsFunc(m.Query, byRegex), CapRouteRegex)
		n.add(len(m.Query) > 0, CapRouteQuery)
	}
}

func byRegex(h HeaderMatch) bool { return h.Regex != "" }

func (n *needs) peers(from []Peer) {
	for i := range from {
		n.add(from[i].Prefix != "" || from[i].Suffix != "", CapAuthorizePattern)
	}
}

func (n *needs) rate(l *RateLimit) {
	if l == nil {
		return
	}
	n.add(true, CapRateLimit)
	for i := range l.Overrides {
		n.peers(l.Overrides[i].From)
	}
}

func (n *needs) route(r *Route) {
	n.add(r.GRPC, CapGRPCRoute)
	n.matches(r.Matches)
	n.add(r.Timeouts.Request > 0, CapTimeout)
	n.add(r.Timeouts.Response > 0, CapResponseTimeout)
	n.add(r.Timeouts.Idle > 0, CapIdleTimeout)
	n.add(r.Retry != nil, CapRetry)
	n.add(r.Breaker != nil, CapBreaker)
	n.rate(r.RateLimit)
	n.filters(r.Filters)
	for i := range r.Backends {
		n.add(len(r.Backends[i].Filters) > 0, CapFilterBackend)
		n.filters(r.Backends[i].Filters)
	}
}

func (n *needs) filters(filters []Filter) {
	for i := range filters {
		f := &filters[i]
		n.add(f.RequestHeaders != nil || f.ResponseHeaders != nil, CapFilterHeaders)
		n.add(f.Redirect != nil, CapFilterRedirect)
		n.add(f.Rewrite != nil, CapFilterRewrite)
		n.add(f.Mirror != nil, CapFilterMirror)
		n.add(f.CORS != nil, CapFilterCORS)
		n.add(f.Respond != nil, CapFilterRespond)
		n.add(f.Fault != nil, CapFilterFault)
	}
}
