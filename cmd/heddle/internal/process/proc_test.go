package process

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

const diesWithParent = runtime.GOOS == "linux"

// stay takes SIGTERM and stays all the same.
func stay() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	for range c {
	}
}

func itoa(n int) string { return strconv.Itoa(n) }
func atoi(s string) int { n, _ := strconv.Atoi(s); return n }

// stat returns the fields of /proc/PID/stat after the name, which may hold spaces.
func stat(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	_, rest, ok := strings.Cut(string(b), ") ")
	if !ok {
		return nil, fmt.Errorf("%q is not a stat line", b)
	}
	return strings.Fields(rest), nil
}

func parentOf(pid int) (int, error) {
	f, err := stat(pid)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(f[1])
}

// zombie reports whether a process is dead but not waited for: its new parent may be slow to do so.
func zombie(pid int) bool {
	f, err := stat(pid)
	return err == nil && f[0] == "Z"
}
