package policy

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// TestKilledChild: a child that dies by itself is a finding about the files that it evaluated; one that somebody kills
// is a fault, and remembered as nothing.
func TestKilledChild(t *testing.T) {
	for signal, crashed := range map[syscall.Signal]bool{syscall.SIGABRT: true, syscall.SIGKILL: false} {
		e := New(Options{CPU: time.Hour, Heap: 1 << 40, Wall: time.Hour})
		files := repository(map[string][]byte{"services/evil/web.cue": []byte(hostile["disjunctions"])})
		delete(files, "mesh.cue") // the first unit is the hostile one
		type outcome struct {
			findings diag.List
			err      error
		}
		done := make(chan outcome)
		go func() {
			_, findings, err := e.LoadFiles(t.Context(), files, "")
			done <- outcome{findings, err}
		}()
		var got outcome
		for wait := true; wait; {
			select {
			case got = <-done:
				wait = false
			case <-time.After(10 * time.Millisecond):
				for _, pid := range children(t) {
					syscall.Kill(pid, signal)
				}
			}
		}
		var ids []string
		for _, f := range got.findings {
			if f.ID != diag.NoPolicy {
				ids = append(ids, f.ID)
			}
		}
		if crashed && (got.err != nil || len(ids) != 1 || ids[0] != diag.EvalCrashed) {
			t.Errorf("%v: %v %v", signal, got.findings, got.err)
		}
		if !crashed && (got.err == nil || !strings.Contains(got.err.Error(), "killed from outside") || len(e.cache) != 0) {
			t.Errorf("%v: err %v, findings %v, %d remembered", signal, got.err, got.findings, len(e.cache))
		}
	}
}

// children are the evaluation children of this process that run.
func children(t *testing.T) []int {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, list := range lists {
		b, _ := os.ReadFile(list) // a thread may be gone
		for _, field := range strings.Fields(string(b)) {
			args, _ := os.ReadFile("/proc/" + field + "/cmdline")
			if pid, err := strconv.Atoi(field); err == nil && strings.HasPrefix(string(args), ChildName) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
