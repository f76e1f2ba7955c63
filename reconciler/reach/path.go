package reach

import (
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// mostPaths bounds the paths that are tried for one port; templates that cross each other can make very many.
const mostPaths = 20_000

// cutPaths finds a path for each combination of patterns that some canonical path satisfies.
func (s *Space) cutPaths(g *gatherer) {
	seen := map[mesh.PathMatch]bool{}
	add := func(p mesh.PathMatch) {
		if p != (mesh.PathMatch{}) && !seen[p] {
			seen[p] = true
			s.patterns = append(s.patterns, p)
		}
	}
	for i := range s.conds {
		for _, list := range s.conds[i].paths {
			for _, p := range list {
				add(p)
			}
		}
	}
	for _, p := range g.extra {
		add(p)
	}
	s.pathSig = map[string]int{}
	put := func(p string) {
		if !decide.CanonicalPath(p) {
			return
		}
		k := s.pathKey(p)
		if _, ok := s.pathSig[k]; ok {
			return
		}
		s.pathSig[k] = len(s.paths)
		s.paths = append(s.paths, p)
	}
	candidates, ok := walkPaths(s.patterns)
	if !ok || !s.spend(len(candidates)*len(s.patterns)/2) {
		s.overflow = true
		return
	}
	for _, p := range candidates {
		put(p)
	}
	for _, p := range s.patterns {
		if p.Regex == "" {
			continue
		}
		for _, sample := range samples(p.Regex) {
			put(sample)
		}
	}
	if len(s.patterns) > 0 {
		put("*")
	}
	if !s.spend(len(s.paths) * len(s.conds) / 2) {
		return
	}
	for _, path := range s.paths {
		b := newSet(len(s.conds))
		for i := range s.conds {
			if c := &s.conds[i]; c.loose || allPaths(c.paths, path) {
				b.add(i)
			}
		}
		s.pathBits = append(s.pathBits, b)
	}
}

// allPaths reports whether each list has an element that takes the path. "*" is what OPTIONS asks for, and a path of its
// own.
func allPaths(lists [][]mesh.PathMatch, path string) bool {
	for _, list := range lists {
		if !slices.ContainsFunc(list, func(p mesh.PathMatch) bool { return decide.PathMatches(&p, path) }) {
			return false
		}
	}
	return true
}

// pathKey is what the patterns say of a path. "*" is kept apart: rewrites pass it by.
func (s *Space) pathKey(path string) string {
	k := bitsOf(len(s.patterns), func(i int) bool { return decide.PathMatches(&s.patterns[i], path) })
	if path == "*" && len(s.patterns) > 0 {
		k += "*"
	}
	return k
}

// pattern is a path condition element by element.
type pattern struct {
	elements []string // "" stands for any element that is not empty: a template's variable
	slash    bool     // it ends in a slash of its own
}

func parsePattern(m *mesh.PathMatch) (pattern, bool) {
	text, template := m.Exact, false
	switch {
	case m.Exact != "":
	case m.Prefix != "":
		text = strings.TrimSuffix(m.Prefix, "/")
	case m.Template != "":
		text, template = m.Template, true
	default:
		return pattern{}, false
	}
	text, ok := strings.CutPrefix(text, "/")
	if !ok && text != "" {
		return pattern{}, false // "*"
	}
	p := pattern{}
	if text, p.slash = strings.CutSuffix(text, "/"); text == "" {
		return p, true
	}
	for _, e := range strings.Split(text, "/") {
		if template && strings.HasPrefix(e, "{") && strings.HasSuffix(e, "}") {
			e = ""
		} else {
			e = decide.SpellPath(e)
		}
		p.elements = append(p.elements, e)
	}
	return p, true
}

// walkPaths goes through the product of the patterns, element by element: at each place it takes each element that a
// pattern still alive has there, where one of them takes any, also one that none has. At each place it stops too: there,
// at a slash, and at elements beyond that no pattern has. It reports whether it came to the end.
func walkPaths(matches []mesh.PathMatch) ([]string, bool) {
	var pats []pattern
	for i := range matches {
		if p, ok := parsePattern(&matches[i]); ok {
			pats = append(pats, p)
		}
	}
	fresh := "x"
	for slices.ContainsFunc(pats, func(p pattern) bool { return slices.Contains(p.elements, fresh) }) {
		fresh += "x"
	}
	alive := make([]int, len(pats))
	for i := range pats {
		alive[i] = i
	}
	var out []string
	var visit func(path string, depth int, alive []int)
	visit = func(path string, depth int, alive []int) {
		if len(out) > mostPaths {
			return
		}
		if path == "" {
			out = append(out, "/", "/"+fresh, "/"+fresh+"/")
		} else {
			out = append(out, path, path+"/"+fresh, path+"/", path+"/"+fresh+"/")
		}
		next := map[string]bool{}
		for _, i := range alive {
			if len(pats[i].elements) > depth {
				next[pats[i].elements[depth]] = true
			}
		}
		for _, e := range sortedKeys(next) {
			var left []int
			for _, i := range alive {
				if len(pats[i].elements) > depth && (pats[i].elements[depth] == "" || pats[i].elements[depth] == e) {
					left = append(left, i)
				}
			}
			name := e
			if name == "" {
				name = fresh
			}
			visit(path+"/"+name, depth+1, left)
		}
	}
	visit("", 0, alive)
	return out, len(out) <= mostPaths
}

// rewrite is what a filter does to a path, after the one before it: the whole is replaced, or what the match named.
type rewrite struct {
	first    *rewrite
	from, to string // prefixes without a trailing slash; "" is "/"
	full     string
}

// pullBack adds, for patterns that judge a rewritten path, patterns that say the same of the path before.
func (g *gatherer) pullBack(list []mesh.PathMatch, edits []rewrite) {
	for i := range edits {
		for _, p := range list {
			g.extra = append(g.extra, edits[i].before(p)...)
		}
	}
}

// before is a pattern on the path as it was. What is true or false of all paths that are rewritten needs none.
func (e *rewrite) before(p mesh.PathMatch) []mesh.PathMatch {
	if e.full != "" {
		return nil
	}
	text := p.Exact + p.Prefix + p.Template // one of them is set
	rest, ok := cutElements(text, e.to, p.Template != "")
	if !ok {
		return nil
	}
	var out []mesh.PathMatch
	add := func(text string) {
		if text == "" {
			text = "/"
		}
		switch {
		case p.Exact != "":
			out = append(out, mesh.PathMatch{Exact: text})
		case p.Prefix != "":
			if t := strings.TrimSuffix(text, "/"); t != "" {
				out = append(out, mesh.PathMatch{Prefix: t})
			}
		case p.Template != "":
			out = append(out, mesh.PathMatch{Template: text})
		}
	}
	// Slashes between what replaces and what is left are neither lost nor doubled, so either way may be meant.
	add(e.from + rest)
	add(strings.TrimSuffix(e.from+rest, "/"))
	add(strings.TrimSuffix(e.from+rest, "/") + "/")
	if e.first != nil {
		for _, q := range slices.Clone(out) {
			out = append(out, e.first.before(q)...)
		}
	}
	return out
}

// cutElements cuts a prefix off a pattern, element by element; a variable of a template takes any element.
func cutElements(text, prefix string, template bool) (string, bool) {
	for prefix != "" {
		e, after, _ := strings.Cut(prefix[1:], "/")
		if after != "" {
			after = "/" + after
		}
		if text == "" || text[0] != '/' {
			return "", false
		}
		f, rest, more := strings.Cut(text[1:], "/")
		if !(template && strings.HasPrefix(f, "{")) && decide.SpellPath(f) != decide.SpellPath(e) {
			return "", false
		}
		prefix, text = after, ""
		if more {
			text = "/" + rest
		}
	}
	return text, true
}
