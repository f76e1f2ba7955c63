package proxy

import (
	"context"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// gcPercent suits small heaps: with the default of 100 the collector lets a heap of a few megabytes double, and never
// starts below 4 MB, which is a third of what an idle sidecar may take. Nothing on the data path allocates per byte, so
// that collecting twice as often costs little.
const gcPercent = 50

// limitMemory tells the collector about small heaps and, on Linux, about the memory limit of the control group, of
// which a tenth is left for what Go does not count. GOGC and GOMEMLIMIT, where set, win.
func limitMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		if n := cgroupLimit("/proc/self/cgroup", "/sys/fs/cgroup"); n > 0 {
			debug.SetMemoryLimit(n / 10 * 9)
		}
	}
}

// cgroupLimit is the smallest memory.max from the process's own control group (version 2) up; 0: there is none.
func cgroupLimit(self, root string) (limit int64) {
	b, err := os.ReadFile(self)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		for {
			b, err := os.ReadFile(filepath.Join(root, path, "memory.max"))
			if n, perr := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && perr == nil && (limit == 0 || n < limit) {
				limit = n
			}
			if path == "/" || path == "." || path == "" {
				return limit
			}
			path = filepath.Dir(path)
		}
	}
	return limit
}

// settleAfter is how long after its first config a sidecar gives back what only the start needed.
const settleAfter = 3 * time.Second

// settle gives back what only the start needed: heap, and the pages of the program itself, most of which ran once.
// (Of 12 MB of program that a start touches, an idle sidecar needs about 2.)
func settle() {
	debug.FreeOSMemory()
	dropProgram()
}

// settle gives memory back at the start, and again when the first config has been used for a moment.
func (s *sidecar) settle(ctx context.Context) error {
	settle()
	for {
		p, changed := s.current.Changed()
		if p.TrustDomain != "" {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
	select {
	case <-time.After(settleAfter):
		settle()
	case <-ctx.Done():
	}
	return nil
}
