package reconciler

import (
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/schema/diag"
)

const (
	dev   = "services/dev/tool.cue"
	pci   = "services/pci/card.cue"
	tests = "tests/card.cue"
)

func pciFile(callers string) string {
	return "package policy\n\nservices: pci: card: {\n\tports: http: {port: 80, protocol: \"http1\"}\n\tallow: callers: from: [" + callers + "]\n}\n"
}

const (
	devFile   = "package policy\n\nservices: dev: tool: ports: http: {port: 80, protocol: \"http1\"}\n"
	shopCalls = `{service: "shop/web"}`
	invariant = "\ninvariants: \"dev never reaches pci\": never: {from: {namespace: \"dev\"}, to: {namespace: \"pci\"}}\n"
	expects   = "package policy\n\ntests: \"the shop charges\": {from: \"shop/web\", to: \"pci/card\", method: \"GET\", path: \"/\", expect: \"allow\"}\n"
)

// What a repository says of itself must be so, and the applied release's word counts beside the commit's own.
func TestClaims(t *testing.T) {
	r := newRig(t)
	good := files{"mesh.cue": meshFile("example.org") + invariant, web: webFile(80), dev: devFile, pci: pciFile(shopCalls), tests: expects}
	first := r.commit("Start", good)
	r.start()
	r.await(first, Pushing)

	rejected := func(subject string, fs files, id, file, says string) {
		t.Helper()
		commit := r.commit(subject, fs)
		s := r.await(commit, Rejected)
		if s.Applied == nil || s.Applied.Commit != first {
			t.Errorf("%s: it replaced what serves: %+v", subject, s.Applied)
		}
		for _, f := range s.Observed.Findings {
			if f.ID == id && f.Pos.File == file && strings.Contains(f.Message, says) {
				return
			}
		}
		t.Errorf("%s: no %s in %s that says %q: %v", subject, id, file, says, s.Observed.Findings)
	}
	rejected("Forget the shop", files{pci: pciFile(`{service: "pci/card"}`)}, diag.TestFailed, tests, "")
	rejected("Let a developer in", files{pci: pciFile(shopCalls + `, {service: "dev/tool"}`)}, diag.InvariantViolated, "mesh.cue", "dev")
	both := r.commit("The same, and drop the invariant", files{"mesh.cue": meshFile("example.org")})
	if s := r.await(both, Held); s.Observed.Accept != AcceptInvariants || !strings.Contains(s.Observed.Reason, pci+":5") ||
		!strings.Contains(s.Observed.Reason, "dev never reaches pci") || s.Applied.Commit != first {
		t.Errorf("held for %q: %s", s.Observed.Accept, s.Observed.Reason)
	}

	// In commits of their own both pass, one after the other.
	r.await(r.commit("Drop the invariant", files{pci: pciFile(shopCalls)}), Pushing)
	// A warning stops nothing and is told.
	warned := r.commit("Offer what nobody may call", files{"services/dev/idle.cue": "package policy\n\nservices: dev: idle: ports: http: {port: 80, protocol: \"http1\"}\n"})
	if s := r.await(warned, Pushing); !slices.ContainsFunc(s.Observed.Warnings, func(f diag.Finding) bool {
		return f.ID == diag.NobodyCalls && f.Pos.File == "services/dev/idle.cue"
	}) {
		t.Errorf("warnings: %v", s.Observed.Warnings)
	}
	r.await(r.commit("Now let a developer in", files{pci: pciFile(shopCalls + `, {service: "dev/tool"}`)}), Pushing)

	// A revert of what brought an invariant breaks and drops it; an operator may say so.
	closed := r.commit("Close it again, for good", files{"mesh.cue": meshFile("example.org") + invariant, pci: pciFile(shopCalls)})
	r.await(closed, Pushing)
	r.git("revert", "--no-edit", "HEAD")
	revert := r.git("rev-parse", "HEAD")
	r.await(revert, Held)
	if err := r.resume(ResumeRequest{Accept: AcceptInvariants, Commit: revert}); err != nil {
		t.Fatal(err)
	}
	r.await(revert, Pushing)
}

// Delegating and using it at once is held; in two commits it passes.
func TestFences(t *testing.T) {
	r := newRig(t)
	first := r.commit("Start", files{"mesh.cue": meshFile("example.org"), web: webFile(80)})
	r.start()
	r.await(first, Pushing)

	delegate := func(namespaces string) string {
		return meshFile("example.org") + "\nmesh: sources: pay: {directory: \"payteam\", namespaces: [" + namespaces + "]}\n"
	}
	card := strings.Replace(pciFile(shopCalls), "pci: card", "pay: card", 1)
	held := r.commit("Delegate, and write", files{"mesh.cue": delegate(`"pay"`), "payteam/services/pay/card.cue": card})
	if s := r.await(held, Held); s.Observed.Accept != AcceptFences || !strings.Contains(s.Observed.Reason, "mesh.sources.pay") {
		t.Errorf("held for %q: %s", s.Observed.Accept, s.Observed.Reason)
	}
	r.await(r.commit("Only delegate", files{"payteam/services/pay/card.cue": ""}), Pushing)
	used := r.commit("Write", files{"payteam/services/pay/card.cue": card})
	r.await(used, Pushing)
	wider := r.commit("Widen, with policy there", files{"mesh.cue": delegate(`"pay", "pay-*"`)})
	r.await(wider, Held)
	if err := r.resume(ResumeRequest{Accept: AcceptFences, Commit: wider}); err != nil {
		t.Fatal(err)
	}
	r.await(wider, Pushing)
}
