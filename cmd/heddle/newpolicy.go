package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/reconciler/policy"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// protocols are those that policy knows, as in v1alpha1.#Protocol.
var protocols = []string{"detect", "http1", "http2", "grpc", "tls", "tcp", "opaque"}

// fresh is a file that is about to be written.
type fresh struct {
	name     string // slash-separated, relative to the repository
	text     string
	declares []string // the policy path that must not be there yet
}

func (c *cli) policyNewCommand() *cobra.Command {
	var dir string
	dirFlag := func(cmd *cobra.Command) *cobra.Command {
		cmd.Flags().StringVar(&dir, "dir", "", "the policy repository's `directory`")
		if err := cmd.MarkFlagDirname("dir"); err != nil {
			panic(err) // the flag was just defined
		}
		c.outputFlag(cmd, "table", "json")
		return cmd
	}

	var port uint16
	var protocol, portName, timeout string
	var from []string
	service := &cobra.Command{
		Use:   "service NAMESPACE/NAME",
		Short: "Write the file of a new service",
		Long: `Service writes services/NAMESPACE/NAME.cue with one port, in the form that editors complete. Nobody may call the
service until a rule says so: --from writes one. Nothing is written where the file exists, where the service is declared
already, or where the result would not pass heddle check.`,
		Example: `  heddle policy new service shop/cart --port 8080 --protocol http1 --from shop/web
  heddle policy new service shop/ledger --port 5432 --protocol tcp --dir policy`,
		Args: argsBetween(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ns, name, err := splitName(args[0])
			if err != nil {
				return err
			}
			if port == 0 {
				return usagef("--port 0: want 1 to 65535")
			}
			label := portName
			switch {
			case label != "":
			case slices.Contains([]string{"tcp", "opaque", "tls", "grpc"}, protocol):
				label = protocol
			default:
				label = "http"
			}
			if timeout != "" {
				if d, err := time.ParseDuration(timeout); err != nil || d <= 0 {
					return usagef(`--timeout %q: want a duration, as in "5s"`, timeout)
				}
			}
			var b strings.Builder
			fmt.Fprintf(&b, "services: %s: %q: v1alpha1.#Service & {\n\tports: %s: {port: %d, protocol: %q}\n\n", cueLabel(ns), name, cueLabel(label), port, protocol)
			if timeout != "" {
				fmt.Fprintf(&b, "\tdefaults: timeout: %q\n\n", timeout)
			}
			if len(from) == 0 {
				b.WriteString("\t// Nobody may call it until a rule says who:\n\t// allow: caller: from: [{service: \"" + ns + "/caller\"}]\n")
			}
			for _, caller := range from {
				callerNS, local, err := splitName(caller)
				if err != nil {
					return err
				}
				rule := local
				if callerNS != ns {
					rule = callerNS + "-" + local
				}
				fmt.Fprintf(&b, "\tallow: %s: from: [{service: %q}]\n", cueLabel(rule), caller)
			}
			b.WriteString("}\n")
			return c.writeNew(cmd.Context(), dir, fresh{"services/" + ns + "/" + name + ".cue", b.String(), []string{"services", ns, name}})
		},
	}
	service.Flags().Uint16Var(&port, "port", 8080, "the `number` that callers use")
	service.Flags().Var(&choice{&protocol, protocols, "protocol"}, "protocol", "what the port speaks: "+strings.Join(protocols, ", "))
	protocol, service.Flag("protocol").DefValue = "http1", "http1"
	complete(service, "protocol", protocols...)
	service.Flags().StringVar(&portName, "port-name", "", "the port's `name`; default: http, or the protocol where it is none of HTTP")
	service.Flags().StringSliceVar(&from, "from", nil, "a `service` that may call, as namespace/name; may be repeated")
	service.Flags().StringVar(&timeout, "timeout", "", "the longest a request may take, as in 5s; default: the namespace's or the mesh's")

	namespace := &cobra.Command{
		Use:   "namespace NAMESPACE",
		Short: "Write the file of a new namespace",
		Long: `Namespace writes services/NAMESPACE/ns.cue, where the defaults of a namespace stand. A namespace needs no file to
exist: services under services/NAMESPACE/ are enough.`,
		Example: `  heddle policy new namespace payments`,
		Args:    argsBetween(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkLabel(args[0]); err != nil {
				return err
			}
			text := fmt.Sprintf("// What holds in this namespace, unless a service says otherwise; as in {defaults: timeout: \"10s\"}.\n"+
				"namespaces: %s: v1alpha1.#Namespace & {}\n", cueLabel(args[0]))
			return c.writeNew(cmd.Context(), dir, fresh{"services/" + args[0] + "/ns.cue", text, []string{"namespaces", args[0]}})
		},
	}

	var runs, address string
	var meshPort uint16
	workload := &cobra.Command{
		Use:   "workload NAMESPACE/NAME --service NAME",
		Short: "Write the file of a new workload outside an orchestrator",
		Long: `Workload writes external/NAMESPACE/NAME.cue: a machine that runs a service behind a sidecar of its own. Only
what is declared can get an identity, with a token of heddle token create.`,
		Example: `  heddle policy new workload payments/ledger-1 --service ledger --address 192.0.2.10`,
		Args:    argsBetween(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ns, name, err := splitName(args[0])
			if err != nil {
				return err
			}
			runs = strings.TrimPrefix(runs, ns+"/")
			if err := checkLabel(runs); err != nil {
				return usagef("--service %q: want the name of a service of namespace %s", runs, ns)
			}
			text := fmt.Sprintf("workloads: %s: %q: v1alpha1.#Workload & {\n\tservice: %q\n", cueLabel(ns), name, runs)
			if address != "" {
				ip, err := netip.ParseAddr(address)
				if err != nil {
					return usagef("--address %q: want an IP address", address)
				}
				text += fmt.Sprintf("\taddress: %q\n", ip)
			} else {
				text += "\t// The address is what its sidecar reports when it enrols.\n"
			}
			if meshPort != 0 {
				text += fmt.Sprintf("\tport: %d\n", meshPort)
			}
			return c.writeNew(cmd.Context(), dir, fresh{"external/" + ns + "/" + name + ".cue", text + "}\n", []string{"workloads", ns, name}})
		},
	}
	workload.Flags().StringVar(&runs, "service", "", "the `service` of the namespace that it runs (required)")
	workload.Flags().StringVar(&address, "address", "", "the `IP` address of the host; default: what its sidecar reports")
	workload.Flags().Uint16Var(&meshPort, "port", 0, "the `number` of its sidecar's mesh port; default: 4143")

	return group("new", "Write the file of something new", `  heddle policy new service shop/cart --port 8080 --protocol http1 --from shop/web
  heddle policy new namespace payments
  heddle policy new workload payments/ledger-1 --service ledger`, dirFlag(service), dirFlag(namespace), dirFlag(workload))
}

// splitName reads "namespace/name".
func splitName(text string) (ns, name string, err error) {
	ns, name, ok := strings.Cut(text, "/")
	if !ok {
		return "", "", usagef("%q: want namespace/name", text)
	}
	if err := checkLabel(ns); err != nil {
		return "", "", err
	}
	return ns, name, checkLabel(name)
}

// checkLabel checks a DNS label (RFC 1123).
func checkLabel(name string) error {
	ok := 0 < len(name) && len(name) <= 63 && name[0] != '-' && name[len(name)-1] != '-'
	if !ok || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return usagef("%q is no name: use lower-case letters, digits and '-', at most 63, no '-' at the ends", name)
	}
	return nil
}

// cueLabel writes a name as a label, quoted where CUE would read it otherwise.
func cueLabel(name string) string {
	if strings.Contains(name, "-") || name[0] >= '0' && name[0] <= '9' ||
		slices.Contains([]string{"package", "import", "for", "in", "if", "let", "true", "false", "null"}, name) {
		return fmt.Sprintf("%q", name)
	}
	return name
}

// writeNew writes a file into a repository that the file leaves valid.
func (c *cli) writeNew(ctx context.Context, dir string, f fresh) error {
	if dir == "" {
		dir = c.policyDir(nil)
	}
	t := target{dir: dir}
	repo := t.open()
	defer repo.Close()
	files, err := t.files(ctx, repo)
	if err != nil {
		return err
	}
	if !hasPolicy(dir) {
		return &hinted{noLook(fmt.Errorf("%s is not a policy repository: it has no mesh.cue", dir)), "heddle policy init " + dir}
	}
	at := filepath.Join(dir, filepath.FromSlash(f.name))
	if _, err := os.Lstat(at); err == nil {
		return &hinted{fmt.Errorf("%s exists already; nothing was written", at), "edit it, or choose another name"}
	}
	before, err := files.Evaluate(ctx, "")
	if err != nil {
		return noLook(err)
	}
	if before.Document != nil {
		if pos, ok := before.Document.At(strings.Join(f.declares, ".")); ok {
			return &hinted{fmt.Errorf("%s is declared already, at %s; nothing was written", strings.Join(f.declares[1:], "/"), pos.Short()), "edit it there"}
		}
	}
	text := []byte(f.text)
	head := "package policy\n\nimport \"" + v1alpha1.ImportPath + "\"\n\n"
	text, found := policy.Format(f.name, append([]byte(head), text...))
	if len(found) > 0 {
		return found
	}
	after, err := files.With(f.name, text).Evaluate(ctx, "")
	if err != nil {
		return noLook(err)
	}
	known := map[string]bool{}
	for _, old := range before.Findings {
		known[old.String()] = true
	}
	worse := slices.DeleteFunc(after.Findings.Errors(), func(f diag.Finding) bool { return known[f.String()] })
	if len(worse) > 0 {
		if err := diag.Text(c.stderr, worse, c.err.Color); err != nil {
			return err
		}
		return &hinted{fmt.Errorf("%s would have %s; nothing was written", f.name, count(len(worse), "finding")), "change the flags as the findings say"}
	}
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return fmt.Errorf("writing %s: %w", at, err)
	}
	if err := durable.WriteFile(at, text, 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", at, err)
	}
	if c.output == "json" {
		return writeJSON(c.stdout, map[string]any{"apiVersion": apiVersion, "written": []string{f.name}})
	}
	if _, err := fmt.Fprintln(c.stdout, f.name); err != nil {
		return err
	}
	fmt.Fprintf(c.stderr, "next: edit %s, then heddle check %s\n", at, dir)
	return nil
}
