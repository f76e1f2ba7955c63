package compile

import (
	"fmt"
	"regexp/syntax"
	"strings"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// This file bounds a compilation. What comes here is bounded as text, but not in what it asks for: rules and routes are
// compared with each other, and a caller may stand for thousands of identities. The bounds are counts, never times, so
// that the same document has the same outcome on every machine. They are far above what people write; whoever meets one
// is told where, and the compilation ends there.
const (
	// maxFindings is how many rejecting findings are told of one document.
	maxFindings = 1000
	// maxRelated is how many further places one of them names.
	maxRelated = 50
	// maxHints is how many of them look for the name that was meant, which costs a look at all names.
	maxHints = 100
	// maxPorts, maxRules and maxRoutes are those of one service, rules and routes of all kinds together.
	maxPorts, maxRules, maxRoutes = 256, 2000, 2000
	// maxPath is how many bytes a path has that policy names, as the Gateway API bounds it, twice: what is proved of paths takes
	// a class for each element of each.
	maxPath = 2048
	// maxCallers is how many bytes of identities the rules and rate limits of one namespace may stand for.
	maxCallers = 64 << 20
	// maxSteps is how many conditions of rules, routes and egress entries of one namespace are compared: a second or two.
	maxSteps = 50_000_000
)

// tooMuch is what a compilation panics with at its bounds, and [bounded] recovers: from the depths of a comparison there is
// no other way out. The finding that says so is among the compiler's.
type tooMuch struct{}

// bounded does some compiling, and reports whether it came to its end.
func bounded(do func()) (done bool) {
	defer func() {
		switch stopped := recover(); stopped.(type) {
		case nil, tooMuch:
		default:
			panic(stopped)
		}
	}()
	do()
	return true
}

// stop ends the compilation with a last finding.
func (c *compiler) stop(at path, message, hint string) {
	c.findings.Add(diag.Finding{ID: diag.TooMuch, Path: string(at), Message: message, Hint: hint, Pos: c.pos(at)})
	c.failures++
	panic(tooMuch{})
}

// full ends the compilation when enough was found; at is where the next finding would be.
func (c *compiler) full(at path) {
	if c.failures >= maxFindings {
		c.stop(at, fmt.Sprintf("from here on nothing was looked at: %d findings are enough for one time", maxFindings), "mend the ones above first")
	}
}

// guesses reports whether it is still worth looking for what was meant by a name.
func (c *compiler) guesses() bool { return c.failures < maxHints }

// checkSize checks how much one service has, before anything of it is compared.
func (c *compiler) checkSize(s *service) {
	for _, n := range []struct {
		count, most int
		field, what string
	}{
		{len(s.src.Ports), maxPorts, "ports", "ports"},
		{len(s.src.Allow) + len(s.src.Deny) + len(s.src.Audit), maxRules, "allow", "rules"},
		{len(s.src.HttpRoutes) + len(s.src.GrpcRoutes) + len(s.src.TlsRoutes) + len(s.src.TcpRoutes), maxRoutes, "httpRoutes", "routes"},
	} {
		if n.count > n.most {
			c.stop(s.at, fmt.Sprintf("%s has %d %s; %d are the most", s.name, n.count, n.what, n.most),
				"join those that say the same, or make several services of it")
		}
	}
}

// compares is what it costs to compare two matches, in steps.
const compares = 16

const (
	// maxStates bounds a walk along a regular expression.
	maxStates = 2000
	// maxRemembered is how many regular expressions are remembered, of at most some 2 kB each.
	maxRemembered = 4096
)

// clip bounds what of an author's text stands in a finding.
func clip(s string) string {
	const most = 1000
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// spend counts comparisons on a namespace's account.
func (c *compiler) spend(at path, steps int) {
	ns := at.namespace()
	if c.steps[ns] += steps; c.steps[ns] > maxSteps {
		c.stop(at, fmt.Sprintf("the conditions of namespace %s are too many to compare with each other", ns),
			"let fewer rules, routes or egress entries say it, with shorter lists of paths, methods, headers and hosts")
	}
}

// callers counts identities on a namespace's account.
func (c *compiler) countCallers(at path, peers []mesh.Peer) {
	const each = 16 // what a caller takes besides its name
	ns := at.namespace()
	for i := range peers {
		c.callers[ns] += each + len(peers[i].Identity) + len(peers[i].Prefix) + len(peers[i].Suffix)
	}
	if c.callers[ns] > maxCallers {
		c.stop(at, fmt.Sprintf("the rules of namespace %s stand for too many identities", ns),
			"name callers by identityPrefix, or let fewer services declare identities of their own")
	}
}

// instructions is about how many instructions a regular expression has, at most a few more than most: repetitions are
// multiplied out before anything is built.
func instructions(re *syntax.Regexp, most int) int {
	n := 1
	switch re.Op {
	case syntax.OpLiteral:
		n = len(re.Rune)
	case syntax.OpRepeat:
		times := re.Max
		if times < 0 {
			times = re.Min + 1
		}
		return min(times*(1+instructions(re.Sub[0], most)), most)
	}
	for _, sub := range re.Sub {
		if n += instructions(sub, most); n > most {
			return most
		}
	}
	return n
}
