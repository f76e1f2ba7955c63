package diag

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Text writes findings for a terminal: position first, so that editors and terminals make it a link, then the path, the
// message and the ID, and below it what else took part and what to do. Colour, where color is set, only repeats what
// the words say. It writes nothing for an empty list. l is written in the order it has; see [List.Sorted].
func Text(w io.Writer, l List, color bool) error {
	paint := func(code, s string) string {
		if !color || s == "" {
			return s
		}
		return "\x1b[" + code + "m" + s + "\x1b[0m"
	}
	const bold, red, dim, cyan = "1", "31", "2", "36"
	var b strings.Builder
	for _, f := range l {
		fmt.Fprintf(&b, "%s: ", paint(bold, printable(f.Pos.String())))
		if f.Path != "" {
			fmt.Fprintf(&b, "%s: ", printable(f.Path))
		}
		fmt.Fprintf(&b, "%s %s\n", paint(red, printable(f.Message)), paint(dim, "["+f.ID+"]"))
		for _, p := range f.Related {
			if !p.IsZero() && !strings.HasPrefix(p.File, vendored) {
				fmt.Fprintf(&b, "  see:  %s\n", printable(p.String()))
			}
		}
		if advice := f.Advice(); advice != "" {
			fmt.Fprintf(&b, "  %s %s\n", paint(cyan, "hint:"), printable(advice))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// vendored is where a repository keeps the schema. Its lines say how a check works, which is for the JSON; a person
// wants the lines that a person wrote.
const vendored = "cue.mod/"

// APIVersion versions the JSON that Heddle prints.
const APIVersion = "heddle/v1"

// JSON writes findings as one object, {"apiVersion":"heddle/v1","kind":"Findings","items":[…]}, indented. items is
// never null.
func JSON(w io.Writer, l List) error {
	if l == nil {
		l = List{}
	}
	return encode(w, struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Items      List   `json:"items"`
	}{APIVersion, "Findings", l})
}

func encode(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// GitHub writes findings as workflow commands, one a line, which GitHub shows beside the lines of a pull request.
// Everything that an author can choose is escaped, so that no name ends a command or starts another.
func GitHub(w io.Writer, l List) error {
	var b strings.Builder
	for _, f := range l {
		b.WriteString("::error ")
		if f.Pos.File != "" {
			fmt.Fprintf(&b, "file=%s,", property.Replace(f.Pos.File))
			if f.Pos.Line > 0 {
				fmt.Fprintf(&b, "line=%d,", f.Pos.Line)
			}
			if f.Pos.Line > 0 && f.Pos.Column > 0 {
				fmt.Fprintf(&b, "col=%d,", f.Pos.Column)
			}
		}
		fmt.Fprintf(&b, "title=%s::", property.Replace(title(f.ID)))
		b.WriteString(message.Replace(text(f)))
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// The escapes of actions/toolkit, packages/core/src/command.ts (escapeData and escapeProperty).
var (
	message  = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	property = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
)

func title(id string) string {
	if c, ok := Explain(id); ok {
		return id + " " + c.Title
	}
	return id
}

// text is a finding without its position: path, message, hint.
func text(f Finding) string {
	s := f.Message
	if f.Path != "" {
		s = f.Path + ": " + s
	}
	if advice := f.Advice(); advice != "" {
		s += "\nhint: " + advice
	}
	return s
}
