package compile

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// value is a setting with where it comes from.
type value[T any] struct {
	v      T
	from   path // of the field that set it; "" is the built-in default
	shared bool // set by a namespace or the mesh, for many services
}

// defaults are the settings in force at some level.
type defaults struct {
	policy  value[mesh.InboundMode]
	mtls    value[mesh.MTLSMode]
	timeout value[time.Duration] // 0 is none
}

// builtIn is what holds where no level says anything (decisions: closed by default).
var builtIn = defaults{
	policy: value[mesh.InboundMode]{v: mesh.Deny},
	mtls:   value[mesh.MTLSMode]{v: mesh.Strict},
}

// over lays the defaults of a nearer level over those of an outer one. shared says that many services get them.
func (c *compiler) over(outer defaults, d *v1alpha1.Defaults, at path, shared bool) defaults {
	if d == nil {
		return outer
	}
	if d.InboundPolicy != "" {
		outer.policy = value[mesh.InboundMode]{c.policy(at.at("inboundPolicy"), d.InboundPolicy), at.at("inboundPolicy"), shared}
	}
	if d.Mtls != "" {
		outer.mtls = value[mesh.MTLSMode]{c.mtls(at.at("mtls"), d.Mtls), at.at("mtls"), shared}
	}
	if d.Timeout != "" {
		if t, ok := c.duration(at.at("timeout"), d.Timeout); ok {
			outer.timeout = value[time.Duration]{t, at.at("timeout"), shared}
		}
	}
	return outer
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
	case mesh.Deny, mesh.AllAuthenticated, mesh.AllUnauthenticated:
		return mode
	}
	const hint = `write "deny", "all-authenticated" or "all-unauthenticated"`
	switch p {
	case "cluster-authenticated", "cluster-unauthenticated", "audit":
		c.notEnforced(at, fmt.Sprintf("inboundPolicy %q", p), hint)
	default:
		c.find(diag.WrongValue, at, fmt.Sprintf("%q is no inbound policy", p), hint)
	}
	return mesh.Deny
}

// protocol reads a protocol.
func (c *compiler) protocol(at path, p mesh.Protocol) mesh.Protocol {
	switch {
	case slices.Contains(c.protocols, p):
	case slices.Contains(allProtocols, p):
		c.notEnforced(at, fmt.Sprintf("protocol %q", p), "write one of "+joinProtocols(c.protocols))
	default:
		c.find(diag.WrongValue, at, fmt.Sprintf("%q is no protocol", p), "write one of "+joinProtocols(c.protocols))
		return mesh.Detect
	}
	return p
}

func joinProtocols(ps []mesh.Protocol) string {
	names := make([]string, len(ps))
	for i, p := range ps {
		names[i] = string(p)
	}
	return strings.Join(names, ", ")
}
