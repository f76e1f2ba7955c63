package plan

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// TestBudget: beyond the bound a line says that the port may change, and never that it does not.
func TestBudget(t *testing.T) {
	b, a := small(), small()
	for _, m := range []*mesh.Mesh{b, a} {
		in := inOf(m, "shop/web")
		for i := range 20 {
			in.Rules = append(in.Rules, mesh.Rule{ID: fmt.Sprintf("shop/web/deny/h%02d", i), Action: mesh.DenyRule, From: []mesh.Peer{{Authenticated: true}},
				Headers: []mesh.HeaderMatch{{Name: fmt.Sprintf("x-%d", i), Exact: "1"}}})
		}
	}
	a.Inbound[5].Rules[3].Headers[0].Exact = "2"
	p := Compare(&Side{Mesh: b}, &Side{Mesh: a}, Options{Now: day0})
	if len(p.Lines) != 1 || !p.Lines[0].MayChange || p.Lines[0].To != "shop/web:http" || !p.FailOn([]Risk{Widens}) {
		t.Errorf("three to the twentieth classes: %+v", p.Lines)
	}
	// The same with room for all of them.
	b.Inbound[5].Rules, a.Inbound[5].Rules = b.Inbound[5].Rules[:5], a.Inbound[5].Rules[:5]
	p = Compare(&Side{Mesh: b}, &Side{Mesh: a}, Options{Now: day0})
	for i := range p.Lines {
		if p.Lines[i].MayChange {
			t.Errorf("%+v", p.Lines[i])
		}
		checkWitness(t, 0, b, a, &p.Lines[i])
	}
	if len(p.Lines) == 0 {
		t.Error("no line")
	}
	if tight := Compare(&Side{Mesh: b}, &Side{Mesh: a}, Options{Now: day0, Budget: 10}); len(tight.Lines) != 1 || !tight.Lines[0].MayChange {
		t.Errorf("a budget of 10: %+v", tight.Lines)
	}
}

// TestSideways: unrelated headers of many routes do not multiply, since no path has more than its own.
func TestSideways(t *testing.T) {
	b, a := small(), small()
	for _, m := range []*mesh.Mesh{b, a} {
		o := outOf(m, "shop/web")
		for i := range 40 {
			id := fmt.Sprintf("shop/web/httpRoutes/r%02d", i)
			o.Routes = append(o.Routes, mesh.Route{ID: id, Port: "http", Backends: []mesh.Backend{{Service: "shop/cart", Port: "http", Weight: 100}}})
			o.Ports[0].Matches = append([]mesh.Match{{Route: id, Path: mesh.PathMatch{Prefix: fmt.Sprintf("/p%02d", i)}, Headers: []mesh.HeaderMatch{{Name: fmt.Sprintf("x-%d", i), Exact: "1"}}}}, o.Ports[0].Matches...)
		}
	}
	outOf(a, "shop/web").Ports[0].Matches[7].Headers[0].Exact = "2"
	p := Compare(&Side{Mesh: b}, &Side{Mesh: a}, Options{Now: day0, Budget: 20_000})
	if len(p.Lines) == 0 {
		t.Fatal("no line")
	}
	for i := range p.Lines {
		if l := &p.Lines[i]; l.MayChange || !strings.Contains(strings.Join(l.Requests, " "), "/p32/*, with certain values of header x-32") {
			t.Errorf("%s: %v", l.title(9), l.Requests)
		}
	}
}

// TestSameResult: neither the order of maps nor that of a second run shows.
func TestSameResult(t *testing.T) {
	for _, c := range cases {
		b, a := small(), small()
		if c.before != nil {
			c.before(b)
			c.before(a)
		}
		if c.after != nil {
			c.after(a)
		}
		first := ""
		for range 5 {
			var out bytes.Buffer
			if err := Compare(&Side{Mesh: b, Origins: origins(b)}, &Side{Mesh: a, Origins: origins(a)}, Options{Now: day0}).JSON(&out); err != nil {
				t.Fatal(err)
			}
			if first == "" {
				first = out.String()
			}
			if out.String() != first {
				t.Fatalf("%s: two results", c.name)
			}
		}
	}
}

// TestMovedLines: a commit that only moves lines changes nothing.
func TestMovedLines(t *testing.T) {
	m := small()
	at, moved := origins(m), mesh.Origins{}
	for id, p := range at {
		p.Line += 7
		moved[id] = p
	}
	if p := Compare(&Side{Mesh: m, Origins: at}, &Side{Mesh: clone(m), Origins: moved}, Options{}); !p.Empty() {
		t.Errorf("%+v", p.Lines)
	}
}

// TestFirstCommit: what was not there lets nobody in, and the plan says what lets somebody in now.
func TestFirstCommit(t *testing.T) {
	m := small()
	p := Compare(&Side{}, &Side{Mesh: m, Origins: origins(m)}, Options{Now: day0})
	widens := 0
	for i := range p.Lines {
		l := &p.Lines[i]
		if l.Risk == Widens {
			widens++
		}
		if l.Kind == KindAccess {
			c := l.Witness.Call()
			if o := decide.Judge(m, &c); !o.Allowed() {
				t.Errorf("%s is not allowed", l.Witness.Command())
			}
		}
	}
	if widens != 4 { // the four services with an allow rule
		t.Errorf("%d lines widen", widens)
	}
	if back := Compare(&Side{Mesh: m}, &Side{}, Options{Now: day0}); back.Worst() != Deletes {
		t.Errorf("all deleted: %s", back.Verdict())
	}
}

var tag = regexp.MustCompile(`</?[A-Za-z!][^>]*>`)

// checkComment holds a comment to what may stand in one: only tags of our own, no mention, no live text of an author's.
func checkComment(t *testing.T, md string) {
	t.Helper()
	if n := utf8.RuneCountInString(md); n > MaxMarkdown || len(md) > MaxMarkdown {
		t.Errorf("%d characters", n)
	}
	if !utf8.ValidString(md) {
		t.Error("not UTF-8")
	}
	if !strings.HasPrefix(md, "<!-- heddle:plan:") || strings.Count(md, "<!--") != 1 || strings.Count(md, "-->") != 1 {
		t.Error("not one marker")
	}
	depth := map[string]int{}
	for _, g := range tag.FindAllString(md[strings.Index(md, "\n"):], -1) {
		name := strings.ToLower(strings.Trim(strings.Fields(strings.Trim(g, "<>/"))[0], "/"))
		switch name {
		case "code", "a", "details", "summary":
			if strings.HasPrefix(g, "</") {
				depth[name]--
			} else {
				depth[name]++
			}
			if depth[name] < 0 || depth["code"] > 1 {
				t.Errorf("%s out of place", g)
			}
		case "br":
		default:
			t.Errorf("tag %s", g)
		}
		if name == "a" && !strings.HasPrefix(g, "</") && !strings.HasPrefix(html.UnescapeString(g), `<a href="https://`) {
			t.Errorf("link %s", g)
		}
	}
	for name, d := range depth {
		if d != 0 {
			t.Errorf("%s is left open", name)
		}
	}
	for _, line := range strings.Split(md, "\n") {
		if strings.HasPrefix(line, "| ") && strings.Count(line, "|") != 5 {
			t.Errorf("a row of %d columns: %s", strings.Count(line, "|")-1, line)
		}
		plain := tag.ReplaceAllString(line, "")
		if strings.ContainsAny(plain, "@`[]<>~$\\") || strings.Contains(plain, "://") || strings.Contains(plain, "www.") {
			t.Errorf("live text: %s", line)
		}
	}
}

// hostileMesh says a text wherever an author's text can stand.
func hostileMesh(text string) (*mesh.Mesh, *mesh.Mesh) {
	b, a := small(), small()
	in := inOf(a, "shop/web")
	in.Rules[0].ID = text
	in.Rules[0].From = append(in.Rules[0].From, mesh.Peer{Identity: text}, mesh.Peer{Prefix: text + "/"}, mesh.Peer{Suffix: "/" + text})
	in.Rules[0].Paths = []mesh.PathMatch{{Prefix: "/" + text}}
	in.Rules[0].Headers = []mesh.HeaderMatch{{Name: text, Exact: text}}
	outOf(a, "shop/cart").Routes[0].Backends = append(outOf(a, "shop/cart").Routes[0].Backends, mesh.Backend{Service: mesh.ServiceName(text), Port: text, Weight: 10})
	outOf(a, "shop/cart").Routes[0].Filters = []mesh.Filter{{Redirect: &mesh.Redirect{Host: text, Status: 302}}}
	a.Workloads[0].Name = text
	a.Invariants = []mesh.Invariant{{Name: text, ID: text}}
	a.Egress = []mesh.Egress{{Namespace: text, Default: mesh.Allow, DefaultID: text}}
	a.Settings.TrustDomain = text
	return b, a
}

func hostileComment(text string) string {
	b, a := hostileMesh(text)
	at := origins(a)
	for id, p := range at {
		p.File = text
		at[id] = p
	}
	p := Compare(&Side{Mesh: b, Origins: origins(b), Commit: text, Subject: text}, &Side{Mesh: a, Origins: at, Commit: text, Subject: text}, Options{Name: text, Now: day0})
	return p.Markdown(MarkdownOptions{Tests: text, Unchanged: text, FullPlan: text, Link: func(at diag.Pos, before bool) string { return "https://git.example/" + at.File },
		Findings: diag.List{{ID: text, Message: text, Pos: diag.Pos{File: text, Line: 1}}}})
}

var hostile = []string{"@team", "</details>", "|", "`", "a\nb", "<img src=x onerror=alert(1)>", "-->", "[x](javascript:alert(1))", "https://evil.example", "www.evil.example", "javascript:alert(1)",
	"\u202eoverride", "\xff\xfe", "&lt;", "#1", "</code>", "a | b | c", "~~x~~ **y** _z_ $x$", "\x00\x1b[31m", strings.Repeat("x", 5000), "owner/repo#12", "--", "\"><script>", "\r\n\r\n# heading"}

// TestHostileNames: nothing that an author names acts in a comment, or moves a terminal's cursor.
func TestHostileNames(t *testing.T) {
	for _, text := range hostile {
		t.Run(fmt.Sprintf("%.20q", text), func(t *testing.T) {
			checkComment(t, hostileComment(text))
			b, a := hostileMesh(text)
			var out bytes.Buffer
			if err := Compare(&Side{Mesh: b}, &Side{Mesh: a, Subject: text}, Options{Now: day0}).Text(&out, TextOptions{ASCII: true}); err != nil {
				t.Fatal(err)
			}
			for _, r := range out.String() {
				if r != '\n' && (r < ' ' || r == 0x7f || 0x202a <= r && r <= 0x202e) {
					t.Errorf("%q on the terminal", r)
				}
			}
		})
	}
}

func FuzzMarkdown(f *testing.F) {
	for _, text := range hostile {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) { checkComment(t, hostileComment(text)) })
}

// TestCap: a comment on a very large plan has its head, its reach, and says how many rows it leaves out.
func TestCap(t *testing.T) {
	b, a := &mesh.Mesh{}, &mesh.Mesh{}
	for i := range 700 {
		n := mesh.ServiceName(fmt.Sprintf("shop/service-%03d-%s", i, strings.Repeat("long", 10)))
		for _, m := range []*mesh.Mesh{b, a} {
			m.Inbound = append(m.Inbound, mesh.Inbound{Service: n, Identities: []string{"spiffe://mesh.example/ns/shop/sa/" + n.Local()},
				Ports: []mesh.InboundPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1, Default: mesh.Deny, DefaultID: mesh.DefaultID(n, "http")}}})
		}
		a.Inbound[i].Ports[0].Default = mesh.AllAuthenticated
	}
	p := Compare(&Side{Mesh: b}, &Side{Mesh: a}, Options{})
	md := p.Markdown(MarkdownOptions{Findings: make(diag.List, 1000)})
	checkComment(t, md)
	for _, want := range []string{"700 changes widen access", "more rows in the full plan", "**Reach**"} {
		if !strings.Contains(md, want) {
			t.Errorf("no %q", want)
		}
	}
	if len(md) < MaxMarkdown/2 {
		t.Errorf("only %d characters of %d are used", len(md), MaxMarkdown)
	}
}

// TestJSON: the form for programs is versioned, and has a list of items even where nothing changes.
func TestJSON(t *testing.T) {
	var out bytes.Buffer
	if err := Compare(&Side{Mesh: small()}, &Side{Mesh: small()}, Options{}).JSON(&out); err != nil {
		t.Fatal(err)
	}
	var v struct {
		APIVersion string            `json:"apiVersion"`
		Items      []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(out.Bytes(), &v); err != nil || v.APIVersion != "heddle/v1" || v.Items == nil || len(v.Items) != 0 {
		t.Errorf("%v: %s", err, out.String())
	}
}

func TestParseRisks(t *testing.T) {
	if r, err := ParseRisks("widens, drops-encryption"); err != nil || len(r) != 2 {
		t.Errorf("%v %v", r, err)
	}
	if _, err := ParseRisks("widen"); err == nil || !strings.Contains(err.Error(), "widens") {
		t.Errorf("%v", err)
	}
}

// TestWitnessArgs: the arguments say all that the witness has.
func TestWitnessArgs(t *testing.T) {
	b, a := small(), small()
	for _, m := range []*mesh.Mesh{a, b} {
		in := inOf(m, "shop/web")
		in.Rules[0].JWT = &mesh.JWTMatch{Issuer: "corp", Claims: []mesh.ClaimMatch{{Name: "group", Values: []string{"ops"}}}}
		in.Rules[0].Headers = []mesh.HeaderMatch{{Name: "x-it's", Exact: "a b"}}
		in.Rules[0].Until = day0.Add(time.Hour)
		outOf(m, "shop/web").Routes, outOf(m, "shop/web").Ports[0].Matches = nil, nil
	}
	inOf(a, "shop/web").Rules[0].Methods = []string{"POST"}
	p := Compare(&Side{Mesh: b}, &Side{Mesh: a}, Options{Now: day0})
	if len(p.Lines) != 1 {
		t.Fatalf("%+v", p.Lines)
	}
	const want = `heddle explain edge/gateway shop/web:http GET / --header 'x-it'\''s=a b' --claim corp:group=ops`
	if got := p.Lines[0].Witness.Command(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestAddedHeader: a backend that asks for what only a filter completes is seen through the filter.
func TestAddedHeader(t *testing.T) {
	b, a := small(), small()
	for _, m := range []*mesh.Mesh{b, a} {
		r := &outOf(m, "shop/web").Routes[0]
		r.Backends[0].Service = "shop/cart"
		r.Filters = []mesh.Filter{{RequestHeaders: &mesh.HeaderEdit{Add: []mesh.HeaderField{{Name: "via", Value: "web"}}}}}
	}
	in := inOf(a, "shop/cart")
	in.Rules = append(in.Rules, mesh.Rule{ID: "shop/cart/allow/x", Action: mesh.Allow, From: []mesh.Peer{{Identity: "spiffe://mesh.example/ns/edge/sa/gateway"}},
		Headers: []mesh.HeaderMatch{{Name: "via", Exact: "edge,web"}}})
	p := Compare(&Side{Mesh: b}, &Side{Mesh: a}, Options{Now: day0})
	found := false
	for i := range p.Lines {
		l := &p.Lines[i]
		checkWitness(t, 0, b, a, l)
		found = found || l.To == "shop/web:http" && l.Risk == Widens && l.Witness.Headers["via"] == "edge"
	}
	if !found {
		t.Errorf("%+v", p.Lines)
	}
}
