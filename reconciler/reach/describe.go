package reach

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// Tally counts the classes of each caller, so that a set of them can be told to be all of them.
type Tally struct {
	cells map[[3]int]int // by caller, path and method; -1 for connections
}

// Add counts a class.
func (t *Tally) Add(c *Cell) {
	if t.cells == nil {
		t.cells = map[[3]int]int{}
	}
	k := [3]int{c.Peer, -1, -1}
	if c.Call.HTTP {
		k[1], k[2] = c.path, c.method
	}
	t.cells[k]++
}

// CallersOf says in words who some classes of callers are.
func (s *Space) CallersOf(peers []int) []string {
	in := map[int]bool{}
	for _, p := range peers {
		in[p] = true
	}
	stranger, proven := -1, true
	for i := range s.Peers {
		if s.Peers[i].ID == "" {
			stranger = i
		} else if !in[i] {
			proven = false
		}
	}
	var out []string
	switch {
	case proven && in[stranger]:
		return []string{"every caller"}
	case proven:
		return []string{"every mesh identity"}
	}
	done := map[int]bool{stranger: true}
	var prefixes []string
	for _, p := range peers {
		prefixes = append(prefixes, s.Peers[p].Under...)
	}
	slices.Sort(prefixes) // shorter ones first among those that hold each other
	for _, prefix := range slices.Compact(prefixes) {
		var all []int
		whole := true
		for i := range s.Peers {
			p := &s.Peers[i]
			if !strings.HasPrefix(p.ID, prefix) && !slices.ContainsFunc(p.Named, func(id string) bool { return strings.HasPrefix(id, prefix) }) {
				continue
			}
			all = append(all, i)
			whole = whole && in[i] && !p.Rest && len(p.Suffixes) == 0 &&
				!slices.ContainsFunc(p.Named, func(id string) bool { return !strings.HasPrefix(id, prefix) }) &&
				!slices.ContainsFunc(p.Under, func(u string) bool { return !strings.HasPrefix(u, prefix) })
		}
		if whole && !slices.ContainsFunc(all, func(i int) bool { return done[i] }) {
			out = append(out, "every identity of "+under(prefix))
			for _, i := range all {
				done[i] = true
			}
		}
	}
	var rest []string
	for _, i := range peers {
		p := &s.Peers[i]
		if done[i] {
			continue
		}
		for _, id := range p.Named {
			out = append(out, s.callers.Name(id))
		}
		for _, prefix := range p.Under {
			rest = append(rest, "any other identity of "+under(prefix))
		}
		for _, suffix := range p.Suffixes {
			rest = append(rest, "any other identity ending in "+suffix)
		}
		if p.Rest {
			rest = append(rest, "any other mesh identity")
		}
	}
	slices.Sort(out)
	slices.Sort(rest)
	out = append(slices.Compact(out), slices.Compact(rest)...)
	if in[stranger] {
		out = append(out, "callers without identity")
	}
	return out
}

// under names the callers below a prefix of SPIFFE IDs.
func under(prefix string) string {
	if ns := mesh.PeerNamespace(prefix + "x"); ns != "" && strings.HasSuffix(prefix, "/ns/"+ns+"/") && strings.Count(prefix, "/") == 5 {
		return "namespace " + ns
	}
	return prefix + "*"
}

// RequestsOf says in words what some classes of one caller's calls are.
func (s *Space) RequestsOf(t *Tally, keys []Key) []string {
	if len(keys) == 0 {
		return nil
	}
	peer := keys[0].Peer
	var conns []string
	type spot struct{ path, method int }
	rests := map[spot][]string{}
	for _, k := range keys {
		if k.Path < 0 {
			conns = append(conns, k.Rest)
		} else {
			rests[spot{k.Path, k.Method}] = append(rests[spot{k.Path, k.Method}], k.Rest)
		}
	}
	var out []string
	allRequests := true
	// What each path's methods need, in words; paths that need the same stand together.
	type need struct {
		methods map[string][]int // by condition
	}
	byPath := make([]need, len(s.paths))
	for i := range s.paths {
		byPath[i].methods = map[string][]int{}
		for j := range s.methods {
			if s.paths[i] == "*" && j != s.optionsAt() {
				continue
			}
			r := rests[spot{i, j}]
			if len(r) == 0 {
				allRequests = false
				continue
			}
			when := s.when(r, t.cells[[3]int{peer, i, j}])
			byPath[i].methods[when] = append(byPath[i].methods[when], j)
			allRequests = allRequests && when == ""
		}
	}
	switch {
	case !s.http:
	case allRequests:
		out = append(out, "every request")
	default:
		groups := map[string][]int{}
		star := -1
		for i := range s.paths {
			if len(byPath[i].methods) == 0 {
				continue
			}
			if s.paths[i] == "*" {
				star = i
				continue
			}
			var k []string
			for _, when := range sortedKeys(byPath[i].methods) {
				k = append(k, s.methodsIn(byPath[i].methods[when])+"\x00"+when)
			}
			groups[strings.Join(k, "\x01")] = append(groups[strings.Join(k, "\x01")], i)
		}
		for _, k := range sortedKeys(groups) {
			for _, path := range s.pathsIn(groups[k]) {
				for _, part := range strings.Split(k, "\x01") {
					methods, when, _ := strings.Cut(part, "\x00")
					text := strings.TrimSpace(methods + " " + path)
					if strings.HasPrefix(methods, "not ") {
						text = path + " (" + methods + ")"
					}
					if text == "/*" {
						text = "every request"
					}
					if when != "" {
						text += ", " + when
					}
					out = append(out, text)
				}
			}
		}
		if star >= 0 && len(out) == 0 {
			out = append(out, "OPTIONS *")
		}
	}
	if len(conns) == 0 {
		return out
	}
	when := s.when(conns, t.cells[[3]int{peer, -1, -1}])
	switch {
	case !s.http && when == "":
		return []string{"every connection"}
	case !s.http:
		return []string{"connections, " + when}
	case len(out) == 0 && when == "":
		out = append(out, "connections in which no request is seen")
	case len(out) == 0:
		out = append(out, "connections in which no request is seen, "+when)
	}
	return out
}

func (s *Space) methodsIn(list []int) string {
	if len(list) == len(s.methods) {
		return ""
	}
	if !slices.Contains(list, s.other) {
		names := make([]string, len(list))
		for i, j := range list {
			names[i] = s.methods[j]
		}
		return strings.Join(names, "|")
	}
	var but []string
	for j, m := range s.methods {
		if !slices.Contains(list, j) {
			but = append(but, m)
		}
	}
	return "not " + strings.Join(but, "|")
}

// pathsIn says which paths some classes are: patterns that are wholly among them, patterns less others, and examples of
// what is left.
func (s *Space) pathsIn(list []int) []string {
	in := map[int]bool{}
	for _, i := range list {
		in[i] = true
	}
	pats := s.named()
	cover := func(want map[int]bool) ([]string, []int) {
		left := map[int]bool{}
		for i := range want {
			left[i] = true
		}
		var out []string
		for _, p := range pats {
			fresh, whole := false, true
			for _, i := range p.takes {
				fresh, whole = fresh || left[i], whole && want[i]
			}
			if fresh && whole {
				out = append(out, p.text)
				for _, i := range p.takes {
					delete(left, i)
				}
			}
		}
		rest := make([]int, 0, len(left))
		for i := range left {
			rest = append(rest, i)
		}
		slices.Sort(rest)
		return out, rest
	}
	out, left := cover(in)
	if len(left) == 0 {
		return out
	}
	for _, p := range pats { // a pattern, but for a few others
		without, has := map[int]bool{}, 0
		for _, i := range p.takes {
			if in[i] {
				has++
			} else {
				without[i] = true
			}
		}
		if has == 0 || !slices.Contains(p.takes, left[0]) {
			continue
		}
		if but, rest := cover(without); len(rest) == 0 && len(but) <= 3 && len(but) > 0 {
			out = slices.DeleteFunc(out, func(t string) bool { return strings.HasPrefix(t, strings.TrimSuffix(p.text, "*")) })
			out = append(out, p.text+" but "+strings.Join(but, " and "))
			left = slices.DeleteFunc(left, func(i int) bool { return slices.Contains(p.takes, i) })
			if len(left) == 0 {
				return out
			}
		}
	}
	for _, i := range left {
		out = append(out, "paths like "+s.paths[i])
	}
	return out
}

// named is a pattern in words, with the classes of paths that it takes.
type named struct {
	text  string
	takes []int
}

// named are the patterns that take some path, those first that take the most.
func (s *Space) named() []named {
	if s.words != nil {
		return s.words
	}
	var all []int
	for i, p := range s.paths {
		if p != "*" {
			all = append(all, i)
		}
	}
	pats := []named{{"/*", all}}
	for k := range s.patterns {
		p := &s.patterns[k]
		n := named{text: p.Exact + p.Template}
		switch {
		case p.Prefix == "/":
			continue
		case p.Prefix != "":
			n.text = strings.TrimSuffix(p.Prefix, "/") + "/*"
		case p.Regex != "":
			n.text = "~" + p.Regex
		}
		for _, i := range all {
			if decide.PathMatches(p, s.paths[i]) {
				n.takes = append(n.takes, i)
			}
		}
		if len(n.takes) > 0 {
			pats = append(pats, n)
		}
	}
	slices.SortStableFunc(pats, func(a, b named) int { return len(b.takes) - len(a.takes) })
	s.words = pats
	return pats
}

// when says what some of the total classes with one path and one method have in common; "" for all of them.
func (s *Space) when(rests []string, total int) string {
	if len(rests) == total {
		return ""
	}
	used := make([]map[int]bool, len(s.dims))
	for _, r := range rests {
		for d := range s.dims {
			if used[d] == nil {
				used[d] = map[int]bool{}
			}
			used[d][int(r[2*d])|int(r[2*d+1])<<8-1] = true
		}
	}
	product := 1
	var words []string
	for d := range s.dims {
		if used[d][-1] {
			continue
		}
		product *= len(used[d])
		if len(used[d]) < len(s.dims[d].vals) {
			words = append(words, s.dims[d].in(used[d]))
		}
	}
	if product == len(rests) && len(words) > 0 {
		return strings.Join(words, ", ")
	}
	var names []string
	for d := range s.dims {
		if !used[d][-1] && s.dims[d].kind != dimTime {
			names = append(names, s.dims[d].title())
		}
	}
	if len(names) == 0 {
		return "at some times"
	}
	return "depending on " + strings.Join(names, ", ")
}

// title is what a dimension is called. Values of headers and claims are never named: they may be secrets.
func (d *dim) title() string {
	switch d.kind {
	case dimHeader:
		switch {
		case strings.HasPrefix(d.name, atomPath):
			return "a regular expression"
		case strings.HasPrefix(d.name, atomField):
			return "a regular expression"
		}
		return "header " + d.name
	case dimQuery:
		return "parameter " + d.name
	case dimToken:
		return "a token of " + d.issuer
	case dimClaim:
		return "claim " + d.name + " of " + d.issuer
	case dimAddr:
		return "the caller's address"
	}
	return string(d.kind)
}

// in says what some values of a dimension, not all, have in common.
func (d *dim) in(vals map[int]bool) string {
	switch d.kind {
	case dimTime:
		lo, hi := len(d.vals), -1
		for v := range vals {
			lo, hi = min(lo, v), max(hi, v)
		}
		var words []string
		if lo > 0 {
			words = append(words, "from "+day(d.vals[lo].at)+" on")
		}
		if hi < len(d.vals)-1 {
			words = append(words, "until "+day(d.vals[hi+1].at))
		}
		if len(words) == 0 {
			return "at some times"
		}
		return strings.Join(words, " ")
	case dimAddr, dimSNI:
		var like []string
		for v := range d.vals {
			if vals[v] {
				if d.kind == dimAddr {
					like = append(like, d.vals[v].addr.String())
				} else if d.vals[v].text == "" {
					like = append(like, "no name")
				} else {
					like = append(like, d.vals[v].text)
				}
			}
		}
		if len(like) > 3 {
			like = append(like[:3], fmt.Sprintf("%d more", len(like)-3))
		}
		if d.kind == dimAddr {
			return "from addresses like " + strings.Join(like, ", ")
		}
		return "for names like " + strings.Join(like, ", ")
	}
	none, some, all := false, false, true
	for v := range d.vals {
		switch {
		case !d.vals[v].there:
			none = vals[v]
		case vals[v]:
			some = true
		default:
			all = false
		}
	}
	switch {
	case none && !some:
		return "without " + d.title()
	case some && !none && all:
		return "with " + d.title()
	case some && !none:
		return "with certain values of " + d.title()
	}
	return "without " + d.title() + " or with certain values"
}

// day is a time as a reader wants it: the date alone where it is midnight.
func day(t time.Time) string {
	t = t.UTC()
	if t.Equal(t.Truncate(24 * time.Hour)) {
		return t.Format(time.DateOnly)
	}
	return t.Format(time.RFC3339)
}
