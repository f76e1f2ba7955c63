//go:build !race

package policy

const raceEnabled = false

// childEnv is empty: a child has no use for an environment.
var childEnv = []string{}
