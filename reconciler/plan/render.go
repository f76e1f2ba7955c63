package plan

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// glyph is a risk's shape, which carries it where colour does not.
func (r Risk) glyph(ascii bool) string {
	shape, letter := "·", "."
	switch r {
	case DropsEncryption:
		shape, letter = "■", "!"
	case Widens:
		shape, letter = "▲", "+"
	case Narrows, Deletes:
		shape, letter = "▽", "-"
	}
	if ascii {
		return letter
	}
	return shape
}

// Verdict is the plan in one line, worst first.
func (p *Plan) Verdict() string {
	count := map[Risk]int{}
	may, guards, relaxed := 0, 0, 0
	for i := range p.Lines {
		switch l := &p.Lines[i]; {
		case l.Kind == KindGuard && l.Risk == Neutral:
			guards++
		case l.Kind == KindGuard && l.Risk == Widens:
			relaxed++
		default:
			count[l.Risk]++
		}
		if p.Lines[i].MayChange {
			may++
		}
	}
	n := func(r Risk, one, many string) string { return number(count[r], one, many) }
	var words []string
	for _, w := range []string{
		n(DropsEncryption, "port loses encryption", "places lose encryption"),
		n(Widens, "change widens access", "changes widen access"),
		number(relaxed, "guard of policy is relaxed", "guards of policy are relaxed"),
		n(Deletes, "deletion", "deletions"),
		n(Narrows, "change narrows access", "changes narrow access"),
		n(Reroutes, "change moves or alters traffic", "changes move or alter traffic"),
		n(AddsEncryption, "port gains encryption", "ports gain encryption"),
		number(guards, "guard of policy changes", "guards of policy change"),
		n(Neutral, "neutral change", "neutral changes"),
	} {
		if !strings.HasPrefix(w, "0 ") {
			words = append(words, w)
		}
	}
	if len(words) == 0 {
		return "No change in who may call whom"
	}
	lead := map[Risk]string{DropsEncryption: "Encryption drops: ", Widens: "Access widens: ", Deletes: "Things go: ", Narrows: "Access narrows: ",
		Reroutes: "Traffic moves: ", AddsEncryption: "Encryption grows: ", Neutral: "No change in who may call whom: "}[p.Worst()]
	if p.Worst() == Widens && count[Widens] == 0 { // nobody may do more yet; the next commit may
		lead = "Guards relax: "
	}
	text := lead + strings.Join(words, ", ")
	if may > 0 {
		text += fmt.Sprintf(" (%d may change: undecided)", may)
	}
	return text
}

// refused counts the lines that are about refused calls, in words.
func (p *Plan) refused() string {
	return number(len(p.Refused), "more line", "more lines") + " about calls that are refused before and after"
}

// number is a number with its noun.
func number(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// String counts what is touched, in words.
func (r *Reach) String() string {
	return number(len(r.Services), "service gets new rules", "services get new rules") + ", callers in " +
		number(len(r.Callers), "service", "services") + " get new routes, " + number(r.Workloads, "declared workload", "declared workloads")
}

// String says a revision in a few letters.
func (r Revision) String() string {
	s := r.Commit
	if len(s) > 12 {
		s = s[:12]
	}
	switch {
	case s == "" && r.Dirty:
		return "working tree"
	case s == "":
		return "nothing"
	case r.Dirty:
		return s + "+changes"
	}
	return s
}

// printable is a text that moves no cursor, breaks no line and turns no direction.
func printable(s string) string {
	if utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		}
		i += n
	}
	return b.String()
}

// some is a list in words, cut after a few.
func some(list []string, most int, between string) string {
	if len(list) > most+1 {
		return strings.Join(list[:most], between) + fmt.Sprintf(" and %d more", len(list)-most)
	}
	return strings.Join(list, between)
}

// title is a line's subject with what it is about.
func (l *Line) title(most int) string {
	words := []string{l.Subject}
	if l.MayChange && l.Subject != "may change" {
		words = append(words, "(may change)")
	}
	if len(l.From) > 0 {
		words = append(words, some(l.From, most, ", "), "→")
	}
	if l.To != "" {
		words = append(words, l.To)
	}
	return strings.Join(words, " ")
}

// TextOptions are a terminal's.
type TextOptions struct {
	// Width is in columns; 0: 80.
	Width int
	// ASCII is for locales without UTF-8.
	ASCII bool
	// Unchanged is added where nothing changes, such as "4 files reformatted".
	Unchanged string
	// Full shows every line; else neutral ones beyond the first twenty, and those about calls that both sides refuse, are
	// only counted.
	Full bool
}

// Text writes the plan for a terminal.
func (p *Plan) Text(w io.Writer, o TextOptions) error {
	if o.Width <= 0 {
		o.Width = 80
	}
	t := &text{w: w, o: o}
	verdict := p.Verdict()
	if p.Empty() && o.Unchanged != "" {
		verdict += "; " + o.Unchanged
	}
	t.wrap(p.Worst().glyph(o.ASCII)+" ", "  ", verdict)
	if p.Before != (Revision{}) || p.After != (Revision{}) {
		subject := p.After.Subject
		if subject != "" {
			subject = " " + strconv.Quote(subject)
		}
		t.wrap("  ", "  ", p.Before.String()+" → "+p.After.String()+subject)
	}
	neutral := 0
	for i := range p.Lines {
		if l := &p.Lines[i]; l.Risk == Neutral {
			if neutral++; neutral > 20 && !o.Full {
				continue
			}
		}
		t.line(&p.Lines[i], false)
	}
	if neutral > 20 && !o.Full {
		t.wrap("\n", "", fmt.Sprintf("· %d more neutral changes: --full", neutral-20))
	}
	if len(p.Refused) > 0 && !o.Full {
		t.wrap("\n", "", "· "+p.refused()+": --full")
	} else if len(p.Refused) > 0 {
		t.wrap("\n", "", "Refused before and after:")
		for i := range p.Refused {
			t.line(&p.Refused[i], false)
		}
	}
	if len(p.Later) > 0 {
		t.wrap("\n", "", "Later, with no commit:")
		for i := range p.Later {
			t.line(&p.Later[i], true)
		}
	}
	if r := &p.Reach; len(r.Services)+len(r.Callers) > 0 {
		t.wrap("\n", "", "Reach  "+r.String())
	}
	return t.err
}

type text struct {
	w   io.Writer
	o   TextOptions
	err error
}

func (t *text) line(l *Line, later bool) {
	t.wrap("\n"+l.Risk.glyph(t.o.ASCII)+" ", "    ", string(l.Risk)+": "+l.title(6))
	if len(l.Requests) > 0 {
		t.wrap("    ", "      ", some(l.Requests, 6, "; "))
	}
	if !l.At.IsZero() && later {
		t.wrap("    ", "      ", "from "+l.At.UTC().Format(time.RFC3339)+" on")
	}
	t.side("before", l.Before, l.WhereBefore)
	t.side("after", l.After, l.WhereAfter)
	if l.Witness != nil {
		// One line whatever its length: it is there to be pasted.
		t.put("    see     " + t.plain(printable(l.Witness.Command())) + "\n")
	}
}

func (t *text) side(name, what string, at []Where) {
	if what == "" && len(at) == 0 {
		return
	}
	words := []string{what}
	for _, w := range at {
		if w.Pos.IsZero() {
			words = append(words, "("+w.ID+")")
		} else {
			words = append(words, "("+w.Pos.Short()+" "+w.ID+")")
		}
	}
	t.wrap(fmt.Sprintf("    %-8s", name), strings.Repeat(" ", 12), strings.Join(words, " "))
}

func (t *text) plain(s string) string {
	if t.o.ASCII {
		s = strings.NewReplacer("→", "->", "·", ".", "…", "...").Replace(s)
	}
	return s
}

func (t *text) put(s string) {
	if t.err == nil {
		_, t.err = io.WriteString(t.w, s)
	}
}

// wrap writes words, broken at spaces within the width.
func (t *text) wrap(first, next, words string) {
	words = t.plain(printable(words))
	line, wide := first, utf8.RuneCountInString(strings.TrimPrefix(first, "\n"))
	empty := true
	for _, word := range strings.Fields(words) {
		n := utf8.RuneCountInString(word)
		if !empty && wide+1+n > t.o.Width {
			t.put(line + "\n")
			line, wide, empty = next, utf8.RuneCountInString(next), true
		}
		if !empty {
			line += " "
			wide++
		}
		line, wide, empty = line+word, wide+n, false
	}
	t.put(line + "\n")
}

// JSON writes the plan for programs.
func (p *Plan) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(p)
}

// MarshalJSON is the plan with its version.
func (p *Plan) MarshalJSON() ([]byte, error) {
	items, refused, later := p.Lines, p.Refused, p.Later
	if items == nil {
		items = []Line{}
	}
	if refused == nil {
		refused = []Line{}
	}
	if later == nil {
		later = []Line{}
	}
	return json.Marshal(struct {
		APIVersion string   `json:"apiVersion"`
		Name       string   `json:"name"`
		Before     Revision `json:"before"`
		After      Revision `json:"after"`
		Verdict    string   `json:"verdict"`
		Worst      Risk     `json:"worst,omitempty"`
		Items      []Line   `json:"items"`
		Refused    []Line   `json:"refused"`
		Later      []Line   `json:"later"`
		Reach      Reach    `json:"reach"`
	}{"heddle/v1", p.Name, p.Before, p.After, p.Verdict(), p.Worst(), items, refused, later, p.Reach})
}
