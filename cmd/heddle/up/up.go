// Package up is `heddle up`: a whole mesh on one machine, made of exactly the programs that production runs. It turns
// an example (policy and processes.json) into a policy repository and child processes: a reconciler, a control plane,
// and an application with a sidecar for each workload. It starts them again when they fail, watches them as any
// operator would, through their operator sockets, and stops them all. It runs no part of the mesh itself.
package up

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/process"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/terminal"
	"github.com/heddle-mesh/heddle/examples"
	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/internal/flagenv"
	"github.com/heddle-mesh/heddle/internal/operator"
	"github.com/heddle-mesh/heddle/internal/pinned"
	"github.com/heddle-mesh/heddle/schema/release"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// Config says which mesh to run.
type Config struct {
	Example string // a directory or the name of an embedded example
	// Repo is the policy repository, a path or URL; empty: one is made in the state directory. It is only read.
	Repo string
	Ref  string // the branch to follow
	Env  string // the environment of the policy, if it has any
	// State is kept between runs.
	State string
	// Heddle is this program's own binary; its neighbours in the directory are the sidecar and the example's programs.
	Heddle string
	Out    io.Writer
	Style  terminal.Style // of Out
	// ExitAfterConverged ends the run, successfully, as soon as every sidecar has acknowledged the first commit.
	ExitAfterConverged bool
	LogLevel           string // of the children
	// LeafTTL is how long a sidecar's certificate lasts; 0: the control plane's default, a day.
	LeafTTL time.Duration
	Getenv  func(string) string
}

// drain bounds how long children may take to stop; sidecarDrain, which has to be less, how long sidecars wait for what is
// under way.
const drain, sidecarDrain = 2 * time.Second, time.Second

// Run runs the mesh until ctx ends, and returns when every process that it started is gone.
func Run(ctx context.Context, cfg Config) error {
	state, err := filepath.Abs(cfg.State)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	cfg.State = state
	u := &supervisor{cfg: cfg, waiting: map[string]string{}, hopeless: make(chan error, 1)}
	if err := u.prepare(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // stopped before there was anything to stop
		}
		return err
	}
	defer u.unlock()
	return u.run(ctx)
}

// supervisor is one run.
type supervisor struct {
	cfg       Config
	example   fs.FS
	dir       string // of the example, empty where it is embedded
	processes *Processes
	programs  map[string]string // executables by the name in processes.json
	sidecar   string            // the executable
	repo      string
	book      *book
	reconKey  ed25519.PublicKey
	cpKey     ed25519.PublicKey
	unlock    func() error

	group  *process.Group
	events *events

	hopeless chan error // size 1: why the mesh will never run

	mu       sync.Mutex        // guards what follows
	waiting  map[string]string // by workload: why it does not run yet
	answered []string          // the programs of core that answered once in this run
}

func (u *supervisor) prepare(ctx context.Context) (err error) {
	if u.example, u.dir, err = examples.Open(u.cfg.Example); err != nil {
		return err
	}
	if u.processes, err = readProcesses(u.example); err != nil {
		return err
	}
	if err := u.findPrograms(); err != nil {
		return err
	}
	for _, dir := range []string{"", "reconciler", "controlplane", "proxies", "logs", "tokens"} {
		if err := os.MkdirAll(filepath.Join(u.cfg.State, dir), 0o700); err != nil {
			return fmt.Errorf("state directory: %w", err)
		}
	}
	if u.unlock, err = durable.Lock(filepath.Join(u.cfg.State, "up.lock")); err != nil {
		return fmt.Errorf("another `heddle up` runs in %s: %w", u.cfg.State, err)
	}
	defer func() {
		if err != nil {
			u.unlock()
		}
	}()
	before := map[string]string{}
	if f, err := ReadFile(u.cfg.State); err == nil && f.Addresses != nil {
		before = f.Addresses // a file that cannot be read costs no more than other ports
	}
	u.book = newBook(u.cfg.State, before)

	u.repo = u.cfg.Repo
	if u.repo == "" {
		u.repo = filepath.Join(u.cfg.State, "repo")
		policy, err := fs.Sub(u.example, "policy")
		if err != nil {
			return fmt.Errorf("the example: %w", err)
		}
		if err := makeRepository(ctx, u.repo, u.cfg.Ref, policy, v1alpha1.Vendored()); err != nil {
			return err
		}
	} else if exists(u.repo) {
		if u.repo, err = filepath.Abs(u.repo); err != nil {
			return fmt.Errorf("repository: %w", err)
		}
	}
	if u.reconKey, err = publicKey(filepath.Join(u.cfg.State, "reconciler", "key")); err != nil {
		return err
	}
	u.cpKey, err = publicKey(filepath.Join(u.cfg.State, "controlplane", "key"))
	return err
}

func publicKey(path string) (ed25519.PublicKey, error) {
	key, err := pinned.LoadOrCreateKey(path)
	if err != nil {
		return nil, err
	}
	return pinned.Public(key), nil
}

// findPrograms looks for every executable before anything is started.
func (u *supervisor) findPrograms() error {
	beside := filepath.Dir(u.cfg.Heddle)
	find := func(path string) (string, error) {
		info, err := os.Stat(path)
		if err == nil && (info.IsDir() || info.Mode()&0o111 == 0) {
			err = fs.ErrNotExist
		}
		if err != nil {
			return "", fmt.Errorf("there is no program %s; `make build` puts heddle, heddle-proxy and the examples' programs "+
				"into one directory: %w", path, err)
		}
		return path, nil
	}
	var err error
	if u.sidecar, err = find(filepath.Join(beside, "heddle-proxy")); err != nil {
		return err
	}
	u.programs = map[string]string{}
	for _, w := range u.processes.Workloads {
		name := w.Run[0]
		at := filepath.Join(beside, name)
		if strings.Contains(name, "/") {
			if u.dir == "" {
				return fmt.Errorf("workload %s: %s names a file of the example's directory, and the example is embedded", w.Name, name)
			}
			at = filepath.Join(u.dir, filepath.FromSlash(name))
		}
		if u.programs[name], err = find(at); err != nil {
			return fmt.Errorf("workload %s: %w", w.Name, err)
		}
	}
	return nil
}

// run starts everything and waits for the end.
func (u *supervisor) run(ctx context.Context) error {
	u.events = newEvents()
	u.group = process.NewGroup(drain, func(e process.Event) {
		u.events.process(e)
		u.judge(e)
	})
	defer u.group.Close()
	reconciler, controlplane, err := u.core()
	if err != nil {
		return err
	}
	workloads := make([]started, len(u.processes.Workloads))
	for i := range u.processes.Workloads {
		if workloads[i], err = u.workload(&u.processes.Workloads[i]); err != nil {
			return err
		}
	}
	if err := u.save(); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	eg, ctx := errgroup.WithContext(ctx)
	eg.Go(func() error { return u.group.Run(ctx, reconciler) })
	eg.Go(func() error { return u.group.Run(ctx, controlplane) })
	for _, w := range workloads {
		eg.Go(func() error {
			if err := u.token(ctx, w); err != nil {
				return err
			}
			eg.Go(func() error { return u.group.Run(ctx, w.app) })
			return u.group.Run(ctx, w.proxy)
		})
	}
	eg.Go(func() error { return u.keepFile(ctx) })
	eg.Go(func() error {
		select {
		case err := <-u.hopeless:
			return err
		case <-ctx.Done():
			return nil
		}
	})
	eg.Go(func() error {
		err := u.watch(ctx)
		if err == nil {
			stop() // it has seen what it was to wait for
		}
		return err
	})
	err = eg.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	f := u.file()
	f.PID = 0
	return errors.Join(err, f.write(u.cfg.State))
}

// started is a workload's two processes, and what its join token is for.
type started struct {
	workload   *Workload
	proxy, app process.Spec
	tokenFile  string
}

// The programs of core, by their names as processes.
const nameReconciler, nameControlplane = "reconciler", "controlplane"

// judge ends the run where starting again is in vain: a program of the core that says that it cannot run, and never
// could in this run. One that ran before is started again, whatever it says: a disk or a network may come back.
func (u *supervisor) judge(e process.Event) {
	if e.PID != 0 || e.Err != nil || e.Code <= 0 || e.Name != nameReconciler && e.Name != nameControlplane {
		return
	}
	why := complaint(e.Last)
	u.mu.Lock()
	defer u.mu.Unlock()
	if why == "" || slices.Contains(u.answered, e.Name) {
		return
	}
	select {
	case u.hopeless <- fmt.Errorf("%s: %s", e.Name, why):
	default: // the first reason is enough
	}
}

// complaint is the error with which one of our programs ended, and what it says to try; "" if it said none.
func complaint(output string) string {
	at := strings.LastIndex("\n"+output, "\nerror: ")
	if at < 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(output[at:]), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return terminal.Clean(strings.TrimPrefix(strings.Join(lines, "; "), "error: "))
}

// hasAnswered notes that a program of core runs.
func (u *supervisor) hasAnswered(name string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !slices.Contains(u.answered, name) {
		u.answered = append(u.answered, name)
	}
}

func (u *supervisor) log(name string) string { return filepath.Join(u.cfg.State, "logs", name+".log") }

// environment is what children inherit: not our own settings, which mean other things to them, nor proxies.
func environment(more map[string]string) []string {
	var env []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		switch strings.ToUpper(name) {
		case "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY":
			continue
		}
		if !strings.HasPrefix(name, "HEDDLE_") {
			env = append(env, e)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(more)) {
		env = append(env, name+"="+more[name])
	}
	return env
}

// core is the reconciler and the control plane.
func (u *supervisor) core() (reconciler, controlplane process.Spec, err error) {
	at := map[string]string{}
	for _, name := range []string{"reconciler/releases", "reconciler/hint", "controlplane/stream", "controlplane/enrolment", "controlplane/metrics"} {
		if at[name], err = u.book.address(name); err != nil {
			return reconciler, controlplane, err
		}
	}
	reconciler = process.Spec{
		Name: nameReconciler, Path: u.cfg.Heddle, Dir: u.cfg.State, Log: u.log("reconciler"),
		// Not an argument: a URL may carry a token, and arguments show in process lists.
		Env: environment(map[string]string{flagenv.Name("repo"): u.repo}),
		Args: []string{"reconciler",
			"--state", u.cfg.State,
			"--ref", u.cfg.Ref, "--env", u.cfg.Env,
			"--listen", at["reconciler/releases"],
			"--hint", at["reconciler/hint"],
			"--control-plane-key", release.FormatKey(u.cpKey),
			// Running `heddle up` is the operator's explicit start of a new mesh.
			"--trust-first-commit",
			"--log-level", u.cfg.LogLevel,
		},
	}
	controlplane = process.Spec{
		Name: nameControlplane, Path: u.cfg.Heddle, Dir: u.cfg.State, Log: u.log("controlplane"), Env: environment(nil),
		Args: []string{"controlplane",
			"--state", u.cfg.State,
			"--reconciler", at["reconciler/releases"],
			"--reconciler-key", release.FormatKey(u.reconKey),
			"--listen", at["controlplane/stream"],
			"--enrolment", at["controlplane/enrolment"],
			"--metrics", at["controlplane/metrics"],
			"--log-level", u.cfg.LogLevel,
		},
	}
	if u.cfg.LeafTTL > 0 {
		controlplane.Args = append(controlplane.Args, "--leaf-ttl", u.cfg.LeafTTL.String())
	}
	return reconciler, controlplane, nil
}

// workload is one application and its sidecar.
func (u *supervisor) workload(w *Workload) (started, error) {
	p := started{workload: w, tokenFile: filepath.Join(u.cfg.State, "tokens", w.slug())}
	var failed error
	at := func(what string) string {
		a, err := u.book.address(w.Name + "/" + what)
		failed = errors.Join(failed, err)
		return a
	}
	outbound := at("outbound")
	env := map[string]string{"HTTP_PROXY": "http://" + outbound, "http_proxy": "http://" + outbound, "WORKLOAD": w.Name}
	inbound := at("inbound")
	args := []string{"run",
		"--state", filepath.Join(u.cfg.State, "proxies", w.slug()),
		"--control-plane", u.book.addresses["controlplane/stream"],
		"--enrolment", u.book.addresses["controlplane/enrolment"],
		"--join-token-file", p.tokenFile,
		"--inbound", inbound,
		"--advertise", inbound,
		"--outbound", outbound,
		"--admin", at("admin"),
		"--drain", sidecarDrain.String(),
		"--log-level", u.cfg.LogLevel,
	}
	for _, port := range slices.Sorted(maps.Keys(w.Ports)) {
		app := at("app/" + port)
		env["LISTEN_"+variable(port)] = app
		args = append(args, "--app", port+"="+app)
		if w.Ports[port].Expose {
			args = append(args, "--expose", port+"="+at("expose/"+port))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(w.Upstreams)) {
		env[name] = at("upstream/" + name)
		args = append(args, "--listen", w.Upstreams[name]+"="+env[name])
	}
	for _, name := range w.Local {
		env[name] = at("local/" + name)
	}
	maps.Copy(env, w.Env)
	if failed != nil {
		return p, failed
	}
	p.proxy = process.Spec{Name: w.sidecar(), Path: u.sidecar, Args: args, Dir: u.cfg.State, Log: u.log(w.sidecar()), Env: environment(nil)}
	p.app = process.Spec{Name: w.app(), Path: u.programs[w.Run[0]], Args: w.Run[1:], Dir: u.cfg.State, Log: u.log(w.app()), Env: environment(env)}
	return p, nil
}

// variable makes a port's name part of an environment variable's.
func variable(port string) string { return strings.ToUpper(strings.ReplaceAll(port, "-", "_")) }

// token asks the control plane for a join token until it gets one: before the first release there is no trust domain,
// and a workload that policy does not declare has to wait for a commit that does.
func (u *supervisor) token(ctx context.Context, w started) error {
	client := operator.NewClient(filepath.Join(u.cfg.State, "controlplane", operator.SocketName))
	for {
		var reply struct {
			Token string `json:"token"`
		}
		err := client.Post(ctx, "/v1/tokens", map[string]any{
			"workload": w.workload.Name, "service": w.workload.Service, "ttl": "1h",
		}, &reply)
		if err == nil {
			u.setWaiting(w.workload.Name, "")
			return durable.WriteFile(w.tokenFile, []byte(reply.Token+"\n"), 0o600)
		}
		if !errors.Is(err, operator.ErrUnreachable) {
			u.setWaiting(w.workload.Name, err.Error())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (u *supervisor) setWaiting(workload, why string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if why == "" {
		delete(u.waiting, workload)
	} else {
		u.waiting[workload] = why
	}
}

// whyWaiting says why the first of the waiting workloads waits, and how many there are.
func (u *supervisor) whyWaiting() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	names := slices.Sorted(maps.Keys(u.waiting))
	if len(names) == 0 {
		return ""
	}
	why := names[0] + ": " + u.waiting[names[0]]
	if len(names) > 1 {
		why += fmt.Sprintf(" (and %d more)", len(names)-1)
	}
	return why
}

// entry is the URL to call from outside; empty where the example has none.
func (u *supervisor) entry() string {
	e := u.processes.Entry
	if e == nil {
		return ""
	}
	return "http://" + u.book.addresses[e.Workload+"/expose/"+e.Port] + e.Path
}

func (u *supervisor) file() *File {
	return &File{APIVersion: "heddle/v1", PID: os.Getpid(), Repository: u.repo, Ref: u.cfg.Ref, Entry: u.entry(),
		Addresses: u.book.addresses, Processes: u.group.States()}
}

func (u *supervisor) save() error { return u.file().write(u.cfg.State) }

// keepFile writes up.json whenever a child starts or exits.
func (u *supervisor) keepFile(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-u.events.changed:
			if err := u.save(); err != nil {
				u.events.add(fmt.Sprintf("up.json cannot be written: %v", err))
			}
		}
	}
}
