package policy

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"
)

// ChildName is the name (argv[0]) by which a process knows that it is an evaluation child.
const ChildName = "heddle-policy-eval"

// Exit statuses of the child, apart from 0 and from 2, which is how the Go runtime ends a program that crashed.
const (
	exitLimit    = 7 // a limit ended it, and it has said which
	exitProtocol = 8 // it could not read the request or send a result
)

// hooked remembers that the program can be its own child. Without it a child would run the whole program again, and
// that would start children of its own.
var hooked atomic.Bool

// MaybeRunChild runs the evaluation child and exits, if this process was started as one. Every program that uses an
// [Evaluator] calls it first thing in main, and every test binary in TestMain, since the child is the same executable.
func MaybeRunChild() {
	if len(os.Args) > 0 && os.Args[0] == ChildName {
		os.Exit(childMain())
	}
	hooked.Store(true)
}

// childMain evaluates what its parent sends over standard input and answers over standard output, unit by unit, under
// limits that it puts on itself before it reads anything. It opens no file and no connection. It returns the exit
// status.
//
// A unit that hits a limit ends the process: evaluation cannot be cancelled. The parent sees which unit it was, since
// answers come in order, and starts another child behind it.
func childMain() int {
	confine()
	in := bufio.NewReader(os.Stdin)
	var req request
	if _, err := readFrame(in, maxRequest, &req); err != nil {
		fmt.Fprintln(os.Stderr, "reading the request:", err)
		return exitProtocol
	}
	units := make(chan unit)
	go func() {
		defer close(units)
		for range req.Units {
			var u unit
			if _, err := readFrame(in, maxRequest, &u); err != nil {
				os.Exit(0) // the parent is gone, or cannot say more
			}
			units <- u
		}
		// The parent keeps the pipe open as long as it cares; when it is gone, so is the reason to work.
		io.Copy(io.Discard, in)
		os.Exit(0)
	}()
	if req.Cap {
		capAddressSpace()
	}
	out := &answers{w: os.Stdout}
	guard := watch(&req, out)
	for range req.Units {
		u := <-units
		guard.begin(u)
		r := evaluate(&req, u)
		guard.end()
		if err := out.send(r); err != nil {
			fmt.Fprintln(os.Stderr, "sending the result:", err)
			return exitProtocol
		}
		r = result{}
		tidy()
	}
	return 0
}

// answers serialises what the evaluation and the guard say.
type answers struct {
	mu sync.Mutex
	w  io.Writer
}

func (a *answers) send(r result) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return writeFrame(a.w, r)
}

// guard ends the process when a unit takes too much.
type guard struct {
	req *request
	out *answers

	mu   sync.Mutex // guards what follows
	unit string
	busy bool
}

// heapObjects counts bytes of live and not yet collected objects; a single huge allocation shows as soon as it is made.
const heapObjects = "/memory/classes/heap/objects:bytes"

// watchEvery is how often memory is looked at. In that time one core can write some 20 MiB.
const watchEvery = 5 * time.Millisecond

func watch(req *request, out *answers) *guard {
	g := &guard{req: req, out: out}
	// One directory makes some 20 MiB, of which nothing is left when the next one begins: see tidy.
	debug.SetGCPercent(1600)
	debug.SetMemoryLimit(req.HeapBytes / 2)
	go func() {
		sample := []metrics.Sample{{Name: heapObjects}}
		for range time.Tick(watchEvery) {
			metrics.Read(sample)
			if sample[0].Value.Uint64() > uint64(req.HeapBytes) {
				g.stop("heap")
			}
		}
	}()
	onCPULimit(func() { g.stop("cpu") })
	return g
}

func (g *guard) begin(u unit) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.unit, g.busy = u.Dir, true
	limitCPU(g.req.CPUSeconds)
}

func (g *guard) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.busy = false
}

// untidy is how many bytes of objects are collected between two units. With as much again for the next unit a child
// stays below where the collector would begin by itself, in the middle of an evaluation, when most of it is in use.
const untidy = 32 << 20

// tidy collects when there is nothing to keep, which costs a tenth of what it costs within an evaluation.
func tidy() {
	sample := []metrics.Sample{{Name: heapObjects}}
	if metrics.Read(sample); sample[0].Value.Uint64() > untidy {
		runtime.GC()
	}
}

func (g *guard) stop(limit string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.busy {
		return
	}
	g.out.send(result{Dir: g.unit, Stopped: limit})
	os.Exit(exitLimit)
}
