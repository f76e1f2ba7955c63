//go:build !linux

package l4

import "syscall"

// Control sets a new socket's options; for net.Dialer and net.ListenConfig. There are none on this system.
func Control(_, _ string, _ syscall.RawConn) error { return nil }
