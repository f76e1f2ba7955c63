package detect

// ServerName reads the server name out of a ClientHello (RFC 8446, 4.1.2; RFC 6066, 3) whose record starts b. whole is
// false while the record is not all there. A hello without the extension, one that is malformed, and one that is spread
// over several records, which our own never are, have no name.
func ServerName(b []byte) (name string, whole bool) {
	if len(b) < 5 {
		return "", false
	}
	n := int(b[3])<<8 | int(b[4])
	if len(b) < 5+n {
		return "", false
	}
	r := reader(b[5 : 5+n])
	if typ, ok := r.take(1); !ok || typ[0] != 1 {
		return "", true
	}
	msg, ok := r.vector(3)
	if !ok {
		return "", true
	}
	r = msg
	r.take(2 + 32) // version, random
	r.vector(1)    // session id
	r.vector(2)    // cipher suites
	r.vector(1)    // compression
	exts, ok := r.vector(2)
	for ok && len(exts) > 0 {
		typ, ok1 := exts.take(2)
		ext, ok2 := exts.vector(2)
		if !ok1 || !ok2 {
			return "", true
		}
		if typ[0] != 0 || typ[1] != 0 {
			continue
		}
		list, _ := ext.vector(2)
		if kind, ok := list.take(1); ok && kind[0] == 0 {
			host, _ := list.vector(2)
			return string(host), true
		}
		return "", true
	}
	return "", true
}

// reader takes TLS's vectors off the front; after a failure it is empty.
type reader []byte

func (r *reader) take(n int) ([]byte, bool) {
	if len(*r) < n {
		*r = nil
		return nil, false
	}
	b := (*r)[:n]
	*r = (*r)[n:]
	return b, true
}

// vector takes a length of so many bytes, and then as many.
func (r *reader) vector(size int) (reader, bool) {
	l, ok := r.take(size)
	n := 0
	for _, c := range l {
		n = n<<8 | int(c)
	}
	if !ok {
		return nil, false
	}
	v, ok := r.take(n)
	return v, ok
}
