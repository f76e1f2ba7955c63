package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/up"
	"github.com/heddle-mesh/heddle/examples"
	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/internal/flagenv"
)

func (c *cli) upCommand() *cobra.Command {
	cfg := up.Config{Getenv: os.Getenv, Out: c.stdout, Style: c.out}
	cmd := &cobra.Command{
		Use:   "up [EXAMPLE]",
		Short: "Run a whole mesh on this machine, with an example to change",
		Long: `Up runs the programs that production runs, as child processes: a reconciler, a control plane and, for each
workload of the example, an application with a sidecar. It makes a Git repository with the example's policy,
or follows yours; it never writes to yours. On a terminal it shows a live status, elsewhere one line a change.

It needs no root and no Kubernetes. Everything lies in the state directory and is used again by the next run.
Ctrl-C stops every process that it started.

EXAMPLE is a directory with a processes.json, or the name of a built-in example (default: shop).`,
		Example: `  heddle up
  heddle up examples/shop --state /tmp/mesh
  heddle up --repo ~/mesh-policy --ref main --env staging
  heddle up kill api-1-proxy            # and watch it come back`,
		Args: argsBetween(0, 1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return examples.Names(), cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg.Example, cfg.State = examples.Default, c.state
			if len(args) == 1 {
				cfg.Example = args[0]
			}
			if _, err := programLog(io.Discard, cfg.LogLevel); err != nil {
				return err
			}
			self, err := os.Executable()
			if err == nil {
				self, err = filepath.EvalSymlinks(self)
			}
			if err != nil {
				return noLook(fmt.Errorf("finding this program's own file: %w", err))
			}
			cfg.Heddle = self
			if err := up.Run(cmd.Context(), cfg); errors.Is(err, examples.ErrUnknown) {
				return &usageError{err: err, command: "heddle up"}
			} else if err != nil {
				return err
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&cfg.Repo, "repo", "", "follow this policy repository, a `path or URL`, instead of the example's")
	cmd.Flags().StringVar(&cfg.Ref, "ref", "main", "the `branch` to follow")
	cmd.Flags().StringVar(&cfg.Env, "env", "", "the `environment` to evaluate policy for")
	cmd.Flags().BoolVar(&cfg.ExitAfterConverged, "exit-after-converged", false, "stop as soon as every sidecar has acknowledged the first commit")
	cmd.Flags().StringVar(&cfg.LogLevel, "log-level", "info", "the `level` of the children's logs: debug, info, warn, error")
	cmd.Flags().DurationVar(&cfg.LeafTTL, "leaf-ttl", 0, "`time` that a sidecar's certificate lasts, to watch renewals (default: the control plane's, 24h)")
	c.stateFlag(cmd)
	cmd.AddCommand(c.killCommand())
	return cmd
}

func (c *cli) killCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kill PROCESS",
		Short: "Kill one process of a running `heddle up`, to see what happens",
		Long: `Kill sends SIGKILL to one process by its name: reconciler, controlplane, a workload such as web-1, or its
sidecar, web-1-proxy. "heddle up" starts it again.`,
		Example: `  heddle up kill controlplane
  heddle up kill web-1-proxy`,
		Args: argsBetween(1, 1),
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			var names []string
			if flagenv.Apply(cmd.Flags()) != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			if f, err := up.ReadFile(c.state); err == nil {
				for _, p := range f.Processes {
					names = append(names, p.Name)
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error { return c.kill(args[0]) },
	}
	c.stateFlag(cmd)
	c.outputFlag(cmd, "table", "json")
	return cmd
}

// kill trusts the pids of up.json only while `heddle up` holds its lock: after that, they may be anybody's.
func (c *cli) kill(name string) error {
	lock := filepath.Join(c.state, "up.lock")
	if _, err := os.Stat(lock); err != nil {
		return &hinted{noLook(fmt.Errorf("no `heddle up` runs in %s", c.state)), "heddle up --state " + c.state}
	}
	unlock, err := durable.Lock(lock)
	if err == nil {
		unlock()
		return &hinted{noLook(fmt.Errorf("no `heddle up` runs in %s", c.state)), "heddle up --state " + c.state}
	}
	f, err := up.ReadFile(c.state)
	if err != nil {
		return noLook(err)
	}
	for _, p := range f.Processes {
		if p.Name != name {
			continue
		}
		if p.PID == 0 {
			return fmt.Errorf("%s does not run at the moment", name)
		}
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
			return fmt.Errorf("killing %s: %w", name, err)
		}
		if c.output == "json" {
			return writeJSON(c.stdout, map[string]any{"apiVersion": apiVersion, "name": name, "pid": p.PID})
		}
		_, err := fmt.Fprintf(c.stdout, "killed %s, pid %d\n", name, p.PID)
		return err
	}
	var names string
	for _, p := range f.Processes {
		names += " " + p.Name
	}
	return &usageError{err: &hinted{fmt.Errorf("there is no process %q", name), "one of:" + names}}
}
