package plan

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// guards compares what judges commits and is no part of the mesh: mandates, delegation and expectations. A commit never
// authorises itself (decisions.md, 1): what it relaxes here holds for it still, and widens what the next one may do.
func (c *comparison) guards(before, after *v1alpha1.Document) {
	if before == nil || after == nil {
		return
	}
	g := &guards{c: c, before: before, after: after}
	g.mandates(settings(before).Mandates, settings(after).Mandates)
	g.sources(settings(before).Sources, settings(after).Sources)
	g.environments(settings(before).Environments, settings(after).Environments)
	g.tests(before.Policy.Tests, after.Policy.Tests)
}

type guards struct {
	c             *comparison
	before, after *v1alpha1.Document
}

func settings(d *v1alpha1.Document) *v1alpha1.Mesh {
	if d.Policy.Mesh == nil {
		return &v1alpha1.Mesh{}
	}
	return d.Policy.Mesh
}

// line adds a line about a field of the documents, unless both sides say the same of it.
func (g *guards) line(relaxed bool, subject, path, before, after string) {
	if before == after {
		return
	}
	l := Line{Risk: Neutral, Kind: KindGuard, Subject: subject, To: path, Before: before, After: after,
		WhereBefore: g.where(g.before, path), WhereAfter: g.where(g.after, path)}
	if relaxed {
		l.Risk = Widens
	}
	g.c.add(l)
}

// where is the field's line or, on the side that has none, that of the nearest field around it.
func (g *guards) where(d *v1alpha1.Document, path string) []Where {
	if pos := d.Pos(strings.Split(path, ".")...); !pos.IsZero() {
		return []Where{{ID: path, Pos: pos}}
	}
	return nil
}

const none = "none"

func orNone(s string) string {
	if s == "" {
		return none
	}
	return s
}

func (g *guards) mandates(b, a *v1alpha1.Mandates) {
	if b == nil {
		b = &v1alpha1.Mandates{}
	}
	if a == nil {
		a = &v1alpha1.Mandates{}
	}
	const at = "mesh.mandates."
	for _, m := range []struct{ field, was, is string }{
		{"mtls", b.Mtls, a.Mtls}, {"inboundPolicy", b.InboundPolicy, a.InboundPolicy}, {"egressPolicy", b.EgressPolicy, a.EgressPolicy},
	} {
		g.line(m.is == "", "mandate", at+m.field, orNone(m.was), orNone(m.is)) // each has one value
	}
	was, _ := time.ParseDuration(string(b.MaxTimeout))
	is, _ := time.ParseDuration(string(a.MaxTimeout))
	g.line(is == 0 || was > 0 && is > was, "mandate", at+"maxTimeout", duration(was), duration(is))
	tries := func(n *int64) string {
		if n == nil {
			return none
		}
		return fmt.Sprint(*n)
	}
	g.line(a.MaxRetries == nil || b.MaxRetries != nil && *a.MaxRetries > *b.MaxRetries, "mandate", at+"maxRetries", tries(b.MaxRetries), tries(a.MaxRetries))
	names := func(list []v1alpha1.ServiceName) []string {
		out := make([]string, len(list))
		for i := range list {
			out[i] = string(list[i])
		}
		slices.Sort(out)
		return out
	}
	before, after := names(b.Exempt), names(a.Exempt)
	g.line(!v1alpha1.Covers(before, after), "exempt from mandates", at+"exempt", orNone(strings.Join(before, " ")), orNone(strings.Join(after, " ")))
}

func (g *guards) sources(b, a map[string]v1alpha1.Source) {
	names := map[string]bool{}
	for n := range b {
		names[n] = true
	}
	for n := range a {
		names[n] = true
	}
	kinds := func(s *v1alpha1.Source) []string {
		if len(s.Kinds) == 0 {
			return v1alpha1.SourceKinds
		}
		return slices.Sorted(slices.Values(s.Kinds))
	}
	text := func(s *v1alpha1.Source, there bool) string {
		if !there {
			return none
		}
		from := s.Directory
		if s.Repository != "" {
			from = strings.TrimSpace(s.Repository + " " + s.Ref + " " + s.Directory)
		}
		return fmt.Sprintf("%s writes %s of %s", from, strings.Join(kinds(s), " "), strings.Join(slices.Sorted(slices.Values(s.Namespaces)), " "))
	}
	for _, n := range keys(names) {
		was, had := b[n]
		is, has := a[n]
		same := was.Repository == is.Repository && was.Ref == is.Ref && was.Directory == is.Directory
		tightened := !has || had && same && v1alpha1.Covers(was.Namespaces, is.Namespaces) && v1alpha1.Covers(kinds(&was), kinds(&is))
		g.line(!tightened, "delegation", "mesh.sources."+n, text(&was, had), text(&is, has))
	}
}

func (g *guards) environments(b, a []string) {
	b, a = slices.Sorted(slices.Values(b)), slices.Sorted(slices.Values(a))
	g.line(false, "environments", "mesh.environments", orNone(strings.Join(b, " ")), orNone(strings.Join(a, " ")))
}

// tests counts the expectations. That fewer of them hold lets nobody do more: what calls do by themselves has lines.
func (g *guards) tests(b, a map[string]v1alpha1.Test) {
	removed, changed, added := 0, 0, 0
	for n, was := range b {
		is, ok := a[n]
		switch {
		case !ok:
			removed++
		case string(mesh.Canonical(was)) != string(mesh.Canonical(is)):
			changed++
		}
	}
	for n := range a {
		if _, ok := b[n]; !ok {
			added++
		}
	}
	if removed+changed+added == 0 {
		return
	}
	words := []string{}
	for _, w := range []struct {
		n    int
		word string
	}{{removed, "removed"}, {changed, "changed"}, {added, "added"}} {
		if w.n > 0 {
			words = append(words, fmt.Sprintf("%d %s", w.n, w.word))
		}
	}
	g.line(false, "expectations", "tests", fmt.Sprint(len(b)), fmt.Sprintf("%d: %s", len(a), strings.Join(words, ", ")))
}

// invariants compares what must hold of the mesh.
func (c *comparison) invariants() {
	all := paired(c.before.Invariants, c.after.Invariants, func(v *mesh.Invariant) string { return v.ID })
	for _, id := range keys(all) {
		t := all[id]
		l := Line{Risk: Neutral, Kind: KindGuard, Subject: "invariant", To: strings.TrimPrefix(id, "invariants/")}
		if t.was != nil && !guardsAll(t.is, t.was) {
			l.Risk = Widens
		}
		c.value(l, invariantText(t.was), invariantText(t.is), !same(t.was, t.is), id)
	}
}

// guardsAll reports whether an invariant surely forbids all that another one does.
func guardsAll(wider, i *mesh.Invariant) bool {
	switch {
	case wider == nil:
		return false
	case i.AlwaysMTLS != nil:
		return wider.AlwaysMTLS != nil && aimsAt(wider.AlwaysMTLS, i.AlwaysMTLS)
	case i.Never != nil:
		return wider.Never != nil && aimsAt(&wider.Never.To, &i.Never.To) && (wider.Never.Anyone || !i.Never.Anyone && containsAll(wider.Never.From, i.Never.From))
	case i.Only != nil:
		return wider.Only != nil && aimsAt(&wider.Only.To, &i.Only.To) && (i.Only.Anyone || !wider.Only.Anyone && containsAll(i.Only.From, wider.Only.From))
	}
	return false
}

// aimsAt reports whether a target surely has all that another one has.
func aimsAt(wider, t *mesh.Target) bool {
	where := wider.Namespace == "" && len(wider.Services) == 0 ||
		wider.Namespace != "" && (t.Namespace == wider.Namespace || len(t.Services) > 0 && !slices.ContainsFunc(t.Services, func(n mesh.ServiceName) bool { return n.Namespace() != wider.Namespace })) ||
		len(wider.Services) > 0 && len(t.Services) > 0 && containsAll(wider.Services, t.Services)
	return where && widerList(wider.Ports, t.Ports) && widerList(wider.Methods, t.Methods) && widerList(wider.Paths, t.Paths)
}

// widerList is containsAll for lists of which an empty one stands for everything.
func widerList[T comparable](wider, list []T) bool {
	return len(wider) == 0 || len(list) > 0 && containsAll(wider, list)
}

func containsAll[T comparable](wider, list []T) bool {
	return !slices.ContainsFunc(list, func(v T) bool { return !slices.Contains(wider, v) })
}

// invariantText is what an invariant promises.
func invariantText(v *mesh.Invariant) string {
	target := func(t *mesh.Target) string {
		words := []string{"the mesh"}
		switch {
		case t.Namespace != "":
			words[0] = "namespace " + t.Namespace
		case len(t.Services) > 0:
			words = nil
			for _, n := range t.Services {
				words = append(words, string(n))
			}
		}
		s := strings.Join(words, " ")
		if len(t.Ports) > 0 {
			s += ", port " + strings.Join(t.Ports, " ")
		}
		if len(t.Methods) > 0 {
			s += ", " + strings.Join(t.Methods, "|")
		}
		for i := range t.Paths {
			p := &t.Paths[i]
			switch {
			case p.Prefix != "":
				s += ", " + strings.TrimSuffix(p.Prefix, "/") + "/*"
			default:
				s += ", " + p.Exact + p.Template
			}
		}
		return s
	}
	flow := func(f *mesh.Flow) string {
		if f.Anyone {
			return "anyone → " + target(&f.To)
		}
		var from []string
		for i := range f.From {
			switch p := &f.From[i]; {
			case p.Authenticated:
				from = append(from, "every mesh identity")
			case p.Unauthenticated:
				from = append(from, "callers without identity")
			case p.Prefix != "":
				from = append(from, p.Prefix+"*")
			default:
				from = append(from, p.Identity+p.Suffix)
			}
		}
		return strings.Join(from, " ") + " → " + target(&f.To)
	}
	switch {
	case v == nil:
		return "none"
	case v.Never != nil:
		return "never " + flow(v.Never)
	case v.Only != nil:
		return "only " + flow(v.Only)
	case v.AlwaysMTLS != nil:
		return "mTLS always, to " + target(v.AlwaysMTLS)
	}
	return "nothing"
}
