package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/cuecontext"
	cuejson "cuelang.org/go/encoding/json"
	"cuelang.org/go/encoding/jsonschema"
	"cuelang.org/go/encoding/yaml"
	"github.com/google/go-cmp/cmp"
)

// TestInStep: what is generated is what the generators make of the schema.
func TestInStep(t *testing.T) {
	t.Chdir("../../..")
	if _, err := stockCLI(); err != nil && os.Getenv("HEDDLE_REQUIRE_CUE") == "" {
		t.Skipf("SKIPPED: the cue CLI could not be built, so nothing says that what is generated is in step: %v", err)
	}
	want, err := generate()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		got, err := os.ReadFile(filepath.Join(schema, name))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want[name]), string(got)); d != "" {
			t.Errorf("%s is not what the schema gives: run `go run ./schema/v1alpha1/regen` (-want +got):\n%s", name, d)
		}
	}
}

// TestJSONSchema: the schema is one that an editor can use. Each reference leads somewhere, each pattern is one, each
// object is closed but for those that are maps, and nothing of CUE's is left: no message taken for an alternative.
func TestJSONSchema(t *testing.T) {
	text, err := os.ReadFile("../policy.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var root node
	if err := json.Unmarshal(text, &root); err != nil {
		t.Fatal(err)
	}
	if root["$schema"] != "https://json-schema.org/draft/2020-12/schema" {
		t.Errorf("$schema is %v", root["$schema"])
	}
	defs := root["$defs"].(node)
	patterns := 0
	keywords := []string{"$defs", "$id", "$ref", "$schema", "additionalProperties", "allOf", "anyOf", "const", "description", "enum",
		"items", "maximum", "maxProperties", "minimum", "minProperties", "pattern", "properties", "required", "title", "type"}
	var check func(at string, n node)
	check = func(at string, n node) {
		for k := range n {
			if !slices.Contains(keywords, k) {
				t.Errorf("%s: keyword %s", at, k)
			}
		}
		if ref, ok := n["$ref"].(string); ok && defs[strings.TrimPrefix(ref, "#/$defs/")] == nil {
			t.Errorf("%s: %s leads nowhere", at, ref)
		}
		if p, ok := n["pattern"].(string); ok {
			patterns++
			if _, err := regexp.Compile(p); err != nil {
				t.Errorf("%s: %v", at, err)
			}
		}
		if n["type"] == "object" && n["additionalProperties"] == nil {
			t.Errorf("%s: an object that takes anything", at)
		}
		for _, k := range []string{"properties", "$defs"} {
			m, _ := n[k].(node)
			for name, p := range m {
				check(at+"/"+k+"/"+name, p.(node))
			}
		}
		for _, k := range []string{"items", "additionalProperties", "allOf", "anyOf"} {
			if list, ok := n[k].([]any); ok {
				for _, e := range list {
					if _, ok := e.(node); !ok {
						t.Errorf("%s/%s: %v is no schema of ours", at, k, e)
					}
				}
			}
			each(n[k], func(n node) { check(at+"/"+k, n) })
		}
	}
	check("", root)
	if patterns < 6 || len(defs) < 50 {
		t.Errorf("only %d patterns and %d definitions", patterns, len(defs))
	}
	for _, name := range []string{"From", "RulePath", "HeaderValue", "Filter", "HashKey"} {
		if d := defs[name].(node); d["maxProperties"] != 1.0 {
			t.Errorf("%s does not say that exactly one field is set", name)
		}
	}
}

// TestJSONSchemaJudges: the schema takes policy and refuses what is none, as CUE's own reader of JSON Schema sees it.
func TestJSONSchemaJudges(t *testing.T) {
	text, err := os.ReadFile("../policy.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	ctx := cuecontext.New()
	f, err := cuejson.Extract("policy.schema.json", text)
	if err != nil {
		t.Fatal(err)
	}
	file, err := jsonschema.Extract(ctx.BuildExpr(f), &jsonschema.Config{})
	if err != nil {
		t.Fatal(err)
	}
	judge := ctx.BuildFile(file)
	if err := judge.Err(); err != nil {
		t.Fatal(err)
	}
	const good = `{"mesh": {"trustDomain": "shop.example", "defaults": {"timeout": "2s", "retry": {"retries": 2}}},
		"services": {"shop": {"web": {"ports": {"http": {"port": 8080, "protocol": "http1"}},
			"allow": {"a": {"from": [{"service": "edge/gateway"}], "paths": [{"prefix": "/a"}]}}}}}}`
	for _, c := range []struct {
		name, old, with string
		ok              bool
	}{
		{"as it is", "", "", true},
		{"a duration without a unit", `"2s"`, `"2"`, false},
		{"too many retries", `"retries": 2`, `"retries": 11`, false},
		{"retries as text", `"retries": 2`, `"retries": "2"`, false},
		{"an unknown field", `"retries": 2`, `"retry": 2`, false},
		{"a port out of range", "8080", "80800", false},
		{"an unknown protocol", `"http1"`, `"http"`, false},
		{"two kinds of one caller", `"edge/gateway"`, `"edge/gateway", "namespace": "edge"`, false},
		{"no kind of caller", `"service": "edge/gateway"`, "", false},
		{"a relative path", `"/a"`, `"a"`, false},
		{"no trust domain", `"trustDomain": "shop.example", `, "", false},
	} {
		data := strings.Replace(good, c.old, c.with, 1)
		if c.old != "" && data == good {
			t.Fatalf("%s: nothing was replaced", c.name)
		}
		expr, err := cuejson.Extract("policy.json", []byte(data))
		if err != nil {
			t.Fatal(err)
		}
		err = judge.Unify(ctx.BuildExpr(expr)).Validate(cue.Concrete(true))
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestDefinitions: the CustomResourceDefinitions are structural, as Kubernetes asks: every node has a type, nothing is
// referred to, no alternatives, and a node has either named fields or values by any name.
func TestDefinitions(t *testing.T) {
	files, err := filepath.Glob("../crd/*.yaml")
	if err != nil || len(files) != len(kinds) {
		t.Fatalf("%d definitions for %d kinds: %v", len(files), len(kinds), err)
	}
	allowed := []string{"type", "format", "description", "properties", "additionalProperties", "items", "required", "enum", "pattern",
		"minimum", "maximum", "minProperties", "maxProperties"}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := yaml.Extract(name, text)
		if err != nil {
			t.Fatal(err)
		}
		var crd struct {
			Metadata struct{ Name string }
			Spec     struct {
				Group    string
				Names    struct{ Plural string }
				Versions []struct {
					Schema struct{ OpenAPIV3Schema node }
				}
			}
		}
		b, err := cuecontext.New().BuildFile(f).MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &crd); err != nil {
			t.Fatal(err)
		}
		if crd.Metadata.Name != crd.Spec.Names.Plural+"."+crd.Spec.Group || len(crd.Spec.Versions) != 1 {
			t.Errorf("%s defines %s, version %v", name, crd.Metadata.Name, crd.Spec.Versions)
		}
		nodes := 0
		var check func(at string, n node)
		check = func(at string, n node) {
			nodes++
			if s, ok := n["type"].(string); !ok || s == "" {
				t.Errorf("%s: %s has no type", name, at)
			}
			for k := range n {
				if !slices.Contains(allowed, k) {
					t.Errorf("%s: %s: a structural schema has no %s", name, at, k)
				}
			}
			if n["properties"] != nil && n["additionalProperties"] != nil {
				t.Errorf("%s: %s has named fields and others", name, at)
			}
			properties, _ := n["properties"].(node)
			for field, p := range properties {
				check(at+"."+field, p.(node))
			}
			required, _ := n["required"].([]any)
			for _, field := range required {
				if properties[field.(string)] == nil {
					t.Errorf("%s: %s requires %v, which it does not have", name, at, field)
				}
			}
			for _, k := range []string{"items", "additionalProperties"} {
				if n[k] != nil {
					sub, ok := n[k].(node)
					if !ok {
						t.Errorf("%s: %s.%s is %v", name, at, k, n[k])
						continue
					}
					check(at+"."+k, sub)
				}
			}
		}
		check("", crd.Spec.Versions[0].Schema.OpenAPIV3Schema)
		if nodes < 10 {
			t.Errorf("%s has only %d nodes", name, nodes)
		}
	}
}
