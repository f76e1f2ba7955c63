package decide

import (
	"math/rand/v2"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

// truth is what a condition is worth where not everything is known.
type truth int

const (
	no truth = iota
	unknown
	yes
)

func certain(b bool) truth {
	if b {
		return yes
	}
	return no
}

// specified is Authorize as decisions.md (12, 15, 16, 36) has it in prose, written with other means: conditions have
// three values, and only the end of a rule's evaluation decides what unknown is worth.
func specified(in *mesh.Inbound, port *mesh.InboundPort, r *Request) Verdict {
	about := func(rule *mesh.Rule) bool { return len(rule.Ports) == 0 || slices.Contains(rule.Ports, port.Name) }
	over := func(rule *mesh.Rule) bool {
		return !rule.Until.IsZero() && (r.Now.After(rule.Until) || r.Now.Equal(rule.Until))
	}
	var deny, allow string
	guarded := false
	for i := range in.Rules {
		rule := &in.Rules[i]
		if !about(rule) || rule.Shadow {
			continue
		}
		switch rule.Action {
		case mesh.DenyRule:
			if t := worth(rule, port, r); !over(rule) && t != no && deny == "" {
				deny = rule.ID
			}
		case mesh.Allow:
			guarded = true
			if t := worth(rule, port, r); !over(rule) && t == yes && allow == "" {
				allow = rule.ID
			}
		}
	}
	if deny != "" {
		return Verdict{Rule: deny}
	}
	if allow != "" {
		return Verdict{Allowed: true, Rule: allow}
	}
	cluster := slices.ContainsFunc(in.ClusterNetworks, func(p netip.Prefix) bool { return p.Contains(r.Addr.Unmap()) })
	open := map[mesh.InboundMode]bool{mesh.AllAuthenticated: r.Peer != "", mesh.AllUnauthenticated: true, mesh.Audit: true,
		mesh.ClusterAuthenticated: r.Peer != "" && cluster, mesh.ClusterUnauthenticated: cluster}[port.Default]
	return Verdict{Allowed: open && !guarded, Rule: port.DefaultID, Default: true}
}

// worth is the conjunction of a rule's conditions.
func worth(rule *mesh.Rule, port *mesh.InboundPort, r *Request) truth {
	conditions := []truth{certain(slices.ContainsFunc(rule.From, func(p mesh.Peer) bool {
		_, idPath, _ := strings.Cut(strings.TrimPrefix(r.Peer, "spiffe://"), "/")
		return p.Unauthenticated || r.Peer != "" && (p.Authenticated || p.Identity == r.Peer ||
			p.Prefix != "" && strings.HasPrefix(r.Peer, p.Prefix) || p.Suffix != "" && strings.HasSuffix("/"+idPath, p.Suffix))
	}))}
	if rule.Networks != nil {
		t := unknown
		if r.Addr.IsValid() {
			t = certain(slices.ContainsFunc(rule.Networks, func(n mesh.Network) bool {
				return n.CIDR.Contains(r.Addr.Unmap()) && !slices.ContainsFunc(n.Except, func(e netip.Prefix) bool { return e.Contains(r.Addr.Unmap()) })
			}))
		}
		conditions = append(conditions, t)
	}
	if rule.SNI != nil {
		t := unknown
		if r.SNI != "" {
			t = certain(slices.ContainsFunc(rule.SNI, func(n string) bool {
				return n == r.SNI || strings.HasPrefix(n, "*") && strings.HasSuffix(r.SNI, n[1:])
			}))
		}
		conditions = append(conditions, t)
	}
	request := func(t func() truth) {
		if !r.HTTP {
			conditions = append(conditions, unknown)
		} else {
			conditions = append(conditions, t())
		}
	}
	if rule.Methods != nil {
		request(func() truth { return certain(slices.Contains(rule.Methods, r.Method)) })
	}
	if rule.Paths != nil {
		request(func() truth {
			return certain(slices.ContainsFunc(rule.Paths, func(m mesh.PathMatch) bool { return pathSpecified(m, r.Path) }))
		})
	}
	if rule.Headers != nil {
		request(func() truth { return fieldsSpecified(rule.Headers, r.Header) })
	}
	if rule.JWT != nil {
		request(func() truth {
			if _, valid := r.Claim(rule.JWT.Issuer, ""); !valid {
				return unknown
			}
			t := yes
			for _, c := range rule.JWT.Claims {
				values, there := r.Claim(rule.JWT.Issuer, c.Name)
				switch {
				case !there:
					t = min(t, unknown)
				default:
					t = min(t, certain(slices.ContainsFunc(values, func(v string) bool { return slices.Contains(c.Values, v) })))
				}
			}
			return t
		})
	}
	if rule.Routes != nil {
		request(func() truth {
			// The route that takes the request is that of the first match that holds. A deny rule reckons with matches of its
			// own that may hold; what another route surely takes is out of its reach.
			t := no
			for _, m := range port.Matches {
				w := certain(m.Method == "" || m.Method == r.Method)
				w = min(w, certain(pathSpecified(m.Path, r.Path)), fieldsSpecified(m.Headers, r.Header))
				if slices.Contains(rule.Routes, m.Route) {
					t = max(t, w)
				}
				if w == yes {
					break
				}
			}
			return t
		})
	}
	return slices.Min(conditions)
}

func fieldsSpecified(want []mesh.HeaderMatch, get func(string) (string, bool)) truth {
	t := yes
	for _, w := range want {
		v, there := get(w.Name)
		switch {
		case w.Present:
			t = min(t, certain(there))
		case !there:
			t = min(t, unknown)
		default:
			asked := append([]string{w.Exact}, w.OneOf...)
			switch one := certain(w.OneOf == nil && v == w.Exact || slices.Contains(w.OneOf, v)); {
			case one == no && slices.ContainsFunc(strings.Split(v, ","), func(e string) bool {
				return strings.TrimSpace(e) != "" && slices.Contains(asked, strings.TrimSpace(e))
			}):
				t = min(t, unknown)
			default:
				t = min(t, one)
			}
		}
	}
	return t
}

// pathSpecified compares what paths stand for, element by element.
func pathSpecified(m mesh.PathMatch, path string) bool {
	const any = "\x00"
	split := func(p string) []string {
		elements := strings.Split(p[1:], "/")
		for i := range elements {
			if m.Template == "" || !strings.HasPrefix(elements[i], "{") {
				elements[i], _ = url.PathUnescape(elements[i])
			} else {
				elements[i] = any
			}
		}
		return elements
	}
	switch {
	case m.Exact != "":
		return slices.Equal(split(m.Exact), split(path))
	case m.Prefix != "":
		if m.Prefix == "/" {
			return true
		}
		p, got := split(m.Prefix), split(path)
		return len(p) <= len(got) && slices.Equal(p, got[:len(p)])
	case m.Template != "":
		template := split(m.Template)
		m.Template = ""
		return slices.EqualFunc(template, split(path), func(t, e string) bool { return t == any && e != "" || t == e })
	}
	return true
}

// world draws rules and requests out of few words, so that they meet.
type world struct{ *rand.Rand }

func pick[T any](w world, from ...T) T { return from[w.IntN(len(from))] }

// some draws n elements of a list, none for n = 0.
func some[T any](w world, n int, from ...T) (out []T) {
	for range n {
		out = append(out, pick(w, from...))
	}
	return out
}

func (w world) path() string {
	var b strings.Builder
	for range 1 + w.IntN(3) {
		b.WriteString(pick(w, "/a", "/b", "/%61", "/caf%c3%a9", "/café"))
	}
	return b.String() + pick(w, "", "", "", "/")
}

func (w world) pathMatch() mesh.PathMatch {
	switch w.IntN(4) {
	case 0:
		return mesh.PathMatch{Exact: SpellPath(w.path())}
	case 1:
		return mesh.PathMatch{Prefix: strings.TrimSuffix(SpellPath(w.path()), "/")}
	case 2:
		return mesh.PathMatch{Template: pick(w, "/{x}", "/a/{x}", "/{x}/b", "/{x}/{y}", "/a/{x}/caf%C3%A9")}
	}
	return mesh.PathMatch{Prefix: "/"}
}

func (w world) headers(n int) (out []mesh.HeaderMatch) {
	for _, name := range []string{"x", "y"}[:n] {
		switch w.IntN(3) {
		case 0:
			out = append(out, mesh.HeaderMatch{Name: name, Exact: pick(w, "1", "2")})
		case 1:
			out = append(out, mesh.HeaderMatch{Name: name, OneOf: []string{"1", "3"}})
		default:
			out = append(out, mesh.HeaderMatch{Name: name, Present: true})
		}
	}
	return out
}

// rarely is n in one case of three, else 0.
func (w world) rarely(n int) int {
	if w.IntN(3) > 0 {
		return 0
	}
	return 1 + w.IntN(n)
}

func (w world) rule(id string) mesh.Rule {
	prefix := netip.MustParsePrefix
	r := mesh.Rule{
		ID: id, Action: pick(w, mesh.Allow, mesh.Allow, mesh.DenyRule, mesh.AuditRule), Shadow: w.IntN(6) == 0,
		From: some(w, 1+w.IntN(2), mesh.Peer{Identity: web}, mesh.Peer{Identity: guest}, mesh.Peer{Authenticated: true}, mesh.Peer{Unauthenticated: true},
			mesh.Peer{Prefix: "spiffe://corp.example/ns/shop/"}, mesh.Peer{Suffix: "/sa/web"}),
		Ports: some(w, w.rarely(1), "http", "tcp"),
		Networks: some(w, w.rarely(2), mesh.Network{CIDR: prefix("10.0.0.0/8"), Except: []netip.Prefix{prefix("10.1.0.0/16")}},
			mesh.Network{CIDR: prefix("2001:db8::/32")}),
		Methods: some(w, w.rarely(2), "GET", "POST"),
		Headers: w.headers(w.rarely(2)),
		SNI:     some(w, w.rarely(1)*w.IntN(2), "a.example", "*.example"),
		Routes:  some(w, w.rarely(2), "r1", "r2", "r3"),
		Until:   pick(w, time.Time{}, time.Time{}, before, noon, noon.Add(time.Second)),
	}
	for range w.rarely(2) {
		r.Paths = append(r.Paths, w.pathMatch())
	}
	if w.IntN(5) == 0 {
		r.JWT = &mesh.JWTMatch{Issuer: pick(w, "login", "other")}
		for _, name := range []string{"role", "tenant"}[:w.IntN(3)] {
			r.JWT.Claims = append(r.JWT.Claims, mesh.ClaimMatch{Name: name, Values: some(w, 1+w.IntN(2), "a", "b")})
		}
	}
	return r
}

func (w world) request() Request {
	r := Request{Peer: pick(w, "", web, guest, "spiffe://corp.example/ns/ops/sa/web"), Now: noon,
		Addr: pick(w, netip.Addr{}, netip.MustParseAddr("10.2.3.4"), netip.MustParseAddr("10.1.3.4"), netip.MustParseAddr("::ffff:10.2.3.4"),
			netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")),
		SNI: pick(w, "", "", "a.example", "b.a.example", "a.test")}
	fields, claims := map[string]string{}, map[string][]string{}
	for _, name := range []string{"x", "y"} {
		if w.IntN(3) > 0 {
			fields[name] = pick(w, "1", "2", "3", "", "1,2", "z, 3", "3,,1 ", ",")
		}
	}
	valid := pick(w, "", "login", "other")
	for _, name := range []string{"role", "tenant"} {
		if w.IntN(3) > 0 {
			claims[name] = some(w, w.IntN(3), "a", "b", "c")
		}
	}
	if w.IntN(5) > 0 {
		r.HTTP, r.Method, r.Path = true, pick(w, "GET", "POST"), w.path()
		r.Header = func(name string) (string, bool) { v, ok := fields[name]; return v, ok }
		r.Query = func(string) (string, bool) { return "", false }
		r.Claim = func(issuer, claim string) ([]string, bool) {
			if issuer != valid || claim == "" {
				return nil, issuer == valid
			}
			v, ok := claims[claim]
			return v, ok
		}
	}
	return r
}

// TestAuthorizeIsTheSpecification holds Authorize to the prose, over random rules and requests; and MayCall and Preview
// to Authorize.
func TestAuthorizeIsTheSpecification(t *testing.T) {
	verdicts := map[Verdict]int{}
	for seed := range uint64(4000) {
		w := world{rand.New(rand.NewPCG(seed, 15))}
		in := service(t, pick(w, mesh.Deny, mesh.AllAuthenticated, mesh.AllUnauthenticated, mesh.ClusterAuthenticated, mesh.ClusterUnauthenticated, mesh.Audit))
		in.ClusterNetworks = mesh.DefaultClusterNetworks
		port := &in.Ports[0]
		port.Matches = nil
		for range w.IntN(5) {
			m := mesh.Match{Route: pick(w, "r1", "r2", "r3"), Method: pick(w, "", "", "GET"), Headers: w.headers(w.rarely(1))}
			if w.IntN(3) > 0 {
				m.Path = w.pathMatch()
			}
			port.Matches = append(port.Matches, m)
		}
		for i := range w.IntN(6) {
			in.Rules = append(in.Rules, w.rule(string(rune('a'+i))))
		}
		for range 40 {
			r := w.request()
			got, want := Authorize(in, port, &r), specified(in, port, &r)
			if got != want {
				t.Fatalf("seed %d: %+v, the specification says %+v\nrequest: %+v\nrules: %+v\nmatches: %+v", seed, got, want, r, in.Rules, port.Matches)
			}
			if got.Allowed && !MayCall(in, r.Peer) {
				t.Fatalf("seed %d: %q is allowed something, and MayCall says no: %+v", seed, r.Peer, in.Rules)
			}
			enforced := *in
			enforced.Rules = slices.Clone(in.Rules)
			for i := range enforced.Rules {
				enforced.Rules[i].Shadow = false
			}
			if a, b := Preview(in, port, &r), Authorize(&enforced, port, &r); a != b {
				t.Fatalf("seed %d: Preview says %+v, enforcing says %+v", seed, a, b)
			}
			verdicts[Verdict{Allowed: got.Allowed, Default: got.Default}]++
		}
	}
	for _, v := range []Verdict{{}, {Allowed: true}, {Default: true}, {Allowed: true, Default: true}} {
		if verdicts[v] < 5000 {
			t.Errorf("the cases are lopsided: %v", verdicts)
		}
	}
}

// FuzzTemplates holds templates to the same specification, over any canonical path.
func FuzzTemplates(f *testing.F) {
	for _, p := range []string{"/", "/a", "/a/", "/a/b", "/%61/b", "/a/b/c", "/caf%C3%A9/x", "/{x}", "/%7Bx%7D", "*"} {
		f.Add(p, "/a/{x}")
		f.Add(p, "/{x}/b")
		f.Add(p, "/{x}/{y}")
		f.Add(p, "/{x}/caf%C3%A9/{y}/")
	}
	f.Fuzz(func(t *testing.T, path, template string) {
		if !CanonicalPath(path) || path == "*" || !strings.HasPrefix(template, "/") {
			return
		}
		elements := strings.Split(template[1:], "/")
		for i, e := range elements {
			if len(e) > 2 && e[0] == '{' && strings.IndexByte(e, '}') == len(e)-1 {
				continue
			}
			elements[i] = SpellPath(e)
		}
		template = "/" + strings.Join(elements, "/")
		if !CanonicalPath(strings.NewReplacer("{", "", "}", "").Replace(template)) {
			return
		}
		m := mesh.PathMatch{Template: template}
		if got, want := PathMatches(&m, path), pathSpecified(m, path); got != want {
			t.Fatalf("%q fills %q: %t", path, template, got)
		}
	})
}
