package reach

import (
	"regexp/syntax"
	"slices"
	"unicode"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// mostSamples bounds the strings that are tried for one expression.
const mostSamples = 12

// samples are strings that an RE2 expression takes as a whole: the shortest ways through it, and some others.
func samples(expr string) []string {
	full, err := decide.Expression(expr)
	if err != nil {
		return nil
	}
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return nil
	}
	var out []string
	for _, s := range generate(re.Simplify(), 0) {
		if full.MatchString(s) && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func generate(re *syntax.Regexp, depth int) []string {
	if depth > 100 {
		return nil
	}
	capped := func(l []string) []string { return l[:min(len(l), mostSamples)] }
	switch re.Op {
	case syntax.OpLiteral:
		return []string{string(re.Rune)}
	case syntax.OpCharClass:
		var out []string
		for i := 0; i+1 < len(re.Rune) && len(out) < 3; i += 2 {
			for r := re.Rune[i]; r <= re.Rune[i+1]; r++ { // one that can be read, if there is one near
				if r > ' ' && r < unicode.MaxASCII && r != '%' && r != '\\' && r != ';' && r != '#' || r == re.Rune[i+1] {
					out = append(out, string(r))
					break
				}
			}
		}
		return out
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return []string{"x", "y"}
	case syntax.OpCapture:
		return generate(re.Sub[0], depth+1)
	case syntax.OpStar:
		out := append([]string{""}, generate(re.Sub[0], depth+1)...)
		for _, s := range slices.Clone(out[1:]) {
			out = append(out, s+s)
		}
		return capped(out)
	case syntax.OpQuest:
		return capped(append([]string{""}, generate(re.Sub[0], depth+1)...))
	case syntax.OpPlus:
		one := generate(re.Sub[0], depth+1)
		for _, s := range slices.Clone(one) {
			one = append(one, s+s, s+s+s)
		}
		return capped(one)
	case syntax.OpConcat:
		out := []string{""}
		for _, sub := range re.Sub {
			var next []string
			parts := generate(sub, depth+1)
			for k := range max(len(out), len(parts)) * min(2, max(len(out), 1)) {
				if len(parts) == 0 || len(next) >= mostSamples {
					break
				}
				next = append(next, out[k%len(out)]+parts[(k+k/len(out))%len(parts)])
			}
			out = next
		}
		return out
	case syntax.OpAlternate:
		var out []string
		for _, sub := range re.Sub {
			out = append(out, generate(sub, depth+1)...)
		}
		return capped(out)
	case syntax.OpNoMatch:
		return nil
	}
	return []string{""} // what takes no octet: borders and the empty match
}

// Names of conditions that stand for an expression's outcome: a header that no request can have.
const (
	atomPath  = "\x00path "
	atomField = "\x00field "
)

// Abstract is the part of a mesh that decides about calls to one service, with each regular expression replaced by a
// condition that may hold or not, whatever else holds. What no class of such calls does, no call does; what one of them
// does, a call may do. It returns nil where there is no expression to replace.
func Abstract(m *mesh.Mesh, service mesh.ServiceName) *mesh.Mesh {
	if m == nil {
		return nil
	}
	some := false
	atoms := func(where string, ms []mesh.Match) []mesh.Match {
		ms = slices.Clone(ms)
		for i := range ms {
			m := &ms[i]
			var headers, query []mesh.HeaderMatch
			if m.Path.Regex != "" {
				headers = append(headers, mesh.HeaderMatch{Name: atomPath + where + m.Path.Regex, Exact: "1"})
				m.Path = mesh.PathMatch{}
			}
			for _, h := range m.Headers {
				if h.Regex != "" {
					h = mesh.HeaderMatch{Name: atomField + where + "h " + h.Name + " " + h.Regex, Exact: "1"}
				}
				headers = append(headers, h)
			}
			for _, q := range m.Query {
				if q.Regex != "" {
					headers = append(headers, mesh.HeaderMatch{Name: atomField + where + "q " + q.Name + " " + q.Regex, Exact: "1"})
					continue
				}
				query = append(query, q)
			}
			some = some || len(headers) != len(m.Headers) || slices.ContainsFunc(m.Headers, func(h mesh.HeaderMatch) bool { return h.Regex != "" })
			m.Headers, m.Query = headers, query
		}
		return ms
	}
	a := &mesh.Mesh{Settings: m.Settings}
	seen := map[mesh.ServiceName]bool{}
	door := func(n mesh.ServiceName) {
		in, ok := m.InboundOf(n)
		if !ok || seen[n] {
			return
		}
		seen[n] = true
		c := *in
		c.Ports = slices.Clone(in.Ports)
		for i := range c.Ports {
			// A filter may change what the backend sees, so what it sees is a condition of its own.
			c.Ports[i].Matches = atoms(string(n)+" ", c.Ports[i].Matches)
		}
		a.Inbound = append(a.Inbound, c)
	}
	door(service)
	if out, ok := m.OutboundOf(service); ok {
		c := *out
		c.Ports = slices.Clone(out.Ports)
		for i := range c.Ports {
			c.Ports[i].Matches = atoms("", c.Ports[i].Matches)
		}
		routes := out.Routes
		c.Consumers = slices.Clone(out.Consumers)
		for i := range c.Consumers {
			k := &c.Consumers[i]
			k.Ports = slices.Clone(k.Ports)
			for j := range k.Ports {
				k.Ports[j].Matches = atoms("", k.Ports[j].Matches)
			}
			routes = slices.Concat(routes, k.Routes)
		}
		for i := range routes {
			EachBackend(&routes[i], door)
		}
		a.Outbound = []mesh.Outbound{c}
	}
	if !some {
		return nil
	}
	slices.SortFunc(a.Inbound, func(x, y mesh.Inbound) int { return compare(x.Service, y.Service) })
	return a
}

// EachBackend yields the services that a route may send requests, or copies of them, to.
func EachBackend(r *mesh.Route, yield func(mesh.ServiceName)) {
	mirrors := func(fs []mesh.Filter) {
		for i := range fs {
			if m := fs[i].Mirror; m != nil {
				yield(m.Service)
			}
		}
	}
	mirrors(r.Filters)
	for i := range r.Backends {
		yield(r.Backends[i].Service)
		mirrors(r.Backends[i].Filters)
	}
}

func compare(a, b mesh.ServiceName) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
