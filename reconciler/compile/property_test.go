package compile

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// large makes a valid document of namespaces × services with a bit of everything, its positions as package policy
// gives them: one for every field.
func large(namespaces, services int) *v1alpha1.Document {
	name := func(ns, s int) v1alpha1.ServiceName {
		return v1alpha1.ServiceName(fmt.Sprintf("ns-%d/svc-%d", (ns+namespaces)%namespaces, (s+services)%services))
	}
	p := v1alpha1.Policy{
		Mesh:       &v1alpha1.Mesh{TrustDomain: "corp.example", Defaults: &v1alpha1.Defaults{Timeout: "30s"}, Mandates: &v1alpha1.Mandates{InboundPolicy: "deny"}},
		Namespaces: map[string]v1alpha1.Namespace{},
		Services:   map[string]map[string]v1alpha1.Service{},
		Workloads:  map[string]map[string]v1alpha1.Workload{},
	}
	weight := func(n int64) *int64 { return &n }
	for ns := range namespaces {
		n := fmt.Sprintf("ns-%d", ns)
		p.Namespaces[n] = v1alpha1.Namespace{Defaults: &v1alpha1.Defaults{Timeout: "10s"}}
		p.Services[n], p.Workloads[n] = map[string]v1alpha1.Service{}, map[string]v1alpha1.Workload{}
		for s := range services {
			svc := v1alpha1.Service{
				Ports: map[string]v1alpha1.Port{"http": {Port: 80, Protocol: "http1"}, "grpc-web": {Port: 81}, "admin": {Port: 9000, Protocol: "tcp"}},
				Allow: map[string]v1alpha1.Rule{
					"peers":  {From: []v1alpha1.From{{Service: name(ns, s+1)}, {Service: name(ns+1, s)}, {Service: name(ns, s-1)}}, Ports: []string{"http", "admin"}},
					"orders": {From: []v1alpha1.From{{Authenticated: true}, {Identity: "spiffe://corp.example/ops"}}, Routes: []string{"orders", "cart"}},
				},
				Deny: map[string]v1alpha1.Rule{"guest": {From: []v1alpha1.From{{Identity: "spiffe://corp.example/guest"}}}},
				HttpRoutes: map[string]v1alpha1.HTTPRoute{
					"cart": {Port: "http", Match: []v1alpha1.HTTPMatch{
						{Path: &v1alpha1.PathMatch{Prefix: "/cart"}, Headers: map[string]v1alpha1.HeaderMatch{"x-a": {Exact: "1"}, "X-B": {Exact: "2"}}},
						{Path: &v1alpha1.PathMatch{Exact: "/cart/caf%c3%a9"}},
						{Path: &v1alpha1.PathMatch{Prefix: "/basket/"}, Method: "GET"},
					}, Timeout: "2s", Backends: []v1alpha1.Backend{
						{Service: name(ns, s), Weight: weight(70)}, {Service: name(ns, s+1), Weight: weight(20)}, {Service: name(ns+1, s), Weight: weight(10)},
					}},
					"orders": {Port: "http", Match: []v1alpha1.HTTPMatch{{Path: &v1alpha1.PathMatch{Prefix: "/orders"}}, {Method: "POST"}}},
				},
			}
			local := fmt.Sprintf("svc-%d", s)
			p.Services[n][local] = svc
			p.Workloads[n][local+"-1"] = v1alpha1.Workload{Service: local, Address: fmt.Sprintf("10.%d.%d.%d", ns/250, ns%250, s)}
		}
	}
	doc := &v1alpha1.Document{Policy: p, Positions: map[string]diag.Pos{}}
	line := 0
	place(doc.Positions, "", reflect.ValueOf(p), &line)
	return doc
}

// place gives every field that is set a line of its own.
func place(positions map[string]diag.Pos, at string, v reflect.Value, line *int) {
	if at != "" {
		*line++
		positions[at] = diag.Pos{File: "all.cue", Line: *line, Column: 1}
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			place(positions, at, v.Elem(), line)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			name, _, _ := bytes.Cut([]byte(v.Type().Field(i).Tag.Get("json")), []byte(","))
			if !v.Field(i).IsZero() {
				place(positions, join(at, string(name)), v.Field(i), line)
			}
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			place(positions, join(at, k.String()), v.MapIndex(k), line)
		}
	case reflect.Slice:
		for i := range v.Len() {
			place(positions, join(at, fmt.Sprint(i)), v.Index(i), line)
		}
	}
}

// shuffle permutes every list of a value that is not an order by what it means.
func shuffle(r *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			shuffle(r, v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			shuffle(r, v.Field(i))
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			shuffle(r, v.MapIndex(k))
		}
	case reflect.Slice:
		for i := range v.Len() {
			shuffle(r, v.Index(i))
		}
		if v.Type().Elem() != reflect.TypeFor[v1alpha1.Filter]() && v.Type() != reflect.TypeFor[[]float64]() { // steps
			r.Shuffle(v.Len(), reflect.Swapper(v.Interface()))
		}
	}
}

// compiled is a compiled document with its chunks as a release stores them.
type compiled struct {
	mesh      *mesh.Mesh
	origins   mesh.Origins
	chunks    [][]byte
	refs      []mesh.ChunkRef
	behaviour mesh.Hash
}

func mustCompile(t testing.TB, doc *v1alpha1.Document) (c compiled) {
	t.Helper()
	m, origins, findings := Compile(doc, Options{})
	if len(findings.Errors()) > 0 {
		t.Fatal(findings)
	}
	c.mesh, c.origins = m, origins
	for _, chunk := range m.Chunks() {
		b := mesh.Canonical(chunk)
		c.chunks = append(c.chunks, b)
		c.refs = append(c.refs, mesh.ChunkRef{Namespace: chunk.Namespace, Hash: sha256.Sum256(b), Size: len(b)})
	}
	c.behaviour = mesh.BehaviourHash(c.refs)
	return c
}

func TestSameDocumentSameBytes(t *testing.T) {
	want := mustCompile(t, large(3, 4))
	for range 50 { // Go orders every map anew each time
		doc := large(3, 4)
		got := mustCompile(t, doc)
		if !reflect.DeepEqual(want.mesh, got.mesh) || !reflect.DeepEqual(want.chunks, got.chunks) || want.behaviour != got.behaviour {
			t.Fatalf("the same document made another mesh:\n%s", cmp.Diff(want.mesh, got.mesh))
		}
	}
}

func TestOrderIsNoBehaviour(t *testing.T) {
	want := mustCompile(t, large(3, 4))
	for seed := range uint64(50) {
		doc := large(3, 4)
		shuffle(rand.New(rand.NewPCG(seed, 1)), reflect.ValueOf(&doc.Policy))
		got := mustCompile(t, doc)
		if !reflect.DeepEqual(want.mesh, got.mesh) || want.behaviour != got.behaviour {
			t.Fatalf("seed %d: the order of a list changed the mesh:\n%s", seed, cmp.Diff(want.mesh, got.mesh))
		}
	}
}

func TestPositionsAreNoBehaviour(t *testing.T) {
	doc := large(3, 4)
	want := mustCompile(t, doc)
	moved := &v1alpha1.Document{Policy: doc.Policy, Positions: map[string]diag.Pos{}}
	for p, pos := range doc.Positions {
		pos.Line += 1000
		moved.Positions[p] = pos
	}
	got := mustCompile(t, moved)
	if want.behaviour != got.behaviour {
		t.Error("moving lines changed the behaviour hash")
	}
	if len(got.origins) != len(want.origins) {
		t.Errorf("%d origins, then %d", len(want.origins), len(got.origins))
	}
	for id, pos := range want.origins {
		if got.origins[id].Line != pos.Line+1000 {
			t.Errorf("origin of %s: %s, then %s", id, pos, got.origins[id])
		}
	}
}

// TestOriginsAreComplete wants a place for every id that a sidecar can name.
func TestOriginsAreComplete(t *testing.T) {
	c := mustCompile(t, large(3, 4))
	for _, in := range c.mesh.Inbound {
		ids := []string{string(in.Service)}
		for _, p := range in.Ports {
			ids = append(ids, p.DefaultID)
		}
		for _, r := range in.Rules {
			ids = append(ids, r.ID)
		}
		out, _ := c.mesh.OutboundOf(in.Service)
		for _, r := range out.Routes {
			ids = append(ids, r.ID)
		}
		for _, id := range ids {
			if c.origins[id].IsZero() {
				t.Errorf("%s has no origin", id)
			}
		}
		if !c.origins.BuiltIn(in.Service, "http") {
			t.Errorf("%s: nobody wrote the default of its port http", in.Service)
		}
	}
}

func TestChunksRoundTrip(t *testing.T) {
	c := mustCompile(t, large(3, 4))
	var chunks []mesh.Chunk
	for _, b := range c.chunks {
		var chunk mesh.Chunk
		if err := mesh.Decode(b, &chunk); err != nil {
			t.Fatal(err)
		}
		if again := mesh.Canonical(chunk); !bytes.Equal(b, again) {
			t.Fatalf("a second encoding differs:\n%s\n%s", b, again)
		}
		chunks = append(chunks, chunk)
	}
	for _, from := range [][]mesh.Chunk{c.mesh.Chunks(), chunks} {
		m, err := mesh.Join(from)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c.mesh, m); d != "" {
			t.Errorf("the mesh did not survive (-want +got):\n%s", d)
		}
	}
}

// TestDocumentIsNotWritten: documents are shared between stages and cached.
func TestDocumentIsNotWritten(t *testing.T) {
	doc, again := large(2, 3), large(2, 3)
	c := mustCompile(t, doc)
	c.mesh.Inbound[0].Identities[0], c.mesh.Outbound[0].Ports[0].Name = "written", "written"
	if d := cmp.Diff(again, doc, cmpopts.IgnoreFields(v1alpha1.Document{}, "Positions")); d != "" {
		t.Error(d)
	}
}

// BenchmarkCompile is a repository of 1,000 services, from document to the bytes of a release.
func BenchmarkCompile(b *testing.B) {
	doc := large(50, 20)
	b.Run("compile", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, findings := Compile(doc, Options{}); len(findings.Errors()) > 0 {
				b.Fatal(findings)
			}
		}
	})
	m, origins, _ := Compile(doc, Options{})
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		size := 0
		for b.Loop() {
			size = 0
			for _, c := range m.Chunks() {
				size += len(mesh.Canonical(c))
			}
		}
		b.ReportMetric(float64(size), "bytes")
	})
	b.Run("origins", func(b *testing.B) {
		for b.Loop() {
			mesh.Canonical(origins)
		}
	})
}

// TestAnyDocument: whatever a document holds, there is either a mesh that reads back or findings that help, and never a
// panic. The schema's checks come before, but the compiler does not lean on them.
func TestAnyDocument(t *testing.T) {
	meshes, rejected := 0, 0
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 2))
		doc := large(2, 3) // with two services the next one and the one before are the same caller
		v := reflect.ValueOf(&doc.Policy).Elem()
		for range 1 + r.IntN(3) {
			mutate(r, v)
		}
		line := 1_000_000
		place(doc.Positions, "", v, &line) // what is new was written somewhere too
		m, origins, findings := Compile(doc, Options{})
		if (m == nil) == (len(findings.Errors()) == 0) || (m == nil) != (origins == nil) {
			t.Fatalf("seed %d: a mesh and %d findings", seed, len(findings))
		}
		for _, f := range findings {
			_, known := diag.Explain(f.ID)
			if !known || f.Message == "" || f.Hint == "" || f.Path == "" || f.Pos.IsZero() && f.ID != diag.NoPolicy {
				t.Errorf("seed %d: not a helpful finding: %#v", seed, f)
			}
		}
		if m == nil {
			rejected++
			continue
		}
		meshes++
		var back mesh.Mesh
		if err := mesh.Decode(mesh.Canonical(m), &back); err != nil || !reflect.DeepEqual(m, &back) {
			t.Fatalf("seed %d: the mesh does not read back: %v\n%s", seed, err, cmp.Diff(m, &back))
		}
	}
	if meshes < 20 || rejected < 100 {
		t.Errorf("the cases are lopsided: %d meshes, %d rejected", meshes, rejected)
	}
}

// mutate changes one value somewhere inside v.
func mutate(r *rand.Rand, v reflect.Value) {
	odd := []string{"", "/", "*", "ns-0/svc-1", "svc-1", "http", "admin", "cart", "spiffe://corp.example/x", "spiffe://a/b", "1h", "-1s", "GET", "x-a",
		"permissive", "strict", "tcp", "grpc", "all-unauthenticated", "audit", "\x00", "\xff", "/\xff", "%zz", "10.0.0.1", "a.b", "/a/../b", "/%61"}
	word := func() string { return odd[r.IntN(len(odd))] }
	switch v.Kind() {
	case reflect.Pointer:
		if r.IntN(4) == 0 || v.IsNil() {
			v.Set([]reflect.Value{reflect.Zero(v.Type()), reflect.New(v.Type().Elem())}[r.IntN(2)])
			return
		}
		mutate(r, v.Elem())
	case reflect.Struct:
		mutate(r, v.Field(r.IntN(v.NumField())))
	case reflect.Map:
		if v.IsNil() {
			v.Set(reflect.MakeMap(v.Type()))
		}
		key := reflect.ValueOf(word()).Convert(v.Type().Key())
		if keys := v.MapKeys(); len(keys) > 0 && r.IntN(8) > 0 {
			key = keys[r.IntN(len(keys))]
			if r.IntN(8) == 0 {
				v.SetMapIndex(key, reflect.Value{})
				return
			}
		}
		elem := reflect.New(v.Type().Elem()).Elem()
		if old := v.MapIndex(key); old.IsValid() {
			elem.Set(old)
		}
		mutate(r, elem)
		v.SetMapIndex(key, elem)
	case reflect.Slice:
		switch n := v.Len(); {
		case n == 0 || r.IntN(8) == 0:
			v.Set(reflect.MakeSlice(v.Type(), r.IntN(3), 2))
		case r.IntN(8) == 0:
			v.Set(reflect.Append(v, v.Index(r.IntN(n))))
		default:
			mutate(r, v.Index(r.IntN(n)))
		}
	case reflect.String:
		v.SetString(word())
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Float64:
		v.SetFloat([]float64{-1, 0, 0.00001, 12.5, 100, 101}[r.IntN(6)])
	case reflect.Int64:
		v.SetInt([]int64{-1, 0, 1, 50, 80, 100, 65535, 65536, 1 << 40}[r.IntN(9)])
	}
}
