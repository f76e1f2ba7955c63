//go:build race

package policy

// raceEnabled: the race detector needs more address space than any cap leaves it.
const raceEnabled = true
