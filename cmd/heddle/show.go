package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/candidate"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/terminal"
	"github.com/heddle-mesh/heddle/reconciler/compile"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// shown is the settings in force for one service.
type shown struct {
	Service  mesh.ServiceName  `json:"service"`
	Settings []compile.Setting `json:"settings"`
}

func (c *cli) policyShowCommand() *cobra.Command {
	var t target
	var effective bool
	cmd := &cobra.Command{
		Use:   "show [NAMESPACE/SERVICE]",
		Short: "Show the settings of services, each with the line that set it",
		Long: `Show lists the settings in force for a service, its ports and its routes: the value, the level that set it
(route, port, service, namespace, mesh), and the line. With --effective it lists those too that nobody set, with the
default that is built in; what no sidecar of this version does yet is "not enforced". Without a service it shows all.

Exit code 0: shown. 1: the policy has errors, and what could be read is shown. 3: something could not be read.`,
		Example: `  heddle policy show shop/api --effective
  heddle policy show --env staging -o json
  heddle policy show shop/api --effective --rev main --dir policy`,
		Args: argsBetween(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) == 1 {
				name = args[0]
			}
			return c.show(cmd.Context(), &t, name, effective)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			one, err := c.read(cmd.Context(), &t)
			if err != nil || one.Document == nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return declared(one), cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().BoolVar(&effective, "effective", false, "show defaults that are built in too")
	t.flags(cmd, "dir", "rev", "env")
	c.outputFlag(cmd, "table", "json")
	return cmd
}

// read evaluates a target.
func (c *cli) read(ctx context.Context, t *target) (*candidate.Candidate, error) {
	repo := t.open()
	defer repo.Close()
	files, err := t.files(ctx, repo)
	if err != nil {
		return nil, err
	}
	one, err := files.Evaluate(ctx, t.env)
	if err != nil {
		return nil, noLook(err)
	}
	return one, nil
}

// declared are the names of the services that could be read, sorted.
func declared(one *candidate.Candidate) []string {
	var names []string
	for ns, services := range one.Document.Policy.Services {
		for name := range services {
			names = append(names, string(mesh.Name(ns, name)))
		}
	}
	slices.Sort(names)
	return names
}

func (c *cli) show(ctx context.Context, t *target, name string, effective bool) error {
	one, err := c.read(ctx, t)
	if err != nil {
		return err
	}
	if one.Document == nil {
		return c.rejected(one.Files.Name(), one)
	}
	names := declared(one)
	if name != "" {
		if !slices.Contains(names, name) {
			return missing("service", name, names, "the policy declares no service")
		}
		names = []string{name}
	}
	items := make([]shown, 0, len(names))
	settingsOf := compile.AllEffective(one.Document)
	for _, name := range names {
		settings, ok := settingsOf(mesh.ServiceName(name))
		if !ok {
			continue
		}
		idle(settings)
		if !effective {
			settings = slices.DeleteFunc(settings, func(s compile.Setting) bool { return s.Pos.IsZero() })
		}
		items = append(items, shown{mesh.ServiceName(name), settings})
	}
	if c.output == "json" {
		err = writeJSON(c.stdout, struct {
			APIVersion string  `json:"apiVersion"`
			Items      []shown `json:"items"`
		}{apiVersion, items})
	} else {
		err = c.printSettings(items, name == "")
	}
	if errors := one.Findings.Errors(); err == nil && len(errors) > 0 {
		if err = diag.Text(c.stderr, errors, c.err.Color); err == nil {
			err = errProblems
		}
	}
	return err
}

// later are the settings that a sidecar needs an ability for, by how their fields begin.
var later = []struct {
	path string
	need mesh.Capability
}{
	{"rateLimit.", mesh.CapRateLimit}, {"balancer.hash", mesh.CapHash}, {"balancer.warmup", mesh.CapWarmUp}, {"breaker.", mesh.CapBreaker},
	{"limits.", mesh.CapLimits}, {"responseTimeout", mesh.CapResponseTimeout}, {"idleTimeout", mesh.CapIdleTimeout},
	{"retry", mesh.CapRetry},
}

// idle says of built-in values for which there is nothing yet that holds them that they do not hold. What an author wrote
// of the kind is a finding.
func idle(settings []compile.Setting) {
	for i := range settings {
		s := &settings[i]
		for _, l := range later {
			if s.Level == "built in" && strings.HasPrefix(field(s.Path), l.path) && !slices.Contains(mesh.Enforced, l.need) {
				s.Value, s.Level = "none", "not enforced"
			}
		}
	}
}

// field is a setting's path without the port or the route that it is of.
func field(path string) string {
	if words := strings.SplitN(path, ".", 3); len(words) == 3 && (words[0] == "ports" || strings.HasSuffix(words[0], "Routes")) {
		return words[2]
	}
	return path
}

// printSettings shows one table, with the services as a column; on a terminal, which has no room for it, one for each.
func (c *cli) printSettings(items []shown, several bool) error {
	if !several || c.out.Width == 0 {
		return settingsTable(items, several).Print(c.stdout, c.out)
	}
	for i, item := range items {
		if i > 0 {
			fmt.Fprintln(c.stdout)
		}
		if _, err := fmt.Fprintln(c.stdout, c.out.Bold(string(item.Service))); err != nil {
			return err
		}
		if err := settingsTable(items[i:i+1], false).Print(c.stdout, c.out); err != nil {
			return err
		}
	}
	return nil
}

func settingsTable(items []shown, several bool) *terminal.Table {
	t := &terminal.Table{Columns: []terminal.Column{{Title: "SETTING"}, {Title: "VALUE"}, {Title: "SET BY", Drop: 1}, {Title: "WHERE"}}}
	if several {
		t.Columns = append([]terminal.Column{{Title: "SERVICE"}}, t.Columns...)
	}
	for _, item := range items {
		for _, s := range item.Settings {
			where := ""
			if !s.Pos.IsZero() {
				where = s.Pos.Short()
			}
			cells := []string{s.Path, cmp.Or(s.Value, `""`), s.Level, where}
			if several {
				cells = append([]string{string(item.Service)}, cells...)
			}
			t.Add(terminal.Fine, cells...)
		}
	}
	return t
}
