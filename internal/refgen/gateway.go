package main

import (
	"fmt"
	"strings"
)

// elsewhere is what fields are called by Gateway API (v1.4; experimental ones among them) and by Linkerd (2.20), for
// readers who know those. Paths are under a service, unless they begin with one of policy's own top-level fields.
var elsewhere = []struct{ field, name string }{
	{"httpRoutes", "HTTPRoute, with the service as its parent"},
	{"namespaces.*.calls", "a consumer route: an HTTPRoute or GRPCRoute in another namespace than its parent"},
	{"httpRoutes.*.port", "`parentRefs[].port`"},
	{"httpRoutes.*.match", "`rules[].matches[]`"},
	{"httpRoutes.*.match.#.path.exact", "`matches[].path`, type `Exact`"},
	{"httpRoutes.*.match.#.path.prefix", "`matches[].path`, type `PathPrefix`"},
	{"httpRoutes.*.match.#.path.regex", "`matches[].path`, type `RegularExpression`"},
	{"httpRoutes.*.match.#.method", "`matches[].method`"},
	{"httpRoutes.*.match.#.headers", "`matches[].headers[]`, type `Exact` or `RegularExpression`"},
	{"httpRoutes.*.match.#.query", "`matches[].queryParams[]`"},
	{"httpRoutes.*.backends", "`rules[].backendRefs[]`"},
	{"httpRoutes.*.backends.#.service", "`backendRefs[].namespace` and `name`"},
	{"httpRoutes.*.backends.#.port", "`backendRefs[].port`; by the port's name here"},
	{"httpRoutes.*.backends.#.weight", "`backendRefs[].weight`; in percent here, summing to 100"},
	{"httpRoutes.*.backends.#.filters", "`backendRefs[].filters[]`"},
	{"httpRoutes.*.filters.#.requestHeaders", "`filters[]`, type `RequestHeaderModifier`"},
	{"httpRoutes.*.filters.#.responseHeaders", "`filters[]`, type `ResponseHeaderModifier`"},
	{"httpRoutes.*.filters.#.redirect", "`filters[]`, type `RequestRedirect`"},
	{"httpRoutes.*.filters.#.rewrite", "`filters[]`, type `URLRewrite`"},
	{"httpRoutes.*.filters.#.rewrite.path.full", "`urlRewrite.path`, type `ReplaceFullPath`"},
	{"httpRoutes.*.filters.#.rewrite.path.prefix", "`urlRewrite.path`, type `ReplacePrefixMatch`"},
	{"httpRoutes.*.filters.#.mirror", "`filters[]`, type `RequestMirror`"},
	{"httpRoutes.*.filters.#.cors", "`filters[]`, type `CORS`"},
	{"httpRoutes.*.timeout", "`rules[].timeouts.request`"},
	{"httpRoutes.*.retry.timeout", "`rules[].timeouts.backendRequest`"},
	{"httpRoutes.*.retry.retries", "`rules[].retry.attempts`"},
	{"httpRoutes.*.retry.on", "`rules[].retry.codes[]`; Linkerd: `retry.linkerd.io/http` and `/grpc`"},
	{"httpRoutes.*.retry.backoff.min", "`rules[].retry.backoff`"},
	{"grpcRoutes", "GRPCRoute"},
	{"grpcRoutes.*.match.#.service", "`matches[].method.service`"},
	{"grpcRoutes.*.match.#.method", "`matches[].method.method`"},
	{"grpcRoutes.*.match.#.headers", "`matches[].headers[]`"},
	{"tlsRoutes", "TLSRoute"},
	{"tlsRoutes.*.hostnames", "`spec.hostnames[]`"},
	{"tcpRoutes", "TCPRoute"},
	{"ports.*.protocol", "Service: `appProtocol`; Linkerd: Server `proxyProtocol`"},
	{"ports.*.inboundPolicy", "Linkerd: Server `accessPolicy`, `config.linkerd.io/default-inbound-policy`"},
	{"ports.*.rateLimit", "Linkerd: HTTPLocalRateLimitPolicy"},
	{"allow", "Linkerd: AuthorizationPolicy, with MeshTLSAuthentication and NetworkAuthentication"},
	{"defaults.breaker.consecutive", "Linkerd: `balancer.linkerd.io/failure-accrual-consecutive-max-failures`"},
	{"workloads", "Linkerd: ExternalWorkload"},
	{"egress", "Linkerd: EgressNetwork, with the routes that have it as parent"},
}

// gateway writes the table of names.
func gateway(b *strings.Builder) {
	b.WriteString("\n## What it is called elsewhere\n\n" +
		"Concepts are Gateway API's and Linkerd's, and so are most names; `*` stands for a name, `#` for an element.\n\n" +
		"| field | Gateway API, Kubernetes or Linkerd |\n|---|---|\n")
	for _, e := range elsewhere {
		fmt.Fprintf(b, "| `%s` | %s |\n", e.field, flow(e.name))
	}
}
