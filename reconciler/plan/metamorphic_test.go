package plan

import (
	"encoding/json"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// TestMetamorphic changes random documents in ways of which it is known beforehand what the plan must say.
func TestMetamorphic(t *testing.T) {
	tried := map[string]int{}
	for seed := range rounds(8) {
		a := author{rand.New(rand.NewPCG(uint64(seed), 99))}
		p, before, wasAt := a.valid(t, 0)
		side := &Side{Mesh: before, Origins: wasAt}
		o := Options{Now: authorNow}
		quiet := func(what string, q *v1alpha1.Policy) {
			after, at, _ := compiled(q)
			if after == nil {
				return
			}
			tried[what]++
			// An end that only another rule has now may come in other words; what calls do is what counts.
			for _, l := range append(Compare(side, &Side{Mesh: after, Origins: at}, o).Lines, Compare(&Side{Mesh: after, Origins: at}, side, o).Lines...) {
				t.Errorf("seed %d: %s: %+v", seed, what, l)
			}
		}
		quiet("the same", cloneOf(p))

		q := cloneOf(p)
		for ns := range q.Services {
			for n, s := range q.Services[ns] {
				for _, rules := range []map[string]v1alpha1.Rule{s.Allow, s.Deny} {
					for k, r := range rules {
						slices.Reverse(r.From)
						slices.Reverse(r.Paths)
						slices.Reverse(r.Methods)
						slices.Reverse(r.Ports)
						rules[k] = r
					}
				}
				q.Services[ns][n] = s
			}
		}
		quiet("another order of lists", q)

		// A rule about several callers is as many rules about one each; their names do not matter.
		q = cloneOf(p)
		for ns := range q.Services {
			for _, s := range q.Services[ns] {
				for _, rules := range []map[string]v1alpha1.Rule{s.Allow, s.Deny} {
					for _, k := range slices.Sorted(maps.Keys(rules)) {
						r := rules[k]
						if len(r.From) < 2 || r.Enforce != nil {
							continue
						}
						first, second := r, r
						first.From, second.From = r.From[:1], r.From[1:]
						delete(rules, k)
						rules[k+"-a"], rules[k+"-b"] = first, second
					}
				}
			}
		}
		quiet("rules that are split", q)

		// What is denied to everybody is not let in by one rule more. Where no allow rule was, its default is not asked either.
		for _, n := range authorServices {
			ns, local, _ := strings.Cut(string(n), "/")
			q := cloneOf(p)
			s := q.Services[ns][local]
			if s.Deny == nil {
				s.Deny = map[string]v1alpha1.Rule{}
			}
			s.Deny["everybody"] = v1alpha1.Rule{From: []v1alpha1.From{{Unauthenticated: true}}}
			q.Services[ns][local] = s
			shut, shutAt, _ := compiled(q)
			q = cloneOf(q)
			s = q.Services[ns][local]
			if s.Allow == nil {
				s.Allow = map[string]v1alpha1.Rule{}
			}
			s.Allow["more"] = v1alpha1.Rule{From: a.from(), Ports: []string{"http"}}
			q.Services[ns][local] = s
			more, moreAt, _ := compiled(q)
			if shut == nil || more == nil {
				continue
			}
			tried["in the shadow of a deny"]++
			for _, l := range Compare(&Side{Mesh: shut, Origins: shutAt}, &Side{Mesh: more, Origins: moreAt}, o).Lines {
				t.Errorf("seed %d: in the shadow of a deny: %+v", seed, l)
			}
		}

		// There and back again: what one way widens the other narrows, of the same callers and requests.
		r, after, isAt := a.document(t, func() *v1alpha1.Policy { return a.change(p, 0) })
		if r == nil {
			continue
		}
		there, back := Compare(side, &Side{Mesh: after, Origins: isAt}, o), Compare(&Side{Mesh: after, Origins: isAt}, side, o)
		mirror := func(p *Plan, risks ...Risk) (out []string) {
			for _, l := range p.Lines {
				if l.Kind == KindAccess && slices.Contains(risks, l.Risk) {
					out = append(out, strings.Join(l.From, " ")+" "+l.To+" "+strings.Join(l.Requests, " "))
				}
			}
			slices.Sort(out)
			return out
		}
		tried["there and back"]++
		if x, y := mirror(there, Widens), mirror(back, Narrows, Deletes); !slices.Equal(x, y) {
			t.Errorf("seed %d: there\n%s\nand back\n%s", seed, strings.Join(x, "\n"), strings.Join(y, "\n"))
		}

		// What a third document newly lets in was let in on the way, by one step or the other.
		third, last, lastAt := a.document(t, func() *v1alpha1.Policy { return a.change(r, 0) })
		if third == nil {
			continue
		}
		tried["by way of another"]++
		covers := func(p *Plan, call *decide.Call) bool {
			return slices.ContainsFunc(p.Lines, func(l Line) bool {
				if l.Kind != KindAccess || l.Risk != Widens || l.space == nil || l.To != string(call.Service)+":"+call.Port {
					return l.MayChange
				}
				k, err := l.space.Classify(call)
				return err == nil && l.cells[k]
			})
		}
		on := Compare(&Side{Mesh: after, Origins: isAt}, &Side{Mesh: last, Origins: lastAt}, o)
		for _, l := range Compare(side, &Side{Mesh: last, Origins: lastAt}, o).Lines {
			if l.Kind != KindAccess || l.Risk != Widens || l.Witness == nil {
				continue
			}
			if call := l.Witness.Call(); !covers(there, &call) && !covers(on, &call) {
				t.Errorf("seed %d: neither step has %+v", seed, l)
			}
		}

		renamed, renamedAfter := rename(t, before), rename(t, after)
		tried["renamed"]++
		x, y := Compare(&Side{Mesh: before}, &Side{Mesh: after}, o), Compare(&Side{Mesh: renamed}, &Side{Mesh: renamedAfter}, o)
		if len(x.Lines) != len(y.Lines) || len(x.Refused) != len(y.Refused) || x.Verdict() != y.Verdict() {
			t.Errorf("seed %d: with other names %d lines are %d: %s and %s", seed, len(x.Lines), len(y.Lines), x.Verdict(), y.Verdict())
		}
	}
	for _, what := range []string{"the same", "another order of lists", "rules that are split", "in the shadow of a deny", "there and back", "by way of another", "renamed"} {
		if tried[what] == 0 {
			t.Errorf("never tried: %s", what)
		}
	}
}

// rename gives a namespace another name, in which nothing changes its place in the order.
func rename(t *testing.T, m *mesh.Mesh) *mesh.Mesh {
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer(`"shop/`, `"shoq/`, `/ns/shop/`, `/ns/shoq/`, `"namespace":"shop"`, `"namespace":"shoq"`, ` shop/`, ` shoq/`, `/shop/`, `/shoq/`).Replace(string(b))
	out := &mesh.Mesh{}
	if err := json.Unmarshal([]byte(text), out); err != nil {
		t.Fatal(err)
	}
	return out
}
