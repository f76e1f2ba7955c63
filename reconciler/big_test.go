package reconciler

import (
	"runtime"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/bigpolicy"
	"github.com/heddle-mesh/heddle/reconciler/compile"
	"github.com/heddle-mesh/heddle/reconciler/plan"
	"github.com/heddle-mesh/heddle/reconciler/policy"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// big evaluates and compiles a repository that lies in memory, and keeps what it has evaluated.
type big struct {
	*testing.B
	eval     *policy.Evaluator
	compiled compile.Cache
	files    map[string][]byte
	opts     compile.Options
}

func newBig(b *testing.B, size bigpolicy.Size) *big {
	// The repository says more than this sidecar enforces; what is measured is the language.
	return &big{B: b, eval: policy.New(policy.Options{}), files: bigpolicy.Repository(size), opts: compile.Options{ProxyVersion: "any"}}
}

func (b *big) mesh() (*mesh.Mesh, mesh.Origins) {
	doc, findings, err := b.eval.LoadFiles(b.Context(), b.files, "")
	if err != nil || len(findings.Errors()) > 0 {
		b.Fatal(err, findings)
	}
	m, origins, findings := b.compiled.Compile(doc, b.opts)
	if m == nil {
		b.Fatal(findings)
	}
	return m, origins
}

// change edits one service, for the nth time.
func (b *big) change(n int) {
	b.files[bigpolicy.Path(7, 7)] = bigpolicy.Change(bigpolicy.Full, 7, 7, n+1)
}

// BenchmarkBigChange is the processor time from one changed service among 10,000 to a compiled mesh, children included.
func BenchmarkBigChange(b *testing.B) {
	r := newBig(b, bigpolicy.Full)
	r.mesh()
	runtime.GC()
	b.ResetTimer()
	before := cpu(b)
	for i := range b.N {
		r.change(i)
		r.mesh()
	}
	b.ReportMetric(float64((cpu(b)-before).Milliseconds())/float64(b.N), "cpu-ms/change")
}

// BenchmarkBigPlan is the processor time of the plan of one changed service among 10,000, whose other directories were
// evaluated before: from the files to the lines.
func BenchmarkBigPlan(b *testing.B) {
	r := newBig(b, bigpolicy.Full)
	was, origins := r.mesh()
	runtime.GC()
	b.ResetTimer()
	before := cpu(b)
	for i := range b.N {
		r.change(i)
		m, o := r.mesh()
		p := plan.Compare(&plan.Side{Mesh: was, Origins: origins}, &plan.Side{Mesh: m, Origins: o}, plan.Options{Now: time.Unix(0, 0)})
		if len(p.Lines) != 1 {
			b.Fatalf("%d lines, want one: %+v", len(p.Lines), p.Lines)
		}
	}
	b.ReportMetric(float64((cpu(b)-before).Milliseconds())/float64(b.N), "cpu-ms/plan")
}

// BenchmarkHeapOf500 is how much the heap grows over 500 changes of a repository of 1,000 services, in percent.
func BenchmarkHeapOf500(b *testing.B) {
	r := newBig(b, bigpolicy.Size{Namespaces: 50, Services: 20})
	heap := func(from, to int) float64 {
		for n := from; n < to; n++ {
			r.change(n)
			r.mesh()
		}
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	for range b.N {
		warm := heap(0, 50) // as many as are remembered, and more
		b.ReportMetric((heap(50, 550)/warm-1)*100, "heap-growth-%")
	}
}
