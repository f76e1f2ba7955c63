package decide

import (
	"strings"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

// HasPathPrefix is the Gateway API's PathPrefix: element by element, so that /a covers /a, /a/ and /a/b but not /ab.
// Escapes are compared by what they stand for; see [SpellPath].
func HasPathPrefix(path, prefix string) bool {
	if prefix == "/" {
		return strings.HasPrefix(path, "/")
	}
	n := consume(path, prefix)
	return n >= 0 && (n == len(path) || path[n] == '/')
}

// SpellPath is the one spelling of a canonical path: escapes that need not be are resolved, those that remain are in
// upper case, and octets that may not stand in a path (RFC 3986, 3.3) are escaped. Two canonical paths that an
// application resolves to the same octets have the same spelling. Policy is compiled to it; requests are compared with
// it octet by octet and never rewritten, so that /%61dmin does not slip past a rule about /admin.
func SpellPath(p string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(p); {
		o, n := octet(p, i)
		i += n
		switch c := byte(o); {
		case o < 0x100 && (c == '/' || pchar(c)):
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		}
	}
	return b.String()
}

// pchar reports whether c may stand for itself in a path segment (RFC 3986, 3.3).
func pchar(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~!$&'()*+,;=:@", c) >= 0
}

// consume returns how much of path the pattern covers, or -1 where path does not start with it.
func consume(path, pattern string) int {
	if strings.HasPrefix(path, pattern) {
		return len(pattern)
	}
	if strings.IndexByte(path, '%') < 0 && strings.IndexByte(pattern, '%') < 0 {
		return -1
	}
	i := 0
	for j := 0; j < len(pattern); {
		if i >= len(path) {
			return -1
		}
		a, n := octet(path, i)
		b, m := octet(pattern, j)
		if a != b {
			return -1
		}
		i, j = i+n, j+m
	}
	return i
}

// octet reads what stands at p[i] and how many bytes of p it takes. An escape stands for its octet, but for those that
// no canonical path has: they are no spelling of anything else, and numbers from 0x100 on keep them apart.
func octet(p string, i int) (o uint16, n int) {
	if p[i] != '%' {
		return uint16(p[i]), 1
	}
	if i+2 >= len(p) {
		return 0x100 | '%', 1
	}
	hi, lo := unhex(p[i+1]), unhex(p[i+2])
	if hi < 0 || lo < 0 {
		return 0x100 | '%', 1
	}
	switch v := uint16(hi<<4 | lo); v {
	case '/', '\\', '.', 0:
		return 0x200 | v, 3
	default:
		return v, 3
	}
}

// CanonicalPath reports whether a raw path is in the one form that path rules can judge (decisions.md, 14): it starts
// with "/", has no empty or dot segments, no backslash, no control character, no ";" (some servers cut path parameters
// off before they route) and no "#", and no escape that is malformed or hides "/", "\", "." or NUL. "*", the target of
// OPTIONS, is canonical.
func CanonicalPath(p string) bool {
	if p == "*" {
		return true
	}
	if p == "" || p[0] != '/' {
		return false
	}
	seg := 0 // where the segment at hand starts
	for i := 1; i <= len(p); i++ {
		if i < len(p) && p[i] != '/' {
			switch c := p[i]; {
			case c == '\\', c == ';', c == '#', c < 0x20, c == 0x7f:
				return false
			case c == '%':
				if i+2 >= len(p) {
					return false
				}
				hi, lo := unhex(p[i+1]), unhex(p[i+2])
				if hi < 0 || lo < 0 {
					return false
				}
				switch hi<<4 | lo {
				case '/', '\\', '.', 0:
					return false
				}
			}
			continue
		}
		switch s := p[seg+1 : i]; {
		case s == "." || s == "..":
			return false
		case s == "" && i < len(p): // "//"; a single trailing slash is a form of its own, not a spelling of another
			return false
		}
		seg = i
	}
	return true
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// fills reports whether a path fills a template: "{name}" stands for one element that is not empty, everything else for
// itself, as in an exact path. A trailing slash is a form of its own.
func fills(path, template string) bool {
	i := 0
	for j := 0; j < len(template); {
		if template[j] == '{' && j > 0 && template[j-1] == '/' {
			end := strings.IndexByte(template[j:], '}')
			if end < 0 {
				return false
			}
			from := i
			for i < len(path) && path[i] != '/' {
				i++
			}
			if i == from {
				return false
			}
			j += end + 1
			continue
		}
		if i >= len(path) {
			return false
		}
		a, n := octet(path, i)
		b, m := octet(template, j)
		if a != b {
			return false
		}
		i, j = i+n, j+m
	}
	return i == len(path)
}

// EditPath is a path after an edit, for a request that a match selected. The prefix that is replaced is the match's; a
// match without one has "/". As in the Gateway API, slashes between what replaces and what is left are neither lost nor
// doubled. The "*" of OPTIONS stays.
func EditPath(path string, m *mesh.Match, edit mesh.PathEdit) string {
	switch {
	case path == "*" || edit == mesh.PathEdit{}:
		return path
	case edit.Full != "":
		return edit.Full
	}
	rest := path
	if m != nil {
		if n := consume(path, strings.TrimSuffix(m.Path.Prefix, "/")); n >= 0 {
			rest = path[n:]
		}
	}
	if edited := strings.TrimSuffix(edit.Prefix, "/") + rest; edited != "" {
		return edited
	}
	return "/"
}
