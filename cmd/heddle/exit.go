package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/published"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/terminal"
	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/internal/operator"
	"github.com/heddle-mesh/heddle/internal/releasedir"
)

// Exit codes. They are the same for every output format.
const (
	exitOK       = 0
	exitProblems = 1  // it looked, and found problems; or a denial, for `heddle explain`
	exitUsage    = 2  // the command line is wrong
	exitNoLook   = 3  // it could not look: a program does not answer, an input could not be read
	exitDenied   = 4  // the system or the program refused this user
	exitTimeout  = 5  // it waited in vain
	exitChanges  = 10 // something changes, for `heddle plan --detailed-exitcode`
)

// usageError is a command line that no command could run.
type usageError struct {
	err     error
	command string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// usagef is for a command that finds its arguments wrong by itself.
func usagef(format string, args ...any) error { return &usageError{err: fmt.Errorf(format, args...)} }

// errTimeout is a wait that ended in vain.
var errTimeout = errors.New("timed out")

// errNoLook marks what could not be looked at; see [noLook].
var errNoLook = errors.New("could not look")

// noLook marks an error as one of the world: an input could not be read, a program could not run.
func noLook(err error) error { return &unseen{err} }

type unseen struct{ error }

func (e *unseen) Unwrap() error        { return e.error }
func (e *unseen) Is(target error) bool { return target == errNoLook }

// code is the one place that maps errors to exit codes.
func code(err error) int {
	var usage *usageError
	var refusal *operator.Error
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, errProblems):
		return exitProblems
	case errors.Is(err, errChanges):
		return exitChanges
	case errors.Is(err, errTimeout):
		return exitTimeout
	case errors.Is(err, fs.ErrPermission):
		return exitDenied
	case errors.As(err, &refusal) && (refusal.Status == http.StatusUnauthorized || refusal.Status == http.StatusForbidden):
		return exitDenied
	case errors.Is(err, operator.ErrUnreachable), errors.Is(err, errNoLook), errors.Is(err, fs.ErrNotExist),
		errors.Is(err, context.DeadlineExceeded), // a program took the question, and did not answer it
		errors.Is(err, releasedir.ErrNone), errors.Is(err, published.ErrNone):
		return exitNoLook
	}
	return exitProblems
}

// hint is what to do next about an error.
func hint(err error) string {
	var h *hinted
	var refusal *operator.Error
	var usage *usageError
	switch {
	case errors.As(err, &h):
		return h.hint
	case errors.As(err, &refusal) && refusal.Hint != "":
		return refusal.Hint
	case errors.As(err, &usage) && usage.command != "":
		return usage.command + " --help"
	case errors.Is(err, context.DeadlineExceeded):
		return "look at its log; if it hangs, restart it"
	case errors.Is(err, fs.ErrPermission):
		return "run the command as the user that runs the mesh"
	case errors.Is(err, durable.ErrLocked):
		return "stop the other one, or use another --state"
	case errors.Is(err, operator.ErrUnreachable), errors.Is(err, published.ErrNone):
		return "start a mesh with `heddle up`, or say where its state is: --state DIR or HEDDLE_STATE"
	}
	return ""
}

// report prints an error on stderr, as JSON where JSON was asked for, and returns the exit code.
func (c *cli) report(err error) int {
	exit := code(err)
	if errors.Is(err, errProblems) || errors.Is(err, errChanges) {
		return exit
	}
	message, what := err.Error(), hint(err)
	if c.output == "json" || c.output == "jsonl" {
		_ = json.NewEncoder(c.stderr).Encode(struct { // stderr is the last place to say anything
			APIVersion string `json:"apiVersion"`
			Error      string `json:"error"`
			Hint       string `json:"hint,omitempty"`
			Code       int    `json:"code"`
		}{apiVersion, message, what, exit})
		return exit
	}
	fmt.Fprintf(c.stderr, "%s %s\n", c.err.Paint(terminal.Trouble, "error:"), message)
	if what != "" {
		fmt.Fprintf(c.stderr, "  try: %s\n", what)
	}
	return exit
}
