package compile

import (
	"cmp"
	"fmt"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// httpMatches compiles the conditions of an HTTP route, in precedence. A route without any takes every request.
func (c *compiler) httpMatches(s *service, r *route) []mesh.Match {
	at, src := r.at.at("match"), r.src.http
	if c.empty(at, len(src), src == nil) {
		c.find(diag.WrongValue, at, "an empty list of conditions matches nothing",
			"leave the field out to match every request")
	}
	if len(src) == 0 {
		return []mesh.Match{{Route: r.id}}
	}
	out := make([]mesh.Match, 0, len(src))
	for i, m := range src {
		at := at.index(i)
		match := mesh.Match{Route: r.id, Method: string(m.Method), Headers: c.headers(s, at.at("headers"), m.Headers),
			Query: c.query(s, at.at("query"), m.Query)}
		if m.Path != nil {
			match.Path = c.path(s, at.at("path"), m.Path)
		}
		if m.Method != "" && (!token(string(m.Method)) || strings.ToUpper(string(m.Method)) != string(m.Method)) {
			c.find(diag.WrongValue, at.at("method"), fmt.Sprintf("%q is no HTTP method", m.Method),
				fmt.Sprintf("methods are case-sensitive; write %q", strings.ToUpper(string(m.Method))))
		}
		out = append(out, match)
	}
	slices.SortFunc(out, precedence)
	return out
}

// grpcMatches compiles the conditions of a gRPC route: a call is a POST of /<service>/<method> (gRPC over HTTP/2), so
// that HTTP and gRPC routes of one port stand in one precedence.
func (c *compiler) grpcMatches(s *service, r *route) []mesh.Match {
	at, src := r.at.at("match"), r.src.grpc
	if c.empty(at, len(src), src == nil) {
		c.find(diag.WrongValue, at, "an empty list of conditions matches nothing", "leave the field out to match every call")
	}
	if len(src) == 0 {
		return []mesh.Match{{Route: r.id, Method: "POST"}}
	}
	out := make([]mesh.Match, 0, len(src))
	for i, m := range src {
		at := at.index(i)
		match := mesh.Match{Route: r.id, Method: "POST", Headers: c.headers(s, at.at("headers"), m.Headers)}
		switch {
		case m.Service != "" && !fullName(m.Service):
			c.find(diag.WrongValue, at.at("service"), fmt.Sprintf("%q is no full name of a gRPC service", m.Service),
				`write package and service, as in "shop.v1.Orders"`)
		case m.Method != "" && (!fullName(m.Method) || strings.Contains(m.Method, ".")):
			c.find(diag.WrongValue, at.at("method"), fmt.Sprintf("%q is no name of a gRPC method", m.Method), `write its name alone, as in "List"`)
		case m.Service == "" && m.Method != "":
			c.find(diag.MissingField, at, "a method of which service?", "write service too")
		case m.Method != "":
			match.Path.Exact = "/" + m.Service + "/" + m.Method
		case m.Service != "":
			match.Path.Prefix = "/" + m.Service
		}
		out = append(out, match)
	}
	slices.SortFunc(out, precedence)
	return out
}

// fullName reports whether s is identifiers joined by dots, as protobuf has them.
func fullName(s string) bool {
	for part := range strings.SplitSeq(s, ".") {
		if part == "" || '0' <= part[0] && part[0] <= '9' || strings.IndexFunc(part, func(r rune) bool {
			return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '_')
		}) >= 0 {
			return false
		}
	}
	return true
}

// path compiles a path match to its one spelling.
func (c *compiler) path(s *service, at path, src *v1alpha1.PathMatch) mesh.PathMatch {
	if n := count(src.Exact != "", src.Prefix != "", src.Regex != ""); n != 1 {
		c.find(diag.WrongValue, at, fmt.Sprintf("a path match is exactly one of exact, prefix, regex; %d are set", n),
			`write path: prefix: "/cart"`)
		return mesh.PathMatch{}
	}
	switch {
	case src.Regex != "":
		c.need(&s.out.Needs, mesh.CapRouteRegex, at.at("regex"), "a regular expression over the path")
		before := len(c.findings)
		expr := c.regex(at.at("regex"), src.Regex)
		if len(c.findings) == before && matchesNoPath(expr) {
			c.find(diag.BadPattern, at.at("regex"), fmt.Sprintf("no path matches %q: it is read over the whole path, and a path begins with \"/\"", expr),
				`begin it with "/", or with ".*" for what stands further on`)
		}
		return mesh.PathMatch{Regex: expr}
	case src.Exact != "":
		return mesh.PathMatch{Exact: c.spelling(at.at("exact"), string(src.Exact))}
	}
	p := c.spelling(at.at("prefix"), string(src.Prefix))
	// Every path has the prefix "/", and so has the "*" of OPTIONS for this purpose: it is no condition at all.
	return mesh.PathMatch{Prefix: strings.TrimSuffix(p, "/")}
}

// spelling checks a path of policy and returns its one spelling.
func (c *compiler) spelling(at path, p string) string {
	switch {
	case len(p) > maxPath:
		c.find(diag.WrongValue, at, fmt.Sprintf("the path has %d bytes; %d are the most", len(p), maxPath), "match by a shorter prefix")
	case !strings.HasPrefix(p, "/"):
		c.find(diag.WrongValue, at, fmt.Sprintf("%q does not start with \"/\"", p), fmt.Sprintf("write %q", "/"+p))
	case strings.ContainsAny(p, "?#"):
		c.find(diag.WrongValue, at, fmt.Sprintf("%q has a query or a fragment, which a path match never sees", p),
			fmt.Sprintf("write %q", p[:strings.IndexAny(p, "?#")]))
	case !decide.CanonicalPath(p):
		c.find(diag.WrongValue, at, fmt.Sprintf("%q is not canonical, so no request that is let in has it", p),
			`leave out "//", dot segments, "\", ";", and escapes of "/", "\", "." and NUL`)
	default:
		return decide.SpellPath(p)
	}
	return p
}

// A regular expression runs on every request that comes to it, in time linear in its program: both are bounded.
const (
	maxRegex        = 1024
	maxRegexProgram = 4096 // instructions, of about 40 bytes each
)

// regex checks a regular expression: RE2, over the whole value, bounded.
func (c *compiler) regex(at path, expr string) string {
	if len(expr) > maxRegex {
		c.find(diag.BadPattern, at, fmt.Sprintf("the regular expression has %d bytes; %d are the most", len(expr), maxRegex),
			"split it, or match by prefix")
		return expr
	}
	re, err := syntax.Parse("^(?:"+expr+")$", syntax.Perl)
	if err == nil {
		if n := 4 * maxRegexProgram; instructions(re, n) >= n { // too many to count them exactly
			c.find(diag.BadPattern, at, fmt.Sprintf("the regular expression compiles to more than %d instructions; %d are the most", n, maxRegexProgram),
				"lower its repetitions, or match by prefix")
			return expr
		}
		var prog *syntax.Prog
		if prog, err = syntax.Compile(re.Simplify()); err == nil && len(prog.Inst) > maxRegexProgram {
			c.find(diag.BadPattern, at, fmt.Sprintf("the regular expression compiles to %d instructions; %d are the most", len(prog.Inst), maxRegexProgram),
				"lower its repetitions, or match by prefix")
			return expr
		}
	}
	if _, own := syntax.Parse(expr, syntax.Perl); own != nil {
		err = own // so that the message shows what the author wrote, and "a)(b" is no expression
	}
	if err != nil {
		why := strings.TrimPrefix(err.Error(), "error parsing regexp: ")
		c.find(diag.BadPattern, at, "the regular expression cannot be read: "+why,
			"write RE2 (github.com/google/re2/wiki/Syntax), which has no look-around and no back-references")
	}
	return expr
}

// headers compiles header conditions, sorted by lower-case name.
func (c *compiler) headers(s *service, at path, src map[string]v1alpha1.HeaderMatch) (out []mesh.HeaderMatch) {
	seen := map[string]string{}
	for _, name := range sortedKeys(src) {
		h, at := src[name], at.at(name)
		lower := strings.ToLower(name)
		if !token(name) {
			c.find(diag.WrongValue, at, fmt.Sprintf("%q is no header name", name), `write a name as in "x-tenant"`)
			continue
		}
		if other, ok := seen[lower]; ok {
			c.find(diag.WrongValue, at, fmt.Sprintf("header names are case-insensitive: %q is %q again", name, other),
				"write it once")
			continue
		}
		seen[lower] = name
		if why := notPassedOn(lower); why != "" {
			c.find(diag.WrongValue, at, fmt.Sprintf("header %s %s, so it is no condition", lower, why),
				"judge by another header, or by the caller (from)")
			continue
		}
		if m, ok := c.valueMatch(s, at, "header", h); ok {
			m.Name = lower
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b mesh.HeaderMatch) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// query compiles conditions on parameters of the query, sorted by name.
func (c *compiler) query(s *service, at path, src map[string]v1alpha1.HeaderMatch) (out []mesh.HeaderMatch) {
	for _, name := range sortedKeys(src) {
		at := at.at(name)
		c.need(&s.out.Needs, mesh.CapRouteQuery, at, "a condition on the query")
		if name == "" || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
			c.find(diag.WrongValue, at, fmt.Sprintf("%q is no name of a query parameter", name), "write it decoded, as the application sees it")
			continue
		}
		if m, ok := c.valueMatch(s, at, "query", src[name]); ok {
			m.Name = name
			out = append(out, m)
		}
	}
	return out
}

// valueMatch compiles a condition on the value of a header or query parameter; what is "header" or "query".
func (c *compiler) valueMatch(s *service, at path, what string, h v1alpha1.HeaderMatch) (m mesh.HeaderMatch, ok bool) {
	switch {
	case h.Regex != "" && h.Exact != "":
		c.find(diag.WrongValue, at, "a "+what+" match is exactly one of exact, regex; 2 are set", `write exact: "value"`)
	case h.Regex != "":
		of := map[string]string{"header": "a header", "query": "the query"}[what]
		c.need(&s.out.Needs, mesh.CapRouteRegex, at.at("regex"), "a regular expression over "+of)
		return mesh.HeaderMatch{Regex: c.regex(at.at("regex"), h.Regex)}, true
	case h.Exact == "":
		c.find(diag.WrongValue, at, "the "+what+" match names no value", `write exact: "value"`)
	case what == "header" && !headerValue(h.Exact):
		c.find(diag.WrongValue, at.at("exact"), fmt.Sprintf("no header has the value %q", h.Exact),
			"leave out control characters, and spaces at the ends, and write UTF-8")
	case !utf8.ValidString(h.Exact):
		c.find(diag.WrongValue, at.at("exact"), fmt.Sprintf("%q is not UTF-8", h.Exact), "write it decoded, as the application sees it")
	default:
		return mesh.HeaderMatch{Exact: h.Exact}, true
	}
	return m, false
}

// headerValue reports whether a header can have the value.
func headerValue(v string) bool {
	return utf8.ValidString(v) && strings.TrimSpace(v) == v && !strings.ContainsFunc(v, unicode.IsControl)
}

// notPassedOn says why a header cannot be judged on both sides of a connection, or "". Sidecars strip what only they may
// write, from whomever it comes, and what ends with one hop (RFC 9110, 7.6.1): a rule by one would never match a mesh
// peer, and match whatever a stranger claims.
func notPassedOn(lower string) string {
	switch spelt := strings.ReplaceAll(lower, "_", "-"); {
	case strings.HasPrefix(spelt, "heddle-"), spelt == "x-forwarded-client-cert":
		return "is written by sidecars and stripped from what callers send"
	}
	switch lower {
	case "connection", "keep-alive", "proxy-connection", "proxy-authorization", "proxy-authenticate", "te", "trailer",
		"transfer-encoding", "content-length", "upgrade":
		return "belongs to one connection and is not passed on as it came"
	}
	return ""
}

// token reports whether s is a token (RFC 9110, 5.6.2).
func token(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	}) < 0
}

// precedence orders matches as the Gateway API does: exact paths, the longest prefix, regular expressions (for which it
// names no place), any path (what it calls the prefix "/"); then method, most headers, most query parameters. It breaks
// ties by the route's id, where the Gateway API takes the older object: a commit has no older objects. What ties beyond
// that is ordered by content, so that the order in which an author lists a route's conditions is no behaviour.
func precedence(a, b mesh.Match) int {
	flag := func(set bool) int {
		if set {
			return 0
		}
		return 1
	}
	if c := cmp.Or(
		flag(a.Path.Exact != "")-flag(b.Path.Exact != ""),
		len(b.Path.Prefix)-len(a.Path.Prefix),
		flag(a.Path.Regex != "")-flag(b.Path.Regex != ""),
		flag(a.Method != "")-flag(b.Method != ""),
		len(b.Headers)-len(a.Headers),
		len(b.Query)-len(a.Query),
		strings.Compare(a.Route, b.Route),
	); c != 0 {
		return c
	}
	return strings.Compare(conditions(a), conditions(b))
}

// conditions spells out all that a match asks for; two matches with the same conditions match the same requests.
func conditions(m mesh.Match) string {
	var b strings.Builder
	part := func(s string) { b.WriteString(s); b.WriteByte(0) } // stands in none of the parts
	part(m.Path.Exact)
	part(m.Path.Prefix)
	part(m.Path.Regex)
	part(m.Method)
	for _, h := range m.Headers {
		part(h.Name)
		part(h.Exact)
		part(h.Regex)
	}
	part("")
	for _, q := range m.Query {
		part(q.Name)
		part(q.Exact)
		part(q.Regex)
	}
	return b.String()
}

// checkShadowed finds matches that no request reaches, among those of one port in precedence: all that they take is taken
// by an earlier one. Precedence puts what asks for more first, so that without expressions an earlier one takes all of a
// later one's only where both ask for the same.
func (c *compiler) checkShadowed(matches []mesh.Match, byID map[string]*route) {
	if len(matches) < 2 {
		return
	}
	first := make(map[string]string, len(matches)) // conditions → route
	var expressions []int                          // the matches so far that have some
	for i := range matches {
		m := &matches[i]
		r := byID[m.Route]
		if r.broken {
			continue
		}
		key := conditions(*m)
		earlier, ok := first[key]
		if !ok {
			first[key] = m.Route
			takes := func(by *mesh.Match) bool {
				c.spend(r.at, effort(by, m))
				return !byID[by.Route].broken && takesAll(by, m)
			}
			j := -1
			if usesRegex(m) {
				j = slices.IndexFunc(matches[:i], func(by mesh.Match) bool { return takes(&by) })
				expressions = append(expressions, i)
			} else if k := slices.IndexFunc(expressions, func(j int) bool { return takes(&matches[j]) }); k >= 0 {
				j = expressions[k]
			}
			if j < 0 {
				continue
			}
			earlier = matches[j].Route
		}
		by := byID[earlier]
		if r == by {
			message := "two of the route's matches ask for the same"
			if !ok {
				message = "one of the route's matches takes all that another one does"
			}
			c.find(diag.ShadowedRoute, r.at.at("match"), message, "delete one of them")
			continue
		}
		c.find(diag.ShadowedRoute, r.at,
			fmt.Sprintf("route %q takes every request of one of this route's matches first", localID(earlier)),
			"make one of them more specific (path, method, header), or delete it", c.pos(by.at))
	}
}

// unconditional reports whether a match takes every request.
func unconditional(m mesh.Match) bool {
	return m.Path == mesh.PathMatch{} && m.Method == "" && len(m.Headers) == 0 && len(m.Query) == 0
}
