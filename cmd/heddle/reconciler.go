package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/internal/flagenv"
	"github.com/heddle-mesh/heddle/internal/releasedir"
	"github.com/heddle-mesh/heddle/reconciler"
)

// reconcilerCommand runs the program that turns commits into releases.
func reconcilerCommand() *cobra.Command {
	var (
		cfg      reconciler.Config
		state    string
		logLevel string
	)
	cmd := &cobra.Command{
		Use:   "reconciler --repo PATH-or-URL [flags]",
		Short: "Turn the commits of a policy repository into releases",
		Long: `The reconciler follows one branch of one policy repository. Each new commit is judged by the release
that serves, validated, compiled, signed and handed to the control planes; a commit that fails any of that
changes nothing, and "heddle status" says why.

A commit is held, until an operator says otherwise, if it
  - is the first of a mesh                   heddle resume --accept-first
  - does not descend from the applied one    heddle resume --accept-rewind
  - leaves no service at all                 heddle resume --accept-empty
  - changes the trust domain                 heddle resume --accept-trust-domain
  - breaks an invariant and drops it          heddle resume --accept-invariants
  - delegates to a directory and uses it     heddle resume --accept-fences

A local repository is looked at five times a second, a remote one about every 30 s. To be faster, have the
Git server call POST http://HOST:4183/hint: it carries no data and needs no secret.

Control planes connect with TLS; both sides know each other's key. "heddle key" prints them.
Everything that is not in Git lies in the state directory: back it up, above all the file "key".`,
		Example: `  # a repository on this machine, and a control plane beside it
  heddle reconciler --repo ./policy --state /var/lib/heddle \
      --control-plane-key @/etc/heddle/control-planes

  # a remote repository, with a token, for one environment
  heddle reconciler --repo https://git.example.org/acme/policy.git --ref main --env prod \
      --git-token-file /run/secrets/git-token --control-plane-key heddle-key-1:…

  # then, beside it
  heddle status`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cfg.Repo == "" {
				return usagef("which policy repository? name it with --repo PATH-or-URL")
			}
			if cfg.Interval < 0 || cfg.Keep < 1 {
				return usagef("--interval may not be negative, and --keep is at least 1")
			}
			log, err := programLog(cmd.ErrOrStderr(), logLevel)
			if err != nil {
				return err
			}
			cfg.Version, cfg.StateDir = version, filepath.Join(state, "reconciler")
			return reconciler.Run(log.WithContext(cmd.Context()), cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&state, "state", defaultState, "`directory` of the mesh's state; the reconciler's own part is reconciler/ in it: key, releases, operator socket")
	f.StringVar(&cfg.Repo, "repo", "", "policy repository: a local path, https://… or ssh://…; `url` (required)")
	f.StringVar(&cfg.Ref, "ref", "main", "`name` of the branch to follow, or a full ref name, or HEAD")
	f.StringVar(&cfg.Env, "env", "", "`name` of the environment to evaluate policy for (default: the repository's own)")
	f.StringVar(&cfg.ListenReleases, "listen", ":4182", "TCP `address` for control planes")
	f.StringVar(&cfg.ListenHint, "hint", ":4183", "TCP `address` for POST /hint; empty: none")
	f.StringSliceVar(&cfg.ControlPlaneKeys, "control-plane-key", nil,
		"public `key` of a control plane that may connect, or @FILE with one a line; may be repeated (default: none may)")
	f.BoolVar(&cfg.TrustFirstCommit, "trust-first-commit", false,
		"let the first commit of a new mesh pass without a word of an operator")
	f.DurationVar(&cfg.Interval, "interval", 0,
		"`time` between looks at the repository, give or take a fifth (default: 200ms if local, 30s if remote)")
	f.IntVar(&cfg.Keep, "keep", releasedir.Keep, "`number` of newest releases that stay")
	f.StringVar(&cfg.Auth.Username, "git-username", "", "user `name` that goes with the token (default: the URL's, else git)")
	f.StringVar(&cfg.Auth.TokenFile, "git-token-file", "", "`file` with a token or password for https")
	f.StringVar(&cfg.Auth.CAFile, "git-ca-file", "", "PEM `file` of authorities to trust for https, beside the system's")
	f.StringVar(&cfg.Auth.SSHKeyFile, "git-ssh-key-file", "", "private key `file` for ssh (default: the agent's keys)")
	f.StringVar(&cfg.Auth.KnownHostsFile, "git-known-hosts", "", "`file` of ssh host keys (default: ~/.ssh/known_hosts)")
	f.StringVar(&logLevel, "log-level", "info", "least `level` of log lines: debug, info, warn, error")
	flagenv.Bind(f)
	return cmd
}
