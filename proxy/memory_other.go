//go:build !linux

package proxy

// dropProgram does nothing where there is no madvise on a program's own pages.
func dropProgram() {}
