package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/terminal"
)

const apiVersion = "heddle/v1"

// outputFlag adds -o with the formats of a command; the first is the default.
func (c *cli) outputFlag(cmd *cobra.Command, formats ...string) {
	v := &choice{value: &c.output, of: formats, kind: "format"}
	// Each command has its own default, and only one command runs.
	cmd.Flags().VarP(v, "output", "o", "`format`: "+strings.Join(formats, ", "))
	cmd.Flag("output").DefValue = formats[0]
	complete(cmd, "output", formats...)
}

// choice is a flag whose value is one of a list.
type choice struct {
	value *string
	of    []string
	kind  string
}

func (f *choice) String() string { return *f.value }
func (f *choice) Type() string   { return f.kind }

func (f *choice) Set(s string) error {
	if !slices.Contains(f.of, s) {
		return fmt.Errorf("it is one of %s", strings.Join(f.of, ", "))
	}
	*f.value = s
	return nil
}

func complete(cmd *cobra.Command, flag string, values ...string) {
	err := cmd.RegisterFlagCompletionFunc(flag, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return values, cobra.ShellCompDirectiveNoFileComp
	})
	if err != nil {
		panic(err) // the flag was not defined: a fault of this program
	}
}

// defaultState is where the state of a mesh lies unless --state or HEDDLE_STATE say otherwise: the same directory for the
// programs that keep it and for the commands that ask them.
const defaultState = ".heddle"

// stateFlag adds --state.
func (c *cli) stateFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.state, "state", defaultState, "`directory` that holds the mesh's state")
}

// list prints items: names for `-o name`, one JSON value a line for jsonl, {items: []} for json.
func list[T any](c *cli, items []T, name func(T) string, table func([]T) *terminal.Table) error {
	switch c.output {
	case "json":
		if items == nil {
			items = []T{}
		}
		return writeJSON(c.stdout, struct {
			APIVersion string `json:"apiVersion"`
			Items      []T    `json:"items"`
		}{apiVersion, items})
	case "jsonl":
		e := json.NewEncoder(c.stdout)
		e.SetEscapeHTML(false)
		for _, item := range items {
			if err := e.Encode(item); err != nil {
				return err
			}
		}
		return nil
	case "name":
		for _, item := range items {
			if _, err := fmt.Fprintln(c.stdout, name(item)); err != nil {
				return err
			}
		}
		return nil
	}
	return table(items).Print(c.stdout, c.out)
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// age prints a duration as people say it: 4s, 3m, 5h, 2d.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// since is age of a time; empty for the zero time.
func since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return age(time.Since(t))
}

// short is a commit as people read it.
func short(commit string) string { return commit[:min(7, len(commit))] }

// person is an author without the address, where there is a name.
func person(author string) string {
	if name, _, ok := strings.Cut(author, " <"); ok && name != "" {
		return name
	}
	return author
}
