package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/reconciler/plan"
)

// Every line of a plan that has a witness is confirmed by `heddle explain` on both sides: it judges or routes that call
// differently. Lines about a service's own door are where a caller's routes do not hide it, else with --direct.
func TestExplainConfirmsWitnesses(t *testing.T) {
	git, err := exec.LookPath("git")
	if err != nil {
		t.Skip("there is no git")
	}
	dir := filepath.Join(t.TempDir(), "repo")
	run := func(args ...string) {
		t.Helper()
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "GIT_AUTHOR_NAME=ann", "GIT_AUTHOR_EMAIL=ann@example.org", "GIT_COMMITTER_NAME=ann", "GIT_COMMITTER_EMAIL=ann@example.org")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	const head = "package policy\n\nimport \"github.com/heddle-mesh/heddle/schema/v1alpha1\"\n\n"
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "services", "shop", "all.cue"), []byte(head+text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if r := heddle(t, filepath.Dir(dir), nil, "policy", "init", "repo"); r.code != exitOK {
		t.Fatalf("%+v", r)
	}
	for _, name := range []string{"services", "external", "egress", "tests"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "services", "shop"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "mesh.cue"), []byte(head+"v1alpha1.#Repository\nmesh: v1alpha1.#Mesh & {trustDomain: \"shop.example\"}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const rest = `
services: shop: "web": v1alpha1.#Service & {
	ports: http: {port: 80, protocol: "http1", mtls: "permissive"}
	allow: all: from: [{unauthenticated: true}]
}
services: shop: "next": v1alpha1.#Service & {
	ports: http: {port: 80, protocol: "http1"}
	allow: web: from: [{service: "shop/web"}]
}
`
	write(rest + `
services: shop: "api": v1alpha1.#Service & {
	ports: http: {port: 80, protocol: "http1"}
	ports: raw: {port: 90, protocol: "tcp"}
	allow: web: {from: [{service: "shop/web"}], ports: ["http"], routes: ["items", "old"]}
	allow: raw: {from: [{service: "shop/web"}], ports: ["raw"]}
	httpRoutes: items: {match: [{path: prefix: "/items", method: "GET"}], backends: [{service: "shop/api", weight: 100}]}
	httpRoutes: old: match: [{path: prefix: "/old", headers: "x-old": exact: "1"}]
	httpRoutes: rest: match: [{path: exact: "/"}]
}
`)
	run(git, "init", "--quiet", "--initial-branch=main", dir)
	run(git, "-C", dir, "add", "--all")
	run(git, "-C", dir, "commit", "--quiet", "-m", "Before")
	write(rest + `
services: shop: "api": v1alpha1.#Service & {
	ports: http: {port: 80, protocol: "http1", mtls: "permissive"}
	ports: raw: {port: 90, protocol: "tcp"}
	allow: web: {from: [{service: "shop/web"}], ports: ["http"], routes: ["items", "rest"]}
	allow: raw: {from: [{service: "shop/web"}, {service: "shop/next"}], ports: ["raw"]}
	deny: next: {from: [{service: "shop/next"}], ports: ["http"]}
	allow: health: {from: [{unauthenticated: true}], ports: ["http"], routes: ["health"]}
	httpRoutes: items: {match: [{path: prefix: "/items", method: "GET"}], backends: [{service: "shop/api", weight: 60}, {service: "shop/next", weight: 40}]}
	httpRoutes: rest: match: [{path: prefix: "/r"}]
	httpRoutes: health: match: [{path: exact: "/health"}]
}
`)
	r := heddle(t, dir, nil, "plan", ".", "-o", "json")
	if r.code != exitOK {
		t.Fatalf("%+v", r)
	}
	var p struct{ Items []plan.Line }
	if err := json.Unmarshal([]byte(r.stdout), &p); err != nil {
		t.Fatal(err)
	}
	type judged struct {
		Verdict string
		Because struct{ Reason, Rule string }
		Route   *struct {
			ID       string
			Timeout  string
			Backends []struct {
				Service, Verdict string
				Weight           int
			}
		}
	}
	explain := func(args []string, more ...string) string {
		t.Helper()
		r := heddle(t, dir, nil, slices.Concat([]string{"explain"}, args, more, []string{"-o", "json"})...)
		if r.code != exitOK && r.code != exitProblems {
			return r.stderr // what does not exist on this side
		}
		var j judged
		if err := json.Unmarshal([]byte(r.stdout), &j); err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	confirmed, direct := 0, 0
	for i := range p.Items {
		l := &p.Items[i]
		if l.Witness == nil {
			continue
		}
		args := l.Witness.Args()
		if explain(args, "--dir", ".") != explain(args, "--rev", "main") {
			confirmed++
			continue
		}
		if l.Kind == plan.KindAccess && explain(args, "--direct", "--dir", ".") != explain(args, "--direct", "--rev", "main") {
			direct++
			continue
		}
		t.Errorf("%s: explain sees no difference: heddle explain %s", lineText(l), strings.Join(args, " "))
	}
	if confirmed < 5 || len(p.Items) < 6 {
		t.Errorf("%d witnesses were confirmed, %d of them at the door only, in %d lines\n%s", confirmed+direct, direct, len(p.Items), r.stdout)
	}
	t.Logf("%d lines, %d witnesses confirmed, %d more at the door", len(p.Items), confirmed, direct)
}
