// Command heddle is Heddle's command line. It also runs the reconciler, the control plane and, with `heddle up`, a
// whole mesh of them on one machine. It is the only place that combines those parts, and the only place where errors
// become exit codes.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/terminal"
	"github.com/heddle-mesh/heddle/internal/flagenv"
	"github.com/heddle-mesh/heddle/reconciler/policy"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// version is what `heddle version` prints and releases name.
const version = "v" + mesh.Version

func main() {
	policy.MaybeRunChild()
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// cli is what all commands share.
type cli struct {
	stdout, stderr io.Writer
	out, err       terminal.Style // of stdout and stderr

	state  string // --state of the commands that ask running programs
	output string // --output

	started bool // a command's own code ran: whatever failed, the command line was well formed
}

// run executes one command line and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	c := &cli{
		stdout: stdout, stderr: stderr,
		out: terminal.StyleOf(stdout, os.Getenv), err: terminal.StyleOf(stderr, os.Getenv),
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	root := c.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if usage := (*usageError)(nil); !c.started {
		err = &usageError{err: misspelt(root, cmd, args, err), command: cmd.CommandPath()}
		c.output = cmp.Or(formatIn(args), c.output)
	} else if errors.As(err, &usage) {
		usage.command = cmd.CommandPath()
	}
	return c.report(err)
}

// misspelt is what is wrong with a command line: where it names no command, that, rather than that the command above it
// does not know the flags.
func misspelt(root, cmd *cobra.Command, args []string, err error) error {
	_, rest, _ := root.Find(args)
	if cmd.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return cmp.Or(cmd.Args(cmd, rest[:1]), err)
	}
	return err
}

// formatIn is the output format that a command line asks for, whatever else is wrong with it: its error is in that format.
func formatIn(args []string) string {
	for i, arg := range args {
		switch {
		case (arg == "-o" || arg == "--output") && i+1 < len(args):
			return args[i+1]
		case strings.HasPrefix(arg, "--output="), strings.HasPrefix(arg, "-o="):
			_, format, _ := strings.Cut(arg, "=")
			return format
		case strings.HasPrefix(arg, "-o"):
			return arg[2:]
		case arg == "--":
			return ""
		}
	}
	return os.Getenv(flagenv.Name("output"))
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "heddle",
		Short: "A service mesh whose only source of truth is Git",
		Long: `Heddle is a service mesh whose only source of truth is Git: a commit is validated, compiled,
pushed to every sidecar and enforced there; reverting it brings the old behaviour back.

Start with "heddle up": a whole mesh on this machine, with an example to change.`,
		Example: `  heddle up                       # a mesh with an example, here and now
  heddle status                   # which commit serves, and how far it has come
  heddle policy init mesh-policy  # a policy repository to start from
  heddle check                    # what is wrong with policy
  heddle plan                     # what a change of it will do
  heddle explain shop/web shop/api GET /orders`,
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	root.AddGroup(
		&cobra.Group{ID: "look", Title: "Look at a running mesh:"},
		&cobra.Group{ID: "policy", Title: "Work on policy:"},
		&cobra.Group{ID: "run", Title: "Run:"},
		&cobra.Group{ID: "operate", Title: "Operate:"},
		&cobra.Group{ID: "more", Title: "More:"},
	)
	in := func(group string, cmds ...*cobra.Command) {
		for _, cmd := range cmds {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	in("look", c.statusCommand(), c.explainCommand(), c.atCommand(), c.edgesCommand(), c.proxiesCommand(), c.historyCommand(), c.waitCommand())
	in("policy", c.checkCommand(), c.testCommand(), c.planCommand(), c.diffCommand(), c.blameCommand(), c.policyCommand())
	in("run", program(c.upCommand()), program(reconcilerCommand()), program(controlplaneCommand()))
	in("operate", c.resumeCommand(), c.hintCommand(), c.tokenCommand(), c.enrolmentsCommand(), c.revokeCommand(), c.keyCommand())
	in("more", c.completionCommand(), c.versionCommand())
	help := c.helpCommand()
	help.GroupID = "more"
	root.SetHelpCommand(help)
	c.prepare(help)
	c.prepare(root)
	if c.out.Width > 0 {
		root.AddCommand(help) // cobra would add it later
		fit(root, c.width())
	}
	return root
}

// fit breaks the prose and the flags of all help between words for a terminal; examples stay lines to paste.
func fit(root *cobra.Command, width int) {
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), "Flags.FlagUsages ", fmt.Sprintf("Flags.FlagUsagesWrapped %d ", width)))
	var each func(*cobra.Command)
	each = func(cmd *cobra.Command) {
		paragraphs := strings.Split(cmd.Long, "\n\n")
		for i, p := range paragraphs {
			if !strings.Contains(p, "\n  ") { // no list
				paragraphs[i] = wrap(p, "", width)
			}
		}
		cmd.Long = strings.Join(paragraphs, "\n\n")
		for _, sub := range cmd.Commands() {
			each(sub)
		}
	}
	each(root)
}

// prepare gives every command of the tree what all have: flags from the environment, and the mark that its own code
// was reached.
func (c *cli) prepare(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		c.prepare(sub)
	}
	// The flags of the long-running programs are named in their own help already.
	if !strings.Contains(flagUsages(cmd), "["+flagenv.Name("state")+"]") {
		flagenv.Bind(cmd.LocalNonPersistentFlags())
	}
	if runE := cmd.RunE; runE != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if err := flagenv.Apply(cmd.Flags()); err != nil {
				return err
			}
			c.started = true
			return runE(cmd, args)
		}
	}
}

// program marks what ends a long-running command as a fault of the world, unless the command line was wrong.
func program(cmd *cobra.Command) *cobra.Command {
	runE := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := runE(cmd, args)
		if err == nil || errors.As(err, new(*usageError)) {
			return err
		}
		return noLook(err)
	}
	return cmd
}

func flagUsages(cmd *cobra.Command) string {
	var b strings.Builder
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) { b.WriteString(f.Usage) })
	return b.String()
}

// group is a command that only holds others.
func group(use, short, example string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Example: example, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(subs...)
	return cmd
}

// noArgs refuses arguments, and for a command that holds others says which there are.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasSubCommands() {
		hint := "its commands are: "
		for i, sub := range cmd.Commands() {
			if i > 0 {
				hint += ", "
			}
			hint += sub.Name()
		}
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = "did you mean " + strings.Join(near, " or ") + "?"
		}
		return &hinted{fmt.Errorf("%s has no command %q", cmd.CommandPath(), args[0]), hint}
	}
	return fmt.Errorf("%s takes no arguments, not %q", cmd.CommandPath(), args[0])
}

// argsBetween takes from least to most arguments.
func argsBetween(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return fmt.Errorf("%s given, which does not fit: %s", count(len(args), "argument"), cmd.UseLine())
		}
		return nil
	}
}

// hinted is an error that says what to do next.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// What is printed already, and only needs its exit code.
var (
	errProblems = errors.New("problems were found")
	errChanges  = errors.New("something changes")
)
