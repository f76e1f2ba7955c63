package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
)

// node is a JSON Schema.
type node = map[string]any

// jsonSchema makes a JSON Schema (draft 2020-12) of a policy repository as one document, with a definition of each type,
// for editors that complete and check data in JSON or YAML.
func jsonSchema(cue string, sources map[string][]byte) (node, error) {
	text, err := run(cue, maps.Clone(sources), "def", "--out", "jsonschema", "-e", "#Policy", ".")
	if err != nil {
		return nil, err
	}
	var root node
	if err := json.Unmarshal(text, &root); err != nil {
		return nil, fmt.Errorf("reading what cue def --out jsonschema printed: %w", err)
	}
	simplify(root)
	root["$id"] = "https://github.com/heddle-mesh/heddle/schema/v1alpha1/policy.schema.json"
	root["title"] = "Heddle policy, v1alpha1"
	return root, nil
}

// simplify writes what CUE says in a roundabout way as people would: alternatives of constants as an enumeration,
// conjunctions of one thing as that thing. A type whose comment says that exactly one field is set says so in numbers:
// the checks of that are in rules.cue, where no generator sees them.
func simplify(n node) {
	for _, v := range n {
		each(v, simplify)
	}
	if all, ok := n["allOf"].([]any); ok {
		if merged, ok := merge(all); ok {
			delete(n, "allOf")
			for k, v := range merged {
				n[k] = v
			}
		}
	}
	if choices, ok := n["anyOf"].([]any); ok {
		if values, ok := constants(choices); ok {
			delete(n, "anyOf")
			n["enum"] = values
			n["type"] = typeOf(values[0])
		}
	}
	if v, ok := n["const"]; ok {
		n["type"] = typeOf(v)
	}
	if text, ok := n["description"].(string); ok {
		n["description"] = strings.Join(strings.Fields(text), " ")
		if strings.Contains(n["description"].(string), "exactly one field is set") && n["type"] == "object" {
			n["minProperties"], n["maxProperties"] = 1, 1
		}
	}
}

// each calls do for every object that is v or an element of it.
func each(v any, do func(node)) {
	switch v := v.(type) {
	case node:
		do(v)
	case []any:
		for _, e := range v {
			each(e, do)
		}
	}
}

// merge joins schemas that hold at once, where that is possible without losing one: their names differ, or one type is
// a number and the other an integer.
func merge(all []any) (node, bool) {
	out := node{}
	for _, e := range all {
		n, ok := e.(node)
		if !ok {
			return nil, false
		}
		for k, v := range n {
			old, twice := out[k]
			switch {
			case !twice || k == "type" && old == "number" && v == "integer":
				out[k] = v
			case k == "type" && (old == v || old == "integer" && v == "number"):
			default:
				return nil, false
			}
		}
	}
	return out, true
}

func typeOf(v any) string {
	switch v.(type) {
	case string:
		return "string"
	case bool:
		return "boolean"
	}
	return "integer" // the constants of policy are words, true and statuses
}

// constants are the values of alternatives that are one constant each.
func constants(choices []any) ([]any, bool) {
	var out []any
	for _, e := range choices {
		n, ok := e.(node)
		v, is := n["const"]
		if !ok || !is || len(n) != 1 {
			return nil, false
		}
		out = append(out, v)
	}
	return out, true
}

// group is the API group of the objects. It is a name that the project owns by its address at GitHub: a group under
// somebody else's domain could one day be theirs. What stands there is only read by Kubernetes; people write policy.
const group = "policy.heddle-mesh.github.io"

// kinds are the types that are objects in a cluster: what a scheduler, an autoscaler or an operator has to see or make
// there. All else of policy stays in Git, where it has one author.
var kinds = []struct {
	kind, plural, definition, column, path string
}{
	{"ExternalWorkload", "externalworkloads", "Workload", "Service", ".spec.service"},
	{"WorkloadGroup", "workloadgroups", "WorkloadGroup", "Service", ".spec.service"},
}

// definitions makes the CustomResourceDefinitions out of the JSON Schema, by file name.
func definitions(cue string, root node) (map[string][]byte, error) {
	all, _ := root["$defs"].(node)
	out := map[string][]byte{}
	for _, k := range kinds {
		spec, err := structural(all, node{"$ref": "#/$defs/" + k.definition})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.kind, err)
		}
		crd, err := indented(node{
			"apiVersion": "apiextensions.k8s.io/v1",
			"kind":       "CustomResourceDefinition",
			"metadata":   node{"name": k.plural + "." + group},
			"spec": node{
				"group": group,
				"scope": "Namespaced",
				// Fields that the schema does not name are dropped, as apiextensions.k8s.io/v1 has it by default.
				"preserveUnknownFields": false,
				"names":                 node{"kind": k.kind, "listKind": k.kind + "List", "plural": k.plural, "singular": strings.ToLower(k.kind)},
				"versions": []any{node{
					"name": "v1alpha1", "served": true, "storage": true,
					"schema": node{"openAPIV3Schema": node{
						"type":        "object",
						"description": spec["description"],
						"required":    []any{"spec"},
						"properties": node{
							"apiVersion": node{"type": "string"},
							"kind":       node{"type": "string"},
							"metadata":   node{"type": "object"},
							"spec":       spec,
						},
					}},
					"additionalPrinterColumns": []any{
						node{"name": k.column, "type": "string", "jsonPath": k.path},
						node{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
					},
				}},
			},
		})
		if err != nil {
			return nil, err
		}
		yaml, err := run(cue, map[string][]byte{"crd.json": crd}, "export", "--out", "yaml", "crd.json")
		if err != nil {
			return nil, err
		}
		out["crd/"+k.plural+".yaml"] = append([]byte("# Written by `make generate` from types.cue; change that, not this file.\n"), yaml...)
	}
	return out, nil
}

// structural is a schema in the form that Kubernetes asks of a definition: without references, with a type at every node,
// and without saying what else an object may not have, since a cluster drops fields that are not named. (Kubernetes,
// "Specifying a structural schema".)
func structural(all node, n node) (node, error) {
	if ref, ok := n["$ref"].(string); ok {
		to, ok := all[strings.TrimPrefix(ref, "#/$defs/")].(node)
		if !ok {
			return nil, fmt.Errorf("%s leads nowhere", ref)
		}
		n = maps.Clone(n)
		delete(n, "$ref")
		for k, v := range to {
			if _, set := n[k]; !set { // what the field says of itself says more than what its type says
				n[k] = v
			}
		}
	}
	out := node{}
	for k, v := range n {
		switch k {
		case "properties":
			properties := node{}
			for name, p := range v.(node) {
				s, err := structural(all, p.(node))
				if err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
				properties[name] = s
			}
			out[k] = properties
		case "additionalProperties", "items":
			if sub, ok := v.(node); ok {
				s, err := structural(all, sub)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", k, err)
				}
				out[k] = s
			}
		case "const":
			out["enum"] = []any{v}
		case "type", "description", "required", "enum", "pattern", "minimum", "maximum", "minProperties", "maxProperties":
			out[k] = v
		default:
			return nil, fmt.Errorf("no form for %s: %v", k, v)
		}
	}
	if out["type"] == nil {
		return nil, fmt.Errorf("a node without a type: %v", out)
	}
	if out["type"] == "integer" {
		out["format"] = "int64"
	}
	return out, nil
}

func indented(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
