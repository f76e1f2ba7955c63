package http1

import "bytes"

func index(b []byte, c byte) int { return bytes.IndexByte(b, c) }

// classify says what a field is to this package. The first letter and the length rule out nearly all.
func classify(name []byte) kind {
	switch lower(name[0]) {
	case 'h':
		if len(name) == 4 && foldEqual(name, "host") {
			return host
		}
		if len(name) > 7 && spelled(name[:7], "heddle-") {
			return identity
		}
	case 'c':
		if len(name) == 14 && foldEqual(name, "content-length") {
			return contentLength
		}
		if len(name) == 10 && foldEqual(name, "connection") {
			return connection
		}
	case 't':
		if len(name) == 17 && foldEqual(name, "transfer-encoding") {
			return transferEncoding
		}
		if len(name) == 2 && foldEqual(name, "te") {
			return te
		}
	case 'u':
		if len(name) == 7 && foldEqual(name, "upgrade") {
			return upgrade
		}
	case 'e':
		if len(name) == 6 && foldEqual(name, "expect") {
			return expect
		}
	case 'k':
		if len(name) == 10 && foldEqual(name, "keep-alive") {
			return hop
		}
	case 'p':
		if foldEqual(name, "proxy-connection") || foldEqual(name, "proxy-authorization") || foldEqual(name, "proxy-authenticate") {
			return hop
		}
	case 'x':
		if len(name) == 23 && spelled(name, "x-forwarded-client-cert") {
			return identity
		}
	}
	// A framing field spelled with "_" is an ordinary field to us and a framing field to some applications.
	if contentLengthOrCodingMisspelt(name) {
		return hop
	}
	return other
}

func contentLengthOrCodingMisspelt(name []byte) bool {
	return len(name) == 14 && spelled(name, "content-length") || len(name) == 17 && spelled(name, "transfer-encoding")
}

// parse reads the field lines from offset `at` of a complete head that ends in an empty line.
func (h *Header) parse(at int) *Error {
	b := h.buf
	for i := at; ; {
		if b[i] == '\r' { // the end: HeadEnd saw CRLF here
			if i+2 != len(b) || b[i+1] != '\n' {
				return ErrBareCR
			}
			break
		}
		if len(h.fields) == MaxFields {
			return ErrTooManyFields
		}
		start := i
		for class[b[i]]&tchar != 0 {
			i++
		}
		if i == start || b[i] != ':' {
			if i == start && (b[i] == ' ' || b[i] == '\t') {
				return ErrObsFold
			}
			return ErrFieldName
		}
		colon := i
		i++
		for b[i] == ' ' || b[i] == '\t' {
			i++
		}
		vstart := i
		for class[b[i]]&vchar != 0 {
			i++
		}
		if b[i] != '\r' {
			if b[i] == '\n' {
				return ErrBareLF
			}
			return ErrFieldValue
		}
		if b[i+1] != '\n' {
			return ErrBareCR
		}
		vend := i
		for vend > vstart && (b[vend-1] == ' ' || b[vend-1] == '\t') {
			vend--
		}
		i += 2
		f := field{start: uint32(start), colon: uint32(colon), vstart: uint32(vstart), vend: uint32(vend), end: uint32(i)}
		f.kind = classify(b[start:colon])
		h.fields = append(h.fields, f)
		if f.kind != other {
			if err := h.special(&f); err != nil {
				return err
			}
		}
	}
	if h.length >= 0 && h.te {
		return ErrBothLengths
	}
	if h.named {
		return h.dropNamed()
	}
	return nil
}

// special takes note of a field that frames the message or belongs to this hop.
func (h *Header) special(f *field) *Error {
	v := h.value(f)
	switch f.kind {
	case host:
		if h.hostAt >= 0 {
			return ErrHosts
		}
		h.hostAt = int32(len(h.fields) - 1)
	case contentLength:
		if h.length >= 0 {
			return ErrLengths
		}
		if len(v) == 0 || len(v) > 18 { // 18 digits never overflow
			return ErrContentLength
		}
		n := int64(0)
		for _, c := range v {
			if c < '0' || c > '9' {
				return ErrContentLength
			}
			n = n*10 + int64(c-'0')
		}
		h.length = n
	case transferEncoding:
		if h.te || !foldEqual(v, "chunked") {
			return ErrCoding
		}
		h.te = true
	case te:
		for t := range tokens(v) {
			if foldEqual(t, "trailers") {
				h.trail = true
			}
		}
	case upgrade:
		if h.upgradeAt >= 0 {
			return ErrConnection
		}
		h.upgradeAt = int32(len(h.fields) - 1)
	case connection:
		for t := range tokens(v) {
			switch {
			case foldEqual(t, "close"):
				h.close = true
			case foldEqual(t, "keep-alive"):
				h.keep = true
			case foldEqual(t, "upgrade"):
				h.upg = true
			case foldEqual(t, "te"):
			default:
				for _, c := range t {
					if class[c]&tchar == 0 {
						return ErrConnection
					}
				}
				if spelled(t, "host") || spelled(t, "content-length") || spelled(t, "transfer-encoding") {
					return ErrConnection
				}
				h.named = true
			}
		}
	}
	return nil
}

// dropNamed marks the fields that Connection names (RFC 9110, 7.6.1).
func (h *Header) dropNamed() *Error {
	for i := range h.fields {
		if h.fields[i].kind != connection {
			continue
		}
		for t := range tokens(h.value(&h.fields[i])) {
			for j := range h.fields {
				if f := &h.fields[j]; bytes.EqualFold(h.name(f), t) {
					f.drop = true
				}
			}
		}
	}
	return nil
}

// tokens are the elements of a comma-separated list, empty ones left out (RFC 9110, 5.6.1).
func tokens(v []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(v) > 0 {
			t := v
			if i := index(v, ','); i >= 0 {
				t, v = v[:i], v[i+1:]
			} else {
				v = nil
			}
			if t = bytes.Trim(t, " \t"); len(t) > 0 && !yield(t) {
				return
			}
		}
	}
}

// appendFields copies the field lines that the next hop should see. Runs of lines are copied as they are.
func (h *Header) appendFields(out []byte, keepIdentity bool) []byte {
	if len(h.fields) == 0 {
		return out
	}
	run := h.fields[0].start // where the bytes not copied yet start
	for i := range h.fields {
		f := &h.fields[i]
		keep := !f.drop
		switch f.kind {
		case host, transferEncoding, connection, te, upgrade, hop:
			keep = false
		case identity:
			keep = keep && keepIdentity
		}
		if !keep {
			out = append(out, h.buf[run:f.start]...)
			run = f.end
		}
	}
	return append(out, h.buf[run:h.fields[len(h.fields)-1].end]...)
}
