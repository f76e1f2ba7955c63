package plan

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

var update = flag.Bool("update", false, "rewrite the goldens")

// small is a mesh of a gateway, a web service with an admin page, a cart in two versions, a ledger, and a batch job.
func small() *mesh.Mesh {
	m := &mesh.Mesh{Settings: mesh.Settings{TrustDomain: "mesh.example"}}
	add := func(n mesh.ServiceName, rules ...mesh.Rule) {
		identity := "spiffe://mesh.example/ns/" + n.Namespace() + "/sa/" + n.Local()
		m.Inbound = append(m.Inbound, mesh.Inbound{Service: n, Identities: []string{identity}, Rules: rules,
			Ports: []mesh.InboundPort{{Name: "http", Port: 8080, Protocol: mesh.HTTP1, MTLS: mesh.Strict, Default: mesh.Deny, DefaultID: mesh.DefaultID(n, "http")}}})
		m.Outbound = append(m.Outbound, mesh.Outbound{Service: n, Identities: []string{identity}, Ports: []mesh.OutboundPort{{Name: "http", Port: 8080, Protocol: mesh.HTTP1}}})
	}
	allow := func(n mesh.ServiceName, name string, from ...mesh.Peer) mesh.Rule {
		return mesh.Rule{ID: string(n) + "/allow/" + name, Action: mesh.Allow, From: from}
	}
	by := func(n mesh.ServiceName) mesh.Peer {
		return mesh.Peer{Identity: "spiffe://mesh.example/ns/" + n.Namespace() + "/sa/" + n.Local()}
	}
	add("cron/report")
	add("edge/gateway")
	add("ledger/api", allow("ledger/api", "web", by("shop/web")))
	add("shop/cart", allow("shop/cart", "web", by("shop/web")))
	add("shop/cart-v2", allow("shop/cart-v2", "web", by("shop/web")))
	add("shop/web", allow("shop/web", "gateway", by("edge/gateway")))
	web := &m.Outbound[5]
	web.Routes = []mesh.Route{{ID: "shop/web/httpRoutes/all", Port: "http", Timeouts: mesh.Timeouts{Request: time.Second}, Backends: []mesh.Backend{{Service: "shop/web", Port: "http", Weight: 100}}}}
	web.Ports[0].Matches = []mesh.Match{{Route: "shop/web/httpRoutes/all", Path: mesh.PathMatch{Prefix: "/"}}}
	cart := &m.Outbound[3]
	cart.Routes = []mesh.Route{{ID: "shop/cart/httpRoutes/all", Port: "http", Backends: []mesh.Backend{{Service: "shop/cart", Port: "http", Weight: 100}}}}
	cart.Ports[0].Matches = []mesh.Match{{Route: "shop/cart/httpRoutes/all", Path: mesh.PathMatch{Prefix: "/"}}}
	m.Workloads = []mesh.Workload{{Name: "shop/web-1", Service: "shop/web", Identity: "spiffe://mesh.example/ns/shop/sa/web", Address: "10.1.0.1:4143"}}
	return m
}

func origins(m *mesh.Mesh) mesh.Origins {
	at := mesh.Origins{}
	for i := range m.Inbound {
		in, file, line := &m.Inbound[i], "services/"+string(m.Inbound[i].Service)+".cue", 3
		next := func(id string) { at[id] = diag.Pos{File: file, Line: line, Column: 1}; line++ }
		next(string(in.Service))
		for _, p := range in.Ports {
			next(p.DefaultID)
		}
		for _, r := range in.Rules {
			next(r.ID)
		}
		for _, r := range m.Outbound[i].Routes {
			next(r.ID)
		}
	}
	return at
}

// inOf and outOf find a service of the small mesh.
func inOf(m *mesh.Mesh, n mesh.ServiceName) *mesh.Inbound   { in, _ := m.InboundOf(n); return in }
func outOf(m *mesh.Mesh, n mesh.ServiceName) *mesh.Outbound { o, _ := m.OutboundOf(n); return o }

var cases = []struct {
	name   string
	before func(*mesh.Mesh) // of both sides
	after  func(*mesh.Mesh)
}{
	{name: "nothing"},
	{name: "allow", after: func(m *mesh.Mesh) {
		in := inOf(m, "ledger/api")
		in.Ports[0].CanonicalPaths = true
		in.Rules = append([]mesh.Rule{{ID: "ledger/api/allow/report", Action: mesh.Allow, From: []mesh.Peer{{Identity: "spiffe://mesh.example/ns/cron/sa/report"}},
			Methods: []string{"GET"}, Paths: []mesh.PathMatch{{Template: "/accounts/{id}/report"}, {Prefix: "/health"}}}}, in.Rules...)
	}},
	{name: "deny-part-of-a-prefix", before: func(m *mesh.Mesh) { inOf(m, "shop/web").Ports[0].CanonicalPaths = true }, after: func(m *mesh.Mesh) {
		in := inOf(m, "shop/web")
		in.Rules = append(in.Rules, mesh.Rule{ID: "shop/web/deny/admin", Action: mesh.DenyRule, From: []mesh.Peer{{Authenticated: true}},
			Paths: []mesh.PathMatch{{Prefix: "/admin"}}, Headers: []mesh.HeaderMatch{{Name: "x-key", Exact: "hunter2"}}})
	}},
	{name: "namespace", after: func(m *mesh.Mesh) {
		inOf(m, "ledger/api").Rules[0].From = append(inOf(m, "ledger/api").Rules[0].From, mesh.Peer{Prefix: "spiffe://mesh.example/ns/cron/"})
	}},
	{name: "permissive", after: func(m *mesh.Mesh) {
		in := inOf(m, "ledger/api")
		in.Ports[0].MTLS = mesh.Permissive
		in.Rules[0].From = []mesh.Peer{{Unauthenticated: true}}
	}},
	{name: "canary", after: func(m *mesh.Mesh) {
		outOf(m, "shop/cart").Routes[0].Backends = []mesh.Backend{{Service: "shop/cart", Port: "http", Weight: 90}, {Service: "shop/cart-v2", Port: "http", Weight: 10}}
	}},
	{name: "canary-that-is-refused", after: func(m *mesh.Mesh) {
		inOf(m, "shop/cart-v2").Rules = nil
		outOf(m, "shop/cart").Routes[0].Backends = []mesh.Backend{{Service: "shop/cart", Port: "http", Weight: 90}, {Service: "shop/cart-v2", Port: "http", Weight: 10}}
	}},
	{name: "timeout", after: func(m *mesh.Mesh) { outOf(m, "shop/web").Routes[0].Timeouts.Request = 2 * time.Second }},
	{name: "rewrite", after: func(m *mesh.Mesh) {
		o := outOf(m, "shop/web")
		o.Routes = append(o.Routes, mesh.Route{ID: "shop/web/httpRoutes/old", Port: "http", Backends: []mesh.Backend{{Service: "shop/cart", Port: "http", Weight: 100}},
			Filters: []mesh.Filter{{Rewrite: &mesh.Rewrite{Path: mesh.PathEdit{Prefix: "/cart"}}}}})
		o.Ports[0].Matches = append([]mesh.Match{{Route: "shop/web/httpRoutes/old", Path: mesh.PathMatch{Prefix: "/old"}}}, o.Ports[0].Matches...)
	}},
	{name: "no-route", after: func(m *mesh.Mesh) { outOf(m, "shop/web").Ports[0].Matches[0].Path.Prefix = "/api" }},
	{name: "until", before: func(m *mesh.Mesh) {
		in := inOf(m, "shop/web")
		in.Rules = append(in.Rules, mesh.Rule{ID: "shop/web/deny/freeze", Action: mesh.DenyRule, From: []mesh.Peer{{Authenticated: true}}, Until: day0.AddDate(0, 1, 0)})
	}, after: func(m *mesh.Mesh) { inOf(m, "shop/web").Rules[1].Until = day0.AddDate(0, 2, 0) }},
	{name: "identity-renamed", after: func(m *mesh.Mesh) {
		const id = "spiffe://mesh.example/ns/shop/sa/front"
		inOf(m, "shop/web").Identities, outOf(m, "shop/web").Identities, m.Workloads[0].Identity = []string{id}, []string{id}, id
		inOf(m, "shop/cart").Rules[0].From[0].Identity = id
	}},
	{name: "deleted", after: func(m *mesh.Mesh) {
		m.Inbound, m.Outbound = m.Inbound[:5], m.Outbound[:5]
		m.Workloads = nil
	}},
	{name: "new-service", after: func(m *mesh.Mesh) {
		m.Inbound = append(m.Inbound, mesh.Inbound{Service: "zoo/new", Identities: []string{"spiffe://mesh.example/ns/zoo/sa/new"},
			Ports: []mesh.InboundPort{{Name: "tcp", Port: 9000, Protocol: mesh.TCP, MTLS: mesh.Strict, Default: mesh.AllAuthenticated, DefaultID: "zoo/new/default/tcp"}}})
		m.Outbound = append(m.Outbound, mesh.Outbound{Service: "zoo/new", Identities: []string{"spiffe://mesh.example/ns/zoo/sa/new"}, Ports: []mesh.OutboundPort{{Name: "tcp", Port: 9000, Protocol: mesh.TCP}}})
	}},
	{name: "regex", before: func(m *mesh.Mesh) {
		o := outOf(m, "shop/web")
		o.Routes = append(o.Routes, mesh.Route{ID: "shop/web/httpRoutes/re", Port: "http", Backends: []mesh.Backend{{Service: "shop/cart", Port: "http", Weight: 100}}})
		o.Ports[0].Matches = append([]mesh.Match{{Route: "shop/web/httpRoutes/re", Path: mesh.PathMatch{Regex: "/v[0-9]+/.*"}}}, o.Ports[0].Matches...)
	}, after: func(m *mesh.Mesh) { outOf(m, "shop/web").Ports[0].Matches[0].Path.Regex = "/v[0-9]{1,2}/.*" }},
	{name: "egress-and-guards", before: func(m *mesh.Mesh) {
		m.Egress = []mesh.Egress{{Namespace: "shop", Default: mesh.DenyRule, DefaultID: "shop/egress-default", Rules: []mesh.EgressRule{
			{ID: "shop/egress/pay", Action: mesh.Allow, Hosts: []string{"pay.example"}, Ports: []uint16{443}, Protocol: mesh.TLS}}}}
		m.Invariants = []mesh.Invariant{{Name: "closed", ID: "invariants/closed", AlwaysMTLS: &mesh.Target{}}}
	}, after: func(m *mesh.Mesh) {
		m.Egress[0].Rules = append(m.Egress[0].Rules, mesh.EgressRule{ID: "shop/egress/net", Action: mesh.Allow, Networks: []mesh.Network{{CIDR: netip.MustParsePrefix("198.51.100.0/24")}}, Ports: []uint16{25}, Protocol: mesh.TCP})
		m.Invariants = []mesh.Invariant{{Name: "one payer", ID: "invariants/one payer", Only: &mesh.Flow{From: []mesh.Peer{{Identity: "spiffe://mesh.example/ns/shop/sa/web"}},
			To: mesh.Target{Services: []mesh.ServiceName{"ledger/api"}, Methods: []string{"POST"}, Paths: []mesh.PathMatch{{Prefix: "/accounts"}}}}}}
		m.Settings.SkipOutbound = []uint16{4567}
	}},
}

// TestGoldens shows each case as text, as Markdown and as JSON; the goldens are read by eye when they change.
func TestGoldens(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b, a := small(), small()
			if c.before != nil {
				c.before(b)
				c.before(a)
			}
			if c.after != nil {
				c.after(a)
			}
			p := Compare(&Side{Mesh: b, Origins: origins(b), Commit: "3f9c2ab0", Subject: "Before"}, &Side{Mesh: a, Origins: origins(a), Commit: "9c1e77d0", Subject: "After"}, Options{Now: day0})
			for i := range p.Lines {
				checkWitness(t, i, b, a, &p.Lines[i])
			}
			for i := range p.Refused {
				checkWitness(t, i, b, a, &p.Refused[i])
			}
			var out bytes.Buffer
			out.WriteString("-- text --\n")
			if err := p.Text(&out, TextOptions{}); err != nil {
				t.Fatal(err)
			}
			out.WriteString("-- markdown --\n")
			out.WriteString(p.Markdown(MarkdownOptions{Tests: "38 pass", Unchanged: "4 files reformatted", Link: func(at diag.Pos, before bool) string {
				return fmt.Sprintf("https://git.example/%t/%s#L%d", before, at.File, at.Line)
			}}))
			if strings.Contains(out.String(), "hunter2") && strings.Contains(p.Markdown(MarkdownOptions{}), "hunter2") {
				t.Error("the comment holds the value of a header")
			}
			out.WriteString("-- json --\n")
			if err := p.JSON(&out); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", c.name+".golden")
			if *update {
				if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), out.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}
