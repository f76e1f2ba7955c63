package diag

import (
	"io"
	"net/url"
	"strings"
)

// SARIF writes findings as a SARIF 2.1.0 log with one run of a tool named heddle of the given version: what code-scanning
// services read. Rules are those that the findings name. A finding without a position has no location. SARIF
// knows columns of code points and of UTF-16 units, and Heddle counts bytes: they agree where a line is ASCII up to the
// place.
func SARIF(w io.Writer, l List, version string) error {
	index := map[string]int{}
	rules, results := []sarifRule{}, []sarifResult{}
	prints := Fingerprints(l)
	for n, f := range l {
		i, ok := index[f.ID]
		if !ok {
			i = len(rules)
			index[f.ID] = i
			r := sarifRule{ID: f.ID}
			if c, ok := Explain(f.ID); ok {
				r.Short, r.Full = &sarifText{Text: c.Title}, &sarifText{Text: c.Why}
				r.Help = &sarifText{Text: c.Why + "\nMend it: " + c.Mend, Markdown: c.Why + "\n\n**Mend it:** " + c.Mend}
			}
			r.Default = &sarifDefault{level(f)}
			rules = append(rules, r)
		}
		res := sarifResult{RuleID: f.ID, RuleIndex: i, Level: level(f), Message: sarifText{Text: noLink.Replace(text(f))},
			Prints: map[string]string{"heddle/v1": prints[n]}}
		if f.Pos.File != "" {
			res.Locations = []sarifLocation{location(f.Pos)}
		}
		for _, p := range f.Related {
			if p.File != "" {
				res.Related = append(res.Related, location(p))
			}
		}
		results = append(results, res)
	}
	return encode(w, sarifLog{
		Schema:  "https://json.schemastore.org/sarif-2.1.0.json",
		Version: "2.1.0",
		Runs: []sarifRun{{
			ColumnKind: "unicodeCodePoints",
			Tool:       sarifTool{sarifDriver{Name: "heddle", Version: version, Rules: rules}},
			Results:    results,
		}},
	})
}

// noLink keeps what an author has written from being read as a link (SARIF 2.1.0, 3.11.6).
var noLink = strings.NewReplacer("](", "] (")

func location(p Pos) sarifLocation {
	l := sarifLocation{Physical: sarifPhysical{Artifact: sarifArtifact{URI: (&url.URL{Path: p.File}).String(), Base: "%SRCROOT%"}}}
	if p.Line > 0 {
		l.Physical.Region = &sarifRegion{Line: p.Line, Column: p.Column}
	}
	return l
}

// The few objects of SARIF 2.1.0 that are used here, named as in its chapter 3.
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool       sarifTool     `json:"tool"`
		ColumnKind string        `json:"columnKind"`
		Results    []sarifResult `json:"results"`
	}
	sarifTool struct {
		Driver sarifDriver `json:"driver"`
	}
	sarifDriver struct {
		Name    string      `json:"name"`
		Version string      `json:"version,omitempty"`
		Rules   []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID      string        `json:"id"`
		Short   *sarifText    `json:"shortDescription,omitempty"`
		Full    *sarifText    `json:"fullDescription,omitempty"`
		Help    *sarifText    `json:"help,omitempty"`
		Default *sarifDefault `json:"defaultConfiguration,omitempty"`
	}
	sarifDefault struct {
		Level string `json:"level"`
	}
	sarifText struct {
		Text     string `json:"text"`
		Markdown string `json:"markdown,omitempty"`
	}
	sarifResult struct {
		RuleID    string          `json:"ruleId"`
		RuleIndex int             `json:"ruleIndex"`
		Level     string          `json:"level"`
		Message   sarifText       `json:"message"`
		Locations []sarifLocation `json:"locations,omitempty"`
		Related   []sarifLocation `json:"relatedLocations,omitempty"`
		// Prints tell a finding that was there before from a new one; see [Fingerprints].
		Prints map[string]string `json:"partialFingerprints"`
	}
	sarifLocation struct {
		Physical sarifPhysical `json:"physicalLocation"`
	}
	sarifPhysical struct {
		Artifact sarifArtifact `json:"artifactLocation"`
		Region   *sarifRegion  `json:"region,omitempty"`
	}
	sarifArtifact struct {
		URI  string `json:"uri"`
		Base string `json:"uriBaseId,omitempty"`
	}
	sarifRegion struct {
		Line   int `json:"startLine"`
		Column int `json:"startColumn,omitempty"`
	}
)
