package policy

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/reconciler/compile"
	"github.com/heddle-mesh/heddle/reconciler/source"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

const header = "package policy\n\n"

// says are findings as "ID file:line path", for tables.
func says(findings diag.List) []string {
	var out []string
	for _, f := range findings {
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s %s", f.ID, f.Pos.Short(), f.Path)))
	}
	return out
}

func TestFindings(t *testing.T) {
	const web = "services: shop: web: ports: http: port: 80\n"
	vendored := func(edit func(map[string][]byte)) map[string][]byte {
		files := v1alpha1.Vendored()
		edit(files)
		return files
	}
	older := vendored(func(m map[string][]byte) {
		types := []byte("package v1alpha1\n#Service: {...}\n#Repository: {...}\n")
		m[v1alpha1.VendorDir+"/types.cue"] = types
		m[v1alpha1.VendorDir+"/rules.cue"] = nil
		m[v1alpha1.VendorDir+"/VERSION"] = fmt.Appendf(nil, "version v0.0.9\nsha256 %s\n", v1alpha1.DigestOf(map[string][]byte{"types.cue": types}))
	})
	tests := []struct {
		name  string
		files map[string]string
		raw   map[string][]byte
		env   string
		want  []string
	}{
		// What a repository may hold.
		{name: "free files", files: map[string]string{"README.md": "x", "CODEOWNERS": "x", ".github/workflows/a.yaml": "x", "docs/a.json": "{}", "services/shop/README.md": "x"}},
		{name: "cue beside mesh.cue", files: map[string]string{"defs.cue": header}, want: []string{"HDL0106 defs.cue"}},
		{name: "directories that nobody reads", files: map[string]string{"lib/x/a.cue": header, "teams/a.cue": header, "_build/a.cue": header, ".github/a.cue": header},
			want: []string{"HDL0116 _build/a.cue", "HDL0116 lib/x/a.cue", "HDL0116 teams/a.cue"}},
		{name: "overlays", files: map[string]string{"overlays/shop/kustomization.yaml": "x", "overlays/shop/a.cue": header, "overlays/README.md": "x", "overlays/shop/deep/er.YML": "x"},
			want: []string{"HDL0116 overlays/shop/a.cue", "HDL0116 overlays/shop/deep/er.YML", "HDL0116 overlays/shop/kustomization.yaml"}},
		{name: "deeper than units", files: map[string]string{"tests/a/b.cue": header, "egress/shop/a/b.cue": header, "external/shop/a/b.cue": header, "tests/a.yaml": "x"},
			want: []string{"HDL0106 egress/shop/a/b.cue", "HDL0106 external/shop/a/b.cue", "HDL0106 tests/a.yaml", "HDL0106 tests/a/b.cue"}},
		{name: "deeper", files: map[string]string{"services/shop/web/a.cue": header}, want: []string{"HDL0106 services/shop/web/a.cue"}},
		{name: "data files", files: map[string]string{"services/shop/web.yaml": "x", "services/web.json": "x"},
			want: []string{"HDL0106 services/shop/web.yaml", "HDL0106 services/web.json"}},
		{name: "names that CUE passes over", files: map[string]string{"services/shop/_web.cue": header, "services/shop/.web.cue": header, "services/shop/a_tool.cue": header, "services/shop/a_test.cue": header, "services/shop/a.CUE": header},
			want: []string{"HDL0106 services/shop/.web.cue", "HDL0106 services/shop/_web.cue", "HDL0106 services/shop/a.CUE", "HDL0106 services/shop/a_test.cue", "HDL0106 services/shop/a_tool.cue"}},
		{name: "no namespace", files: map[string]string{"services/Shop/web.cue": header, "services/_x/web.cue": header},
			want: []string{"HDL0106 services/Shop/web.cue", "HDL0106 services/_x/web.cue"}},
		{name: "nested module", files: map[string]string{"services/shop/cue.mod/module.cue": "module: \"x.example\"\n", "services/shop/web.cue": header + web},
			want: []string{"HDL0107 services/shop/cue.mod/module.cue"}},
		{name: "edited schema", raw: vendored(func(m map[string][]byte) { m[v1alpha1.VendorDir+"/rules.cue"] = []byte("package v1alpha1\n") }),
			want: []string{"HDL0108 " + v1alpha1.VendorDir + "/VERSION"}},
		{name: "added to the schema", raw: vendored(func(m map[string][]byte) { m[v1alpha1.VendorDir+"/more.cue"] = []byte("package v1alpha1\n") }),
			want: []string{"HDL0108 " + v1alpha1.VendorDir + "/VERSION"}},
		{name: "older schema, intact, is not what judges", raw: older, files: map[string]string{"services/shop/web.cue": header + "services: shop: web: prts: {}\n"},
			want: []string{"HDL0202 services/shop/web.cue:3 services.shop.web.prts"}},
		{name: "schema as a dependency", files: map[string]string{"cue.mod/module.cue": "module: \"x.example@v0\"\nlanguage: version: \"v0.14.0\"\ndeps: \"github.com/heddle-mesh/heddle/schema/v1alpha1@v0\": v: \"v0.1.0\"\n"},
			want: []string{"HDL0110 cue.mod/module.cue:3 deps"}},
		{name: "language of the future", files: map[string]string{"cue.mod/module.cue": "module: \"x.example@v0\"\nlanguage: version: \"v0.99.0\"\n"},
			want: []string{"HDL0203 cue.mod/module.cue:2 language.version"}},

		// How a file says what it is.
		{name: "imports", files: map[string]string{"services/shop/web.cue": header + "import (\n\t\"tool/exec\"\n\t\"example.com/x\"\n\t\"strings\"\n)\n\n" + web + "_a: strings.ToUpper(exec.X + x.Y)\n"},
			want: []string{"HDL0110 services/shop/web.cue:4", "HDL0110 services/shop/web.cue:5"}},
		{name: "attributes", files: map[string]string{"services/shop/web.cue": "@extern(embed)\n\npackage policy\n\n_x: _ @embed(file=\"/etc/passwd\",type=text)\n_y: string @tag(now,var=now)\n" + web},
			want: []string{"HDL0111 services/shop/web.cue:1", "HDL0111 services/shop/web.cue:5", "HDL0111 services/shop/web.cue:6"}},
		{name: "build attributes", files: map[string]string{"services/shop/web.cue": "@if(prod)\n\npackage policy\n\n" + web, "services/shop/api.cue": "@ignore()\n\npackage policy\n"},
			want: []string{"HDL0111 services/shop/api.cue:1", "HDL0111 services/shop/web.cue:1"}},
		{name: "packages", files: map[string]string{"services/shop/a.cue": "package other\n", "services/shop/b.cue": "x: 1\n", "services/shop/web.cue": header + web},
			want: []string{"HDL0112 services/shop/a.cue:1", "HDL0112 services/shop/b.cue:1"}},

		{name: "tags that only the stock CLI would inject", env: "staging", files: map[string]string{
			"mesh.cue":              baseMesh + "_q: *\"a\" | string @tag(env)\n_r: e: *\"a\" | string @tag(env)\n",
			"services/all.cue":      header + "_s: *\"a\" | string @tag(env)\n",
			"services/shop/web.cue": header + "_t: *\"a\" | string @tag(env)\n" + web},
			want: []string{"HDL0111 mesh.cue:10", "HDL0111 mesh.cue:11", "HDL0111 services/all.cue:3", "HDL0111 services/shop/web.cue:3"}},
		{name: "a tag with options", files: map[string]string{"mesh.cue": header + "_env: *\"default\" | string @tag(env,short=a|b)\nmesh: trustDomain: \"a.example\"\n"},
			want: []string{"HDL0111 mesh.cue:3"}},
		{name: "fields that only constrain", files: map[string]string{"services/shop/web.cue": header + "services: shop: web: {\n\tports: http: port: 80\n\tdeny?: all: from: [{authenticated: true}]\n}\nservices: shop: api?: ports: http: port: 80\n"},
			want: []string{"HDL0207 services/shop/web.cue:5 services.shop.web.deny", "HDL0207 services/shop/web.cue:7 services.shop.api"}},
		{name: "module.cue that is not CUE", files: map[string]string{"cue.mod/module.cue": "module: \n"}, want: []string{"HDL0201 cue.mod/module.cue:1"}},
		{name: "other modules", files: map[string]string{"cue.mod/module.cue": "module: \"x.example@v0\"\n// language: version: \"v0.99.0\"\nlanguage: version: \"v0.14.0\"\ndeps: \"foo.example/x@v0\": v: \"v0.0.1\"\n"},
			want: []string{"HDL0110 cue.mod/module.cue:4 deps"}},
		{name: "an exponent is told once", files: map[string]string{"services/shop/web.cue": header + "services: shop: web: ports: http: port: 8e1\n"},
			want: []string{"HDL0203 services/shop/web.cue:3 services.shop.web.ports.http.port"}},
		{name: "an unknown field's value is not told as well", files: map[string]string{"services/shop/web.cue": header + web + "foo: bank\n"},
			want: []string{"HDL0202 services/shop/web.cue:4 foo"}},
		{name: "a wrong value in mesh.cue is told once", files: map[string]string{"mesh.cue": header + "mesh: trustDomain: \"Shop\"\n",
			"services/shop/web.cue": header + web, "services/pay/api.cue": header + "services: pay: api: ports: http: port: 80\n"},
			want: []string{"HDL0203 mesh.cue:3 mesh.trustDomain"}},
		{name: "who contradicts a file above is told", files: map[string]string{"mesh.cue": baseMesh + "mesh: defaults: timeout: _t.a\n_t: a: \"5s\"\n", "services/shop/web.cue": header + web + "_t: a: \"6s\"\n"},
			want: []string{"HDL0205 services/shop/web.cue:4 _t.a"}},

		// Fences.
		{name: "what stands in a fence that is not one's own is not told as well", files: map[string]string{"services/shop/web.cue": header + web + "_s: services: bank: core: allow: e: from: []\n_s\n"},
			want: []string{"HDL0211 services/shop/web.cue:4 services.bank"}},
		{name: "another namespace", files: map[string]string{"services/shop/web.cue": header + web + "services: pay: api: ports: http: port: 81\nworkloads: pay: a: service: \"api\"\nnamespaces: pay: {}\n"},
			want: []string{"HDL0211 services/shop/web.cue:4 services.pay", "HDL0211 services/shop/web.cue:5 workloads.pay", "HDL0211 services/shop/web.cue:6 namespaces.pay"}},
		{name: "the mesh", files: map[string]string{"services/shop/web.cue": header + web + "mesh: maxStale: \"1h\"\n", "services/all.cue": header + "mesh: maxStale: \"1h\"\n"},
			want: []string{"HDL0211 services/all.cue:3 mesh", "HDL0211 services/shop/web.cue:4 mesh"}},
		{name: "services in mesh.cue and above namespaces", files: map[string]string{"mesh.cue": baseMesh + web, "services/all.cue": header + web},
			want: []string{"HDL0211 mesh.cue:10 services", "HDL0211 services/all.cue:3 services"}},
		{name: "by pattern", files: map[string]string{"services/shop/web.cue": header + "services: [string]: [string]: ports: http: port: 80\nworkloads: \"\\(_n)\": {}\n_n: \"pay\"\n[=~\"^m\"]: {}\n", "mesh.cue": baseMesh + "[string]: _\n"},
			want: []string{"HDL0211 mesh.cue:10", "HDL0211 services/shop/web.cue:3 services", "HDL0211 services/shop/web.cue:4 workloads", "HDL0211 services/shop/web.cue:6"}},
		{name: "by embedding", files: map[string]string{"services/shop/web.cue": header + web + "{services: pay: api: ports: http: port: 81}\nif true {services: ops: api: ports: http: port: 81}\n"},
			want: []string{"HDL0211 services/shop/web.cue:4 services.pay", "HDL0211 services/shop/web.cue:5 services.ops"}},
		{name: "by reference", files: map[string]string{"services/shop/web.cue": header + web + "_x: services: pay: api: ports: http: port: 81\n_x\n"},
			want: []string{"HDL0211 services/shop/web.cue:4 services.pay"}},
		{name: "the mesh by reference", files: map[string]string{"services/shop/web.cue": header + web + "_x: mesh: maxStale: \"1h\"\n_x\n"},
			want: []string{"HDL0211 services/shop/web.cue:1 mesh"}},
		{name: "the mesh by a shared field", files: map[string]string{"mesh.cue": baseMesh + "mesh: defaults: timeout: {default: \"9s\", staging: \"8s\"}[_env]\n",
			"services/shop/api.cue": header, "services/shop/web.cue": header + web + "_env: \"staging\"\n"},
			want: []string{"HDL0211 services/shop/web.cue:4 mesh"}},
		{name: "null", files: map[string]string{"services/shop/web.cue": header + "services: shop: web: {\n\tports: http: port: 80\n\tallow: a: {from: [{authenticated: true}], ports: null}\n}\n"},
			want: []string{"HDL0203 services/shop/web.cue:5 services.shop.web.allow.a.ports"}},
		{name: "by generated names", files: map[string]string{"services/shop/web.cue": header + "for n in [\"a\", \"b\"] {services: shop: \"\\(n)\": ports: http: port: 80}\n"}},
		{name: "shared values from above", files: map[string]string{"mesh.cue": baseMesh + "_std: timeout: \"5s\"\n", "services/all.cue": header + "_port: 80\n",
			"services/shop/web.cue": header + "services: shop: web: {ports: http: port: _port, defaults: _std}\n"}},
		{name: "wrong values from above are told where they are used", files: map[string]string{"mesh.cue": baseMesh + "_std: timeout: \"5 s\"\n", "services/shop/web.cue": header + "services: shop: web: {ports: http: port: 80, defaults: _std}\n"},
			want: []string{"HDL0203 services/shop/web.cue:3 services.shop.web.defaults.timeout"}},

		// Environments.
		{name: "environment", env: "staging"},
		{name: "no tag for an environment", env: "staging", files: map[string]string{"mesh.cue": header + "mesh: trustDomain: \"a.example\"\n"}, want: []string{"HDL0204 mesh.cue _env"}},
		{name: "no tag, no environment", files: map[string]string{"mesh.cue": header + "mesh: trustDomain: \"a.example\"\n"}},
		{name: "an environment that is not one of those", env: "prod", files: map[string]string{"mesh.cue": header + "_env: *\"default\" | \"staging\" @tag(env)\nmesh: trustDomain: \"a.example\"\n"},
			want: []string{"HDL0203 mesh.cue:3 _env"}},

		// One file's fault does not hide another's.
		{name: "broken mesh.cue", files: map[string]string{"mesh.cue": baseMesh + "_std: timeout: \"5s\"\n}\n", "services/shop/web.cue": header + "services: shop: web: {ports: http: port: 0, defaults: _std}\n"},
			want: []string{"HDL0201 mesh.cue:11", "HDL0203 services/shop/web.cue:3 services.shop.web.ports.http.port"}},
		{name: "schema unused by the author", files: map[string]string{"mesh.cue": header + "mesh: trustDomain: \"a.example\"\nmsh: 1\n", "services/shop/web.cue": header + "services: shop: web: ports: http: prt: 1\n"},
			want: []string{"HDL0202 mesh.cue:4 msh", "HDL0202 services/shop/web.cue:3 services.shop.web.ports.http.prt"}},
	}
	e := New(Options{})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files := map[string][]byte{}
			maps.Copy(files, tt.raw)
			for name, text := range tt.files {
				files[name] = []byte(text)
			}
			_, findings, err := e.LoadFiles(t.Context(), repository(files), tt.env)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, says(findings)); d != "" {
				t.Errorf("findings (-want +got):\n%s\n%v", d, findings)
			}
		})
	}
}

// TestDefaultMarks: a disjunction with a default is what its default is, at every level. Fields under such a level are
// services like others, and none of them may vanish.
func TestDefaultMarks(t *testing.T) {
	e := New(Options{})
	for _, text := range []string{
		"services: *{shop: api: ports: http: port: 81} | {}\n",
		"services: shop: *{api: ports: http: port: 81} | {}\n",
		"*{services: shop: api: ports: http: port: 81} | {}\n",
	} {
		files := repository(map[string][]byte{"services/shop/web.cue": []byte(header + "services: shop: web: ports: http: port: 80\n" + text)})
		doc, findings, err := e.LoadFiles(t.Context(), files, "")
		if err != nil {
			t.Fatal(err)
		}
		if len(findings) == 0 && len(doc.Policy.Services["shop"]) != 2 {
			t.Errorf("%s is let in, and of two services are left %v", text, doc.Policy.Services)
		}
		t.Log(findings)
	}
}

func TestNoPolicy(t *testing.T) {
	e := New(Options{})
	for _, files := range []map[string][]byte{nil, {"README.md": nil}, {"services/shop/web.cue": []byte(header + "services: shop: web: ports: http: port: 0\n")}} {
		_, findings, err := e.LoadFiles(t.Context(), files, "")
		if err != nil || len(findings) == 0 || findings[0].ID != diag.NoPolicy {
			t.Errorf("%d files: %v %v", len(files), findings, err)
		}
		if len(files) == 1 && files["README.md"] == nil && len(findings) != 2 {
			if _, readme := files["README.md"]; !readme {
				t.Errorf("without mesh.cue the services are not looked at: %v", findings)
			}
		}
	}
}

func TestDocument(t *testing.T) {
	e := New(Options{})
	files := repository(map[string][]byte{
		"mesh.cue": []byte(baseMesh + "mesh: defaults: timeout: {default: \"9s\", staging: \"8s\"}[_env]\n"),
		"services/shop/web.cue": []byte(header + `services: shop: web: {
	ports: "http": {port: 8080}
	allow: all: from: [
		{authenticated: true},
		{service: "shop/api"},
	]
}
for n in ["x", "y"] {
	services: shop: "api-\(n)": ports: http: port: 80
}
namespaces: shop: defaults: mtls: "strict"
workloads: shop: w1: service: "web"
`)})
	doc, findings, err := e.LoadFiles(t.Context(), files, "staging")
	if err != nil || len(findings) > 0 {
		t.Fatal(findings, err)
	}
	yes := v1alpha1.From{Authenticated: true}
	want := v1alpha1.Policy{
		Mesh: &v1alpha1.Mesh{TrustDomain: "shop.example", Defaults: &v1alpha1.Defaults{Timeout: "8s"}},
		Services: map[string]map[string]v1alpha1.Service{"shop": {
			"web": {Ports: map[string]v1alpha1.Port{"http": {Port: 8080}},
				Allow: map[string]v1alpha1.Rule{"all": {From: []v1alpha1.From{yes, {Service: "shop/api"}}}}},
			"api-x": {Ports: map[string]v1alpha1.Port{"http": {Port: 80}}},
			"api-y": {Ports: map[string]v1alpha1.Port{"http": {Port: 80}}},
		}},
		Namespaces: map[string]v1alpha1.Namespace{"shop": {Defaults: &v1alpha1.Defaults{Mtls: "strict"}}},
		Workloads:  map[string]map[string]v1alpha1.Workload{"shop": {"w1": {Service: "web"}}},
		Groups:     map[string]map[string]v1alpha1.WorkloadGroup{},
		Egress:     map[string]map[string]v1alpha1.Egress{},
	}
	if d := cmp.Diff(want, doc.Policy); d != "" {
		t.Errorf("policy (-want +got):\n%s", d)
	}
	const web = "services/shop/web.cue"
	for path, want := range map[string]string{
		"mesh":                                             "mesh.cue:9:1",
		"mesh.trustDomain":                                 "mesh.cue:9:7",
		"mesh.defaults.timeout":                            "mesh.cue:10:17",
		"services.shop.web":                                web + ":3:17",
		"services.shop.web.ports.http.port":                web + ":4:18",
		"services.shop.web.ports.http.protocol":            web + ":4:9", // not written: the port's
		"services.shop.web.allow.all.from.1":               web + ":7:3",
		"services.shop.web.allow.all.from.0.authenticated": web + ":6:4",
		"services.shop.api-y":                              web + ":11:18", // a name that the syntax does not show
		"services.shop.api-y.ports.http.port":              web + ":11:43",
		"workloads.shop.w1.service":                        web + ":14:22",
	} {
		if got := doc.Pos(strings.Split(path, ".")...).String(); got != want {
			t.Errorf("%s stands at %s, want %s", path, got, want)
		}
	}
}

// TestCache: only what changed is evaluated again, and ancestors count as input.
func TestCache(t *testing.T) {
	e := New(Options{})
	files := repository(map[string][]byte{
		"services/a/x.cue": []byte(header + "services: a: x: ports: http: port: 80\n"),
		"services/b/x.cue": []byte(header + "services: b: x: ports: http: port: 0\n"),
	})
	known := map[*part]bool{}
	// load returns how many units were evaluated.
	load := func(env string) (fresh int, findings diag.List) {
		t.Helper()
		_, findings, err := e.LoadFiles(t.Context(), files, env)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range e.cache {
			if !known[p] {
				known[p] = true
				fresh++
			}
		}
		return fresh, findings
	}
	steps := []struct {
		name            string
		file, text      string
		env             string
		fresh, findings int
	}{
		{name: "all", fresh: 3, findings: 1},
		{name: "nothing changed, the failure is remembered", findings: 1},
		{name: "one directory", file: "services/b/x.cue", text: header + "services: b: x: ports: http: port: 81\n", fresh: 1},
		{name: "a comment counts: positions move", file: "services/a/x.cue", text: "// moved\n" + header + "services: a: x: ports: http: port: 80\n", fresh: 1},
		{name: "reverted", file: "services/b/x.cue", text: header + "services: b: x: ports: http: port: 0\n", findings: 1},
		{name: "another environment", env: "staging", fresh: 3, findings: 1},
		{name: "an ancestor beside the namespaces", file: "services/all.cue", text: header + "_a: 1\n", fresh: 3, findings: 1},
		{name: "the root", file: "mesh.cue", text: baseMesh + "// comment\n", fresh: 4, findings: 1},
		{name: "a free file", file: "README.md", text: "x", findings: 1},
		{name: "the vendored schema is not input", file: v1alpha1.VendorDir + "/rules.cue", text: "package v1alpha1\n", findings: 2},
	}
	for _, s := range steps {
		if s.file != "" {
			files[s.file] = []byte(s.text)
		}
		if fresh, findings := load(s.env); fresh != s.fresh || len(findings) != s.findings {
			t.Errorf("%s: evaluated %d units, want %d; %d findings, want %d: %v", s.name, fresh, s.fresh, len(findings), s.findings, findings)
		}
	}
	for range keep + 1 {
		load("")
	}
	if n := len(e.cache); n != 4 {
		t.Errorf("%d parts are remembered after %d loads of the same 4 units", n, keep+1)
	}
}

// TestLoadFromGit reads a commit through the source, and reads only what it needs.
func TestLoadFromGit(t *testing.T) {
	git, err := exec.LookPath("git")
	if err != nil {
		t.Skip("SKIPPED: no git on this machine")
	}
	dir := t.TempDir()
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(git, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return string(bytes.TrimSpace(out))
	}
	run("init", "-q", "-b", "main")
	writeFiles(t, dir, template(t))
	run("add", "-A")
	run("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-q", "-m", "policy")

	src, err := source.Open(t.Context(), source.Options{URL: dir, Ref: "main", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if _, err := src.Fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	sn, findings, err := src.Snapshot(t.Context(), run("rev-parse", "HEAD"))
	if err != nil || len(findings) > 0 {
		t.Fatal(findings, err)
	}
	e := New(Options{})
	doc, findings, err := e.Load(t.Context(), sn, "")
	if err != nil || len(findings) > 0 {
		t.Fatal(findings, err)
	}
	fromFiles, _, err := New(Options{}).LoadFiles(t.Context(), template(t), "")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(fromFiles, doc); d != "" {
		t.Errorf("a commit and its files differ (-files +commit):\n%s", d)
	}
}

// TestUnread: one wrong service hides neither what compile finds in its neighbours nor makes references to it wrong; where
// a file cannot be read at all, its namespace is unread.
func TestUnread(t *testing.T) {
	e := New(Options{})
	files := repository(map[string][]byte{
		"services/shop/bad.cue": []byte(header + "services: shop: bad: ports: http: prt: 80\n"),
		"services/shop/web.cue": []byte(header + "services: shop: web: {ports: http: port: 80, httpRoutes: r: backends: [{service: \"shop/bad\", weight: 50}, {service: \"shop/nope\", weight: 50}]}\n"),
		"services/pay/api.cue":  []byte(header + "services: pay: api: {ports: http: port: 80, allow: a: from: [{service: \"shop/bad\"}, {service: \"shop/gone\"}]}\n"),
	})
	check := func(unread []string, want ...string) {
		t.Helper()
		doc, findings, err := e.LoadFiles(t.Context(), files, "")
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(doc.Unread, unread) {
			t.Errorf("unread %v, want %v", doc.Unread, unread)
		}
		_, _, more := compile.Compile(doc, compile.Options{})
		if d := cmp.Diff(want, says(append(findings, more...))); d != "" {
			t.Errorf("findings of both stages (-want +got):\n%s", d)
		}
	}
	check([]string{"shop/bad"},
		"HDL0202 services/shop/bad.cue:3 services.shop.bad.ports.http.prt",
		"HDL0301 services/pay/api.cue:3 services.pay.api.allow.a.from.1.service",
		"HDL0301 services/shop/web.cue:3 services.shop.web.httpRoutes.r.backends.1.service")
	files["services/shop/torn.cue"] = []byte(header + "services: shop: nope: {\n")
	check([]string{"shop"},
		"HDL0202 services/shop/bad.cue:3 services.shop.bad.ports.http.prt",
		"HDL0201 services/shop/torn.cue:3")
}

// TestDeterminism: the same files give the same document and findings, whatever the number of workers.
func TestDeterminism(t *testing.T) {
	files := large(8, 3)
	files["services/team-003/bad.cue"] = []byte(header + "services: \"team-003\": bad: {}\n")
	type outcome struct {
		Doc      *v1alpha1.Document
		Findings diag.List
	}
	var first outcome
	for i, workers := range []int{1, 2, 4} {
		doc, findings, err := New(Options{Workers: workers}).LoadFiles(t.Context(), files, "")
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = outcome{doc, findings}
			if len(findings) != 1 || !slices.Equal(doc.Unread, []string{"team-003/bad"}) || len(doc.Policy.Services) != 8 {
				t.Fatalf("%v, unread %v, %d namespaces", findings, doc.Unread, len(doc.Policy.Services))
			}
			continue
		}
		if d := cmp.Diff(first, outcome{doc, findings}); d != "" {
			t.Errorf("%d workers (-1 worker +%d):\n%s", workers, workers, d)
		}
	}
}
