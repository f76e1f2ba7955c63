package compile

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// Setting is one value that is in force for a service, with where it was set.
type Setting struct {
	// Path is the field, relative to the service: "ports.http.mtls", "httpRoutes.cart.retry.retries",
	// "breaker.consecutive".
	Path string `json:"path"`
	// Value is as an author would write it; "none" and "off" say that nothing holds.
	Value string `json:"value"`
	// Level is the nearest level that sets it: "built in", "mesh", "namespace", "service", "port" or "route".
	Level string `json:"level"`
	// Pos is where it was set; zero where it is built in.
	Pos diag.Pos `json:"pos,omitzero"`
}

// Effective lists every setting in force for a service, its ports and its routes, in the order of the reference: ports,
// the service, routes. It reports false where the document declares no such service. What is wrong with the document is
// left to [Compile]: a value that cannot be read counts as not set.
func Effective(doc *v1alpha1.Document, name mesh.ServiceName) ([]Setting, bool) {
	return AllEffective(doc)(name)
}

// AllEffective reads a document once, for asking [Effective] of many services, each once.
func AllEffective(doc *v1alpha1.Document) func(name mesh.ServiceName) ([]Setting, bool) {
	c := newCompiler(doc, Options{}, gateOf("any", mesh.Capabilities))
	declared := bounded(func() { c.declareAll(&mesh.Mesh{}) })
	return func(name mesh.ServiceName) ([]Setting, bool) {
		s := c.services[name]
		if !declared || s == nil || !bounded(func() { c.compileRoutes(s) }) {
			return nil, false
		}
		return c.effective(s), true
	}
}

func (c *compiler) effective(s *service) []Setting {
	e := &effective{c: c}
	for _, p := range s.ports {
		at := "ports." + p.name + "."
		say(e, at+"protocol", p.speaks, func(v mesh.Protocol) string { return string(v) })
		say(e, at+"mtls", p.mtls, func(v mesh.MTLSMode) string { return string(v) })
		say(e, at+"inboundPolicy", p.policy, func(v mesh.InboundMode) string { return string(v) })
		if p.http() {
			e.rate(at+"rateLimit.", &p.rate)
		}
	}
	d := &s.defaults
	say(e, "balancer.policy", d.balancer.policy, text)
	say(e, "balancer.hash", d.balancer.hash, hashKey)
	say(e, "balancer.warmup", d.balancer.warmUp, duration)
	e.breaker("breaker.", &d.breaker)
	say(e, "limits.connections", d.limits.connections, none)
	say(e, "limits.requests", d.limits.requests, none)
	say(e, "limits.pending", d.limits.pending, none)
	say(e, "egressPolicy", d.egress, func(v mesh.Action) string { return string(v) })
	say(e, "nonCanonicalPaths", d.paths, text)
	for _, r := range s.routes {
		at := strings.ReplaceAll(strings.TrimPrefix(r.id, string(s.name)+"/"), "/", ".") + "."
		if r.src.kind.field == "" { // what every request of a port without routes gets
			at = "ports." + r.port.name + "."
		}
		e.route(s, at, r)
	}
	for _, p := range s.ports { // and where there is no such route either
		if p.http() && !slices.ContainsFunc(s.routes, func(r *route) bool { return r.port == p }) {
			e.route(s, "ports."+p.name+".", &route{timeouts: d.timeouts, retry: d.retry})
		}
	}
	for _, r := range s.connections {
		if r.src.kind.field == tcpKind.field {
			say(e, "tcpRoutes."+r.name+".idleTimeout", r.timeouts.idle, duration)
		}
	}
	return e.out
}

// effective collects settings.
type effective struct {
	c   *compiler
	out []Setting
}

func say[T any](e *effective, at string, v value[T], write func(T) string) {
	s := Setting{Path: at, Value: write(v.v), Level: v.level.String()}
	if v.from != "" {
		s.Pos = e.c.pos(v.from)
	}
	e.out = append(e.out, s)
}

func text(v string) string { return v }

func duration(d time.Duration) string {
	if d == 0 {
		return "none"
	}
	return mesh.Short(d)
}

func none(n uint32) string {
	if n == 0 {
		return "none"
	}
	return strconv.FormatUint(uint64(n), 10)
}

func off(n uint32) string {
	if n == 0 {
		return "off"
	}
	return none(n)
}

func number(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

func hashKey(h *v1alpha1.HashKey) string {
	switch {
	case h == nil:
		return "none"
	case h.Header != "":
		return "header " + strings.ToLower(h.Header)
	case h.Cookie != "":
		return "cookie " + h.Cookie
	}
	return "source"
}

func (e *effective) rate(at string, r *rate) {
	say(e, at+"total", r.total, none)
	say(e, at+"perIdentity", r.perIdentity, none)
	say(e, at+"overrides", r.overrides, func(v []v1alpha1.RateOverride) string { return none(uint32(len(v))) })
}

func (e *effective) breaker(at string, b *breaker) {
	say(e, at+"consecutive", b.consecutive, off)
	say(e, at+"successRate", b.successRate, func(p mesh.PPM) string {
		if p == 0 {
			return "off"
		}
		return p.Percent()
	})
	say(e, at+"window", b.window, duration)
	say(e, at+"minRequests", b.minRequests, number)
	say(e, at+"penalty.min", b.penalty, func(b backoff) string { return mesh.Short(b.min) })
	say(e, at+"penalty.max", b.penalty, func(b backoff) string { return mesh.Short(b.max) })
	say(e, at+"ejectionFloor", b.ejectionFloor, mesh.PPM.Percent)
}

func (e *effective) route(s *service, at string, r *route) {
	if r.answered {
		return
	}
	say(e, at+"timeout", r.timeouts.request, duration)
	say(e, at+"responseTimeout", r.timeouts.response, duration)
	say(e, at+"idleTimeout", r.timeouts.idle, duration)
	if !r.retry.asked.set() || r.retry.retries.v == 0 {
		v := r.retry.retries
		if !r.retry.asked.set() {
			v = value[uint32]{}
		}
		say(e, at+"retry", v, func(uint32) string { return "off" })
	} else {
		again := &r.retry
		say(e, at+"retry.retries", again.retries, number)
		say(e, at+"retry.on", again.on, func(on []string) string {
			switch {
			case len(on) > 0:
				return strings.Join(on, ", ")
			case r.compiled.GRPC:
				return "unavailable"
			}
			return "5xx"
		})
		say(e, at+"retry.timeout", again.try, duration)
		say(e, at+"retry.backoff.min", again.backoff, func(b backoff) string { return mesh.Short(b.min) })
		say(e, at+"retry.backoff.max", again.backoff, func(b backoff) string { return mesh.Short(b.max) })
		say(e, at+"retry.budget.percent", again.percent, mesh.PPM.Percent)
		say(e, at+"retry.budget.minPerSecond", again.minPerSecond, number)
		say(e, at+"retry.budget.window", again.window, duration)
		say(e, at+"retry.idempotent", again.idempotent, func(v bool) string { return fmt.Sprint(v) })
	}
	if r.src.breaker != nil {
		b := s.defaults.breaker
		e.c.overBreaker(&b, r.src.breaker, r.at.at("breaker"), routeLevel)
		e.breaker(at+"breaker.", &b)
	}
}
