package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/published"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/terminal"
	"github.com/heddle-mesh/heddle/internal/flagenv"
	"github.com/heddle-mesh/heddle/internal/pinned"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/release"
)

func (c *cli) tokenCommand() *cobra.Command {
	var workload, service string
	var ttl time.Duration
	create := &cobra.Command{
		Use:   "create --workload NS/NAME --service NS/NAME",
		Short: "Make a join token for one workload",
		Long: `A join token lets one sidecar enrol as one workload, once. Hand it over as a file; never in an argument list,
where every user of the machine can read it. It is printed on stdout, alone.`,
		Example: `  heddle token create --workload shop/web-1 --service shop/web > token
  install -m 600 token /etc/heddle/token && heddle-proxy run --join-token-file /etc/heddle/token …`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for flag, name := range map[string]string{"workload": workload, "service": service} {
				if ns, local, ok := strings.Cut(name, "/"); !ok || ns == "" || local == "" {
					return usagef("--%s %q: want namespace/name", flag, name)
				}
			}
			if ttl <= 0 {
				return usagef("--ttl %s: it must be in the future", ttl)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), askWithin)
			defer cancel()
			var reply struct {
				APIVersion string    `json:"apiVersion"`
				Token      string    `json:"token"`
				Workload   string    `json:"workload"`
				Service    string    `json:"service"`
				Expires    time.Time `json:"expires,omitzero"`
				Warning    string    `json:"warning,omitempty"`
			}
			err := c.controlplaneAPI().Post(ctx, "/v1/tokens", map[string]any{
				"workload": workload, "service": service, "ttl": ttl.String(),
			}, &reply)
			if err != nil {
				return err
			}
			if c.output == "json" {
				reply.APIVersion, reply.Workload, reply.Service = apiVersion, workload, service
				return writeJSON(c.stdout, reply)
			}
			if reply.Warning != "" {
				fmt.Fprintln(c.stderr, "warning:", terminal.Clean(reply.Warning))
			}
			_, err = fmt.Fprintln(c.stdout, reply.Token)
			return err
		},
	}
	create.Flags().StringVar(&workload, "workload", "", "the `workload` that may enrol, as policy declares it (required)")
	create.Flags().StringVar(&service, "service", "", "the `service` that it runs (required)")
	create.Flags().DurationVar(&ttl, "ttl", time.Hour, "how `long` the token may be used")
	c.stateFlag(create)
	c.outputFlag(create, "table", "json")
	for flag, of := range map[string]func(*mesh.Mesh) []string{"workload": workloadNames, "service": serviceNames} {
		err := create.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return c.names(cmd, of), cobra.ShellCompDirectiveNoFileComp
		})
		if err != nil {
			panic(err) // the flag was not defined: a fault of this program
		}
	}
	return group("token", "Make join tokens for sidecars", `  heddle token create --workload shop/web-1 --service shop/web > token`, create)
}

func (c *cli) keyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key reconciler|controlplane",
		Short: "Print the public key by which the other program knows this one",
		Long: `Reconciler and control plane know each other by pinned keys. Key prints the public half of one of them, and
makes the pair if there is none yet, in STATE/reconciler/key or STATE/controlplane/key.`,
		Example: `  heddle key reconciler       # for: heddle controlplane --reconciler-key …
  heddle key controlplane     # for: heddle reconciler --control-plane-key …`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] != "reconciler" && args[0] != "controlplane" {
				return errors.New("which key: reconciler or controlplane?")
			}
			return nil
		},
		ValidArgs: []string{"reconciler", "controlplane"},
		RunE: func(_ *cobra.Command, args []string) error {
			dir := filepath.Join(c.state, args[0])
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return fmt.Errorf("state directory: %w", err)
			}
			key, err := pinned.LoadOrCreateKey(filepath.Join(dir, "key"))
			if err != nil {
				return err
			}
			public := release.FormatKey(pinned.Public(key))
			if c.output == "json" {
				return writeJSON(c.stdout, map[string]string{"apiVersion": apiVersion, "program": args[0], "key": public})
			}
			_, err = fmt.Fprintln(c.stdout, public)
			return err
		},
	}
	c.stateFlag(cmd)
	c.outputFlag(cmd, "table", "json")
	return cmd
}

func (c *cli) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  heddle version -o json",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			if c.output == "json" {
				return writeJSON(c.stdout, map[string]string{"apiVersion": apiVersion, "version": version, "go": runtime.Version(),
					"platform": runtime.GOOS + "/" + runtime.GOARCH})
			}
			_, err := fmt.Fprintln(c.stdout, "heddle", version)
			return err
		},
	}
	c.outputFlag(cmd, "table", "json")
	return cmd
}

func (c *cli) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print a shell's completion script",
		Long:  `Completion knows commands, flags, formats and, from the state directory, the names of services and workloads.`,
		Example: `  source <(heddle completion bash)
  heddle completion zsh > "${fpath[1]}/_heddle"
  heddle completion fish > ~/.config/fish/completions/heddle.fish`,
		Args:      argsBetween(1, 1),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(c.stdout, true)
			case "zsh":
				return cmd.Root().GenZshCompletion(c.stdout)
			case "fish":
				return cmd.Root().GenFishCompletion(c.stdout, true)
			}
			return usagef("there is no completion for %q; there is for bash, zsh and fish", args[0])
		},
	}
}

func (c *cli) helpCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "help [COMMAND | HDL0123]",
		Short: "Explain a command, or a finding, offline",
		Long:  `Help explains a command, or what a finding means, why it is a fault and how to mend it.`,
		Example: `  heddle help explain
  heddle help HDL0206`,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			var out []string
			if at, _, err := cmd.Root().Find(args); err == nil {
				for _, sub := range at.Commands() {
					out = append(out, sub.Name()+"\t"+sub.Short)
				}
			}
			if len(args) == 0 {
				for _, check := range diag.Catalogue {
					out = append(out, check.ID+"\t"+check.Title)
				}
			}
			return out, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && strings.HasPrefix(strings.ToUpper(args[0]), "HDL") {
				return c.helpFinding(strings.ToUpper(args[0]))
			}
			if c.output == "json" {
				return usagef("-o json explains findings only: heddle help HDL0206 -o json")
			}
			at, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return &usageError{err: fmt.Errorf("there is no command %q", strings.Join(args, " ")), command: "heddle"}
			}
			at.InitDefaultHelpFlag()
			return at.Help()
		},
	}
	c.outputFlag(cmd, "table", "json")
	return cmd
}

func (c *cli) helpFinding(id string) error {
	check, ok := diag.Explain(id)
	if !ok {
		var ids []string
		for _, known := range diag.Catalogue {
			ids = append(ids, known.ID)
		}
		err := fmt.Errorf("there is no finding %s", id)
		if near := diag.Nearest(id, ids); near != "" {
			return &usageError{err: &hinted{err, "heddle help " + near}}
		}
		return &usageError{err: err, command: "heddle help"}
	}
	if c.output == "json" {
		return writeJSON(c.stdout, struct {
			APIVersion string `json:"apiVersion"`
			diag.Check
		}{apiVersion, check})
	}
	why, mend := check.Why, "Mend it: "+check.Mend
	if c.out.Width > 0 {
		why, mend = wrap(why, "", c.width()), wrap(mend, "", c.width())
	}
	_, err := fmt.Fprintf(c.stdout, "%s: %s\n\n%s\n\n%s\n", c.out.Bold(check.ID), check.Title, why, mend)
	return err
}

// completeServices completes the first n arguments with services.
func (c *cli) completeServices(n int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return c.names(cmd, serviceNames), cobra.ShellCompDirectiveNoFileComp
	}
}

// names reads names from the newest release on disk or, for commands that look at a repository, from that: without any
// program running.
func (c *cli) names(cmd *cobra.Command, of func(*mesh.Mesh) []string) []string {
	if flagenv.Apply(cmd.Flags()) != nil {
		return nil
	}
	c.stateGiven(cmd)
	t := target{}
	for name, to := range map[string]*string{"dir": &t.dir, "rev": &t.rev, "env": &t.env} {
		if f := cmd.Flags().Lookup(name); f != nil {
			*to = f.Value.String()
		}
	}
	r, err := published.Open(c.state)
	if cmd.Flags().Lookup("dir") != nil && (t.dir != "" || t.rev != "" || err != nil && hasPolicy(home())) {
		one, err := c.read(cmd.Context(), &t)
		if err != nil || one.Mesh == nil {
			return nil
		}
		return of(one.Mesh)
	}
	if err != nil {
		return nil
	}
	latest, err := r.Latest()
	if err != nil {
		return nil
	}
	return of(latest.Mesh)
}

func serviceNames(m *mesh.Mesh) []string {
	var out []string
	for i := range m.Inbound {
		out = append(out, string(m.Inbound[i].Service))
	}
	return out
}

func workloadNames(m *mesh.Mesh) []string {
	var out []string
	for i := range m.Workloads {
		out = append(out, m.Workloads[i].Name)
	}
	slices.Sort(out)
	return out
}
