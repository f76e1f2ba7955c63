package process

import "syscall"

// attributes put a child into a process group of its own, so that Ctrl-C reaches only the parent, and have the kernel
// kill it when the parent is gone.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
