package policy

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	cueerrors "cuelang.org/go/cue/errors"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// This file turns CUE's errors into findings: one line each, a stable ID, the author's place before the schema's.

// ruleIDs tells the schema's own messages apart, by how they begin; see rules.cue. What is not here is SchemaRule.
var ruleIDs = []struct{ prefix, id, hint string }{
	{"want each ", diag.DuplicateEntry, ""},
	{"want a range of addresses", diag.BadNetwork, ""},
	{"want a regular expression", diag.BadPattern, "regular expressions are RE2's: https://github.com/google/re2/wiki/Syntax"},
	{"want a template", diag.BadPattern, ""},
	{"want \"*\" alone", diag.BadFilter, ""},
	{"want the origins by name", diag.BadFilter, ""},
	{"want ", diag.WrongValue, ""}, // what is wanted is the way out
	{"weights sum to 0,", diag.NoWeight, "no backend would get a request: let them sum to 100"},
	{"weights ", diag.WeightSum, "let them sum to 100: they are percentages"},
	{"unknown top-level field", diag.UnknownField, ""},
}

var (
	inElement  = regexp.MustCompile(`^element (\d\S*): `)
	notFound   = regexp.MustCompile(`^reference "?([^"\s]+)"? not found`)
	mismatched = regexp.MustCompile(`^conflicting values (.*) and (.*) \(mismatched types (\S+) and (\S+)\)$`)
	conflict   = regexp.MustCompile(`^conflicting values (.*) and (.*)$`)
	required   = regexp.MustCompile(`^field is required but not present`)
	unused     = regexp.MustCompile(`^imported and not used: (.*)$`)
	incomplete = regexp.MustCompile(`incomplete|non-concrete`)
	outOfBound = regexp.MustCompile(`^invalid value (.*) \((out of bound .*)\)$`)
	alleles    = regexp.MustCompile(`^\d+ errors in empty disjunction`)
)

// fromCUE makes findings of CUE's errors. known holds the paths that already have a finding; what CUE says about them,
// or below them, is an echo.
func fromCUE(errs []cueerrors.Error, at sites, known map[string]bool) diag.List {
	byPath := map[string][]diag.Finding{}
	var order []string
	for _, e := range errs {
		f := convert(e, at)
		if echoes(f.Path, known) {
			continue
		}
		key := f.Path
		if key == "" {
			key = f.Pos.String() + f.Message
		}
		if byPath[key] == nil {
			order = append(order, key)
		}
		byPath[key] = append(byPath[key], f)
	}
	var out diag.List
	for _, key := range order {
		// Of several errors on one path, the schema's own message says it best, and a disjunction's summary worst.
		group := byPath[key]
		best := slices.MinFunc(group, func(a, b diag.Finding) int { return cmp.Compare(rank(a), rank(b)) })
		if i := slices.IndexFunc(group, func(f diag.Finding) bool { return f.ID == diag.Conflict }); i >= 0 && len(at.again[key]) > 0 {
			best = group[i] // the author wrote it twice: that is what is wrong, whatever else CUE tried
			best.Related = slices.Clone(at.again[key])
			best.Hint = fmt.Sprintf("a field has one value; it is also written at %s", best.Related[0])
		}
		for _, f := range group {
			for _, p := range append([]diag.Pos{f.Pos}, f.Related...) {
				if p != best.Pos && !slices.Contains(best.Related, p) && !p.IsZero() && !isSchema(p) {
					best.Related = append(best.Related, p)
				}
			}
		}
		sortRelated(best.Related)
		out.Add(best)
	}
	all := slices.Clone(out)
	return slices.DeleteFunc(out, func(f diag.Finding) bool { // what is open inside says it better
		return f.ID == diag.Incomplete && slices.ContainsFunc(all, func(in diag.Finding) bool { return strings.HasPrefix(in.Path, f.Path+".") })
	})
}

func rank(f diag.Finding) int {
	switch {
	case strings.HasPrefix(f.Message, "fits none"):
		return 3
	case f.ID == diag.Incomplete:
		return 2
	case f.ID == diag.Conflict || f.ID == diag.WrongValue && (!strings.HasPrefix(f.Message, "want ") || strings.Contains(f.Message, ", got ")):
		return 1 // CUE's own; a mismatch of types is often only the schema's sentinel
	}
	return 0
}

func echoes(path string, known map[string]bool) bool {
	for path != "" {
		if known[path] {
			return true
		}
		path = path[:max(strings.LastIndexByte(path, '.'), 0)]
	}
	return false
}

func convert(e cueerrors.Error, at sites) diag.Finding {
	path := dotted(e.Path())
	if i := strings.Index(path+".", ".Bad."); i >= 0 {
		path = path[:i] // the schema's own: what it has to complain of at the field before
	}
	format, args := e.Msg()
	f := diag.Finding{Path: path}
	said := fmt.Sprintf(format, args...)
	if m := inElement.FindStringSubmatch(said); m != nil { // the schema checks elements from their list
		path += "." + m[1]
		f.Path = path
		said = said[len(m[0]):]
	}
	f.ID, f.Message, f.Hint = explain(said, e.Path())

	if values, ok := strings.CutPrefix(f.Message, "want one of "); ok && at.text[path] != "" {
		if near := diag.Nearest(at.text[path], strings.Split(values, ", ")); near != "" {
			f.Hint = fmt.Sprintf("did you mean %q?", near)
		}
	}

	var author, schema []diag.Pos
	for _, p := range append(e.InputPositions(), e.Position()) {
		switch q := position(p); {
		case q.IsZero() || q.File == frameFile || q.File == stubsFile || slices.Contains(author, q) || slices.Contains(schema, q):
		case isSchema(q):
			schema = append(schema, q)
		default:
			author = append(author, q)
		}
	}
	switch p, exact := at.first[path]; {
	case exact:
		f.Pos = p
	case !at.near(path).IsZero():
		f.Pos = at.near(path)
	case len(author) > 0:
		f.Pos = author[len(author)-1]
	}
	for _, p := range author {
		// The same line is the same place: CUE names the value, we name the field.
		if p.File != f.Pos.File || p.Line != f.Pos.Line {
			f.Related = append(f.Related, p)
		}
	}
	f.Related = append(f.Related, schema...)
	sortRelated(f.Related)
	if f.Pos.IsZero() && len(schema) > 0 {
		f.Pos = schema[0]
	}
	return f
}

// sortRelated puts the author's places before the schema's.
func sortRelated(ps []diag.Pos) {
	slices.SortFunc(ps, func(a, b diag.Pos) int {
		sa, sb := 0, 0
		if isSchema(a) {
			sa = 1
		}
		if isSchema(b) {
			sb = 1
		}
		return cmp.Or(cmp.Compare(sa, sb), a.Compare(b))
	})
}

// dotted is a path of CUE's in the form of findings: without quotes.
func dotted(path []string) string {
	out := make([]string, len(path))
	for i, p := range path {
		out[i] = p
		if s, err := strconv.Unquote(p); err == nil && strings.HasPrefix(p, `"`) {
			out[i] = s
		}
	}
	return strings.Join(out, ".")
}

// explain says CUE's message in words that do not need CUE's theory.
func explain(msg string, path []string) (id, message, hint string) {
	msg, _, _ = strings.Cut(msg, "\n")
	msg = strings.TrimSuffix(strings.TrimSpace(msg), ":")
	field := ""
	if len(path) > 0 {
		field = strings.Trim(path[len(path)-1], `"`)
	}
	for _, r := range ruleIDs {
		if strings.HasPrefix(msg, r.prefix) {
			return r.id, msg, r.hint
		}
	}
	switch {
	case strings.HasPrefix(msg, "field not allowed"):
		known := policyShape
		for _, p := range path[:max(len(path)-1, 0)] {
			known = known.step(strings.Trim(p, `"`))
		}
		if known != nil && known.fields != nil {
			u := unknownField(strings.Split(dotted(path), "."), known.names(), diag.Pos{})
			return u.ID, u.Message, u.Hint
		}
		return diag.UnknownField, "unknown field " + field, ""
	case unused.MatchString(msg):
		return diag.Syntax, clip(msg), "remove the import, or use what it brings"
	case required.MatchString(msg):
		return diag.MissingField, fmt.Sprintf("%s is required", field), "add it"
	case notFound.MatchString(msg):
		name := notFound.FindStringSubmatch(msg)[1]
		return diag.Syntax, fmt.Sprintf("reference %q: nothing of that name is in this file's directory or above it", name),
			"strings need quotes; a name of another file's must be a hidden field (_name) or a definition (#Name)"
	case mismatched.MatchString(msg):
		m := mismatched.FindStringSubmatch(msg)
		a, b, ka, kb := m[1], m[2], m[3], m[4]
		if a == ka && a != "null" || strings.HasPrefix(a, "int &") { // the schema's side is the type
			a, b, ka, kb = b, a, kb, ka
		}
		got := "the " + ka + " " + a
		if a == ka { // null is all that it says
			got = a
		}
		return diag.WrongValue, clip(fmt.Sprintf("want %s, got %s", article(kb), got)), ""
	case outOfBound.MatchString(msg):
		m := outOfBound.FindStringSubmatch(msg)
		return diag.WrongValue, clip(fmt.Sprintf("%s is %s", m[1], m[2])), ""
	case conflict.MatchString(msg) && len(path) == 1 && field == "_env":
		return diag.WrongValue, clip("the repository has no such environment: " + msg), "name it in _env, in mesh.cue, or ask for one that stands there"
	case conflict.MatchString(msg):
		return diag.Conflict, clip(msg), "a field has one value: two places that write it, or a place and the schema, disagree"
	case alleles.MatchString(msg):
		return diag.WrongValue, "fits none of the allowed forms", ""
	case incomplete.MatchString(msg):
		return diag.Incomplete, clip("not a concrete value: " + msg), "give it one value; what is still open cannot be enforced"
	}
	return diag.SchemaRule, clip(msg), ""
}

func article(kind string) string {
	switch kind {
	case "int":
		return "an integer"
	case "struct":
		return "a struct {…}"
	case "list":
		return "a list […]"
	}
	return "a " + kind
}
