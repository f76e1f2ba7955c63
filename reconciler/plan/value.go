package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

// value compares two values of one kind and adds a line where they differ.
func (c *comparison) value(l Line, before, after string, differs bool, ids ...string) {
	if !differs {
		return
	}
	if before == after {
		after += " (other values)"
	}
	l.Before, l.After = before, after
	l.WhereBefore, l.WhereAfter = where(c.wasAt, ids...), where(c.isAt, ids...)
	c.add(l)
}

// serviceValues compares what is said of a service besides who may call it and where calls go.
func (c *comparison) serviceValues(p *pair) {
	name := string(p.name)
	in, is := p.inWas, p.inIs
	c.value(Line{Risk: Reroutes, Kind: KindIdentity, Subject: "identities", To: name}, strings.Join(in.Identities, " "), strings.Join(is.Identities, " "),
		!slices.Equal(in.Identities, is.Identities), name)
	c.value(Line{Risk: Reroutes, Kind: KindWorkload, Subject: "selector", To: name}, labels(in.Selector), labels(is.Selector), labels(in.Selector) != labels(is.Selector), name)
	c.value(Line{Risk: Neutral, Kind: KindLimit, Subject: "connections at once", To: name}, count(in.MaxConnections), count(is.MaxConnections), in.MaxConnections != is.MaxConnections, name)
	c.value(Line{Risk: Neutral, Kind: KindLimit, Subject: "requests at once", To: name}, count(in.MaxRequests), count(is.MaxRequests), in.MaxRequests != is.MaxRequests, name)
	for i := range is.Ports {
		b, a := (*mesh.InboundPort)(nil), &is.Ports[i]
		if b, _ = in.Port(a.Name); b == nil {
			continue
		}
		to := name + ":" + a.Name
		c.value(Line{Risk: Reroutes, Kind: KindPort, Subject: "number", To: to}, fmt.Sprint(b.Port), fmt.Sprint(a.Port), b.Port != a.Port, name)
		c.value(Line{Risk: Reroutes, Kind: KindPort, Subject: "protocol", To: to}, string(b.Protocol), string(a.Protocol), b.Protocol != a.Protocol, name)
		c.value(Line{Risk: Neutral, Kind: KindLimit, Subject: "rate limit", To: to}, rateText(b.RateLimit), rateText(a.RateLimit), !same(b.RateLimit, a.RateLimit), name)
	}
	routes := map[string][2]*mesh.Route{}
	for i := range in.Routes {
		routes[in.Routes[i].ID] = [2]*mesh.Route{&in.Routes[i], nil}
	}
	for i := range is.Routes {
		routes[is.Routes[i].ID] = [2]*mesh.Route{routes[is.Routes[i].ID][0], &is.Routes[i]}
	}
	for _, id := range keys(routes) {
		limit := func(r *mesh.Route) *mesh.RateLimit {
			if r == nil {
				return nil
			}
			return r.RateLimit
		}
		b, a := limit(routes[id][0]), limit(routes[id][1])
		c.value(Line{Risk: Neutral, Kind: KindLimit, Subject: "rate limit", To: id}, rateText(b), rateText(a), !same(b, a), id)
	}
	c.observers(in, is)
	if p.outWas == nil || p.outIs == nil {
		return
	}
	out, now := p.outWas, p.outIs
	c.value(Line{Risk: Neutral, Kind: KindBalancer, Subject: "balancer", To: name}, balancerText(&out.Balancer), balancerText(&now.Balancer), !same(&out.Balancer, &now.Balancer), name)
	c.value(Line{Risk: Neutral, Kind: KindBreaker, Subject: "breaker", To: name}, builtIn(out.Breaker), builtIn(now.Breaker), !same(out.Breaker, now.Breaker), name)
	c.value(Line{Risk: Neutral, Kind: KindLimit, Subject: "requests that wait", To: name}, count(out.MaxPending), count(now.MaxPending), out.MaxPending != now.MaxPending, name)
}

// labels are those that workloads must have, in words.
func labels(m map[string]string) string {
	if len(m) == 0 {
		return "none"
	}
	var words []string
	for _, k := range keys(m) {
		words = append(words, k+"="+m[k])
	}
	return strings.Join(words, " ")
}

// observers compares rules that only record, which no request feels.
func (c *comparison) observers(in, is *mesh.Inbound) {
	only := func(in *mesh.Inbound) map[string]*mesh.Rule {
		m := map[string]*mesh.Rule{}
		for i := range in.Rules {
			if r := &in.Rules[i]; r.Action == mesh.AuditRule || r.Shadow {
				m[r.ID] = r
			}
		}
		return m
	}
	b, a := only(in), only(is)
	all := map[string]bool{}
	for id := range b {
		all[id] = true
	}
	for id := range a {
		all[id] = true
	}
	for _, id := range keys(all) {
		l := Line{Risk: Neutral, Kind: KindObserved, Subject: "rule that only records", To: id}
		before, after := "none", "none"
		if b[id] != nil {
			before = "records"
		}
		if a[id] != nil {
			after = "records"
		}
		c.value(l, before, after, !same(b[id], a[id]), id)
	}
}

// sides are what the two meshes say of one thing; nil: one of them says nothing of it.
type sides[T any] struct{ was, is *T }

// paired puts together what two lists say of the same things, by name.
func paired[T any](before, after []T, name func(*T) string) map[string]sides[T] {
	all := make(map[string]sides[T], len(after))
	for i := range before {
		all[name(&before[i])] = sides[T]{was: &before[i]}
	}
	for i := range after {
		n := name(&after[i])
		all[n] = sides[T]{all[n].was, &after[i]}
	}
	return all
}

func keys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func count(n uint32) string {
	if n == 0 {
		return "no bound"
	}
	return fmt.Sprint(n)
}

func rateText(r *mesh.RateLimit) string {
	if r == nil {
		return "none"
	}
	var words []string
	if r.Total > 0 {
		words = append(words, fmt.Sprintf("%d/s", r.Total))
	}
	if r.PerIdentity > 0 {
		words = append(words, fmt.Sprintf("%d/s each", r.PerIdentity))
	}
	for _, o := range r.Overrides {
		words = append(words, fmt.Sprintf("%d/s for some", o.RequestsPerSecond))
	}
	return strings.Join(words, ", ")
}

func balancerText(b *mesh.Balancer) string {
	s := "least loaded"
	if h := b.Hash; h != nil {
		switch {
		case h.Header != "":
			s = "by header " + h.Header
		case h.Cookie != "":
			s = "by cookie " + h.Cookie
		default:
			s = "by the caller's address"
		}
	}
	if b.WarmUp > 0 {
		s += ", warm-up " + duration(b.WarmUp)
	}
	return s
}

func builtIn(b *mesh.Breaker) string {
	if b == nil {
		return "built-in"
	}
	return breakerText(b)
}

// mesh compares what is said of the mesh as a whole.
func (c *comparison) mesh() {
	b, a := &c.before.Settings, &c.after.Settings
	first := len(c.before.Inbound) == 0 && b.TrustDomain == ""
	set := func(risk Risk, kind Kind, subject, before, after string, differs bool) {
		if first {
			differs = false // a new mesh: there is nothing that changes
		}
		c.value(Line{Risk: risk, Kind: kind, Subject: subject, To: "mesh"}, before, after, differs)
	}
	set(Reroutes, KindIdentity, "trust domain", b.TrustDomain, a.TrustDomain, b.TrustDomain != a.TrustDomain)
	set(Neutral, KindMesh, "longest use of old config", duration(b.MaxStale), duration(a.MaxStale), b.MaxStale != a.MaxStale)
	set(Reroutes, KindMesh, "cluster networks", prefixes(b.ClusterNetworks), prefixes(a.ClusterNetworks), !slices.Equal(b.ClusterNetworks, a.ClusterNetworks))
	set(Reroutes, KindMesh, "opaque ports", numbers(b.OpaquePorts), numbers(a.OpaquePorts), !slices.Equal(b.OpaquePorts, a.OpaquePorts))
	set(skipRisk(b.SkipInbound, a.SkipInbound), KindEncryption, "inbound ports past the sidecar", numbers(b.SkipInbound), numbers(a.SkipInbound), !slices.Equal(b.SkipInbound, a.SkipInbound))
	set(skipRisk(b.SkipOutbound, a.SkipOutbound), KindEncryption, "outbound ports past the sidecar", numbers(b.SkipOutbound), numbers(a.SkipOutbound), !slices.Equal(b.SkipOutbound, a.SkipOutbound))
	set(Neutral, KindMesh, "telemetry", fmt.Sprintf("%d labels, %s traced", len(b.Telemetry.Labels), percent(b.Telemetry.Tracing)),
		fmt.Sprintf("%d labels, %s traced", len(a.Telemetry.Labels), percent(a.Telemetry.Tracing)), !same(&b.Telemetry, &a.Telemetry))
	set(Neutral, KindGuard, "rollout", rolloutText(&b.Rollout), rolloutText(&a.Rollout), !same(&b.Rollout, &a.Rollout))
	c.issuers(b, a)
	c.invariants()
	c.workloads()
	c.egress()
}

func skipRisk(b, a []uint16) Risk {
	if slices.ContainsFunc(a, func(p uint16) bool { return !slices.Contains(b, p) }) {
		return DropsEncryption
	}
	return AddsEncryption
}

func prefixes(list []netip.Prefix) string {
	if len(list) == 0 {
		return "built-in"
	}
	words := make([]string, len(list))
	for i, p := range list {
		words[i] = p.String()
	}
	return strings.Join(words, " ")
}

func numbers(list []uint16) string {
	if list == nil {
		return "built-in"
	}
	return strings.Trim(fmt.Sprint(list), "[]")
}

func rolloutText(r *mesh.Rollout) string {
	if len(r.Steps) == 0 {
		return "all at once"
	}
	words := make([]string, len(r.Steps))
	for i, s := range r.Steps {
		words[i] = percent(s)
	}
	return strings.Join(words, ", ") + ", pause " + duration(r.Pause)
}

// issuers compares who may sign tokens. What that changes for requests cannot be said: it depends on tokens.
func (c *comparison) issuers(b, a *mesh.Settings) {
	all := paired(b.JWTIssuers, a.JWTIssuers, func(v *mesh.JWTIssuer) string { return v.Name })
	for _, name := range keys(all) {
		t := all[name]
		if t.was == nil || t.is == nil {
			continue // no rule named it on one side: access says what that means
		}
		text := func(j *mesh.JWTIssuer) string {
			keys := "keys in policy"
			if j.URL != "" {
				keys = "keys from " + j.URL
			}
			return fmt.Sprintf("%s for %s, %s, in %s", j.Issuer, strings.Join(j.Audiences, " "), keys, j.Header)
		}
		c.value(Line{Risk: Widens, MayChange: true, Kind: KindAccess, Subject: "tokens of " + name, To: "mesh"}, text(t.was), text(t.is), !same(t.was, t.is))
	}
}

// workloads compares the places where services run.
func (c *comparison) workloads() {
	all := paired(c.before.Workloads, c.after.Workloads, func(v *mesh.Workload) string { return v.Name })
	text := func(w *mesh.Workload) string {
		if w == nil {
			return "none"
		}
		s := string(w.Service)
		if w.Address != "" {
			s += " at " + w.Address
		}
		if w.Identity != "" {
			s += " as " + w.Identity
		}
		if w.Weight != nil {
			s += fmt.Sprintf(", weight %d", *w.Weight)
		}
		if w.Zone != "" {
			s += ", zone " + w.Zone
		}
		return s
	}
	for _, name := range keys(all) {
		t := all[name]
		risk := Reroutes
		switch {
		case t.was == nil:
			risk = Neutral
		case t.is == nil:
			risk = Deletes
		}
		service := mesh.ServiceName("")
		if t.is != nil {
			service = t.is.Service
		} else {
			service = t.was.Service
		}
		c.value(Line{Risk: risk, Kind: KindWorkload, Subject: "workload", To: name}, text(t.was), text(t.is), !same(t.was, t.is), string(service))
	}
	sets := paired(c.before.Groups, c.after.Groups, func(v *mesh.Group) string { return v.Name })
	size := func(g *mesh.Group) string {
		if g == nil {
			return "none"
		}
		return fmt.Sprintf("%s, up to %d", g.Service, g.Max)
	}
	for _, name := range keys(sets) {
		t := sets[name]
		risk := Neutral
		if t.is == nil {
			risk = Deletes
		}
		c.value(Line{Risk: risk, Kind: KindGroup, Subject: "group", To: name}, size(t.was), size(t.is), !same(t.was, t.is))
	}
}
