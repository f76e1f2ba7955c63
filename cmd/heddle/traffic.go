package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/published"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/terminal"
	"github.com/heddle-mesh/heddle/cmd/heddle/up"
	"github.com/heddle-mesh/heddle/controlplane/observe"
	"github.com/heddle-mesh/heddle/controlplane/push"
)

func (c *cli) proxiesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "proxies",
		Short: "List the sidecars, and which commit each one enforces",
		Long: `Proxies lists every sidecar that is enrolled, with the commit that it has acknowledged.
Exit code 1: one of them refused a release (nack) or is not connected.`,
		Example: `  heddle proxies
  heddle proxies -o json | jq -r '.items[] | select(.nack) | .workload'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), askWithin)
			defer cancel()
			var reply struct {
				Items []push.Proxy `json:"items"`
			}
			if err := c.controlplaneAPI().Get(ctx, "/v1/proxies", &reply); err != nil {
				return err
			}
			bad := func(p push.Proxy) bool { return p.Nack != "" || !p.Connected }
			err := list(c, reply.Items, func(p push.Proxy) string { return p.Workload }, func(items []push.Proxy) *terminal.Table {
				t := &terminal.Table{Columns: []terminal.Column{
					{Title: "PROXY"}, {Title: "SERVICE", Drop: 3}, {Title: "STATE"}, {Title: "COMMIT"}, {Title: "EPOCH", Right: true, Drop: 4},
					{Title: "AGE", Right: true}, {Title: "CERT", Right: true, Drop: 1}, {Title: "ADDRESS", Drop: 5},
					{Title: "VERSION", Drop: 6}, {Title: "IDENTITY", Drop: 7},
				}}
				for _, p := range items {
					mark := terminal.Fine
					switch {
					case p.Nack != "":
						mark = terminal.Trouble
					case !p.Connected:
						mark = terminal.Warning
					}
					epoch, cert := "", ""
					if p.Epoch > 0 {
						epoch = fmt.Sprint(p.Epoch)
					}
					if !p.CertificateExpires.IsZero() {
						cert = age(time.Until(p.CertificateExpires))
					}
					t.Add(mark, p.Workload, p.Service, string(p.State), short(p.Commit), epoch, since(p.Since), cert, p.Address, p.Version, p.Identity)
				}
				return t
			})
			if err != nil {
				return err
			}
			if c.output == "" || c.output == "table" {
				for _, p := range reply.Items {
					if p.Nack != "" {
						fmt.Fprintf(c.stdout, "%s %s: nack: %s\n", c.out.Glyph(terminal.Trouble), p.Workload, terminal.Clean(p.Nack))
					}
				}
			}
			if slices.ContainsFunc(reply.Items, bad) {
				return errProblems
			}
			return nil
		},
	}
	c.stateFlag(cmd)
	c.outputFlag(cmd, "table", "json", "jsonl", "name")
	return cmd
}

func (c *cli) edgesCommand() *cobra.Command {
	var to, from string
	cmd := &cobra.Command{
		Use:   "edges",
		Short: "Show who calls whom, how well, and whether mTLS is on",
		Long: `Edges shows the traffic between services over the last seconds, as their sidecars report it, and for what is
denied the line that says so. Success of no requests is no number.`,
		Example: `  heddle edges
  heddle edges --to shop/api -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), askWithin)
			defer cancel()
			var reply struct {
				Items []observe.Edge `json:"items"`
			}
			if err := c.controlplaneAPI().Get(ctx, "/v1/edges", &reply); err != nil {
				return err
			}
			places := c.places()
			var items []edge
			for _, e := range reply.Items {
				if (to == "" || e.To == to) && (from == "" || e.From == from) {
					items = append(items, edge{Edge: e, Place: places[e.Rule]})
				}
			}
			return list(c, items, func(e edge) string { return e.From + " " + e.To }, func(items []edge) *terminal.Table {
				t := &terminal.Table{Columns: up.EdgeColumns()}
				for _, e := range items {
					mark, cells := up.EdgeRow(e.Edge, places)
					t.Add(mark, cells...)
				}
				return t
			})
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "only calls of this `service`")
	cmd.Flags().StringVar(&from, "from", "", "only calls by this `service`")
	for _, flag := range []string{"to", "from"} {
		err := cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return c.names(cmd, serviceNames), cobra.ShellCompDirectiveNoFileComp
		})
		if err != nil {
			panic(err) // the flag was not defined: a fault of this program
		}
	}
	c.stateFlag(cmd)
	c.outputFlag(cmd, "table", "json", "jsonl", "name")
	return cmd
}

// edge is an edge with the line of the rule that denied on it.
type edge struct {
	observe.Edge
	Place string `json:"place,omitempty"` // file:line
}

// places are the lines of rules, by id, as far as this machine knows them.
func (c *cli) places() map[string]string {
	out := map[string]string{}
	r, err := published.Open(c.state)
	if err != nil {
		return out // the control plane may well be on another machine than the reconciler
	}
	latest, err := r.Latest()
	if err != nil {
		return out
	}
	for id, pos := range latest.Origins {
		out[id] = strings.TrimSpace(pos.Short())
	}
	return out
}
