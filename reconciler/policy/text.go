package policy

import (
	"bytes"
	"fmt"
	"unicode"
	"unicode/utf8"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// checkText refuses contents that a reviewer may see otherwise than CUE does. A file with such a finding is not parsed.
func checkText(f file) diag.List {
	report := func(offset int, message string) diag.List {
		before := f.Data[:offset]
		return diag.List{{ID: diag.NotText, Message: message,
			Hint: "save the file as UTF-8 without a byte order mark; in a string, such characters are written as escapes, as in \"\\u202e\"",
			Pos:  diag.Pos{File: f.Name, Line: 1 + bytes.Count(before, []byte("\n")), Column: len(before) - bytes.LastIndexByte(before, '\n')}}}
	}
	switch d := f.Data; {
	case bytes.HasPrefix(d, []byte("\xef\xbb\xbf")):
		return report(0, "the file begins with a byte order mark")
	case bytes.HasPrefix(d, []byte("\xff\xfe")), bytes.HasPrefix(d, []byte("\xfe\xff")):
		return report(0, "the file is UTF-16: policy is UTF-8")
	}
	for i := 0; i < len(f.Data); {
		r, n := rune(f.Data[i]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeRune(f.Data[i:])
		}
		switch {
		case r == utf8.RuneError && n == 1:
			return report(i, fmt.Sprintf("the byte 0x%02x is not UTF-8", f.Data[i]))
		case r == 0:
			return report(i, "a NUL byte")
		case r < ' ' && r != '\n' && r != '\t' && r != '\r', r == 0x7f:
			return report(i, fmt.Sprintf("the control character %U", r))
		case r >= utf8.RuneSelf && (unicode.Is(unicode.Bidi_Control, r) || unicode.IsControl(r) || r == 0xfeff):
			return report(i, fmt.Sprintf("the character %U cannot be seen, or changes how others are shown", r))
		}
		i += n
	}
	return nil
}
