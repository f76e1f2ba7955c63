package policy

import (
	"bytes"
	"fmt"
	"maps"
	"regexp"
	"sync"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// This file looks for secrets in every text file of a repository, policy or not. It knows those that say what they are;
// what is found is never shown.

// known are the kinds of secrets. A file is searched by the expression only where it has the literal, which each match
// contains.
var known = []struct{ what, literal, expression string }{
	{"a private key", "PRIVATE KEY", `-----BEGIN ([A-Z0-9]+ )*PRIVATE KEY( BLOCK)?-----`},
	{"a private JSON Web Key", `kty`, `\\*"d\\*"\s*:\s*\\*"[A-Za-z0-9_-]{40,}`},
	{"a join token of Heddle", "heddle-join-1.", `heddle-join-1\.[A-Za-z0-9_-]{16,}`},
	{"an AWS access key", "AKIA", `\bAKIA[0-9A-Z]{16}\b`},
	{"an AWS access key", "ASIA", `\bASIA[0-9A-Z]{16}\b`},
	{"an AWS secret key", "aws_secret_access_key", `aws_secret_access_key["']?\s*[:=]\s*["']?[A-Za-z0-9/+]{40}\b`},
	{"a GitHub token", "ghp_", `\bghp_[A-Za-z0-9]{36,}`},
	{"a GitHub token", "gho_", `\bgho_[A-Za-z0-9]{36,}`},
	{"a GitHub token", "ghu_", `\bghu_[A-Za-z0-9]{36,}`},
	{"a GitHub token", "ghs_", `\bghs_[A-Za-z0-9]{36,}`},
	{"a GitHub token", "ghr_", `\bghr_[A-Za-z0-9]{36,}`},
	{"a GitHub token", "github_pat_", `\bgithub_pat_[A-Za-z0-9_]{22,}`},
	{"a GitLab token", "glpat-", `\bglpat-[A-Za-z0-9_-]{20,}`},
	{"a Slack token", "xox", `\bxox[abeoprs]-[A-Za-z0-9-]{10,}`},
	{"a Slack webhook", "hooks.slack.com/services/", `hooks\.slack\.com/services/T[A-Z0-9]+/B[A-Z0-9]+/[A-Za-z0-9]{16,}`},
	{"a Google API key", "AIza", `\bAIza[0-9A-Za-z_-]{35}`},
	{"a Stripe key", "k_live_", `\b[sr]k_live_[0-9A-Za-z]{20,}`},
	{"a password in an address", "://", `://[^\s/:@"'<>]*:[^\s/@"'<>$]{3,}@[A-Za-z0-9\[]`},
	{"a JSON Web Token", "eyJ", `\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}`},
	{"an npm token", "npm_", `\bnpm_[A-Za-z0-9]{36}\b`},
}

// placeholder is what stands for a password where addresses are explained.
var placeholder = regexp.MustCompile(`(?i)^://[^:]*:(pass(word|wd)?|secret|token|x+|\*+|\.\.\.|pw)@`)

// expressions are those of known, read when they are needed first: the children never do.
var expressions = sync.OnceValue(func() []*regexp.Regexp {
	out := make([]*regexp.Regexp, len(known))
	for i, k := range known {
		out[i] = regexp.MustCompile(k.expression)
	}
	return out
})

// secret is a place in a file.
type secret struct {
	what         string
	line, column int // column in bytes, from 1
}

// scan is what a content came to. It is kept by the content's hash.
type scan struct {
	found []secret
	used  uint64 // the last turn that asked for it
}

// maxSecrets bounds what is told of one file.
const maxSecrets = 20

// findSecrets looks through one file. What has NUL bytes at its beginning is no text, as git judges it.
func findSecrets(text []byte) []secret {
	if bytes.IndexByte(text[:min(len(text), 8000)], 0) >= 0 {
		return nil
	}
	var found []secret
	for i, k := range known {
		if !bytes.Contains(text, []byte(k.literal)) {
			continue
		}
		for _, at := range expressions()[i].FindAllIndex(text, maxSecrets) {
			if len(found) >= maxSecrets {
				return found
			}
			if match := text[at[0]:at[1]]; bytes.HasSuffix(match, []byte("EXAMPLE")) || placeholder.Match(match) { // those of manuals
				continue
			}
			before := text[:at[0]]
			found = append(found, secret{k.what, 1 + bytes.Count(before, []byte("\n")), len(before) - bytes.LastIndexByte(before, '\n')})
		}
	}
	return found
}

// secrets reads what was not read before, and reports what there is.
func (e *Evaluator) secrets(blobs []blob, turn uint64) (diag.List, error) {
	found := make([]*scan, len(blobs))
	var fresh []int
	e.mu.Lock()
	maps.DeleteFunc(e.scans, func(_ string, s *scan) bool { return s.used+keep < turn })
	for i, b := range blobs {
		if found[i] = e.scans[b.hash]; found[i] == nil {
			fresh = append(fresh, i)
			continue
		}
		found[i].used = turn
	}
	e.mu.Unlock()
	for _, i := range fresh {
		text, err := blobs[i].read()
		if err != nil {
			return nil, err
		}
		found[i] = &scan{found: findSecrets(text), used: turn}
	}
	e.mu.Lock()
	for _, i := range fresh {
		e.scans[blobs[i].hash] = found[i]
	}
	e.mu.Unlock()
	var findings diag.List
	for i, b := range blobs {
		for _, s := range found[i].found {
			findings.Add(diag.Finding{ID: diag.Secret, Pos: diag.Pos{File: b.name, Line: s.line, Column: s.column},
				Message: fmt.Sprintf("this is %s: whoever can read the repository has it", s.what),
				Hint:    "revoke it where it was issued, for the history keeps it, and take it out; policy needs no secrets"})
		}
	}
	return findings, nil
}
