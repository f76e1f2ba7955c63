package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/controlplane"
	"github.com/heddle-mesh/heddle/controlplane/identity"
	"github.com/heddle-mesh/heddle/internal/flagenv"
)

// controlplaneCommand runs the program that hands releases and identities to sidecars.
func controlplaneCommand() *cobra.Command {
	var (
		cfg      controlplane.Config
		state    string
		logLevel string
	)
	cmd := &cobra.Command{
		Use:   "controlplane --reconciler HOST:PORT --reconciler-key KEY [flags]",
		Short: "Hand releases and identities to sidecars",
		Long: `The control plane follows a reconciler's releases, checks their signature, and keeps a stream to every
sidecar: policy, endpoints, certificates. It is the mesh's certificate authority, for the trust domain of
the first release that it sees.

Sidecars serve on while it is away, and so does it while the reconciler is away, after a restart too.

A sidecar enrols once with a join token ("heddle token"), which registers its host's key; after that the key
proves who it is. A token is for one workload, used once, and lasts an hour unless told otherwise.

The reconciler and the control plane know each other by key: "heddle key" prints both.
Everything that is not in Git lies in the state directory: back it up, above all "ca" and "enrolments".
If the root ends within 30 days, status and log say so: stop the control plane, move "ca" away, start it,
and enrol every sidecar again.`,
		Example: `  # beside a reconciler
  heddle controlplane --state /var/lib/heddle \
      --reconciler 127.0.0.1:4182 --reconciler-key @/etc/heddle/reconciler.key

  # then, for each workload
  heddle token create --workload shop/web-1 --service shop/web > token`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case cfg.Reconciler == "":
				return usagef("which reconciler? name it with --reconciler HOST:4182")
			case cfg.ReconcilerKey == "":
				return usagef("which key does the reconciler have? give it with --reconciler-key; `heddle key` prints it")
			case cfg.LeafTTL <= 0 || cfg.LeafTTL > identity.MaxLeafTTL:
				return usagef("--leaf-ttl %v: want more than 0 and at most %v", cfg.LeafTTL, identity.MaxLeafTTL)
			}
			log, err := programLog(cmd.ErrOrStderr(), logLevel)
			if err != nil {
				return err
			}
			cfg.Version, cfg.StateDir = version, filepath.Join(state, "controlplane")
			if err := controlplane.Run(log.WithContext(cmd.Context()), cfg); err != nil {
				return fmt.Errorf("the control plane cannot run: %w", err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&state, "state", defaultState, "`directory` of the mesh's state; the control plane's own part is controlplane/ in it: key, authority, enrolments, releases, operator socket")
	f.StringVar(&cfg.Reconciler, "reconciler", "", "`address` of the reconciler's releases port (required)")
	f.StringVar(&cfg.ReconcilerKey, "reconciler-key", "", "the reconciler's public `key`, or @FILE with it (required)")
	f.StringVar(&cfg.Listen, "listen", ":4180", "TCP `address` for the streams of sidecars, with mutual TLS")
	f.StringVar(&cfg.ListenEnrolment, "enrolment", ":4181", "TCP `address` for enrolment")
	f.StringVar(&cfg.ListenMetrics, "metrics", "127.0.0.1:4189", "TCP `address` for /live, /ready and /metrics; empty: none")
	f.DurationVar(&cfg.LeafTTL, "leaf-ttl", identity.LeafTTL, "`time` that a sidecar's certificate lasts; renewed long before")
	f.StringVar(&logLevel, "log-level", "info", "least `level` of log lines: debug, info, warn, error")
	flagenv.Bind(f)
	return cmd
}
