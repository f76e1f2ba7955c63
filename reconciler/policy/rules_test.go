package policy

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

var update = flag.Bool("update", false, "rewrite the expected parts of testdata")

// stockCUE builds the CLI that pull requests use, once, from the versions that the tools module pins.
var stockCUE = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("go", "tool", "-n", "cue")
	cmd.Dir = filepath.Join("..", "..", "tools")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go tool -n cue, in tools/: %w\n%s", err, &stderr)
	}
	return strings.TrimSpace(string(out)), nil
})

// requireCUE returns the path of the stock CLI. Where it cannot be built (no network, no module cache) the test is
// skipped, unless HEDDLE_REQUIRE_CUE is set, as CI does.
func requireCUE(t testing.TB) string {
	t.Helper()
	exe, err := stockCUE()
	if err != nil {
		if os.Getenv("HEDDLE_REQUIRE_CUE") != "" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: the stock cue CLI could not be built, so nothing says that it agrees with Heddle: %v", err)
	}
	return exe
}

// vet runs `cue vet -c ./...` in dir with no network, no cache and no home, and returns what it says.
func vet(t testing.TB, exe, dir string, args ...string) (string, bool) {
	t.Helper()
	cmd := exec.Command(exe, append([]string{"vet", "-c", "./..."}, args...)...)
	cmd.Dir = dir
	empty := t.TempDir()
	cmd.Env = []string{"HOME=" + empty, "CUE_CACHE_DIR=" + empty, "CUE_CONFIG_DIR=" + empty, "CUE_REGISTRY=none", "GOPROXY=off", "PATH="}
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), err == nil
}

const baseMesh = `package policy

import "github.com/heddle-mesh/heddle/schema/v1alpha1"

v1alpha1.#Repository

_env: *"default" | string @tag(env)

mesh: trustDomain: "shop.example"
`

// repository completes files to a repository; those that are nil are taken out of it.
func repository(files map[string][]byte) map[string][]byte {
	out := v1alpha1.Vendored()
	out["cue.mod/module.cue"] = []byte("module: \"policy.example/mesh@v0\"\nlanguage: version: \"" + v1alpha1.LowestLanguage + "\"\n")
	out["mesh.cue"] = []byte(baseMesh)
	for name, b := range files {
		if b == nil {
			delete(out, name)
			continue
		}
		out[name] = b
	}
	return out
}

func writeFiles(t testing.TB, dir string, files map[string][]byte) {
	t.Helper()
	for name, b := range files {
		p := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// authored is the stock CLI's output without the schema's positions.
func authored(out string) string {
	var b strings.Builder
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(strings.TrimSpace(line), "./cue.mod/") {
			b.WriteString(strings.Replace(line, "    ./", "    ", 1))
		}
	}
	return b.String()
}

// TestRules runs each archive of testdata/rules, one broken repository each, through Heddle and through the stock CLI.
// The parts `findings` and `vet` are what they say; -update rewrites them.
func TestRules(t *testing.T) {
	archives, err := filepath.Glob("testdata/rules/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatal("no archives", err)
	}
	e := New(Options{})
	for _, name := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			t.Parallel()
			a, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			files, want := map[string][]byte{}, map[string]string{}
			for _, f := range a.Files {
				if f.Name == "findings" || f.Name == "vet" {
					want[f.Name] = string(f.Data)
				} else {
					files[f.Name] = f.Data
				}
			}
			repo := repository(files)
			doc, findings, err := e.LoadFiles(t.Context(), repo, "")
			if err != nil {
				t.Fatal(err)
			}
			if len(findings) == 0 {
				t.Fatalf("no findings; document: %+v", doc)
			}
			got := map[string]string{"findings": findings.Error() + "\n", "vet": want["vet"]}
			if exe, err := stockCUE(); err == nil || os.Getenv("HEDDLE_REQUIRE_CUE") != "" {
				if err != nil {
					t.Fatal(err)
				}
				dir := t.TempDir()
				writeFiles(t, dir, repo)
				out, _ := vet(t, exe, dir)
				got["vet"] = authored(out)
			} else {
				t.Logf("SKIPPED the stock CLI's half: %v", err)
			}
			for _, f := range findings {
				if f.Pos.IsZero() || isSchema(f.Pos) {
					t.Errorf("no author's position: %v", f)
				}
				if strings.ContainsAny(f.Message+f.Hint, "\n\r") {
					t.Errorf("more than one line: %q, hint %q", f.Message, f.Hint)
				}
			}
			if *update {
				a.Files = slices.DeleteFunc(a.Files, func(f txtar.File) bool { return want[f.Name] != "" || f.Name == "findings" || f.Name == "vet" })
				for _, part := range []string{"findings", "vet"} {
					a.Files = append(a.Files, txtar.File{Name: part, Data: []byte(got[part])})
				}
				if err := os.WriteFile(name, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			for _, part := range []string{"findings", "vet"} {
				if d := cmp.Diff(want[part], got[part]); d != "" {
					t.Errorf("%s (-want +got; -update rewrites it):\n%s", part, d)
				}
			}
		})
	}
}

var (
	// What the schema says, whether error(…) holds it or a list of complaints, but for the messages that are reused; and
	// where those are used.
	message  = regexp.MustCompile(`"(?:element \\\(\w+\)[^\s:"]*: |\\\(at\)[^\s:"]*: )?((?:want|weights|unknown top-level) (?:[^"\\]|\\.)*)"`)
	inserted = regexp.MustCompile(`\\\((?:\w|\.|\((?:\w|\.)*\))+\)`)
	named    = regexp.MustCompile(`(?m)^(_want\w+): +"((?:[^"\\]|\\.)*)"`)
	comments = regexp.MustCompile(`(?m)^\s*//.*$`)
)

// TestEveryRuleIsSeenToFail reads the messages off the schema and looks for each in both halves of the archives: CUE
// drops constraints silently when they are written in some ways, so that a rule without such a test may not hold at all.
func TestEveryRuleIsSeenToFail(t *testing.T) {
	var findings, vetted []byte
	archives, _ := filepath.Glob("testdata/rules/*.txtar")
	for _, name := range archives {
		a, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range a.Files {
			switch f.Name {
			case "findings":
				findings = append(findings, f.Data...)
			case "vet":
				vetted = append(vetted, f.Data...)
			}
		}
	}
	// A message that stands in several places has to be seen in as many: another place may have lost it.
	places := map[string]int{}
	for _, text := range v1alpha1.Files() {
		text = comments.ReplaceAll(text, nil)
		for _, m := range message.FindAllSubmatch(text, -1) {
			places[string(m[1])]++
		}
		for _, m := range named.FindAllSubmatch(text, -1) {
			uses := regexp.MustCompile(`\b`+string(m[1])+`\b`).FindAll(text, -1)
			places[string(m[2])] += len(uses) - 2 // it is counted already, and once where it is defined
		}
	}
	if len(places) < 130 {
		t.Fatalf("only %d messages found in the schema: has their form changed?", len(places))
	}
	for literal, n := range places {
		if seen := spoken(literal).FindAllIndex(vetted, -1); len(seen) < n {
			t.Errorf("%d archives' lines of `cue vet` say %q, which stands in %d places of the schema", len(seen), literal, n)
		}
		if strings.HasPrefix(literal, "unknown top-level") {
			continue // Heddle says it with the nearest name
		}
		if strings.HasPrefix(literal, "want a DNS label") {
			n -= 5 // of namespaces under namespaces, services, workloads, groups and egress: Heddle's fences speak first
		}
		paths := map[string]bool{}
		for _, m := range regexp.MustCompile(`(?m)^[^\s:]+(?::\d+)*: (.*?): `+spoken(literal).String()).FindAllSubmatch(findings, -1) {
			paths[kind(string(m[1]))] = true
		}
		if len(paths) < n {
			t.Errorf("Heddle says %q of %q only, and it stands in %d places of the schema", literal, slices.Sorted(maps.Keys(paths)), n)
		}
	}
}

// kind is a path of policy with * in place of names and indices, so that two places of one definition are the same.
func kind(path string) string {
	var out []string
	at := policyShape
	for i, name := range strings.Split(path, ".") {
		switch {
		case at == nil:
		case at.fields != nil && at.fields[name] != nil:
			out, at = append(out, name), at.fields[name]
			continue
		case at.elem != nil:
			at = at.elem
		case i > 0:
			continue // the rest of a name with dots
		}
		out = append(out, "*")
	}
	return strings.Join(out, ".")
}

// spoken matches what a message of the schema looks like when it is said.
func spoken(literal string) *regexp.Regexp {
	parts := inserted.Split(literal, -1)
	for i, p := range parts {
		parts[i] = regexp.QuoteMeta(strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(p))
	}
	return regexp.MustCompile(strings.Join(parts, ".+"))
}
