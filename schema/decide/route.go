package decide

import (
	"regexp"
	"sync"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

// Matches reports whether a request satisfies all conditions of a match. A header or a parameter that the request does
// not have satisfies no condition.
func Matches(m *mesh.Match, r *Request) bool { return matches(m, r, false) }

// matches is Matches with what a missing header counts for: a deny rule is not escaped by leaving out what it asks for.
func matches(m *mesh.Match, r *Request, missing bool) bool {
	return PathMatches(&m.Path, r.Path) && (m.Method == "" || r.Method == m.Method) &&
		fieldsMatch(m.Headers, r.Header, missing, missing) && fieldsMatch(m.Query, r.Query, missing, false)
}

// PathMatches reports whether a raw path satisfies a condition. No condition, and the prefix "/", take every path, the
// "*" of OPTIONS too.
func PathMatches(m *mesh.PathMatch, path string) bool {
	switch {
	case m.Exact != "":
		return consume(path, m.Exact) == len(path)
	case m.Prefix != "":
		return m.Prefix == "/" || HasPathPrefix(path, m.Prefix)
	case m.Template != "":
		return fills(path, m.Template)
	case m.Regex != "":
		return wholly(m.Regex, path)
	}
	return true
}

// MatchRoute finds the route that takes a request to a port. It returns nil, true where the port has no routes at all
// (the service itself takes it) and nil, false where it has some and none matches: 404.
func MatchRoute(o *mesh.Outbound, port *mesh.OutboundPort, r *Request) (*mesh.Route, bool) {
	route, _, ok := Select(o, port, r)
	return route, ok
}

// Select is MatchRoute with the match that decided, which a replaced prefix needs ([EditPath]).
func Select(o *mesh.Outbound, port *mesh.OutboundPort, r *Request) (*mesh.Route, *mesh.Match, bool) {
	if len(port.Matches) == 0 {
		return nil, nil, true
	}
	for i := range port.Matches {
		if m := &port.Matches[i]; Matches(m, r) {
			route, ok := o.Route(m.Route)
			return route, m, ok
		}
	}
	return nil, nil, false
}

// MatchConnection finds the route that takes a connection to a port that speaks tls (by the name that the client asked
// for; "": none), tcp or opaque. It returns nil, true where the port has no such routes (the service itself takes it) and
// nil, false where it has some and none takes the connection: it is closed.
func MatchConnection(o *mesh.Outbound, port *mesh.OutboundPort, sni string) (*mesh.Route, bool) {
	if port.Connections != "" {
		return o.Route(port.Connections)
	}
	if len(port.Hosts) == 0 {
		return nil, true
	}
	for i := range port.Hosts {
		if h := &port.Hosts[i]; h.Name == "" || sni != "" && HostMatches(h.Name, sni) {
			return o.Route(h.Route)
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

// expressions are the regular expressions of routes, compiled, by their text; nil stands for one that cannot be. They
// are a memory of what was computed before, and change no answer. Guarded by expressionsMu.
var (
	expressionsMu sync.RWMutex
	expressions   = map[string]*regexp.Regexp{}
)

// mostExpressions bounds the memory: meshes come and go in a process, and what is in use is soon compiled again.
const mostExpressions = 1 << 15

// wholly reports whether an RE2 expression matches the whole of a string. One that is no expression matches nothing; the
// compiler refuses it.
func wholly(pattern, s string) bool {
	expressionsMu.RLock()
	re, ok := expressions[pattern]
	expressionsMu.RUnlock()
	if !ok {
		re = remember(pattern)
	}
	return re != nil && re.MatchString(s)
}

func remember(pattern string) *regexp.Regexp {
	re, err := Expression(pattern)
	if err != nil {
		re = nil
	}
	expressionsMu.Lock()
	defer expressionsMu.Unlock()
	if len(expressions) >= mostExpressions {
		clear(expressions)
	}
	expressions[pattern] = re
	return re
}

// Expression compiles an RE2 expression as routes mean it: over the whole value.
func Expression(pattern string) (*regexp.Regexp, error) {
	if _, err := regexp.Compile(pattern); err != nil { // by itself first: a)|(b is none, though (?:a)|(b) is
		return nil, err
	}
	return regexp.Compile(`\A(?:` + pattern + `)\z`)
}
