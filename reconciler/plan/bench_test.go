package plan

import (
	"fmt"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/reconciler/reach"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// large is a mesh of many services in namespaces of twenty; each has three routes, allows two neighbours and its
// namespace's other services on one path.
func large(services int) *mesh.Mesh {
	m := &mesh.Mesh{Settings: mesh.Settings{TrustDomain: "mesh.example"}}
	name := func(i int) mesh.ServiceName {
		i %= services
		return mesh.ServiceName(fmt.Sprintf("ns%04d/s%05d", i/20, i))
	}
	identity := func(i int) string {
		return "spiffe://mesh.example/ns/" + name(i).Namespace() + "/sa/" + name(i).Local()
	}
	for i := range services {
		n := name(i)
		in := mesh.Inbound{Service: n, Identities: []string{identity(i)}, Ports: []mesh.InboundPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1, MTLS: mesh.Strict, Default: mesh.Deny, DefaultID: mesh.DefaultID(n, "http"), CanonicalPaths: true}},
			Rules: []mesh.Rule{
				{ID: string(n) + "/allow/near", Action: mesh.Allow, From: []mesh.Peer{{Identity: identity(i + 1)}, {Identity: identity(i + 7)}}},
				{ID: string(n) + "/allow/ns", Action: mesh.Allow, From: []mesh.Peer{{Prefix: "spiffe://mesh.example/ns/" + n.Namespace() + "/"}}, Paths: []mesh.PathMatch{{Template: "/v1/{id}"}}},
			}}
		out := mesh.Outbound{Service: n, Identities: in.Identities, Ports: []mesh.OutboundPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1}}}
		for k := range 3 {
			id := fmt.Sprintf("%s/httpRoutes/r%d", n, k)
			out.Routes = append(out.Routes, mesh.Route{ID: id, Port: "http", Timeouts: mesh.Timeouts{Request: time.Second}, Backends: []mesh.Backend{{Service: n, Port: "http", Weight: 90}, {Service: name(i + 1), Port: "http", Weight: 10}}})
			out.Ports[0].Matches = append(out.Ports[0].Matches, mesh.Match{Route: id, Path: mesh.PathMatch{Prefix: fmt.Sprintf("/v%d", k)}})
		}
		m.Inbound, m.Outbound = append(m.Inbound, in), append(m.Outbound, out)
	}
	return m
}

// BenchmarkOneLine is the plan of a change of one rule, in a mesh compiled anew. Its figure to reach is 1 s of CPU for
// 10,000 services.
func BenchmarkOneLine(b *testing.B) {
	before, after := large(10_000), large(10_000)
	after.Inbound[5000].Rules[1].Paths[0].Template = "/v1/{id}/items"
	b.ReportAllocs()
	for b.Loop() {
		if p := Compare(&Side{Mesh: before}, &Side{Mesh: after}, Options{}); len(p.Lines) < 2 {
			b.Fatalf("%d lines", len(p.Lines))
		}
	}
}

// BenchmarkEveryService is the plan of a change that touches every service.
func BenchmarkEveryService(b *testing.B) {
	before, after := large(10_000), large(10_000)
	for i := range after.Inbound {
		after.Outbound[i].Routes[0].Timeouts.Request = 2 * time.Second
	}
	for b.Loop() {
		if p := Compare(&Side{Mesh: before}, &Side{Mesh: after}, Options{}); len(p.Lines) < 10_000 {
			b.Fatalf("%d lines", len(p.Lines))
		}
	}
}

// BenchmarkProve proves three invariants over a large mesh.
func BenchmarkProve(b *testing.B) {
	m := large(10_000)
	to := mesh.Target{Namespace: "ns0002"}
	invariants := []mesh.Invariant{
		{Name: "mtls", ID: "invariants/mtls", AlwaysMTLS: &mesh.Target{}},
		{Name: "apart", ID: "invariants/apart", Never: &mesh.Flow{From: []mesh.Peer{{Prefix: "spiffe://mesh.example/ns/ns0400/"}}, To: to}},
		{Name: "closed", ID: "invariants/closed", Never: &mesh.Flow{From: []mesh.Peer{{Prefix: "spiffe://mesh.example/ns/other/"}}}},
	}
	for b.Loop() {
		if f := reach.Prove(b.Context(), m, nil, invariants, time.Time{}, 0); len(f) != 0 {
			b.Fatal(f)
		}
	}
}

// BenchmarkBusyPort is the plan of one changed rule on a port with 300 routes and 60 rules.
func BenchmarkBusyPort(b *testing.B) {
	make := func() *mesh.Mesh {
		m := large(100)
		in, out := &m.Inbound[50], &m.Outbound[50]
		for i := range 300 {
			id := fmt.Sprintf("%s/httpRoutes/x%03d", in.Service, i)
			out.Routes = append(out.Routes, mesh.Route{ID: id, Port: "http", Backends: []mesh.Backend{{Service: m.Inbound[i%100].Service, Port: "http", Weight: 100}}})
			match := mesh.Match{Route: id, Path: mesh.PathMatch{Prefix: fmt.Sprintf("/api/x%03d", i)}}
			if i%3 == 0 {
				match.Method = "POST"
			}
			out.Ports[0].Matches = append(out.Ports[0].Matches, match)
		}
		for i := range 60 {
			in.Rules = append(in.Rules, mesh.Rule{ID: fmt.Sprintf("%s/allow/y%03d", in.Service, i), Action: mesh.Allow, From: []mesh.Peer{{Identity: m.Inbound[i].Identities[0]}},
				Methods: []string{"GET", "PUT"}, Paths: []mesh.PathMatch{{Prefix: fmt.Sprintf("/api/x%03d", i)}, {Template: fmt.Sprintf("/u/{id}/y%02d", i)}}})
		}
		return m
	}
	before, after := make(), make()
	after.Inbound[50].Rules[30].Methods = []string{"GET"}
	for b.Loop() {
		if p := Compare(&Side{Mesh: before}, &Side{Mesh: after}, Options{}); len(p.Lines) == 0 || p.Lines[0].MayChange {
			b.Fatal(p.Verdict())
		}
	}
}
