//go:build unix && !linux

package process

import "syscall"

// attributes put a child into a process group of its own, so that Ctrl-C reaches only the parent. Only Linux can kill
// it when the parent is killed.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
