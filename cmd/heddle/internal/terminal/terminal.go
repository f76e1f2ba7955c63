// Package terminal is how Heddle's commands look: colour, glyphs and tables that fit the place they are printed to.
// Colour is never the only carrier of a meaning; off a terminal there is none, and tables keep every column. It prints
// strings that others wrote (commit subjects, reasons), so it lets no control character through.
package terminal

import (
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// Style is what a place can show. The zero Style is a file: no colour, ASCII, any width.
type Style struct {
	TTY     bool // a person watches
	Color   bool // SGR sequences are understood and wanted
	Unicode bool // glyphs beyond ASCII are
	Width   int  // columns; 0: unlimited
	Height  int  // lines; 0: unlimited
}

// StyleOf looks at a writer and the environment: NO_COLOR turns colour off, CLICOLOR_FORCE (other than 0) on, even off
// a terminal; TERM=dumb has neither colour nor redrawing; COLUMNS overrides the width of a terminal; a locale that is
// not UTF-8 has ASCII only.
func StyleOf(w io.Writer, getenv func(string) string) Style {
	var s Style
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.TTY = getenv("TERM") != "dumb"
		if width, height, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			s.Width, s.Height = width, height
		} else {
			s.Width, s.Height = 80, 24
		}
		if n := number(getenv("COLUMNS")); n >= 20 {
			s.Width = n
		}
	}
	s.Color = s.TTY
	if v := getenv("CLICOLOR_FORCE"); v != "" && v != "0" {
		s.Color = true
	}
	if getenv("NO_COLOR") != "" {
		s.Color = false
	}
	locale := getenv("LC_ALL")
	for _, name := range []string{"LC_CTYPE", "LANG"} {
		if locale == "" {
			locale = getenv(name)
		}
	}
	locale = strings.ToLower(locale)
	s.Unicode = strings.Contains(locale, "utf-8") || strings.Contains(locale, "utf8")
	return s
}

func number(s string) int {
	n := 0
	for _, r := range s {
		if r < '0' || r > '9' || n > 9999 {
			return 0
		}
		n = n*10 + int(r-'0')
	}
	return n
}

// Mark is how serious a row is. Shape, word and colour say it together.
type Mark int

const (
	Fine Mark = iota
	Good
	Warning
	Trouble
)

// Glyph is one column wide, without colour.
func (s Style) Glyph(m Mark) string {
	switch {
	case m == Good && s.Unicode:
		return "●"
	case m == Good:
		return "*"
	case m == Warning && s.Unicode:
		return "▲"
	case m == Warning:
		return "!"
	case m == Trouble && s.Unicode:
		return "■"
	case m == Trouble:
		return "x"
	}
	return " "
}

// Arrow stands between a caller and a service.
func (s Style) Arrow() string {
	if s.Unicode {
		return "→"
	}
	return "->"
}

// None stands for a value that does not exist, such as the success rate of no requests.
func (s Style) None() string {
	if s.Unicode {
		return "–"
	}
	return "-"
}

// Paint colours text by a mark; Fine leaves it.
func (s Style) Paint(m Mark, text string) string {
	switch m {
	case Good:
		return s.sgr("32", text)
	case Warning:
		return s.sgr("33", text)
	case Trouble:
		return s.sgr("31", text)
	}
	return text
}

// Bold and Dim change the weight of text.
func (s Style) Bold(text string) string { return s.sgr("1", text) }

// Dim is for what is secondary.
func (s Style) Dim(text string) string { return s.sgr("2", text) }

func (s Style) sgr(code, text string) string {
	if !s.Color || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// Clean makes one harmless line of a string that somebody else wrote: control and format characters, which could move
// the cursor, forge a line or reorder text, become spaces or vanish.
func Clean(text string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case r == utf8.RuneError:
			return '?'
		case unicode.IsSpace(r), unicode.Is(unicode.Cc, r):
			return ' '
		case unicode.Is(unicode.Cf, r), unicode.Is(unicode.Zl, r), unicode.Is(unicode.Zp, r):
			return -1
		}
		return r
	}, text))
}

// Fit cuts text to a width, marking the cut; a width of 0 cuts nothing.
func (s Style) Fit(text string, width int) string {
	n := utf8.RuneCountInString(text)
	if width <= 0 || n <= width {
		return text
	}
	cut := "~"
	if s.Unicode {
		cut = "…"
	}
	return string([]rune(text)[:width-1]) + cut
}
