package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

func (c *cli) policyCommand() *cobra.Command {
	init := &cobra.Command{
		Use:   "init [DIR]",
		Short: "Write a small policy repository to start from",
		Long: `Init writes a complete small policy repository: mesh.cue, five services in two namespaces, expectations,
the vendored schema, CODEOWNERS, a commit hook and pull-request workflows that need only the stock cue CLI. It overwrites
nothing. Its README.md goes through the first change.`,
		Example: `  heddle policy init mesh-policy && cd mesh-policy && git init && heddle check`,
		Args:    argsBetween(0, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			return c.writePolicy(directory(args), false)
		},
	}
	upgrade := &cobra.Command{
		Use:   "upgrade [DIR]",
		Short: "Replace the vendored schema by this version's",
		Long: `Upgrade replaces the copy of the schema in cue.mod/pkg, for you to commit. The reconciler judges by its own
copy in any case; this one is for the stock cue CLI and for editors.`,
		Example: `  heddle policy upgrade && git commit -am "Upgrade the policy schema"`,
		Args:    argsBetween(0, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			return c.writePolicy(c.policyDir(args), true)
		},
	}
	c.outputFlag(init, "table", "json")
	c.outputFlag(upgrade, "table", "json")
	return group("policy", "Start, write and understand policy", `  heddle policy init mesh-policy
  heddle policy new service shop/cart --port 8080 --protocol http1
  heddle policy show shop/cart --effective
  heddle policy explain services.httpRoutes.retry
  heddle policy upgrade`,
		init, c.policyNewCommand(), c.policyShowCommand(), c.policyExplainCommand(), c.policyFormatCommand(), upgrade)
}

func directory(args []string) string {
	if len(args) == 0 {
		return "."
	}
	return args[0]
}

// mode is the mode of a repository's file: git passes over a hook that is not executable.
func mode(name string) os.FileMode {
	if path.Dir(name) == ".githooks" {
		return 0o755
	}
	return 0o644
}

// writePolicy writes a new repository's files, or replaces the schema of an old one.
func (c *cli) writePolicy(dir string, upgrade bool) error {
	files, vendored := map[string][]byte{}, filepath.Join(dir, filepath.FromSlash(v1alpha1.VendorDir))
	if upgrade {
		module, err := os.ReadFile(filepath.Join(dir, "cue.mod", "module.cue"))
		if err != nil {
			return &hinted{fmt.Errorf("%s is not a policy repository: %w", dir, err), "heddle policy init " + dir}
		}
		// A package both in deps and under cue.mod/pkg is an ambiguous import, which no cue command survives.
		if bytes.Contains(module, []byte(path.Dir(path.Dir(v1alpha1.ImportPath)))) {
			return &hinted{fmt.Errorf("%s names %s among its deps, which clashes with the vendored copy",
				filepath.Join(dir, "cue.mod", "module.cue"), path.Dir(path.Dir(v1alpha1.ImportPath))), "remove it from deps, and run this again"}
		}
	} else {
		scaffold, err := scaffolding()
		if err != nil {
			return err
		}
		maps.Copy(files, scaffold)
	}
	maps.Copy(files, v1alpha1.Vendored())
	names := slices.Sorted(maps.Keys(files))
	if !upgrade {
		for _, name := range names {
			if _, err := os.Lstat(filepath.Join(dir, filepath.FromSlash(name))); err == nil {
				return &hinted{fmt.Errorf("%s exists already; nothing was written", filepath.Join(dir, name)), "heddle policy upgrade " + dir}
			}
		}
	} else {
		old, err := filepath.Glob(filepath.Join(vendored, "*"))
		if err != nil {
			return err
		}
		for _, at := range old { // files that this version's schema no longer has
			if !slices.Contains(names, v1alpha1.VendorDir+"/"+filepath.Base(at)) {
				if err := os.RemoveAll(at); err != nil {
					return fmt.Errorf("replacing the schema: %w", err)
				}
			}
		}
	}
	for _, name := range names {
		at := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			return fmt.Errorf("writing the repository: %w", err)
		}
		if err := durable.WriteFile(at, files[name], mode(name)); err != nil {
			return fmt.Errorf("writing the repository: %w", err)
		}
	}
	if c.output == "json" {
		return writeJSON(c.stdout, map[string]any{"apiVersion": apiVersion, "schema": v1alpha1.Version, "written": names})
	}
	for _, name := range names {
		if _, err := fmt.Fprintln(c.stdout, name); err != nil {
			return err
		}
	}
	fmt.Fprintf(c.stderr, "schema %s; next: heddle check %s\n", v1alpha1.Version, dir)
	return nil
}
