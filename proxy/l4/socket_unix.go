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

// peekNow reports whether there are bytes, an end or an error to read, where the descriptor is safe to use.
func (s *socket) peekNow() bool {
	for {
		_, _, err := syscall.Recvfrom(int(s.fd), s.byte[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		if err != syscall.EINTR {
			return err != syscall.EAGAIN
		}
	}
}

func (s *socket) dead() bool {
	if s.raw == nil {
		return false
	}
	dead := true
	err := s.raw.Control(func(fd uintptr) {
		s.fd = fd
		dead = s.peekNow()
	})
	return err != nil || dead
}
