//go:build unix

package proxy

import "syscall"

// openFiles is how many descriptors this process may have; 0: that is not known.
func openFiles() uint64 {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return 0
	}
	return uint64(r.Cur)
}
