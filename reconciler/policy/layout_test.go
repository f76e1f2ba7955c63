package policy

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// Pieces of policy, each one line.
const (
	shopWeb   = "services: shop: web: ports: http: port: 80\n"
	shopGroup = "groups: shop: pool: {service: \"web\", max: 3}\n"
	shopVM    = "workloads: shop: vm: service: \"web\"\n"
	shopOut   = "egress: shop: api: hosts: [\"api.example.org\"]\n"
	shopNS    = "namespaces: shop: defaults: timeout: \"5s\"\n"
	aTest     = "tests: \"gateway 1.0\": {from: \"-\", to: \"shop/web\", expect: \"deny\"}\n"
	invariant = "invariants: closed: never: {from: anyone: true, to: service: \"shop/web\"}\n"
)

// all has a file in every place of the layout.
func all() map[string]string {
	return map[string]string{
		"mesh.cue":              baseMesh + "_std: \"7s\"\n" + invariant,
		"services/shop/web.cue": header + shopWeb + "workloads: shop: own: service: \"web\"\n" + "namespaces: shop: defaults: timeout: _std\n",
		"services/all.cue":      header + "_services: 1\n",
		"external/shop/vm.cue":  header + shopVM + shopGroup + "_x: _external\n",
		"external/all.cue":      header + "_external: _std\n",
		"egress/shop/api.cue":   header + shopOut,
		"tests/shop.cue":        header + aTest,
	}
}

func load(t *testing.T, e *Evaluator, files map[string]string, env string) (*v1alpha1.Document, []string) {
	t.Helper()
	raw := map[string][]byte{}
	for name, text := range files {
		raw[name] = []byte(text)
	}
	doc, findings, err := e.LoadFiles(t.Context(), repository(raw), env)
	if err != nil {
		t.Fatal(err)
	}
	return doc, says(findings)
}

func TestLayout(t *testing.T) {
	doc, findings := load(t, New(Options{}), all(), "")
	if len(findings) > 0 || len(doc.Unread) > 0 {
		t.Fatal(findings, doc.Unread)
	}
	p := doc.Policy
	got := []bool{
		p.Services["shop"]["web"].Ports["http"].Port == 80, p.Workloads["shop"]["vm"].Service == "web", p.Workloads["shop"]["own"].Service == "web",
		p.Groups["shop"]["pool"].Max == 3, slices.Equal(p.Egress["shop"]["api"].Hosts, []v1alpha1.Hostname{"api.example.org"}),
		p.Namespaces["shop"].Defaults.Timeout == "7s", p.Tests["gateway 1.0"].Expect == "deny", p.Invariants["closed"].Never != nil,
	}
	if slices.Contains(got, false) {
		t.Errorf("read %v: %+v", got, p)
	}
	for _, at := range [][]string{{"external/shop/vm.cue:3", "workloads", "shop", "vm"}, {"egress/shop/api.cue:3", "egress", "shop", "api", "hosts"},
		{"tests/shop.cue:3", "tests", "gateway 1.0", "expect"}, {"mesh.cue:11", "invariants", "closed"}, {"external/shop/vm.cue:4", "groups", "shop", "pool", "max"}} {
		if got := doc.Pos(at[1:]...).Short(); got != at[0] {
			t.Errorf("%s is at %s, want %s", strings.Join(at[1:], "."), got, at[0])
		}
	}
}

// TestFences: each place writes what is its own, however it writes it.
func TestFences(t *testing.T) {
	pieces := map[string]string{"services": shopWeb, "workloads": shopVM, "groups": shopGroup, "egress": shopOut, "namespaces": shopNS,
		"tests": aTest, "invariants": invariant, "mesh": "mesh: maxStale: \"1h\"\n"}
	places := []struct {
		file  string
		roots []string
	}{
		{"mesh.cue", []string{"mesh", "invariants"}},
		{"services/shop/x.cue", []string{"services", "workloads", "groups", "egress", "namespaces"}},
		{"external/shop/x.cue", []string{"workloads", "groups"}},
		{"egress/shop/x.cue", []string{"egress"}},
		{"tests/x.cue", []string{"tests"}},
		{"services/x.cue", nil}, {"external/x.cue", nil}, {"egress/x.cue", nil},
	}
	// What a line refers to is there, whatever the place.
	spellings := map[string]func(string) string{
		"plain":      func(line string) string { return line },
		"embedded":   func(line string) string { return "{" + strings.TrimSuffix(line, "\n") + "}\n" },
		"referenced": func(line string) string { return "_y: {" + strings.TrimSuffix(line, "\n") + "}\n_y\n" },
		"computed":   func(line string) string { return "if true {" + strings.TrimSuffix(line, "\n") + "}\n" },
	}
	e := New(Options{})
	for _, place := range places {
		for root, line := range pieces {
			for how, spell := range spellings {
				text := header + spell(line)
				if place.file == meshFile {
					text = baseMesh + spell(line)
				}
				files := map[string]string{place.file: text}
				if !strings.Contains(place.file, "/x.cue") || strings.Count(place.file, "/") < 2 {
					files["services/shop/base.cue"] = header // somebody who sees the files above
				}
				_, findings := load(t, e, files, "")
				allowed := slices.Contains(place.roots, root)
				fenced := slices.ContainsFunc(findings, func(f string) bool { return strings.HasPrefix(f, "HDL0211 ") })
				// What does not belong there may already be a finding of CUE's, but not where it is written out.
				if allowed && len(findings) > 0 || !allowed && len(findings) == 0 || !allowed && how == "plain" && !fenced {
					t.Errorf("%s in %s, %s: %v", root, place.file, how, findings)
				}
			}
		}
	}
}

// TestOneWriter: of two directories that write one name the second is told of the first.
func TestOneWriter(t *testing.T) {
	files := all()
	files["external/shop/more.cue"] = header + "workloads: shop: own: service: \"web\"\n"
	files["services/shop/web.cue"] += "egress: shop: api: hosts: [\"b.example.org\"]\n" + "groups: shop: pool: {service: \"web\", max: 3}\n"
	_, findings := load(t, New(Options{}), files, "")
	if d := cmp.Diff([]string{
		"HDL0205 egress/shop/api.cue:3 egress.shop.api",
		"HDL0205 external/shop/more.cue:3 workloads.shop.own",
		"HDL0205 external/shop/vm.cue:4 groups.shop.pool",
	}, findings); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// sources is a mesh.cue with a source for each line.
func sources(lines ...string) string {
	return baseMesh + "_mark: \"1s\"\nmesh: sources: {\n\t" + strings.Join(lines, "\n\t") + "\n}\n"
}

func TestDelegation(t *testing.T) {
	const pay = `payments: {directory: "payteam", namespaces: ["payments", "pay-*"]}`
	api := func(ns string) string { return header + "services: \"" + ns + "\": api: ports: http: port: 80\n" }
	tests := []struct {
		name   string
		files  map[string]string
		want   []string
		unread []string
		read   []string // services
	}{
		{name: "units of a source", files: map[string]string{"mesh.cue": sources(pay),
			"services/shop/web.cue":             header + shopWeb,
			"payteam/services/payments/api.cue": api("payments") + "namespaces: payments: defaults: {timeout: _mark, idleTimeout: _team, responseTimeout: _branch}\n",
			"payteam/services/pay-eu/api.cue":   api("pay-eu"),
			"payteam/services/branch.cue":       header + "_branch: \"2s\"\n",
			"payteam/team.cue":                  header + "_team: \"3s\"\n",
			"payteam/external/payments/vm.cue":  header + "workloads: payments: vm: service: \"api\"\n",
			"payteam/egress/payments/out.cue":   header + "egress: payments: out: hosts: [\"a.example.org\"]\n",
			"payteam/README.md":                 "x"},
			read: []string{"pay-eu/api", "payments/api", "shop/web"}},
		{name: "another namespace", files: map[string]string{"mesh.cue": sources(pay),
			"payteam/services/shop/api.cue": api("shop"), "payteam/services/shop/b.cue": header,
			"payteam/services/payments/api.cue": api("payments") + "services: shop: api: ports: http: port: 80\n"},
			want:   []string{"HDL0211 payteam/services/payments/api.cue:4 services.shop", "HDL0211 payteam/services/shop/api.cue mesh.sources.payments.namespaces"},
			unread: []string{"payments", "shop"}},
		{name: "kinds", files: map[string]string{"mesh.cue": sources(`payments: {directory: "payteam", namespaces: ["payments"], kinds: ["services", "egress"]}`),
			"payteam/services/payments/a.cue": api("payments") + "namespaces: payments: {}\n" + "groups: payments: g: {service: \"api\", max: 1}\n",
			"payteam/external/payments/b.cue": header + "workloads: payments: vm: service: \"api\"\n",
			"payteam/egress/payments/c.cue":   header + "egress: payments: out: hosts: [\"a.example.org\"]\n"},
			want: []string{"HDL0211 payteam/external/payments/b.cue:3 workloads.payments", "HDL0211 payteam/services/payments/a.cue:4 namespaces.payments",
				"HDL0211 payteam/services/payments/a.cue:5 groups.payments"},
			unread: []string{"payments"}},
		{name: "the mesh, by any way", files: map[string]string{"mesh.cue": sources(pay),
			"payteam/services/payments/a.cue": api("payments") + "mesh: maxStale: \"1h\"\ninvariants: a: always: \"mtls\"\n_x: mesh: defaults: timeout: \"9s\"\n_x\n",
			"payteam/team.cue":                header + "mesh: maxStale: \"1h\"\n",
			"payteam/mesh.cue":                header},
			want: []string{"HDL0106 payteam/mesh.cue", "HDL0211 payteam/services/payments/a.cue:4 mesh",
				"HDL0211 payteam/services/payments/a.cue:5 invariants", "HDL0211 payteam/team.cue:3 mesh"},
			unread: []string{"payments"}},
		{name: "both write one name", files: map[string]string{"mesh.cue": sources(pay),
			"services/payments/a.cue":         header + "namespaces: payments: {}\nservices: payments: {api: ports: http: port: 80, web: ports: http: port: 80}\n",
			"payteam/services/payments/a.cue": api("payments") + "namespaces: payments: {}\nservices: payments: own: ports: http: port: 80\n"},
			want: []string{"HDL0205 payteam/services/payments/a.cue:3 services.payments.api", "HDL0205 payteam/services/payments/a.cue:4 namespaces.payments"},
			read: []string{"payments/api", "payments/own", "payments/web"}},
		{name: "what is not theirs", files: map[string]string{"mesh.cue": sources(pay),
			"payteam/tests/a.cue": header, "payteam/overlays/x/a.yaml": "x", "payteam/lib/a.cue": header, "crew/other/services/x/a.cue": api("x")},
			want: []string{"HDL0116 crew/other/services/x/a.cue", "HDL0116 payteam/lib/a.cue", "HDL0116 payteam/overlays/x/a.yaml", "HDL0116 payteam/tests/a.cue"}},
		{name: "a source that means something else", files: map[string]string{"mesh.cue": sources(
			`a: {directory: "services", namespaces: ["a"]}`, `b: {directory: "../b", namespaces: ["b"]}`, `c: {directory: "c/", namespaces: ["c"]}`,
			`d: {directory: ".d", namespaces: ["d"]}`, `e: {directory: "e", namespaces: ["e"]}`, `f: {directory: "e/f", namespaces: ["f"]}`, `g: {directory: "tests/x", namespaces: ["g"]}`)},
			want: []string{"HDL0203 mesh.cue:12 mesh.sources.a.directory", "HDL0203 mesh.cue:13 mesh.sources.b.directory", "HDL0203 mesh.cue:14 mesh.sources.c.directory",
				"HDL0203 mesh.cue:15 mesh.sources.d.directory", "HDL0203 mesh.cue:18 mesh.sources.g.directory"}, unread: []string{"mesh.cue"}},
		{name: "a source in another's directory", files: map[string]string{"mesh.cue": sources(`e: {directory: "teams/e", namespaces: ["e"]}`, `f: {directory: "teams/e/f", namespaces: ["f"]}`)},
			want: []string{"HDL0203 mesh.cue:13 mesh.sources.f.directory"}},
		{name: "another repository is compile's business", files: map[string]string{"mesh.cue": sources(`r: {repository: "https://git.example.org/r", namespaces: ["r"]}`), "services/shop/web.cue": header + shopWeb},
			read: []string{"shop/web"}},
		{name: "a wrong mesh.cue hides no source's files", files: map[string]string{"mesh.cue": sources(pay) + "mesh: maxStale: 3\n",
			"payteam/services/payments/a.cue": header + "services: payments: api: ports: http: port: 0\n", "crew/x/services/x/a.cue": api("x")},
			want: []string{"HDL0116 crew/x/services/x/a.cue", "HDL0203 mesh.cue:14 mesh.maxStale",
				"HDL0203 payteam/services/payments/a.cue:3 services.payments.api.ports.http.port"},
			unread: []string{"mesh.cue", "payments/api"}},
		{name: "sources that cannot be read accuse nobody", files: map[string]string{"mesh.cue": sources(`payments: {directory: "payteam", namespaces: "payments"}`),
			"payteam/services/payments/a.cue": api("payments")},
			want: []string{"HDL0203 mesh.cue:12 mesh.sources.payments.namespaces"}, unread: []string{"mesh.cue", "payments"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			doc, findings := load(t, New(Options{}), tt.files, "")
			if d := cmp.Diff(tt.want, findings); d != "" {
				t.Errorf("findings (-want +got):\n%s", d)
			}
			if !slices.Equal(doc.Unread, tt.unread) {
				t.Errorf("unread %v, want %v", doc.Unread, tt.unread)
			}
			var read []string
			for ns, services := range doc.Policy.Services {
				for name := range services {
					read = append(read, ns+"/"+name)
				}
			}
			slices.Sort(read)
			if tt.unread == nil && !slices.Equal(read, tt.read) {
				t.Errorf("read %v, want %v", read, tt.read)
			}
			if tt.name == "kinds" {
				want := []v1alpha1.Delegation{{Name: "payments", Directory: "payteam", Namespaces: []string{"payments"}, Kinds: []string{"egress", "services"}}}
				if d := cmp.Diff(want, doc.Delegated); d != "" {
					t.Errorf("delegated (-want +got):\n%s", d)
				}
			}
		})
	}
}

// TestDelegations: what directories a source may have, where the schema would let more through.
func TestDelegations(t *testing.T) {
	tests := map[string]bool{"payteam": true, "teams/pay": true, "services": false, "services/x": false, "tests": false, "overlays/a": false,
		"": false, ".": false, "..": false, "../x": false, "a/../b": false, "/a": false, "a/": false, "a//b": false, ".hidden": false, "a/.b": false,
		"a/_b": false, "_a": false, "cue.mod": false, "a\\b": false}
	for dir, ok := range tests {
		given, findings := delegations(map[string]v1alpha1.Source{"x": {Directory: dir}}, func(...string) diag.Pos { return diag.Pos{} })
		if dir == "" {
			ok = len(given) == 0 && len(findings) == 0 // it is no directory at all
			given = given[:0:0]
			if !ok {
				t.Errorf("no directory: %v %v", given, findings)
			}
			continue
		}
		if (len(given) == 1) != ok || (len(findings) == 0) != ok {
			t.Errorf("%q: %v %v", dir, given, findings)
		}
	}
	for _, pair := range [][2]string{{"a", "a"}, {"a", "a/b"}, {"a/b", "a"}, {"a", "ab"}} {
		given, findings := delegations(map[string]v1alpha1.Source{"x": {Directory: pair[0]}, "y": {Directory: pair[1]}}, func(...string) diag.Pos { return diag.Pos{} })
		if apart := pair[1] == "ab"; (len(given) == 2) != apart || (len(findings) == 0) != apart {
			t.Errorf("%v: %v %v", pair, given, findings)
		}
	}
	d := v1alpha1.Delegation{Namespaces: []string{"pay", "x-*"}}
	for ns, ok := range map[string]bool{"pay": true, "pays": false, "x-": true, "x-a": true, "x": false} {
		if d.Writes(ns) != ok {
			t.Errorf("%s: %v", ns, !ok)
		}
	}
}

// TestCacheOfLayout: a change costs the directories that see it, and no other.
func TestCacheOfLayout(t *testing.T) {
	e := New(Options{})
	files := all()
	files["mesh.cue"] += "mesh: sources: payments: {directory: \"payteam\", namespaces: [\"payments\"]}\n"
	files["payteam/team.cue"] = header + "_team: 1\n"
	files["payteam/services/payments/a.cue"] = header + "services: payments: a: ports: http: port: 80\n"
	files["payteam/services/all.cue"] = header
	files["payteam/egress/payments/a.cue"] = header + "egress: payments: a: hosts: [\"a.example.org\"]\n"
	known := map[*part]bool{}
	for _, step := range []struct {
		file  string
		fresh int
	}{
		{"", 11},
		{"README.md", 0},
		{"egress/shop/api.cue", 1},
		{"external/all.cue", 2},
		{"services/all.cue", 2},
		{"tests/shop.cue", 1},
		{"payteam/services/all.cue", 2},
		{"payteam/team.cue", 4},
		{"payteam/egress/payments/a.cue", 1},
		{"mesh.cue", 11},
	} {
		files[step.file] += "// moved\n"
		delete(files, "")
		if _, findings := load(t, e, files, ""); len(findings) > 0 {
			t.Fatal(step.file, findings)
		}
		fresh := 0
		for _, p := range e.cache {
			if !known[p] {
				known[p] = true
				fresh++
			}
		}
		if fresh != step.fresh {
			t.Errorf("%s: %d directories evaluated, want %d", step.file, fresh, step.fresh)
		}
	}
}
