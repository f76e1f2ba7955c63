package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/reconciler/policy"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

func (c *cli) policyExplainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain [FIELD]",
		Short: "Explain a field of the policy language, offline",
		Long: `Explain prints what a field means, its type, its default and the fields below it, from the schema that this
program checks by. FIELD is a path of field names joined by dots; names of services, routes and the like may stand in it
or be left out. "#Retry" names a type. Without FIELD, it lists what a repository may say.`,
		Example: `  heddle policy explain services.httpRoutes.retry
  heddle policy explain services.shop.web.ports.http.mtls
  heddle policy explain '#Invariant'
  heddle policy explain mesh.mandates -o json`,
		Args: argsBetween(0, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := newLanguage()
			if err != nil {
				return err
			}
			field := ""
			if len(args) == 1 {
				field = args[0]
			}
			x, err := l.explain(field)
			if err != nil {
				return err
			}
			if c.output == "json" {
				return writeJSON(c.stdout, x)
			}
			_, err = io.WriteString(c.stdout, c.fieldPage(x))
			return err
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			l, err := newLanguage()
			if err != nil || len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return l.complete(typed), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		},
	}
	c.outputFlag(cmd, "table", "json")
	return cmd
}

// language is the policy language by the names of its types.
type language map[string]*policy.Definition

func newLanguage() (language, error) {
	all, err := policy.Language(v1alpha1.Files()["types.cue"])
	if err != nil {
		return nil, fmt.Errorf("reading the embedded schema: %w", err)
	}
	l := language{}
	for i := range all {
		l[all[i].Name] = &all[i]
	}
	return l, nil
}

// explained is a field, or a type, with those below it.
type explained struct {
	APIVersion string `json:"apiVersion"`
	explainedField
	Fields []explainedField `json:"fields,omitempty"`
}

type explainedField struct {
	Field    string `json:"field"`
	Type     string `json:"type"`
	Values   string `json:"values,omitempty"` // what the type stands for, where it is no struct
	Required bool   `json:"required,omitempty"`
	Default  string `json:"default,omitempty"`
	Doc      string `json:"doc,omitempty"`
}

// explain finds a field by its path.
func (l language) explain(path string) (*explained, error) {
	at, x := l["Policy"], &explained{APIVersion: apiVersion}
	x.Field, x.Type, x.Doc = "", "#Policy", flat(at.Doc)
	words := strings.Split(path, ".")
	if path == "" {
		words = nil
	}
	if name, ok := strings.CutPrefix(path, "#"); ok || l[path] != nil {
		first, rest, _ := strings.Cut(name, ".")
		if at = l[first]; at == nil {
			var names []string
			for name := range l {
				names = append(names, name)
			}
			return nil, missing("type", "#"+first, names, "heddle policy explain")
		}
		x.Field, x.Type, x.Values, x.Doc, words = "#"+first, "#"+first, at.Type, flat(at.Doc), nil
		if rest != "" {
			words = strings.Split(rest, ".")
		}
	}
	skip := 0 // names that may stand before the next field
	for _, word := range words {
		if word == "" {
			continue
		}
		var found *policy.Field
		if at != nil {
			if i := slices.IndexFunc(at.Fields, func(f policy.Field) bool { return f.Name == word }); i >= 0 {
				found = &at.Fields[i]
			}
		}
		var names []string
		if at != nil {
			for i := range at.Fields {
				names = append(names, at.Fields[i].Name)
			}
		}
		// A name that an author chose may stand here; one that is nearly a field's is rather that, misspelt.
		if found == nil && skip > 0 && diag.Nearest(word, names) == "" {
			skip--
			continue
		}
		if _, err := strconv.Atoi(word); err == nil && found == nil {
			continue // an index of a list
		}
		if found == nil {
			return nil, missing("field", word, names, cmp.Or(x.Field, "the policy")+" has no fields")
		}
		x.explainedField = l.field(found)
		at, skip = l[found.Ref], found.Maps
		if at != nil && x.Doc == "" {
			x.Doc = flat(at.Doc)
		}
	}
	x.Field = cmp.Or(path, "policy")
	if at != nil {
		for i := range at.Fields {
			x.Fields = append(x.Fields, l.field(&at.Fields[i]))
		}
	}
	return x, nil
}

// field describes a field; an alias of a plain type is resolved, and its words are used where the field has none.
func (l language) field(f *policy.Field) explainedField {
	x := explainedField{Field: f.Name, Type: f.Type, Required: f.Required, Doc: flat(f.Doc)}
	if d := l[f.Ref]; d != nil {
		x.Doc = cmp.Or(x.Doc, flat(d.Doc))
		if d.Type != "string" {
			x.Values = d.Type
		}
	}
	if m := defaultOf.FindStringSubmatch(x.Doc); m != nil {
		x.Default = m[1]
	}
	return x
}

// defaultOf reads the sentence that names a default, as types.cue words them all.
var defaultOf = regexp.MustCompile(`(?:Built-in default|Default): (.*?)\.?(?:\.\s|\.$|$)`)

// flat joins the lines of a comment.
func flat(doc string) string { return strings.Join(strings.Fields(doc), " ") }

// missing is an error about a name that does not exist, with the nearest one.
func missing(what, name string, known []string, none string) error {
	err := fmt.Errorf("there is no %s %q", what, name)
	if near := diag.Nearest(name, known); near != "" {
		return &usageError{err: &hinted{err, fmt.Sprintf("did you mean %s?", near)}}
	}
	if len(known) == 0 {
		return &usageError{err: &hinted{err, none}}
	}
	slices.Sort(known)
	return &usageError{err: &hinted{err, "there are " + strings.Join(known, ", ")}}
}

// complete lists the paths that a typed one may go on to.
func (l language) complete(typed string) []string {
	base, word := "", typed
	if i := strings.LastIndexByte(typed, '.'); i >= 0 {
		base, word = typed[:i], typed[i+1:]
	}
	x, err := l.explain(base)
	if err != nil {
		return nil
	}
	var out []string
	for _, f := range x.Fields {
		if strings.HasPrefix(f.Field, word) {
			out = append(out, strings.TrimPrefix(base+"."+f.Field, ".")+"\t"+f.Type)
		}
	}
	return out
}

func (c *cli) fieldPage(x *explained) string {
	var b strings.Builder
	line := func(field, text string) {
		if text != "" {
			fmt.Fprintf(&b, "%-9s%s\n", field, text)
		}
	}
	line("FIELD", c.out.Bold(x.Field))
	line("TYPE", x.Type)
	line("", x.Values)
	if x.Required {
		line("", "required")
	}
	line("DEFAULT", x.Default)
	if x.Doc != "" {
		fmt.Fprintf(&b, "\n%s\n", wrap(x.Doc, "", c.width()))
	}
	if len(x.Fields) > 0 {
		b.WriteString("\nFIELDS\n")
	}
	for _, f := range x.Fields {
		required := ""
		if f.Required {
			required = " (required)"
		}
		kind := f.Type
		if f.Values != "" && strings.HasPrefix(kind, "#") {
			kind = f.Values
		}
		fmt.Fprintf(&b, "  %s  %s%s\n", c.out.Bold(f.Field), kind, required)
		if f.Doc != "" {
			fmt.Fprintf(&b, "%s\n", wrap(f.Doc, "      ", c.width()))
		}
	}
	return b.String()
}

// width is how wide prose may be: that of the terminal, and off one a page's.
func (c *cli) width() int {
	if c.out.Width > 0 {
		return min(c.out.Width, 100)
	}
	return 80
}

// wrap breaks prose between words.
func wrap(text, indent string, width int) string {
	var b strings.Builder
	n := 0
	for i, word := range strings.Fields(text) {
		wide := utf8.RuneCountInString(word)
		switch {
		case i == 0:
			b.WriteString(indent)
			n = len(indent)
		case n+1+wide > width:
			b.WriteString("\n" + indent)
			n = len(indent)
		default:
			b.WriteByte(' ')
			n++
		}
		b.WriteString(word)
		n += wide
	}
	return b.String()
}

func (c *cli) policyFormatCommand() *cobra.Command {
	var check bool
	var t target
	cmd := &cobra.Command{
		Use:   "fmt [DIR]",
		Short: "Format policy files, as cue fmt does",
		Long: `Fmt rewrites the CUE files of a policy repository in the one layout that cue fmt gives them, and lists those it
changed. The vendored schema is left alone. With --check it only lists them.

Exit code 0: all are formatted. 1: with --check, some are not; or a file cannot be read as CUE, and is left as it is.`,
		Example: `  heddle policy fmt
  heddle policy fmt policy --check`,
		Args: argsBetween(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t.dir = c.policyDir(args)
			repo := t.open()
			defer repo.Close()
			files, err := t.files(cmd.Context(), repo)
			if err != nil {
				return err
			}
			var findings diag.List
			changed := []string{}
			for _, name := range files.Names() {
				if filepath.Ext(name) != ".cue" || strings.HasPrefix(name, "cue.mod/") {
					continue
				}
				text := files.Content(name)
				out, found := policy.Format(name, text)
				findings = append(findings, found...)
				if len(found) > 0 || string(out) == string(text) {
					continue
				}
				changed = append(changed, name)
				if check {
					continue
				}
				at := filepath.Join(t.dir, filepath.FromSlash(name))
				info, err := os.Stat(at)
				if err != nil {
					return fmt.Errorf("formatting %s: %w", at, err)
				}
				if err := durable.WriteFile(at, out, info.Mode().Perm()); err != nil {
					return fmt.Errorf("formatting %s: %w", at, err)
				}
			}
			if c.output == "json" {
				err = writeJSON(c.stdout, struct {
					APIVersion string    `json:"apiVersion"`
					Changed    []string  `json:"changed"`
					Findings   diag.List `json:"findings,omitempty"`
				}{apiVersion, changed, findings})
			} else {
				for _, name := range changed {
					if _, err = fmt.Fprintln(c.stdout, name); err != nil {
						break
					}
				}
				if err == nil {
					err = diag.Text(c.stderr, findings, c.err.Color)
				}
			}
			if err == nil && (len(findings) > 0 || check && len(changed) > 0) {
				err = errProblems
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "only list the files that are not formatted")
	c.outputFlag(cmd, "table", "json")
	return cmd
}
