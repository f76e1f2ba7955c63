package diag

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// FuzzRender: whatever an author puts into names, values and paths, a finding is as many lines as it should be, none of
// which a terminal, a runner of workflows or a reader takes for something else.
func FuzzRender(f *testing.F) {
	for _, s := range []string{"", "web", "::set-output name=x::y", "a\n::error::b", "\x1b[2J", "\u202egnp", "]]>", "</details>", "@team", "a%0Ab", "\xff\x00", "\u2028x", "a,b:c"} {
		f.Add(s, s, s, s)
	}
	f.Fuzz(func(t *testing.T, file, path, message, hint string) {
		l := List{
			{ID: UnknownField, Path: path, Message: message, Hint: hint, Pos: Pos{File: file, Line: 3, Column: 1}, Related: []Pos{{File: file, Line: 4}}},
			{ID: NobodyCalls, Severity: Warning, Path: path, Message: message, Pos: Pos{File: file}},
		}
		var text, github, gitlab, sarif, all bytes.Buffer
		for _, err := range []error{Text(&text, l, false), GitHub(&github, l), GitLab(&gitlab, l), SARIF(&sarif, l, "0.1.0"), JSON(&all, l)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		for name, s := range map[string]string{"text": text.String(), "String": l[0].String() + "\n" + l[1].String(), "Error": l.Error()} {
			if !utf8.ValidString(s) {
				t.Errorf("%s: %q", name, s)
			}
			if i := strings.IndexFunc(s, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
				t.Errorf("%s: %q at %d of %q", name, s[i:min(i+4, len(s))], i, s)
			}
		}
		if n := strings.Count(l[0].String(), "\n"); n > 0 {
			t.Errorf("%d lines more: %q", n, l[0])
		}
		lines := strings.Split(strings.TrimSuffix(github.String(), "\n"), "\n")
		if len(lines) != len(l) || !strings.HasPrefix(lines[0], "::error ") || !strings.HasPrefix(lines[1], "::warning ") || strings.ContainsAny(github.String(), "\r\x1b") {
			t.Errorf("commands: %q", lines)
		}
		for name, b := range map[string][]byte{"GitLab": gitlab.Bytes(), "SARIF": sarif.Bytes(), "JSON": all.Bytes()} {
			if !json.Valid(b) || !utf8.Valid(b) {
				t.Errorf("%s: %q", name, b)
			}
		}
	})
}
