package diag

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// constants reads the IDs out of catalogue.go: name → value.
func constants(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "catalogue.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && len(v.Values) == 1 {
			if lit, ok := v.Values[0].(*ast.BasicLit); ok {
				if out[v.Names[0].Name], err = strconv.Unquote(lit.Value); err != nil {
					t.Fatal(err)
				}
			}
		}
		return true
	})
	return out
}

func TestCatalogue(t *testing.T) {
	known := map[string]bool{}
	for name, id := range constants(t) {
		if !regexp.MustCompile(`^HDL\d{4}$`).MatchString(id) {
			t.Errorf("%s is %q", name, id)
		}
		if known[id] {
			t.Errorf("%s has the ID of another check, %s", name, id)
		}
		known[id] = true
		if _, ok := Explain(id); !ok {
			t.Errorf("%s (%s) is not explained in the catalogue", name, id)
		}
	}
	if len(known) < 40 {
		t.Fatalf("only %d constants found", len(known))
	}
	if !slices.IsSortedFunc(Catalogue, func(a, b Check) int { return strings.Compare(a.ID, b.ID) }) {
		t.Error("the catalogue is not sorted by ID")
	}
	titles := map[string]bool{}
	for _, c := range Catalogue {
		if !known[c.ID] {
			t.Errorf("the catalogue explains %s, which is no constant or is explained twice", c.ID)
		}
		delete(known, c.ID)
		for what, s := range map[string]string{"title": c.Title, "why": c.Why, "mend": c.Mend} {
			if s == "" || strings.TrimSpace(s) != s || strings.ContainsAny(s, "\n\t") || strings.HasSuffix(s, ".") {
				t.Errorf("%s: %s is no line: %q", c.ID, what, s)
			}
		}
		if titles[c.Title] {
			t.Errorf("%s: another check has the title %q", c.ID, c.Title)
		}
		titles[c.Title] = true
	}
	if _, ok := Explain("HDL9999"); ok {
		t.Error("an ID that does not exist is explained")
	}
}

// sample has everything that a renderer must cope with.
var sample = List{
	{ID: WeightSum, Path: "services.shop.web.httpRoutes.cart.backends", Message: "the weights sum to 90",
		Hint: "let them sum to 100", Pos: Pos{"services/shop/web.cue", 14, 3}},
	{ID: DuplicateAddress, Path: "workloads.shop.w2.address", Message: "10.0.0.1:4143 is the address of workloads.shop.w1 already",
		Pos: Pos{"services/shop/web.cue", 20, 9}, Related: []Pos{{"services/shop/a b,c:d.cue", 7, 2}, {}}},
	{ID: FileName, Message: "100% hostile\n::error file=x::gotcha </details> <script>", Pos: Pos{File: "a,b:c%\n.cue"}},
	{ID: NoPolicy, Message: "the repository says nothing about the mesh"},
	{ID: NobodyCalls, Severity: Warning, Path: "services.shop.<b>&amp;", Message: "nobody may call <img src=x> | [it](https://evil.example)",
		Hint: "allow \"somebody\"", Pos: Pos{"services/shop/web.cue", 3, 1}},
	{ID: "HDL9998", Message: "from a later version", Pos: Pos{File: "mesh.cue", Line: 2}},
}

func TestRender(t *testing.T) {
	for name, render := range map[string]func(*bytes.Buffer, List) error{
		"text":   func(b *bytes.Buffer, l List) error { return Text(b, l, false) },
		"color":  func(b *bytes.Buffer, l List) error { return Text(b, l, true) },
		"json":   func(b *bytes.Buffer, l List) error { return JSON(b, l) },
		"sarif":  func(b *bytes.Buffer, l List) error { return SARIF(b, l, "0.1.0") },
		"github": func(b *bytes.Buffer, l List) error { return GitHub(b, l) },
		"gitlab": func(b *bytes.Buffer, l List) error { return GitLab(b, l) },
	} {
		t.Run(name, func(t *testing.T) {
			var got, empty bytes.Buffer
			if err := errors.Join(render(&got, sample), render(&empty, nil)); err != nil {
				t.Fatal(err)
			}
			all := got.String() + "-- none --\n" + empty.String()
			file := "testdata/" + name + ".golden"
			if *update {
				if err := os.WriteFile(file, []byte(all), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), all); d != "" {
				t.Errorf("run with -update if you can explain it (-want +got):\n%s", d)
			}
		})
	}
}

// TestGitHubOneCommandALine: what an author writes neither ends a command nor starts one.
func TestGitHubOneCommandALine(t *testing.T) {
	var b bytes.Buffer
	if err := GitHub(&b, sample); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(lines) != len(sample) {
		t.Fatalf("%d lines for %d findings:\n%s", len(lines), len(sample), &b)
	}
	for i, l := range lines {
		want := "::error "
		if sample[i].Severity == Warning {
			want = "::warning "
		}
		if strings.Count(l, want) != 1+strings.Count(l, `\n`+want) || !strings.HasPrefix(l, want) {
			t.Errorf("not one command: %s", l)
		}
	}
}

// TestSARIF holds the log against what the schema of SARIF 2.1.0 asks of the objects used here (chapter 3 of the
// standard): which properties are required, which exist, and what they may be.
func TestSARIF(t *testing.T) {
	type property struct {
		required bool
		check    func(any) bool
		object   string // of the property, or of each element if it is a list
	}
	isString := func(v any) bool { s, ok := v.(string); return ok && s != "" }
	oneOf := func(values ...string) func(any) bool {
		return func(v any) bool { s, ok := v.(string); return ok && slices.Contains(values, s) }
	}
	atLeast := func(n float64) func(any) bool {
		return func(v any) bool { f, ok := v.(float64); return ok && f >= n && f == float64(int(f)) }
	}
	strs := func(v any) bool {
		m, ok := v.(map[string]any)
		for _, s := range m {
			ok = ok && isString(s)
		}
		return ok
	}
	objects := map[string]map[string]property{
		"log": {"$schema": {false, isString, ""}, "version": {true, oneOf("2.1.0"), ""}, "runs": {true, nil, "run"}},
		"run": {"tool": {true, nil, "tool"}, "results": {false, nil, "result"},
			"columnKind": {false, oneOf("utf16CodeUnits", "unicodeCodePoints"), ""}},
		"tool":      {"driver": {true, nil, "component"}},
		"component": {"name": {true, isString, ""}, "version": {false, isString, ""}, "rules": {false, nil, "rule"}},
		"rule": {"id": {true, isString, ""}, "shortDescription": {false, nil, "message"}, "fullDescription": {false, nil, "message"},
			"help": {false, nil, "message"}, "defaultConfiguration": {false, nil, "configuration"}},
		"configuration": {"level": {false, oneOf("none", "note", "warning", "error"), ""}},
		"message":       {"text": {true, isString, ""}, "markdown": {false, isString, ""}},
		"result": {"ruleId": {false, isString, ""}, "ruleIndex": {false, atLeast(0), ""}, "message": {true, nil, "message"},
			"level": {false, oneOf("none", "note", "warning", "error"), ""}, "partialFingerprints": {false, strs, ""},
			"locations": {false, nil, "location"}, "relatedLocations": {false, nil, "location"}},
		"location":         {"physicalLocation": {false, nil, "physicalLocation"}},
		"physicalLocation": {"artifactLocation": {true, nil, "artifact"}, "region": {false, nil, "region"}},
		"artifact":         {"uri": {true, isURI, ""}, "uriBaseId": {false, isString, ""}},
		"region":           {"startLine": {true, atLeast(1), ""}, "startColumn": {false, atLeast(1), ""}},
	}
	var check func(at, kind string, v any)
	check = func(at, kind string, v any) {
		if list, ok := v.([]any); ok {
			for i, e := range list {
				check(at+"/"+strconv.Itoa(i), kind, e)
			}
			return
		}
		m, ok := v.(map[string]any)
		if !ok {
			t.Errorf("%s is no %s", at, kind)
			return
		}
		for name, p := range objects[kind] {
			if _, ok := m[name]; p.required && !ok {
				t.Errorf("%s has no %s", at, name)
			}
		}
		for name, v := range m {
			p, ok := objects[kind][name]
			switch {
			case !ok:
				t.Errorf("%s: a %s has no %s", at, kind, name)
			case p.object != "":
				check(at+"/"+name, p.object, v)
			case !p.check(v):
				t.Errorf("%s/%s: %v", at, name, v)
			}
		}
	}
	for _, l := range []List{sample, nil} {
		var b bytes.Buffer
		if err := SARIF(&b, l, "0.1.0"); err != nil {
			t.Fatal(err)
		}
		var log map[string]any
		if err := json.Unmarshal(b.Bytes(), &log); err != nil {
			t.Fatal(err)
		}
		check("log", "log", log)
		run := log["runs"].([]any)[0].(map[string]any)
		rules := run["tool"].(map[string]any)["driver"].(map[string]any)["rules"].([]any)
		results := run["results"].([]any)
		if len(results) != len(l) {
			t.Errorf("%d results for %d findings", len(results), len(l))
		}
		for i, r := range results {
			r := r.(map[string]any)
			if n := int(r["ruleIndex"].(float64)); n >= len(rules) || rules[n].(map[string]any)["id"] != r["ruleId"] {
				t.Errorf("result %d: rule %d is not %v", i, n, r["ruleId"])
			}
		}
	}
}

func isURI(v any) bool {
	s, _ := v.(string)
	u, err := url.Parse(s)
	return s != "" && err == nil && !u.IsAbs() && u.String() == s
}

// TestFingerprints: a finding keeps its fingerprint when lines come or go, and no two findings of a list share one.
func TestFingerprints(t *testing.T) {
	at := func(line int, message string) Finding {
		return Finding{ID: WrongValue, Path: "p", Message: message, Pos: Pos{"a.cue", line, 2}}
	}
	before := Fingerprints(List{at(3, "already at b.cue:7:2"), at(4, "x"), at(5, "x")})
	after := Fingerprints(List{at(9, "already at b.cue:70:4"), at(10, "x"), at(11, "x")})
	if d := cmp.Diff(before, after); d != "" {
		t.Errorf("they changed with the lines (-before +after):\n%s", d)
	}
	other := Fingerprints(List{at(3, "already at c.cue:7:2"), at(4, "y"), {ID: WrongValue, Path: "q", Message: "x", Pos: Pos{"a.cue", 5, 2}}})
	seen := map[string]bool{}
	for _, p := range slices.Concat(before, other) {
		if seen[p] || p == "" {
			t.Errorf("two findings have the fingerprint %q", p)
		}
		seen[p] = true
	}
}

// TestPrintable: text for people is one printable line a finding, whatever it quotes.
func TestPrintable(t *testing.T) {
	hostile := List{{ID: "HDL9999", Path: "a\x1b[2J", Message: "b\r\nc\u202ed", Pos: Pos{File: "e\x00f"}}}
	var b bytes.Buffer
	if err := Text(&b, hostile, false); err != nil {
		t.Fatal(err)
	}
	const want = `e\x00f: a\x1b[2J: b\r\nc\u202ed [HDL9999]`
	if b.String() != want+"\n" || hostile.Error() != want || hostile[0].String() != want {
		t.Errorf("got  %q\nwant %q", b.String(), want)
	}
}

func TestJSONReadsBack(t *testing.T) {
	var b bytes.Buffer
	if err := JSON(&b, sample); err != nil {
		t.Fatal(err)
	}
	var got struct {
		APIVersion, Kind string
		Items            List
	}
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(sample, got.Items); d != "" || got.APIVersion != "heddle/v1" || got.Kind != "Findings" {
		t.Errorf("%s %s (-want +got):\n%s", got.APIVersion, got.Kind, d)
	}
}

func TestListSorted(t *testing.T) {
	a := Finding{ID: "HDL0001", Message: "m", Pos: Pos{"a.cue", 2, 1}}
	b := Finding{ID: "HDL0001", Message: "m", Pos: Pos{"a.cue", 10, 1}}
	c := Finding{ID: "HDL0002", Message: "m", Pos: Pos{"a.cue", 10, 1}}
	none := Finding{ID: "HDL0003", Message: "m"}
	in := List{c, b, none, a, b}
	if d := cmp.Diff(List{none, a, b, c}, in.Sorted()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(List{c, b, none, a, b}, in); d != "" {
		t.Error("the list itself was written:", d)
	}
	if (List{}).Err() != nil || List(nil).Err() != nil {
		t.Error("an empty list is an error")
	}
	var l List
	if !errors.As(in.Err(), &l) || len(l) != 4 {
		t.Errorf("Err is %v", in.Err())
	}
}

func TestNearest(t *testing.T) {
	known := []string{"shop/web", "shop/api", "pay/web", "x"}
	for name, want := range map[string]string{
		"shop/wbe": "shop/web", "shop/web": "shop/web", "shp/api": "shop/api", "pay/we": "pay/web",
		"nothing-like-it": "", "": "", "y": "", "z/z": "",
	} {
		if got := Nearest(name, known); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", name, got, want)
		}
	}
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"abcd", "badc", 2}, {"kitten", "sitting", 3}} {
		if got := distance(c.a, c.b, 99); got != c.want || distance(c.b, c.a, 99) != got {
			t.Errorf("distance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

func TestPos(t *testing.T) {
	for _, c := range []struct {
		p           Pos
		long, short string
	}{
		{Pos{}, "-", "-"}, {Pos{File: "a.cue"}, "a.cue", "a.cue"},
		{Pos{File: "a.cue", Line: 3}, "a.cue:3", "a.cue:3"}, {Pos{"a.cue", 3, 7}, "a.cue:3:7", "a.cue:3"},
	} {
		if c.p.String() != c.long || c.p.Short() != c.short || c.p.IsZero() != (c.p == Pos{}) {
			t.Errorf("%#v: %s, %s", c.p, c.p, c.p.Short())
		}
	}
}

// TestNearestBounds: what is passed by on the way is never nearer than what is found.
func TestNearestBounds(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	word := func() string {
		b := make([]byte, 3+r.IntN(10))
		for i := range b {
			b[i] = "abcd"[r.IntN(4)]
		}
		return string(b)
	}
	for range 2000 {
		name, known := word(), make([]string, 20)
		best, least := "", 99
		for i := range known {
			known[i] = word()
			d := distance(name, known[i], 99)
			if most := max(len(name), len(known[i])) / 3; d <= most && d < least {
				best, least = known[i], d
			}
			for most := range 12 {
				if got := distance(name, known[i], most); got != d && (got <= most || d <= most) || apart(name, known[i]) > d {
					t.Fatalf("distance(%q, %q, %d) = %d, want %d", name, known[i], most, got, d)
				}
			}
		}
		if got := Nearest(name, known); got != best {
			t.Fatalf("Nearest(%q, %q) = %q, want %q", name, known, got, best)
		}
	}
}
