package plan

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// MaxMarkdown is the most characters of a comment: GitHub takes 65,536, and whoever posts it may add some.
const MaxMarkdown = 60_000

// MarkdownOptions are what the caller knows of the pull request.
type MarkdownOptions struct {
	// Link is the address of a line at the after side or, with before set, at the before side; nil or "": no link.
	Link func(at diag.Pos, before bool) string
	// FullPlan is the address of the whole plan; it may be empty.
	FullPlan string
	// Tests says how the expectations went, such as "38 pass"; empty: none ran.
	Tests string
	// Findings are those of the after side.
	Findings diag.List
	// Unchanged is added where nothing changes, such as "4 files reformatted".
	Unchanged string
}

// Marker is the first line of a plan's comment, by which it is found to be edited in place.
func Marker(name string) string {
	safe := strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '_' || r == '.' || r == '/' {
			return r
		}
		return '-'
	}, name)
	for strings.Contains(safe, "--") { // which would end the comment
		safe = strings.ReplaceAll(safe, "--", "-")
	}
	return "<!-- heddle:plan:" + safe + " -->"
}

// Markdown is the plan as one comment on a pull request: the verdict first, details folded, at most [MaxMarkdown]
// characters. No name in it acts: not as Markdown, HTML, a mention or a link. It holds no value of a header or a claim.
func (p *Plan) Markdown(o MarkdownOptions) string {
	m := &markdown{o: o}
	head := Marker(p.Name) + "\n"
	if p.Empty() && len(p.Later)+len(p.Refused)+len(o.Findings) == 0 {
		head += "No change in who may call whom"
		if o.Unchanged != "" {
			head += "; " + escape(o.Unchanged)
		}
		return head + ".\n"
	}
	m.b.WriteString(head)
	if p.Empty() {
		m.b.WriteString("### No change in who may call whom")
		if o.Unchanged != "" {
			m.b.WriteString("; " + escape(o.Unchanged))
		}
		m.b.WriteString("\n")
	} else {
		fmt.Fprintf(&m.b, "### %s %s\n", p.Worst().glyph(false), p.Verdict())
	}
	fmt.Fprintf(&m.b, "base %s → head %s", code(p.Before.String()), code(p.After.String()))
	if href := m.href(o.FullPlan); href != "" {
		fmt.Fprintf(&m.b, ` · <a href="%s">full plan</a>`, href)
	}
	m.b.WriteString("\n")
	foot := m.foot(p)
	room := MaxMarkdown - m.size() - len(foot) - 400
	if len(p.Lines) > 0 {
		m.table(p.Lines, room)
	}
	m.b.WriteString(foot)
	// Folded, and dropped first where there is no room.
	m.fold(fmt.Sprintf("Later, with no commit (%d)", len(p.Later)), len(p.Later), func(i int) string { return m.later(&p.Later[i]) })
	m.fold(fmt.Sprintf("Findings (%d, errors %d)", len(o.Findings), len(o.Findings.Errors())), len(o.Findings), func(i int) string { return m.finding(&o.Findings[i]) })
	var shown []*Line
	for i := range p.Lines {
		if p.Lines[i].Witness != nil {
			shown = append(shown, &p.Lines[i])
		}
	}
	m.fold(fmt.Sprintf("Refused before and after (%d)", len(p.Refused)), len(p.Refused), func(i int) string { return m.refused(&p.Refused[i]) })
	m.fold(fmt.Sprintf("See for yourself (%d)", len(shown)), len(shown), func(i int) string { return m.witness(shown[i]) })
	return m.b.String()
}

type markdown struct {
	b strings.Builder
	o MarkdownOptions
}

func (m *markdown) size() int { return m.b.Len() }

func (m *markdown) table(lines []Line, room int) {
	const head = "\n| | before | after | where |\n|---|---|---|---|\n"
	m.b.WriteString(head)
	used := len(head)
	for i := range lines {
		row := m.row(&lines[i])
		if used+len(row) > room {
			fmt.Fprintf(&m.b, "\n… %d more rows in the full plan\n", len(lines)-i)
			return
		}
		used += len(row)
		m.b.WriteString(row)
	}
}

func (m *markdown) row(l *Line) string {
	var b strings.Builder
	b.WriteString("| " + l.Risk.glyph(false) + " **" + escape(l.Subject) + "**")
	if l.MayChange && l.Subject != "may change" {
		b.WriteString(" (may change)")
	}
	if len(l.From) > 0 {
		b.WriteString(" " + codes(l.From, 4) + " →")
	}
	if l.To != "" {
		b.WriteString(" " + code(l.To))
	}
	if len(l.Requests) > 0 {
		b.WriteString(" " + codes(l.Requests, 4))
	}
	b.WriteString(" | " + cell(l.Before) + " | " + cell(l.After) + " | " + m.where(l) + " |\n")
	return b.String()
}

// cell is a side's words; short fixed ones stand as they are.
func cell(s string) string {
	switch s {
	case "", "allowed", "denied", "strict", "permissive", "none", "not there", "there", "may change":
		return s
	}
	return code(s)
}

// where names the lines that decide: those of the after side, and of the before side where they are others. A cell has two
// of each side at most.
func (m *markdown) where(l *Line) string {
	var out []string
	seen := map[string]bool{}
	put := func(list []Where, before bool) {
		shown, more := 0, 0
		for _, w := range list {
			name := w.ID
			if !w.Pos.IsZero() {
				name = w.Pos.Short()
			}
			if seen[name] {
				continue
			}
			seen[name] = true
			if shown++; shown > 2 {
				more++
				continue
			}
			text := code(name)
			if m.o.Link != nil && !w.Pos.IsZero() {
				if href := m.href(m.o.Link(w.Pos, before)); href != "" {
					text = `<a href="` + href + `">` + text + `</a>`
				}
			}
			if before {
				text = "was " + text
			}
			out = append(out, text)
		}
		if more > 0 {
			out[len(out)-1] += fmt.Sprintf(" and %d more", more)
		}
	}
	put(l.WhereAfter, false)
	put(l.WhereBefore, true)
	return strings.Join(out, "<br>")
}

func (m *markdown) foot(p *Plan) string {
	s := "\n**Reach** " + p.Reach.String()
	if m.o.Tests != "" {
		s += " · **Tests** " + escape(m.o.Tests)
	}
	return s + "\n"
}

// fold writes a folded list, as much of it as there is room for.
func (m *markdown) fold(title string, n int, item func(int) string) {
	const end = "\n</details>\n"
	if n == 0 || m.size()+len(title)+500 > MaxMarkdown {
		return
	}
	m.b.WriteString("\n<details><summary>" + escape(title) + "</summary>\n\n")
	for i := range n {
		line := "- " + item(i) + "\n"
		if m.size()+len(line)+len(end)+100 > MaxMarkdown {
			fmt.Fprintf(&m.b, "- … %d more in the full plan\n", n-i)
			break
		}
		m.b.WriteString(line)
	}
	m.b.WriteString(end)
}

func (m *markdown) later(l *Line) string {
	s := l.At.UTC().Format(time.RFC3339) + ": " + l.Risk.glyph(false) + " **" + escape(l.Subject) + "** " + codes(l.From, 4) + " → " + code(l.To) + " " + codes(l.Requests, 3)
	return s + ": " + cell(l.Before) + " → " + cell(l.After) + " " + strings.ReplaceAll(m.where(l), "<br>", ", ")
}

// refused is a line about calls that both sides refuse.
func (m *markdown) refused(l *Line) string {
	return escape(l.Subject) + " " + codes(l.From, 4) + " → " + code(l.To) + " " + codes(l.Requests, 3) + ": " + cell(l.Before) + " → " + cell(l.After)
}

func (m *markdown) finding(f *diag.Finding) string {
	s := code(f.ID) + " " + code(f.Message)
	if !f.Pos.IsZero() {
		at := code(f.Pos.Short())
		if m.o.Link != nil {
			if href := m.href(m.o.Link(f.Pos, false)); href != "" {
				at = `<a href="` + href + `">` + at + `</a>`
			}
		}
		s += " " + at
	}
	return s
}

// witness is the request that shows a line; values of headers, parameters and claims are left out.
func (m *markdown) witness(l *Line) string {
	w := *l.Witness
	hide := func(values map[string]string) map[string]string {
		out := make(map[string]string, len(values))
		for k := range values {
			out[k] = "…"
		}
		return out
	}
	w.Headers, w.Query = hide(w.Headers), hide(w.Query)
	tokens := map[string]map[string][]string{}
	for issuer, claims := range w.Tokens {
		tokens[issuer] = map[string][]string{}
		for name := range claims {
			tokens[issuer][name] = []string{"…"}
		}
	}
	w.Tokens = tokens
	return code(w.Command()) + ": " + cell(l.Before) + " → " + cell(l.After)
}

// href is an address as an attribute; only the web's schemes are let in.
func (m *markdown) href(s string) string {
	u, err := url.Parse(s)
	if s == "" || err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return ""
	}
	return escape(u.String())
}

// longest bounds one name in a comment.
const longest = 400

// escape lets nothing but letters, digits and a few signs that mean nothing stand for itself: the rest are numeric
// character references, which neither Markdown nor HTML acts on.
func escape(s string) string {
	s = printable(s)
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n++; n > longest {
			b.WriteString("…")
			break
		}
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune(" ,;/()-%→…·", r):
			b.WriteRune(r)
		default:
			fmt.Fprintf(&b, "&#%d;", r)
		}
	}
	return b.String()
}

// code is an author's text. Mentions, references to issues and addresses are not looked for inside of <code>.
func code(s string) string {
	if s == "" {
		return ""
	}
	return "<code>" + escape(s) + "</code>"
}

func codes(list []string, most int) string {
	more := ""
	if len(list) > most+1 {
		more = fmt.Sprintf(" and %d more", len(list)-most)
		list = list[:most]
	}
	out := make([]string, len(list))
	for i := range list {
		out[i] = code(list[i])
	}
	return strings.Join(out, ", ") + more
}
