// Command refgen writes docs/reference from what the code itself says: the findings from their catalogue, the policy
// language from the generated types (whose comments come from types.cue), the commands from their own help. It is run by
// `make generate` in the repository's root.
package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

const note = "<!-- Written by `make generate`; change the source it names, not this page. -->\n\n"

// pages are the pages of the reference by name, each made for the root of a source tree.
var pages = map[string]func(root string) (string, error){
	"authorization.md": authorization,
	"commands.md":      commands,
	"findings.md":      findings,
	"policy.md":        policy,
}

func main() {
	log.SetFlags(0)
	root := "."
	if len(os.Args) > 1 {
		root = os.Args[1]
	}
	dir := filepath.Join(root, "docs", "reference")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		log.Fatal(err)
	}
	for name, page := range pages {
		text, err := page(root)
		if err != nil {
			log.Fatalf("%s: %v", name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			log.Fatal(err)
		}
	}
}

func policy(root string) (string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, "schema", "v1alpha1", "cue_types_gen.go"), nil, parser.ParseComments)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("# The policy language, v1alpha1\n\n" + note)
	b.WriteString("From `schema/v1alpha1/types.cue`; `rules.cue` beside it has the checks. A type is written `v1alpha1.#Name` in policy. " +
		"`policy.schema.json` beside it is the same as a JSON Schema, for editors of JSON and YAML; how rules decide is in [authorization](authorization.md).\n")
	builtIn(&b)
	gateway(&b)
	for _, decl := range file.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok || gen.Tok != token.TYPE {
			continue
		}
		for _, spec := range gen.Specs {
			ts := spec.(*ast.TypeSpec)
			doc := ts.Doc
			if doc == nil {
				doc = gen.Doc
			}
			fmt.Fprintf(&b, "\n## #%s\n\n%s\n", ts.Name.Name, flow(doc.Text()))
			st, ok := ts.Type.(*ast.StructType)
			if !ok {
				continue
			}
			b.WriteString("\n| field | type | |\n|---|---|---|\n")
			for _, f := range st.Fields.List {
				tag := reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("json")
				name, opt, _ := strings.Cut(tag, ",")
				req := ""
				if opt == "" {
					req = " (required)"
				}
				fmt.Fprintf(&b, "| `%s` | %s | %s%s |\n", name, typeName(f.Type), flow(f.Doc.Text()), req)
			}
		}
	}
	return b.String(), nil
}

// builtIn writes the table of last-resort values.
func builtIn(b *strings.Builder) {
	b.WriteString("\n## What holds where nothing is said\n\n" +
		"The nearest level that sets a field wins: route, port, service, namespace, mesh, and last this table. " +
		"`heddle policy show --effective` prints the values in force with the line that set each.\n\n" +
		"| field | value | of what | from |\n|---|---|---|---|\n")
	for _, v := range mesh.BuiltIn {
		fmt.Fprintf(b, "| `%s` | `%s` | %s | %s |\n", v.Path, v.Value, flow(v.Unit), flow(v.Source))
	}
}

func flow(s string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "|", `\|`)
}

func typeName(e ast.Expr) string {
	switch t := e.(type) {
	case *ast.Ident:
		switch t.Name {
		case "string", "bool":
			return t.Name
		case "int64":
			return "int"
		}
		return fmt.Sprintf("[#%s](#%s)", t.Name, strings.ToLower(t.Name))
	case *ast.StarExpr:
		return typeName(t.X)
	case *ast.ArrayType:
		return "list of " + typeName(t.Elt)
	case *ast.MapType:
		return "by name: " + typeName(t.Value)
	}
	return "any"
}

var command = regexp.MustCompile(`(?m)^  ([a-z][a-z-]+) {2,}`)

// commands asks the binaries, so that the page cannot differ from what --help says.
func commands(root string) (string, error) {
	tmp, err := os.MkdirTemp("", "refgen")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	build := exec.Command("go", "build", "-o", tmp+"/", "./cmd/heddle", "./cmd/heddle-proxy")
	build.Dir, build.Stderr = root, os.Stderr
	if err := build.Run(); err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("# Commands\n\n" + note + "What `--help` prints.\n")
	var walk func(words []string) error
	walk = func(words []string) error {
		cmd := exec.Command(filepath.Join(tmp, words[0]), append(append([]string{}, words[1:]...), "--help")...)
		cmd.Dir = tmp
		cmd.Env = []string{"HOME=/nonexistent", "NO_COLOR=1", "PATH=" + os.Getenv("PATH")}
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("%s --help: %w", strings.Join(words, " "), err)
		}
		fmt.Fprintf(&b, "\n## %s\n\n```text\n%s\n```\n", strings.Join(words, " "), bytes.TrimSpace(out))
		list, _, _ := strings.Cut(string(out), "\nFlags:")
		for _, m := range command.FindAllStringSubmatch(list, -1) {
			if m[1] == "help" || m[1] == "completion" {
				continue
			}
			if err := walk(append(append([]string{}, words...), m[1])); err != nil {
				return err
			}
		}
		return nil
	}
	for _, bin := range []string{"heddle", "heddle-proxy"} {
		if err := walk([]string{bin}); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}
