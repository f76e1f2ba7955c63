// Package http1 is HTTP/1.1 at the level of bytes: it turns the bytes of a connection into message heads and body
// framing, and heads into the bytes of the next hop, without allocating and without net/http.
//
// It is strict (RFC 9110, RFC 9112). A proxy and the application behind it must never read the same bytes as different
// messages, so every spelling that two readers could understand differently is refused: see the errors in this file.
// What it accepts, net/http accepts with the same meaning; a fuzz target holds that.
//
// The package knows nothing of policy, TLS or sockets. Parsed values point into the caller's buffer and are valid until
// that buffer changes.
package http1

import (
	"bytes"
	"slices"
)

// Limits of a message head. They bound memory per connection; both are what common servers use.
const (
	MaxHead   = 64 << 10 // bytes of a head, with its empty line
	MaxFields = 128      // field lines of a head, or of a trailer section
)

// Error is a message that this package refuses. Errors are shared values; compare them by identity.
type Error struct {
	// Status is the status that a server answers with where the message was a request: 400, or 431 for a head that is
	// too large. Never a 5xx: the fault is the sender's.
	Status int
	// Reason says in lower case what is wrong with the message.
	Reason string
}

// Error is the reason.
func (e *Error) Error() string { return "malformed message: " + e.Reason }

func bad(reason string) *Error { return &Error{Status: 400, Reason: reason} }

// What is refused, and where it is forbidden.
var (
	ErrBareLF        = bad("a line ends in LF without CR")                                // RFC 9112, 2.2
	ErrBareCR        = bad("CR without LF")                                               // RFC 9112, 2.2
	ErrHeadTooLarge  = &Error{Status: 431, Reason: "the header is larger than 64 KiB"}    // RFC 6585, 5
	ErrTooManyFields = &Error{Status: 431, Reason: "the header has more than 128 fields"} // RFC 6585, 5
	ErrRequestLine   = bad("the request line is not METHOD SP TARGET SP VERSION")         // RFC 9112, 3
	ErrMethod        = bad("the method is not a token")                                   // RFC 9110, 9.1
	ErrTarget        = bad("the request target is malformed")                             // RFC 9112, 3.2
	ErrVersion       = bad("the version is neither HTTP/1.1 nor HTTP/1.0")                // RFC 9112, 2.3
	ErrStatusLine    = bad("the status line is malformed")                                // RFC 9112, 4
	ErrFieldName     = bad("a field name is not a token directly followed by a colon")    // RFC 9112, 5.1
	ErrFieldValue    = bad("a field value holds a control character")                     // RFC 9110, 5.5
	ErrObsFold       = bad("a field is folded over several lines")                        // RFC 9112, 5.2
	ErrNoHost        = bad("an HTTP/1.1 request without Host")                            // RFC 9112, 3.2
	ErrHosts         = bad("more than one Host")                                          // RFC 9112, 3.2
	ErrHost          = bad("the authority is malformed")                                  // RFC 9110, 7.2
	ErrContentLength = bad("Content-Length is not one decimal number")                    // RFC 9112, 6.3
	ErrLengths       = bad("more than one Content-Length")                                // RFC 9112, 6.3
	ErrBothLengths   = bad("Content-Length together with Transfer-Encoding")              // RFC 9112, 6.3
	ErrCoding        = bad("Transfer-Encoding is not exactly chunked")                    // RFC 9112, 6.1
	ErrCoding10      = bad("Transfer-Encoding in an HTTP/1.0 message")                    // RFC 9112, 6.1
	ErrConnection    = bad("Connection is malformed, or names a field that frames or routes the message")
	ErrChunkSize     = bad("a chunk size is malformed")                                     // RFC 9112, 7.1
	ErrChunkExt      = bad("a chunk extension is malformed or longer than 256 bytes")       // RFC 9112, 7.1.1
	ErrChunkEnd      = bad("a chunk is not followed by CRLF")                               // RFC 9112, 7.1
	ErrTrailer       = bad("a trailer field that frames, routes or identifies the message") // RFC 9110, 6.5.1
)

// kind is what this package must know of a field; most are other.
type kind uint8

const (
	other kind = iota
	host
	contentLength
	transferEncoding
	connection // what names hop-by-hop fields
	te
	upgrade
	expect
	hop      // other hop-by-hop fields: always dropped
	identity // fields that only Heddle's own sidecars may write
)

// Field is one field line of a head.
type field struct {
	start, colon, vstart, vend, end uint32 // offsets into the head: the line with its CRLF, the name, the value
	kind                            kind
	drop                            bool // named by Connection
}

// Header is the field lines of a head.
type Header struct {
	buf    []byte
	fields []field
	named  bool // Connection names fields beyond the well-known ones
	close  bool // Connection: close
	keep   bool // Connection: keep-alive
	upg    bool // Connection: upgrade
	trail  bool // TE: trailers
	te     bool // a Transfer-Encoding was there, and it is chunked
	length int64
	// where single fields are, -1 where they are not
	hostAt, upgradeAt int32
}

func (h *Header) reset(b []byte) {
	*h = Header{buf: b, fields: h.fields[:0], length: -1, hostAt: -1, upgradeAt: -1}
}

func (h *Header) name(f *field) []byte  { return h.buf[f.start:f.colon] }
func (h *Header) value(f *field) []byte { return h.buf[f.vstart:f.vend] }

// Clone returns a copy that outlives the head which it was parsed from.
func (h *Header) Clone() *Header {
	c := *h
	c.buf, c.fields = bytes.Clone(h.buf), slices.Clone(h.fields)
	return &c
}

// DropAliases takes out the fields whose names differ from one of some lower-case names only by "_" for "-", or the other
// way round: applications behind CGI-like gateways cannot tell them apart, so that they would get what was never judged.
func (h *Header) DropAliases(names []string) {
	for i := range h.fields {
		f := &h.fields[i]
		for _, name := range names {
			if alias(h.name(f), name) {
				f.drop = true
			}
		}
	}
}

// Get returns the value of a field by its lower-case name, repeated lines joined by "," (RFC 9110, 5.3). Fields that do
// not go on, since Connection names them or [Header.DropAliases] took them out, are not there. It allocates only where
// lines are repeated.
func (h *Header) Get(name string) ([]byte, bool) {
	var v []byte
	found, joined := false, false
	for i := range h.fields {
		f := &h.fields[i]
		if f.drop || !foldEqual(h.name(f), name) {
			continue
		}
		switch {
		case !found:
			v, found = h.value(f), true
		default:
			if !joined {
				v, joined = append([]byte(nil), v...), true
			}
			v = append(append(v, ','), h.value(f)...)
		}
	}
	return v, found
}

// Byte classes.
const (
	tchar    = 1 << iota // RFC 9110, 5.6.2
	vchar                // may stand in a field value: HTAB, SP, VCHAR, obs-text
	tgtchar              // may stand in a request target: VCHAR without "#"
	hostchar             // may stand in a registered name or an IP literal (RFC 3986, 3.2.2), without brackets
)

var class = func() (t [256]uint8) {
	for c := range 256 {
		alnum := '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if alnum || c != 0 && c < 128 && contains("!#$%&'*+-.^_`|~", byte(c)) {
			t[c] |= tchar
		}
		if c == '\t' || c >= 0x20 && c != 0x7f {
			t[c] |= vchar
		}
		if c > 0x20 && c < 0x7f && c != '#' {
			t[c] |= tgtchar
		}
		if alnum || c < 128 && contains("-._~!$&'()*+,;=%", byte(c)) {
			t[c] |= hostchar
		}
	}
	return t
}()

func contains(s string, c byte) bool {
	for i := range len(s) {
		if s[i] == c {
			return true
		}
	}
	return false
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}

// foldEqual compares b with a lower-case string, ASCII case aside.
func foldEqual(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i := range len(s) {
		if lower(b[i]) != s[i] {
			return false
		}
	}
	return true
}

// alias reports whether b differs from a lower-case name, and case aside only by "_" for "-" or the other way round.
func alias(b []byte, name string) bool {
	if len(b) != len(name) {
		return false
	}
	differs := false
	for i := range len(name) {
		switch c := lower(b[i]); {
		case c == name[i]:
		case c == '_' && name[i] == '-', c == '-' && name[i] == '_':
			differs = true
		default:
			return false
		}
	}
	return differs
}

// spelled compares b with a lower-case string, case aside and "_" taken for "-": applications behind CGI-like gateways
// cannot tell them apart.
func spelled(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i := range len(s) {
		c := lower(b[i])
		if c == '_' {
			c = '-'
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

// HeadEnd looks for the end of a head in b, whose first `from` bytes were looked at before. It returns the length of
// the head with its empty line, or 0 and the offset to go on from. A line that ends in a bare LF is refused as soon as
// it is seen: waiting for a CRLF that never comes would be a gift to slow clients.
func HeadEnd(b []byte, from int) (end, next int, err error) {
	i := from
	for {
		j := index(b[i:], '\n')
		if j < 0 {
			if len(b) >= MaxHead {
				return 0, 0, ErrHeadTooLarge
			}
			return 0, len(b), nil
		}
		i += j
		if i == 0 || b[i-1] != '\r' {
			return 0, 0, ErrBareLF
		}
		if i >= 3 && b[i-2] == '\n' {
			if i+1 > MaxHead {
				return 0, 0, ErrHeadTooLarge
			}
			return i + 1, 0, nil
		}
		i++
	}
}
