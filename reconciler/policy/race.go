//go:build race

package policy

// raceEnabled: the race detector needs more address space than any cap leaves it.
const raceEnabled = true

// childEnv keeps the race detector from sleeping for a second at the end of each child.
var childEnv = []string{"GORACE=atexit_sleep_ms=0"}
