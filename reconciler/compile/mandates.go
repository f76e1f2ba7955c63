package compile

import (
	"fmt"
	"time"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// checkMandates checks what no service may relax, on what was compiled, wherever a value came from. A value that many
// services share, from a default of the mesh or of a namespace, is one finding at that default.
func (c *compiler) checkMandates(services []*service) {
	if c.doc.Policy.Mesh == nil || c.doc.Policy.Mesh.Mandates == nil {
		return
	}
	src := c.doc.Policy.Mesh.Mandates
	const at path = "mesh.mandates"
	exempt := c.exempt(at.at("exempt"), src)
	if src.Mtls != "" && src.Mtls != string(mesh.Strict) {
		c.find(diag.WrongValue, at.at("mtls"),
			fmt.Sprintf("a mandate can ask for %q only, not %q", mesh.Strict, src.Mtls), `write "strict", or leave it out`)
	}
	if src.InboundPolicy != "" && src.InboundPolicy != string(mesh.Deny) {
		c.find(diag.WrongValue, at.at("inboundPolicy"),
			fmt.Sprintf("a mandate can ask for %q only, not %q", mesh.Deny, src.InboundPolicy),
			`write "deny", or leave it out`)
	}
	var maxTimeout time.Duration
	if src.MaxTimeout != "" {
		maxTimeout, _ = c.duration(at.at("maxTimeout"), src.MaxTimeout)
	}
	if src.EgressPolicy != "" && src.EgressPolicy != string(mesh.DenyRule) {
		c.find(diag.WrongValue, at.at("egressPolicy"),
			fmt.Sprintf("a mandate can ask for %q only, not %q", mesh.DenyRule, src.EgressPolicy),
			`write "deny", or leave it out`)
	} else if src.EgressPolicy != "" {
		c.checkMandateEgress()
	}
	if src.MaxRetries != nil && (*src.MaxRetries < 0 || *src.MaxRetries > 10) {
		c.find(diag.WrongValue, at.at("maxRetries"), fmt.Sprintf("%d is out of range", *src.MaxRetries), "write a number of tries from 0 to 10")
	}
	const way = "; or name the service in mesh.mandates.exempt"
	for _, s := range services {
		if exempt[s.name] {
			continue
		}
		if src.MaxRetries != nil {
			c.checkMaxRetries(s, *src.MaxRetries, way)
		}
		for i, p := range s.in.Ports {
			from := s.ports[i]
			if src.Mtls == string(mesh.Strict) && p.MTLS != mesh.Strict {
				c.find(diag.MandateMTLS, from.mtls.from,
					fmt.Sprintf(`mtls is %q%s, and the mesh mandates "strict"`, p.MTLS, byDefault(from.mtls.level)),
					`leave it out, or write "strict"`+way, c.pos(at.at("mtls")))
			}
			if src.InboundPolicy == string(mesh.Deny) && p.Default != mesh.Deny {
				c.find(diag.MandatePolicy, from.policy.from,
					fmt.Sprintf(`inboundPolicy is %q%s, and the mesh mandates "deny"`, p.Default, byDefault(from.policy.level)),
					`leave it out, and allow callers by rules`+way, c.pos(at.at("inboundPolicy")))
			}
			if maxTimeout > 0 && from.http() {
				c.checkMaxTimeout(s, from, maxTimeout, way)
			}
		}
	}
}

// checkMaxTimeout checks the routes of one port, or its having none.
func (c *compiler) checkMaxTimeout(s *service, p *port, most time.Duration, way string) {
	related := c.pos("mesh.mandates.maxTimeout")
	routed := false
	for _, routes := range [][]*route{s.routes, s.consumers} {
		for _, r := range routes {
			if r.port != p {
				continue
			}
			routed = routed || r.consumer == ""
			if r.answered {
				continue // at once
			}
			switch t := r.timeouts.request; {
			case t.v == 0:
				c.find(diag.MandateTimeout, r.at,
					fmt.Sprintf("the route has no timeout, and the mesh mandates at most %s", mesh.Short(most)),
					"set timeout on the route, or in the service's defaults"+way, related)
			case t.v > most:
				c.find(diag.MandateTimeout, t.from,
					fmt.Sprintf("timeout is %s%s, and the mesh mandates at most %s", mesh.Short(t.v), byDefault(t.level), mesh.Short(most)),
					fmt.Sprintf("write %q or less", mesh.Short(most))+way, related)
			}
		}
	}
	if !routed {
		c.find(diag.MandateTimeout, p.at,
			fmt.Sprintf("requests to the port have no timeout, and the mesh mandates at most %s", mesh.Short(most)),
			`set defaults: timeout, or, if the port does not speak HTTP, protocol: "tcp"`+way, related)
	}
}

// checkMaxRetries checks the routes of a service.
func (c *compiler) checkMaxRetries(s *service, most int64, way string) {
	for _, routes := range [][]*route{s.routes, s.consumers} {
		for _, r := range routes {
			again := r.compiled.Retry
			if again == nil || int64(again.Tries) <= most {
				continue
			}
			from, l := r.retry.retries.from, r.retry.retries.level
			if from == "" { // the built-in number, asked for by saying something else of retries
				from, l = r.retry.asked.from, r.retry.asked.level
			}
			c.find(diag.MandateRetries, from,
				fmt.Sprintf("a request is tried %d times more%s, and the mesh mandates at most %d", again.Tries, byDefault(l), most),
				fmt.Sprintf("write retries: %d or less", most)+way, c.pos("mesh.mandates.maxRetries"))
		}
	}
}

// checkMandateEgress checks what decides about destinations that no entry names, of the mesh and of each namespace.
func (c *compiler) checkMandateEgress() {
	check := func(v value[mesh.Action]) {
		if v.v == mesh.Allow {
			c.find(diag.MandateEgress, v.from, `egressPolicy is "allow", and the mesh mandates "deny"`,
				`leave it out, and allow destinations by egress entries`, c.pos("mesh.mandates.egressPolicy"))
		}
	}
	check(c.outermost.egress)
	for _, ns := range sortedKeys(c.levels) {
		check(c.levels[ns].egress)
	}
}

// byDefault words a value that many services share. Their findings are alike, and told once.
func byDefault(l level) string {
	if l.shared() {
		return " by default"
	}
	return ""
}

// exempt reads the names that the mandates do not bind.
func (c *compiler) exempt(at path, src *v1alpha1.Mandates) map[mesh.ServiceName]bool {
	exempt := map[mesh.ServiceName]bool{}
	if len(src.Exempt) > 0 && src.Mtls == "" && src.InboundPolicy == "" && src.MaxTimeout == "" && src.MaxRetries == nil {
		c.find(diag.UnusedExempt, at, "services are exempt, and there is no mandate to exempt them from",
			"write a mandate, or delete the list")
	}
	for i, name := range src.Exempt {
		at := at.index(i)
		if exempt[mesh.ServiceName(name)] {
			c.find(diag.UnusedExempt, at, fmt.Sprintf("%s is exempt already", name), "delete the repetition")
		}
		if s := c.lookup(at, name); s != nil {
			exempt[s.name] = true
		}
	}
	return exempt
}
