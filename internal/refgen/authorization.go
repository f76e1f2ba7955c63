package main

import (
	"fmt"
	"strings"

	"github.com/heddle-mesh/heddle/schema/decide"
)

// authorization prints the rule algebra from the tables that the tests of schema/decide hold the decisions to.
func authorization(string) (string, error) {
	var b strings.Builder
	b.WriteString("# How rules decide\n\n" + note)
	b.WriteString("Requirements inside a rule are AND, the elements of a list are OR, and so are rules. " +
		"The same code decides in `heddle check`, `heddle plan`, `heddle explain` and in the sidecar; " +
		"the tables are data in `schema/decide`, and its tests hold the code to every row.\n\n" +
		"## The truth table\n\n" +
		"`deny` and `allow` are what the enforced rules of that kind on the port say to a request: *none* exist, some exist and are " +
		"*unmatched*, those that would match have *ended* (`until`), or one has *matched*. `inboundPolicy` is the port's default in force. " +
		"Audit rules, and rules with `enforce: false`, change no row: they are recorded. An empty cell stands for everything.\n\n" +
		"| deny | allow | inboundPolicy | caller | address | verdict | decided by | |\n|---|---|---|---|---|---|---|---|\n")
	for _, r := range decide.TruthTable {
		verdict := "deny"
		if r.Allowed {
			verdict = "**allow**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s |\n", cell(r.Deny, ""), cell(r.Allow, ""), cell(r.Mode, "`"),
			cell(r.Caller, ""), cell(r.Place, ""), verdict, r.By, flow(r.Why))
	}
	b.WriteString("\n## What cannot be known\n\n" +
		"Where a request does not tell what a condition asks for, the condition fails in an allow rule and holds in a deny rule, " +
		"unless its absence is an answer. Rules with `enforce: false` count as what they would be.\n\n" +
		"| condition | where | in allow | in deny | in audit | |\n|---|---|---|---|---|---|\n")
	holds := map[bool]string{true: "holds", false: "fails"}
	for _, m := range decide.MissingTable {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", m.Condition, flow(m.Where), holds[m.Allow], holds[m.Deny], holds[m.Audit], flow(m.Why))
	}
	return b.String(), nil
}

// cell joins the values of a row; quote stands around each.
func cell[T ~string](values []T, quote string) string {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = quote + string(v) + quote
	}
	return strings.Join(words, ", ")
}
