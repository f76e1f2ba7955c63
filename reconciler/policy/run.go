package policy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// stops counts, over all children of one load, what ran away. It bounds the load: a commit with a thousand hostile
// directories, or with one hostile ancestor of them, is refused after a few.
type stops struct {
	directories atomic.Int32
	ancestor    atomic.Bool
}

// enough is how many directories may run away in one load before the rest is not looked at any more.
const enough = 3

func (s *stops) full() bool { return s.ancestor.Load() || s.directories.Load() >= enough }

func (s *stops) count(u directory) {
	s.directories.Add(1)
	if u.Namespace == "" && u.Dir != "tests" {
		s.ancestor.Store(true)
	}
}

// run evaluates units in a child process, restarted behind each unit that ends it, and calls got for each in order.
func (e *Evaluator) run(ctx context.Context, req request, units []directory, stops *stops, got func(int, result) error) error {
	req.CPUSeconds = int(e.opts.CPU / time.Second)
	req.HeapBytes = e.opts.Heap
	req.Cap = !raceEnabled
	for done := 0; done < len(units); {
		if stops.full() {
			if err := got(done, result{Dir: units[done].Dir, skipped: true}); err != nil {
				return err
			}
			done++
			continue
		}
		why, n, err := e.child(ctx, req, units[done:], func(i int, r result) error { return got(done+i, r) })
		if err != nil {
			return err
		}
		done += n
		if done < len(units) {
			stops.count(units[done])
			if err := got(done, e.stopped(units[done], why)); err != nil {
				return err
			}
			done++
		}
	}
	return nil
}

// readError is a fault of the repository's store, met while a child was fed.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }

// send feeds a child: the request, then the units, each read when the child has taken the one before it, so that a large
// repository is never in memory as a whole.
func send(w io.Writer, req request, units []directory) error {
	req.Units = len(units)
	if err := writeFrame(w, req); err != nil {
		return err
	}
	for _, d := range units {
		u := d.unit
		var err error
		if u.Files, err = contents(d.blobs); err != nil {
			return &readError{err}
		}
		if err := writeFrame(w, u); err != nil {
			return err
		}
	}
	return nil
}

// end is why a child ended before it had answered for all of its units.
type end struct {
	limit  string // "cpu", "heap", "output", or "" for a crash
	detail string // of a crash, one line
}

// child runs one child. It returns how many units it answered for, and, if these are not all, why the next one ended
// it. The error is a fault: the process could not be started, did not speak, or got no processor.
func (e *Evaluator) child(ctx context.Context, req request, units []directory, got func(i int, r result) error) (end, int, error) {
	exe, err := executable()
	if err != nil {
		return end{}, 0, fmt.Errorf("finding this program's own executable, to evaluate policy in a child: %w", err)
	}
	cmd := exec.Command(exe)
	cmd.Args = []string{ChildName}
	cmd.Env = childEnv
	cmd.Dir = "/"
	complaint := &tail{}
	cmd.Stderr = complaint
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return end{}, 0, fmt.Errorf("starting the evaluation child: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return end{}, 0, fmt.Errorf("starting the evaluation child: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return end{}, 0, fmt.Errorf("starting the evaluation child: %w", err)
	}
	slow := false
	clock := time.AfterFunc(e.opts.Wall, func() { cmd.Process.Kill() })
	abandon := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	sent := make(chan error, 1)
	go func() { sent <- send(stdin, req, units) }()

	n, why := 0, end{}
	var fault error
	for n < len(units) {
		var r result
		size, err := readFrame(stdout, e.opts.Output, &r)
		if !clock.Stop() {
			slow = true
		}
		if size > e.opts.Output {
			why = end{limit: "output"}
			break
		}
		if err != nil {
			break // the child is gone
		}
		clock.Reset(e.opts.Wall)
		if r.Stopped != "" {
			why = end{limit: r.Stopped}
			break
		}
		if r.Dir != units[n].Dir {
			fault = fmt.Errorf("the evaluation child answered for %q instead of %q", r.Dir, units[n].Dir)
			break
		}
		if fault = got(n, r); fault != nil {
			break
		}
		n++
	}
	clock.Stop()
	abandon()
	if fault != nil || why.limit == "output" {
		cmd.Process.Kill()
	}
	stdin.Close() // the child leaves when its parent no longer cares
	unsent := <-sent
	waited := cmd.Wait()
	var unreadable *readError
	switch {
	case ctx.Err() != nil:
		return why, n, ctx.Err()
	case fault != nil:
		return why, n, fault
	case errors.As(unsent, &unreadable):
		return why, n, unreadable.err
	case n == len(units) || why.limit != "":
		return why, n, nil
	case slow:
		return why, n, fmt.Errorf("evaluating %s: no answer within %s, although it may use only %s of processor time; is this machine overloaded?",
			name(units[n].unit), e.opts.Wall, e.opts.CPU)
	}
	var exit *exec.ExitError
	said := complaint.String()
	switch {
	case errors.As(waited, &exit) && exit.String() == "signal: killed":
		return why, n, fmt.Errorf("evaluating %s: the child was killed from outside; has this machine run out of memory?", name(units[n].unit))
	case errors.As(waited, &exit) && exit.ExitCode() == exitProtocol:
		return why, n, fmt.Errorf("the evaluation child gave up: %s", clip(said))
	case strings.Contains(said, "out of memory") || strings.Contains(said, "cannot allocate memory"):
		why.limit = "heap"
	case strings.Contains(said, "stack exceeds"):
		why.limit = "depth"
	default:
		line, _, _ := strings.Cut(said, "\n")
		why.detail = strings.TrimSpace(fmt.Sprintf("%v %s", waited, clip(line)))
	}
	return why, n, nil
}

// stopped makes the result of a unit that ended its child.
func (e *Evaluator) stopped(u directory, why end) result {
	f := diag.Finding{ID: diag.Runaway, Pos: diag.Pos{File: u.blobs[0].name},
		Hint: "look for list.Range, for loops in for loops, strings or structs that double themselves, and disjunctions of structs"}
	if len(u.blobs) > 1 {
		f.Pos.File = u.Dir
	}
	which := name(u.unit)
	switch why.limit {
	case "cpu":
		f.Message = fmt.Sprintf("the evaluation of %s takes more than %s of processor time and was stopped", which, e.opts.CPU)
	case "heap":
		f.Message = fmt.Sprintf("the evaluation of %s takes more than %d MiB of memory and was stopped", which, e.opts.Heap>>20)
	case "output":
		f.Message = fmt.Sprintf("%s evaluates to more than %d MiB", which, e.opts.Output>>20)
	case "depth":
		f.Message = fmt.Sprintf("the evaluation of %s nests too deeply and was stopped", which)
	default:
		f.ID = diag.EvalCrashed
		f.Message = fmt.Sprintf("the evaluation of %s crashed: %s", which, why.detail)
		f.Hint = "this is a fault of Heddle or of CUE, brought out by these files; please report it with them"
	}
	return result{Dir: u.Dir, Findings: diag.List{f}}
}

// name is what messages call a unit.
func name(u unit) string {
	if u.Dir == "" {
		return meshFile
	}
	return u.Dir + "/"
}

// tail keeps the first bytes that a child says on standard error: a Go program that dies names the reason first.
type tail struct{ b bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	const limit = 4 << 10
	if room := limit - t.b.Len(); room > 0 {
		t.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (t *tail) String() string { return t.b.String() }

var _ io.Writer = (*tail)(nil)
