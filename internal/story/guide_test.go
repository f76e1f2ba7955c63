package story

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The examples of the guide to policy are one repository, together with what they name and do not show. It passes
// `heddle check` in both of its environments, so that nobody copies what is refused.
func TestGuideToPolicy(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "guide", "writing-policy.md"))
	if err != nil {
		t.Fatal(err)
	}
	const head = "package policy\n\nimport \"github.com/heddle-mesh/heddle/schema/v1alpha1\"\n\n"
	files := map[string]string{"services/pay/invoices.cue": head + `services: pay: "invoices": v1alpha1.#Service & {
	ports: http: {port: 80, protocol: "http1"}
	allow: web: from: [{service: "shop/web"}]
}
`, "services/shop/rest.cue": head + `services: shop: "api-v2": v1alpha1.#Service & {
	ports: http: {port: 80, protocol: "http1"}
	allow: api: from: [{service: "shop/web"}, {service: "pay/invoices"}]
}
services: shop: "ledger": v1alpha1.#Service & {
	ports: tcp: {port: 9000, protocol: "tcp"}
	allow: api: from: [{service: "shop/api"}]
}
`, "mesh.cue": head}
	blocks := regexp.MustCompile("(?s)```cue\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	if len(blocks) < 6 {
		t.Fatalf("the page has %d examples; are they still marked as cue?", len(blocks))
	}
	for i, b := range blocks {
		text := b[1]
		if strings.HasPrefix(text, "mesh:") || strings.HasPrefix(text, "_env:") {
			files["mesh.cue"] += text
			continue
		}
		if !strings.HasPrefix(text, "package") {
			text = head + text
		}
		files[fmt.Sprintf("services/shop/example-%d.cue", i)] = text
	}

	heddle, dir := filepath.Join(bin, "heddle"), filepath.Join(t.TempDir(), "policy")
	if out, err := exec.Command(heddle, "policy", "init", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, what := range []string{"services", "external", "tests"} { // the template's own
		if err := os.RemoveAll(filepath.Join(dir, what)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		at := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, env := range []string{"", "staging"} {
		if out, err := exec.Command(heddle, "check", dir, "--env", env).CombinedOutput(); err != nil ||
			!strings.Contains(string(out), "5 services checked, nothing found") {
			t.Errorf("environment %q: %v\n%s", env, err, out)
		}
	}
}
