// Package decide holds Heddle's decisions as pure functions over mesh values: may this caller do this, which route
// takes this request, which backend takes its turn, and what becomes of a call as a whole. The same code runs in the
// pull request, in `heddle explain` and in the sidecar, so what is predicted is what happens. Nothing here does I/O or
// looks at a clock: a request carries the time at which it is judged. Nothing allocates on the way to a verdict or to a
// route; regular expressions of routes are compiled at their first use and kept.
package decide

import (
	"net/netip"
	"time"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

// Request is what a sidecar knows of a request, or of a connection, when it must decide. The zero Request is a
// connection of an unauthenticated caller.
type Request struct {
	// Peer is the caller's proven SPIFFE ID; empty: none was proven.
	Peer string
	// HTTP is set for a request; a connection has no method, path, header, query and claims.
	HTTP   bool
	Method string // as received; methods are case-sensitive (RFC 9110, 9.1)
	Path   string // raw, without the query
	// Header returns the value of a header by its lower-case name, repeated lines joined by ",". It may be nil.
	Header func(name string) (string, bool)
	// Query returns the first value of a parameter of the query, form-decoded. It may be nil.
	Query func(name string) (string, bool)
	// Addr is the caller's address; the zero Addr is unknown.
	Addr netip.Addr
	// SNI is the name that the client asked for in the TLS handshake, on ports that pass TLS through; empty: none.
	SNI string
	// Claim returns the values of a claim in the request's token of an issuer (mesh.JWTIssuer.Name), or false where there
	// is no valid token or no such claim. The claim "" asks only whether the token is valid. It may be nil.
	Claim func(issuer, claim string) ([]string, bool)
	// Now is when the request is judged, for rules that end. The zero time is before every end.
	Now time.Time
}

// Verdict is the outcome of an authorization, with what decided it.
type Verdict struct {
	Allowed bool
	// Rule is the id of the rule that decided, or of the port's default; look it up in mesh.Origins.
	Rule string
	// Default is set where no rule matched and the port's default decided. Together with the mode mesh.Audit it means
	// that the request is let in and recorded.
	Default bool
}

// Authorize judges a request, or a connection, to a port by the rules of its owner. The algebra (decisions.md, 15;
// [TruthTable] has it as data): a matching deny rule beats everything; else a matching allow rule allows; else a port
// that has at least one allow rule denies, though the rule may have ended; else the port's default mode decides. Audit
// rules, and rules with Shadow set, change nothing: see [Observed] and [Preview].
//
// What cannot be known of a request fails an allow rule and matches a deny rule ([MissingTable]).
//
// Where port.CanonicalPaths is set, the caller first refuses paths that are not [CanonicalPath]: rules cannot judge
// them. [Admit] does both.
func Authorize(in *mesh.Inbound, port *mesh.InboundPort, r *Request) Verdict {
	return authorize(in, port, r, false)
}

// Preview is what Authorize would say if rules with Shadow set were enforced. A shadow rule is safe to enforce where
// the two agree on everything that comes.
func Preview(in *mesh.Inbound, port *mesh.InboundPort, r *Request) Verdict {
	return authorize(in, port, r, true)
}

func authorize(in *mesh.Inbound, port *mesh.InboundPort, r *Request, shadows bool) Verdict {
	allowedBy, guarded := "", false
	for i := range in.Rules {
		rule := &in.Rules[i]
		if rule.Action == mesh.AuditRule || rule.Shadow && !shadows || !OnPort(rule, port.Name) {
			continue
		}
		if rule.Action == mesh.Allow {
			// A rule that has ended guards still: time must not open a door that nobody opened in a commit.
			guarded = true
			if allowedBy != "" {
				continue
			}
		}
		if Ended(rule, r.Now) || !holds(rule, port, r) {
			continue
		}
		if rule.Action != mesh.Allow {
			return Verdict{Rule: rule.ID}
		}
		allowedBy = rule.ID
	}
	if allowedBy != "" {
		return Verdict{Allowed: true, Rule: allowedBy}
	}
	return Verdict{Allowed: !guarded && admits(in, port.Default, r), Rule: port.DefaultID, Default: true}
}

// admits is what a port's default mode says on its own.
func admits(in *mesh.Inbound, mode mesh.InboundMode, r *Request) bool {
	switch mode {
	case mesh.AllUnauthenticated, mesh.Audit:
		return true
	case mesh.AllAuthenticated:
		return r.Peer != ""
	case mesh.ClusterUnauthenticated:
		return inCluster(in, r.Addr)
	case mesh.ClusterAuthenticated:
		return r.Peer != "" && inCluster(in, r.Addr)
	}
	return false
}

// inCluster reports whether an address is one of the cluster's own; an unknown one is outside.
func inCluster(in *mesh.Inbound, a netip.Addr) bool {
	a = plain(a)
	for _, p := range in.ClusterNetworks {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Observed calls yield for each rule of a port that only observes, in the order of their ids: audit rules and rules with
// Shadow set. matched says whether the rule's conditions hold, by the same rules as a verdict's; of an audit rule, what
// cannot be known counts as holding. Rules that have ended are left out.
func Observed(in *mesh.Inbound, port *mesh.InboundPort, r *Request, yield func(rule *mesh.Rule, matched bool)) {
	for i := range in.Rules {
		rule := &in.Rules[i]
		if (rule.Action == mesh.AuditRule || rule.Shadow) && OnPort(rule, port.Name) && !Ended(rule, r.Now) {
			yield(rule, holds(rule, port, r))
		}
	}
}

// MayCall reports whether a peer could be allowed to do anything at all on some port of a service, from anywhere, at any
// time, with any token: the test by which control planes choose what to serve a sidecar. It never says no to a peer whom
// [Authorize] would allow something.
func MayCall(in *mesh.Inbound, peer string) bool {
	for i := range in.Ports {
		port := &in.Ports[i]
		guarded, denied, allowed := false, false, false
		for j := range in.Rules {
			rule := &in.Rules[j]
			if rule.Action == mesh.AuditRule || rule.Shadow || !OnPort(rule, port.Name) {
				continue
			}
			guarded = guarded || rule.Action == mesh.Allow
			if !fromMatches(rule.From, peer) {
				continue
			}
			switch rule.Action {
			case mesh.Allow:
				allowed = true
			case mesh.DenyRule:
				denied = denied || Unconditional(rule)
			}
		}
		if denied {
			continue
		}
		if allowed {
			return true
		}
		if guarded {
			continue
		}
		switch port.Default {
		case mesh.AllUnauthenticated, mesh.Audit, mesh.ClusterUnauthenticated:
			return true
		case mesh.AllAuthenticated, mesh.ClusterAuthenticated:
			if peer != "" {
				return true
			}
		}
	}
	return false
}
