package policy

import (
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/bigpolicy"
)

// large is a repository of namespaces × services.
func large(namespaces, services int) map[string][]byte {
	return bigpolicy.Repository(bigpolicy.Size{Namespaces: namespaces, Services: services})
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

// live is the heap that is in use, after a collection.
func live() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// peak is the largest resident size that a process had, in MiB, of this one and of the largest child.
func peak() (self, child float64) {
	var r syscall.Rusage
	if b, err := os.ReadFile("/proc/self/status"); err == nil {
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				kib, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
				self = kib / 1024
			}
		}
	}
	if syscall.Getrusage(syscall.RUSAGE_CHILDREN, &r) == nil {
		child = float64(r.Maxrss) / 1024
	}
	return self, child
}

// benchOneChange is one changed file in a large repository; cpu-ms is processor time with the child's, cold-cpu-ms that of
// the first load of everything; document-MiB is what the evaluator and the document keep.
func benchOneChange(b *testing.B, size bigpolicy.Size) {
	files := bigpolicy.Repository(size)
	e := New(Options{})
	empty := live()
	before := cpu(b)
	load := func() {
		doc, findings, err := e.LoadFiles(b.Context(), files, "")
		if err != nil || len(findings) > 0 || len(doc.Policy.Services) != size.Namespaces {
			b.Fatal(findings, err)
		}
	}
	load()
	cold := float64(cpu(b)-before) / 1e6
	kept := live() - empty
	self, child := peak()
	before = cpu(b)
	n := 0
	for b.Loop() {
		n++
		files[bigpolicy.Path(size.Namespaces/2, size.Services/2)] = bigpolicy.Change(size, size.Namespaces/2, size.Services/2, n)
		load()
	}
	b.ReportMetric(float64(cpu(b)-before)/1e6/float64(n), "cpu-ms")
	b.ReportMetric(cold, "cold-cpu-ms")
	b.ReportMetric(kept, "kept-MiB")
	b.ReportMetric(self, "peak-MiB")
	b.ReportMetric(child, "child-peak-MiB")
}

// BenchmarkOneChange is 1,000 services in 50 namespaces.
func BenchmarkOneChange(b *testing.B) {
	benchOneChange(b, bigpolicy.Size{Namespaces: 50, Services: 20})
}

// BenchmarkOneChangeFull is the project's figure: 10,000 services.
func BenchmarkOneChangeFull(b *testing.B) { benchOneChange(b, bigpolicy.Full) }

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

// BenchmarkEvaluate is what the child does for one directory of twenty services, without its start.
func BenchmarkEvaluate(b *testing.B) {
	files := large(2, 20)
	given := unit{Dir: "services/team-001", Namespace: "team-001", Roots: namespaced, Above: []string{""}}
	for name, text := range files {
		if strings.HasPrefix(name, given.Dir+"/") {
			given.Files = append(given.Files, file{name, text})
		}
	}
	slices.SortFunc(given.Files, func(a, b file) int { return strings.Compare(a.Name, b.Name) })
	req := &request{Language: "v0.14.0", Shared: map[string][]file{"": {{meshFile, files[meshFile]}}}}
	b.ReportAllocs()
	for b.Loop() {
		if r := evaluate(req, given); len(r.Findings) > 0 || len(r.Values["services"]) == 0 {
			b.Fatal(r.Findings)
		}
	}
}
