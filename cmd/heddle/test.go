package main

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/candidate"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/terminal"
	"github.com/heddle-mesh/heddle/reconciler/expect"
	"github.com/heddle-mesh/heddle/schema/diag"
)

func (c *cli) testCommand() *cobra.Command {
	var t target
	var only string
	var verbose bool
	cmd := &cobra.Command{
		Use:   "test [DIR]",
		Short: "Run the expectations of a policy repository",
		Long: `Test compiles the policy in a directory, or of a revision, and asks every expectation under tests: what becomes of
that call? It reports like go test: the expectations that fail, each with the line that decided, and how many ran. The
reconciler runs the same, and refuses a commit whose expectations fail.

Exit code 0: all hold, or there are none. 1: one fails, or the policy has errors. 3: something could not be read.`,
		Example: `  heddle test
  heddle test --run 'strangers' -v
  heddle test policy --all-envs -o junit > heddle.xml`,
		Args: argsBetween(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t.dir = c.policyDir(args)
			match, err := regexp.Compile(only)
			if err != nil {
				return usagef("--run: %w", err)
			}
			return c.test(cmd.Context(), &t, match, verbose)
		},
	}
	t.flags(cmd, "env", "all-envs", "rev", "proxy-version")
	cmd.Flags().StringVar(&only, "run", "", "run only expectations whose name this regular `expression` matches")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show those that hold too, with what decides")
	c.outputFlag(cmd, "text", "json", "junit")
	return cmd
}

// tested is a result with the environment that it is of.
type tested struct {
	Environment string `json:"environment,omitempty"`
	expect.Result
}

func (c *cli) test(ctx context.Context, t *target, match *regexp.Regexp, verbose bool) error {
	repo := t.open()
	defer repo.Close()
	files, err := t.files(ctx, repo)
	if err != nil {
		return err
	}
	all, err := t.candidates(ctx, files)
	if err != nil {
		return err
	}
	var findings diag.List // of what could not be compiled
	results := []tested{}
	for _, one := range all {
		if one.Mesh == nil {
			findings = append(findings, one.Findings.Errors()...)
			continue
		}
		one.Prove()
		for _, r := range one.Results {
			if match.MatchString(r.Name) {
				results = append(results, tested{one.Env, r})
			}
		}
	}
	findings = findings.Sorted()
	failed := 0
	for i := range results {
		if !results[i].Pass {
			failed++
		}
	}
	switch c.output {
	case "json":
		err = writeJSON(c.stdout, struct {
			APIVersion string    `json:"apiVersion"`
			Kind       string    `json:"kind"`
			Items      []tested  `json:"items"`
			Failed     int       `json:"failed"`
			Findings   diag.List `json:"findings,omitempty"`
		}{apiVersion, "TestResults", results, failed, findings})
	case "junit":
		err = junit(c.stdout, results, findings)
	default:
		err = c.printTests(results, failed, findings, len(all), verbose, match.String() != "")
	}
	if err == nil && (failed > 0 || len(findings) > 0) {
		err = errProblems
	}
	return err
}

func (c *cli) printTests(results []tested, failed int, findings diag.List, envs int, verbose, chosen bool) error {
	if err := diag.Text(c.stdout, findings, c.out.Color); err != nil {
		return err
	}
	var b strings.Builder
	for i := range results {
		r := &results[i]
		if r.Pass && !verbose {
			continue
		}
		verdict := c.out.Paint(terminal.Good, "PASS")
		if !r.Pass {
			verdict = c.out.Paint(terminal.Trouble, "FAIL")
		}
		name := r.Name
		if r.Environment != "" {
			name += " [" + r.Environment + "]"
		}
		fmt.Fprintf(&b, "--- %s: %s (%s)\n", verdict, terminal.Clean(name), terminal.Clean(r.Pos.Short()))
		line := func(field, text string) {
			if text != "" {
				fmt.Fprintf(&b, "    %-9s%s\n", field, terminal.Clean(text))
			}
		}
		if !r.Pass {
			line("expected", r.Expected)
		}
		line("got", r.Got)
		line("because", r.Because)
		if !r.Decided.IsZero() {
			line("", r.Decided.Short())
		}
	}
	in := ""
	if envs > 1 {
		in = " in " + count(envs, "environment")
	}
	switch {
	case len(findings) > 0:
		fmt.Fprintf(&b, "%s  the policy has %s, so it is not compiled\n", c.out.Paint(terminal.Trouble, "FAIL"), count(len(findings), "finding"))
	case failed > 0:
		fmt.Fprintf(&b, "%s  %d of %s%s\n", c.out.Paint(terminal.Trouble, "FAIL"), failed, count(len(results), "expectation"), in)
	case len(results) == 0 && chosen:
		b.WriteString("ok    no expectation matches --run\n")
	case len(results) == 0:
		b.WriteString("ok    there are no expectations; write some under tests/, as heddle policy explain tests shows\n")
	default:
		fmt.Fprintf(&b, "%s    %s%s\n", c.out.Paint(terminal.Good, "ok"), count(len(results), "expectation"), in)
	}
	_, err := io.WriteString(c.stdout, b.String())
	return err
}

// The form that build servers read (JUnit's, as Jenkins and GitLab document it).
type junitSuites struct {
	XMLName  xml.Name     `xml:"testsuites"`
	Tests    int          `xml:"tests,attr"`
	Failures int          `xml:"failures,attr"`
	Errors   int          `xml:"errors,attr"`
	Suites   []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Errors   int         `xml:"errors,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Name    string        `xml:"name,attr"`
	Class   string        `xml:"classname,attr"`
	File    string        `xml:"file,attr,omitempty"`
	Failure *junitFailure `xml:"failure"`
	Error   *junitFailure `xml:"error"`
}

type junitFailure struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// junit writes one suite an environment. Findings, which no expectation could be run for, are errors of a suite of their
// own.
func junit(w io.Writer, results []tested, findings diag.List) error {
	out := junitSuites{}
	if len(findings) > 0 {
		s := junitSuite{Name: "policy"}
		for _, f := range findings {
			s.Cases = append(s.Cases, junitCase{Name: f.ID, Class: "policy", File: f.Pos.File, Error: &junitFailure{f.Message, f.String()}})
		}
		s.Tests, s.Errors = len(s.Cases), len(s.Cases)
		out.Suites = append(out.Suites, s)
	}
	for _, r := range results {
		name := "expectations"
		if r.Environment != "" {
			name += " in " + r.Environment
		}
		i := slices.IndexFunc(out.Suites, func(s junitSuite) bool { return s.Name == name })
		if i < 0 {
			out.Suites, i = append(out.Suites, junitSuite{Name: name}), len(out.Suites)
		}
		one := junitCase{Name: r.Name, Class: name, File: r.Pos.File}
		if !r.Pass {
			one.Failure = &junitFailure{fmt.Sprintf("expected %s, got %s", r.Expected, r.Got), r.Pos.Short() + ": " + r.Because}
			if !r.Decided.IsZero() {
				one.Failure.Text += " (" + r.Decided.Short() + ")"
			}
			if r.Got == "" {
				one.Failure.Message = r.Because
			}
			out.Suites[i].Failures++
		}
		out.Suites[i].Tests++
		out.Suites[i].Cases = append(out.Suites[i].Cases, one)
	}
	for _, s := range out.Suites {
		out.Tests, out.Failures, out.Errors = out.Tests+s.Tests, out.Failures+s.Failures, out.Errors+s.Errors
	}
	b, err := xml.MarshalIndent(out, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s%s\n", xml.Header, b)
	return err
}

// tests is shared with plan: how the expectations of a candidate went, in a few words.
func tests(one *candidate.Candidate) string {
	failed := 0
	for _, r := range one.Results {
		if !r.Pass {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Sprintf("%d of %d fail", failed, len(one.Results))
	}
	return fmt.Sprintf("%d pass", len(one.Results))
}
