package http1

// Request is the head of a request. It is meant to be parsed into again and again; all slices point into the head.
type Request struct {
	Header
	Method []byte
	Target []byte // as sent
	// Path is the raw path of the target without its query; "/" for an absolute target without one, "*" for OPTIONS *,
	// empty for CONNECT.
	Path []byte
	// Authority is host[:port] as sent: that of an absolute or CONNECT target, which wins over Host (RFC 9112, 3.2.2),
	// else Host's value. It may be empty.
	Authority []byte
	// Absolute is set for a target in absolute form, Connect for CONNECT.
	Absolute, Connect bool
	// Minor is the minor version: 1 or 0.
	Minor int

	rest []byte // what of the target goes on the next hop's request line: path and query
}

// Parse reads a complete head, as found by [HeadEnd].
func (r *Request) Parse(head []byte) error {
	if err := r.parse(head); err != nil {
		return err
	}
	return nil
}

func (r *Request) parse(head []byte) *Error {
	r.Header.reset(head)
	r.Absolute, r.Connect, r.Path, r.Authority, r.rest = false, false, nil, nil, nil
	b := head
	if len(b) < 4 {
		return ErrRequestLine
	}
	i := 0
	for class[b[i]]&tchar != 0 {
		i++
	}
	if i == 0 {
		return ErrMethod
	}
	if b[i] != ' ' {
		if b[i] == '\r' || b[i] == '\n' {
			return ErrRequestLine
		}
		return ErrMethod
	}
	r.Method = b[:i]
	i++
	t := i
	for class[b[i]]&tgtchar != 0 {
		i++
	}
	if i == t {
		return ErrTarget
	}
	if b[i] != ' ' {
		if b[i] == '\r' || b[i] == '\n' {
			return ErrRequestLine
		}
		return ErrTarget
	}
	r.Target = b[t:i]
	i++
	if len(b) < i+10 || string(b[i:i+7]) != "HTTP/1." || b[i+8] != '\r' || b[i+9] != '\n' {
		return ErrVersion
	}
	switch b[i+7] {
	case '0', '1':
		r.Minor = int(b[i+7] - '0')
	default:
		return ErrVersion
	}
	if err := r.Header.parse(i + 10); err != nil {
		return err
	}
	if err := r.target(); err != nil {
		return err
	}
	switch {
	case r.hostAt < 0:
		if r.Minor == 1 {
			return ErrNoHost
		}
	default:
		v := r.value(&r.fields[r.hostAt])
		if len(v) > 0 && !authority(v) {
			return ErrHost
		}
		if !r.Absolute && !r.Connect {
			r.Authority = v
		}
	}
	if r.Header.te && r.Minor == 0 {
		return ErrCoding10
	}
	return nil
}

// target takes the request target apart by its four forms (RFC 9112, 3.2).
func (r *Request) target() *Error {
	t := r.Target
	switch {
	case string(r.Method) == "CONNECT":
		r.Connect = true
		if i := lastColon(t); i <= 0 || !authority(t) {
			return ErrTarget
		}
		r.Authority = t
		return nil
	case t[0] == '/':
		r.rest = t
	case len(t) == 1 && t[0] == '*':
		if string(r.Method) != "OPTIONS" {
			return ErrTarget
		}
		r.rest = t
	case len(t) > 7 && foldEqual(t[:7], "http://"):
		a := t[7:]
		n := 0
		for n < len(a) && a[n] != '/' && a[n] != '?' {
			n++
		}
		if n == 0 || !authority(a[:n]) {
			return ErrTarget
		}
		r.Absolute, r.Authority, r.rest = true, a[:n], a[n:]
	default:
		return ErrTarget
	}
	r.Path = r.rest
	if q := index(r.rest, '?'); q >= 0 {
		r.Path = r.rest[:q]
	}
	if len(r.Path) == 0 {
		r.Path = slash
	}
	return nil
}

var slash = []byte("/")

// authority reports whether v is host or host:port (RFC 9110, 7.2): no user, a port of digits.
func authority(v []byte) bool {
	hostEnd := len(v)
	if v[0] == '[' {
		e := index(v, ']')
		if e < 3 {
			return false
		}
		for _, c := range v[1:e] {
			if class[c]&hostchar == 0 && c != ':' {
				return false
			}
		}
		if e+1 == len(v) {
			return true
		}
		if v[e+1] != ':' {
			return false
		}
		hostEnd = e + 1
	} else {
		for i, c := range v {
			if c == ':' {
				hostEnd = i
				break
			}
			if class[c]&hostchar == 0 {
				return false
			}
		}
		if hostEnd == 0 {
			return false
		}
		if hostEnd == len(v) {
			return true
		}
	}
	p := v[hostEnd+1:]
	if len(p) == 0 || len(p) > 5 {
		return false
	}
	n := 0
	for _, c := range p {
		if c < '0' || c > '9' {
			return false
		}
		n = n*10 + int(c-'0')
	}
	return n <= 65535
}

func lastColon(v []byte) int {
	for i := len(v) - 1; i >= 0 && v[i] != ']'; i-- {
		if v[i] == ':' {
			return i
		}
	}
	return -1
}

// KeepAlive reports whether the sender wants the connection kept after this exchange. An HTTP/1.0 connection is never
// kept: such clients gain little, and their keep-alive is not safe through proxies (RFC 9112, C.2.2).
func (r *Request) KeepAlive() bool { return r.Minor == 1 && !r.close }

// UpgradeTo returns the protocols that the request asks to change to, or nil. "h2c" is never among them: it would carry
// HTTP/2 past everything that judges requests; a request that asks for nothing else asks for no upgrade.
func (r *Request) UpgradeTo() []byte {
	if !r.upg || r.upgradeAt < 0 || r.Minor == 0 {
		return nil
	}
	v := r.value(&r.fields[r.upgradeAt])
	for t := range tokens(v) {
		if foldEqual(t, "h2c") {
			return nil
		}
	}
	if len(v) == 0 {
		return nil
	}
	return v
}

// Expects100 reports whether the sender waits for 100 (Continue) before it sends the body.
func (r *Request) Expects100() bool {
	if r.Minor == 0 {
		return false
	}
	for i := range r.fields {
		if f := &r.fields[i]; f.kind == expect && foldEqual(r.value(f), "100-continue") {
			return true
		}
	}
	return false
}

// Framing is how the request's body is delimited.
func (r *Request) Framing() Framing {
	switch {
	case r.Header.te:
		return Framing{Kind: Chunked}
	case r.length > 0:
		return Framing{Kind: Fixed, Length: r.length}
	}
	return Framing{}
}

// Idempotent reports whether doing the request twice is the same as once, by its method (RFC 9110, 9.2.2).
func (r *Request) Idempotent() bool {
	switch string(r.Method) {
	case "GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE":
		return true
	}
	return false
}

// Append writes the head for the next hop: origin form, Host from Authority, hop-by-hop fields and fields that only
// sidecars may write left out, `extra` (whole field lines with CRLF) added. The version stays the sender's, so that an
// application sees HTTP/1.0 where its client speaks that. upgrade is what UpgradeTo returned, or nil to take the wish out.
func (r *Request) Append(out []byte, extra []byte, upgradeTo []byte) []byte {
	out = append(out, r.Method...)
	out = append(out, ' ')
	if len(r.rest) == 0 || r.rest[0] == '?' {
		out = append(out, '/')
	}
	out = append(out, r.rest...)
	if r.Minor == 1 {
		out = append(out, " HTTP/1.1\r\nHost: "...)
		out = append(out, r.Authority...)
		out = append(out, '\r', '\n')
	} else {
		out = append(out, " HTTP/1.0\r\n"...)
		if r.hostAt >= 0 || r.Absolute {
			out = append(out, "Host: "...)
			out = append(out, r.Authority...)
			out = append(out, '\r', '\n')
		}
	}
	out = r.appendFields(out, false)
	if r.Header.te {
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	}
	switch {
	case upgradeTo != nil:
		out = append(out, "Connection: Upgrade\r\nUpgrade: "...)
		out = append(out, upgradeTo...)
		out = append(out, '\r', '\n')
	case r.trail && r.Minor == 1:
		out = append(out, "Connection: TE\r\nTE: trailers\r\n"...)
	}
	out = append(out, extra...)
	return append(out, '\r', '\n')
}
