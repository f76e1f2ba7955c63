// Package bigpolicy writes policy repositories of any size, for benchmarks and tests: the same sizes give the same bytes.
// What it writes is sound, and looks like what teams write: services that call their neighbours in the same and the next
// namespace, three HTTP routes each, rules by service and by identity, weights, timeouts and retries.
//
// It knows the policy language and nothing of Heddle's stages; it must not import them.
package bigpolicy

import (
	"bytes"
	"fmt"
	"maps"

	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// Size is how large a repository is.
type Size struct {
	Namespaces int // directories under services/
	Services   int // in each of them, at least 2
}

// Full is the size of the project's figures: 10,000 services with 30,000 routes in 500 directories.
var Full = Size{Namespaces: 500, Services: 20}

// RoutesPerService is how many HTTP routes each service has.
const RoutesPerService = 3

// Namespace and Service are the names of things by number.
func Namespace(n int) string { return fmt.Sprintf("team-%03d", n) }

// Service is the name of a service in its namespace; see [Namespace].
func Service(s int) string { return fmt.Sprintf("svc-%02d", s) }

// Path is the file of a service.
func Path(namespace, service int) string {
	return fmt.Sprintf("services/%s/%s.cue", Namespace(namespace), Service(service))
}

// Repository returns the files of a repository by slash-separated path, the vendored schema included. The caller owns
// them.
func Repository(size Size) map[string][]byte {
	files := maps.Clone(v1alpha1.Vendored())
	files["cue.mod/module.cue"] = fmt.Appendf(nil, "module: \"policy.example/mesh@v0\"\nlanguage: version: %q\n", v1alpha1.LowestLanguage)
	files["mesh.cue"] = []byte(`package policy

import "` + v1alpha1.ImportPath + `"

v1alpha1.#Repository

_env: *"default" | string @tag(env)

mesh: {
	trustDomain: "big.example"
	defaults: timeout: "15s"
	mandates: mtls:    "strict"
}
`)
	for n := range size.Namespaces {
		files["services/"+Namespace(n)+"/ns.cue"] = fmt.Appendf(nil, "package policy\n\nnamespaces: %q: defaults: timeout: \"10s\"\n", Namespace(n))
		for s := range size.Services {
			files[Path(n, s)] = service(size, n, s)
		}
	}
	return files
}

func service(size Size, n, s int) []byte {
	next := (s + 1) % size.Services
	return fmt.Appendf(nil, `package policy

import "%[1]s"

services: %[2]q: %[3]q: v1alpha1.#Service & {
	ports: http: {port: 8080, protocol: "http1"}
	allow: peers: from: [{service: "%[2]s/%[4]s"}, {service: "%[5]s/%[3]s"}]
	allow: admins: {from: [{identity: "spiffe://big.example/ns/ops/sa/console"}], routes: ["admin"]}
	httpRoutes: admin: {port: "http", match: [{path: prefix: "/admin"}], timeout: "2s"}
	httpRoutes: items: {
		port: "http", match: [{path: prefix: "/items", method: "GET"}]
		retry: {retries: 2, on: ["5xx"]}
	}
	httpRoutes: cart: {
		port: "http", match: [{path: prefix: "/cart"}]
		backends: [{service: "%[2]s/%[3]s", weight: 90}, {service: "%[2]s/%[6]s", weight: 10}]
	}
}
`, v1alpha1.ImportPath, Namespace(n), Service(s), Service(next), Namespace((n+1)%size.Namespaces), Service((s+2)%size.Services))
}

// Change returns the file of a service with another timeout on its admin route, longer by that many milliseconds: the smallest
// change that alters behaviour.
func Change(size Size, namespace, number, by int) []byte {
	return bytes.Replace(service(size, namespace, number), []byte(`timeout: "2s"`), fmt.Appendf(nil, `timeout: "%dms"`, 2000+by), 1)
}
