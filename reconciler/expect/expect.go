// Package expect answers questions about single calls: it turns a call as a person writes it into the one that sidecars
// would judge, asks package decide, and says in words which line decided. `heddle explain` and `heddle blame` ask so;
// and [Run] asks every expectation of a repository and compares the answers with what its authors expect.
//
// It is pure: no I/O and no clock. It must not import the other packages of the reconciler.
package expect

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// Result is what one expectation came to.
type Result struct {
	Name string   `json:"name"`
	Pos  diag.Pos `json:"pos,omitzero"`
	Pass bool     `json:"pass"`
	// Expected and Got are one line each, in the same form, so that they can be read one above the other. Got is empty
	// where the expectation is about nothing.
	Expected string `json:"expected"`
	Got      string `json:"got,omitempty"`
	// Because says what decided, or what is wrong with the expectation itself; Decided is the line of it, if there is one.
	Because string   `json:"because"`
	Decided diag.Pos `json:"decided,omitzero"`
}

// Run asks the expectations of a document of the mesh that was compiled from it, by name. Each that fails is a finding:
// TestFailed, or BadTest where it is about nothing. now is when they are asked that do not say when.
func Run(doc *v1alpha1.Document, m *mesh.Mesh, origins mesh.Origins, now time.Time) ([]Result, diag.List) {
	var findings diag.List
	results := make([]Result, 0, len(doc.Policy.Tests))
	issuers := []string{}
	if doc.Policy.Mesh != nil {
		issuers = slices.AppendSeq(issuers, maps.Keys(doc.Policy.Mesh.JwtIssuers))
		slices.Sort(issuers)
	}
	elsewhere := outside(m)
	for _, name := range slices.Sorted(maps.Keys(doc.Policy.Tests)) {
		t := doc.Policy.Tests[name]
		r := Result{Name: name, Pos: doc.Pos("tests", name), Expected: expected(&t)}
		if err := r.run(&t, m, origins, issuers, now, &elsewhere); err != nil {
			miss := new(Miss)
			if !errors.As(err, &miss) {
				miss = &Miss{Message: err.Error()}
			}
			r.Because = miss.Message
			at := append([]string{"tests", name}, strings.Split(miss.Field, ".")...)
			findings.Add(diag.Finding{ID: diag.BadTest, Path: strings.Join(at, "."), Message: miss.Message, Hint: miss.Hint, Pos: doc.Pos(at...)})
		} else if !r.Pass {
			f := diag.Finding{ID: diag.TestFailed, Path: "tests." + name, Pos: r.Pos,
				Message: fmt.Sprintf("expected %s, got %s: %s", r.Expected, r.Got, r.Because),
				Hint:    "mend the policy, or the expectation if the change is meant"}
			if !r.Decided.IsZero() {
				f.Related = []diag.Pos{r.Decided}
			}
			findings.Add(f)
		}
		results = append(results, r)
	}
	return results, findings.Sorted()
}

// run asks for every identity that the caller may have; the first that disagrees is the result.
func (r *Result) run(t *v1alpha1.Test, m *mesh.Mesh, origins mesh.Origins, issuers []string, now time.Time, elsewhere *netip.Addr) error {
	q, err := question(t, now)
	if err != nil {
		return err
	}
	q.elsewhere = elsewhere
	calls, err := Calls(m, q, issuers)
	if err != nil {
		return err
	}
	if err := about(t, m, &calls[0]); err != nil {
		return err
	}
	for i := range calls {
		a := Judge(m, origins, &calls[i])
		r.Got, r.Because, r.Decided = got(t, a), a.Reason, a.Pos
		r.Pass = r.Got == r.Expected
		if !r.Pass && len(calls) > 1 {
			r.Because += fmt.Sprintf(" (as %s)", calls[i].Peer)
		}
		if !r.Pass && t.Expect == a.Verdict && a.Route != nil { // the verdict is right, and the route is not
			r.Because, r.Decided = "route "+a.Route.ID, a.RoutePos
		}
		if !r.Pass {
			return nil
		}
	}
	return nil
}

// about checks that what is expected exists.
func about(t *v1alpha1.Test, m *mesh.Mesh, c *decide.Call) error {
	if t.Expect != Allow && t.Expect != Deny {
		return &Miss{"expect", fmt.Sprintf("%q cannot be expected", t.Expect), `write "allow" or "deny"`}
	}
	if t.Route != "" {
		var names []string
		if out, ok := m.OutboundOf(c.Service); ok {
			for i := range out.Routes {
				names = append(names, routeName(&out.Routes[i]))
			}
			for i := range out.Consumers {
				if ns := c.Namespace; out.Consumers[i].Namespace != ns && out.Consumers[i].Namespace != mesh.PeerNamespace(c.Peer) {
					continue
				}
				for j := range out.Consumers[i].Routes {
					names = append(names, routeName(&out.Consumers[i].Routes[j]))
				}
			}
		}
		names = slices.DeleteFunc(names, func(n string) bool { return n == "" })
		slices.Sort(names)
		if names = slices.Compact(names); !slices.Contains(names, t.Route) {
			return &Miss{"route", fmt.Sprintf("%s has no route %q", c.Service, t.Route), guess(t.Route, names, "leave it out: the service has no routes")}
		}
	}
	for i, b := range t.Backends {
		if _, ok := m.InboundOf(mesh.ServiceName(b)); !ok {
			miss := new(Miss)
			errors.As(unknownService(m, fmt.Sprintf("backends.%d", i), string(b)), &miss)
			return miss
		}
	}
	return nil
}

// routeName is the author's name of a route; a route that the compiler made has none.
func routeName(r *mesh.Route) string {
	for _, kind := range []string{"/httpRoutes/", "/grpcRoutes/", "/tlsRoutes/", "/tcpRoutes/"} {
		if _, name, ok := strings.Cut(r.ID, kind); ok {
			return name
		}
	}
	return ""
}

func expected(t *v1alpha1.Test) string {
	services := make([]string, 0, len(t.Backends))
	for _, b := range t.Backends {
		services = append(services, string(b))
	}
	return line(t.Expect, t.Route, services)
}

// got is an answer in the form of what was expected: it names a route and backends only where those were asked for.
func got(t *v1alpha1.Test, a *Answer) string {
	route := ""
	if t.Route != "" {
		route = "none"
		if a.Route != nil {
			route = cmp.Or(routeName(a.Route), a.Route.ID)
		}
	}
	var services []string
	if len(t.Backends) > 0 {
		for i := range a.Backends {
			if !a.Backends[i].Mirror {
				services = append(services, string(a.Backends[i].Service))
			}
		}
		if a.Route == nil && a.Service != "" {
			services = []string{string(a.Service)}
		}
		if len(services) == 0 {
			services = []string{"none"}
		}
	}
	return line(a.Verdict, route, services)
}

// line is a verdict with the route and the backends, sorted.
func line(verdict, route string, services []string) string {
	if route != "" {
		verdict += " by route " + route
	}
	if len(services) > 0 {
		slices.Sort(services)
		verdict += " to " + strings.Join(slices.Compact(services), ", ")
	}
	return verdict
}
