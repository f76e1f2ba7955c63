package diag

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// Text writes findings for a terminal: position first, so that editors and terminals make it a link, then the path, the
// message and the ID, and below it what else took part and what to do. A warning says so before its path. Colour, where color is set, only repeats what
// the words say. It writes nothing for an empty list. l is written in the order it has; see [List.Sorted].
func Text(w io.Writer, l List, color bool) error {
	paint := func(code, s string) string {
		if !color || s == "" {
			return s
		}
		return "\x1b[" + code + "m" + s + "\x1b[0m"
	}
	const bold, red, yellow, dim, cyan = "1", "31", "33", "2", "36"
	var b strings.Builder
	for _, f := range l {
		fmt.Fprintf(&b, "%s: ", paint(bold, printable(f.Pos.String())))
		tone := red
		if f.Severity == Warning {
			tone = yellow
			fmt.Fprintf(&b, "%s ", paint(yellow, "warning:"))
		}
		if f.Path != "" {
			fmt.Fprintf(&b, "%s: ", printable(f.Path))
		}
		fmt.Fprintf(&b, "%s %s\n", paint(tone, printable(f.Message)), paint(dim, "["+f.ID+"]"))
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
		b.WriteString("::" + level(f) + " ")
		if f.Pos.File != "" {
			fmt.Fprintf(&b, "file=%s,", property.Replace(printable(f.Pos.File)))
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

// level is what GitHub and SARIF call a finding's severity.
func level(f Finding) string {
	if f.Severity == Warning {
		return "warning"
	}
	return "error"
}

// GitLab writes findings as GitLab's code quality report, which it shows in a merge request: a JSON array, never null.
// Its fingerprint is what GitLab tells an old finding from a new one by; see [Fingerprints]. GitLab takes no finding
// without a place: one that has none is shown at the top of mesh.cue, the first file of every repository.
func GitLab(w io.Writer, l List) error {
	type lines struct {
		Begin int `json:"begin"`
	}
	type location struct {
		Path  string `json:"path"`
		Lines lines  `json:"lines"`
	}
	type issue struct {
		Description string   `json:"description"`
		CheckName   string   `json:"check_name"`
		Fingerprint string   `json:"fingerprint"`
		Severity    string   `json:"severity"`
		Location    location `json:"location"`
	}
	prints := Fingerprints(l)
	issues := make([]issue, len(l))
	for i, f := range l {
		is := issue{Description: oneLine(text(f)), CheckName: f.ID, Fingerprint: prints[i], Severity: "blocker",
			Location: location{Path: cmp.Or(f.Pos.File, "mesh.cue"), Lines: lines{max(f.Pos.Line, 1)}}}
		if f.Severity == Warning {
			is.Severity = "minor"
		}
		issues[i] = is
	}
	return encode(w, issues)
}

// oneLine makes what was joined by line feeds one line, and shows what a page would not.
func oneLine(s string) string { return printable(strings.ReplaceAll(s, "\n", "; ")) }

// Fingerprints names each finding of a list by what it is about and not by where it stands: its ID, file, path and
// message, without the lines and columns that the message mentions. It is the same when lines above it come or go.
// Findings that agree in all of that are counted in the order of the list.
func Fingerprints(l List) []string {
	out := make([]string, len(l))
	seen := map[[sha256.Size]byte]int{}
	for i, f := range l {
		k := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q", f.ID, f.Pos.File, f.Path, mentioned.ReplaceAllString(f.Message, "$1")))
		if n := seen[k]; n > 0 {
			out[i] = hex.EncodeToString(k[:16]) + "-" + strconv.Itoa(n)
		} else {
			out[i] = hex.EncodeToString(k[:16])
		}
		seen[k]++
	}
	return out
}

// mentioned is the line, and perhaps the column, of a place that a message names.
var mentioned = regexp.MustCompile(`(\.[a-z]+):\d+(:\d+)?`)

func title(id string) string {
	if c, ok := Explain(id); ok {
		return id + " " + c.Title
	}
	return id
}

// text is a finding without its position: path, message, hint, in two lines whatever an author has put into them.
func text(f Finding) string {
	s := printable(f.Message)
	if f.Path != "" {
		s = printable(f.Path) + ": " + s
	}
	if advice := f.Advice(); advice != "" {
		s += "\nhint: " + printable(advice)
	}
	return s
}
