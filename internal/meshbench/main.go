// Command meshbench measures what docs/performance.md says of a whole mesh, with the real binaries on this machine:
// `make bench`. Figures depend on the machine; the counts of failed requests do not.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/heddle-mesh/heddle/internal/bigpolicy"
	"github.com/heddle-mesh/heddle/internal/meshtest"
)

var (
	bin     = flag.String("bin", "bin", "directory with the binaries")
	only    = flag.String("only", "", "only the benches whose name holds this")
	rps     = flag.Int("rps", 500, "requests a second during disturbances")
	commits = flag.Int("commits", 100, "commits to time with 20 sidecars")
)

func main() {
	log.SetFlags(0)
	flag.Parse()
	b, err := filepath.Abs(*bin)
	if err != nil {
		log.Fatal(err)
	}
	*bin = b
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "FIGURE\tMEASURED\tGOAL")
	failed := false
	for _, bench := range []struct {
		name string
		run  func(io.Writer) error
	}{{"push", push}, {"lone", lone}, {"disturb", disturb}, {"thousand", thousand}, {"policy", policy}} {
		if !strings.Contains(bench.name, *only) {
			continue
		}
		if err := bench.run(w); err != nil {
			log.Printf("%s: %v", bench.name, err)
			failed = true
		}
		w.Flush()
	}
	if failed {
		os.Exit(1)
	}
}

func scratch() (string, func(), error) {
	dir, err := os.MkdirTemp("", "heddle-bench")
	return dir, func() { os.RemoveAll(dir) }, err
}

// example writes an example with n services, each with one workload.
func example(dir string, n int) error {
	type port struct{}
	type workload struct {
		Name    string          `json:"name"`
		Service string          `json:"service"`
		Run     []string        `json:"run"`
		Ports   map[string]port `json:"ports"`
	}
	var p struct {
		APIVersion string     `json:"apiVersion"`
		Workloads  []workload `json:"workloads"`
	}
	p.APIVersion = "heddle/v1"
	files := map[string]string{
		"policy/mesh.cue": "package policy\n\nimport \"github.com/heddle-mesh/heddle/schema/v1alpha1\"\n\nmesh: v1alpha1.#Mesh & {trustDomain: \"bench.example\"}\n",
	}
	for i := range n {
		name := fmt.Sprintf("s%02d", i)
		p.Workloads = append(p.Workloads, workload{"bench/" + name + "-1", "bench/" + name, []string{"shop", "api"}, map[string]port{"http": {}}})
		files["policy/services/bench/"+name+".cue"] = service("bench", name)
	}
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	files["processes.json"] = string(b)
	return write(dir, files)
}

func service(ns, name string) string {
	return fmt.Sprintf(`package policy

import "github.com/heddle-mesh/heddle/schema/v1alpha1"

services: %s: %q: v1alpha1.#Service & {
	ports: http: {port: 80, protocol: "http1"}
	allow: all: from: [{authenticated: true}]
	httpRoutes: all: {
		match: [{path: prefix: "/"}]
		timeout: "1s"
	}
}

workloads: %s: %q: v1alpha1.#Workload & {service: %q}
`, ns, name, ns, name+"-1", name)
}

func write(dir string, files map[string]string) error {
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// push times commit → acknowledged by all of 20 sidecars, and looks at what an idle sidecar costs.
func push(w io.Writer) error {
	dir, clean, err := scratch()
	if err != nil {
		return err
	}
	defer clean()
	if err := example(filepath.Join(dir, "example"), 20); err != nil {
		return err
	}
	m, err := meshtest.Start(*bin, filepath.Join(dir, "state"), nil, filepath.Join(dir, "example"))
	if err != nil {
		return err
	}
	defer m.Stop()

	var took []time.Duration
	for i := range *commits {
		if err := m.Edit("services/bench/s00.cue", fmt.Sprintf(`timeout: "%ds"`, i+1), fmt.Sprintf(`timeout: "%ds"`, i+2)); err != nil {
			return err
		}
		if _, err := m.Git("add", "-A"); err != nil {
			return err
		}
		commit, err := m.Commit("Change a timeout")
		if err != nil {
			return err
		}
		committed := time.Now() // the time that git itself takes is not Heddle's
		if err := m.Converged(commit); err != nil {
			return err
		}
		took = append(took, time.Since(committed))
	}
	slices.Sort(took)
	fmt.Fprintf(w, "commit in a local repository → 20 sidecars acknowledged, p50\t%s\t< 500ms\n", took[len(took)/2].Round(time.Millisecond))
	fmt.Fprintf(w, "the same, p99 of %d commits\t%s\t< 1.5s\n", len(took), meshtest.Quantile(took, 0.99).Round(time.Millisecond))

	var pss []int
	for i := range 20 {
		k, err := pssKiB(m.PID(fmt.Sprintf("s%02d-1-proxy", i)))
		if err != nil {
			return err
		}
		pss = append(pss, k)
	}
	slices.Sort(pss)
	fmt.Fprintf(w, "idle sidecar among 20 on one host, PSS, median (largest)\t%.1f MiB (%.1f)\t≤ 12 MiB\n", float64(pss[10])/1024, float64(pss[19])/1024)
	return m.Stop()
}

// lone looks at a sidecar that shares its program's pages with nobody, after a minute of nothing to do.
func lone(w io.Writer) error {
	dir, clean, err := scratch()
	if err != nil {
		return err
	}
	defer clean()
	if err := example(filepath.Join(dir, "example"), 1); err != nil {
		return err
	}
	m, err := meshtest.Start(*bin, filepath.Join(dir, "state"), nil, filepath.Join(dir, "example"))
	if err != nil {
		return err
	}
	defer m.Stop()
	time.Sleep(time.Minute)
	k, err := pssKiB(m.PID("s00-1-proxy"))
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "idle sidecar alone on its host, connected, PSS after a minute\t%.1f MiB\t≤ 12 MiB\n", float64(k)/1024)
	return m.Stop()
}

func pssKiB(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			return strconv.Atoi(f[1])
		}
	}
	return 0, errors.New("no Pss in smaps_rollup")
}

// disturb counts failed requests under a steady load through the example shop while parts of the mesh go away and
// policy changes. Leafs live 30 seconds, so that every certificate is renewed meanwhile.
func disturb(w io.Writer) error {
	dir, clean, err := scratch()
	if err != nil {
		return err
	}
	defer clean()
	m, err := meshtest.Start(*bin, filepath.Join(dir, "state"), nil, "--leaf-ttl", "30s")
	if err != nil {
		return err
	}
	defer m.Stop()

	weights := func(api, v2, toAPI, toV2 int) func() error {
		return func() error {
			for _, w := range [][2]int{{api, toAPI}, {v2, toV2}} {
				if err := m.Edit("services/shop/api.cue", fmt.Sprintf("weight: %d}", w[0]), fmt.Sprintf("weight: %d}", w[1])); err != nil {
					return err
				}
			}
			commit, err := m.Commit("Change weights")
			if err != nil {
				return err
			}
			return m.Converged(commit)
		}
	}
	renewed := func() error {
		serial := func() string {
			out, _ := exec.Command(filepath.Join(*bin, "heddle"), "proxies", "-o", "json", "--state", m.State).Output()
			return string(bytes.Join(expiries(out), []byte(" ")))
		}
		for range 2 { // twice, so that the connections of the first were renewed too
			was := strings.Fields(serial())
			if err := m.Until("every certificate is renewed", func() bool {
				now := strings.Fields(serial())
				if len(now) != len(was) || len(now) == 0 {
					return false
				}
				for i := range now {
					if now[i] == was[i] {
						return false
					}
				}
				return true
			}); err != nil {
				return err
			}
		}
		return nil
	}
	for _, d := range []struct {
		name string
		run  func() error
	}{
		{"control plane killed and restarted", func() error { return m.Kill("controlplane") }},
		{"reconciler killed and restarted", func() error { return m.Kill("reconciler") }},
		{"certificates renewed twice (30 s leafs)", renewed},
		{"commit with a weight change", weights(90, 10, 50, 50)},
		{"weights back", weights(50, 50, 90, 10)},
		{"revert", func() error {
			if _, err := m.Git("revert", "--no-edit", "HEAD"); err != nil {
				return err
			}
			head, err := m.Git("rev-parse", "HEAD")
			if err != nil {
				return err
			}
			return m.Converged(head)
		}},
	} {
		l := meshtest.StartLoad(m.Entry(), *rps, 64)
		pass := func(n int) error {
			want := l.Sent() + n
			return m.Until("the load goes on", func() bool { return l.Sent() >= want })
		}
		err := errors.Join(pass(*rps), d.run(), pass(2**rps))
		r := l.Stop()
		if err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		fmt.Fprintf(w, "%d rps: %s: failed\t%d of %d (p50 %s, p99 %s)\t0\n", *rps, d.name, r.Failed, r.Sent, r.P50.Round(10*time.Microsecond), r.P99.Round(10*time.Microsecond))
		for _, f := range r.Failures {
			log.Print("  ", f)
		}
		if w, ok := w.(*tabwriter.Writer); ok {
			w.Flush()
		}
	}
	return m.Stop()
}

// expiries are the certificates' ends, by workload, as `heddle proxies -o json` tells them.
func expiries(out []byte) (ends [][]byte) {
	var list struct {
		Items []struct {
			Workload           string    `json:"workload"`
			CertificateExpires time.Time `json:"certificateExpires"`
		} `json:"items"`
	}
	if json.Unmarshal(out, &list) != nil {
		return nil
	}
	for _, p := range list.Items {
		ends = append(ends, []byte(p.Workload+"="+p.CertificateExpires.Format(time.RFC3339Nano)))
	}
	return ends
}

// thousand measures the CPU of the reconciler, children included, for one changed file among 1,000 services.
func thousand(w io.Writer) error {
	return goBench(w, "OneChangedFile", "10x", map[string]figure{
		"BenchmarkOneChangedFile": {"1,000 services, one changed file → release, CPU", "ms", "< 300 ms"},
	})
}

// policy measures what policy costs where there is much of it: 10,000 services with 30,000 routes in 500 directories.
func policy(w io.Writer) error {
	dir, clean, err := scratch()
	if err != nil {
		return err
	}
	defer clean()
	files := map[string]string{}
	for name, b := range bigpolicy.Repository(bigpolicy.Full) {
		files[name] = string(b)
	}
	if err := write(dir, files); err != nil {
		return err
	}
	cache, cleanCache, err := scratch()
	if err != nil {
		return err
	}
	defer cleanCache()
	heddle := func(args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(*bin, "heddle"), args...)
		cmd.Env = append(os.Environ(), "HEDDLE_CACHE="+cache)
		return cmd
	}
	check := heddle("check", dir, "--proxy-version", "any")
	peak, err := run(check)
	if err != nil {
		return err
	}
	cpu := check.ProcessState.UserTime() + check.ProcessState.SystemTime()
	fmt.Fprintf(w, "10,000 services, 30,000 routes: cold heddle check, CPU\t%.1f s\t< 30 s\n", cpu.Seconds())
	fmt.Fprintf(w, "the same: peak of all its processes together, PSS\t%d MiB\t< 512 MiB\n", peak>>10)

	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"add", "-A"}, {"commit", "-q", "-m", "Start"}, {"gc", "-q"}} {
		git := exec.Command("git", append([]string{"-C", dir, "-c", "gc.auto=0", "-c", "maintenance.auto=false", "-c", "user.name=bench", "-c", "user.email=bench@example.org"}, args...)...)
		if out, err := git.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(git.Args, " "), err, out)
		}
	}
	var plans []time.Duration // processor time
	for i := range 10 {
		edit := map[string]string{bigpolicy.Path(7, 7): string(bigpolicy.Change(bigpolicy.Full, 7, 7, i+1))}
		if err := write(dir, edit); err != nil {
			return err
		}
		plan := heddle("plan", dir, "--proxy-version", "any")
		if out, err := plan.CombinedOutput(); err != nil {
			return fmt.Errorf("heddle plan: %w\n%s", err, out)
		}
		plans = append(plans, plan.ProcessState.UserTime()+plan.ProcessState.SystemTime())
	}
	slices.Sort(plans)
	fmt.Fprintf(w, "heddle plan of one line in it, cache warm, CPU, median (most) of %d\t%d ms (%d)\t< 1 s\n",
		len(plans), plans[len(plans)/2].Milliseconds(), plans[len(plans)-1].Milliseconds())

	var took []time.Duration
	for range 20 {
		check := heddle("check", "--no-cache", "policy-repo-template")
		start := time.Now()
		if out, err := check.CombinedOutput(); err != nil {
			return fmt.Errorf("heddle check policy-repo-template: %w\n%s", err, out)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	fmt.Fprintf(w, "heddle check of policy-repo-template, wall, median of %d\t%d ms\t< 300 ms\n", len(took), took[len(took)/2].Milliseconds())

	return errors.Join(
		goBench(w, "BigChange|BigPlan", "10x", map[string]figure{
			"BenchmarkBigChange": {"10,000 services, one changed → compiled mesh, CPU", "ms", "< 150 ms"},
			"BenchmarkBigPlan":   {"10,000 services, one changed → plan, the rest evaluated before, CPU", "ms", "< 1 s"},
		}),
		goBench(w, "HeapOf500", "1x", map[string]figure{"BenchmarkHeapOf500": {"heap after 500 changes of 1,000 services, against after 50", "%", "± 5 %"}}),
	)
}

// run runs a command and returns the most memory that it and its children had at once, in KiB: each page that several
// of them map counts once.
func run(cmd *exec.Cmd) (peak int, err error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if err != nil {
				err = fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, &out)
			}
			return peak, err
		case <-tick.C:
			total := 0
			for _, pid := range family(cmd.Process.Pid) {
				k, _ := pssKiB(pid) // one that has gone has no memory
				total += k
			}
			peak = max(peak, total)
		}
	}
}

// family is a process with all that descend from it.
func family(pid int) []int {
	out := []int{pid}
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, name := range threads {
		b, _ := os.ReadFile(name)
		for _, f := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(f); err == nil {
				out = append(out, family(child)...)
			}
		}
	}
	return out
}

// figure is a line of the table: what a benchmark's first metric of its own means.
type figure struct{ what, unit, goal string }

// goBench runs benchmarks of the reconciler and prints the metric that each reports.
func goBench(w io.Writer, bench, times string, figures map[string]figure) error {
	out, err := exec.Command("go", "test", "-run", "^$", "-bench", bench, "-benchtime", times, "./reconciler").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		name, _, _ := strings.Cut(f[0], "-")
		fig, ok := figures[name]
		for i := 1; ok && i < len(f); i++ {
			if strings.HasPrefix(f[i], "cpu-ms") || f[i] == "heap-growth-%" {
				fmt.Fprintf(w, "%s\t%s %s\t%s\n", fig.what, f[i-1], fig.unit, fig.goal)
			}
		}
	}
	return nil
}
