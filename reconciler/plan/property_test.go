package plan

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/reconciler/reach"
	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// The alphabets are small, so that conditions collide often; the requests use more than they have.
var (
	day0  = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	names = []mesh.ServiceName{"s/a", "s/b", "t/c", "t/d", "u/e"}
	words = []string{"a", "b", "a", "%20", "{x}"}
)

var pairsFlag = flag.Int("pairs", 2000, "how many pairs of meshes to compare")

type gen struct {
	*rand.Rand
	regex bool
}

func (g *gen) chance(percent int) bool { return g.IntN(100) < percent }

func pick[T any](g *gen, list ...T) T { return list[g.IntN(len(list))] }

func id(n mesh.ServiceName) string {
	if n == "u/e" {
		return "spiffe://mesh.example/vm/s/e" // one that does not say its namespace
	}
	return "spiffe://mesh.example/ns/" + n.Namespace() + "/sa/" + n.Local()
}

func (g *gen) path() string {
	n := g.IntN(4)
	if n == 0 {
		return "/"
	}
	var b strings.Builder
	for range n {
		b.WriteString("/" + pick(g, "a", "b", "a", "c", "%20"))
	}
	if g.chance(15) {
		b.WriteString("/")
	}
	return b.String()
}

func (g *gen) rulePath() mesh.PathMatch {
	p := g.path()
	switch g.IntN(3) {
	case 0:
		return mesh.PathMatch{Exact: p}
	case 1:
		return mesh.PathMatch{Prefix: prefixOf(p)}
	}
	var b strings.Builder
	for range 1 + g.IntN(3) {
		b.WriteString("/" + pick(g, words...))
	}
	return mesh.PathMatch{Template: b.String()}
}

func prefixOf(p string) string {
	if t := strings.TrimSuffix(p, "/"); t != "" {
		return t
	}
	return "/"
}

func (g *gen) peers(services []mesh.ServiceName) (out []mesh.Peer) {
	for range 1 + g.IntN(2) {
		switch g.IntN(9) {
		case 0:
			out = append(out, mesh.Peer{Authenticated: true})
		case 1:
			out = append(out, mesh.Peer{Unauthenticated: true})
		case 2:
			out = append(out, mesh.Peer{Prefix: pick(g, "spiffe://mesh.example/ns/s/", "spiffe://mesh.example/ns/t/", "spiffe://mesh.example/ns/", "spiffe://mesh.example/vm/", "spiffe://mesh.example/ns/s/sa/")})
		case 3:
			out = append(out, mesh.Peer{Suffix: pick(g, "/sa/a", "/a", "/s/sa/a", "/sa/c")})
		default:
			out = append(out, mesh.Peer{Identity: id(pick(g, services...))})
		}
	}
	return out
}

func (g *gen) header(route bool) mesh.HeaderMatch {
	h := mesh.HeaderMatch{Name: pick(g, "x", "y")}
	switch {
	case route && g.regex && g.chance(30):
		h.Regex = pick(g, "1|2", "[0-9]+", "v.*")
	case !route && g.chance(25):
		h.Present = true
	case !route && g.chance(30):
		h.OneOf = []string{"1", "3"}
	default:
		h.Exact = pick(g, "1", "2", "1,z", "1,z")
	}
	return h
}

func (g *gen) rule(services []mesh.ServiceName, name string, ports []mesh.InboundPort, routes []string) mesh.Rule {
	r := mesh.Rule{Action: pick(g, mesh.Allow, mesh.Allow, mesh.Allow, mesh.DenyRule, mesh.DenyRule, mesh.AuditRule), From: g.peers(services)}
	r.ID = name + "/" + string(r.Action) + "/" + pick(g, "p", "q", "r") + strconv.Itoa(g.IntN(2))
	if g.chance(30) {
		r.Ports = []string{ports[g.IntN(len(ports))].Name}
	}
	if g.chance(15) {
		n := mesh.Network{CIDR: netip.MustParsePrefix(pick(g, "10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "2001:db8::/32", "10.0.0.128/25"))}
		if g.chance(40) {
			n.Except = []netip.Prefix{netip.MustParsePrefix(pick(g, "10.1.0.0/16", "10.1.2.3/32", "10.0.0.0/9"))}
		}
		r.Networks = []mesh.Network{n}
	}
	if g.chance(25) {
		r.Methods = []string{pick(g, "GET", "POST")}
		if g.chance(30) {
			r.Methods = []string{"GET", "POST"}
		}
	}
	if g.chance(45) {
		for range 1 + g.IntN(2) {
			r.Paths = append(r.Paths, g.rulePath())
		}
	}
	if g.chance(20) {
		r.Headers = []mesh.HeaderMatch{g.header(false)}
	}
	if g.chance(10) {
		r.SNI = []string{pick(g, "a.example", "*.example", "*.b.example")}
	}
	if g.chance(15) {
		r.JWT = &mesh.JWTMatch{Issuer: pick(g, "corp", "ext")}
		for range g.IntN(2) {
			r.JWT.Claims = append(r.JWT.Claims, mesh.ClaimMatch{Name: pick(g, "group", "sub"), Values: pick(g, []string{"dev"}, []string{"dev", "ops"}, []string{"ops"})})
		}
	}
	if len(routes) > 0 && g.chance(25) {
		r.Routes = []string{pick(g, routes...)}
	}
	if g.chance(15) {
		r.Until = day0.AddDate(0, 0, pick(g, -3, 3, 5))
	}
	r.Shadow = g.chance(7)
	return r
}

func (g *gen) match(route string) mesh.Match {
	m := mesh.Match{Route: route}
	if g.chance(75) {
		if p := g.path(); g.chance(40) {
			m.Path.Exact = p
		} else {
			m.Path.Prefix = prefixOf(p)
		}
		if g.regex && g.chance(30) {
			m.Path = mesh.PathMatch{Regex: pick(g, "/a/[0-9]+", "/(a|b)/.*", "/a.*", "/b")}
		}
	}
	if g.chance(25) {
		m.Method = pick(g, "GET", "POST")
	}
	if g.chance(20) {
		m.Headers = []mesh.HeaderMatch{g.header(true)}
	}
	if g.chance(15) {
		m.Query = []mesh.HeaderMatch{{Name: "q", Exact: pick(g, "1", "2")}}
	}
	return m
}

func (g *gen) filters(services []mesh.ServiceName, backend bool) (out []mesh.Filter) {
	if !g.chance(35) {
		return nil
	}
	for range 1 + g.IntN(2) {
		f := mesh.Filter{}
		switch g.IntN(9) {
		case 0:
			f.RequestHeaders = &mesh.HeaderEdit{Add: []mesh.HeaderField{{Name: "x", Value: pick(g, "z", "z", "2")}}}
		case 1:
			f.RequestHeaders = &mesh.HeaderEdit{Set: []mesh.HeaderField{{Name: pick(g, "x", "y"), Value: pick(g, "1", "3")}}}
		case 2:
			f.RequestHeaders = &mesh.HeaderEdit{Remove: []string{pick(g, "x", "y")}}
		case 3:
			f.Rewrite = &mesh.Rewrite{Path: mesh.PathEdit{Full: g.path()}}
		case 4, 5:
			f.Rewrite = &mesh.Rewrite{Path: mesh.PathEdit{Prefix: prefixOf(g.path())}}
		case 6:
			f.Mirror = &mesh.Mirror{Service: pick(g, services...), Port: "http", Share: mesh.PPM(100_000 * (1 + g.IntN(3)))}
		case 7:
			f.CORS = &mesh.CORS{AllowOrigins: []string{"*"}}
		case 8:
			if backend || g.chance(50) {
				f.ResponseHeaders = &mesh.HeaderEdit{Remove: []string{"server"}}
			} else {
				f.Redirect = &mesh.Redirect{Status: 302, Host: pick(g, "a.example", "b.example")}
			}
		}
		out = append(out, f)
	}
	return out
}

func (g *gen) route(services []mesh.ServiceName, own mesh.ServiceName, id, port string) mesh.Route {
	r := mesh.Route{ID: id, Port: port, Filters: g.filters(services, false)}
	for range 1 + g.IntN(2) {
		b := mesh.Backend{Service: pick(g, append(slices.Clone(services), own, own)...), Port: "http", Weight: pick(g, uint32(0), 50, 50, 100), Filters: nil}
		if g.chance(20) {
			b.Filters = g.filters(services, true)
		}
		r.Backends = append(r.Backends, b)
	}
	if g.chance(30) {
		r.Timeouts.Request = time.Duration(1+g.IntN(2)) * time.Second
	}
	return r
}

// service makes one service anew.
func (g *gen) service(services []mesh.ServiceName, n mesh.ServiceName) (mesh.Inbound, mesh.Outbound) {
	in := mesh.Inbound{Service: n, Identities: []string{id(n)}}
	out := mesh.Outbound{Service: n, Identities: []string{id(n)}}
	ports := []string{"http"}
	if g.chance(35) {
		ports = append(ports, "other")
	}
	for i, p := range ports {
		protocol := pick(g, mesh.HTTP1, mesh.Detect)
		if p == "other" {
			protocol = pick(g, mesh.TCP, mesh.TLS, mesh.TLS, mesh.Detect)
		}
		in.Ports = append(in.Ports, mesh.InboundPort{Name: p, Port: uint16(80 + i), Protocol: protocol, MTLS: pick(g, mesh.Strict, mesh.Strict, mesh.Permissive),
			Default: pick(g, mesh.Deny, mesh.Deny, mesh.Deny, mesh.AllAuthenticated, mesh.AllUnauthenticated, mesh.ClusterAuthenticated, mesh.Audit), DefaultID: mesh.DefaultID(n, p)})
		out.Ports = append(out.Ports, mesh.OutboundPort{Name: p, Port: uint16(80 + i), Protocol: protocol})
	}
	in.ClusterNetworks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	var ids []string
	if g.chance(55) {
		for k := range 1 + g.IntN(2) {
			rid := fmt.Sprintf("%s/httpRoutes/r%d", n, k)
			ids = append(ids, rid)
			out.Routes = append(out.Routes, g.route(services, n, rid, "http"))
			for range 1 + g.IntN(2) {
				out.Ports[0].Matches = append(out.Ports[0].Matches, g.match(rid))
			}
		}
	}
	if len(ports) > 1 && out.Ports[1].Protocol == mesh.TLS && g.chance(60) {
		rid := string(n) + "/tlsRoutes/h"
		r := g.route(services, n, rid, "other")
		r.Filters = nil
		for i := range r.Backends {
			r.Backends[i].Port, r.Backends[i].Filters = "other", nil
		}
		out.Routes = append(out.Routes, r)
		out.Ports[1].Hosts = []mesh.HostMatch{{Route: rid, Name: pick(g, "a.example", "*.example", "")}}
	}
	if g.chance(20) {
		ns := pick(g, "s", "t", "u")
		rid := ns + "/calls/" + string(n) + "/httpRoutes/c"
		c := mesh.Consumer{Namespace: ns, Routes: []mesh.Route{g.route(services, n, rid, "http")}}
		p := out.Ports[0]
		p.Matches = []mesh.Match{g.match(rid)}
		c.Ports = []mesh.OutboundPort{p}
		out.Consumers = []mesh.Consumer{c}
	}
	for range g.IntN(4) {
		in.Rules = append(in.Rules, g.rule(services, string(n), in.Ports, ids))
	}
	slices.SortFunc(in.Rules, func(a, b mesh.Rule) int { return strings.Compare(a.ID, b.ID) })
	in.Rules = slices.CompactFunc(in.Rules, func(a, b mesh.Rule) bool { return a.ID == b.ID })
	g.finish(&in, &out)
	return in, out
}

// finish sets what the compiler derives.
func (g *gen) finish(in *mesh.Inbound, out *mesh.Outbound) {
	for i := range in.Ports {
		p := &in.Ports[i]
		p.Matches, p.CanonicalPaths = nil, false
		for j := range in.Rules {
			r := &in.Rules[j]
			if !decide.OnPort(r, p.Name) {
				continue
			}
			if len(r.Routes) > 0 {
				p.Matches = out.Ports[i].Matches
			}
			p.CanonicalPaths = p.CanonicalPaths || len(r.Paths) > 0 || len(r.Routes) > 0
		}
	}
}

func (g *gen) mesh() *mesh.Mesh {
	m := &mesh.Mesh{Settings: mesh.Settings{TrustDomain: "mesh.example"}}
	services := names[:3+g.IntN(3)]
	for _, n := range services {
		in, out := g.service(services, n)
		m.Inbound, m.Outbound = append(m.Inbound, in), append(m.Outbound, out)
	}
	return m
}

func clone(m *mesh.Mesh) *mesh.Mesh {
	out := &mesh.Mesh{}
	if err := mesh.Decode(mesh.Canonical(m), out); err != nil {
		panic(err)
	}
	return out
}

// change makes a few small changes, or makes one service anew.
func (g *gen) change(m *mesh.Mesh) *mesh.Mesh {
	m = clone(m)
	services := make([]mesh.ServiceName, len(m.Inbound))
	for i := range m.Inbound {
		services[i] = m.Inbound[i].Service
	}
	for range 1 + g.IntN(2) {
		i := g.IntN(len(m.Inbound))
		in, out := &m.Inbound[i], &m.Outbound[i]
		var ids []string
		for _, r := range out.Routes {
			if r.Port == "http" {
				ids = append(ids, r.ID)
			}
		}
		switch k := g.IntN(11); {
		case k == 0:
			*in, *out = g.service(services, in.Service)
		case k == 1 && len(m.Inbound) > 3:
			m.Inbound, m.Outbound = slices.Delete(m.Inbound, i, i+1), slices.Delete(m.Outbound, i, i+1)
			continue
		case k <= 3:
			r := g.rule(services, string(in.Service), in.Ports, ids)
			in.Rules = slices.DeleteFunc(in.Rules, func(o mesh.Rule) bool { return o.ID == r.ID })
			in.Rules = append(in.Rules, r)
			slices.SortFunc(in.Rules, func(a, b mesh.Rule) int { return strings.Compare(a.ID, b.ID) })
		case k == 4 && len(in.Rules) > 0:
			in.Rules = slices.Delete(in.Rules, 0, 1)
		case k <= 6 && len(in.Rules) > 0:
			r := &in.Rules[g.IntN(len(in.Rules))]
			fresh := g.rule(services, string(in.Service), in.Ports, ids)
			switch g.IntN(6) {
			case 0:
				r.Paths = fresh.Paths
			case 1:
				r.From = fresh.From
			case 2:
				r.Headers = fresh.Headers
			case 3:
				r.Until = fresh.Until
			case 4:
				r.Networks, r.JWT = fresh.Networks, fresh.JWT
			case 5:
				r.Methods, r.SNI = fresh.Methods, fresh.SNI
			}
		case k == 7:
			in.Ports[0].MTLS, in.Ports[0].Default = pick(g, mesh.Strict, mesh.Permissive), pick(g, mesh.Deny, mesh.AllAuthenticated, mesh.ClusterUnauthenticated)
		case len(out.Routes) > 0:
			r := &out.Routes[g.IntN(len(out.Routes))]
			fresh := g.route(services, in.Service, r.ID, r.Port)
			switch g.IntN(5) {
			case 0:
				if r.Port == "http" {
					r.Filters = fresh.Filters
				}
			case 1:
				r.Backends[0].Weight = fresh.Backends[0].Weight
			case 2:
				r.Backends[0].Service = fresh.Backends[0].Service
			case 3:
				r.Timeouts = fresh.Timeouts
			case 4:
				if len(out.Ports[0].Matches) > 0 {
					out.Ports[0].Matches[0] = g.match(out.Ports[0].Matches[0].Route)
				}
			}
		}
		g.finish(in, out)
	}
	return m
}

// call is any call: of declared callers and others, with values that policy names and others.
func (g *gen) call(m *mesh.Mesh, both ...*mesh.Mesh) *decide.Call {
	in := &m.Inbound[g.IntN(len(m.Inbound))]
	w := &reach.Witness{To: in.Service, Port: pick(g, "http", "http", "other"), HTTP: g.chance(85), Method: pick(g, "GET", "POST", "OPTIONS", "PUT"), Path: g.path()}
	w.Identity = pick(g, "", id("s/a"), id("s/b"), id("t/c"), id("t/d"), id("u/e"), "spiffe://mesh.example/ns/s/sa/zz", "spiffe://mesh.example/ns/t/sa/a", "spiffe://mesh.example/ns/zz/sa/zz",
		"spiffe://mesh.example/zz", "spiffe://mesh.example/vm/a", "spiffe://mesh.example/vm/s/sa/a", "spiffe://mesh.example/vm/ns/s/sa/a")
	for _, m := range both {
		if _, ok := m.InboundOf("u/e"); ok && w.Identity == id("u/e") {
			w.Namespace = "u"
		}
	}
	if g.chance(10) {
		w.Path = pick(g, "*", "/a/zz", "/%61/b", "/a/b/c/a/b", "/zz", "/a/12", "/%61", "/a/")
		if w.Path == "*" {
			w.Method = "OPTIONS"
		}
	}
	w.Headers, w.Query, w.Tokens = map[string]string{}, map[string]string{}, map[string]map[string][]string{}
	for _, h := range []string{"x", "y"} {
		if g.chance(50) {
			w.Headers[h] = pick(g, "1", "2", "3", "1,z", "1, 2", "3,v9,2", "zz", "v9", "", "77")
		}
	}
	if w.Method == "OPTIONS" && g.chance(40) {
		w.Headers["origin"], w.Headers["access-control-request-method"] = "https://a.example", "GET"
	}
	if g.chance(50) {
		w.Query["q"] = pick(g, "1", "2", "zz")
	}
	for _, issuer := range []string{"corp", "ext"} {
		if g.chance(50) {
			w.Tokens[issuer] = map[string][]string{}
			for _, claim := range []string{"group", "sub"} {
				if g.chance(60) {
					w.Tokens[issuer][claim] = pick(g, []string{"dev"}, []string{"ops"}, []string{"zz"}, []string{"dev", "ops"}, []string{}, []string{"zz", "ops"})
				}
			}
		}
	}
	w.Address = netip.MustParseAddr(pick(g, "10.1.2.3", "10.1.2.4", "10.200.0.1", "10.0.0.200", "10.0.0.1", "11.0.0.1", "2001:db8::5", "fe80::1", "9.255.255.255", "::ffff:10.1.9.9"))
	w.SNI = pick(g, "", "a.example", "zz.example", "x.b.example", "b.example", "zz.test", "A.Example.")
	w.At = day0.AddDate(0, 0, pick(g, 0, 0, 3, 4, 5, 9))
	c := w.Call()
	return &c
}

// look is an outcome as an outsider would compare it, written apart from the code under test.
func look(o *decide.Outcome, path string) string {
	total := new(big.Rat)
	for _, s := range o.Shares {
		if !s.Mirror {
			total.Add(total, new(big.Rat).SetInt64(int64(s.Weight)))
		}
	}
	sum := map[string]*big.Rat{}
	for _, s := range o.Shares {
		w := new(big.Rat).SetInt64(int64(s.Weight))
		if !s.Mirror {
			w.Quo(w, total)
		}
		k := fmt.Sprint(s.Service, s.Port, s.Mirror, s.Status, " ", s.Allowed)
		if s.Status == 0 && s.Sees.HTTP && s.Sees.Path != path {
			k += s.Sees.Path
		}
		if s.Mirror { // each copy is one
			k += w.String()
		}
		if sum[k] == nil {
			sum[k] = new(big.Rat)
		}
		sum[k].Add(sum[k], w)
	}
	b, _ := json.Marshal(sum)
	route := &mesh.Route{}
	if o.Route != nil && o.Handling != decide.Unroutable {
		route = o.Route
	}
	if o.Handling == decide.Answered { // the rest of the route never comes to pass
		route = &mesh.Route{Filters: route.Filters}
	}
	edits, all, some := map[string]*big.Rat{}, new(big.Rat), false
	for _, b := range route.Backends {
		all.Add(all, new(big.Rat).SetInt64(int64(b.Weight)))
	}
	for _, b := range route.Backends {
		if b.Weight > 0 {
			some = some || len(b.Filters) > 0
			f, _ := json.Marshal([]any{b.Service, b.Filters})
			if edits[string(f)] == nil {
				edits[string(f)] = new(big.Rat)
			}
			w := new(big.Rat).SetInt64(int64(b.Weight))
			edits[string(f)].Add(edits[string(f)], w.Quo(w, all))
		}
	}
	if !some || o.Handling != decide.Sent {
		edits = nil
	}
	p, _ := json.Marshal([]any{route.Timeouts, route.Retry, route.Filters, edits})
	return fmt.Sprint(o.Handling, o.Status, string(b), string(p))
}

// door is what a service's own sidecar says.
func door(m *mesh.Mesh, c *decide.Call) bool {
	in, ok := m.InboundOf(c.Service)
	if !ok {
		return false
	}
	p, ok := in.Port(c.Port)
	if !ok {
		return false
	}
	r := decide.Seen(p.Protocol, c.Request)
	v, _ := decide.Admit(in, p, &r)
	return v.Allowed
}

func show(t *testing.T, b, a *mesh.Mesh) string {
	t.Helper()
	x, _ := json.MarshalIndent([]any{b.Inbound, b.Outbound}, "", " ")
	y, _ := json.MarshalIndent([]any{a.Inbound, a.Outbound}, "", " ")
	dir := os.Getenv("HEDDLE_PLAN_SHOW")
	if dir != "" {
		_ = os.WriteFile(dir+"/before.json", x, 0o600)
		_ = os.WriteFile(dir+"/after.json", y, 0o600)
	}
	return "set HEDDLE_PLAN_SHOW to a directory to see the two meshes"
}

// TestAgainstBruteForce compares random pairs of meshes and holds the plan against random calls: a call that the two
// sides judge or route otherwise is in a class of a line for its destination, every line's witness is real, and where
// there is no line there is no difference.
func TestAgainstBruteForce(t *testing.T) {
	pairs, calls := *pairsFlag, 100
	if testing.Short() {
		pairs = 300
	}
	differing, lines, refusals, may, quiet := 0, 0, 0, 0, 0
	for seed := range pairs {
		g := &gen{Rand: rand.New(rand.NewPCG(uint64(seed), 3)), regex: seed%4 == 3}
		b := g.mesh()
		a := g.change(b)
		if g.chance(10) {
			a = g.mesh()
		}
		p := Compare(&Side{Mesh: b}, &Side{Mesh: a}, Options{Now: day0})
		byTo := map[string][]*Line{}
		for i := range p.Lines {
			l := &p.Lines[i]
			byTo[l.To] = append(byTo[l.To], l)
			lines++
			checkWitness(t, seed, b, a, l)
		}
		for i := range p.Refused {
			l := &p.Refused[i]
			byTo[l.To] = append(byTo[l.To], l)
			refusals++
			checkWitness(t, seed, b, a, l)
			c := l.Witness.Call()
			ob, oa := decide.Judge(b, &c), decide.Judge(a, &c)
			if ob.Allowed() || oa.Allowed() {
				t.Fatalf("seed %d: %s is said to be refused on both sides", seed, l.Witness.Command())
			}
		}
		if len(p.Lines) == 0 {
			quiet++
		}
		for k := range calls {
			c := g.call(pick(g, b, a), b, a)
			ob, oa := decide.Judge(b, c), decide.Judge(a, c)
			if look(&ob, c.Path) == look(&oa, c.Path) && door(b, c) == door(a, c) {
				continue
			}
			if c.HTTP && !decide.CanonicalPath(c.Path) {
				continue
			}
			differing++
			to := string(c.Service) + ":" + c.Port
			covered, undecided := false, false
			if ob.Handling == decide.Unknown || oa.Handling == decide.Unknown { // the service or the port came or went
				said := func(l *Line) bool { return l.Kind == KindService || l.Kind == KindPort }
				lists := append(slices.Clone(byTo[string(c.Service)]), byTo[to]...)
				covered = slices.ContainsFunc(lists, said) && door(b, c) == door(a, c)
			}
			var why error
			for _, l := range byTo[to] {
				if l.MayChange {
					undecided = true
					continue
				}
				if l.space == nil {
					continue
				}
				key, err := l.space.Classify(c)
				if err != nil {
					why = err
					continue
				}
				covered = covered || l.cells[key]
			}
			if covered {
				continue
			}
			if undecided {
				may++
				continue
			}
			t.Fatalf("seed %d, call %d: no line of %d for %s covers %s %q %q from %q at %s: %v\nbefore %s %t\nafter  %s %t\n%s", seed, k, len(byTo[to]), to, c.Method, c.Path, c.SNI, c.Peer, c.Now, why,
				look(&ob, c.Path), door(b, c), look(&oa, c.Path), door(a, c), show(t, b, a))
		}
	}
	t.Logf("%d pairs: %d lines, %d about refused calls, %d differing calls (%d in lines that may change), %d pairs without a line",
		pairs, lines, refusals, differing, may, quiet)
	if differing < 5*pairs || quiet == 0 || lines < pairs || refusals < pairs/10 {
		t.Errorf("the cases are lopsided")
	}
	if may*10 > differing {
		t.Errorf("too much is left undecided")
	}
}

// checkWitness runs a line's witness on both sides.
func checkWitness(t *testing.T, seed int, b, a *mesh.Mesh, l *Line) {
	t.Helper()
	if l.Witness == nil {
		if (l.Kind == KindAccess || l.Kind == KindCall || l.Kind == KindTimeout) && !l.MayChange {
			t.Fatalf("seed %d: no witness for %+v", seed, l)
		}
		return
	}
	c := l.Witness.Call()
	if l.Kind == KindAccess || l.Kind == KindEncryption {
		was, is := door(b, &c), door(a, &c)
		if was == is || l.Kind == KindAccess && (was != (l.Before == "allowed") || is != (l.After == "allowed")) {
			t.Fatalf("seed %d: %s says %q → %q, and decide %t → %t", seed, l.Witness.Command(), l.Before, l.After, was, is)
		}
		ob, oa := decide.Judge(b, &c), decide.Judge(a, &c)
		if l.Kind == KindAccess && !l.Witness.Direct && (ob.Allowed() != was || oa.Allowed() != is) {
			t.Fatalf("seed %d: %s says %q → %q, and that is only so at the service's own door", seed, l.Witness.Command(), l.Before, l.After)
		}
		return
	}
	ob, oa := decide.Judge(b, &c), decide.Judge(a, &c)
	if look(&ob, c.Path) == look(&oa, c.Path) {
		t.Fatalf("seed %d: %s is the same on both sides: %s\nof %s: %q → %q\n%s", seed, l.Witness.Command(), look(&ob, c.Path), l.title(9), l.Before, l.After, show(t, b, a))
	}
}
