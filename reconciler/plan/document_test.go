package plan

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/reconciler/compile"
	"github.com/heddle-mesh/heddle/reconciler/reach"
	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// author writes policy documents at random, changes them, and makes calls of what they are about. What it writes is
// judged by nothing but package decide, so that a hole of the comparison shows whatever the hole is made of.
type author struct{ *rand.Rand }

func (a author) chance(percent int) bool { return a.IntN(100) < percent }
func oneOf[T any](a author, list ...T) T { return list[a.IntN(len(list))] }
func some2[T any](a author, list ...T) []T {
	list = slices.Clone(list)
	a.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list[:1+a.IntN(len(list))]
}

var (
	authorServices = []v1alpha1.ServiceName{"a/web", "a/we", "b/web", "b/db", "shop/cart"}
	authorCustom   = []v1alpha1.SpiffeID{"spiffe://mesh.example/custom/x", "spiffe://mesh.example/ns/a/sa/web2", "spiffe://mesh.example/ns/b/x/sa/web",
		"spiffe://mesh.example/x/ns/a/sa/web", "spiffe://mesh.example/custom/x/y"}
	authorEnds  = []string{"2026-05-01T00:00:00Z", "2026-06-01T00:00:00Z", "2025-01-01T00:00:00Z"}
	authorNow   = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	authorCIDRs = []v1alpha1.CIDR{"10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "2001:db8::/32", "2001:db8:1::/48", "0.0.0.0/0", "10.1.2.3/32"}
)

func ptr[T any](v T) *T { return &v }

func (a author) path() string {
	p := ""
	for range 1 + a.IntN(3) {
		p += "/" + oneOf(a, "a", "b", "c", "%20", "a%2Cb")
	}
	if a.chance(15) {
		p += "/"
	}
	return p
}

func (a author) rulePath() v1alpha1.RulePath {
	switch a.IntN(4) {
	case 0:
		return v1alpha1.RulePath{Exact: v1alpha1.Path(a.path())}
	case 1:
		return v1alpha1.RulePath{Template: oneOf(a, "/{x}", "/a/{x}", "/{x}/b", "/{x}/{y}", "/a/{x}/", "/b/{x}/c")}
	case 2:
		return v1alpha1.RulePath{Prefix: "/"}
	}
	return v1alpha1.RulePath{Prefix: v1alpha1.Path(strings.TrimSuffix(a.path(), "/"))}
}

func (a author) from() []v1alpha1.From {
	var out []v1alpha1.From
	for range 1 + a.IntN(2) {
		f := oneOf(a,
			v1alpha1.From{Service: oneOf(a, authorServices...)}, v1alpha1.From{Namespace: oneOf(a, v1alpha1.Label("a"), "b", "shop")},
			v1alpha1.From{Identity: oneOf(a, authorCustom...)}, v1alpha1.From{IdentityPrefix: oneOf(a, "spiffe://mesh.example/custom/", "spiffe://mesh.example/ns/", "spiffe://mesh.example/ns/a/sa/")},
			v1alpha1.From{IdentitySuffix: oneOf(a, "/web", "/sa/web", "/sa", "/ns/a/sa/web")}, v1alpha1.From{Authenticated: true}, v1alpha1.From{Unauthenticated: true})
		if !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}

func (a author) rule(s *v1alpha1.Service) v1alpha1.Rule {
	r := v1alpha1.Rule{From: a.from()}
	if a.chance(25) {
		r.Networks = []v1alpha1.Network{{Cidr: oneOf(a, authorCIDRs...)}}
		if r.Networks[0].Cidr == "10.0.0.0/8" && a.chance(60) {
			r.Networks[0].Except = []v1alpha1.CIDR{oneOf(a, authorCIDRs[1:3]...)}
		}
	}
	if a.chance(20) {
		r.Until = oneOf(a, authorEnds...)
	}
	if a.chance(8) {
		r.Enforce = ptr(false)
	}
	if a.chance(40) {
		r.Ports = some2(a, slices.Sorted(maps.Keys(s.Ports))...)
	}
	if len(s.HttpRoutes) > 0 && a.chance(20) {
		r.Routes = some2(a, slices.Sorted(maps.Keys(s.HttpRoutes))...)
		r.Ports = nil
	}
	if a.chance(25) {
		r.Methods = some2(a, v1alpha1.Method("GET"), "POST", "OPTIONS")
	}
	if a.chance(35) {
		r.Paths = []v1alpha1.RulePath{a.rulePath()}
		if p := a.rulePath(); p != r.Paths[0] && a.chance(50) {
			r.Paths = append(r.Paths, p)
		}
	}
	if a.chance(20) {
		r.Headers = map[string]v1alpha1.HeaderValue{oneOf(a, "x-a", "x-b"): oneOf(a, v1alpha1.HeaderValue{Exact: "1"}, v1alpha1.HeaderValue{OneOf: []string{"1", "2"}}, v1alpha1.HeaderValue{Present: true})}
	}
	if a.chance(15) {
		r.Jwt = &v1alpha1.JWTMatch{Issuer: oneOf(a, "idp", "other")}
		if a.chance(70) {
			r.Jwt.Claims = map[string][]string{oneOf(a, "groups", "role"): some2(a, "x", "y", "z")}
		}
	}
	if a.chance(5) {
		r.Sni = []string{oneOf(a, "*.example.org", "db.example.org")}
	}
	return r
}

func (a author) header() v1alpha1.HeaderMatch { return v1alpha1.HeaderMatch{Exact: oneOf(a, "1", "2")} }

func (a author) backends() []v1alpha1.Backend {
	list := some2(a, authorServices...)
	list = list[:min(len(list), 2)]
	out := make([]v1alpha1.Backend, len(list))
	for i := range list {
		out[i] = v1alpha1.Backend{Service: list[i], Port: "http"}
		if a.chance(20) {
			out[i].Filters = a.filters(false)
		}
	}
	if len(out) == 2 {
		w := oneOf[int64](a, 0, 10, 50, 100)
		out[0].Weight, out[1].Weight = ptr(w), ptr(100-w)
	}
	return out
}

func (a author) filters(whole bool) []v1alpha1.Filter {
	var out []v1alpha1.Filter
	for range 1 + a.IntN(2) {
		switch a.IntN(8) {
		case 0:
			out = append(out, v1alpha1.Filter{Rewrite: &v1alpha1.Rewrite{Path: &v1alpha1.PathEdit{Prefix: oneOf(a, v1alpha1.Path("/"), "/b", "/a/b", "/%20")}}})
		case 1:
			out = append(out, v1alpha1.Filter{Rewrite: &v1alpha1.Rewrite{Path: &v1alpha1.PathEdit{Full: oneOf(a, v1alpha1.Path("/a"), "/b/c")}}})
		case 2:
			out = append(out, v1alpha1.Filter{RequestHeaders: &v1alpha1.HeaderEdit{Set: map[string]string{"x-a": oneOf(a, "1", "2", "3")}}})
		case 3:
			out = append(out, v1alpha1.Filter{RequestHeaders: &v1alpha1.HeaderEdit{Remove: []string{"x-b"}}})
		case 4:
			out = append(out, v1alpha1.Filter{RequestHeaders: &v1alpha1.HeaderEdit{Add: map[string]string{"x-a": oneOf(a, "1", "2")}}})
		case 5:
			out = append(out, v1alpha1.Filter{Mirror: &v1alpha1.Mirror{Service: oneOf(a, authorServices...), Port: "http", Percent: ptr(oneOf(a, 100.0, 50, 0))}})
		case 6:
			if whole {
				return []v1alpha1.Filter{{Redirect: &v1alpha1.Redirect{Host: v1alpha1.Hostname(oneOf(a, "x.example", "y.example"))}}}
			}
		case 7:
			if whole {
				return []v1alpha1.Filter{oneOf(a, v1alpha1.Filter{Respond: &v1alpha1.DirectResponse{Status: oneOf[int64](a, 403, 404)}},
					v1alpha1.Filter{Cors: &v1alpha1.CORS{AllowOrigins: []string{"https://x.example"}}},
					v1alpha1.Filter{Fault: &v1alpha1.Fault{Abort: &v1alpha1.FaultAbort{Status: 503, Percent: oneOf(a, 100.0, 10)}}})}
			}
		}
	}
	return out
}

func (a author) route(regex int) v1alpha1.HTTPRoute {
	r := v1alpha1.HTTPRoute{Port: "http"}
	for range 1 + a.IntN(2) {
		m := v1alpha1.HTTPMatch{Path: &v1alpha1.PathMatch{Prefix: v1alpha1.Path(strings.TrimSuffix(a.path(), "/"))}}
		switch {
		case a.chance(20):
			m.Path = &v1alpha1.PathMatch{Exact: v1alpha1.Path(a.path())}
		case a.chance(20):
			m.Path = &v1alpha1.PathMatch{Prefix: "/"}
		case a.chance(regex):
			m.Path = &v1alpha1.PathMatch{Regex: oneOf(a, "/a/.*", "/[ab]", "/b/(a|c)")}
		}
		if a.chance(25) {
			m.Method = oneOf(a, v1alpha1.Method("GET"), "POST")
		}
		if a.chance(25) {
			m.Headers = map[string]v1alpha1.HeaderMatch{oneOf(a, "x-a", "x-b"): a.header()}
		}
		if a.chance(15) {
			m.Query = map[string]v1alpha1.HeaderMatch{"q": a.header()}
		}
		r.Match = append(r.Match, m)
	}
	if a.chance(60) {
		r.Backends = a.backends()
	}
	if a.chance(40) {
		r.Filters = a.filters(true)
		if f := r.Filters; len(f) > 0 && (f[0].Redirect != nil || f[0].Respond != nil) {
			r.Backends = nil
			return r
		}
	}
	if a.chance(20) {
		r.Timeout = oneOf(a, v1alpha1.Duration("1s"), "2s")
	}
	return r
}

func (a author) service(regex int) v1alpha1.Service {
	s := v1alpha1.Service{Ports: map[string]v1alpha1.Port{"http": {Port: 80, Protocol: oneOf(a, v1alpha1.Protocol("http1"), "http1", "detect")}}}
	if a.chance(30) {
		s.Ports[oneOf(a, "raw", "raw2")] = v1alpha1.Port{Port: v1alpha1.PortNumber(9000 + a.IntN(2)), Protocol: oneOf(a, v1alpha1.Protocol("tcp"), "opaque", "tls", "detect")}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Ports)) {
		p := s.Ports[name]
		if a.chance(30) {
			p.Mtls = oneOf(a, v1alpha1.MTLS("permissive"), "strict")
		}
		if a.chance(30) {
			p.InboundPolicy = oneOf(a, v1alpha1.InboundPolicy("all-authenticated"), "all-unauthenticated", "cluster-authenticated", "cluster-unauthenticated", "audit", "deny")
		}
		s.Ports[name] = p
	}
	if a.chance(40) {
		s.HttpRoutes = map[string]v1alpha1.HTTPRoute{}
		for i := range 1 + a.IntN(3) {
			s.HttpRoutes["r"+strconv.Itoa(i)] = a.route(regex)
		}
	}
	rules := func(most int) map[string]v1alpha1.Rule {
		out := map[string]v1alpha1.Rule{}
		for i := range a.IntN(most + 1) {
			out["k"+strconv.Itoa(i)] = a.rule(&s)
		}
		return out
	}
	s.Allow, s.Deny = rules(3), rules(2)
	if a.chance(10) {
		s.Audit = rules(1)
	}
	if a.chance(15) {
		s.Defaults = a.defaults()
	}
	return s
}

func (a author) defaults() *v1alpha1.Defaults {
	d := &v1alpha1.Defaults{}
	if a.chance(50) {
		d.InboundPolicy = oneOf(a, v1alpha1.InboundPolicy("all-authenticated"), "cluster-unauthenticated", "deny")
	}
	if a.chance(30) {
		d.Mtls = oneOf(a, v1alpha1.MTLS("permissive"), "strict")
	}
	if a.chance(20) {
		d.NonCanonicalPaths = "accept"
	}
	if a.chance(20) {
		d.Timeout = "5s"
	}
	return d
}

func (a author) policy(regex int) *v1alpha1.Policy {
	p := &v1alpha1.Policy{
		Mesh: &v1alpha1.Mesh{TrustDomain: "mesh.example", Defaults: a.defaults(), JwtIssuers: map[string]v1alpha1.JWTIssuer{
			"idp":   {Issuer: "https://idp.example", Audiences: []string{"mesh"}, JwksURL: "https://idp.example/keys"},
			"other": {Issuer: "https://other.example", Audiences: []string{"mesh"}, JwksURL: "https://other.example/keys"}}},
		Namespaces: map[string]v1alpha1.Namespace{}, Services: map[string]map[string]v1alpha1.Service{},
	}
	for _, n := range authorServices {
		ns, local, _ := strings.Cut(string(n), "/")
		if p.Services[ns] == nil {
			p.Services[ns] = map[string]v1alpha1.Service{}
		}
		p.Services[ns][local] = a.service(regex)
	}
	a.claim(p)
	a.calls(p, regex)
	return p
}

// claim gives some services identities of their own choice, each to one of them.
func (a author) claim(p *v1alpha1.Policy) {
	for _, id := range authorCustom {
		if !a.chance(30) {
			continue
		}
		ns, local, _ := strings.Cut(string(oneOf(a, authorServices...)), "/")
		s := p.Services[ns][local]
		if s.Ports == nil {
			continue
		}
		if len(s.Identities) == 0 && a.chance(50) {
			s.Identities = append(s.Identities, v1alpha1.SpiffeID("spiffe://mesh.example/ns/"+ns+"/sa/"+local))
		}
		s.Identities = append(s.Identities, id)
		p.Services[ns][local] = s
	}
}

func (a author) calls(p *v1alpha1.Policy, regex int) {
	for _, ns := range []string{"a", "b"} {
		if !a.chance(30) {
			delete(p.Namespaces, ns)
			continue
		}
		to := string(oneOf(a, authorServices...))
		if strings.HasPrefix(to, ns+"/") {
			continue
		}
		p.Namespaces[ns] = v1alpha1.Namespace{Calls: map[string]v1alpha1.Calls{to: {HttpRoutes: map[string]v1alpha1.HTTPRoute{"c0": a.route(regex)}}}}
	}
}

func cloneOf(p *v1alpha1.Policy) *v1alpha1.Policy {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err)
	}
	out := &v1alpha1.Policy{Namespaces: map[string]v1alpha1.Namespace{}, Services: map[string]map[string]v1alpha1.Service{}}
	if err := json.Unmarshal(b, out); err != nil {
		panic(err)
	}
	for _, ns := range []string{"a", "b", "shop"} {
		if out.Services[ns] == nil {
			out.Services[ns] = map[string]v1alpha1.Service{}
		}
	}
	return out
}

// change is a document after what one commit may do to it.
func (a author) change(p *v1alpha1.Policy, regex int) *v1alpha1.Policy {
	p = cloneOf(p)
	for range 1 + a.IntN(2) {
		name := oneOf(a, authorServices...)
		ns, local, _ := strings.Cut(string(name), "/")
		s := p.Services[ns][local]
		if s.Ports == nil {
			continue
		}
		drop := func(m map[string]v1alpha1.Rule) map[string]v1alpha1.Rule {
			if m == nil {
				m = map[string]v1alpha1.Rule{}
			}
			k := "k" + strconv.Itoa(a.IntN(3))
			if _, ok := m[k]; ok && a.chance(50) {
				delete(m, k)
			} else {
				m[k] = a.rule(&s)
			}
			return m
		}
		switch a.IntN(13) {
		case 0, 1, 2:
			s.Allow = drop(s.Allow)
		case 3, 4:
			s.Deny = drop(s.Deny)
		case 5, 6:
			if s.HttpRoutes == nil {
				s.HttpRoutes = map[string]v1alpha1.HTTPRoute{}
			}
			if k := "r" + strconv.Itoa(a.IntN(3)); a.chance(30) {
				delete(s.HttpRoutes, k)
			} else {
				s.HttpRoutes[k] = a.route(regex)
			}
		case 7:
			a.calls(p, regex)
		case 8:
			p.Mesh.Defaults = a.defaults()
		case 9:
			s = a.service(regex)
		case 10: // identities are shuffled
			for ns := range p.Services {
				for l, s := range p.Services[ns] {
					s.Identities = nil
					p.Services[ns][l] = s
				}
			}
			a.claim(p)
			continue
		case 11: // deleted, or moved
			delete(p.Services[ns], local)
			if a.chance(50) {
				to := oneOf(a, "a", "b", "shop")
				p.Services[to][local] = s
			}
			continue
		case 12: // a port's own values
			port := s.Ports["http"]
			port.Protocol, port.Mtls = oneOf(a, v1alpha1.Protocol("http1"), "detect"), oneOf(a, v1alpha1.MTLS("permissive"), "strict")
			port.InboundPolicy = oneOf(a, v1alpha1.InboundPolicy("all-authenticated"), "audit", "")
			s.Ports["http"] = port
		}
		p.Services[ns][local] = s
	}
	return p
}

// compiled is a document's mesh, or nil where it is refused.
func compiled(p *v1alpha1.Policy) (*mesh.Mesh, mesh.Origins, diag.List) {
	return compile.Compile(&v1alpha1.Document{Policy: *p, Positions: map[string]diag.Pos{}}, compile.Options{ProxyVersion: "any"})
}

// document is one that compiles, made of what the last one was.
func (a author) document(t *testing.T, next func() *v1alpha1.Policy) (*v1alpha1.Policy, *mesh.Mesh, mesh.Origins) {
	for range 200 {
		p := next()
		if m, at, _ := compiled(p); m != nil {
			return p, m, at
		}
	}
	return nil, nil, nil
}

// valid is a document of parts each of which compiles by itself.
func (a author) valid(t *testing.T, regex int) (*v1alpha1.Policy, *mesh.Mesh, mesh.Origins) {
	p := &v1alpha1.Policy{Mesh: a.policy(0).Mesh, Namespaces: map[string]v1alpha1.Namespace{}, Services: map[string]map[string]v1alpha1.Service{}}
	for _, n := range authorServices {
		ns, local, _ := strings.Cut(string(n), "/")
		if p.Services[ns] == nil {
			p.Services[ns] = map[string]v1alpha1.Service{}
		}
		p.Services[ns][local] = v1alpha1.Service{Ports: map[string]v1alpha1.Port{"http": {Port: 80, Protocol: "http1"}}}
	}
	for _, n := range authorServices {
		ns, local, _ := strings.Cut(string(n), "/")
		q, _, _ := a.document(t, func() *v1alpha1.Policy {
			q := cloneOf(p)
			q.Services[ns][local] = a.service(regex)
			return q
		})
		if q != nil {
			p = q
		}
	}
	for range 2 {
		if q, _, _ := a.document(t, func() *v1alpha1.Policy {
			q := cloneOf(p)
			a.claim(q)
			a.calls(q, regex)
			return q
		}); q != nil {
			p = q
		}
	}
	m, at, _ := compiled(p)
	return p, m, at
}

// caller is somebody who calls, with the namespace of the service that has the identity on each of two sides.
func (a author) caller(sides [2]*mesh.Mesh) (id string, ns [2]string) {
	var ids []string
	for _, m := range sides {
		for i := range m.Inbound {
			ids = append(ids, m.Inbound[i].Identities...)
		}
	}
	for _, c := range authorCustom {
		ids = append(ids, string(c))
	}
	ids = append(ids, "", "", "spiffe://mesh.example/ns/a/sa/stranger", "spiffe://mesh.example/ns/zzz/sa/web", "spiffe://mesh.example/q", "spiffe://mesh.example/ns/zzz/ns/a/sa/web",
		"spiffe://mesh.example/custom/q/sa/web", "spiffe://mesh.example/ns/b/sa")
	id = oneOf(a, ids...)
	for k, m := range sides {
		for i := range m.Inbound {
			if slices.Contains(m.Inbound[i].Identities, id) {
				ns[k] = m.Inbound[i].Service.Namespace()
			}
		}
	}
	if ns[0] == "" || ns[1] == "" { // who comes or goes is the same on both sides
		ns[0], ns[1] = ns[0]+ns[1], ns[0]+ns[1]
	}
	return id, ns
}

// call is a call to a port that one of the sides has.
func (a author) call(sides [2]*mesh.Mesh) (c [2]decide.Call) {
	in := &oneOf(a, sides[:]...).Inbound
	s := &(*in)[a.IntN(len(*in))]
	id, ns := a.caller(sides)
	r := decide.Request{Peer: id, HTTP: a.chance(85), Method: oneOf(a, "GET", "POST", "OPTIONS", "PUT", "get"),
		Addr: oneOf(a, netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.1.2.4"), netip.MustParseAddr("10.1.9.9"), netip.MustParseAddr("10.200.0.1"),
			netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8:1::9"), netip.MustParseAddr("2001:db8:2::9"), netip.MustParseAddr("::ffff:10.1.2.3"), netip.MustParseAddr("2a00::1"))}
	r.Now = authorNow
	if a.chance(40) {
		end, _ := time.Parse(time.RFC3339, oneOf(a, authorEnds[:2]...))
		r.Now = end.Add(oneOf(a, -1, 0, time.Hour))
	}
	if a.chance(30) {
		r.SNI = oneOf(a, "db.example.org", "x.example.org", "DB.example.org.", "a.invalid")
	}
	if r.HTTP {
		r.Path = a.path()
		switch a.IntN(12) {
		case 0:
			r.Path = "/"
		case 1:
			r.Path += "/z"
		case 2:
			r.Path = strings.ReplaceAll(r.Path, "a", "%61")
		case 3:
			if r.Method == "OPTIONS" {
				r.Path = "*"
			}
		}
		headers := map[string]string{}
		for _, h := range []string{"x-a", "x-b", "origin", "access-control-request-method"} {
			if a.chance(40) {
				headers[h] = oneOf(a, "1", "2", "", "9", "1,2")
			}
		}
		r.Header = func(n string) (string, bool) { v, ok := headers[n]; return v, ok }
		q, has := oneOf(a, "1", "2", ""), a.chance(50)
		r.Query = func(n string) (string, bool) { return q, has && n == "q" }
		tokens := map[string]map[string][]string{}
		for _, is := range []string{"idp", "other"} {
			if a.chance(50) {
				tokens[is] = map[string][]string{}
				for _, k := range []string{"groups", "role"} {
					if a.chance(50) {
						tokens[is][k] = some2(a, "x", "y", "z", "w")
					}
				}
			}
		}
		r.Claim = func(is, k string) ([]string, bool) {
			t, ok := tokens[is]
			if k == "" || !ok {
				return nil, ok
			}
			v, ok := t[k]
			return v, ok
		}
	}
	for k := range c {
		c[k] = decide.Call{Request: r, Service: s.Service, Port: s.Ports[a.IntN(len(s.Ports))].Name}
		c[k].Port = c[0].Port
		if id != "" && ns[k] != "" && ns[k] != mesh.PeerNamespace(id) {
			c[k].Namespace = ns[k]
		}
	}
	return c
}

// becomes says all that becomes of a call, for comparing: where it goes with which part, as what, and who lets it in.
func becomes(m *mesh.Mesh, c *decide.Call) (route, verdicts, settings string) {
	o := decide.Judge(m, c)
	route = fmt.Sprint(o.Handling, o.Status)
	total := map[bool]uint32{}
	parts := map[string]float64{}
	for i := range o.Shares {
		if !o.Shares[i].Mirror {
			total[false] += o.Shares[i].Weight
		}
	}
	total[true] = uint32(mesh.AllPPM)
	says := map[string]bool{}
	for i := range o.Shares {
		s := &o.Shares[i]
		k := fmt.Sprintf("%s:%s %v %d", s.Service, s.Port, s.Mirror, s.Status)
		if s.Status == 0 && s.Sees.HTTP && s.Sees.Path != c.Path { // that bytes are not looked into changes nothing
			k += " " + s.Sees.Path
		}
		parts[k] += float64(s.Weight) / float64(total[s.Mirror])
		if s.Status == 0 {
			says[k+" "+strconv.FormatBool(s.Allowed)] = true
		}
	}
	for _, k := range slices.Sorted(maps.Keys(parts)) {
		route += fmt.Sprintf("; %s %.6f", k, parts[k])
	}
	verdicts = strings.Join(slices.Sorted(maps.Keys(says)), "; ")
	if r := o.Route; o.Handling == decide.Sent {
		if r == nil {
			r = &mesh.Route{}
		}
		settings = string(mesh.Canonical([]any{r.Timeouts, r.Retry, r.Breaker, r.GRPC}))
		for i := range o.Shares {
			s := &o.Shares[i]
			for _, h := range []string{"x-a", "x-b", "host"} {
				if s.Sees.Header == nil || s.Mirror || s.Status != 0 || c.Header == nil {
					continue
				}
				was, had := c.Header(h)
				if v, ok := s.Sees.Header(h); v != was || ok != had {
					settings += fmt.Sprint(" ", s.Service, " ", h, " ", v, ok)
				}
			}
		}
	}
	return route, verdicts, settings
}

// lets is what a service's own door says.
func lets(m *mesh.Mesh, c *decide.Call) (allowed, there bool) {
	in, ok := m.InboundOf(c.Service)
	if !ok {
		return false, false
	}
	p, ok := in.Port(c.Port)
	if !ok {
		return false, false
	}
	r := decide.Seen(p.Protocol, c.Request)
	v, _ := decide.Admit(in, p, &r)
	return v.Allowed, true
}

// rounds is a count of pairs to try: few in every run, as many as are asked for by whoever hunts.
func rounds(few int) int {
	if n, err := strconv.Atoi(os.Getenv("HEDDLE_ROUNDS")); err == nil {
		return n
	}
	return few
}

// TestDocuments compares pairs of random documents, and finds every random call that the two judge or route differently
// in a line about it.
func TestDocuments(t *testing.T) {
	var pairs, differing, undecided, witnesses int
	for seed := range rounds(60) {
		a := author{rand.New(rand.NewPCG(uint64(seed), 77))}
		regex := 0
		if seed%5 == 0 {
			regex = 20
		}
		p, before, wasAt := a.valid(t, regex)
		if before == nil {
			t.Fatal("the author cannot write")
		}
		_, after, isAt := a.document(t, func() *v1alpha1.Policy { return a.change(p, regex) })
		if after == nil {
			continue
		}
		pairs++
		plan := Compare(&Side{Mesh: before, Origins: wasAt}, &Side{Mesh: after, Origins: isAt}, Options{Now: authorNow})
		show := func() string {
			b := strings.Builder{}
			plan.Text(&b, TextOptions{Full: true, Width: 200})
			q, _ := json.Marshal(before)
			r, _ := json.Marshal(after)
			os.WriteFile("/tmp/w1/before.json", q, 0o600)
			os.WriteFile("/tmp/w1/after.json", r, 0o600)
			return b.String()
		}
		sides := [2]*mesh.Mesh{before, after}
		for range 400 {
			c := a.call(sides)
			if c[0].HTTP && !decide.CanonicalPath(c[0].Path) {
				continue
			}
			to := string(c[0].Service) + ":" + c[0].Port
			about := func(fits func(*Line) bool) bool {
				return slices.ContainsFunc(slices.Concat(plan.Lines, plan.Refused), func(l Line) bool {
					if l.MayChange && l.To == to {
						undecided++
						return true
					}
					if l.To != to || !fits(&l) || l.space == nil {
						return false
					}
					k, err := l.space.Classify(&c[1])
					if err != nil && l.space.Regular() {
						return false // a line that may change is about it
					}
					if err != nil {
						t.Fatalf("seed %d: %v for %+v", seed, err, c)
					}
					return l.cells[k]
				})
			}
			x, xThere := lets(before, &c[0])
			y, yThere := lets(after, &c[1])
			if x != y {
				differing++
				risk := Widens
				if x {
					risk = Narrows
					if !yThere {
						risk = Deletes
					}
				}
				if !about(func(l *Line) bool { return l.Kind == KindAccess && l.Risk == risk }) {
					t.Fatalf("seed %d: %s is missed (%v %v): %+v\n%s", seed, risk, x, y, c[0], show())
				}
			}
			if !xThere || !yThere {
				continue
			}
			r0, v0, s0 := becomes(before, &c[0])
			r1, v1, s1 := becomes(after, &c[1])
			switch {
			case r0 != r1 || v0 != v1:
				differing++
				if !about(func(l *Line) bool { return l.Kind == KindCall || r0 == r1 && l.Kind == KindAccess }) {
					t.Fatalf("seed %d: a call is missed:\n%s %s\n%s %s\n%+v\n%s", seed, r0, v0, r1, v1, c[0], show())
				}
			case s0 != s1:
				differing++
				if !about(func(l *Line) bool { return l.Kind != KindAccess && l.Kind != KindCall }) {
					t.Fatalf("seed %d: settings are missed:\n%s\n%s\n%+v\n%s", seed, s0, s1, c[0], show())
				}
			}
		}
		for i := range plan.Lines {
			l := &plan.Lines[i]
			if l.Witness == nil || l.Kind != KindAccess && l.Kind != KindCall {
				continue
			}
			witnesses++
			w := l.Witness.Call()
			b, c := reach.NewCallers(before, after).Of(0, &w), reach.NewCallers(before, after).Of(1, &w)
			r0, v0, _ := becomes(before, &b)
			r1, v1, _ := becomes(after, &c)
			x, _ := lets(before, &w)
			y, _ := lets(after, &w)
			if l.Witness.Direct && x == y || !l.Witness.Direct && r0 == r1 && v0 == v1 {
				t.Fatalf("seed %d: no witness: %+v\n%s", seed, l, show())
			}
		}
	}
	t.Logf("%d pairs, %d calls that differ, %d under lines that may change, %d witnesses", pairs, differing, undecided, witnesses)
}
