package compile

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// read is a document as package policy makes it, with positions told apart by namespace. Fields that have no line in at
// get one that depends on their path only; moved shifts those of some namespaces.
func read(t testing.TB, p v1alpha1.Policy, at map[string]diag.Pos, moved map[string]int) *v1alpha1.Document {
	t.Helper()
	all := map[string]diag.Pos{}
	line := 0
	place(all, "", reflect.ValueOf(p), &line)
	by := map[string]map[string]diag.Pos{}
	for path := range all {
		pos, ok := at[path]
		if !ok {
			h := fnv.New32a()
			h.Write([]byte(path))
			pos = diag.Pos{File: "new.cue", Line: int(h.Sum32() % 1_000_000), Column: 1}
		}
		ns := ""
		if parts := strings.SplitN(path, ".", 3); len(parts) > 1 && slices.Contains([]string{"namespaces", "services", "workloads", "groups", "egress"}, parts[0]) {
			ns = parts[1]
		}
		pos.Line += moved[ns]
		if by[ns] == nil {
			by[ns] = map[string]diag.Pos{}
		}
		by[ns][path] = pos
	}
	doc := &v1alpha1.Document{Policy: p, Places: map[string][]*v1alpha1.Places{}}
	for ns, positions := range by {
		files := slices.Sorted(maps.Values(func() map[string]string {
			names := map[string]string{}
			for _, pos := range positions {
				names[pos.File] = pos.File
			}
			return names
		}()))
		doc.Places[ns] = []*v1alpha1.Places{v1alpha1.NewPlaces(files, func(add func(string, int, int, int)) {
			for _, path := range slices.Sorted(maps.Keys(positions)) {
				pos := positions[path]
				add(path, slices.Index(files, pos.File), pos.Line, pos.Column)
			}
		})}
	}
	return doc
}

// again is a copy of policy that shares nothing with it.
func again(t testing.TB, p v1alpha1.Policy) (out v1alpha1.Policy) {
	t.Helper()
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestCache: histories of random commits compile to the same with the cache as without, findings and origins too, and
// the cache does take services over.
func TestCache(t *testing.T) {
	taken, meshes := 0, 0
	for seed := range uint64(24) {
		r := rand.New(rand.NewPCG(seed, 5))
		var base *v1alpha1.Document
		opts := Options{Now: time.Unix(1_800_000_000, 0)}
		if seed%2 == 0 {
			base = language(t)
			base.Policy.Namespaces["calm"] = v1alpha1.Namespace{Defaults: &v1alpha1.Defaults{Timeout: "3s"}}
			base.Policy.Services["calm"] = large(2, 2).Policy.Services["ns-0"]
			for name, s := range base.Policy.Services["calm"] {
				delete(s.Allow, "peers")
				s.HttpRoutes["cart"] = v1alpha1.HTTPRoute{Port: "http"}
				base.Policy.Services["calm"][name] = s
			}
			opts.ProxyVersion = "any"
		} else {
			base = large(4, 3)
		}
		good, moved := base.Policy, map[string]int{}
		var cache Cache
		for range 25 {
			p := again(t, good)
			switch r.IntN(6) {
			case 0: // lines move, and nothing else
				namespaces := slices.Sorted(maps.Keys(p.Services))
				moved[namespaces[r.IntN(len(namespaces))]]++
			case 1: // time passes
				opts.Now = opts.Now.Add(time.Hour)
			case 2, 3: // a service says something else
				namespaces := slices.Sorted(maps.Keys(p.Services))
				if len(namespaces) > 0 {
					ns := namespaces[r.IntN(len(namespaces))]
					for name, s := range p.Services[ns] {
						s.HttpRoutes = maps.Clone(s.HttpRoutes)
						if s.HttpRoutes == nil {
							s.HttpRoutes = map[string]v1alpha1.HTTPRoute{}
						}
						s.HttpRoutes[fmt.Sprint("new-", r.IntN(3))] = v1alpha1.HTTPRoute{Port: "http", Timeout: "1s",
							Match: []v1alpha1.HTTPMatch{{Path: &v1alpha1.PathMatch{Exact: v1alpha1.Path(fmt.Sprint("/new/", r.IntN(9)))}}}}
						p.Services[ns][name] = s
						break
					}
				}
			default:
				v := reflect.ValueOf(&p).Elem()
				mutate(r, v)
				p = again(t, p)
			}
			doc := read(t, p, base.Positions, moved)
			wantMesh, wantOrigins, wantFindings := Compile(doc, opts)
			gotMesh, gotOrigins, gotFindings := cache.Compile(doc, opts)
			if d := cmp.Diff(string(mesh.Canonical(wantMesh)), string(mesh.Canonical(gotMesh))); d != "" {
				t.Fatalf("seed %d: another mesh (-full +cached):\n%s", seed, d)
			}
			if d := cmp.Diff(wantOrigins, gotOrigins); d != "" {
				t.Fatalf("seed %d: other origins (-full +cached):\n%s", seed, d)
			}
			if d := cmp.Diff(wantFindings, gotFindings); d != "" {
				t.Fatalf("seed %d: other findings (-full +cached):\n%s", seed, d)
			}
			taken += cache.taken
			if wantMesh != nil {
				good = p
				meshes++
			}
		}
	}
	if taken < 500 || meshes < 150 {
		t.Errorf("%d meshes, and only %d services were taken over", meshes, taken)
	}
}

// TestCacheDependencies: what one namespace says changes what another one's policy means, or seems to; each pair compiles
// to the same with the cache as without.
func TestCacheDependencies(t *testing.T) {
	const rest = `
mesh: trustDomain: "corp.example"
services: shop: web: {
	ports: http: {port: 80, protocol: "http1"}
	allow: {pay: from: [{service: "pay/api"}], ends: {from: [{service: "pay/api"}], until: "2027-01-15T08:00:00Z"}, dead: from: [{identity: "spiffe://corp.example/x"}]}
	deny: x: from: [{identity: "spiffe://corp.example/x"}]
	httpRoutes: pay: {match: [{path: prefix: "/pay"}], backends: [{service: "pay/api"}]}
}
`
	const api = `services: pay: api: {ports: http: {port: 80, protocol: "http1"}, allow: web: from: [{service: "shop/web"}]}` + "\n"
	for name, c := range map[string]struct {
		before, after string
		taken         bool
	}{
		"nothing":    {api, api, true},
		"a rule":     {api + `services: pay: api: deny: a: from: [{authenticated: true}]`, api, true},
		"a route":    {api + `services: pay: api: httpRoutes: a: timeout: "1s"`, api + `services: pay: api: httpRoutes: b: timeout: "1s"`, true},
		"egress":     {api + `egress: pay: a: hosts: ["a.example"]`, api + `egress: pay: b: hosts: ["b.example"]`, true},
		"a default":  {api + `namespaces: pay: defaults: {timeout: "1s", egressPolicy: "allow"}`, api + `namespaces: pay: defaults: timeout: "2s"`, true},
		"a workload": {api + `workloads: pay: a: {service: "api", address: "10.0.0.1"}`, api + `workloads: pay: b: {service: "api", address: "10.0.0.1", weight: 5}`, true},
		"identities": {api, api + `services: pay: api: identities: ["spiffe://corp.example/other"]`, false},
		"a protocol": {api, strings.Replace(api, "http1", "tcp", 1), false},
		"a port":     {api, strings.Replace(api, "ports: http:", "ports: other:", 1), false},
		"a service":  {api, api + `services: pay: more: ports: http: port: 80`, false},
		"no service": {api, ``, false},
		"the mesh":   {api, api + `mesh: defaults: timeout: "5s"`, false},
		"invariants": {api + `invariants: a: always: "mtls"`, api + `invariants: a: never: {from: {namespace: "shop"}, to: {service: "pay/api"}}`, false},
		"calls": {api + `namespaces: shop: calls: "pay/api": httpRoutes: a: timeout: "1s"`,
			api + `namespaces: shop: calls: "pay/api": httpRoutes: a: timeout: "2s"`, false},
		"what is called": {api + `namespaces: shop: calls: "pay/api": httpRoutes: a: timeout: "1s"`,
			api + `namespaces: shop: calls: "pay/api": httpRoutes: a: timeout: "1s"` + "\n" + `services: pay: api: httpRoutes: b: timeout: "3s"`, false},
		"a loop": {api + `services: shop: web: httpRoutes: all: backends: [{service: "pay/api"}]`,
			api + `services: shop: web: httpRoutes: all: backends: [{service: "pay/api"}]` + "\n" + `services: pay: api: httpRoutes: back: backends: [{service: "shop/web"}]`, false},
	} {
		t.Run(name, func(t *testing.T) {
			var cache Cache
			opts := Options{ProxyVersion: "any", Now: time.Date(2027, 1, 10, 0, 0, 0, 0, time.UTC)}
			documents := make([]*v1alpha1.Document, 2)
			for i, text := range []string{c.before, c.after} {
				doc := parse(t, map[string]string{"0.cue": rest, "1.cue": text})
				documents[i] = read(t, doc.Policy, doc.Positions, nil)
			}
			check := func(doc *v1alpha1.Document) {
				t.Helper()
				wantMesh, wantOrigins, wantFindings := Compile(doc, opts)
				gotMesh, gotOrigins, gotFindings := cache.Compile(doc, opts)
				if d := cmp.Diff(string(mesh.Canonical(wantMesh)), string(mesh.Canonical(gotMesh))); d != "" {
					t.Errorf("another mesh (-full +cached):\n%s", d)
				}
				if d := cmp.Diff(wantOrigins, gotOrigins); d != "" {
					t.Errorf("other origins (-full +cached):\n%s", d)
				}
				if d := cmp.Diff(wantFindings, gotFindings); d != "" {
					t.Errorf("other findings (-full +cached):\n%s", d)
				}
			}
			check(documents[0])
			check(documents[1])
			if (cache.taken > 0) != c.taken {
				t.Errorf("%d services were taken over", cache.taken)
			}
			check(documents[0]) // and back
			opts.Now = opts.Now.AddDate(0, 1, 0)
			check(documents[0])
			check(documents[1])
		})
	}
}

// BenchmarkChange is one route changed in a repository of 10,000 services and 30,000 routes.
func BenchmarkChange(b *testing.B) {
	big := large(500, 20)
	at := big.Positions
	documents := []*v1alpha1.Document{read(b, big.Policy, at, nil)}
	changed := big.Policy
	changed.Services = maps.Clone(changed.Services)
	changed.Services["ns-7"] = maps.Clone(changed.Services["ns-7"])
	s := changed.Services["ns-7"]["svc-3"]
	s.HttpRoutes = maps.Clone(s.HttpRoutes)
	s.HttpRoutes["new"] = v1alpha1.HTTPRoute{Port: "http", Match: []v1alpha1.HTTPMatch{{Path: &v1alpha1.PathMatch{Exact: "/new"}}}}
	changed.Services["ns-7"]["svc-3"] = s
	other := *documents[0]
	other.Policy, other.Places = changed, maps.Clone(other.Places)
	other.Places["ns-7"] = read(b, v1alpha1.Policy{Services: map[string]map[string]v1alpha1.Service{"ns-7": changed.Services["ns-7"]}}, at, nil).Places["ns-7"]
	documents = append(documents, &other)
	for _, cached := range []bool{false, true} {
		b.Run(fmt.Sprintf("cached=%v", cached), func(b *testing.B) {
			b.ReportAllocs()
			var cache Cache
			cache.Compile(documents[0], Options{})
			i := 0
			for b.Loop() {
				i++
				if !cached {
					cache = Cache{}
				}
				if m, _, findings := cache.Compile(documents[i%2], Options{}); m == nil {
					b.Fatal(findings)
				}
			}
			if cached && cache.taken == 0 {
				b.Error("nothing was taken over")
			}
		})
	}
}
