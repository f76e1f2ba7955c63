//go:build !linux

package policy

import "os"

// executable is this program.
func executable() (string, error) { return os.Executable() }

// Without Linux's resource limits the heap watchdog and the parent's wall clock remain.
func confine()         {}
func capAddressSpace() {}
func limitCPU(int)     {}
func onCPULimit(func()) {
}
