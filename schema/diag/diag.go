// Package diag is what Heddle says about policy that an author wrote: positioned findings, collected, sorted and
// rendered once at the edge.
//
// A finding is never about the world (a dead server, a full disk: those are Go errors); it is about a line in a
// repository, and it says what to do. Package diag imports nothing of Heddle and knows no CUE.
package diag

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Pos is a place in a policy repository. The zero Pos means "no single line", as for a missing file.
type Pos struct {
	// File is slash-separated and relative to the repository's root.
	File string `json:"file,omitempty"`
	// Line and Column count from 1; columns count bytes, as CUE and Go do. 0 is unknown.
	Line   int `json:"line,omitempty"`
	Column int `json:"column,omitempty"`
}

// IsZero reports whether p names no place.
func (p Pos) IsZero() bool { return p == Pos{} }

// String is file:line:col, with the parts that are unknown left out, and "-" for the zero Pos.
func (p Pos) String() string {
	switch {
	case p.File == "":
		return "-"
	case p.Line == 0:
		return p.File
	case p.Column == 0:
		return fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// Short is file:line, the form that headers, logs and denials carry.
func (p Pos) Short() string {
	if p.Line == 0 {
		return p.String()
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Compare orders positions by file, line and column.
func (p Pos) Compare(q Pos) int {
	return cmp.Or(cmp.Compare(p.File, q.File), cmp.Compare(p.Line, q.Line), cmp.Compare(p.Column, q.Column))
}

// Severity is what a finding does to the commit that holds it.
type Severity string

const (
	// Error rejects the commit. It is the zero Severity, so that forgetting it is safe.
	Error Severity = ""
	// Warning is shown and rejects nothing: the policy is enforced as it stands, and is probably not what was meant.
	Warning Severity = "warning"
)

// Finding is one thing that is wrong in a repository.
type Finding struct {
	// ID is the stable name of the check, HDL and four digits; `heddle help ID` explains it.
	ID string `json:"id"`
	// Severity is Error or Warning.
	Severity Severity `json:"severity,omitempty"`
	// Path is the policy path that is at fault, such as services.shop.web.httpRoutes.cart.backends; it may be empty.
	Path string `json:"path,omitempty"`
	// Message says what is wrong, in one line, lower case, without the position or the path.
	Message string `json:"message"`
	// Hint says what to do about it, in one line; it may be empty.
	Hint string `json:"hint,omitempty"`
	// Pos is where the author should look first.
	Pos Pos `json:"pos,omitzero"`
	// Related are further places that took part, such as the other half of a conflict, the author's before the schema's.
	Related []Pos `json:"related,omitempty"`
}

// String is "file:line:col: path: message [ID]", without the hint; a warning has "warning: " before the path. It is one printable line, whatever an author has put
// into names and values.
func (f Finding) String() string {
	var b strings.Builder
	b.WriteString(printable(f.Pos.String()))
	b.WriteString(": ")
	if f.Severity == Warning {
		b.WriteString("warning: ")
	}
	if f.Path != "" {
		b.WriteString(printable(f.Path))
		b.WriteString(": ")
	}
	b.WriteString(printable(f.Message))
	fmt.Fprintf(&b, " [%s]", f.ID)
	return b.String()
}

// printable escapes what would move a terminal's cursor, break a line of a log or turn the direction of the text.
func printable(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		}
	}
	return b.String()
}

// Advice says what to do: the finding's own hint or, where it has none, what the catalogue says of the check.
func (f Finding) Advice() string {
	if f.Hint != "" {
		return f.Hint
	}
	c, _ := Explain(f.ID)
	return c.Mend
}

// List is a set of findings. It is an error value, so that a stage may return it as one, but a nil or empty List is
// success: return [List.Err], never the List itself, where an error is expected.
type List []Finding

// Errors are those that reject the commit.
func (l List) Errors() List {
	return slices.DeleteFunc(slices.Clone(l), func(f Finding) bool { return f.Severity == Warning })
}

// Add appends a finding.
func (l *List) Add(f Finding) { *l = append(*l, f) }

// Sorted returns the findings ordered by position, path, ID and message, without repetitions. l is left as it is.
func (l List) Sorted() List {
	out := slices.Clone(l)
	slices.SortStableFunc(out, func(a, b Finding) int {
		return cmp.Or(a.Pos.Compare(b.Pos), cmp.Compare(a.Path, b.Path), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Message, b.Message))
	})
	return slices.CompactFunc(out, func(a, b Finding) bool {
		return a.ID == b.ID && a.Pos == b.Pos && a.Path == b.Path && a.Message == b.Message
	})
}

// Err returns nil for an empty list and the sorted list otherwise.
func (l List) Err() error {
	if len(l) == 0 {
		return nil
	}
	return l.Sorted()
}

// Error is all findings, one a line, each followed by its hint.
func (l List) Error() string {
	var b strings.Builder
	for i, f := range l {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(f.String())
		if f.Hint != "" {
			b.WriteString("\n  hint: ")
			b.WriteString(printable(f.Hint))
		}
	}
	return b.String()
}
