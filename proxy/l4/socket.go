package l4

import (
	"errors"
	"io"
	"net"
	"syscall"
)

// socket is the TCP connection below TLS. Inside a RawConn's Read it reads without blocking and says errAgain, which
// crypto/tls passes up unharmed, since it calls itself temporary: that is how a TLS connection too waits without
// holding a buffer.
type socket struct {
	*net.TCPConn
	raw    syscall.RawConn
	inside bool
	fd     uintptr
	peeked []byte
	// secure makes an end without close_notify an error. crypto/tls takes it for a clean end where it falls between two
	// records, as "popular web sites" do; between sidecars it means that the peer died.
	secure bool

	byte [1]byte // of peekNow
}

// errTruncated is the end of a TLS connection without close_notify.
var errTruncated = errors.New("the connection ended without close_notify")

type againError struct{}

func (againError) Error() string   { return "no bytes yet" }
func (againError) Timeout() bool   { return true }
func (againError) Temporary() bool { return true }

var errAgain net.Error = againError{}

// Read reads what was peeked at first.
func (s *socket) Read(b []byte) (int, error) {
	if len(s.peeked) > 0 {
		n := copy(b, s.peeked)
		if s.peeked = s.peeked[n:]; len(s.peeked) == 0 {
			s.peeked = nil
		}
		return n, nil
	}
	var n int
	var err error
	if s.inside {
		n, err = s.readNow(b)
	} else {
		n, err = s.TCPConn.Read(b)
	}
	if err == io.EOF && s.secure {
		err = errTruncated
	}
	return n, err
}
