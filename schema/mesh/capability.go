package mesh

import "slices"

// Capability is something a sidecar, or the control plane for it, must be able to do for policy to hold. Objects carry
// those they need; a sidecar declares its own in hello, refuses an object that needs another, and a release that a
// sidecar cannot enforce is held.
type Capability string

const (
	CapHTTP1  Capability = "http1"  // carry HTTP/1.1
	CapTCP    Capability = "tcp"    // carry bytes
	CapDetect Capability = "detect" // tell them apart
	CapHTTP2  Capability = "http2"
	CapGRPC   Capability = "grpc"
	CapTLS    Capability = "tls" // pass TLS through, by the name in it

	CapRoute           Capability = "http-route" // match path, method, headers; weighted backends
	CapRouteRegex      Capability = "http-route-regex"
	CapRouteQuery      Capability = "http-route-query"
	CapGRPCRoute       Capability = "grpc-route"
	CapTLSRoute        Capability = "tls-route"
	CapTCPRoute        Capability = "tcp-route"
	CapConsumerRoute   Capability = "consumer-route"
	CapTimeout         Capability = "http-timeout" // Timeouts.Request
	CapResponseTimeout Capability = "response-timeout"
	CapIdleTimeout     Capability = "idle-timeout"
	CapRetry           Capability = "retry"

	CapFilterHeaders  Capability = "filter-headers"
	CapFilterRedirect Capability = "filter-redirect"
	CapFilterRewrite  Capability = "filter-rewrite"
	CapFilterMirror   Capability = "filter-mirror"
	CapFilterCORS     Capability = "filter-cors"
	CapFilterRespond  Capability = "filter-respond"
	CapFilterFault    Capability = "filter-fault"
	CapFilterBackend  Capability = "filter-backend" // filters of one backend

	CapHash      Capability = "balancer-hash"
	CapWarmUp    Capability = "balancer-warm-up"
	CapWeight    Capability = "balancer-weight" // of workloads
	CapZone      Capability = "balancer-zone"
	CapBreaker   Capability = "breaker"
	CapLimits    Capability = "limits"
	CapRateLimit Capability = "rate-limit"

	CapAuthorize        Capability = "authorize" // allow and deny rules by identity and port
	CapAuthorizeL7      Capability = "authorize-route"
	CapAuthorizePattern Capability = "authorize-pattern" // identities by prefix and suffix
	CapAuthorizeNetwork Capability = "authorize-network"
	CapAuthorizeRequest Capability = "authorize-request" // methods, paths, headers in a rule
	CapAuthorizeSNI     Capability = "authorize-sni"
	CapAuthorizeJWT     Capability = "authorize-jwt"
	CapAuthorizeUntil   Capability = "authorize-until"
	CapAudit            Capability = "audit" // audit rules, shadow rules and the audit mode
	CapCluster          Capability = "inbound-cluster"
	CapPermissive       Capability = "mtls-permissive"
	CapNonCanonical     Capability = "non-canonical-paths"

	CapEgress       Capability = "egress"
	CapEgressTLS    Capability = "egress-tls"
	CapSkipPorts    Capability = "skip-ports"
	CapOpaquePorts  Capability = "opaque-ports"
	CapNetworks     Capability = "cluster-networks"
	CapTelemetry    Capability = "telemetry-labels"
	CapTracing      Capability = "tracing"
	CapAccessLog    Capability = "access-log"
	CapSelector     Capability = "selector"      // the control plane finds workloads by labels
	CapGroup        Capability = "group"         // the control plane enrols members of a group
	CapStaged       Capability = "rollout"       // the control plane rolls out in steps
	CapJWKSURL      Capability = "jwks-url"      // the reconciler fetches key sets
	CapRemoteSource Capability = "remote-source" // the reconciler follows other repositories
)

// Capabilities are all that the language can need, sorted by where they stand above. Never written.
var Capabilities = []Capability{
	CapHTTP1, CapTCP, CapDetect, CapHTTP2, CapGRPC, CapTLS, CapRoute, CapRouteRegex, CapRouteQuery, CapGRPCRoute,
	CapTLSRoute, CapTCPRoute, CapConsumerRoute, CapTimeout, CapResponseTimeout, CapIdleTimeout, CapRetry,
	CapFilterHeaders, CapFilterRedirect, CapFilterRewrite, CapFilterMirror, CapFilterCORS, CapFilterRespond,
	CapFilterFault, CapFilterBackend, CapHash, CapWarmUp, CapWeight, CapZone, CapBreaker, CapLimits, CapRateLimit,
	CapAuthorize, CapAuthorizeL7, CapAuthorizePattern, CapAuthorizeNetwork, CapAuthorizeRequest, CapAuthorizeSNI,
	CapAuthorizeJWT, CapAuthorizeUntil, CapAudit, CapCluster, CapPermissive, CapNonCanonical, CapEgress,
	CapEgressTLS, CapSkipPorts, CapOpaquePorts, CapNetworks, CapTelemetry, CapTracing, CapAccessLog, CapSelector,
	CapGroup, CapStaged, CapJWKSURL, CapRemoteSource,
}

// Enforced is what this source tree enforces: the one table that `heddle check`, the compiler and the sidecar's hello
// agree on. `proxy` has a test for each entry that is a sidecar's.
var Enforced = []Capability{
	CapAuthorize, CapAuthorizeL7, CapAuthorizePattern, CapAuthorizeNetwork, CapAuthorizeRequest, CapAuthorizeUntil, CapAudit, CapCluster,
	CapNetworks, CapPermissive, CapNonCanonical,
	CapDetect, CapHTTP1, CapTCP, CapRoute, CapTimeout,
}

// EnforcedProtocols are the protocols that the sidecar of this source tree carries.
var EnforcedProtocols = []Protocol{Detect, HTTP1, TCP, Opaque}

// EnforcedBy is what a version of heddle-proxy enforces, sorted; false: the version is not known here. The version "any"
// enforces all that the language has: it is for looking ahead, and nothing is ever published by it.
func EnforcedBy(version string) ([]Capability, bool) {
	switch version {
	case "any":
		return slices.Sorted(slices.Values(Capabilities)), true
	case Version:
		caps := slices.Clone(Enforced)
		slices.Sort(caps)
		return caps, true
	}
	return nil, false
}
