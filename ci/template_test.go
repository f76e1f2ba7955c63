package ci_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// mistakes are what a newcomer does, each with what the stock CLI must say of it.
var mistakes = []struct {
	name, file, old, new string
	want                 string
}{
	{"a misspelt field of a service", "services/shop/web.cue", "allow: everyone", "alow: everyone", "alow"},
	{"a misspelt field of a port", "services/shop/api.cue", `protocol: "http1"`, `protcol: "http1"`, "protcol"},
	{"a misspelt top-level field", "services/shop/web.cue", `services: shop: "web"`, `service: shop: "web"`, "unknown top-level field"},
	{"weights that do not sum to 100", "services/shop/api.cue", "weight: 90", "weight: 80", "weights sum to 90, not 100"},
	{"no such protocol", "services/payments/ledger.cue", `protocol: "tcp"`, `protocol: "udp"`, "want one of detect, http1"},
	{"no such port number", "services/shop/web.cue", "port: 8080", "port: 80800", "want a port number"},
	{"a duration without a unit", "services/shop/api.cue", `timeout: "2s"`, `timeout: "2"`, "want a duration"},
	{"a service without its namespace", "services/payments/ledger.cue", `"payments/gateway"`, `"gateway"`, `want a service as "namespace/name"`},
	{"nobody at all", "services/payments/ledger.cue", `[{service: "payments/gateway"}]`, `[]`, "an empty list never means all"},
	{"two kinds of caller in one", "services/payments/ledger.cue", `{service: "payments/gateway"}`, `{service: "payments/gateway", authenticated: true}`, "want exactly one of"},
	{"a path that is not canonical", "services/shop/api.cue", `"/hooks/paid"`, `"/hooks/../paid"`, "canonical"},
	{"an expectation that is none", "tests/expectations.cue", `"payments/ledger:tcp"
	expect: "allow"`, `"payments/ledger:tcp"
	expect: "maybe"`, "want one of allow, deny"},
	{"an invariant of two kinds", "mesh.cue", `always: "mtls"`, `always: "mtls", never: {from: {anyone: true}, to: {namespace: "payments"}}`, "want exactly one of"},
	{"a mandate that opens", "mesh.cue", `"strict"                       //`, `"permissive" //`, "a mandate can only close"},
	{"a workload that is no address", "external/payments/ledger.cue", `"192.0.2.10"`, `"ledger.example"`, "want an IP address"},
}

// TestStockCUE: a copy of the template passes the stock CLI, the pinned one and the oldest supported, for each environment,
// with the network cut and nothing cached; each mistake fails it and says what is wrong.
func TestStockCUE(t *testing.T) {
	if !netless() {
		t.Log("NOTE: no user namespaces here: the network is not cut, only misdirected")
	}
	for _, module := range []string{pinned, oldest} {
		t.Run(moduleVersion(t, module), func(t *testing.T) {
			t.Parallel()
			cue := requireCUE(t, module)
			if out, err := shell(t, ".", "cue version", nil, cue); err != nil || !strings.HasPrefix(out, "cue version "+moduleVersion(t, module)+"\n") {
				t.Fatalf("%v\n%s", err, out)
			}
			dir := copied(t)
			for _, env := range []string{"", "-t env=production", "-t env=staging"} {
				if out, err := shell(t, dir, "cue vet -c "+env+" ./...", nil, cue); err != nil || out != "" {
					t.Errorf("cue vet -c %s ./...: %v\n%s", env, err, out)
				}
			}
			if out, err := shell(t, dir, "cue vet -c -t env=stagging ./...", nil, cue); err == nil || !strings.Contains(out, "known: production, staging") {
				t.Errorf("an environment that is none: %v\n%s", err, out)
			}
			for _, m := range mistakes {
				t.Run(m.name, func(t *testing.T) {
					dir := copied(t)
					edit(t, dir, m.file, m.old, m.new)
					out, err := shell(t, dir, "cue vet -c ./...", nil, cue)
					if err == nil || !strings.Contains(out, m.want) {
						t.Errorf("want %q, got %v\n%s", m.want, err, out)
					}
					if module == pinned && !strings.Contains(out, "./"+m.file+":") { // older ones name the field alone
						t.Errorf("want a position in %s\n%s", m.file, out)
					}
				})
			}
		})
	}
}

// TestHeddleCheck: Heddle finds nothing in the template either, in any environment.
func TestHeddleCheck(t *testing.T) {
	if out, err := shell(t, copied(t), "heddle check --all-envs", nil, heddle(t)); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestExpectations: those of the template hold, in each environment; one that does not is said to fail.
func TestExpectations(t *testing.T) {
	bin, dir := heddle(t), copied(t)
	if out, err := shell(t, dir, "heddle test --all-envs", nil, bin); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	edit(t, dir, "services/payments/gateway.cue", `{service: "shop/api"}, `, `{service: "shop/web"}, {service: "shop/api"}, `)
	if out, err := shell(t, dir, "heddle test", nil, bin); err == nil || !strings.Contains(out, "the front end does not charge") {
		t.Errorf("web may charge, and the expectation holds: %v\n%s", err, out)
	}
}

// TestInvariants: a change that breaks no expectation, since nobody thought of it, is stopped by an invariant.
func TestInvariants(t *testing.T) {
	bin, dir := heddle(t), copied(t)
	edit(t, dir, "services/payments/gateway.cue", `{service: "shop/api"}, `, `{identity: "spiffe://shop.example/ns/ops/sa/console"}, {service: "shop/api"}, `)
	if out, err := shell(t, dir, "heddle test", nil, bin); err != nil {
		t.Fatalf("an expectation knows of it: %v\n%s", err, out)
	}
	out, err := shell(t, dir, "heddle check", nil, bin)
	if err == nil || !strings.Contains(out, "only the shop's API charges") || !strings.Contains(out, "/charges") {
		t.Errorf("the console may charge, and the invariant holds: %v\n%s", err, out)
	}
}

// TestUpgrade: a repository with an older copy of the schema is upgraded by one command, and one whose copy was changed by
// hand is found out until it is.
func TestUpgrade(t *testing.T) {
	bin, cue := heddle(t), requireCUE(t, oldest)
	current := v1alpha1.Files()
	older := v1alpha1.Files()
	// There was no maxTimeout yet, and there was a file that is gone since.
	types := strings.Replace(string(older["types.cue"]), "\tmaxTimeout?: #Duration\n", "", 1)
	older["types.cue"] = []byte(types)
	older["legacy.cue"] = []byte("package v1alpha1\n\n#Legacy: string\n")
	if types == string(current["types.cue"]) {
		t.Fatal("types.cue has no line `maxTimeout?: #Duration`: take another field out")
	}
	tests := []struct {
		name    string
		version string
		finding string // what heddle check says before the upgrade, if anything
	}{
		{"intact", "version v0.0.9\nsha256 " + v1alpha1.DigestOf(older) + "\n", ""},
		{"changed by hand", "version v0.0.9\nsha256 " + v1alpha1.DigestOf(current) + "\n", "HDL0108"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := copied(t)
			vendored := filepath.Join(dir, filepath.FromSlash(v1alpha1.VendorDir))
			for name, b := range older {
				if err := os.WriteFile(filepath.Join(vendored, name), b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(vendored, v1alpha1.VersionFile), []byte(test.version), 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := shell(t, dir, "cue vet -c ./...", nil, cue); err == nil || !strings.Contains(out, "maxTimeout: field not allowed") {
				t.Fatalf("the older schema knows maxTimeout: %v\n%s", err, out)
			}
			out, err := shell(t, dir, "heddle check", nil, bin)
			if (err != nil) != (test.finding != "") || !strings.Contains(out, test.finding) {
				t.Errorf("before the upgrade: %v\n%s", err, out)
			}
			if out, err := shell(t, dir, "heddle policy upgrade", nil, bin); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if d := cmp.Diff(tree(t, template), tree(t, dir)); d != "" {
				t.Errorf("an upgraded copy is not the template (-want +got):\n%s", d)
			}
			for _, line := range []string{"cue vet -c ./...", "cue vet -c -t env=staging ./...", "heddle check --all-envs"} {
				if out, err := shell(t, dir, line, nil, bin, cue); err != nil {
					t.Errorf("%s: %v\n%s", line, err, out)
				}
			}
		})
	}
}

// tree is the content of a directory's files by name.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(at string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, at)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(at)
		out[filepath.ToSlash(rel)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestInit: what `heddle policy init` writes is the template, and its hook can be run.
func TestInit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "policy")
	if out, err := shell(t, ".", `heddle policy init "$DIR"`, []string{"DIR=" + dir}, heddle(t)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if d := cmp.Diff(tree(t, template), tree(t, dir)); d != "" {
		t.Errorf("heddle policy init writes another repository than policy-repo-template (-want +got); run make generate:\n%s", d)
	}
	for _, at := range []string{template, dir} {
		info, err := os.Stat(filepath.Join(at, ".githooks", "pre-commit"))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o111 == 0 {
			t.Errorf("%s/.githooks/pre-commit is not executable: git passes over it", at)
		}
	}
}

// TestVersions: what the workflows, the hook and the README install is what this source tree is judged by, and the
// environments that they check are those of mesh.cue.
func TestVersions(t *testing.T) {
	cue := requireCUE(t, pinned)
	// Of a language version the CLI may be a later patch: v0.14.0 itself has a bug that the schema meets.
	minor := func(version string) string { return version[:strings.LastIndex(version, ".")] }
	if got := moduleVersion(t, oldest); minor(got) != minor(v1alpha1.LowestLanguage) {
		t.Errorf("tools/oldest pins %s; the lowest language is %s", got, v1alpha1.LowestLanguage)
	}
	if readme := string(read(t, template, "README.md")); !strings.Contains(readme, "from "+moduleVersion(t, oldest)+" on") {
		t.Errorf("the README does not say that cue works from %s on", moduleVersion(t, oldest))
	}
	if got := moduleVersion(t, pinned); got != v1alpha1.HighestLanguage {
		t.Errorf("tools pins %s; the highest language is %s", got, v1alpha1.HighestLanguage)
	}
	if module := string(read(t, template, "cue.mod/module.cue")); !strings.Contains(module, `version: "`+v1alpha1.LowestLanguage+`"`) {
		t.Errorf("the template is not written in the lowest language, %s:\n%s", v1alpha1.LowestLanguage, module)
	}
	install := []string{"go install cuelang.org/go/cmd/cue@" + moduleVersion(t, pinned), "go install github.com/heddle-mesh/heddle/cmd/heddle@v" + mesh.Version}
	for _, name := range []string{".github/workflows/policy.yaml", ".github/workflows/heddle.yaml", ".gitlab-ci.yml", ".githooks/pre-commit", "README.md"} {
		text, found := string(read(t, template, name)), 0
		for _, after := range strings.Split(text, "go install ")[1:] {
			word := strings.FieldsFunc(after, func(r rune) bool { return strings.ContainsRune(" \n`\")", r) })[0]
			if found++; !slices.Contains(install, "go install "+word) {
				t.Errorf("%s says go install %s; want one of %q", name, word, install)
			}
		}
		if found == 0 {
			t.Errorf("%s installs nothing", name)
		}
	}
	out, err := shell(t, template, "cue export -e mesh.environments --out json", nil, cue)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var envs []string
	if err := json.Unmarshal([]byte(out), &envs); err != nil || len(envs) == 0 {
		t.Fatalf("mesh.environments: %v\n%s", err, out)
	}
	for _, name := range []string{".github/workflows/policy.yaml", ".gitlab-ci.yml", ".githooks/pre-commit"} {
		text := string(read(t, template, name))
		for _, env := range envs {
			if !strings.Contains(text, "cue vet -c -t env="+env+" ./...\n") {
				t.Errorf("%s does not vet the environment %s", name, env)
			}
		}
		if n := strings.Count(text, "-t env="); n != len(envs) {
			t.Errorf("%s vets %d environments; mesh.cue names %q", name, n, envs)
		}
	}
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestGenerated: the YAML is what the CUE beside this test gives.
func TestGenerated(t *testing.T) {
	cmd := exec.Command(filepath.Join(requireCUE(t, pinned), "cue"), "export", "-e", "files", "--out", "json")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var files map[string]struct{ Text string }
	if err := json.Unmarshal(out, &files); err != nil {
		t.Fatal(err)
	}
	if len(files) < 4 {
		t.Fatalf("only %d files are generated", len(files))
	}
	for name, f := range files {
		if d := cmp.Diff(f.Text, string(read(t, root, name))); d != "" {
			t.Errorf("%s is not what ci/*.cue gives: run make generate (-want +got):\n%s", name, d)
		}
	}
}

// TestClosed: the schema of the workflows refuses what their forge would pass over, and what would be dangerous.
func TestClosed(t *testing.T) {
	cue := requireCUE(t, pinned)
	for _, test := range []struct{ name, file, old, new, want string }{
		{"a misspelt key", "github.cue", `permissions: contents: "read"
	defaults`, `permission: contents: "read"
	defaults`, "permission"},
		{"somebody else's action", "github.cue", `{uses: "actions/checkout@v4"},`, `{uses: "somebody/checkout@v4"},`, "uses"},
		{"a right that nobody needs", "github.cue", `"pull-requests": "write"
		}`, `"pull-requests": "write"
			packages: "write"
		}`, "packages"},
		{"a title that becomes a command", "versions.cue", `"cue vet -c ./...", for`, `"echo ${{ github.event.pull_request.title }}", for`, "run"},
		{"a misspelt key of a job", "gitlab.cue", "before_script: [install.cue]", "before_scripts: [install.cue]", "before_scripts"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(".")); err != nil {
				t.Fatal(err)
			}
			if out, err := shell(t, dir, "cue vet -c .", nil, cue); err != nil {
				t.Fatalf("without the fault: %v\n%s", err, out)
			}
			edit(t, dir, test.file, test.old, test.new)
			if out, err := shell(t, dir, "cue vet -c .", nil, cue); err == nil || !strings.Contains(out, test.want) {
				t.Errorf("want a word about %s: %v\n%s", test.want, err, out)
			}
		})
	}
}
