package ci_test

import (
	"regexp"
	"strings"
	"testing"
)

// TestREADME follows the README as a newcomer does: its first change, command by command, with the outcome that it promises.
func TestREADME(t *testing.T) {
	readme := string(read(t, template, "README.md"))
	tools := []string{requireCUE(t, pinned), heddle(t)}
	dir := copied(t)
	do := func(script string) (string, error) { t.Helper(); return shell(t, dir, script, nil, tools...) }
	must := func(script string) string {
		t.Helper()
		out, err := do(script)
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		return out
	}
	must("git init -q -b main && git add -A && git commit -q -m policy && git checkout -q -b change")

	blocks := regexp.MustCompile("(?s) *```sh\n(.*?)```").FindAllStringSubmatch(readme, -1)
	if len(blocks) != 2 {
		t.Fatalf("the README has %d blocks of commands; this test knows two", len(blocks))
	}
	commands := func(block string) (out []string) {
		for line := range strings.Lines(block) {
			command, _, _ := strings.Cut(line, "  #")
			if out = append(out, strings.TrimSpace(command)); out[len(out)-1] == "" {
				out = out[:len(out)-1]
			}
		}
		return out
	}
	for _, command := range commands(blocks[0][1]) {
		if !strings.HasPrefix(command, "go install ") { // TestVersions says of what
			must(command)
		}
	}

	// The rule that it has the reader write, beside the one that it names.
	rule := regexp.MustCompile(`(?m)^ +(deny: web: .*)$`).FindStringSubmatch(readme)
	if rule == nil {
		t.Fatal("the README shows no rule to write")
	}
	const batch = `	deny: batch: from: [{identity: "spiffe://shop.example/ns/shop/sa/batch"}]` + "\n"
	edit(t, dir, "services/payments/gateway.cue", batch, batch+"\t"+rule[1]+"\n")
	checks := commands(blocks[1][1])
	if len(checks) < 3 || !strings.HasPrefix(checks[len(checks)-1], "heddle check") {
		t.Fatalf("the checks of the README: %q", checks)
	}
	for _, command := range checks[:len(checks)-1] {
		must(command)
	}
	const promise = "any service reads receipts"
	if out, err := do(checks[len(checks)-1]); err == nil || !strings.Contains(out, promise) || !strings.Contains(readme, "`"+promise+"`") {
		t.Errorf("the promise that the README says is broken: %v\n%s", err, out)
	}
	edit(t, dir, "tests/expectations.cue", `	path:   "/receipts/7"
	expect: "allow"
	route:  "receipts"`, `	path:   "/receipts/7"
	expect: "deny"`)
	must("git commit -q -a -m 'No receipts for the front end'") // by the hook
	if out := must("heddle plan --from main"); !strings.Contains(out, "shop/web") || !strings.Contains(out, "payments/gateway") {
		t.Errorf("the plan does not say who may no longer:\n%s", out)
	}
	if out, _ := do("heddle explain shop/web payments/gateway GET /receipts/7"); !strings.Contains(out, "services/payments/gateway.cue:") {
		t.Errorf("explain does not say which line denies:\n%s", out)
	}

	// What it says to add and to look at.
	ran := 0
	for _, command := range regexp.MustCompile("`(heddle policy (?:new|show|explain) [^`]*)`").FindAllStringSubmatch(readme, -1) {
		must(command[1])
		ran++
	}
	if ran < 5 {
		t.Errorf("the README names %d commands of heddle policy; are they still marked as such?", ran)
	}
	must("cue vet -c ./... && heddle check --all-envs")

	// Every other command that it names is one.
	for _, m := range regexp.MustCompile("`heddle ([a-z]+(?: [a-z]+)?)").FindAllStringSubmatch(readme, -1) {
		if out, err := do("heddle " + m[1] + " --help"); err != nil {
			t.Errorf("heddle %s: %v\n%s", m[1], err, out)
		}
	}
}
