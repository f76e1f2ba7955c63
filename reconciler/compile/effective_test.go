package compile

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// TestEffectiveIsWhatIsCompiled sets fields at random levels, and compares what Effective says of each with what the
// compiled mesh does, and the level with the nearest one that was set.
func TestEffectiveIsWhatIsCompiled(t *testing.T) {
	for seed := range uint64(300) {
		v := vain{rand.New(rand.NewPCG(seed, 8))}
		nearest := map[string]string{} // by field; levels are made from far to near
		set := func(level, field string) bool {
			if v.IntN(3) > 0 {
				return false
			}
			nearest[field] = level
			return true
		}
		count := func() *int64 { return new(int64(1 + v.IntN(3))) }
		defaults := func(level string) *v1alpha1.Defaults {
			d := &v1alpha1.Defaults{}
			if set(level, "mtls") {
				d.Mtls = pick(v, v1alpha1.MTLS("strict"), "permissive")
			}
			if set(level, "inboundPolicy") {
				d.InboundPolicy = pick(v, v1alpha1.InboundPolicy("deny"), "all-authenticated", "audit")
			}
			if set(level, "protocol") {
				d.Protocol = pick(v, v1alpha1.Protocol("http1"), "detect")
			}
			if set(level, "timeout") {
				d.Timeout = v1alpha1.Duration(fmt.Sprintf("%ds", 30+v.IntN(3)))
			}
			if set(level, "idleTimeout") {
				d.IdleTimeout = v1alpha1.Duration(fmt.Sprintf("%ds", 20+v.IntN(3)))
			}
			if set(level, "retry.asked") {
				d.Retry = &v1alpha1.Retry{}
				if set(level, "retry.retries") {
					d.Retry.Retries = count()
				}
				if set(level, "retry.timeout") {
					d.Retry.Timeout = v1alpha1.Duration(fmt.Sprintf("%ds", 1+v.IntN(3)))
				}
				if set(level, "retry.idempotent") {
					d.Retry.Idempotent = new(v.IntN(2) == 0)
				}
			}
			if set(level, "limits.connections") {
				d.Limits = &v1alpha1.Limits{Connections: count()}
			}
			if set(level, "breaker.consecutive") {
				d.Breaker = &v1alpha1.Breaker{Consecutive: count()}
			}
			if set(level, "rateLimit.total") {
				d.RateLimit = &v1alpha1.RateLimit{Total: count()}
			}
			return d
		}
		m := &v1alpha1.Mesh{TrustDomain: "corp.example", Defaults: defaults("mesh")}
		ns := v1alpha1.Namespace{Defaults: defaults("namespace")}
		s := v1alpha1.Service{Defaults: defaults("service"), Allow: map[string]v1alpha1.Rule{"all": {From: []v1alpha1.From{{Authenticated: true}}}}}
		port := v1alpha1.Port{Port: 80}
		if set("port", "mtls") {
			port.Mtls = pick(v, v1alpha1.MTLS("strict"), "permissive")
		}
		if set("port", "inboundPolicy") {
			port.InboundPolicy = "deny"
		}
		if set("port", "rateLimit.total") {
			port.RateLimit = &v1alpha1.RateLimit{Total: count()}
		}
		s.Ports = map[string]v1alpha1.Port{"http": port}
		at := "ports.http."
		if v.IntN(2) == 0 {
			at = "httpRoutes.a."
			var r v1alpha1.HTTPRoute
			if set("route", "timeout") {
				r.Timeout = v1alpha1.Duration(fmt.Sprintf("%ds", 30+v.IntN(3)))
			}
			if set("route", "retry.asked") {
				r.Retry = &v1alpha1.Retry{}
				if set("route", "retry.retries") {
					r.Retry.Retries = count()
				}
			}
			s.HttpRoutes = map[string]v1alpha1.HTTPRoute{"a": r}
		}
		doc := &v1alpha1.Document{Policy: v1alpha1.Policy{Mesh: m, Namespaces: map[string]v1alpha1.Namespace{"s": ns},
			Services: map[string]map[string]v1alpha1.Service{"s": {"a": s}}}}
		compiled, _, findings := Compile(doc, Options{ProxyVersion: "any"})
		settings, ok := Effective(doc, "s/a")
		if compiled == nil || !ok {
			t.Fatalf("seed %d: %v", seed, findings)
		}
		in, out := &compiled.Inbound[0], &compiled.Outbound[0]
		var route mesh.Route
		if len(out.Routes) > 0 {
			route = out.Routes[0]
		}
		breaker, rate := uint32(mesh.BuiltInConsecutive), uint32(0)
		if out.Breaker != nil {
			breaker = out.Breaker.Consecutive
		}
		if l := in.Ports[0].RateLimit; l != nil {
			rate = l.Total
		}
		want := map[string]string{
			"ports.http.mtls": string(in.Ports[0].MTLS), "ports.http.inboundPolicy": string(in.Ports[0].Default),
			"ports.http.protocol": string(in.Ports[0].Protocol), "ports.http.rateLimit.total": none(rate),
			at + "timeout": duration(route.Timeouts.Request), at + "idleTimeout": duration(route.Timeouts.Idle),
			"limits.connections": none(in.MaxConnections), "breaker.consecutive": off(breaker),
		}
		if r := route.Retry; r != nil {
			want[at+"retry.retries"], want[at+"retry.timeout"] = number(r.Tries), duration(r.Timeout)
			want[at+"retry.idempotent"] = fmt.Sprint(r.Idempotent)
		} else {
			want[at+"retry"] = "off"
		}
		seen := 0
		for _, got := range settings {
			value, ok := want[got.Path]
			if !ok {
				continue
			}
			seen++
			if got.Value != value {
				t.Errorf("seed %d: %s is said to be %s, and compiled to %s", seed, got.Path, got.Value, value)
			}
			field := got.Path
			for _, prefix := range []string{"ports.http.", at} {
				if len(field) > len(prefix) && field[:len(prefix)] == prefix {
					field = field[len(prefix):]
				}
			}
			level := nearest[field]
			if level == "" {
				level = "built in"
			}
			if field != "retry" && got.Level != level {
				t.Errorf("seed %d: %s is said to be of level %q, and was set at %q", seed, got.Path, got.Level, level)
			}
		}
		if seen != len(want) {
			t.Errorf("seed %d: of %v, %d are said: %v", seed, want, seen, settings)
		}
	}
}
