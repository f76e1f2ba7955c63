//go:build unix

package l4

import (
	"io"
	"syscall"
)

const nonblocking = true

// readNow reads from inside the RawConn's Read, where the descriptor is safe to use.
func (s *socket) readNow(b []byte) (int, error) {
	for {
		n, err := syscall.Read(int(s.fd), b)
		switch {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			return 0, errAgain
		case err != nil:
			return 0, err
		case n == 0 && len(b) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (s *socket) dead() bool {
	if s.raw == nil {
		return false
	}
	if s.look == nil { // bound once, so that looking does not allocate
		s.look = func(fd uintptr) {
			_, _, err := syscall.Recvfrom(int(fd), s.byte[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			s.seen = err != syscall.EAGAIN && err != syscall.EINTR
		}
	}
	s.seen = true
	return s.raw.Control(s.look) != nil || s.seen
}
