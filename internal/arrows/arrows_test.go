// Package arrows keeps the direction of Heddle's dependencies, each rule with its reason, and the dependency list of
// each binary as a checked-in file, so that a new dependency shows as a line of a diff.
package arrows

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/meshtest"
)

var update = flag.Bool("update", false, "rewrite the dependency lists of the binaries")

const module = "github.com/heddle-mesh/heddle"

// rule forbids imports: no package under From imports one under To, but for those under Except.
type rule struct {
	from, to string
	except   []string
	why      string
}

var rules = []rule{
	{"schema", module + "/reconciler", nil, "schema holds the contracts; it knows none of those who keep them"},
	{"schema", module + "/controlplane", nil, "schema holds the contracts; it knows none of those who keep them"},
	{"schema", module + "/proxy", nil, "schema holds the contracts; it knows none of those who keep them"},
	{"schema", module + "/internal", nil, "schema does no I/O, and internal is all I/O"},
	{"schema", module + "/cmd", nil, "nothing imports cmd"},
	{"schema/diag", module, nil, "findings know nothing of what they are about"},
	// Addresses and times are values there (net/netip, time.Time); a test of its own sees that it asks no clock.
	{"schema/decide", "net/http", nil, "decisions are pure: what is predicted in a pull request must be what happens"},
	{"schema/decide", "os", nil, "decisions are pure: what is predicted in a pull request must be what happens"},
	{"reconciler", module + "/controlplane", nil, "what crosses between the three parts is a value of schema"},
	{"reconciler", module + "/proxy", nil, "what crosses between the three parts is a value of schema"},
	{"controlplane", module + "/reconciler", nil, "what crosses between the three parts is a value of schema"},
	{"controlplane", module + "/proxy", nil, "what crosses between the three parts is a value of schema"},
	{"proxy", module + "/reconciler", nil, "what crosses between the three parts is a value of schema"},
	{"proxy", module + "/controlplane", nil, "what crosses between the three parts is a value of schema"},
	{"internal", module + "/reconciler", []string{"internal/story", "internal/meshbench"}, "everyone may import internal, so it imports nobody but schema"},
	{"internal", module + "/controlplane", []string{"internal/story", "internal/meshbench"}, "everyone may import internal, so it imports nobody but schema"},
	{"internal", module + "/proxy", []string{"internal/story", "internal/meshbench"}, "everyone may import internal, so it imports nobody but schema"},
	{"reconciler/compile", "os", nil, "compile is a pure function of a document"},
	{"", "github.com/go-git/go-git", []string{"reconciler/source"}, "go-git has one home, so that it can be replaced"},
	{"", "cuelang.org/go", []string{"reconciler/policy", "schema/v1alpha1"}, "CUE has one home: everybody else sees plain Go values"},
	{"", "k8s.io", nil, "client-go comes with the Kubernetes packages, and never into the sidecar"},
	{"", "github.com/spiffe/go-spiffe", nil, "go-spiffe is the independent judge in tests; our own rules are stricter"},
	{"proxy", "net/http/httputil", nil, "the data path is byte level; ReverseProxy costs four times as much and forwards smuggled requests"},
	{"proxy/http1", "net/http", nil, "the data path is byte level"},
	{"proxy/upstream", "net/http", nil, "the data path is byte level"},
	{"proxy/l4", "net/http", nil, "the data path is byte level"},
	{"proxy/balance", module + "/schema/proxyapi", nil, "mechanisms know nothing of the wire; pipeline translates"},
	{"", "github.com/prometheus/client_golang", nil, "its registry would double the sidecar's idle memory; exposition is a page of code"},
}

type pkg struct {
	ImportPath string
	Imports    []string
	Doc        string
	Name       string
}

func list(t *testing.T, args ...string) []byte {
	t.Helper()
	if err := meshtest.Consult(filepath.Join("..", "..")); err != nil { // go test does not see what go list reads
		t.Fatal(err)
	}
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	cmd.Dir = filepath.Join("..", "..")
	out, err := cmd.Output()
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			err = errors.New(string(ee.Stderr))
		}
		t.Fatalf("go list: %v", err)
	}
	return out
}

func packages(t *testing.T) []pkg {
	var out []pkg
	d := json.NewDecoder(bytes.NewReader(list(t, "-json=ImportPath,Imports,Doc,Name", "./...")))
	for {
		var p pkg
		if err := d.Decode(&p); err == io.EOF {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
}

func under(path, dir string) bool {
	return dir == "" || path == dir || strings.HasPrefix(path, dir+"/")
}

func TestArrows(t *testing.T) {
	for _, p := range packages(t) {
		rel := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		for _, r := range rules {
			if !under(rel, r.from) || slices.ContainsFunc(r.except, func(e string) bool { return under(rel, e) }) {
				continue
			}
			for _, i := range p.Imports {
				if under(i, r.to) {
					t.Errorf("%s imports %s\n\twhy not: %s", rel, i, r.why)
				}
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range packages(t) {
		if p.Doc == "" && len(p.Imports) > 0 {
			t.Errorf("%s has no package comment: say what it turns into what, who owns it, what it must not import", p.ImportPath)
		}
	}
}

// TestBinaryDependencies compares the modules that each binary links with the list beside its main package.
func TestBinaryDependencies(t *testing.T) {
	for _, bin := range []string{"cmd/heddle", "cmd/heddle-proxy"} {
		t.Run(bin, func(t *testing.T) {
			out := list(t, "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./"+bin)
			mods := strings.Fields(string(out))
			slices.Sort(mods)
			got := strings.Join(slices.Compact(mods), "\n") + "\n"
			file := filepath.Join("..", "..", bin, "deps.txt")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("the modules that %s links differ from %s/deps.txt:\n%s\nIf a new one is worth its weight: go test ./internal/arrows -update, and say why in the commit", bin, bin, diff(string(want), got))
			}
		})
	}
}

func diff(want, got string) string {
	w, g := strings.Fields(want), strings.Fields(got)
	var b strings.Builder
	for _, m := range g {
		if !slices.Contains(w, m) {
			b.WriteString("\t+ " + m + "\n")
		}
	}
	for _, m := range w {
		if !slices.Contains(g, m) {
			b.WriteString("\t- " + m + "\n")
		}
	}
	return b.String()
}
