package compile

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// language is policy with one of each that the language has.
func language(t testing.TB) *v1alpha1.Document {
	t.Helper()
	ar, err := txtar.ParseFile("testdata/language.txtar")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, f := range ar.Files {
		if strings.HasSuffix(f.Name, ".cue") {
			files[f.Name] = string(f.Data)
		}
	}
	return parse(t, files)
}

var anySidecar = Options{ProxyVersion: "any"}

// TestLanguageOrder: neither Go's order of maps nor the order of lists is behaviour, but for filters and for the steps of
// a rollout, which are an order.
func TestLanguageOrder(t *testing.T) {
	want, _, findings := Compile(language(t), anySidecar)
	if len(findings.Errors()) > 0 {
		t.Fatal(findings)
	}
	for seed := range uint64(50) {
		doc := language(t)
		shuffle(rand.New(rand.NewPCG(seed, 3)), reflect.ValueOf(&doc.Policy))
		got, _, findings := Compile(doc, anySidecar)
		if got == nil {
			t.Fatalf("seed %d: %v", seed, findings)
		}
		if a, b := mesh.Canonical(want), mesh.Canonical(got); string(a) != string(b) {
			t.Fatalf("seed %d: the order of a list changed the mesh:\n%s", seed, cmp.Diff(string(a), string(b)))
		}
	}
}

// TestAnyLanguage: whatever a document holds, there is either a mesh that reads back or findings that help, and never a
// panic.
func TestAnyLanguage(t *testing.T) {
	meshes, rejected := 0, 0
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(seed, 4))
		doc := language(t)
		v := reflect.ValueOf(&doc.Policy).Elem()
		for range 1 + r.IntN(3) {
			mutate(r, v)
		}
		line := 1_000_000
		place(doc.Positions, "", v, &line)
		m, origins, findings := Compile(doc, anySidecar)
		if (m == nil) == (len(findings.Errors()) == 0) || (m == nil) != (origins == nil) {
			t.Fatalf("seed %d: a mesh and %d findings", seed, len(findings))
		}
		for _, f := range findings {
			if _, known := diag.Explain(f.ID); !known || f.Message == "" || f.Hint == "" || f.Path == "" || f.Pos.IsZero() && f.ID != diag.NoPolicy {
				t.Errorf("seed %d: not a helpful finding: %#v", seed, f)
			}
		}
		for s := range doc.Policy.Services["shop"] {
			Effective(doc, mesh.Name("shop", s))
		}
		if m == nil {
			rejected++
			continue
		}
		meshes++
		var back mesh.Mesh
		b := mesh.Canonical(m)
		if err := mesh.Decode(b, &back); err != nil || string(mesh.Canonical(back)) != string(b) {
			t.Fatalf("seed %d: the mesh does not read back: %v", seed, err)
		}
	}
	if meshes < 100 || rejected < 300 {
		t.Errorf("the cases are lopsided: %d meshes, %d rejected", meshes, rejected)
	}
}

// TestBuiltInTable wants every default of the language in the reference's table, once, and the compiler to go by it.
func TestBuiltInTable(t *testing.T) {
	var paths []string
	for _, v := range mesh.BuiltIn {
		if slices.Contains(paths, v.Path) || v.Value == "" || v.Source == "" {
			t.Errorf("%s is there twice, or says nothing: %v", v.Path, v)
		}
		paths = append(paths, v.Path)
	}
	var walk func(at string, of reflect.Type)
	walk = func(at string, of reflect.Type) {
		for f := range of.Fields() {
			field, ft := at+"."+fieldName(f), f.Type
			if ft.Kind() == reflect.Pointer {
				ft = ft.Elem()
			}
			if ft.Kind() == reflect.Struct && ft != reflect.TypeFor[v1alpha1.HashKey]() {
				walk(field, ft)
			} else if !slices.Contains(paths, field) {
				t.Errorf("%s has no last-resort value in mesh.BuiltIn", field)
			}
		}
	}
	walk("defaults", reflect.TypeFor[v1alpha1.Defaults]())

	// What the table says is what a service gets that nobody says anything about.
	doc := parse(t, map[string]string{"mesh.cue": `mesh: trustDomain: "corp.example"
		services: shop: web: {ports: http: port: 80, httpRoutes: r: retry: {}}`})
	settings, ok := Effective(doc, "shop/web")
	if !ok || len(settings) < 30 {
		t.Fatalf("only %v", settings)
	}
	for _, s := range settings {
		field := strings.TrimPrefix(strings.TrimPrefix(s.Path, "ports.http."), "httpRoutes.r.")
		i := slices.IndexFunc(mesh.BuiltIn, func(v mesh.BuiltInValue) bool { return v.Path == "defaults."+field })
		if i < 0 {
			t.Errorf("%s is no default", s.Path)
			continue
		}
		want := mesh.BuiltIn[i].Value
		if field == "retry.on" {
			want, _, _ = strings.Cut(want, ", ") // what an HTTP route takes of it
		}
		if s.Value != want || s.Level != "built in" || !s.Pos.IsZero() {
			t.Errorf("%s is %+v, and the table says %q", s.Path, s, want)
		}
	}
}

// TestEffective: each field on its own, the nearest level wins, and says where it was written.
func TestEffective(t *testing.T) {
	doc := parse(t, map[string]string{"mesh.cue": `mesh: {trustDomain: "corp.example", defaults: {timeout: "30s", retry: {retries: 3, on: ["503"], backoff: {min: "1ms", max: "2ms"}}, mtls: "permissive"}}
namespaces: shop: defaults: {retry: budget: percent: 5, breaker: window: "1m", egressPolicy: "allow"}
services: shop: web: {
	ports: {http: {port: 80, protocol: "http1", mtls: "strict"}, other: {port: 81, rateLimit: total: 5}}
	httpRoutes: cart: {port: "http", timeout: "2s", retry: {timeout: "1s"}}
	defaults: {retry: {idempotent: true}, limits: requests: 9, rateLimit: perIdentity: 3}
}
`})
	got := map[string]string{}
	settings, _ := Effective(doc, "shop/web")
	for _, s := range settings {
		if _, twice := got[s.Path]; twice {
			t.Errorf("%s is there twice", s.Path)
		}
		got[s.Path] = s.Value + " " + s.Level + " " + s.Pos.Short()
	}
	for path, want := range map[string]string{
		"ports.http.protocol":                  "http1 port mesh.cue:4",
		"ports.http.mtls":                      "strict port mesh.cue:4",
		"ports.other.mtls":                     "permissive mesh mesh.cue:1",
		"ports.other.inboundPolicy":            "deny built in -",
		"ports.other.rateLimit.total":          "5 port mesh.cue:4",
		"ports.other.rateLimit.perIdentity":    "3 service mesh.cue:6",
		"ports.other.timeout":                  "30s mesh mesh.cue:1",
		"ports.other.retry.retries":            "3 mesh mesh.cue:1",
		"httpRoutes.cart.timeout":              "2s route mesh.cue:5",
		"httpRoutes.cart.responseTimeout":      "none built in -",
		"httpRoutes.cart.retry.retries":        "3 mesh mesh.cue:1",
		"httpRoutes.cart.retry.on":             "503 mesh mesh.cue:1",
		"httpRoutes.cart.retry.timeout":        "1s route mesh.cue:5",
		"httpRoutes.cart.retry.backoff.max":    "2ms mesh mesh.cue:1",
		"httpRoutes.cart.retry.budget.percent": "5 namespace mesh.cue:2",
		"httpRoutes.cart.retry.budget.window":  "10s built in -",
		"httpRoutes.cart.retry.idempotent":     "true service mesh.cue:6",
		"breaker.window":                       "1m namespace mesh.cue:2",
		"breaker.consecutive":                  "7 built in -",
		"limits.requests":                      "9 service mesh.cue:6",
		"limits.pending":                       "10000 built in -",
		"egressPolicy":                         "allow namespace mesh.cue:2",
	} {
		if got[path] != want {
			t.Errorf("%s is %q, want %q", path, got[path], want)
		}
	}
	if _, ok := Effective(doc, "shop/gone"); ok {
		t.Error("a service that is not there has settings")
	}
}
