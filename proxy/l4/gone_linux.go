package l4

import "golang.org/x/sys/unix"

// Gone reports whether the peer has vanished: it reset the connection, or no longer answers for it. A peer that only
// ended its own direction is still there for an answer. Any goroutine may ask; nothing is read.
func (c *Conn) Gone() bool {
	if c.sock.raw == nil {
		return false
	}
	gone := false
	err := c.sock.raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		if n, err := unix.Poll(p, 0); n > 0 && err == nil {
			gone = p[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
		}
	})
	return err == nil && gone
}
