package policy

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// large is a repository of namespaces × services.
func large(namespaces, services int) map[string][]byte {
	files := map[string][]byte{}
	for n := range namespaces {
		ns := fmt.Sprintf("ns-%02d", n)
		files["services/"+ns+"/ns.cue"] = fmt.Appendf(nil, "package policy\n\nnamespaces: %q: defaults: timeout: \"10s\"\n", ns)
		for s := range services {
			files[fmt.Sprintf("services/%s/svc-%02d.cue", ns, s)] = fmt.Appendf(nil, `package policy

import "github.com/heddle-mesh/heddle/schema/v1alpha1"

services: %q: "svc-%02d": v1alpha1.#Service & {
	ports: http: {port: 8080, protocol: "http1"}
	allow: gateway: from: [{service: "%s/svc-%02d"}]
	allow: admins: {from: [{identity: "spiffe://shop.example/ns/ops/sa/console"}], routes: ["admin"]}
	httpRoutes: admin: {port: "http", match: [{path: prefix: "/admin"}], timeout: "2s"}
	httpRoutes: cart: {
		port: "http", match: [{path: prefix: "/cart"}]
		backends: [{service: "%s/svc-%02d", weight: 90}, {service: "%s/svc-00", weight: 10}]
	}
}
`, ns, s, ns, (s+1)%services, ns, s, ns)
		}
	}
	return repository(files)
}

// cpu is the processor time of this process and of its children that were waited for.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var sum time.Duration
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var r syscall.Rusage
		if err := syscall.Getrusage(who, &r); err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	return sum
}

// BenchmarkOneChange is one changed file among 1,000 services in 50 namespaces; cpu-ms is processor time with the
// child's, cold-cpu-ms that of the first load of everything.
func BenchmarkOneChange(b *testing.B) {
	files := large(50, 20)
	e := New(Options{})
	before := cpu(b)
	load := func() {
		doc, findings, err := e.LoadFiles(b.Context(), files, "")
		if err != nil || len(findings) > 0 || len(doc.Policy.Services) != 50 {
			b.Fatal(findings, err)
		}
	}
	load()
	cold := float64(cpu(b)-before) / 1e6
	const changed = "services/ns-25/svc-10.cue"
	base := string(files[changed])
	before = cpu(b)
	n := 0
	for b.Loop() {
		n++
		files[changed] = []byte(strings.Replace(base, `"2s"`, fmt.Sprintf(`"%ds"`, n), 1))
		load()
	}
	b.ReportMetric(float64(cpu(b)-before)/1e6/float64(n), "cpu-ms")
	b.ReportMetric(cold, "cold-cpu-ms")
}

// BenchmarkNoChange is a commit that touches no policy.
func BenchmarkNoChange(b *testing.B) {
	files := large(50, 20)
	e := New(Options{})
	for b.Loop() {
		if _, findings, err := e.LoadFiles(b.Context(), files, ""); err != nil || len(findings) > 0 {
			b.Fatal(findings, err)
		}
	}
}
