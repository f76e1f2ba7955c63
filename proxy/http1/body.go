package http1

// FramingKind is a way to delimit a body.
type FramingKind uint8

const (
	None     FramingKind = iota // no body
	Fixed                       // Content-Length
	Chunked                     // Transfer-Encoding: chunked
	UntilEOF                    // a response that ends with its connection
)

// Framing says how a body is delimited.
type Framing struct {
	Kind   FramingKind
	Length int64 // of Fixed
}

// Body follows a body through the bytes of its connection, and validates chunked framing on the way. Bytes pass as they
// are: what it accepts has only one reading. The zero Body is done.
type Body struct {
	kind  FramingKind
	state chunkState
	last  bool  // the chunk at hand is the last one
	left  int64 // of a fixed body or the chunk at hand
	line  int   // bytes of the chunk-size line or trailer line so far
	count int   // trailer fields
	size  int   // bytes of the trailer section
	name  [64]byte
	nlen  int
}

type chunkState uint8

const (
	chunkSize    chunkState = iota // hexadecimal digits
	chunkExt                       // after ";", until CR
	chunkSizeLF                    // LF of the size line
	chunkData                      // left bytes
	chunkCR                        // CR after the data
	chunkLF                        // LF after the data
	trailerStart                   // at the start of a trailer line
	trailerName                    //
	trailerValue                   //
	trailerLF                      // LF of a trailer line
	endLF                          // LF of the empty line
	chunkDone
)

// maxChunkLine bounds a chunk-size line: extensions are an amplifier otherwise (CVE-2023-39326).
const maxChunkLine = 256

// Start begins a body.
func (b *Body) Start(f Framing) {
	*b = Body{kind: f.Kind, left: f.Length}
}

// Done reports whether the whole body was seen. A body until EOF is done when its connection says so, not before.
func (b *Body) Done() bool {
	switch b.kind {
	case None:
		return true
	case Fixed:
		return b.left == 0
	case Chunked:
		return b.state == chunkDone
	}
	return false
}

// UntilEOF reports whether the body ends with its connection.
func (b *Body) UntilEOF() bool { return b.kind == UntilEOF }

// Left is the number of bytes that are still to come of a fixed body, and otherwise of the chunk at hand: as many may be
// read and passed on without looking at them.
func (b *Body) Left() int64 { return b.left }

// Feed takes the next bytes of the connection and returns how many of them belong to the body. After an error the body
// is lost, and so is the connection: where the next message starts cannot be known.
func (b *Body) Feed(p []byte) (n int, err error) {
	switch b.kind {
	case None:
		return 0, nil
	case Fixed:
		n = int(min(int64(len(p)), b.left))
		b.left -= int64(n)
		return n, nil
	case UntilEOF:
		return len(p), nil
	}
	n, e := b.chunked(p)
	if e != nil {
		return n, e
	}
	return n, nil
}

func (b *Body) chunked(p []byte) (int, *Error) {
	i := 0
	for i < len(p) {
		c := p[i]
		switch b.state {
		case chunkSize:
			d := unhex(c)
			switch {
			case d >= 0:
				if b.line == 15 { // 15 digits never overflow; leading zeros beyond that serve nobody
					return i, ErrChunkSize
				}
				b.left = b.left<<4 | int64(d)
				b.line++
			case b.line == 0:
				return i, ErrChunkSize
			case c == ';':
				b.line++
				b.state = chunkExt
			case c == '\r':
				b.state = chunkSizeLF
			default:
				return i, ErrChunkSize
			}
		case chunkExt:
			b.line++
			switch {
			case c == '\r':
				b.state = chunkSizeLF
			case class[c]&vchar == 0 || b.line > maxChunkLine:
				return i, ErrChunkExt
			}
		case chunkSizeLF:
			if c != '\n' {
				return i, ErrBareCR
			}
			b.line = 0
			if b.left == 0 {
				b.state = trailerStart
			} else {
				b.state = chunkData
			}
		case chunkData:
			n := min(int64(len(p)-i), b.left)
			b.left -= n
			i += int(n)
			if b.left == 0 {
				b.state = chunkCR
			}
			continue
		case chunkCR:
			if c != '\r' {
				return i, ErrChunkEnd
			}
			b.state = chunkLF
		case chunkLF:
			if c != '\n' {
				return i, ErrChunkEnd
			}
			b.state = chunkSize
		case chunkDone:
			return i, nil
		default:
			if err := b.trailer(c); err != nil {
				return i, err
			}
		}
		i++
	}
	return i, nil
}

// trailer takes one byte of the trailer section.
func (b *Body) trailer(c byte) *Error {
	if b.size++; b.size > MaxHead {
		return ErrHeadTooLarge
	}
	switch b.state {
	case trailerStart:
		if c == '\r' {
			b.state = endLF
			return nil
		}
		if c == ' ' || c == '\t' {
			return ErrObsFold
		}
		if b.count++; b.count > MaxFields {
			return ErrTooManyFields
		}
		b.nlen, b.state = 0, trailerName
		return b.trailer1(c)
	case trailerName:
		return b.trailer1(c)
	case trailerValue:
		switch {
		case c == '\r':
			b.state = trailerLF
		case c == '\n':
			return ErrBareLF
		case class[c]&vchar == 0:
			return ErrFieldValue
		}
	case trailerLF:
		if c != '\n' {
			return ErrBareCR
		}
		b.state = trailerStart
	case endLF:
		if c != '\n' {
			return ErrBareCR
		}
		b.state = chunkDone
	}
	return nil
}

func (b *Body) trailer1(c byte) *Error {
	if c == ':' {
		if b.nlen == 0 {
			return ErrFieldName
		}
		if b.nlen <= len(b.name) && forbiddenTrailer(b.name[:b.nlen]) {
			return ErrTrailer
		}
		b.state = trailerValue
		return nil
	}
	if class[c]&tchar == 0 {
		return ErrFieldName
	}
	if b.nlen < len(b.name) { // every forbidden name is shorter, but the prefix "heddle-" of a longer one must be seen too
		b.name[b.nlen] = c
	}
	b.nlen++
	if b.nlen == 8 && classify(b.name[:8]) == identity {
		return ErrTrailer
	}
	return nil
}

// forbiddenTrailer: fields that frame, route, authenticate or identify a message mean nothing, or something dangerous,
// after its body. Merging them into the header is what makes them dangerous, and some applications do merge.
func forbiddenTrailer(name []byte) bool {
	switch classify(name) {
	case other:
	default:
		return true
	}
	for _, n := range []string{"authorization", "cookie", "set-cookie", "content-type", "content-encoding", "content-range",
		"trailer", "max-forwards", "cache-control", "range", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "forwarded"} {
		if spelled(name, n) {
			return true
		}
	}
	return spelled(name, "host")
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
