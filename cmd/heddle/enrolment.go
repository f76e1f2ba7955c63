package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/terminal"
	"github.com/heddle-mesh/heddle/controlplane"
	"github.com/heddle-mesh/heddle/internal/flagenv"
)

func (c *cli) enrolmentsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "enrolments",
		Short: "List the workloads that are enrolled, and the identity of each",
		Long: `Enrolments lists every workload that a join token enrolled, connected or not, with the identity that policy gives
it now. One workload is enrolled on one host. Exit code 1: policy gives one of them no identity.`,
		Example: `  heddle enrolments
  heddle enrolments -o name`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), askWithin)
			defer cancel()
			items, err := c.enrolments(ctx)
			if err != nil {
				return err
			}
			name := func(e controlplane.EnrolmentEntry) string { return e.Workload }
			err = list(c, items, name, func(items []controlplane.EnrolmentEntry) *terminal.Table {
				t := &terminal.Table{Columns: []terminal.Column{
					{Title: "WORKLOAD"}, {Title: "SERVICE"}, {Title: "AGE", Right: true}, {Title: "IDENTITY", Drop: 1},
				}}
				for _, e := range items {
					mark := terminal.Fine
					if e.Fault != "" {
						mark = terminal.Trouble
					}
					t.Add(mark, e.Workload, e.Service, since(e.Created), e.Identity)
				}
				return t
			})
			if err != nil {
				return err
			}
			if c.output == "" || c.output == "table" {
				for _, e := range items {
					if e.Fault != "" {
						fmt.Fprintf(c.stdout, "%s %s: %s\n", c.out.Glyph(terminal.Trouble), e.Workload, terminal.Clean(e.Fault))
					}
				}
			}
			if slices.ContainsFunc(items, func(e controlplane.EnrolmentEntry) bool { return e.Fault != "" }) {
				return errProblems
			}
			return nil
		},
	}
	c.stateFlag(cmd)
	c.outputFlag(cmd, "table", "json", "jsonl", "name")
	return cmd
}

func (c *cli) enrolments(ctx context.Context) ([]controlplane.EnrolmentEntry, error) {
	var reply controlplane.Enrolments
	err := c.controlplaneAPI().Get(ctx, "/v1/enrolments", &reply)
	return reply.Items, err
}

func (c *cli) revokeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke NS/WORKLOAD",
		Short: "Take back the enrolment of a workload",
		Long: `Revoke forgets the host key and the join tokens of a workload and ends its stream: its sidecar gets no config and
no certificate any more, and others stop calling it. The certificate that it has stays good until it ends, at the time
that revoke prints: until then other sidecars believe it. Where that is too long, commit a policy that denies the
identity; all workloads of the service share it. A new join token enrols the workload again.`,
		Example: `  heddle revoke shop/web-1
  heddle enrolments -o name | grep ^old/ | xargs -n 1 heddle revoke`,
		Args: argsBetween(1, 1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 || flagenv.Apply(cmd.Flags()) != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
			defer cancel()
			items, err := c.enrolments(ctx)
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var names []string
			for _, e := range items {
				names = append(names, e.Workload)
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if ns, local, ok := strings.Cut(args[0], "/"); !ok || ns == "" || local == "" {
				return usagef("workload %q: want namespace/name", args[0])
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), askWithin)
			defer cancel()
			var reply controlplane.RevokeReply
			if err := c.controlplaneAPI().Post(ctx, "/v1/revoke", controlplane.RevokeRequest{Workload: args[0]}, &reply); err != nil {
				return err
			}
			if c.output == "json" {
				return writeJSON(c.stdout, reply)
			}
			_, err := fmt.Fprintf(c.stdout, "revoked %s; its last certificate ends by %s\n", reply.Workload, reply.CertificateEnds.Local().Format(time.RFC3339))
			return err
		},
	}
	c.stateFlag(cmd)
	c.outputFlag(cmd, "table", "json")
	return cmd
}
