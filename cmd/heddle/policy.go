package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/reconciler/compile"
	"github.com/heddle-mesh/heddle/reconciler/policy"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

func (c *cli) checkCommand() *cobra.Command {
	var env string
	cmd := &cobra.Command{
		Use:   "check [DIR]",
		Short: "Validate the policy repository in a directory, as the reconciler would",
		Long: `Check runs the reconciler's own pipeline over the files of a directory as they lie there, committed or
not; what Git ignores is left out. It prints every finding.

Exit code 0: nothing found. 1: findings. 3: something could not be read, so nothing is said.`,
		Example: `  heddle check
  heddle check policy -o sarif > heddle.sarif
  heddle check -o github            # annotations in a pull request`,
		Args: argsBetween(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			return c.check(cmd.Context(), dir, env)
		},
	}
	cmd.Flags().StringVar(&env, "env", "", "the `environment` to evaluate for; default: the repository's own")
	c.outputFlag(cmd, "text", "json", "sarif", "github")
	return cmd
}

func (c *cli) check(ctx context.Context, dir, env string) error {
	files, findings, err := workTree(ctx, dir)
	if err != nil {
		return err
	}
	doc, found, err := policy.New(policy.Options{}).LoadFiles(ctx, files, env)
	if err != nil {
		return noLook(fmt.Errorf("evaluating the policy: %w", err))
	}
	findings = append(findings, found...)
	var m *mesh.Mesh
	if doc != nil {
		m, _, found = compile.Compile(doc, compile.Options{})
		findings = append(findings, found...)
	}
	findings = findings.Sorted()
	if err := c.printFindings(findings); err != nil {
		return err
	}
	if len(findings) > 0 {
		return errProblems
	}
	if c.output == "text" || c.output == "" {
		services := 0
		if m != nil {
			services = len(m.Inbound)
		}
		fmt.Fprintf(c.stderr, "%s checked, nothing found\n", count(services, "service"))
	}
	return nil
}

// Limits of a work tree: those of the reconciler's source (reconciler.md: 50,000 files, 1 MiB a file, 64 MiB in all).
const (
	maxFiles = 50_000
	maxFile  = 1 << 20
	maxTree  = 64 << 20
)

// workTree reads the files of a directory that a commit of all of it would hold, with the findings that the reconciler
// would make of them.
func workTree(ctx context.Context, dir string) (map[string][]byte, diag.List, error) {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("it is not a directory")
	}
	if err != nil {
		return nil, nil, &hinted{noLook(fmt.Errorf("reading %s: %w", dir, err)), "heddle check DIR, with the directory that holds mesh.cue"}
	}
	names, err := treeNames(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	files, findings, total := map[string][]byte{}, diag.List{}, int64(0)
	for _, name := range names {
		at := filepath.Join(dir, filepath.FromSlash(name))
		info, err := os.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted, and not committed yet
		}
		if err != nil {
			return nil, nil, noLook(fmt.Errorf("reading %s: %w", at, err))
		}
		pos := diag.Pos{File: name}
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			findings.Add(diag.Finding{ID: diag.Symlink, Pos: pos, Message: "a symbolic link", Hint: "replace it by the file that it points to"})
			continue
		case info.IsDir(): // git names a directory only where it is a repository of its own
			findings.Add(diag.Finding{ID: diag.Submodule, Pos: pos, Message: "a submodule", Hint: "copy its files into this repository"})
			continue
		case !info.Mode().IsRegular():
			continue // git does not commit it
		case info.Size() > maxFile:
			findings.Add(diag.Finding{ID: diag.FileTooLarge, Pos: pos, Message: fmt.Sprintf("the file has %d bytes; %d are the most", info.Size(), maxFile),
				Hint: "keep what is not policy in another repository"})
			continue
		}
		if len(files) >= maxFiles {
			findings.Add(diag.Finding{ID: diag.TooManyFiles, Message: fmt.Sprintf("the directory holds more than %d files", maxFiles),
				Hint: "keep what is not policy in another repository, or ignore it with .gitignore"})
			break
		}
		if total += info.Size(); total > maxTree {
			findings.Add(diag.Finding{ID: diag.TreeTooLarge, Message: "the directory holds more than a policy repository may",
				Hint: "keep what is not policy in another repository, or ignore it with .gitignore"})
			break
		}
		b, err := os.ReadFile(at)
		if err != nil {
			return nil, nil, noLook(fmt.Errorf("reading %s: %w", at, err))
		}
		files[name] = b
	}
	return files, findings, nil
}

// treeNames are the slash-separated names of a directory's files: those that git tracks or would add and, outside a
// repository, all.
func treeNames(ctx context.Context, dir string) ([]string, error) {
	if git, err := exec.LookPath("git"); err == nil {
		cmd := exec.CommandContext(ctx, git, "-C", dir, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
		if out, err := cmd.Output(); err == nil {
			var names []string
			for name := range bytes.SplitSeq(out, []byte{0}) {
				if len(name) > 0 {
					names = append(names, strings.TrimSuffix(string(name), "/"))
				}
			}
			slices.Sort(names)
			return slices.Compact(names), nil
		}
	}
	var names []string
	err := filepath.WalkDir(dir, func(at string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return noLook(fmt.Errorf("reading %s: %w", at, err))
		case d.IsDir() && d.Name() == ".git":
			return fs.SkipDir
		case d.IsDir():
			return nil
		}
		rel, err := filepath.Rel(dir, at)
		names = append(names, filepath.ToSlash(rel))
		return err
	})
	return names, err
}

func (c *cli) policyCommand() *cobra.Command {
	init := &cobra.Command{
		Use:   "init [DIR]",
		Short: "Write a small policy repository to start from",
		Long: `Init writes a complete small policy repository: mesh.cue, one service, the vendored schema, and a
pull-request workflow that needs only the stock cue CLI. It overwrites nothing.`,
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
			return c.writePolicy(directory(args), true)
		},
	}
	c.outputFlag(init, "table", "json")
	c.outputFlag(upgrade, "table", "json")
	return group("policy", "Start or upgrade a policy repository", `  heddle policy init mesh-policy
  heddle policy upgrade`, init, upgrade)
}

func directory(args []string) string {
	if len(args) == 0 {
		return "."
	}
	return args[0]
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
		if err := durable.WriteFile(at, files[name], 0o644); err != nil {
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

// printFindings renders findings in the format that was asked for.
func (c *cli) printFindings(l diag.List) error {
	switch c.output {
	case "json":
		return diag.JSON(c.stdout, l)
	case "sarif":
		return diag.SARIF(c.stdout, l, version)
	case "github":
		return diag.GitHub(c.stdout, l)
	}
	return diag.Text(c.stdout, l, c.out.Color)
}
