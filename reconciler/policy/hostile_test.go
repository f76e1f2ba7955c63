package policy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/bigpolicy"
	"github.com/heddle-mesh/heddle/schema/diag"
)

// laughs is a chain of definitions, each of which uses the one before it ten times.
func laughs(levels int, first, each string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "_l0: %s\n", first)
	for i := range levels {
		prev := fmt.Sprintf("_l%d", i)
		fmt.Fprintf(&b, "_l%d: %s\n", i+1, strings.ReplaceAll(each, "L", prev))
	}
	return b.String()
}

// many are lines with a number each.
func many(n int, line string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, line, i)
	}
	return b.String()
}

const port80 = "services: evil: web: ports: http: port: 80\n"

// hostile are files of services/evil that ask for more than there is.
var hostile = map[string]string{
	"string laughs": header + port80 + laughs(12, `"xxxxxxxxxx"`, `"\(L)\(L)\(L)\(L)\(L)\(L)\(L)\(L)\(L)\(L)"`),
	"list laughs":   header + "import \"list\"\n" + port80 + laughs(12, `[1]`, `list.Concat([L,L,L,L,L,L,L,L,L,L])`),
	"struct laughs": header + port80 + "services: evil: web: httpRoutes: _l12\n" + laughs(12, `{a: 1}`, `{a: L, b: L, c: L, d: L, e: L, f: L, g: L, h: L, i: L, j: L}`),
	"number laughs": header + port80 + laughs(40, `9999999999`, `L*L*L*L`),
	"range":         header + "import \"list\"\n" + port80 + "_x: list.Range(0, 1000000000, 1)\n",
	"comprehensions": header + "import \"list\"\n_r: list.Range(0, 300, 1)\n" + port80 +
		"_x: [for a in _r for b in _r for c in _r for d in _r {a + b + c + d}]\n",
	"services by comprehension": header + "import \"list\"\n" +
		"for i in list.Range(0, 10000000, 1) {services: evil: \"s\\(i)\": ports: http: port: 80}\n",
	"disjunctions": header + port80 + func() string {
		var b strings.Builder
		b.WriteString("_x: {}")
		for i := range 24 {
			fmt.Fprintf(&b, " & ({a%d: 1, ...} | {b%d: 1, ...} | {c%d: 1, ...})", i, i, i)
		}
		return b.String() + "\n"
	}(),
	"one allocation": header + "import \"strings\"\n" + port80 + "_x: strings.Repeat(\"x\", 20000000000)\n",
	"nesting":        header + port80 + "_x: " + strings.Repeat("[", 400_000) + strings.Repeat("]", 400_000) + "\n",
	"nested structs": header + port80 + "_x: " + strings.Repeat("{a: ", 100_000) + "1" + strings.Repeat("}", 100_000) + "\n",
	"long path":      header + port80 + strings.Repeat("_a: ", 200_000) + "1\n",
	"binary chain":   header + port80 + "_x: 1" + strings.Repeat("+1", 400_000) + "\n",
	"long string":    header + "import \"strings\"\n" + port80 + "_x: strings.Repeat(\"0123456789\", 30000000)\n",
	"many findings":  header + strings.Repeat("a: 1\n", 30_000) + strings.Repeat("services: evil: web: ports: http: prt: 1\n", 100),
	"many names":     header + port80 + many(30_000, "services: evil: web: ports: http: p%d: 1\n"),
	"many numbers":   header + port80 + many(20_000, "_x%d: 1e9\n"),
	"endless loop":   header + "_f: {n: int, out: (_f & {n: N + 1}).out, let N = n}\n" + port80 + "_x: (_f & {n: 0}).out\n",
}

// TestHostile: whatever a directory asks for, the load ends, the directory has a finding, and other directories are
// judged. It is the limits that end it: what is tested is that they do, not how fast.
func TestHostile(t *testing.T) {
	e := New(Options{CPU: time.Second, Heap: 96 << 20, Output: 8 << 20, Wall: 5 * time.Minute})
	for name, text := range hostile {
		t.Run(name, func(t *testing.T) {
			files := repository(map[string][]byte{
				"services/aaa/web.cue":  []byte(header + "services: aaa: web: ports: http: prt: 80\n"),
				"services/evil/web.cue": []byte(text),
				"services/zzz/web.cue":  []byte(header + "services: zzz: web: ports: http: port: 80\n"),
			})
			doc, findings, err := e.LoadFiles(t.Context(), files, "")
			if err != nil {
				t.Fatal(err)
			}
			evil, others := 0, 0
			for _, f := range findings {
				switch {
				case strings.HasPrefix(f.Pos.File, "services/evil"):
					evil++
					t.Log(f)
					if f.ID == diag.EvalCrashed {
						t.Errorf("a crash is no limit: %s", f.Message)
					}
					if len(f.String()) > 400 {
						t.Errorf("a finding of %d bytes", len(f.String()))
					}
				case strings.HasPrefix(f.Pos.File, "services/aaa"):
					others++
				default:
					t.Error("unexpected:", f)
				}
			}
			if evil > maxFindings+1 {
				t.Errorf("%d findings about one directory", evil)
			}
			if evil == 0 || others == 0 {
				t.Errorf("%d findings about the hostile directory, %d about another: %v", evil, others, findings)
			}
			if len(doc.Policy.Services["zzz"]) != 1 || len(doc.Policy.Services["evil"]) != 0 {
				t.Errorf("read: %v", doc.Policy.Services)
			}
		})
	}
}

// TestHostileMany: a hostile mesh.cue is told once and does not cost a limit for each directory below it; so do
// many hostile directories.
func TestHostileMany(t *testing.T) {
	e := New(Options{CPU: time.Second, Heap: 64 << 20, Wall: 5 * time.Minute, Workers: 2})
	bomb := hostile["range"]
	files := large(30, 1)
	files["mesh.cue"] = []byte(strings.Replace(baseMesh, "import ", "import \"list\"\nimport ", 1) + "_x: list.Range(0, 1000000000, 1)\n")
	_, findings, err := e.LoadFiles(t.Context(), files, "")
	if err != nil || len(findings) < 2 || findings[0].ID != diag.Runaway || findings[0].Pos.File != "mesh.cue" || len(findings) > 5 {
		t.Errorf("hostile mesh.cue: %v %v", findings, err)
	}
	files = large(30, 1)
	for i := range 30 {
		files[fmt.Sprintf("services/%s/bomb.cue", bigpolicy.Namespace(i))] = []byte(strings.ReplaceAll(bomb, "evil", strconv.Quote(bigpolicy.Namespace(i))))
	}
	_, findings, err = e.LoadFiles(t.Context(), files, "")
	if err != nil || len(findings) < enough || len(findings) > enough+3 {
		t.Errorf("hostile directories: %v %v", findings, err)
	}
}

// TestOutput: a directory may not evaluate to more than the bound.
func TestOutput(t *testing.T) {
	e := New(Options{Output: 1 << 20})
	files := repository(map[string][]byte{"services/shop/web.cue": []byte(header + "import (\"list\", \"strings\")\n" +
		"for i in list.Range(0, 300, 1) {services: shop: \"s\\(i)\": {ports: http: port: 80, selector: {for j in list.Range(0, 60, 1) {\"k\\(j)\": strings.Repeat(\"x\", 60)}}}}\n")})
	_, findings, err := e.LoadFiles(t.Context(), files, "")
	if err != nil || len(findings) != 1 || findings[0].ID != diag.Runaway || !strings.Contains(findings[0].Message, "more than 1 MiB") {
		t.Error(findings, err)
	}
}

// TestCancel: a cancelled load returns at once, as a fault, and remembers nothing.
func TestCancel(t *testing.T) {
	e := New(Options{CPU: time.Hour, Heap: 1 << 40})
	ctx, cancel := context.WithCancel(t.Context())
	files := repository(map[string][]byte{"services/evil/web.cue": []byte(hostile["disjunctions"])})
	time.AfterFunc(50*time.Millisecond, cancel)
	_, _, err := e.LoadFiles(ctx, files, "")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	if n := len(e.cache); n > 1 {
		t.Errorf("%d parts remembered", n)
	}
}

// TestOrphan: a child whose parent is gone does not stay.
func TestOrphan(t *testing.T) {
	exe, err := executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Args = []string{ChildName}
	cmd.Env = []string{}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = io.Discard
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	req := request{Language: "v0.14.0", CPUSeconds: 3600, HeapBytes: 1 << 40}
	evil := blob{name: "services/evil/web.cue", read: func() ([]byte, error) { return []byte(hostile["disjunctions"]), nil }}
	if err := send(stdin, req, []directory{{unit{Dir: "services/evil", Namespace: "evil", Roots: namespaced}, []blob{evil}}}); err != nil {
		t.Fatal(err)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil { // a child that stays hangs the test
		t.Error(err)
	}
}
