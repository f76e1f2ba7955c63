package compile

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// level is where a setting was made; a higher one is nearer and wins.
type level uint8

const (
	builtInLevel level = iota
	meshLevel
	namespaceLevel
	serviceLevel
	portLevel
	routeLevel
)

// String is the level's name in `heddle policy show --effective`.
func (l level) String() string {
	return [...]string{"built in", "mesh", "namespace", "service", "port", "route"}[l]
}

// shared reports whether many services get what is set there.
func (l level) shared() bool { return l == meshLevel || l == namespaceLevel }

// value is a setting with where it comes from.
type value[T any] struct {
	v     T
	from  path // of the field that set it; "" is the built-in default
	level level
}

// at sets a value.
func (v *value[T]) at(from path, l level, to T) { *v = value[T]{to, from, l} }

// set reports whether anybody wrote it.
func (v *value[T]) set() bool { return v.level > builtInLevel }

// backoff is a range of times to wait.
type backoff struct{ min, max time.Duration }

// defaults are the settings in force at some level. Each field is on its own: the nearest level that sets it wins.
type defaults struct {
	policy   value[mesh.InboundMode]
	mtls     value[mesh.MTLSMode]
	protocol value[mesh.Protocol]
	timeouts timeouts
	retry    retry
	balancer balancer
	breaker  breaker
	limits   limits
	rate     rate
	egress   value[mesh.Action]
	paths    value[string] // nonCanonicalPaths
}

// timeouts of requests; 0 is none.
type timeouts struct{ request, response, idle value[time.Duration] }

// set reports whether any of them is.
func (t *timeouts) set() bool { return t.request.v > 0 || t.response.v > 0 || t.idle.v > 0 }

type retry struct {
	asked        value[bool] // a level speaks of retries at all
	retries      value[uint32]
	on           value[[]string]
	try          value[time.Duration] // 0 is none
	backoff      value[backoff]
	percent      value[mesh.PPM]
	minPerSecond value[uint32]
	window       value[time.Duration]
	idempotent   value[bool]
}

type balancer struct {
	policy value[string]
	hash   value[*v1alpha1.HashKey]
	warmUp value[time.Duration]
}

type breaker struct {
	consecutive   value[uint32]
	successRate   value[mesh.PPM]
	window        value[time.Duration]
	minRequests   value[uint32]
	penalty       value[backoff]
	ejectionFloor value[mesh.PPM]
}

// set reports whether any level says something about it.
func (b *breaker) set() bool {
	return b.consecutive.set() || b.successRate.set() || b.window.set() || b.minRequests.set() || b.penalty.set() || b.ejectionFloor.set()
}

type limits struct{ connections, requests, pending value[uint32] }

type rate struct {
	total, perIdentity value[uint32]
	overrides          value[[]v1alpha1.RateOverride]
}

// set reports whether any limit is.
func (r *rate) set() bool { return r.total.set() || r.perIdentity.set() || r.overrides.set() }

const (
	p2c            = "p2c-ewma"
	consistentHash = "consistent-hash"
	refusePaths    = "refuse"
	acceptPaths    = "accept"
)

// builtIn is what holds where no level says anything; mesh.BuiltIn documents it.
var builtIn = defaults{
	policy:   value[mesh.InboundMode]{v: mesh.Deny},
	mtls:     value[mesh.MTLSMode]{v: mesh.Strict},
	protocol: value[mesh.Protocol]{v: mesh.Detect},
	retry: retry{
		retries:      value[uint32]{v: mesh.BuiltInRetries},
		backoff:      value[backoff]{v: backoff{mesh.BuiltInBackoffMin, mesh.BuiltInBackoffMax}},
		percent:      value[mesh.PPM]{v: mesh.BuiltInBudget},
		minPerSecond: value[uint32]{v: mesh.BuiltInMinPerSecond},
		window:       value[time.Duration]{v: mesh.BuiltInBudgetWindow},
	},
	balancer: balancer{policy: value[string]{v: p2c}},
	breaker: breaker{
		consecutive:   value[uint32]{v: mesh.BuiltInConsecutive},
		window:        value[time.Duration]{v: mesh.BuiltInSuccessWindow},
		minRequests:   value[uint32]{v: mesh.BuiltInMinRequests},
		penalty:       value[backoff]{v: backoff{mesh.BuiltInPenaltyMin, mesh.BuiltInPenaltyMax}},
		ejectionFloor: value[mesh.PPM]{v: mesh.BuiltInEjectionFloor},
	},
	limits: limits{pending: value[uint32]{v: mesh.BuiltInPending}},
	egress: value[mesh.Action]{v: mesh.DenyRule},
	paths:  value[string]{v: refusePaths},
}

// over lays the defaults of a nearer level over those of an outer one.
func (c *compiler) over(outer defaults, d *v1alpha1.Defaults, at path, l level) defaults {
	if d == nil {
		return outer
	}
	if d.InboundPolicy != "" {
		outer.policy.at(at.at("inboundPolicy"), l, c.policy(at.at("inboundPolicy"), d.InboundPolicy))
	}
	if d.Mtls != "" {
		outer.mtls.at(at.at("mtls"), l, c.mtls(at.at("mtls"), d.Mtls))
	}
	if d.Protocol != "" {
		outer.protocol.at(at.at("protocol"), l, c.protocol(at.at("protocol"), mesh.Protocol(d.Protocol)))
	}
	c.overTimeouts(&outer.timeouts, d.Timeout, d.ResponseTimeout, d.IdleTimeout, at, l)
	c.overRetry(&outer.retry, d.Retry, at.at("retry"), l)
	c.overBalancer(&outer.balancer, d.Balancer, at.at("balancer"), l)
	c.overBreaker(&outer.breaker, d.Breaker, at.at("breaker"), l)
	if d.Limits != nil {
		at := at.at("limits")
		c.overCount(&outer.limits.connections, d.Limits.Connections, 1, 1_000_000, at.at("connections"), l)
		c.overCount(&outer.limits.requests, d.Limits.Requests, 1, 1_000_000, at.at("requests"), l)
		c.overCount(&outer.limits.pending, d.Limits.Pending, 1, 1_000_000, at.at("pending"), l)
	}
	c.overRate(&outer.rate, d.RateLimit, at.at("rateLimit"), l)
	if d.EgressPolicy != "" {
		c.overEgress(&outer.egress, d.EgressPolicy, at.at("egressPolicy"), l)
	}
	switch d.NonCanonicalPaths {
	case "":
	case refusePaths, acceptPaths:
		outer.paths.at(at.at("nonCanonicalPaths"), l, d.NonCanonicalPaths)
	default:
		c.find(diag.WrongValue, at.at("nonCanonicalPaths"), fmt.Sprintf("%q is no way to treat paths", d.NonCanonicalPaths),
			`write "refuse" or "accept"`)
	}
	return outer
}

func (c *compiler) overTimeouts(to *timeouts, request, response, idle v1alpha1.Duration, at path, l level) {
	c.overDuration(&to.request, request, at.at("timeout"), l)
	c.overDuration(&to.response, response, at.at("responseTimeout"), l)
	c.overDuration(&to.idle, idle, at.at("idleTimeout"), l)
}

func (c *compiler) overDuration(to *value[time.Duration], d v1alpha1.Duration, at path, l level) {
	if d == "" {
		return
	}
	if t, ok := c.duration(at, d); ok {
		to.at(at, l, t)
	}
}

func (c *compiler) overCount(to *value[uint32], n *int64, least, most int64, at path, l level) {
	if n == nil {
		return
	}
	if *n < least || *n > most {
		c.find(diag.WrongValue, at, fmt.Sprintf("%d is out of range", *n), fmt.Sprintf("write a number from %d to %d", least, most))
		return
	}
	to.at(at, l, uint32(*n))
}

func (c *compiler) overShare(to *value[mesh.PPM], percent *float64, at path, l level) {
	if percent == nil {
		return
	}
	if p, ok := c.share(at, *percent); ok {
		to.at(at, l, p)
	}
}

func (c *compiler) overBackoff(to *value[backoff], b *v1alpha1.Backoff, at path, l level) {
	if b == nil {
		return
	}
	least, ok := c.duration(at.at("min"), b.Min)
	most, ok2 := c.duration(at.at("max"), b.Max)
	switch {
	case !ok || !ok2:
	case least > most:
		c.find(diag.WrongValue, at, fmt.Sprintf("min is %s and max is %s", mesh.Short(least), mesh.Short(most)),
			"write the shorter time as min", c.pos(at.at("max")))
	default:
		to.at(at, l, backoff{least, most})
	}
}

func (c *compiler) overBalancer(to *balancer, src *v1alpha1.Balancer, at path, l level) {
	if src == nil {
		return
	}
	switch src.Policy {
	case "":
	case p2c, consistentHash:
		to.policy.at(at.at("policy"), l, src.Policy)
	default:
		c.find(diag.WrongValue, at.at("policy"), fmt.Sprintf("%q is no way to balance", src.Policy),
			`write "p2c-ewma" or "consistent-hash"`)
	}
	if h := src.Hash; h != nil {
		at := at.at("hash")
		switch n := count(h.Header != "", h.Cookie != "", h.Source); {
		case n != 1:
			c.find(diag.WrongValue, at, fmt.Sprintf("a key is exactly one of header, cookie, source; %d are set", n),
				`write hash: header: "x-user"`)
		case h.Header != "" && !token(h.Header) || h.Cookie != "" && !token(h.Cookie):
			c.find(diag.WrongValue, at, fmt.Sprintf("%q is no name of a header or cookie", h.Header+h.Cookie), `write a name as in "x-user"`)
		case h.Header != "" && notPassedOn(strings.ToLower(h.Header)) != "":
			c.find(diag.WrongValue, at.at("header"),
				fmt.Sprintf("header %s %s, so it is no key", strings.ToLower(h.Header), notPassedOn(strings.ToLower(h.Header))),
				"hash by another header, or by source")
		default:
			to.hash.at(at, l, h)
		}
	}
	c.overDuration(&to.warmUp, src.Warmup, at.at("warmup"), l)
}

func (c *compiler) overBreaker(to *breaker, src *v1alpha1.Breaker, at path, l level) {
	if src == nil {
		return
	}
	c.overCount(&to.consecutive, src.Consecutive, 0, 1000, at.at("consecutive"), l)
	c.overShare(&to.successRate, src.SuccessRate, at.at("successRate"), l)
	c.overDuration(&to.window, src.Window, at.at("window"), l)
	c.overCount(&to.minRequests, src.MinRequests, 1, 100_000, at.at("minRequests"), l)
	c.overBackoff(&to.penalty, src.Penalty, at.at("penalty"), l)
	c.overShare(&to.ejectionFloor, src.EjectionFloor, at.at("ejectionFloor"), l)
}

func (c *compiler) overRate(to *rate, src *v1alpha1.RateLimit, at path, l level) {
	if src == nil {
		return
	}
	if src.Total == nil && src.PerIdentity == nil && len(src.Overrides) == 0 {
		c.find(diag.WrongValue, at, "the rate limit limits nothing", "write total or perIdentity")
	}
	c.overCount(&to.total, src.Total, 1, 10_000_000, at.at("total"), l)
	c.overCount(&to.perIdentity, src.PerIdentity, 1, 10_000_000, at.at("perIdentity"), l)
	if c.empty(at.at("overrides"), len(src.Overrides), src.Overrides == nil) {
		c.find(diag.WrongValue, at.at("overrides"), "an empty list of overrides says nothing", "leave it out")
	}
	if len(src.Overrides) > 0 {
		to.overrides.at(at.at("overrides"), l, src.Overrides)
	}
}

// overEgress sets what decides about destinations that no egress entry names. It is decided by namespace: a sidecar is
// told of it once, not for each service that it calls.
func (c *compiler) overEgress(to *value[mesh.Action], p v1alpha1.EgressPolicy, at path, l level) {
	action := mesh.Action(p)
	switch {
	case action != mesh.Allow && action != mesh.DenyRule:
		c.find(diag.WrongValue, at, fmt.Sprintf("%q is no egress policy", p), `write "deny" or "allow"`)
	case l > namespaceLevel:
		c.find(diag.WrongValue, at, "what may leave the mesh is decided by namespace, not by service",
			"write it in the namespace's defaults, or allow destinations to this service by an egress entry with services")
	default:
		to.at(at, l, action)
	}
}

// maxDuration bounds every duration of policy: a day, the life of a certificate. What is longer is a slip of the hand.
const maxDuration = 24 * time.Hour

// duration reads a duration, strictly.
func (c *compiler) duration(at path, s v1alpha1.Duration) (time.Duration, bool) {
	const hint = `write a number with a unit, as in "250ms", "2s", "1m30s"`
	d, err := time.ParseDuration(string(s))
	switch {
	case err != nil || strings.HasPrefix(string(s), "+") || s == "0":
		c.find(diag.WrongValue, at, fmt.Sprintf("%q is no duration", s), hint)
	case d <= 0:
		c.find(diag.WrongValue, at, fmt.Sprintf("%s is not a positive duration", s), hint+"; leave the field out for none")
	case d > maxDuration:
		c.find(diag.WrongValue, at, string(s)+" is longer than a day", "write 24h or less")
	default:
		return d, true
	}
	return 0, false
}

// share reads a percentage; four decimals are kept, so that a share has one encoding.
func (c *compiler) share(at path, percent float64) (mesh.PPM, bool) {
	ppm := math.Round(percent * 10_000)
	switch {
	case !(percent >= 0 && percent <= 100):
		c.find(diag.WrongValue, at, fmt.Sprintf("%v is no percentage", percent), "write a number from 0 to 100")
	case math.Abs(ppm-percent*10_000) > 1e-6:
		c.find(diag.WrongValue, at, fmt.Sprintf("%v has more than four decimals", percent), "write at most four decimals")
	default:
		return mesh.PPM(ppm), true
	}
	return 0, false
}

// mtls reads an mTLS mode.
func (c *compiler) mtls(at path, m v1alpha1.MTLS) mesh.MTLSMode {
	switch mode := mesh.MTLSMode(m); mode {
	case mesh.Strict, mesh.Permissive:
		return mode
	}
	c.find(diag.WrongValue, at, fmt.Sprintf("%q is no mTLS mode", m), `write "strict" or "permissive"`)
	return mesh.Strict
}

// policy reads an inbound policy.
func (c *compiler) policy(at path, p v1alpha1.InboundPolicy) mesh.InboundMode {
	switch mode := mesh.InboundMode(p); mode {
	case mesh.Deny, mesh.AllAuthenticated, mesh.AllUnauthenticated, mesh.ClusterAuthenticated, mesh.ClusterUnauthenticated, mesh.Audit:
		return mode
	}
	c.find(diag.WrongValue, at, fmt.Sprintf("%q is no inbound policy", p),
		`write one of deny, all-authenticated, all-unauthenticated, cluster-authenticated, cluster-unauthenticated, audit`)
	return mesh.Deny
}

var protocols = []mesh.Protocol{mesh.Detect, mesh.HTTP1, mesh.HTTP2, mesh.GRPC, mesh.TLS, mesh.TCP, mesh.Opaque}

// protocol reads a protocol.
func (c *compiler) protocol(at path, p mesh.Protocol) mesh.Protocol {
	if slices.Contains(protocols, p) {
		return p
	}
	names := make([]string, len(protocols))
	for i, p := range protocols {
		names[i] = string(p)
	}
	c.find(diag.WrongValue, at, fmt.Sprintf("%q is no protocol", p), "write one of "+strings.Join(names, ", "))
	return mesh.Detect
}

// count is how many are true.
func count(set ...bool) (n int) {
	for _, s := range set {
		if s {
			n++
		}
	}
	return n
}
