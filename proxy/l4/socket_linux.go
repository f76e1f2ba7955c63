package l4

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// userTimeout bounds how long sent bytes may stay unacknowledged, in milliseconds (RFC 5482). Linkerd's value.
const userTimeout = 30_000

// Control sets a new socket's options; for net.Dialer and net.ListenConfig. Accepted connections inherit them.
func Control(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, userTimeout) })
}
