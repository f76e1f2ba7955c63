package policy

import (
	"os"
	"os/signal"
	"syscall"
)

// executable is this program, even if its file was replaced since it started.
func executable() (string, error) { return "/proc/self/exe", nil }

// confine takes from the child what no evaluation needs: files, big or many, and core dumps of policy.
func confine() {
	for resource, limit := range map[int]uint64{
		syscall.RLIMIT_FSIZE:  0,
		syscall.RLIMIT_CORE:   0,
		syscall.RLIMIT_NOFILE: 16,
	} {
		// A limit that cannot be lowered was lower before.
		_ = syscall.Setrlimit(resource, &syscall.Rlimit{Cur: limit, Max: limit})
	}
}

// addressSpace is a backstop under the heap watchdog, for one allocation that is too quick for it. The Go runtime
// reserves address space far beyond what it uses, so that less would stop sound evaluations.
const addressSpace = 4 << 30

func capAddressSpace() {
	_ = syscall.Setrlimit(syscall.RLIMIT_AS, &syscall.Rlimit{Cur: addressSpace, Max: addressSpace})
}

// limitCPU lets the process use that many more seconds of CPU before SIGXCPU.
func limitCPU(seconds int) {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		return
	}
	var now syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CPU, &now); err != nil {
		return
	}
	now.Cur = uint64(used.Utime.Sec+used.Stime.Sec) + 1 + uint64(seconds)
	_ = syscall.Setrlimit(syscall.RLIMIT_CPU, &now)
}

// onCPULimit calls f when the CPU limit is reached.
func onCPULimit(f func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGXCPU)
	go func() {
		for range c {
			f()
		}
	}()
}
