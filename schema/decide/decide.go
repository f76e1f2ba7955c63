// Package decide holds Heddle's decisions as pure functions over mesh values: may this caller do this, which route
// takes this request, which backend takes its turn. The same code runs in the pull request, in `heddle explain` and in
// the sidecar, so what is predicted is what happens. Nothing here allocates on the way to a verdict, does I/O, or looks
// at a clock.
package decide

import (
	"net/netip"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

// Request is what a sidecar knows of a request, or of a connection, when it must decide. The zero Request is a
// connection of an unauthenticated caller.
type Request struct {
	// Peer is the caller's proven SPIFFE ID; empty: none was proven.
	Peer string
	// HTTP is set for a request; a connection has none of what follows.
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
	// Default is set where no rule matched and the port's default decided.
	Default bool
}

// Authorize judges a request, or a connection, to a port by the rules of its owner. The algebra (decisions.md, 15):
// a matching deny rule beats everything; else a matching allow rule allows; else a port that has at least one allow
// rule denies; else the port's default mode decides.
//
// A rule that names routes never allows a connection without HTTP, and never lets one pass that it denies: what cannot
// be seen fails an allow and matches a deny, and a header that is missing does so too.
//
// Where port.CanonicalPaths is set, the caller first refuses paths that are not [CanonicalPath]: rules cannot judge them.
func Authorize(in *mesh.Inbound, port *mesh.InboundPort, r *Request) Verdict {
	allowedBy, guarded := "", false
	for i := range in.Rules {
		rule := &in.Rules[i]
		if !onPort(rule, port.Name) {
			continue
		}
		if rule.Action == mesh.Allow {
			guarded = true
			if allowedBy != "" {
				continue
			}
		}
		if !fromMatches(rule, r.Peer) || !routesMatch(in, rule, port.Name, r) {
			continue
		}
		if rule.Action == mesh.DenyRule {
			return Verdict{Rule: rule.ID}
		}
		allowedBy = rule.ID
	}
	if allowedBy != "" {
		return Verdict{Allowed: true, Rule: allowedBy}
	}
	v := Verdict{Rule: port.DefaultID, Default: true}
	if !guarded {
		switch port.Default {
		case mesh.AllUnauthenticated:
			v.Allowed = true
		case mesh.AllAuthenticated:
			v.Allowed = r.Peer != ""
		}
	}
	return v
}

// MayCall reports whether a peer could be allowed to do anything at all on some port of a service: the test by which
// control planes choose what to serve a sidecar.
func MayCall(in *mesh.Inbound, peer string) bool {
	for i := range in.Ports {
		port := &in.Ports[i]
		guarded, denied, allowed := false, false, false
		for j := range in.Rules {
			rule := &in.Rules[j]
			if !onPort(rule, port.Name) {
				continue
			}
			guarded = guarded || rule.Action == mesh.Allow
			if !fromMatches(rule, peer) {
				continue
			}
			switch rule.Action {
			case mesh.Allow:
				allowed = true
			case mesh.DenyRule:
				denied = denied || len(rule.Routes) == 0
			}
		}
		if denied {
			continue
		}
		if allowed || !guarded && (port.Default == mesh.AllUnauthenticated || port.Default == mesh.AllAuthenticated && peer != "") {
			return true
		}
	}
	return false
}

func onPort(rule *mesh.Rule, port string) bool {
	if len(rule.Ports) == 0 {
		return true
	}
	for _, p := range rule.Ports {
		if p == port {
			return true
		}
	}
	return false
}

func fromMatches(rule *mesh.Rule, peer string) bool {
	for i := range rule.From {
		p := &rule.From[i]
		if p.Unauthenticated || peer != "" && (p.Authenticated || p.Identity == peer) {
			return true
		}
	}
	return false
}

func routesMatch(in *mesh.Inbound, rule *mesh.Rule, port string, r *Request) bool {
	if len(rule.Routes) == 0 {
		return true
	}
	if !r.HTTP {
		return rule.Action == mesh.DenyRule
	}
	for _, id := range rule.Routes {
		for i := range in.Routes {
			route := &in.Routes[i]
			if route.ID != id || route.Port != port {
				continue
			}
			if len(route.Matches) == 0 {
				return true
			}
			for j := range route.Matches {
				if matches(&route.Matches[j], r, rule.Action == mesh.DenyRule) {
					return true
				}
			}
		}
	}
	return false
}

// Matches reports whether a request satisfies all conditions of a match. A header that the request does not have
// satisfies no condition.
func Matches(m *mesh.Match, r *Request) bool { return matches(m, r, false) }

// matches is Matches with what a missing header counts for: a deny rule is not escaped by leaving out what it asks for.
func matches(m *mesh.Match, r *Request, missing bool) bool {
	if m.Path.Exact != "" && consume(r.Path, m.Path.Exact) != len(r.Path) {
		return false
	}
	if m.Path.Prefix != "" && !HasPathPrefix(r.Path, m.Path.Prefix) {
		return false
	}
	if m.Method != "" && r.Method != m.Method {
		return false
	}
	for i := range m.Headers {
		v, ok := "", false
		if r.Header != nil {
			v, ok = r.Header(m.Headers[i].Name)
		}
		if ok && v != m.Headers[i].Exact || !ok && !missing {
			return false
		}
	}
	return true
}

// HasPathPrefix is the Gateway API's PathPrefix: element by element, so that /a covers /a, /a/ and /a/b but not /ab.
// Escapes are compared by what they stand for; see [SpellPath].
func HasPathPrefix(path, prefix string) bool {
	if prefix == "/" {
		return strings.HasPrefix(path, "/")
	}
	n := consume(path, prefix)
	return n >= 0 && (n == len(path) || path[n] == '/')
}

// SpellPath is the one spelling of a canonical path: escapes that need not be are resolved, those that remain are in
// upper case, and octets that may not stand in a path (RFC 3986, 3.3) are escaped. Two canonical paths that an
// application resolves to the same octets have the same spelling. Policy is compiled to it; requests are compared with
// it octet by octet and never rewritten, so that /%61dmin does not slip past a rule about /admin.
func SpellPath(p string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(p); {
		o, n := octet(p, i)
		i += n
		switch c := byte(o); {
		case o < 0x100 && (c == '/' || pchar(c)):
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		}
	}
	return b.String()
}

// pchar reports whether c may stand for itself in a path segment (RFC 3986, 3.3).
func pchar(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~!$&'()*+,;=:@", c) >= 0
}

// consume returns how much of path the pattern covers, or -1 where path does not start with it.
func consume(path, pattern string) int {
	if strings.HasPrefix(path, pattern) {
		return len(pattern)
	}
	if strings.IndexByte(path, '%') < 0 && strings.IndexByte(pattern, '%') < 0 {
		return -1
	}
	i := 0
	for j := 0; j < len(pattern); {
		if i >= len(path) {
			return -1
		}
		a, n := octet(path, i)
		b, m := octet(pattern, j)
		if a != b {
			return -1
		}
		i, j = i+n, j+m
	}
	return i
}

// octet reads what stands at p[i] and how many bytes of p it takes. An escape stands for its octet, but for those that
// no canonical path has: they are no spelling of anything else, and numbers from 0x100 on keep them apart.
func octet(p string, i int) (o uint16, n int) {
	if p[i] != '%' {
		return uint16(p[i]), 1
	}
	if i+2 >= len(p) {
		return 0x100 | '%', 1
	}
	hi, lo := unhex(p[i+1]), unhex(p[i+2])
	if hi < 0 || lo < 0 {
		return 0x100 | '%', 1
	}
	switch v := uint16(hi<<4 | lo); v {
	case '/', '\\', '.', 0:
		return 0x200 | v, 3
	default:
		return v, 3
	}
}

// MatchRoute finds the route that takes a request to a port. It returns nil, true where the port has no routes at all
// (the service itself takes it) and nil, false where it has some and none matches: 404.
func MatchRoute(o *mesh.Outbound, port *mesh.OutboundPort, r *Request) (*mesh.Route, bool) {
	if len(port.Matches) == 0 {
		return nil, true
	}
	for i := range port.Matches {
		if Matches(&port.Matches[i], r) {
			return o.Route(port.Matches[i].Route)
		}
	}
	return nil, false
}

// PickBackend chooses a backend by weight among those that available reports true for (its index is the argument; nil:
// all are), with a uniformly random number. It returns -1 where none has weight: the request fails.
func PickBackend(route *mesh.Route, random uint64, available func(int) bool) int {
	total := uint64(0)
	for i := range route.Backends {
		if available == nil || available(i) {
			total += uint64(route.Backends[i].Weight)
		}
	}
	if total == 0 {
		return -1
	}
	at := random % total
	for i := range route.Backends {
		if available != nil && !available(i) {
			continue
		}
		if w := uint64(route.Backends[i].Weight); at < w {
			return i
		} else {
			at -= w
		}
	}
	return -1
}

// CanonicalPath reports whether a raw path is in the one form that path rules can judge (decisions.md, 14): it starts
// with "/", has no empty or dot segments, no backslash, no control character, no ";" (some servers cut path parameters
// off before they route) and no "#", and no escape that is malformed or hides "/", "\", "." or NUL. "*", the target of
// OPTIONS, is canonical.
func CanonicalPath(p string) bool {
	if p == "*" {
		return true
	}
	if p == "" || p[0] != '/' {
		return false
	}
	seg := 0 // where the segment at hand starts
	for i := 1; i <= len(p); i++ {
		if i < len(p) && p[i] != '/' {
			switch c := p[i]; {
			case c == '\\', c == ';', c == '#', c < 0x20, c == 0x7f:
				return false
			case c == '%':
				if i+2 >= len(p) {
					return false
				}
				hi, lo := unhex(p[i+1]), unhex(p[i+2])
				if hi < 0 || lo < 0 {
					return false
				}
				switch hi<<4 | lo {
				case '/', '\\', '.', 0:
					return false
				}
			}
			continue
		}
		switch s := p[seg+1 : i]; {
		case s == "." || s == "..":
			return false
		case s == "" && i < len(p): // "//"; a single trailing slash is a form of its own, not a spelling of another
			return false
		}
		seg = i
	}
	return true
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
