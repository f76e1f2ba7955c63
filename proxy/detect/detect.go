// Package detect tells protocols apart by the first bytes of a connection: one pure function, by Linkerd's rules. It
// reads nothing itself and knows no clock; who calls it bounds the wait by [Window].
package detect

import "time"

// Window is how long a connection may take to show what it speaks; then it is opaque. Linkerd's value.
const Window = 10 * time.Second

// Protocol is what the first bytes are.
type Protocol uint8

const (
	// NeedMore: the bytes are still a prefix of several of the others.
	NeedMore Protocol = iota
	// HTTP1: they are the start of an HTTP/1 request line.
	HTTP1
	// HTTP2 is its client preface (RFC 9113, 3.4).
	HTTP2
	// TLS is a ClientHello record (RFC 8446, 5.1).
	TLS
	// Opaque is anything else.
	Opaque
)

// String is a lower-case word for logs.
func (p Protocol) String() string {
	return [...]string{"undecided", "http1", "http2", "tls", "opaque"}[p]
}

const (
	preface = "PRI * HTTP/2.0\r\n"
	// maxMethod and maxLine bound what is waited for: a token longer than any method, or a line longer than any
	// request line in use, is not HTTP.
	maxMethod = 32
	maxLine   = 8 << 10
)

// First judges the first bytes of a connection. More bytes never change an answer other than NeedMore.
func First(b []byte) Protocol {
	if len(b) == 0 {
		return NeedMore
	}
	if b[0] == 0x16 {
		return hello(b)
	}
	if n := min(len(b), len(preface)); string(b[:n]) == preface[:n] && n > len("PRI ") {
		if n == len(preface) {
			return HTTP2
		}
		return NeedMore
	}
	return http1(b)
}

// hello: a handshake record of version 3.x with a ClientHello in it.
func hello(b []byte) Protocol {
	for i, c := range b[:min(len(b), 6)] {
		switch {
		case i == 1 && c != 3, i == 2 && c > 4, i == 3 && c > 0x40, i == 5 && c != 1:
			return Opaque
		}
	}
	if len(b) < 6 {
		return NeedMore
	}
	return TLS
}

// http1: METHOD SP TARGET SP HTTP/1.x. The version is awaited, so that a binary protocol which starts with letters is
// not taken for HTTP; a line break before it settles that it never comes.
func http1(b []byte) Protocol {
	i := 0
	for i < len(b) && methodChar(b[i]) {
		i++
	}
	switch {
	case i > maxMethod || i == 0:
		return Opaque
	case i == len(b):
		return NeedMore
	case b[i] != ' ':
		return Opaque
	}
	i++
	t := i
	for i < len(b) && b[i] > 0x20 && b[i] != 0x7f {
		i++
	}
	switch {
	case i == len(b):
		if i > maxLine {
			return Opaque
		}
		return NeedMore
	case i == t || b[i] != ' ':
		return Opaque
	}
	i++
	const version = "HTTP/1."
	rest := b[i:]
	n := min(len(rest), len(version))
	switch {
	case string(rest[:n]) != version[:n]:
		return Opaque
	case n < len(version):
		return NeedMore
	}
	return HTTP1
}

// methodChar: methods in use are of letters and "-"; "_" for those that servers make up.
func methodChar(c byte) bool {
	return 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || c == '-' || c == '_'
}
