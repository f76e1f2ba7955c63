package http1

// Response is the head of a response. It is meant to be parsed into again and again; all slices point into the head.
type Response struct {
	Header
	Status int
	Minor  int

	line []byte // status and reason, with CRLF
}

// Parse reads a complete head, as found by [HeadEnd].
func (r *Response) Parse(head []byte) error {
	if err := r.parse(head); err != nil {
		return err
	}
	return nil
}

func (r *Response) parse(b []byte) *Error {
	r.Header.reset(b)
	if len(b) < 16 || string(b[:7]) != "HTTP/1." || b[7] != '0' && b[7] != '1' || b[8] != ' ' {
		return ErrStatusLine
	}
	r.Minor = int(b[7] - '0')
	r.Status = 0
	for _, c := range b[9:12] {
		if c < '0' || c > '9' {
			return ErrStatusLine
		}
		r.Status = r.Status*10 + int(c-'0')
	}
	if r.Status < 100 || b[12] != ' ' && b[12] != '\r' {
		return ErrStatusLine
	}
	i := 12
	for class[b[i]]&vchar != 0 {
		i++
	}
	if b[i] != '\r' || b[i+1] != '\n' {
		return ErrStatusLine
	}
	r.line = b[9 : i+2]
	if err := r.Header.parse(i + 2); err != nil {
		return err
	}
	if r.Header.te && r.Minor == 0 {
		return ErrCoding10
	}
	return nil
}

// KeepAlive reports whether the sender keeps the connection after this response.
func (r *Response) KeepAlive() bool { return !r.close && (r.Minor == 1 || r.keep) }

// Interim reports whether another response to the same request follows (RFC 9110, 15.2). 101 is final.
func (r *Response) Interim() bool { return r.Status < 200 && r.Status != 101 }

// Framing is how the body is delimited, given the request's method (RFC 9112, 6.3).
func (r *Response) Framing(toHEAD bool) Framing {
	switch {
	case toHEAD, r.bodiless():
		return Framing{}
	case r.Header.te:
		return Framing{Kind: Chunked}
	case r.length > 0:
		return Framing{Kind: Fixed, Length: r.length}
	case r.length == 0:
		return Framing{}
	}
	return Framing{Kind: UntilEOF}
}

func (r *Response) bodiless() bool { return r.Status < 200 || r.Status == 204 || r.Status == 304 }

// Append writes the head for the next hop: hop-by-hop fields left out, `extra` (whole field lines with CRLF) added, and
// "Connection: close" where closing. fromApp leaves out the fields that only sidecars may write.
func (r *Response) Append(out []byte, extra []byte, closing, fromApp bool) []byte {
	out = append(out, "HTTP/1.1 "...)
	out = append(out, r.line...)
	out = r.appendFields(out, !fromApp)
	if r.Header.te && r.Status >= 200 && r.Status != 204 {
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	}
	switch {
	case r.Status == 101:
		out = append(out, "Connection: Upgrade\r\n"...)
		if r.upgradeAt >= 0 {
			out = append(out, "Upgrade: "...)
			out = append(out, r.value(&r.fields[r.upgradeAt])...)
			out = append(out, '\r', '\n')
		}
	case closing && r.Status >= 200:
		out = append(out, "Connection: close\r\n"...)
	}
	out = append(out, extra...)
	return append(out, '\r', '\n')
}
