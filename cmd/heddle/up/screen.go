package up

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/terminal"
	"github.com/heddle-mesh/heddle/controlplane/observe"
	"github.com/heddle-mesh/heddle/reconciler"
)

// screen redraws the status in place, on a terminal.
type screen struct {
	*supervisor
	drawn  int            // lines on the screen that are ours
	on     terminal.Style // of the terminal that they were drawn on
	recent []string
	last   string
	at     time.Time
}

const (
	redrawEvery = 500 * time.Millisecond // or at once, when the newest commit changes its state
	recentLines = 5
)

func (s *screen) show(v view, lines []string) error {
	for _, l := range lines {
		s.recent = append(s.recent, time.Now().Format("15:04:05")+"  "+terminal.Clean(l))
	}
	s.recent = s.recent[max(0, len(s.recent)-recentLines):]
	h := ""
	if v.status != nil {
		h = headline(v.status)
	}
	if h == s.last && len(lines) == 0 && time.Since(s.at) < redrawEvery {
		return nil
	}
	s.last, s.at = h, time.Now()
	style := terminal.StyleOf(s.cfg.Out, s.cfg.Getenv) // the window may have changed its size
	return s.draw(s.page(v, style), style)
}

func (s *screen) end() error {
	_, err := fmt.Fprintln(s.cfg.Out, "stopping")
	return err
}

// draw replaces what was drawn before. It never scrolls: a page is cut to the terminal.
func (s *screen) draw(page []string, style terminal.Style) error {
	if style.Height > 1 && len(page) > style.Height-1 {
		page = page[:style.Height-1]
	}
	var b strings.Builder
	switch {
	case s.drawn > 0 && style != s.on:
		b.WriteString("\x1b[H\x1b[2J") // the terminal has moved and broken our lines as it liked
	case s.drawn > 0:
		fmt.Fprintf(&b, "\x1b[%dA\r", s.drawn)
	}
	for _, l := range page {
		b.WriteString(l + "\x1b[K\n")
	}
	b.WriteString("\x1b[J")
	s.drawn, s.on = len(page), style
	_, err := fmt.Fprint(s.cfg.Out, b.String())
	return err
}

// page is the whole screen, line by line, none wider than the terminal.
func (s *screen) page(v view, style terminal.Style) []string {
	var out []string
	field := func(name, text string) { out = append(out, style.Fit(fmt.Sprintf("%-9s%s", name, text), style.Width)) }
	mark, state := terminal.Warning, "starting"
	if v.status != nil && v.status.Observed != nil {
		o := v.status.Observed
		state = string(o.State)
		switch o.State {
		case reconciler.Converged:
			mark = terminal.Good
		case reconciler.Rejected, reconciler.Held:
			mark = terminal.Trouble
		}
		field("Policy", fmt.Sprintf("%s %q", short(o.Commit), terminal.Clean(o.Subject)))
		if a, p := v.status.Applied, v.status.Push; a != nil {
			how := fmt.Sprintf("epoch %d, %d/%d sidecars acknowledged", a.Epoch, p.Acked, p.Total)
			if a.Commit == o.Commit {
				state += ", " + how
			} else {
				field("Serving", fmt.Sprintf("%s %q, %s", short(a.Commit), terminal.Clean(a.Subject), how))
			}
		}
	}
	if v.statusErr != nil && v.status != nil {
		mark, state = terminal.Trouble, fmt.Sprintf("the reconciler does not answer; last known %s ago: %s", ago(v.statusAt), state)
	}
	out = append(out, fmt.Sprintf("%-9s%s", "State", style.Paint(mark, style.Fit(style.Glyph(mark)+" "+state, style.Width-9))))
	field("Git", fmt.Sprintf("%s (%s)", s.repo, s.cfg.Ref))
	if e := s.entry(); e != "" {
		field("Open", e)
	}
	if v.waiting != "" {
		field("Waiting", terminal.Clean(v.waiting))
	}
	if v.status != nil {
		for _, t := range s.trouble(v.status) {
			out = append(out, wrap(t, style.Width)...)
		}
	}
	out = append(out, "")
	var b strings.Builder
	if err := s.edges(v, style).Print(&b, style); err == nil { // a strings.Builder takes everything
		out = append(out, strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")...)
	}
	running, restarts := 0, 0
	for _, p := range v.processes {
		if p.PID != 0 {
			running++
		}
		restarts += p.Restarts
	}
	out = append(out, "")
	data := "no traffic data yet"
	if !v.edgesAt.IsZero() {
		data = "traffic data " + ago(v.edgesAt) + " old"
	}
	if v.edgesErr != nil && !v.edgesAt.IsZero() {
		data += " (the control plane does not answer)"
	}
	out = append(out, style.Dim(style.Fit(fmt.Sprintf("%d/%d processes, %d restarts; %s; Ctrl-C stops all",
		running, len(v.processes), restarts, data), style.Width)))
	for _, l := range s.recent {
		out = append(out, style.Dim(style.Fit(l, style.Width)))
	}
	if s.converged(v) {
		out = append(out, "", style.Bold("Try"))
		for _, n := range s.next() {
			out = append(out, wrap("  "+n, style.Width)...)
		}
	}
	return out
}

func (s *screen) edges(v view, style terminal.Style) *terminal.Table {
	t := &terminal.Table{Columns: EdgeColumns()}
	for _, e := range v.edges {
		mark, cells := EdgeRow(e, v.rules)
		t.Add(mark, cells...)
	}
	return t
}

// EdgeColumns are the columns of [EdgeRow].
func EdgeColumns() []terminal.Column {
	return []terminal.Column{
		{Title: "FROM"}, {Title: "TO"}, {Title: "SECURED", Drop: 2}, {Title: "CONNS", Right: true, Drop: 6}, {Title: "REQ/S", Right: true}, {Title: "SUCCESS", Right: true},
		{Title: "P50", Right: true, Drop: 5}, {Title: "P99", Right: true, Drop: 4}, {Title: "DENIED/S", Right: true, Drop: 3}, {Title: "RULE", Drop: 1},
	}
}

// EdgeRow is an edge as a row of a table: from, to, secured, open connections of TCP, requests, success, p50, p99, denied, rule. places has the
// file:line of rules.
func EdgeRow(e observe.Edge, places map[string]string) (terminal.Mark, []string) {
	mark, denied, rule, secured := terminal.Fine, "", "", "none"
	switch {
	case e.MTLS:
		secured = "mTLS"
	case e.RequestsPerSecond == 0 && e.DeniedPerSecond > 0:
		secured = "" // it was refused before there was a connection to secure
	default:
		mark = terminal.Warning
	}
	if e.Success != nil && *e.Success < 0.99 {
		mark = terminal.Warning
	}
	if e.DeniedPerSecond > 0 {
		mark, denied, rule = terminal.Trouble, fmt.Sprintf("%.1f", e.DeniedPerSecond), e.Rule
		if place := places[e.Rule]; place != "" {
			rule = place
		}
	}
	conns := ""
	if e.TCP {
		conns = fmt.Sprint(e.Open)
	}
	success, p50, p99 := "", millis(e.P50), millis(e.P99)
	if e.Success != nil {
		success = fmt.Sprintf("%.1f%%", 100**e.Success)
		if *e.Success < 1 && success == "100.0%" {
			success = "<100%"
		}
	}
	return mark, []string{serviceOf(e.From), serviceOf(e.To), secured, conns, fmt.Sprintf("%.1f", e.RequestsPerSecond), success, p50, p99, denied, rule}
}

func millis(v *float64) string {
	if v == nil {
		return ""
	}
	return fmt.Sprintf("%.0fms", max(1, *v))
}

func ago(t time.Time) string { return time.Since(t).Round(100 * time.Millisecond).String() }

// wrap breaks a line between words, keeping its indentation. A word that is longer than the terminal is left whole.
func wrap(line string, width int) []string {
	indent := line[:len(line)-len(strings.TrimLeft(line, " "))]
	var out []string
	at := ""
	for word := range strings.FieldsSeq(line) {
		switch {
		case at == "":
			at = indent + word
		case width > 20 && utf8.RuneCountInString(at)+1+utf8.RuneCountInString(word) > width:
			out = append(out, at)
			at = indent + "  " + word
		default:
			at += " " + word
		}
	}
	return append(out, at)
}
