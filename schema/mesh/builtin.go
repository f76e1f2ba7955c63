package mesh

import (
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// What holds where no level of policy says anything. The compiler resolves by these constants; [BuiltIn] lists them
// for the reference and for `heddle policy show --effective`.
const (
	BuiltInRetries      = 1                      // tries beyond the first, once retries are asked for at all
	BuiltInBackoffMin   = 25 * time.Millisecond  // the first wait is a random share of it
	BuiltInBackoffMax   = 250 * time.Millisecond // no wait is longer
	BuiltInBudget       = 200_000                // PPM of the requests
	BuiltInMinPerSecond = 10                     // retries a second that the budget never takes away
	BuiltInBudgetWindow = 10 * time.Second

	BuiltInConsecutive     = 7 // failures in a row
	BuiltInSuccessWindow   = 10 * time.Second
	BuiltInMinRequests     = 5
	BuiltInPenaltyMin      = time.Second
	BuiltInPenaltyMax      = time.Minute
	BuiltInEjectionFloor   = 500_000 // PPM of a service's workloads
	BuiltInPending         = 10_000  // requests of one caller that wait for a connection
	BuiltInMaxSeries       = 2000
	BuiltInRolloutPause    = time.Minute
	BuiltInHaltNacks       = 1
	BuiltInHaltDenials     = 5_000 // PPM
	BuiltInHaltFailures    = 2_000 // PPM
	BuiltInInboundPort     = 4143  // of a sidecar's mesh listener
	BuiltInWorkloadWeight  = 100
	BuiltInEgressPort      = 443
	BuiltInRedirectStatus  = 302
	BuiltInCORSMaxAge      = 5 * time.Second
	BuiltInTokenHeader     = "authorization"
	BuiltInRetryGRPCStatus = 14 // UNAVAILABLE
)

var (
	// DefaultClusterNetworks are the cluster's own networks where policy names none: the private ranges of RFC 1918,
	// RFC 6598 and RFC 4193, as Linkerd's clusterNetworks has them. Never written.
	DefaultClusterNetworks = []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("172.16.0.0/12"),
		netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("fd00::/8"),
	}
	// DefaultOpaquePorts are those of protocols in which the server speaks first, as Linkerd has them. Never written.
	DefaultOpaquePorts = []uint16{25, 587, 3306, 4444, 5432, 6379, 9300, 11211}
	// DefaultSkipPorts go past the sidecar both ways, as Linkerd has them. Never written.
	DefaultSkipPorts = []uint16{4567, 4568}
)

// BuiltInValue is one last-resort value.
type BuiltInValue struct {
	// Path is the field: of `defaults:` where it begins with "defaults.", else under the object that it names.
	Path string
	// Value is as an author would write it, "none" where nothing holds and "off" where nothing is done.
	Value string
	// Unit is what the value counts; empty where the value says so itself.
	Unit string
	// Source is where it comes from: Linkerd's behaviour, or a decision of Heddle's own.
	Source string
}

const (
	linkerd = "Linkerd 2.20"
	closed  = "decision 36: closed by default"
	asked   = "Linkerd 2.20: not unless asked for"
)

// BuiltIn has every last-resort value of the language, in the order of types.cue. Never written.
var BuiltIn = []BuiltInValue{
	{"defaults.inboundPolicy", string(Deny), "", closed},
	{"defaults.mtls", string(Strict), "", closed},
	{"defaults.protocol", string(Detect), "", linkerd},
	{"defaults.timeout", "none", "", asked},
	{"defaults.responseTimeout", "none", "", asked},
	{"defaults.idleTimeout", "none", "", asked},
	{"defaults.retry", "off", "", asked},
	{"defaults.retry.retries", number(BuiltInRetries), "tries beyond the first", linkerd + ": retry.linkerd.io/limit"},
	{"defaults.retry.on", "5xx, unavailable", "HTTP, gRPC", linkerd},
	{"defaults.retry.timeout", "none", "", asked},
	{"defaults.retry.backoff.min", Short(BuiltInBackoffMin), "", linkerd},
	{"defaults.retry.backoff.max", Short(BuiltInBackoffMax), "", linkerd},
	{"defaults.retry.budget.percent", percent(BuiltInBudget), "percent of the requests", linkerd + ": ServiceProfile retryBudget"},
	{"defaults.retry.budget.minPerSecond", number(BuiltInMinPerSecond), "retries a second", linkerd + ": ServiceProfile retryBudget"},
	{"defaults.retry.budget.window", Short(BuiltInBudgetWindow), "", linkerd + ": ServiceProfile retryBudget"},
	{"defaults.retry.idempotent", "false", "", "RFC 9110, 9.2.2"},
	{"defaults.balancer.policy", "p2c-ewma", "", linkerd},
	{"defaults.balancer.hash", "none", "", asked},
	{"defaults.balancer.warmup", "none", "", asked},
	{"defaults.breaker.consecutive", number(BuiltInConsecutive), "failures in a row", linkerd + ": consecutive-max-failures"},
	{"defaults.breaker.successRate", "off", "", asked},
	{"defaults.breaker.window", Short(BuiltInSuccessWindow), "", linkerd},
	{"defaults.breaker.minRequests", number(BuiltInMinRequests), "requests", linkerd},
	{"defaults.breaker.penalty.min", Short(BuiltInPenaltyMin), "", linkerd + ": consecutive-min-penalty"},
	{"defaults.breaker.penalty.max", Short(BuiltInPenaltyMax), "", linkerd + ": consecutive-max-penalty"},
	{"defaults.breaker.ejectionFloor", percent(BuiltInEjectionFloor), "percent of the workloads", "Heddle: a breaker alone takes no service down"},
	{"defaults.limits.connections", "none", "", asked},
	{"defaults.limits.requests", "none", "", asked},
	{"defaults.limits.pending", number(BuiltInPending), "requests of one caller", linkerd + ": queue capacity"},
	{"defaults.rateLimit.total", "none", "requests a second", asked},
	{"defaults.rateLimit.perIdentity", "none", "requests a second", asked},
	{"defaults.rateLimit.overrides", "none", "", asked},
	{"defaults.egressPolicy", string(DenyRule), "", closed},
	{"defaults.nonCanonicalPaths", "refuse", "", "decision 14: reject, never rewrite"},
	{"mesh.maxStale", "24h", "", "decision 17: the lifetime of the sidecar's certificate"},
	{"mesh.clusterNetworks", list(DefaultClusterNetworks), "", linkerd + ": clusterNetworks"},
	{"mesh.opaquePorts", list(DefaultOpaquePorts), "", linkerd + ": opaquePorts"},
	{"mesh.skipPorts.inbound", list(DefaultSkipPorts), "", linkerd + ": ignoreInboundPorts"},
	{"mesh.skipPorts.outbound", list(DefaultSkipPorts), "", linkerd + ": ignoreOutboundPorts"},
	{"mesh.telemetry.labels", "none", "", "Heddle: cardinality is asked for"},
	{"mesh.telemetry.maxSeries", number(BuiltInMaxSeries), "series of one metric", "Heddle: memory is bounded"},
	{"mesh.telemetry.tracing", "0", "percent of the requests", asked},
	{"mesh.telemetry.accessLog", "off", "", linkerd},
	{"mesh.rollout.strategy", "all", "", "Heddle"},
	{"mesh.rollout.pause", Short(BuiltInRolloutPause), "", "Heddle"},
	{"mesh.rollout.halt.nacks", number(BuiltInHaltNacks), "sidecars", "Heddle"},
	{"mesh.rollout.halt.denials", percent(BuiltInHaltDenials), "percent of the requests", "Heddle"},
	{"mesh.rollout.halt.failures", percent(BuiltInHaltFailures), "percent of the requests", "Heddle"},
	{"mesh.jwtIssuers.*.header", BuiltInTokenHeader, "", "RFC 6750, 2.1"},
	{"workloads.*.port", number(BuiltInInboundPort), "", linkerd + ": the proxy's inbound port"},
	{"workloads.*.weight", number(BuiltInWorkloadWeight), "relative", "Heddle"},
	{"egress.*.ports", number(BuiltInEgressPort), "", "Heddle"},
	{"egress.*.action", string(Allow), "", "Heddle"},
	{"filters.redirect.status", number(BuiltInRedirectStatus), "", "Gateway API: HTTPRequestRedirectFilter"},
	{"filters.mirror.percent", "100", "percent of the requests", "Gateway API: HTTPRequestMirrorFilter"},
	{"filters.cors.maxAge", Short(BuiltInCORSMaxAge), "", "Gateway API: HTTPCORSFilter"},
}

func number(n int) string { return strconv.Itoa(n) }

// percent is a share as an author writes it.
func percent(p PPM) string { return strconv.FormatFloat(float64(p)/10_000, 'f', -1, 64) }

// Percent is a share in percent, as an author writes it: without an exponent or zeros at the end.
func (p PPM) Percent() string { return percent(p) }

func list[T any](values []T) string {
	var b strings.Builder
	for i, v := range values {
		if i > 0 {
			b.WriteString(", ")
		}
		switch v := any(v).(type) {
		case netip.Prefix:
			b.WriteString(v.String())
		case uint16:
			b.WriteString(strconv.Itoa(int(v)))
		}
	}
	return b.String()
}

// Short is a duration as an author would write it: "1h", not "1h0m0s".
func Short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
