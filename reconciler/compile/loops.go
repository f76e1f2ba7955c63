package compile

import (
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// hop is a port of a service.
type hop struct {
	service mesh.ServiceName
	port    string
}

// takesAll reports whether a route takes everything that comes to its port and no more specific one takes first.
func (r *route) takesAll() bool {
	switch {
	case r.broken || r.answered:
		return false
	case r.src.kind.field == tcpKind.field:
		return true
	case r.src.kind.field == tlsKind.field:
		return r.anyHost
	}
	last := r.matches[len(r.matches)-1] // what asks for nothing is the last in precedence
	if r.compiled.GRPC && r.port.protocol == mesh.GRPC {
		last.Method = "" // every call is a POST
	}
	return unconditional(last)
}

// checkLoops finds ports that hand every request on in a round; see the package's comment for what that means.
func (c *compiler) checkLoops(services []*service) {
	next := map[hop][]hop{}
	where := map[hop]path{}
	var order []hop
	for _, s := range services {
		if len(s.routes)+len(s.connections) == 0 {
			continue
		}
		for _, p := range s.ports {
			at := hop{s.name, p.name}
			keeps := false
			for _, routes := range [][]*route{s.routes, s.connections} {
				for _, r := range routes {
					if r.port != p {
						continue
					}
					var to []hop
					for _, b := range r.compiled.Backends {
						keeps = keeps || b.Weight > 0 && b.Service == s.name
						if b.Weight > 0 {
							to = append(to, hop{b.Service, b.Port})
						}
					}
					if next[at] == nil && r.takesAll() {
						next[at], where[at] = to, r.at.at("backends")
					}
				}
			}
			if keeps {
				delete(next, at)
			} else if len(next[at]) > 0 {
				order = append(order, at)
			}
		}
	}
	for {
		// What leads nowhere is in no round.
		for changed := true; changed; {
			changed = false
			for _, h := range order {
				to := slices.DeleteFunc(next[h], func(t hop) bool { return len(next[t]) == 0 })
				changed = changed || len(to) == 0 && len(next[h]) > 0
				next[h] = to
			}
		}
		order = slices.DeleteFunc(order, func(h hop) bool { return len(next[h]) == 0 })
		if len(order) == 0 {
			return
		}
		// From what is left every step leads on, so walking ends in a round.
		walk := []hop{order[0]}
		start := -1
		for start < 0 {
			to := next[walk[len(walk)-1]][0]
			start = slices.Index(walk, to)
			walk = append(walk, to)
		}
		round := walk[start : len(walk)-1]
		names, related := make([]string, 0, len(round)+1), []diag.Pos{}
		first := slices.IndexFunc(order, func(h hop) bool { return slices.Contains(round, h) })
		turn := slices.Index(round, order[first])
		round = slices.Concat(round[turn:], round[:turn])
		for i, h := range round {
			names = append(names, string(h.service))
			if i > 0 {
				related = append(related, c.pos(where[h]))
			}
			next[h] = nil
		}
		c.find(diag.RouteLoop, where[round[0]],
			"routes hand all requests round: "+strings.Join(append(names, names[0]), " → "),
			"routes are applied once, by the caller; let one of the services keep a share of its own requests", related...)
	}
}
