// Command heddle-proxy is Heddle's sidecar: it stands beside one workload and carries, secures and judges its traffic by
// policy from Git. All of it is package proxy; here are flags, log and exit codes.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/internal/flagenv"
	"github.com/heddle-mesh/heddle/proxy"
	"github.com/heddle-mesh/heddle/proxy/identity"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// version is what the sidecar says of itself in hello.
const version = "v" + mesh.Version

// Exit codes, as of every Heddle command.
const (
	exitOK    = 0
	exitUsage = 2 // the command line is wrong
	exitFault = 3 // it could not run
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// usageError is a command line that nothing could run with.
type usageError struct {
	error
	command string
}

func (e *usageError) Unwrap() error { return e.error }

// run executes one command line and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// The second signal ends the process at once: whoever sends it does not want to wait for the drain.
	context.AfterFunc(ctx, stop)
	started := false
	root := rootCommand(stdout, stderr, &started)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !started {
		err = &usageError{err, cmd.CommandPath()}
	}
	return report(stderr, err)
}

// report prints an error with what to try next, and returns the exit code.
func report(stderr io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	var usage *usageError
	var config *proxy.ConfigError
	exit, try := exitFault, ""
	switch {
	case errors.As(err, &usage):
		exit, try = exitUsage, usage.command+" --help"
	case errors.As(err, &config):
		exit, try = exitUsage, "heddle-proxy run --help"
	case errors.Is(err, identity.ErrNoToken):
		exit = exitUsage
		try = "heddle token create --workload NAMESPACE/NAME --service NAMESPACE/NAME > token, beside the control plane"
	case errors.Is(err, durable.ErrLocked):
		try = "stop the other sidecar, or use another --state"
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.ENOSPC):
		try = "heddle-proxy run --state DIRECTORY, on a file system with room that can be written"
	case errors.Is(err, fs.ErrPermission):
		try = "let the sidecar's user read and write it"
	case errors.Is(err, syscall.EADDRINUSE):
		try = "heddle-proxy run … with another address; port 0 takes a free one"
	}
	fmt.Fprintf(stderr, "error: %v\n", err)
	if try != "" {
		fmt.Fprintf(stderr, "  try: %s\n", try)
	}
	return exit
}

func rootCommand(stdout, stderr io.Writer, started *bool) *cobra.Command {
	root := &cobra.Command{
		Use:   "heddle-proxy",
		Short: "The sidecar of a Heddle mesh",
		Long: `heddle-proxy stands beside one workload and carries its traffic: mutual TLS with SPIFFE identities, routes,
balancing, timeouts, authorization, metrics. What it enforces comes from a control plane, and there from Git.
On your own machine "heddle up" starts it for you.`,
		Example: `  heddle-proxy run --help
  heddle-proxy version`,
		Args:              cobra.NoArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRun:  func(*cobra.Command, []string) { *started = true },
		CompletionOptions: cobra.CompletionOptions{DisableDescriptions: false},
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.AddCommand(runCommand(stderr, started), versionCommand(stdout))
	return root
}

func versionCommand(stdout io.Writer) *cobra.Command {
	output := ""
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  heddle-proxy version -o json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			switch output {
			case "json":
				return json.NewEncoder(stdout).Encode(struct {
					APIVersion string `json:"apiVersion"`
					Version    string `json:"version"`
					Go         string `json:"go"`
					Platform   string `json:"platform"`
				}{"heddle/v1", version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH})
			case "text":
				_, err := fmt.Fprintln(stdout, "heddle-proxy", version)
				return err
			}
			return &usageError{fmt.Errorf("--output %q: want text or json", output), "heddle-proxy version"}
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "`format`: text or json")
	return cmd
}

func runCommand(stderr io.Writer, started *bool) *cobra.Command {
	c := proxy.Config{Version: version}
	var level string
	var upstreams []string
	cmd := &cobra.Command{
		Use:   "run --control-plane HOST:4180 --enrolment HOST:4181 [flags]",
		Short: "Run the sidecar of one workload",
		Long: `Run the sidecar of one workload, until SIGTERM or SIGINT; then it stops accepting and waits for what is
under way. A second signal does not wait.

The first start on a host needs a join token, which names the workload and its service; "heddle token create" makes
one, beside the control plane. It registers this host's key, and is not needed again. Identity and the last
config are kept in the state directory, so that a restart serves without a control plane. Until the first
config has come, every connection is refused.

The application reaches the mesh as http://SERVICE.NAMESPACE.mesh through the HTTP proxy at --outbound, or by
one --listen for each upstream. Others reach it at --inbound, with mutual TLS only; --expose opens a port to the
outside, where policy allows that.`,
		Example: `  # the first start of shop/web-1, with an application on 8080 that calls shop/api by HTTP and shop/ledger by TCP
  heddle-proxy run --state /var/lib/heddle-proxy \
      --control-plane mesh.example:4180 --enrolment mesh.example:4181 --join-token-file /etc/heddle/token \
      --advertise 10.0.0.7:4143 --app http=127.0.0.1:8080 --listen shop/ledger:tcp=127.0.0.1:5432

  # the application then uses
  http_proxy=http://127.0.0.1:4140 curl http://api.shop.mesh/

  # how it stands
  curl http://127.0.0.1:4191/ready; curl http://127.0.0.1:4191/config`,
		Args: cobra.NoArgs,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := flagenv.Apply(cmd.Flags()); err != nil {
				return &usageError{err, cmd.CommandPath()}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			lv, err := zerolog.ParseLevel(level)
			if err != nil || lv == zerolog.NoLevel {
				return &usageError{fmt.Errorf("--log-level %q: want debug, info, warn or error", level), cmd.CommandPath()}
			}
			for _, s := range upstreams {
				u, err := proxy.ParseUpstream(s)
				if err != nil {
					return &usageError{fmt.Errorf("--listen %w", err), cmd.CommandPath()}
				}
				c.Upstreams = append(c.Upstreams, u)
			}
			zerolog.SetGlobalLevel(lv)     // the admin port can change it
			zerolog.ErrorFieldName = "err" // as all of Heddle's logs call it
			log := zerolog.New(stderr)
			if f, ok := stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
				log = zerolog.New(zerolog.ConsoleWriter{Out: f, TimeFormat: time.TimeOnly, NoColor: os.Getenv("NO_COLOR") != ""})
			}
			log = log.With().Timestamp().Logger()
			return proxy.Run(log.WithContext(cmd.Context()), c)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&c.StateDir, "state", ".heddle/proxy", "`directory` of this sidecar's own: host key, identity, last config")
	f.StringVar(&c.ControlPlane, "control-plane", "", "`address` of a control plane's stream port (required)")
	f.StringVar(&c.Enrolment, "enrolment", "", "`address` of its enrolment port (required)")
	f.StringVar(&c.JoinTokenFile, "join-token-file", "", "`file` with a join token, for the first start on this host")
	f.StringVar(&c.Inbound, "inbound", "0.0.0.0:4143", "`address` on which other sidecars connect, by mutual TLS only")
	f.StringVar(&c.Advertise, "advertise", "", "`IP:PORT` at which other sidecars reach --inbound (required where that is 0.0.0.0)")
	f.Var(named{&c.Apps}, "app", "`NAME=HOST:PORT` where the application listens, by the service's port name; may be repeated\n"+
		"(default 127.0.0.1 and the declared port)")
	f.Var(named{&c.Expose}, "expose",
		"`NAME=HOST:PORT` to open a port to the outside, with plaintext where policy says permissive; may be repeated")
	f.StringVar(&c.Outbound, "outbound", "127.0.0.1:4140", "loopback `address` of the HTTP proxy for the application; empty: none")
	f.StringSliceVar(&upstreams, "listen", nil,
		"`NAMESPACE/SERVICE:PORT=ADDRESS`, a loopback listener for one upstream; may be repeated")
	f.StringVar(&c.Admin, "admin", "127.0.0.1:4191", "`address` of /live, /ready, /metrics, /config; empty: none")
	f.DurationVar(&c.Drain, "drain", 120*time.Second, "`time` that what is under way may take at the end")
	f.StringVar(&level, "log-level", "info", "least `level` of log lines: debug, info, warn, error")
	flagenv.Bind(f)
	return cmd
}

// named is a repeatable NAME=VALUE flag; commas separate several, as in an environment variable.
type named struct{ m *map[string]string }

// Type and String are for cobra's help.
func (n named) Type() string   { return "name=address" }
func (n named) String() string { return "" }

// Set adds values; a name that is there already is a mistake.
func (n named) Set(s string) error {
	for pair := range strings.SplitSeq(s, ",") {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" || value == "" {
			return fmt.Errorf("%q is not NAME=HOST:PORT", pair)
		}
		if *n.m == nil {
			*n.m = map[string]string{}
		}
		if _, twice := (*n.m)[name]; twice {
			return fmt.Errorf("%s is given twice", name)
		}
		(*n.m)[name] = value
	}
	return nil
}
