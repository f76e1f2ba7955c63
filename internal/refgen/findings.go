package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// findings prints the catalogue, each check with an example out of the tests: what they hold the code to is what the
// page says.
func findings(root string) (string, error) {
	found, err := examples(root)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("# Findings\n\n" + note)
	b.WriteString("A finding rejects the commit that holds it, and what serves stays; a *warning* is shown and rejects nothing. " +
		"`heddle help ID` prints the explanation, offline. The examples are inputs and outputs of tests.\n")
	for _, c := range diag.Catalogue {
		fmt.Fprintf(&b, "\n## %s: %s\n\n%s\n\n**Mend it:** %s\n", c.ID, c.Title, sentence(c.Why), sentence(c.Mend))
		e, ok := found[c.ID]
		if !ok {
			continue
		}
		if e.snippet != "" {
			fmt.Fprintf(&b, "\n`%s`\n\n```%s\n%s\n```\n", e.file, e.language, e.snippet)
		}
		fmt.Fprintf(&b, "\n```text\n%s\n```\n", e.output)
	}
	return b.String(), nil
}

// sentence makes a line of the catalogue, which the terminal shows as a phrase, a sentence of a page.
func sentence(s string) string {
	first, size := utf8.DecodeRuneInString(s)
	if strings.HasPrefix(s, "mtls") || strings.HasPrefix(s, "mesh.") {
		return s + "." // a name keeps its case
	}
	return string(unicode.ToUpper(first)) + s[size:] + "."
}

// example is a finding with what brought it about.
type example struct {
	archive  string // slash-separated, relative to the root
	file     string // where the snippet is from
	language string // of the snippet, for its fence
	snippet  string // may be empty, where the finding is about no line
	output   string // the finding as it is printed, with its hint
	size     int    // of the archive's input
	marked   bool   // the archive says that it is the example
}

var (
	printed  = regexp.MustCompile(`\[(HDL\d{4})\]$`)
	place    = regexp.MustCompile(`^([^\s:]+)(?::(\d+))?(?::\d+)?: `)
	asMarked = regexp.MustCompile(`example: (HDL\d{4})`)
)

// examples finds an example of each check in the archives of the tests: the one that says `example: ID` in its comment,
// else the one with the least input.
func examples(root string) (map[string]example, error) {
	best := map[string]example{}
	for _, top := range []string{"reconciler", "cmd/heddle", "internal/story"} {
		err := filepath.WalkDir(filepath.Join(root, filepath.FromSlash(top)), func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(p) != ".txtar" {
				return err
			}
			a, err := txtar.ParseFile(p)
			if err != nil {
				return err
			}
			name, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			for id, e := range inArchive(filepath.ToSlash(name), a) {
				old, known := best[id]
				better := !known || e.marked && !old.marked ||
					e.marked == old.marked && (e.size < old.size || e.size == old.size && e.archive < old.archive)
				if better {
					best[id] = e
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return best, nil
}

// inArchive takes the first finding of each ID that an archive expects, with the lines that it is about.
func inArchive(name string, a *txtar.Archive) map[string]example {
	out := map[string]example{}
	size := 0
	for _, f := range a.Files {
		if input(f.Name) {
			size += len(f.Data)
		}
	}
	marked := map[string]bool{}
	for _, m := range asMarked.FindAllSubmatch(a.Comment, -1) {
		marked[string(m[1])] = true
	}
	for _, f := range a.Files {
		if input(f.Name) {
			continue
		}
		lines := strings.Split(string(f.Data), "\n")
		for i, line := range lines {
			m := printed.FindStringSubmatch(line)
			if m == nil {
				continue
			}
			if _, ok := out[m[1]]; ok {
				continue
			}
			end := i + 1
			for end < len(lines) && strings.HasPrefix(lines[end], "  ") {
				end++
			}
			e := example{archive: name, size: size, marked: marked[m[1]], output: strings.Join(lines[i:end], "\n")}
			e.show(line, a)
			out[m[1]] = e
		}
	}
	return out
}

// input reports whether a part of an archive is policy or says what else the repository holds.
func input(name string) bool {
	return filepath.Ext(name) == ".cue" || name == "entries"
}

// show sets the snippet: the lines around the one that a finding names or, where it names none, what the archive says of
// the repository's entries.
func (e *example) show(line string, a *txtar.Archive) {
	at := place.FindStringSubmatch(line)
	part := func(name string) []byte {
		i := slices.IndexFunc(a.Files, func(f txtar.File) bool { return f.Name == name })
		if i < 0 {
			return nil
		}
		return bytes.TrimSpace(a.Files[i].Data)
	}
	if at != nil {
		if text := part(at[1]); len(text) > 0 {
			n, _ := strconv.Atoi(at[2])
			e.file, e.language, e.snippet = at[1], "cue", around(strings.Split(string(text), "\n"), n)
			return
		}
	}
	if text := part("entries"); len(text) > 0 {
		e.file, e.language, e.snippet = "the repository's entries", "text", string(text)
	}
}

// around is a file as a reader needs it: whole if it is short, else the lines about line n, which counts from 1; 0 is
// the beginning.
func around(lines []string, n int) string {
	const whole, before, after = 16, 5, 4
	if len(lines) <= whole {
		return strings.Join(lines, "\n")
	}
	first, last := max(n-1-before, 0), min(max(n, 1)+after, len(lines))
	var out []string
	if first > 0 {
		out = append(out, "…")
	}
	out = append(out, lines[first:last]...)
	if last < len(lines) {
		out = append(out, "…")
	}
	return strings.Join(out, "\n")
}
