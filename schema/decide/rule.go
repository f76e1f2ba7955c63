package decide

import (
	"net/netip"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

// A condition of a rule holds, fails, or cannot be known. What cannot be known is decided by what is safe: an allow rule
// takes it as failing, a deny rule and an audit rule as holding. All conditions are monotone (no "not"), so it is enough
// to hand that answer down to where something is missing.

// holds reports whether a rule's conditions hold, its port and its end apart.
func holds(rule *mesh.Rule, port *mesh.InboundPort, r *Request) bool {
	missing := rule.Action != mesh.Allow
	switch {
	case !fromMatches(rule.From, r.Peer):
	case len(rule.Networks) > 0 && !networksMatch(rule.Networks, r.Addr, missing):
	case len(rule.SNI) > 0 && !sniMatches(rule.SNI, r.SNI, missing):
	case !AboutRequests(rule):
		return true
	case !r.HTTP:
		return missing
	case len(rule.Methods) > 0 && !contains(rule.Methods, r.Method):
	case len(rule.Paths) > 0 && !pathsMatch(rule.Paths, r.Path):
	case !fieldsMatch(rule.Headers, r.Header, missing, missing):
	case rule.JWT != nil && !tokenMatches(rule.JWT, r, missing):
	default:
		return len(rule.Routes) == 0 || routesMatch(rule, port, r, missing)
	}
	return false
}

// AboutRequests reports whether a rule has a condition that only a request can answer: then it never allows a connection
// in which no request is seen, and on its ports bytes that are no HTTP are not let in at all (decisions.md, 12).
func AboutRequests(rule *mesh.Rule) bool {
	return len(rule.Routes) > 0 || len(rule.Methods) > 0 || len(rule.Paths) > 0 || len(rule.Headers) > 0 || rule.JWT != nil
}

// Unconditional reports whether a rule matches all that its callers do on its ports, for ever.
func Unconditional(rule *mesh.Rule) bool {
	return !AboutRequests(rule) && len(rule.Networks) == 0 && len(rule.SNI) == 0 && rule.Until.IsZero()
}

// Ended reports whether a rule is over at a time: from Until on. The zero time is before every end.
func Ended(rule *mesh.Rule, now time.Time) bool {
	return !rule.Until.IsZero() && !now.Before(rule.Until)
}

// OnPort reports whether a rule is about a port of its service.
func OnPort(rule *mesh.Rule, port string) bool {
	return len(rule.Ports) == 0 || contains(rule.Ports, port)
}

func contains[T comparable](list []T, s T) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

func fromMatches(from []mesh.Peer, peer string) bool {
	for i := range from {
		if PeerMatches(&from[i], peer) {
			return true
		}
	}
	return false
}

// PeerMatches reports whether a caller with a proven SPIFFE ID ("": none) is one of a rule's callers. That a caller
// proves no identity is known, and not a missing attribute: a deny rule by identity does not match it.
func PeerMatches(p *mesh.Peer, id string) bool {
	switch {
	case p.Unauthenticated:
		return true
	case id == "":
		return false
	case p.Authenticated:
		return true
	case p.Identity != "":
		return p.Identity == id
	case p.Prefix != "":
		return strings.HasPrefix(id, p.Prefix)
	case p.Suffix != "":
		return strings.HasSuffix(idPath(id), p.Suffix)
	}
	return false
}

// idPath is the path of a SPIFFE ID, with its leading "/".
func idPath(id string) string {
	rest := strings.TrimPrefix(id, "spiffe://")
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		return rest[i:]
	}
	return ""
}

func networksMatch(networks []mesh.Network, a netip.Addr, missing bool) bool {
	if !a.IsValid() {
		return missing
	}
	for i := range networks {
		if InNetwork(&networks[i], a) {
			return true
		}
	}
	return false
}

// InNetwork reports whether an address is in a range and in none of its exceptions. An IPv4 address in its IPv6 form
// (RFC 4291, 2.5.5.2) is that IPv4 address; a zone plays no part.
func InNetwork(n *mesh.Network, a netip.Addr) bool {
	a = plain(a)
	if !n.CIDR.Contains(a) {
		return false
	}
	for _, e := range n.Except {
		if e.Contains(a) {
			return false
		}
	}
	return true
}

// plain is the one form of an address.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

func sniMatches(names []string, sni string, missing bool) bool {
	if sni == "" {
		return missing
	}
	for _, n := range names {
		if HostMatches(n, sni) {
			return true
		}
	}
	return false
}

// HostMatches reports whether a name is the one of a pattern (lower case), or for "*." and a name, under it, at any
// depth. Letters match whatever their case, and a trailing dot plays no part (RFC 1034, 3.1).
func HostMatches(pattern, name string) bool {
	name = strings.TrimSuffix(name, ".")
	if strings.HasPrefix(pattern, "*.") {
		suffix := pattern[1:]
		return len(name) > len(suffix) && sameHost(suffix, name[len(name)-len(suffix):])
	}
	return sameHost(pattern, name)
}

func sameHost(lower, name string) bool {
	if len(lower) != len(name) {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// pathsMatch needs no answer for what is missing: a request has a path.
func pathsMatch(paths []mesh.PathMatch, p string) bool {
	for i := range paths {
		if PathMatches(&paths[i], p) {
			return true
		}
	}
	return false
}

// fieldsMatch judges headers, or parameters of a query: all conditions must hold. lists says that a value which has one
// that is asked for among others, as where lines are repeated, may be it: nobody knows which the application takes.
func fieldsMatch(want []mesh.HeaderMatch, get func(string) (string, bool), missing, lists bool) bool {
	for i := range want {
		w := &want[i]
		if get == nil {
			if !missing {
				return false
			}
			continue
		}
		v, ok := get(w.Name)
		switch {
		case ok && !ValueMatches(w, v) && !(lists && ValueMayMatch(w, v)):
			return false
		case ok:
		case w.Present: // its absence is the answer, and nothing is missing
			return false
		case !missing:
			return false
		}
	}
	return true
}

// ValueMatches reports whether a value that is there satisfies a condition.
func ValueMatches(w *mesh.HeaderMatch, v string) bool {
	switch {
	case w.Present:
		return true
	case len(w.OneOf) > 0:
		return contains(w.OneOf, v)
	case w.Regex != "":
		return wholly(w.Regex, v)
	}
	return v == w.Exact
}

// ValueMayMatch reports whether an element of a header's value, taken for a list (RFC 9110, 5.6.1), is one that a
// condition asks for. Such a header was sent in several lines, or is a list: whether it means that value cannot be known.
func ValueMayMatch(w *mesh.HeaderMatch, v string) bool {
	for v != "" {
		e, rest, _ := strings.Cut(v, ",")
		if v = rest; w.Regex == "" {
			if e = strings.Trim(e, " \t"); e != "" && ValueMatches(w, e) {
				return true
			}
		}
	}
	return false
}

// tokenMatches judges by a token: without a valid one of the issuer, nothing is known of its claims.
func tokenMatches(want *mesh.JWTMatch, r *Request, missing bool) bool {
	if r.Claim == nil {
		return missing
	}
	if _, valid := r.Claim(want.Issuer, ""); !valid {
		return missing
	}
	for i := range want.Claims {
		c := &want.Claims[i]
		values, ok := r.Claim(want.Issuer, c.Name)
		if !ok {
			if !missing {
				return false
			}
			continue
		}
		some := false
		for _, v := range values {
			some = some || contains(c.Values, v)
		}
		if !some {
			return false
		}
	}
	return true
}

// routesMatch reports whether one of the routes that a rule names takes the request: its match is the first in
// precedence that holds, whatever wider ones would take it too. A match of theirs that cannot be judged, since what it
// asks for is missing, counts by missing; one of another route takes the request away only where it surely holds.
func routesMatch(rule *mesh.Rule, port *mesh.InboundPort, r *Request, missing bool) bool {
	for i := range port.Matches {
		m := &port.Matches[i]
		if contains(rule.Routes, m.Route) {
			if matches(m, r, missing) {
				return true
			}
		} else if matches(m, r, false) {
			return false
		}
	}
	return false
}
