package assign

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/controlplane/inventory"
	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
	"github.com/heddle-mesh/heddle/schema/release"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

func identity(i int) string { return fmt.Sprintf("spiffe://mesh.test/ns/n/sa/s%d", i) }

// Beginnings and ends of the identities that random names, and of none.
var (
	prefixes = []string{identity(1)[:strings.LastIndexByte(identity(1), '/')+1], "spiffe://mesh.test/none/"}
	suffixes = []string{identity(2)[strings.LastIndexByte(identity(2), '/'):], "/none"}
)

// What rules of random go by besides.
var (
	near = mesh.Network{CIDR: netip.MustParsePrefix("10.0.0.0/8"), Except: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}}
	noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
)

// random makes a mesh with every kind of rule, port default and backend.
func random(r *rand.Rand, services int) (*mesh.Mesh, mesh.Origins) {
	m, origins := &mesh.Mesh{Settings: mesh.Settings{TrustDomain: "mesh.test"}}, mesh.Origins{}
	var names []mesh.ServiceName
	for i := range services {
		names = append(names, mesh.Name(fmt.Sprintf("n%d", i%3), fmt.Sprintf("s%d", i)))
	}
	slices.Sort(names)
	for i, n := range names {
		in := mesh.Inbound{Service: n, Identities: []string{identity(i)}}
		for _, p := range []string{"a", "b"} {
			def := string(n) + "/default/" + p
			origins[def] = diag.Pos{File: "mesh.cue", Line: 1 + r.IntN(3)}
			in.Ports = append(in.Ports, mesh.InboundPort{Name: p, DefaultID: def,
				Default: []mesh.InboundMode{mesh.Deny, mesh.Deny, mesh.Deny, mesh.Deny, mesh.AllAuthenticated, mesh.AllUnauthenticated,
					mesh.Audit, mesh.ClusterAuthenticated, mesh.ClusterUnauthenticated}[r.IntN(9)]})
		}
		for j := range r.IntN(4) {
			rule := mesh.Rule{ID: fmt.Sprintf("%s/allow/r%d", n, j), Action: mesh.Allow}
			switch r.IntN(6) {
			case 0, 1:
				rule.Action = mesh.DenyRule
			case 2:
				rule.Action = mesh.AuditRule
			case 3:
				rule.Shadow = true
			}
			if r.IntN(4) == 0 {
				rule.Networks = []mesh.Network{near}
			}
			if r.IntN(4) == 0 {
				rule.Until = noon
			}
			if r.IntN(4) == 0 {
				rule.Methods = []string{"GET"}
			}
			for range 1 + r.IntN(2) {
				rule.From = append(rule.From, []mesh.Peer{{Identity: identity(r.IntN(services))}, {Identity: identity(r.IntN(services))},
					{Authenticated: true}, {Unauthenticated: true}, {Prefix: prefixes[r.IntN(len(prefixes))]}, {Suffix: suffixes[r.IntN(len(suffixes))]}}[r.IntN(6)])
			}
			if r.IntN(2) == 0 {
				rule.Ports = []string{"a"}
			}
			if r.IntN(4) == 0 {
				rule.Routes = []string{"some"}
			}
			in.Rules = append(in.Rules, rule)
			origins[rule.ID] = diag.Pos{File: "x.cue", Line: r.IntN(100)}
		}
		out := mesh.Outbound{Service: n, Identities: in.Identities, Ports: []mesh.OutboundPort{{Name: "a", Port: uint16(1 + r.IntN(9))}}}
		if r.IntN(2) == 0 {
			out.Routes = []mesh.Route{{ID: string(n) + "/httpRoutes/r", Port: "a", Backends: []mesh.Backend{
				{Service: names[r.IntN(services)], Port: "a", Weight: 1}, {Service: n, Port: "a", Weight: 1}}}}
		}
		m.Inbound, m.Outbound = append(m.Inbound, in), append(m.Outbound, out)
	}
	return m, origins
}

func TestCalleesAreExactlyThoseThatMayBeCalled(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		m, origins := random(r, 12)
		v := NewView(&release.Record{Epoch: 1}, m, origins, nil)
		for i := range 14 { // two of them are named nowhere
			var want []mesh.ServiceName
			for j := range m.Inbound {
				if decide.MayCall(&m.Inbound[j], identity(i)) {
					want = append(want, m.Inbound[j].Service)
				}
			}
			if got := v.Callees(identity(i)); !slices.Equal(got, want) {
				t.Fatalf("seed %d: %s may call %v, the view says %v", seed, identity(i), want, got)
			}
		}
	}
}

// TestWhoMayCallIsServed holds the view to brute force: whoever a service lets in, to any port, from anywhere, at any time,
// by any request, is served it; and who is refused it early is told a rule that refuses it.
func TestWhoMayCallIsServed(t *testing.T) {
	asks := []decide.Request{{}, {HTTP: true, Method: "GET", Path: "/"}, {HTTP: true, Method: "PUT", Path: "/"}}
	served, refused := 0, 0
	for seed := range uint64(300) {
		m, origins := random(rand.New(rand.NewPCG(seed, 4)), 12)
		for i := range m.Inbound {
			m.Inbound[i].ClusterNetworks = []netip.Prefix{near.CIDR}
			m.Inbound[i].Ports[0].Matches = []mesh.Match{{Route: "some", Method: "PUT"}}
		}
		v := NewView(&release.Record{Epoch: 1}, m, origins, nil)
		for i := range 14 {
			peer, all := identity(i), []mesh.ServiceName(nil)
			let := map[mesh.ServiceName]bool{}
			for j := range m.Inbound {
				in := &m.Inbound[j]
				all = append(all, in.Service)
				for k := range in.Ports {
					for _, r := range asks {
						for _, a := range []string{"10.1.1.1", "10.9.1.1", "192.0.2.1"} {
							for _, now := range []time.Time{noon.Add(-time.Second), noon} {
								r.Peer, r.Addr, r.Now = peer, netip.MustParseAddr(a), now
								let[in.Service] = let[in.Service] || decide.Authorize(in, &in.Ports[k], &r).Allowed
							}
						}
					}
				}
			}
			c := New(v, new(inventory.Snapshot), &Workload{Service: m.Inbound[0].Service, Identity: peer, Subscribed: all})
			for _, r := range c.Refused {
				refused++
				if let[r.Service] || r.Unknown {
					t.Fatalf("seed %d: %s is refused %s by %s, which lets it in", seed, peer, r.Service, r.Rule)
				}
				if in, _ := m.InboundOf(r.Service); r.Origin == "" || !names(in, r.Rule) {
					t.Fatalf("seed %d: %s is refused %s by %q at %q", seed, peer, r.Service, r.Rule, r.Origin)
				}
			}
			served += len(all) - len(c.Refused)
		}
	}
	if served < 1000 || refused < 1000 {
		t.Errorf("%d were served and %d refused: too few to say anything", served, refused)
	}
}

// names reports whether an id is of an enforced rule, or of a default, of a service.
func names(in *mesh.Inbound, id string) bool {
	return slices.ContainsFunc(in.Ports, func(p mesh.InboundPort) bool { return p.DefaultID == id }) ||
		slices.ContainsFunc(in.Rules, func(r mesh.Rule) bool { return r.ID == id && r.Action == mesh.DenyRule && !r.Shadow })
}

// TestLacks: a configuration says what a sidecar lacks for any of its objects, the settings' too.
func TestLacks(t *testing.T) {
	m, origins := random(rand.New(rand.NewPCG(1, 5)), 3)
	own := &m.Inbound[0]
	m.Settings.Needs, own.Needs = []mesh.Capability{mesh.CapNetworks}, []mesh.Capability{mesh.CapAudit, mesh.CapAuthorize}
	m.Outbound[1].Needs = []mesh.Capability{mesh.CapRetry}
	v := NewView(&release.Record{Epoch: 1}, m, origins, nil)
	c := New(v, new(inventory.Snapshot), &Workload{Service: own.Service, Identity: "spiffe://mesh.test/nobody",
		Declared: []mesh.ServiceName{m.Outbound[1].Service}, Capabilities: []mesh.Capability{mesh.CapAuthorize}})
	if want := []mesh.Capability{mesh.CapAudit, mesh.CapNetworks, mesh.CapRetry}; !slices.Equal(c.Lacks, want) {
		t.Errorf("it lacks %v, want %v", c.Lacks, want)
	}
}

// TestDiff: whatever a sidecar holds, applying the difference gives exactly what the full snapshot would, and nothing is
// sent that it holds already.
func TestDiff(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 2))
		set := func() []*proxyapi.Object {
			var out []*proxyapi.Object
			for _, k := range []string{"endpoints", "index", "outbound"} {
				for i := range 8 {
					if r.IntN(2) == 0 {
						sum := sha256.Sum256([]byte{byte(r.IntN(2)), byte(i)})
						out = append(out, &proxyapi.Object{Kind: k, Name: fmt.Sprint(i), Hash: sum[:]})
					}
				}
			}
			return out
		}
		have, want := set(), set()
		held := map[string]string{}
		for _, o := range have {
			held[o.Kind+" "+o.Name] = string(o.Hash)
		}
		upserts, deletes := Diff(Versions(have), want)
		for _, o := range upserts {
			if held[o.Kind+" "+o.Name] == string(o.Hash) {
				t.Fatalf("seed %d: %s %s is sent though it is there", seed, o.Kind, o.Name)
			}
			held[o.Kind+" "+o.Name] = string(o.Hash)
		}
		for _, d := range deletes {
			if _, ok := held[d.Kind+" "+d.Name]; !ok {
				t.Fatalf("seed %d: %s %s is deleted though it is not there", seed, d.Kind, d.Name)
			}
			delete(held, d.Kind+" "+d.Name)
		}
		var after []*proxyapi.ObjectVersion
		for _, o := range want {
			if held[o.Kind+" "+o.Name] == string(o.Hash) {
				after = append(after, &proxyapi.ObjectVersion{Kind: o.Kind, Name: o.Name, Hash: o.Hash})
			}
		}
		if len(held) != len(want) || string(proxyapi.StateHash(after)) != string(State(want)) {
			t.Fatalf("seed %d: the difference does not lead there", seed)
		}
	}
}

// TestViewsShareWhatDidNotChange: one changed service costs one object, and a configuration has the objects of the view,
// not copies of them.
func TestViewsShareWhatDidNotChange(t *testing.T) {
	m, origins := random(rand.New(rand.NewPCG(1, 3)), 9)
	first := NewView(&release.Record{Epoch: 1}, m, origins, nil)
	changed := *m
	changed.Outbound = slices.Clone(m.Outbound)
	changed.Outbound[4].Ports = []mesh.OutboundPort{{Name: "a", Port: 999}}
	second := NewView(&release.Record{Epoch: 2}, &changed, origins, first)
	w := &Workload{Service: m.Inbound[0].Service, Identity: identity(0)}
	for i := range m.Inbound {
		w.Declared = append(w.Declared, m.Inbound[i].Service)
	}
	snap := new(inventory.Snapshot)
	a, b := New(first, snap, w), New(second, snap, w)
	var fresh []string
	for i, o := range b.Objects {
		if o.Kind != proxyapi.KindEndpoints && o != a.Objects[i] {
			fresh = append(fresh, o.Kind+" "+o.Name)
		}
	}
	ns, name := changed.Outbound[4].Service.Namespace(), string(changed.Outbound[4].Service)
	if want := []string{"index " + ns, "outbound " + name}; !slices.Equal(fresh, want) {
		t.Errorf("new objects are %v, want %v", fresh, want)
	}
	if c := New(second, snap, w); !slices.EqualFunc(b.Objects, c.Objects, func(x, y *proxyapi.Object) bool { return x == y || x.Kind == proxyapi.KindEndpoints }) {
		t.Error("two configurations of one view do not share its objects")
	}
	if !slices.IsSortedFunc(b.Objects, compare) || len(b.State) != sha256.Size {
		t.Error("the objects are not sorted")
	}
}

// TestRefusals: a destination is refused only where neither the service nor any that its routes name would take the
// caller. Where one of them would, each judges for itself.
func TestRefusals(t *testing.T) {
	id := func(n mesh.ServiceName) string { return string(spiffe.ServiceID("a.test", n)) }
	inbound := func(n mesh.ServiceName, from string) mesh.Inbound {
		return mesh.Inbound{Service: n, Identities: []string{id(n)},
			Ports: []mesh.InboundPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1, MTLS: mesh.Strict, Default: mesh.Deny, DefaultID: mesh.DefaultID(n, "http")}},
			Rules: []mesh.Rule{{ID: string(n) + "/allow/r", Action: mesh.Allow, From: []mesh.Peer{{Identity: from}}}}}
	}
	outbound := func(n mesh.ServiceName, backends ...mesh.ServiceName) mesh.Outbound {
		o := mesh.Outbound{Service: n, Identities: []string{id(n)}, Ports: []mesh.OutboundPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1}}}
		for _, b := range backends {
			o.Routes = append(o.Routes, mesh.Route{ID: string(n) + "/httpRoutes/r", Port: "http", Backends: []mesh.Backend{{Service: b, Port: "http", Weight: 1}}})
		}
		return o
	}
	m := &mesh.Mesh{
		Settings: mesh.Settings{TrustDomain: "a.test"},
		Inbound:  []mesh.Inbound{inbound("n/closed", id("n/nobody")), inbound("n/door", id("n/nobody")), inbound("n/open", id("n/web"))},
		Outbound: []mesh.Outbound{outbound("n/closed", "n/closed"), outbound("n/door", "n/open"), outbound("n/open")},
	}
	origins := mesh.Origins{"n/closed/default/http": {File: "closed.cue", Line: 3}}
	v := NewView(&release.Record{Epoch: 1}, m, origins, nil)
	c := New(v, &inventory.Snapshot{}, &Workload{Service: "n/web", Identity: id("n/web"), Subscribed: []mesh.ServiceName{"n/closed", "n/door", "n/nowhere"}})
	want := []Refused{
		{Service: "n/closed", Rule: "n/closed/default/http", Origin: "closed.cue:3"},
		{Service: "n/nowhere", Unknown: true},
	}
	if !slices.Equal(c.Refused, want) {
		t.Errorf("refused %+v, want %+v", c.Refused, want)
	}
	if !slices.ContainsFunc(c.Objects, func(o *proxyapi.Object) bool { return o.Kind == string(mesh.KindOutbound) && o.Name == "n/door" }) {
		t.Error("n/door leads to a service that may be called, and is not served")
	}
}
