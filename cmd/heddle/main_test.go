package main

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/heddle-mesh/heddle/reconciler/policy"
)

// The test binary is heddle when a script calls it so, and the evaluation child when heddle starts itself as one.
func TestMain(m *testing.M) {
	policy.MaybeRunChild()
	testscript.Main(m, map[string]func(){"heddle": main})
}

var update = flag.Bool("update", false, "rewrite what the scripts compare with")

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       *update,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// commit FILE sets COMMIT to what the file holds.
			"commit": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) != 1 {
					ts.Fatalf("usage: commit FILE")
				}
				ts.Setenv("COMMIT", strings.TrimSpace(ts.ReadFile(args[0])))
			},
		},
		Setup: func(e *testscript.Env) error {
			// Scripts say themselves which settings they have.
			for _, name := range []string{"HEDDLE_STATE", "NO_COLOR", "CLICOLOR_FORCE", "LANG", "LC_ALL", "LC_CTYPE"} {
				e.Setenv(name, "")
			}
			e.Setenv("HEDDLE_CACHE", "off")         // there is no home to keep anything in
			e.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector sleeps for a second at every exit otherwise
			e.Vars = append(e.Vars, "PATH="+os.Getenv("PATH"))
			return nil
		},
	})
}
