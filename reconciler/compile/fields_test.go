package compile

import (
	"maps"
	"net/netip"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// base is policy that every case of TestEveryField adds to.
const base = `
mesh: trustDomain: "corp.example"
services: shop: {
	web: {
		ports: {http: {port: 80, protocol: "http1"}, tcp: {port: 81, protocol: "tcp"}}
		allow: api: from: [{service: "shop/api"}]
		httpRoutes: cart: {port: "http", match: [{path: prefix: "/cart"}]}
	}
	api: ports: {http: port: 80, alt: port: 81}
}
`

// wide is policy of protocols that not every sidecar carries.
const wide = `
services: shop: {
	rpc: ports: {grpc: {port: 90, protocol: "grpc"}, any: {port: 91}}
	bytes: ports: {tls: {port: 443, protocol: "tls"}, tcp: {port: 81, protocol: "tcp"}}
	tunnel: ports: tcp: {port: 81, protocol: "tcp"}
}
`

const (
	addRoute  = `services: shop: web: httpRoutes: new: {port: "http", `
	addMatch  = addRoute + `match: [{`
	addFilter = addRoute + `match: [{path: prefix: "/x"}], filters: [{`
	addRule   = `services: shop: web: allow: new: {from: [{authenticated: true}], `
	addFrom   = `services: shop: web: allow: new: from: [{`
	addGRPC   = `services: shop: rpc: grpcRoutes: new: {`
	addTLS    = `services: shop: bytes: tlsRoutes: new: {`
	addTCP    = `services: shop: bytes: tcpRoutes: new: {`
	addEgress = `egress: shop: new: {`
	web       = `services: shop: web: `
	defs      = web + `defaults: `

	corpJWT  = `mesh: jwtIssuers: corp: {issuer: "https://id.example", audiences: ["shop"], jwksURL: "https://id.example/keys"}` + "\n"
	withJWT  = corpJWT + addRule + `jwt: issuer: "corp"}` + "\n"
	staged   = `mesh: rollout: {strategy: "staged", steps: [5, 100]}` + "\n"
	rpcRoute = addGRPC + `match: [{service: "shop.Orders"}]}` + "\n"
	tcpRoute = addTCP + `backends: [{service: "shop/tunnel", port: "tcp"}]}` + "\n"
	never    = `invariants: i: never: {from: {namespace: "shop"}, to: {service: "shop/web"}}` + "\n"
	member   = `groups: shop: g: {service: "web", max: 3}` + "\n"
)

// field is how one field of the language shows.
type field struct {
	before string // policy that the field is added to, where base does not do
	set    string
	// The capability without which the field is refused, or "" for what every sidecar enforces; the finding that must name
	// the field, whatever the sidecar; who else reads it, for what is no behaviour of the mesh.
	capability mesh.Capability
	finding    string
	reader     string
}

// fields has every field of the language. What says nothing else is compiled: setting it changes the mesh.
var fields = map[string]field{
	"Policy.mesh":       {set: `mesh: maxStale: "1h"`},
	"Policy.invariants": {set: never},
	"Policy.namespaces": {before: `mesh: {}`, set: `namespaces: shop: defaults: mtls: "permissive"`, capability: mesh.CapPermissive},
	"Policy.services":   {set: `services: shop: new: ports: {}`},
	"Policy.workloads":  {set: `workloads: shop: w: service: "web"`},
	"Policy.groups":     {set: member, capability: mesh.CapGroup},
	"Policy.egress":     {set: addEgress + `hosts: ["a.example"]}`, capability: mesh.CapEgress},
	"Policy.tests":      {set: `tests: t: {from: "-", to: "shop/web", expect: "deny"}`, reader: expectations},

	"Mesh.trustDomain":     {before: `mesh: trustDomain: "a.example"`, set: `mesh: trustDomain: "b.example"`},
	"Mesh.environments":    {set: `mesh: environments: ["prod"]`, reader: "heddle check --all-envs"},
	"Mesh.defaults":        {set: `mesh: defaults: timeout: "1s"`, capability: mesh.CapTimeout},
	"Mesh.mandates":        {before: `mesh: defaults: mtls: "permissive"`, set: `mesh: mandates: mtls: "strict"`, finding: diag.MandateMTLS},
	"Mesh.maxStale":        {set: `mesh: maxStale: "1h"`},
	"Mesh.clusterNetworks": {set: `mesh: clusterNetworks: ["10.0.0.0/8"]`, capability: mesh.CapNetworks},
	"Mesh.opaquePorts":     {set: `mesh: opaquePorts: [25]`, capability: mesh.CapOpaquePorts},
	"Mesh.skipPorts":       {set: `mesh: skipPorts: inbound: [25]`, capability: mesh.CapSkipPorts},
	"Mesh.telemetry":       {set: `mesh: telemetry: maxSeries: 500`, capability: mesh.CapTelemetry},
	"Mesh.rollout":         {set: staged, capability: mesh.CapStaged},
	"Mesh.sources":         {set: `mesh: sources: pay: {repository: "https://git.example/pay", namespaces: ["shop"]}`, capability: mesh.CapRemoteSource, reader: fences},
	"Mesh.jwtIssuers":      {before: addRule + `jwt: issuer: "other"}` + "\n" + `mesh: jwtIssuers: other: {issuer: "x", audiences: ["a"], jwksURL: "https://a.example/"}`, set: `mesh: jwtIssuers: other: issuer: "y"`, capability: mesh.CapAuthorizeJWT},

	"Namespace.defaults": {set: `namespaces: shop: defaults: timeout: "1s"`, capability: mesh.CapTimeout},
	"Namespace.calls":    {set: `namespaces: other: calls: "shop/web": httpRoutes: new: port: "http"`, capability: mesh.CapConsumerRoute},
	"Calls.httpRoutes":   {set: `namespaces: other: calls: "shop/web": httpRoutes: new: port: "http"`, capability: mesh.CapConsumerRoute},
	"Calls.grpcRoutes":   {set: `namespaces: other: calls: "shop/rpc": grpcRoutes: new: {}`, capability: mesh.CapConsumerRoute},

	"Defaults.inboundPolicy":     {set: defs + `inboundPolicy: "all-authenticated"`},
	"Defaults.mtls":              {set: defs + `mtls: "permissive"`, capability: mesh.CapPermissive},
	"Defaults.protocol":          {set: `services: shop: api: defaults: protocol: "http2"`, capability: mesh.CapHTTP2},
	"Defaults.timeout":           {set: defs + `timeout: "1s"`, capability: mesh.CapTimeout},
	"Defaults.responseTimeout":   {set: defs + `responseTimeout: "1s"`, capability: mesh.CapResponseTimeout},
	"Defaults.idleTimeout":       {set: defs + `idleTimeout: "1s"`, capability: mesh.CapIdleTimeout},
	"Defaults.retry":             {set: defs + `retry: {}`, capability: mesh.CapRetry},
	"Defaults.balancer":          {set: defs + `balancer: warmup: "1m"`, capability: mesh.CapWarmUp},
	"Defaults.breaker":           {set: defs + `breaker: consecutive: 3`, capability: mesh.CapBreaker},
	"Defaults.limits":            {set: defs + `limits: requests: 3`, capability: mesh.CapLimits},
	"Defaults.rateLimit":         {set: defs + `rateLimit: total: 3`, capability: mesh.CapRateLimit},
	"Defaults.egressPolicy":      {set: `namespaces: shop: defaults: egressPolicy: "allow"`, capability: mesh.CapEgress},
	"Defaults.nonCanonicalPaths": {before: addRule + `routes: ["cart"]}`, set: defs + `nonCanonicalPaths: "accept"`, capability: mesh.CapNonCanonical},

	"Mandates.mtls":          {before: `mesh: defaults: mtls: "permissive"`, set: `mesh: mandates: mtls: "strict"`, finding: diag.MandateMTLS},
	"Mandates.inboundPolicy": {before: `mesh: defaults: inboundPolicy: "all-authenticated"`, set: `mesh: mandates: inboundPolicy: "deny"`, finding: diag.MandatePolicy},
	"Mandates.egressPolicy":  {before: `mesh: defaults: egressPolicy: "allow"`, set: `mesh: mandates: egressPolicy: "deny"`, finding: diag.MandateEgress},
	"Mandates.maxTimeout":    {set: `mesh: mandates: maxTimeout: "1s"`, finding: diag.MandateTimeout},
	"Mandates.maxRetries":    {before: `mesh: defaults: retry: retries: 2`, set: `mesh: mandates: maxRetries: 1`, finding: diag.MandateRetries},
	"Mandates.exempt": {before: `mesh: mandates: mtls: "strict"
		services: shop: api: defaults: mtls: "permissive"`, set: `mesh: mandates: exempt: ["shop/api"]`, capability: mesh.CapPermissive},

	"SkipPorts.inbound":  {set: `mesh: skipPorts: inbound: [25]`, capability: mesh.CapSkipPorts},
	"SkipPorts.outbound": {set: `mesh: skipPorts: outbound: [25]`, capability: mesh.CapSkipPorts},

	"Telemetry.labels":    {set: `mesh: telemetry: labels: ["route"]`, capability: mesh.CapTelemetry},
	"Telemetry.maxSeries": {set: `mesh: telemetry: maxSeries: 500`, capability: mesh.CapTelemetry},
	"Telemetry.tracing":   {set: `mesh: telemetry: tracing: 0.5`, capability: mesh.CapTracing},
	"Telemetry.accessLog": {set: `mesh: telemetry: accessLog: "json"`, capability: mesh.CapAccessLog},

	"Rollout.strategy": {before: `mesh: rollout: {}`, set: staged, capability: mesh.CapStaged},
	"Rollout.steps":    {before: staged, set: `mesh: rollout: steps: [100]`, capability: mesh.CapStaged},
	"Rollout.pause":    {before: staged, set: `mesh: rollout: pause: "5m"`, capability: mesh.CapStaged},
	"Rollout.halt":     {before: staged, set: `mesh: rollout: halt: nacks: 7`, capability: mesh.CapStaged},
	"Halt.nacks":       {before: staged, set: `mesh: rollout: halt: nacks: 7`, capability: mesh.CapStaged},
	"Halt.denials":     {before: staged, set: `mesh: rollout: halt: denials: 7`, capability: mesh.CapStaged},
	"Halt.failures":    {before: staged, set: `mesh: rollout: halt: failures: 7`, capability: mesh.CapStaged},

	"Source.repository": {set: `mesh: sources: pay: {repository: "https://git.example/pay", namespaces: ["shop"]}`, capability: mesh.CapRemoteSource, reader: fences},
	"Source.ref":        {set: `mesh: sources: pay: {directory: "pay", ref: "main", namespaces: ["shop"]}`, finding: diag.WrongValue},
	"Source.directory":  {set: `mesh: sources: pay: {directory: "pay", namespaces: ["shop"]}`, reader: fences},
	"Source.namespaces": {set: `mesh: sources: pay: {directory: "pay", namespaces: ["shop"]}`, reader: fences},
	"Source.kinds":      {set: `mesh: sources: pay: {directory: "pay", namespaces: ["shop"], kinds: ["egress"]}`, reader: fences},

	"JWTIssuer.issuer":    {before: withJWT, set: `mesh: jwtIssuers: corp: issuer: "x"`, capability: mesh.CapAuthorizeJWT},
	"JWTIssuer.audiences": {before: withJWT, set: `mesh: jwtIssuers: corp: audiences: ["b"]`, capability: mesh.CapAuthorizeJWT},
	"JWTIssuer.jwks": {before: addRule + `jwt: issuer: "c"}`, set: `mesh: jwtIssuers: c: {issuer: "x", audiences: ["a"], jwks: ` +
		`"{\"keys\":[{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}]}"}`, capability: mesh.CapAuthorizeJWT},
	"JWTIssuer.jwksURL": {before: withJWT, set: `mesh: jwtIssuers: corp: jwksURL: "https://other.example/keys"`, capability: mesh.CapJWKSURL},
	"JWTIssuer.header":  {before: withJWT, set: `mesh: jwtIssuers: corp: header: "x-token"`, capability: mesh.CapAuthorizeJWT},

	"Service.ports":      {set: web + `ports: new: port: 82`},
	"Service.identities": {set: web + `identities: ["spiffe://corp.example/x"]`},
	"Service.selector":   {set: web + `selector: app: "web"`, capability: mesh.CapSelector},
	"Service.allow":      {set: addRule + `}`, capability: mesh.CapAuthorize},
	"Service.deny":       {set: web + `deny: new: from: [{authenticated: true}]`, capability: mesh.CapAuthorize},
	"Service.audit":      {set: web + `audit: new: from: [{authenticated: true}]`, capability: mesh.CapAudit},
	"Service.httpRoutes": {set: addRoute + `match: [{path: prefix: "/x"}]}`, capability: mesh.CapRoute},
	"Service.grpcRoutes": {set: rpcRoute, capability: mesh.CapGRPCRoute},
	"Service.tlsRoutes":  {set: addTLS + `backends: [{service: "shop/tunnel", port: "tcp"}]}`, capability: mesh.CapTLSRoute},
	"Service.tcpRoutes":  {set: tcpRoute, capability: mesh.CapTCPRoute},
	"Service.defaults":   {set: defs + `timeout: "1s"`, capability: mesh.CapTimeout},

	"Port.port":          {before: web + `ports: new: port: 82`, set: web + `ports: new: port: 83`},
	"Port.protocol":      {set: `services: shop: api: ports: http: protocol: "http1"`, capability: mesh.CapHTTP1},
	"Port.mtls":          {set: web + `ports: http: mtls: "permissive"`, capability: mesh.CapPermissive},
	"Port.inboundPolicy": {set: web + `ports: http: inboundPolicy: "cluster-authenticated"`, capability: mesh.CapCluster},
	"Port.rateLimit":     {set: web + `ports: http: rateLimit: total: 5`, capability: mesh.CapRateLimit},

	"Rule.from":     {before: addFrom + `authenticated: true}]`, set: addFrom + `service: "shop/web"}]`},
	"Rule.networks": {before: addRule + `}`, set: web + `allow: new: networks: [{cidr: "10.0.0.0/8"}]`, capability: mesh.CapAuthorizeNetwork},
	"Rule.ports":    {before: addRule + `}`, set: web + `allow: new: ports: ["http"]`},
	"Rule.routes":   {before: addRule + `}`, set: web + `allow: new: routes: ["cart"]`, capability: mesh.CapAuthorizeL7},
	"Rule.methods":  {before: addRule + `}`, set: web + `allow: new: methods: ["GET"]`, capability: mesh.CapAuthorizeRequest},
	"Rule.paths":    {before: addRule + `}`, set: web + `allow: new: paths: [{exact: "/x"}]`, capability: mesh.CapAuthorizeRequest},
	"Rule.headers":  {before: addRule + `}`, set: web + `allow: new: headers: x: exact: "1"`, capability: mesh.CapAuthorizeRequest},
	"Rule.sni":      {before: `services: shop: bytes: allow: new: from: [{authenticated: true}]`, set: `services: shop: bytes: allow: new: sni: ["a.example"]`, capability: mesh.CapAuthorizeSNI},
	"Rule.jwt":      {before: corpJWT + addRule + `}`, set: web + `allow: new: jwt: issuer: "corp"`, capability: mesh.CapAuthorizeJWT},
	"Rule.until":    {before: addRule + `}`, set: web + `allow: new: until: "2030-01-01T00:00:00Z"`, capability: mesh.CapAuthorizeUntil},
	"Rule.enforce":  {before: addRule + `}`, set: web + `allow: new: enforce: false`, capability: mesh.CapAudit},

	"From.service":         {set: addFrom + `service: "shop/web"}]`},
	"From.namespace":       {set: addFrom + `namespace: "shop"}]`, capability: mesh.CapAuthorizePattern},
	"From.identity":        {set: addFrom + `identity: "spiffe://corp.example/x"}]`},
	"From.identityPrefix":  {set: addFrom + `identityPrefix: "spiffe://corp.example/x/"}]`, capability: mesh.CapAuthorizePattern},
	"From.identitySuffix":  {set: addFrom + `identitySuffix: "/x"}]`, capability: mesh.CapAuthorizePattern},
	"From.authenticated":   {set: addFrom + `authenticated: true}]`},
	"From.unauthenticated": {before: defs + `mtls: "permissive"`, set: addFrom + `unauthenticated: true}]`},

	"Network.cidr":   {before: addRule + `networks: [{cidr: "10.0.0.0/8"}]}`, set: web + `allow: new: networks: [{cidr: "11.0.0.0/8"}]`, capability: mesh.CapAuthorizeNetwork},
	"Network.except": {before: addRule + `networks: [{cidr: "10.0.0.0/8"}]}`, set: web + `allow: new: networks: [{cidr: "10.0.0.0/8", except: ["10.1.0.0/16"]}]`, capability: mesh.CapAuthorizeNetwork},

	"RulePath.exact":    {before: addRule + `}`, set: web + `allow: new: paths: [{exact: "/x"}]`, capability: mesh.CapAuthorizeRequest},
	"RulePath.prefix":   {before: addRule + `}`, set: web + `allow: new: paths: [{prefix: "/x"}]`, capability: mesh.CapAuthorizeRequest},
	"RulePath.template": {before: addRule + `}`, set: web + `allow: new: paths: [{template: "/{x}"}]`, capability: mesh.CapAuthorizeRequest},

	"HeaderValue.exact":   {before: addRule + `}`, set: web + `allow: new: headers: x: exact: "1"`, capability: mesh.CapAuthorizeRequest},
	"HeaderValue.oneOf":   {before: addRule + `}`, set: web + `allow: new: headers: x: oneOf: ["1", "2"]`, capability: mesh.CapAuthorizeRequest},
	"HeaderValue.present": {before: addRule + `}`, set: web + `allow: new: headers: x: present: true`, capability: mesh.CapAuthorizeRequest},

	"JWTMatch.issuer": {before: corpJWT + addRule + `}`, set: web + `allow: new: jwt: issuer: "corp"`, capability: mesh.CapAuthorizeJWT},
	"JWTMatch.claims": {before: withJWT, set: web + `allow: new: jwt: claims: role: ["admin"]`, capability: mesh.CapAuthorizeJWT},

	"HTTPRoute.port":            {before: `services: shop: api: httpRoutes: new: port: "http"`, set: `services: shop: api: httpRoutes: new: port: "alt"`},
	"HTTPRoute.match":           {before: addRoute + `timeout: "1s"}`, set: addRoute + `match: [{method: "GET"}]}`},
	"HTTPRoute.backends":        {before: addRoute + `timeout: "1s"}`, set: addRoute + `backends: [{service: "shop/api"}]}`},
	"HTTPRoute.timeout":         {before: addMatch + `method: "GET"}]}`, set: addRoute + `timeout: "1s"}`, capability: mesh.CapTimeout},
	"HTTPRoute.responseTimeout": {before: addMatch + `method: "GET"}]}`, set: addRoute + `responseTimeout: "1s"}`, capability: mesh.CapResponseTimeout},
	"HTTPRoute.idleTimeout":     {before: addMatch + `method: "GET"}]}`, set: addRoute + `idleTimeout: "1s"}`, capability: mesh.CapIdleTimeout},
	"HTTPRoute.retry":           {before: addMatch + `method: "GET"}]}`, set: addRoute + `retry: {}}`, capability: mesh.CapRetry},
	"HTTPRoute.filters":         {before: addMatch + `method: "GET"}]}`, set: addRoute + `filters: [{requestHeaders: set: a: "b"}]}`, capability: mesh.CapFilterHeaders},
	"HTTPRoute.rateLimit":       {before: addMatch + `method: "GET"}]}`, set: addRoute + `rateLimit: total: 5}`, capability: mesh.CapRateLimit},
	"HTTPRoute.breaker":         {before: addMatch + `method: "GET"}]}`, set: addRoute + `breaker: consecutive: 5}`, capability: mesh.CapBreaker},

	"GRPCRoute.port":            {before: rpcRoute + `services: shop: rpc: grpcRoutes: new: port: "grpc"`, set: `services: shop: rpc: grpcRoutes: new: port: "any"`, capability: mesh.CapGRPCRoute},
	"GRPCRoute.match":           {set: addGRPC + `match: [{service: "shop.Orders"}]}`, capability: mesh.CapGRPCRoute},
	"GRPCRoute.backends":        {before: rpcRoute, set: addGRPC + `backends: [{service: "shop/api", port: "http"}]}`, capability: mesh.CapGRPCRoute},
	"GRPCRoute.timeout":         {before: rpcRoute, set: addGRPC + `timeout: "1s"}`, capability: mesh.CapTimeout},
	"GRPCRoute.responseTimeout": {before: rpcRoute, set: addGRPC + `responseTimeout: "1s"}`, capability: mesh.CapResponseTimeout},
	"GRPCRoute.idleTimeout":     {before: rpcRoute, set: addGRPC + `idleTimeout: "1s"}`, capability: mesh.CapIdleTimeout},
	"GRPCRoute.retry":           {before: rpcRoute, set: addGRPC + `retry: idempotent: true}`, capability: mesh.CapRetry},
	"GRPCRoute.filters":         {before: rpcRoute, set: addGRPC + `filters: [{requestHeaders: set: a: "b"}]}`, capability: mesh.CapFilterHeaders},
	"GRPCRoute.rateLimit":       {before: rpcRoute, set: addGRPC + `rateLimit: total: 5}`, capability: mesh.CapRateLimit},
	"GRPCRoute.breaker":         {before: rpcRoute, set: addGRPC + `breaker: consecutive: 5}`, capability: mesh.CapBreaker},

	"TLSRoute.port":        {before: `services: shop: bytes: ports: tls2: {port: 85, protocol: "tls"}` + "\n" + addTLS + `backends: [{service: "shop/tunnel", port: "tcp"}], port: "tls"}`, set: addTLS + `port: "tls2"}`, capability: mesh.CapTLSRoute},
	"TLSRoute.hostnames":   {before: addTLS + `backends: [{service: "shop/tunnel", port: "tcp"}]}`, set: addTLS + `hostnames: ["a.example"]}`, capability: mesh.CapTLSRoute},
	"TLSRoute.backends":    {set: addTLS + `backends: [{service: "shop/tunnel", port: "tcp"}]}`, capability: mesh.CapTLSRoute},
	"TCPRoute.port":        {before: `services: shop: bytes: ports: tcp2: {port: 85, protocol: "tcp"}` + "\n" + addTCP + `backends: [{service: "shop/tunnel", port: "tcp"}], port: "tcp"}`, set: addTCP + `port: "tcp2"}`, capability: mesh.CapTCPRoute},
	"TCPRoute.backends":    {set: tcpRoute, capability: mesh.CapTCPRoute},
	"TCPRoute.idleTimeout": {before: tcpRoute, set: addTCP + `idleTimeout: "1m"}`, capability: mesh.CapIdleTimeout},

	"HTTPMatch.path":    {before: addMatch + `}]}`, set: addMatch + `path: prefix: "/x"}]}`},
	"HTTPMatch.method":  {before: addMatch + `}]}`, set: addMatch + `method: "GET"}]}`},
	"HTTPMatch.headers": {before: addMatch + `}]}`, set: addMatch + `headers: x: exact: "1"}]}`},
	"HTTPMatch.query":   {before: addMatch + `}]}`, set: addMatch + `query: x: exact: "1"}]}`, capability: mesh.CapRouteQuery},

	"GRPCMatch.service": {before: addGRPC + `match: [{}]}`, set: addGRPC + `match: [{service: "shop.Orders"}]}`, capability: mesh.CapGRPCRoute},
	"GRPCMatch.method":  {before: rpcRoute, set: addGRPC + `match: [{service: "shop.Orders", method: "List"}]}`, capability: mesh.CapGRPCRoute},
	"GRPCMatch.headers": {before: rpcRoute, set: addGRPC + `match: [{headers: x: exact: "1"}]}`, capability: mesh.CapGRPCRoute},

	"PathMatch.exact":  {before: addMatch + `}]}`, set: addMatch + `path: exact: "/x"}]}`},
	"PathMatch.prefix": {before: addMatch + `}]}`, set: addMatch + `path: prefix: "/x"}]}`},
	"PathMatch.regex":  {before: addMatch + `}]}`, set: addMatch + `path: regex: "/x"}]}`, capability: mesh.CapRouteRegex},

	"HeaderMatch.exact": {before: addMatch + `headers: x: exact: "1"}]}`, set: addMatch + `headers: x: exact: "2"}]}`},
	"HeaderMatch.regex": {before: addMatch + `}]}`, set: addMatch + `headers: x: regex: "2"}]}`, capability: mesh.CapRouteRegex},

	"Backend.service": {before: addRoute + `backends: [{service: "shop/web"}]}`, set: addRoute + `backends: [{service: "shop/api"}]}`},
	"Backend.port":    {before: addRoute + `backends: [{service: "shop/api"}]}`, set: addRoute + `backends: [{service: "shop/api", port: "alt"}]}`},
	"Backend.weight": {before: addRoute + `backends: [{service: "shop/api", weight: 50}, {service: "shop/web", weight: 50}]}`,
		set: addRoute + `backends: [{service: "shop/api", weight: 40}, {service: "shop/web", weight: 60}]}`},
	"Backend.filters": {before: addRoute + `backends: [{service: "shop/api"}]}`, set: addRoute + `backends: [{service: "shop/api", filters: [{requestHeaders: set: a: "b"}]}]}`, capability: mesh.CapFilterBackend},

	"Retry.retries":    {before: addRoute + `retry: {}}`, set: addRoute + `retry: retries: 2}`, capability: mesh.CapRetry},
	"Retry.on":         {before: addRoute + `retry: {}}`, set: addRoute + `retry: on: ["gateway-error"]}`, capability: mesh.CapRetry},
	"Retry.timeout":    {before: addRoute + `retry: {}}`, set: addRoute + `retry: timeout: "1s"}`, capability: mesh.CapRetry},
	"Retry.backoff":    {before: addRoute + `retry: {}}`, set: addRoute + `retry: backoff: {min: "1s", max: "2s"}}`, capability: mesh.CapRetry},
	"Retry.budget":     {before: addRoute + `retry: {}}`, set: addRoute + `retry: budget: percent: 5}`, capability: mesh.CapRetry},
	"Retry.idempotent": {before: addRoute + `retry: {}}`, set: addRoute + `retry: idempotent: true}`, capability: mesh.CapRetry},

	"Backoff.min": {before: addRoute + `retry: backoff: {min: "1s", max: "2s"}}`, set: addRoute + `retry: backoff: min: "2s"}`, capability: mesh.CapRetry},
	"Backoff.max": {before: addRoute + `retry: backoff: {min: "1s", max: "2s"}}`, set: addRoute + `retry: backoff: max: "3s"}`, capability: mesh.CapRetry},

	"RetryBudget.percent":      {before: addRoute + `retry: {}}`, set: addRoute + `retry: budget: percent: 5}`, capability: mesh.CapRetry},
	"RetryBudget.minPerSecond": {before: addRoute + `retry: budget: percent: 5}`, set: addRoute + `retry: budget: minPerSecond: 3}`, capability: mesh.CapRetry},
	"RetryBudget.window":       {before: addRoute + `retry: budget: percent: 5}`, set: addRoute + `retry: budget: window: "3s"}`, capability: mesh.CapRetry},

	"Filter.requestHeaders":  {set: addFilter + `requestHeaders: set: a: "b"}]}`, capability: mesh.CapFilterHeaders},
	"Filter.responseHeaders": {set: addFilter + `responseHeaders: set: a: "b"}]}`, capability: mesh.CapFilterHeaders},
	"Filter.redirect":        {set: addFilter + `redirect: host: "a.example"}]}`, capability: mesh.CapFilterRedirect},
	"Filter.rewrite":         {set: addFilter + `rewrite: host: "a.example"}]}`, capability: mesh.CapFilterRewrite},
	"Filter.mirror":          {set: addFilter + `mirror: service: "shop/api"}]}`, capability: mesh.CapFilterMirror},
	"Filter.cors":            {set: addFilter + `cors: allowOrigins: ["*"]}]}`, capability: mesh.CapFilterCORS},
	"Filter.respond":         {set: addFilter + `respond: status: 200}]}`, capability: mesh.CapFilterRespond},
	"Filter.fault":           {set: addFilter + `fault: abort: {status: 500, percent: 1}}]}`, capability: mesh.CapFilterFault},

	"HeaderEdit.set":    {set: addFilter + `requestHeaders: set: a: "b"}]}`, capability: mesh.CapFilterHeaders},
	"HeaderEdit.add":    {set: addFilter + `requestHeaders: add: a: "b"}]}`, capability: mesh.CapFilterHeaders},
	"HeaderEdit.remove": {set: addFilter + `requestHeaders: remove: ["a"]}]}`, capability: mesh.CapFilterHeaders},

	"Redirect.scheme": {set: addFilter + `redirect: scheme: "https"}]}`, capability: mesh.CapFilterRedirect},
	"Redirect.host":   {set: addFilter + `redirect: host: "a.example"}]}`, capability: mesh.CapFilterRedirect},
	"Redirect.port":   {set: addFilter + `redirect: port: 99}]}`, capability: mesh.CapFilterRedirect},
	"Redirect.path":   {set: addFilter + `redirect: path: full: "/y"}]}`, capability: mesh.CapFilterRedirect},
	"Redirect.status": {before: addFilter + `redirect: host: "a.example"}]}`, set: addFilter + `redirect: {host: "a.example", status: 308}}]}`, capability: mesh.CapFilterRedirect},

	"Rewrite.host":    {set: addFilter + `rewrite: host: "a.example"}]}`, capability: mesh.CapFilterRewrite},
	"Rewrite.path":    {set: addFilter + `rewrite: path: full: "/y"}]}`, capability: mesh.CapFilterRewrite},
	"PathEdit.full":   {set: addFilter + `rewrite: path: full: "/y"}]}`, capability: mesh.CapFilterRewrite},
	"PathEdit.prefix": {set: addFilter + `rewrite: path: prefix: "/y"}]}`, capability: mesh.CapFilterRewrite},

	"Mirror.service": {before: addFilter + `mirror: service: "shop/api"}]}`, set: addFilter + `mirror: {service: "shop/rpc", port: "any"}}]}`, capability: mesh.CapFilterMirror},
	"Mirror.port":    {before: addFilter + `mirror: service: "shop/api"}]}`, set: addFilter + `mirror: {service: "shop/api", port: "alt"}}]}`, capability: mesh.CapFilterMirror},
	"Mirror.percent": {before: addFilter + `mirror: service: "shop/api"}]}`, set: addFilter + `mirror: {service: "shop/api", percent: 0.5}}]}`, capability: mesh.CapFilterMirror},

	"CORS.allowOrigins":     {set: addFilter + `cors: allowOrigins: ["https://a.example"]}]}`, capability: mesh.CapFilterCORS},
	"CORS.allowMethods":     {before: addFilter + `cors: allowOrigins: ["*"]}]}`, set: addFilter + `cors: {allowOrigins: ["*"], allowMethods: ["GET"]}}]}`, capability: mesh.CapFilterCORS},
	"CORS.allowHeaders":     {before: addFilter + `cors: allowOrigins: ["*"]}]}`, set: addFilter + `cors: {allowOrigins: ["*"], allowHeaders: ["a"]}}]}`, capability: mesh.CapFilterCORS},
	"CORS.exposeHeaders":    {before: addFilter + `cors: allowOrigins: ["*"]}]}`, set: addFilter + `cors: {allowOrigins: ["*"], exposeHeaders: ["a"]}}]}`, capability: mesh.CapFilterCORS},
	"CORS.allowCredentials": {before: addFilter + `cors: allowOrigins: ["https://a.example"]}]}`, set: addFilter + `cors: {allowOrigins: ["https://a.example"], allowCredentials: true}}]}`, capability: mesh.CapFilterCORS},
	"CORS.maxAge":           {before: addFilter + `cors: allowOrigins: ["*"]}]}`, set: addFilter + `cors: {allowOrigins: ["*"], maxAge: "1m"}}]}`, capability: mesh.CapFilterCORS},

	"DirectResponse.status": {before: addFilter + `respond: status: 200}]}`, set: addFilter + `respond: status: 404}]}`, capability: mesh.CapFilterRespond},
	"DirectResponse.body":   {before: addFilter + `respond: status: 200}]}`, set: addFilter + `respond: {status: 200, body: "ok"}}]}`, capability: mesh.CapFilterRespond},

	"Fault.delay":         {set: addFilter + `fault: delay: {duration: "1s", percent: 1}}]}`, capability: mesh.CapFilterFault},
	"Fault.abort":         {set: addFilter + `fault: abort: {status: 500, percent: 1}}]}`, capability: mesh.CapFilterFault},
	"FaultDelay.duration": {set: addFilter + `fault: delay: {duration: "1s", percent: 1}}]}`, capability: mesh.CapFilterFault},
	"FaultDelay.percent":  {set: addFilter + `fault: delay: {duration: "1s", percent: 1}}]}`, capability: mesh.CapFilterFault},
	"FaultAbort.status":   {set: addFilter + `fault: abort: {status: 500, percent: 1}}]}`, capability: mesh.CapFilterFault},
	"FaultAbort.percent":  {set: addFilter + `fault: abort: {status: 500, percent: 1}}]}`, capability: mesh.CapFilterFault},

	"Balancer.policy": {before: defs + `balancer: {policy: "consistent-hash", hash: source: true}`, set: `services: shop: api: defaults: balancer: {policy: "consistent-hash", hash: source: true}`, capability: mesh.CapHash},
	"Balancer.hash":   {set: defs + `balancer: {policy: "consistent-hash", hash: source: true}`, capability: mesh.CapHash},
	"Balancer.warmup": {set: defs + `balancer: warmup: "1m"`, capability: mesh.CapWarmUp},
	"HashKey.header":  {set: defs + `balancer: {policy: "consistent-hash", hash: header: "x-user"}`, capability: mesh.CapHash},
	"HashKey.cookie":  {set: defs + `balancer: {policy: "consistent-hash", hash: cookie: "user"}`, capability: mesh.CapHash},
	"HashKey.source":  {set: defs + `balancer: {policy: "consistent-hash", hash: source: true}`, capability: mesh.CapHash},

	"Breaker.consecutive":   {set: defs + `breaker: consecutive: 3`, capability: mesh.CapBreaker},
	"Breaker.successRate":   {set: defs + `breaker: successRate: 80`, capability: mesh.CapBreaker},
	"Breaker.window":        {set: defs + `breaker: window: "30s"`, capability: mesh.CapBreaker},
	"Breaker.minRequests":   {set: defs + `breaker: minRequests: 50`, capability: mesh.CapBreaker},
	"Breaker.penalty":       {set: defs + `breaker: penalty: {min: "2s", max: "4s"}`, capability: mesh.CapBreaker},
	"Breaker.ejectionFloor": {set: defs + `breaker: ejectionFloor: 12.5`, capability: mesh.CapBreaker},

	"Limits.connections": {set: defs + `limits: connections: 3`, capability: mesh.CapLimits},
	"Limits.requests":    {set: defs + `limits: requests: 3`, capability: mesh.CapLimits},
	"Limits.pending":     {set: defs + `limits: pending: 3`, capability: mesh.CapLimits},

	"RateLimit.total":                {set: defs + `rateLimit: total: 3`, capability: mesh.CapRateLimit},
	"RateLimit.perIdentity":          {set: defs + `rateLimit: perIdentity: 3`, capability: mesh.CapRateLimit},
	"RateLimit.overrides":            {before: defs + `rateLimit: perIdentity: 3`, set: defs + `rateLimit: overrides: [{from: [{service: "shop/api"}], requestsPerSecond: 7}]`, capability: mesh.CapRateLimit},
	"RateOverride.from":              {set: defs + `rateLimit: overrides: [{from: [{identitySuffix: "/x"}], requestsPerSecond: 7}]`, capability: mesh.CapAuthorizePattern},
	"RateOverride.requestsPerSecond": {set: defs + `rateLimit: overrides: [{from: [{service: "shop/api"}], requestsPerSecond: 7}]`, capability: mesh.CapRateLimit},

	"Workload.service": {before: `workloads: shop: w: service: "web"`, set: `workloads: shop: w: service: "api"`},
	"Workload.address": {before: `workloads: shop: w: service: "web"`, set: `workloads: shop: w: address: "10.0.0.1"`},
	"Workload.port":    {before: `workloads: shop: w: {service: "web", address: "10.0.0.1"}`, set: `workloads: shop: w: port: 1`},
	"Workload.identity": {before: `services: shop: web: identities: ["spiffe://corp.example/x", "spiffe://corp.example/y"]
		workloads: shop: w: {service: "web", identity: "spiffe://corp.example/x"}`,
		set: `workloads: shop: w: identity: "spiffe://corp.example/y"`},
	"Workload.labels": {before: `workloads: shop: w: service: "web"`, set: `workloads: shop: w: labels: app: "web"`, capability: mesh.CapSelector},
	"Workload.weight": {before: `workloads: shop: w: service: "web"`, set: `workloads: shop: w: weight: 50`, capability: mesh.CapWeight},
	"Workload.zone":   {before: `workloads: shop: w: service: "web"`, set: `workloads: shop: w: zone: "a"`, capability: mesh.CapZone},

	"WorkloadGroup.service":  {before: member, set: `groups: shop: g: service: "api"`, capability: mesh.CapGroup},
	"WorkloadGroup.identity": {before: member + web + `identities: ["spiffe://corp.example/x", "spiffe://corp.example/y"]` + "\ngroups: shop: g: " + `identity: "spiffe://corp.example/x"`, set: `groups: shop: g: identity: "spiffe://corp.example/y"`, capability: mesh.CapGroup},
	"WorkloadGroup.labels":   {before: member, set: `groups: shop: g: labels: app: "web"`, capability: mesh.CapGroup},
	"WorkloadGroup.zone":     {before: member, set: `groups: shop: g: zone: "a"`, capability: mesh.CapZone},
	"WorkloadGroup.max":      {before: member, set: `groups: shop: g: max: 4`, capability: mesh.CapGroup},

	"Egress.hosts":        {set: addEgress + `hosts: ["a.example"]}`, capability: mesh.CapEgress},
	"Egress.networks":     {set: addEgress + `networks: [{cidr: "192.0.2.0/24"}]}`, capability: mesh.CapEgress},
	"Egress.ports":        {before: addEgress + `hosts: ["a.example"]}`, set: addEgress + `ports: [80]}`, capability: mesh.CapEgress},
	"Egress.action":       {before: addEgress + `hosts: ["a.example"]}`, set: addEgress + `action: "deny"}`, capability: mesh.CapEgress},
	"Egress.services":     {before: addEgress + `hosts: ["a.example"]}`, set: addEgress + `services: ["web"]}`, capability: mesh.CapEgress},
	"Egress.protocol":     {before: addEgress + `hosts: ["a.example"]}`, set: addEgress + `protocol: "tcp"}`, capability: mesh.CapEgress},
	"Egress.originateTLS": {before: addEgress + `hosts: ["a.example"]}`, set: addEgress + `originateTLS: true}`, capability: mesh.CapEgressTLS},

	"Invariant.never":  {set: never},
	"Invariant.always": {set: `invariants: i: always: "mtls"`},
	"Invariant.to":     {before: `invariants: i: always: "mtls"`, set: `invariants: i: to: service: "shop/web"`},
	"Invariant.only":   {set: `invariants: i: only: {from: {namespace: "shop"}, to: {service: "shop/web"}}`},
	"Flow.from":        {before: never, set: `invariants: i: never: from: {namespace: "shop"}` + "\n" + `invariants: j: never: {from: {anyone: true}, to: {service: "shop/api"}}`},
	"Flow.to":          {before: never, set: `invariants: i: never: to: {service: "shop/api"}`},

	"Caller.namespace":       {set: never},
	"Caller.service":         {set: `invariants: i: never: {from: {service: "shop/api"}, to: {service: "shop/web"}}`},
	"Caller.services":        {set: `invariants: i: never: {from: {services: ["shop/api", "shop/rpc"]}, to: {service: "shop/web"}}`},
	"Caller.identity":        {set: `invariants: i: never: {from: {identity: "spiffe://corp.example/x"}, to: {service: "shop/web"}}`},
	"Caller.authenticated":   {set: `invariants: i: never: {from: {authenticated: true}, to: {service: "shop/web"}}`},
	"Caller.unauthenticated": {set: `invariants: i: never: {from: {unauthenticated: true}, to: {service: "shop/web"}}`},
	"Caller.anyone":          {set: `invariants: i: never: {from: {anyone: true}, to: {service: "shop/web"}}`},

	"Target.namespace": {set: `invariants: i: always: "mtls"` + "\n" + `invariants: i: to: namespace: "shop"`},
	"Target.service":   {set: never},
	"Target.services":  {set: `invariants: i: never: {from: {anyone: true}, to: {services: ["shop/web", "shop/api"]}}`},
	"Target.ports":     {before: never, set: `invariants: i: never: to: ports: ["http"]`},
	"Target.methods":   {before: never, set: `invariants: i: never: to: methods: ["GET"]`},
	"Target.paths":     {before: never, set: `invariants: i: never: to: paths: [{prefix: "/x"}]`},

	"Test.from":     {set: `tests: t: {from: "shop/api", to: "shop/web", expect: "deny"}`, reader: expectations},
	"Test.to":       {set: `tests: t: {from: "-", to: "shop/web:http", expect: "deny"}`, reader: expectations},
	"Test.method":   {set: `tests: t: {from: "-", to: "shop/web:http", method: "GET", path: "/", expect: "deny"}`, reader: expectations},
	"Test.path":     {set: `tests: t: {from: "-", to: "shop/web:http", method: "GET", path: "/", expect: "deny"}`, reader: expectations},
	"Test.query":    {set: `tests: t: {from: "-", to: "shop/web:http", method: "GET", path: "/", query: a: "b", expect: "deny"}`, reader: expectations},
	"Test.headers":  {set: `tests: t: {from: "-", to: "shop/web:http", method: "GET", path: "/", headers: a: "b", expect: "deny"}`, reader: expectations},
	"Test.jwt":      {before: corpJWT, set: `tests: t: {from: "-", to: "shop/web:http", method: "GET", path: "/", jwt: corp: role: ["a"], expect: "deny"}`, reader: expectations},
	"Test.address":  {set: `tests: t: {from: "-", to: "shop/web", address: "192.0.2.1", expect: "deny"}`, reader: expectations},
	"Test.at":       {set: `tests: t: {from: "-", to: "shop/web", at: "2030-01-01T00:00:00Z", expect: "deny"}`, reader: expectations},
	"Test.expect":   {set: `tests: t: {from: "-", to: "shop/web", expect: "deny"}`, reader: expectations},
	"Test.route":    {set: `tests: t: {from: "shop/api", to: "shop/web:http", method: "GET", path: "/cart", route: "cart", expect: "allow"}`, reader: expectations},
	"Test.backends": {set: `tests: t: {from: "shop/api", to: "shop/web:http", method: "GET", path: "/cart", backends: ["shop/web"], expect: "allow"}`, reader: expectations},
}

// Who reads what is no behaviour of the mesh.
const (
	expectations = "reconciler/expect, for heddle test and before a commit is accepted"
	fences       = "reconciler/policy, which lays out whose file may write what"
)

// TestEveryField walks the language's Go types and wants each field to change what is compiled, or to be refused, by
// name, or to be read by somebody else. A field added to types.cue fails here until the compiler knows it: nothing is
// ignored in silence. Compiled for a sidecar that lacks nothing but the capability that a field needs, the field is
// refused at the field or below what holds it.
func TestEveryField(t *testing.T) {
	known := languageFields(reflect.TypeFor[v1alpha1.Policy]())
	for _, f := range slices.Sorted(maps.Keys(fields)) {
		if !slices.Contains(known, f) {
			t.Errorf("%s is not a field of the language any more; delete its case", f)
		}
	}
	for _, f := range known {
		c, ok := fields[f]
		if !ok {
			t.Errorf("%s is a new field: compile it or refuse it, and say here how it shows", f)
			continue
		}
		t.Run(f, func(t *testing.T) {
			without := map[string]string{"0.cue": base, "00.cue": wide, "1.cue": c.before}
			with := map[string]string{"0.cue": base, "00.cue": wide, "1.cue": c.before, "2.cue": c.set}
			before, after := outcome(t, without, "any"), outcome(t, with, "any")
			switch {
			case c.finding != "":
				if strings.Contains(before, "HDL") || !strings.Contains(after, "["+c.finding+"]") {
					t.Errorf("want %s; before:\n%s\nafter:\n%s", c.finding, before, after)
				}
			case c.reader != "":
				if after != before {
					t.Errorf("it changes the mesh, so it is not only for %s:\n%s\n%s", c.reader, before, after)
				}
			case after == before || strings.Contains(after, "HDL"):
				t.Errorf("setting the field changes nothing, or is refused:\n%s", after)
			}
			if c.capability == "" {
				return
			}
			all, _ := mesh.EnforcedBy("any")
			lacking := gateOf("0.0.1", slices.DeleteFunc(all, func(has mesh.Capability) bool { return has == c.capability }))
			m, _, findings := newCompiler(parse(t, with), Options{}, lacking).run()
			if m != nil || len(findings.Errors()) == 0 {
				t.Errorf("compiled for what has no %s", c.capability)
			}
			for _, f := range findings.Errors() {
				if f.ID != diag.NotEnforced || f.Pos.IsZero() || f.Hint == "" {
					t.Errorf("without %s: %s", c.capability, f)
				}
			}
		})
	}
}

// outcome is all that is seen of a compilation: the mesh, or the findings.
func outcome(t *testing.T, files map[string]string, version string) string {
	t.Helper()
	m, _, findings := Compile(parse(t, files), Options{ProxyVersion: version})
	if len(findings.Errors()) > 0 {
		return findings.Error()
	}
	return string(mesh.Canonical(m))
}

// languageFields lists "Type.field" for all structs that a type reaches.
func languageFields(t reflect.Type) (out []string) {
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(t reflect.Type) {
		switch t.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			walk(t.Elem())
		case reflect.Struct:
			if seen[t] || opaque(t) {
				return
			}
			seen[t] = true
			for f := range t.Fields() {
				out = append(out, t.Name()+"."+fieldName(f))
				walk(f.Type)
			}
		}
	}
	walk(t)
	return out
}

// TestEveryValue wants each value of the language's enumerations either compiled or refused as not enforced, and never
// to be unknown to the compiler.
func TestEveryValue(t *testing.T) {
	types := string(v1alpha1.Files()["types.cue"])
	for _, c := range []struct {
		typ, set string
		least    int
	}{
		{"Protocol", "services: shop: api: ports: http: protocol: ", 7},
		{"MTLS", "services: shop: api: ports: http: mtls: ", 2},
		{"InboundPolicy", "services: shop: api: ports: http: inboundPolicy: ", 6},
	} {
		line := regexp.MustCompile(`(?m)^#` + c.typ + `: (("[a-z0-9-]+"|[ |])+)`).FindStringSubmatch(types)
		if line == nil {
			t.Fatalf("types.cue has no #%s", c.typ)
		}
		values := regexp.MustCompile(`"[^"]*"`).FindAllString(line[1], -1)
		if len(values) < c.least {
			t.Errorf("#%s has only %s", c.typ, values)
		}
		for _, v := range values {
			_, _, findings := Compile(parse(t, map[string]string{"0.cue": base, "1.cue": c.set + v}), Options{})
			for _, f := range findings.Errors() {
				if f.ID != diag.NotEnforced {
					t.Errorf("%s%s: %s", c.set, v, f)
				}
			}
		}
	}
}

// meshFields has, for every field of the compiled mesh, the capability without which nothing is given to a sidecar that
// has the field set; "" where every sidecar, or nobody but the reconciler and the control plane, goes by it.
var meshFields = map[string]mesh.Capability{
	"Mesh.Settings": "", "Mesh.Inbound": "", "Mesh.Outbound": "", "Mesh.Workloads": "", "Mesh.Groups": mesh.CapGroup,
	"Mesh.Egress": mesh.CapEgress, "Mesh.Invariants": "",

	"Settings.trustDomain": "", "Settings.maxStale": "", "Settings.clusterNetworks": mesh.CapNetworks,
	"Settings.opaquePorts": mesh.CapOpaquePorts, "Settings.skipInbound": mesh.CapSkipPorts, "Settings.skipOutbound": mesh.CapSkipPorts,
	"Settings.telemetry": "", "Settings.rollout": mesh.CapStaged, "Settings.jwtIssuers": mesh.CapAuthorizeJWT, "Settings.needs": "",
	"Telemetry.labels": mesh.CapTelemetry, "Telemetry.maxSeries": mesh.CapTelemetry, "Telemetry.tracing": mesh.CapTracing,
	"Telemetry.accessLog": mesh.CapAccessLog,
	"Rollout.steps":       mesh.CapStaged, "Rollout.pause": mesh.CapStaged, "Rollout.haltNacks": mesh.CapStaged,
	"Rollout.haltDenials": mesh.CapStaged, "Rollout.haltFailures": mesh.CapStaged,
	"JWTIssuer.name": mesh.CapAuthorizeJWT, "JWTIssuer.issuer": mesh.CapAuthorizeJWT, "JWTIssuer.audiences": mesh.CapAuthorizeJWT,
	"JWTIssuer.jwks": mesh.CapAuthorizeJWT, "JWTIssuer.url": mesh.CapJWKSURL, "JWTIssuer.header": mesh.CapAuthorizeJWT,

	"Inbound.service": "", "Inbound.identities": "", "Inbound.ports": "", "Inbound.rules": mesh.CapAuthorize,
	"Inbound.routes": mesh.CapRateLimit, "Inbound.clusterNetworks": mesh.CapCluster, "Inbound.selector": mesh.CapSelector,
	"Inbound.maxConnections": mesh.CapLimits, "Inbound.maxRequests": mesh.CapLimits, "Inbound.needs": "",
	"InboundPort.name": "", "InboundPort.port": "", "InboundPort.protocol": "", "InboundPort.mtls": "", "InboundPort.default": "",
	"InboundPort.defaultID": "", "InboundPort.canonicalPaths": mesh.CapAuthorize, "InboundPort.matches": "", // for rules by route, or route rate limits
	"InboundPort.rateLimit": mesh.CapRateLimit,
	"RateLimit.total":       mesh.CapRateLimit, "RateLimit.perIdentity": mesh.CapRateLimit, "RateLimit.overrides": mesh.CapRateLimit,
	"RateOverride.from": mesh.CapRateLimit, "RateOverride.requestsPerSecond": mesh.CapRateLimit,
	"Rule.id": mesh.CapAuthorize, "Rule.action": mesh.CapAuthorize, "Rule.from": mesh.CapAuthorize, "Rule.ports": mesh.CapAuthorize,
	"Rule.routes": mesh.CapAuthorizeL7, "Rule.networks": mesh.CapAuthorizeNetwork, "Rule.methods": mesh.CapAuthorizeRequest,
	"Rule.paths": mesh.CapAuthorizeRequest, "Rule.headers": mesh.CapAuthorizeRequest, "Rule.sni": mesh.CapAuthorizeSNI,
	"Rule.jwt": mesh.CapAuthorizeJWT, "Rule.until": mesh.CapAuthorizeUntil, "Rule.shadow": mesh.CapAudit,
	"Network.cidr": "", "Network.except": "", // of a rule or an egress entry, whose fields need their own
	"JWTMatch.issuer": mesh.CapAuthorizeJWT, "JWTMatch.claims": mesh.CapAuthorizeJWT, "ClaimMatch.name": mesh.CapAuthorizeJWT, "ClaimMatch.values": mesh.CapAuthorizeJWT,
	"Peer.identity": "", "Peer.prefix": mesh.CapAuthorizePattern, "Peer.suffix": mesh.CapAuthorizePattern, "Peer.authenticated": "", "Peer.unauthenticated": "",

	"Outbound.service": "", "Outbound.identities": "", "Outbound.ports": "", "Outbound.routes": "", "Outbound.consumers": mesh.CapConsumerRoute,
	"Outbound.balancer": "", "Outbound.breaker": mesh.CapBreaker, "Outbound.maxPending": mesh.CapLimits, "Outbound.needs": "",
	"Consumer.namespace": mesh.CapConsumerRoute, "Consumer.ports": mesh.CapConsumerRoute, "Consumer.routes": mesh.CapConsumerRoute,
	"Balancer.hash": mesh.CapHash, "Balancer.warmUp": mesh.CapWarmUp,
	"HashKey.header": mesh.CapHash, "HashKey.cookie": mesh.CapHash, "HashKey.source": mesh.CapHash,
	"Breaker.consecutive": mesh.CapBreaker, "Breaker.successRate": mesh.CapBreaker, "Breaker.window": mesh.CapBreaker,
	"Breaker.minRequests": mesh.CapBreaker, "Breaker.penaltyMin": mesh.CapBreaker, "Breaker.penaltyMax": mesh.CapBreaker,
	"Breaker.ejectionFloor": mesh.CapBreaker,
	"OutboundPort.name":     "", "OutboundPort.port": "", "OutboundPort.protocol": "", "OutboundPort.matches": mesh.CapRoute,
	"OutboundPort.hosts": mesh.CapTLSRoute, "OutboundPort.connections": mesh.CapTCPRoute,
	"HostMatch.route": mesh.CapTLSRoute, "HostMatch.name": mesh.CapTLSRoute,
	"Route.id": "", "Route.port": "", "Route.grpc": mesh.CapGRPCRoute, "Route.matches": mesh.CapRateLimit, "Route.backends": "",
	"Route.timeouts": "", "Route.retry": mesh.CapRetry, "Route.filters": "", "Route.breaker": mesh.CapBreaker, "Route.rateLimit": mesh.CapRateLimit,
	"Retry.tries": mesh.CapRetry, "Retry.statuses": mesh.CapRetry, "Retry.grpc": mesh.CapRetry, "Retry.timeout": mesh.CapRetry,
	"Retry.backoffMin": mesh.CapRetry, "Retry.backoffMax": mesh.CapRetry, "Retry.budget": mesh.CapRetry, "Retry.minPerSecond": mesh.CapRetry,
	"Retry.window": mesh.CapRetry, "Retry.idempotent": mesh.CapRetry, "StatusRange.from": mesh.CapRetry, "StatusRange.to": mesh.CapRetry,
	"Filter.requestHeaders": mesh.CapFilterHeaders, "Filter.responseHeaders": mesh.CapFilterHeaders, "Filter.redirect": mesh.CapFilterRedirect,
	"Filter.rewrite": mesh.CapFilterRewrite, "Filter.mirror": mesh.CapFilterMirror, "Filter.cors": mesh.CapFilterCORS,
	"Filter.respond": mesh.CapFilterRespond, "Filter.fault": mesh.CapFilterFault,
	"HeaderEdit.remove": mesh.CapFilterHeaders, "HeaderEdit.set": mesh.CapFilterHeaders, "HeaderEdit.add": mesh.CapFilterHeaders,
	"HeaderField.name": mesh.CapFilterHeaders, "HeaderField.value": mesh.CapFilterHeaders,
	"Redirect.scheme": mesh.CapFilterRedirect, "Redirect.host": mesh.CapFilterRedirect, "Redirect.port": mesh.CapFilterRedirect,
	"Redirect.path": mesh.CapFilterRedirect, "Redirect.status": mesh.CapFilterRedirect,
	"Rewrite.host": mesh.CapFilterRewrite, "Rewrite.path": mesh.CapFilterRewrite,
	"PathEdit.full": "", "PathEdit.prefix": "", // of a redirect or a rewrite
	"Mirror.service": mesh.CapFilterMirror, "Mirror.port": mesh.CapFilterMirror, "Mirror.share": mesh.CapFilterMirror,
	"CORS.allowOrigins": mesh.CapFilterCORS, "CORS.allowMethods": mesh.CapFilterCORS, "CORS.allowHeaders": mesh.CapFilterCORS,
	"CORS.exposeHeaders": mesh.CapFilterCORS, "CORS.allowCredentials": mesh.CapFilterCORS, "CORS.maxAge": mesh.CapFilterCORS,
	"DirectResponse.status": mesh.CapFilterRespond, "DirectResponse.body": mesh.CapFilterRespond,
	"Fault.delay": mesh.CapFilterFault, "Fault.delayShare": mesh.CapFilterFault, "Fault.abort": mesh.CapFilterFault, "Fault.abortShare": mesh.CapFilterFault,
	"Match.route": mesh.CapRoute, "Match.path": mesh.CapRoute, "Match.method": mesh.CapRoute, "Match.headers": mesh.CapRoute, "Match.query": mesh.CapRouteQuery,
	"PathMatch.exact": "", "PathMatch.prefix": "", "PathMatch.template": mesh.CapAuthorizeRequest, "PathMatch.regex": mesh.CapRouteRegex,
	"HeaderMatch.name": "", "HeaderMatch.exact": "", "HeaderMatch.oneOf": mesh.CapAuthorizeRequest, "HeaderMatch.present": mesh.CapAuthorizeRequest,
	"HeaderMatch.regex": mesh.CapRouteRegex,
	"Backend.service":   "", "Backend.port": "", "Backend.weight": "", "Backend.filters": mesh.CapFilterBackend,
	"Timeouts.request": mesh.CapTimeout, "Timeouts.response": mesh.CapResponseTimeout, "Timeouts.idle": mesh.CapIdleTimeout,

	"Workload.name": "", "Workload.service": "", "Workload.identity": "", "Workload.address": "", "Workload.labels": mesh.CapSelector,
	"Workload.weight": mesh.CapWeight, "Workload.zone": mesh.CapZone,
	"Group.name": mesh.CapGroup, "Group.service": mesh.CapGroup, "Group.identity": mesh.CapGroup, "Group.labels": mesh.CapGroup,
	"Group.zone": mesh.CapZone, "Group.max": mesh.CapGroup,
	"Egress.namespace": mesh.CapEgress, "Egress.default": mesh.CapEgress, "Egress.defaultID": mesh.CapEgress, "Egress.rules": mesh.CapEgress, "Egress.needs": mesh.CapEgress,
	"EgressRule.id": mesh.CapEgress, "EgressRule.action": mesh.CapEgress, "EgressRule.services": mesh.CapEgress, "EgressRule.hosts": mesh.CapEgress,
	"EgressRule.networks": mesh.CapEgress, "EgressRule.ports": mesh.CapEgress, "EgressRule.protocol": mesh.CapEgress,
	"EgressRule.originateTLS": mesh.CapEgressTLS,

	// Sidecars never see invariants.
	"Invariant.name": "", "Invariant.id": "", "Invariant.never": "", "Invariant.only": "", "Invariant.alwaysMTLS": "",
	"Flow.from": "", "Flow.anyone": "", "Flow.to": "",
	"Target.namespace": "", "Target.services": "", "Target.ports": "", "Target.methods": "", "Target.paths": "",
}

// TestEveryMeshField wants every field of the compiled mesh to be made by some policy, and whatever sets it to need the
// capability that enforces it: what is sent to a sidecar that does not know it would be ignored.
func TestEveryMeshField(t *testing.T) {
	known := languageFields(reflect.TypeFor[mesh.Mesh]())
	for _, f := range known {
		if _, ok := meshFields[f]; !ok {
			t.Errorf("%s is a new field of the mesh: say which capability enforces it", f)
		}
	}
	if len(known) != len(meshFields) {
		t.Errorf("the mesh has %d fields, and the table %d", len(known), len(meshFields))
	}
	made := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		c := fields[name]
		if c.finding != "" {
			continue
		}
		// For a sidecar that enforces nothing, everything that is needed is lacking.
		all := newCompiler(parse(t, map[string]string{"0.cue": base, "00.cue": wide, "1.cue": c.before, "2.cue": c.set}), Options{}, gateOf("", nil))
		all.run()
		m, _, _ := Compile(all.doc, Options{ProxyVersion: "any"})
		if m == nil {
			continue // TestEveryField says so
		}
		takes := slices.Clone(m.Settings.Requires())
		for i := range m.Inbound {
			takes = append(takes, m.Inbound[i].Requires()...)
		}
		for i := range m.Outbound {
			takes = append(takes, m.Outbound[i].Requires()...)
		}
		for _, n := range takes {
			if !slices.ContainsFunc(all.gate.lacks, func(l lack) bool { return l.cap == n }) {
				t.Errorf("%s: an object takes %s, and no line of policy is found to", name, n)
			}
		}
		set := map[string]bool{}
		fieldsSet(reflect.ValueOf(*m), set)
		for f := range set {
			made[f] = true
			if c := meshFields[f]; c != "" && !slices.ContainsFunc(all.gate.lacks, func(l lack) bool { return l.cap == c }) {
				t.Errorf("%s: %s is set, and %s is not needed", name, f, c)
			}
		}
	}
	for _, f := range known {
		if !made[f] {
			t.Errorf("no case sets %s: nothing in the language makes it, or no case shows it", f)
		}
	}
}

// fieldsSet collects "Type.field" of all fields in a value that are not zero.
func fieldsSet(v reflect.Value, to map[string]bool) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			fieldsSet(v.Elem(), to)
		}
	case reflect.Slice:
		for i := range v.Len() {
			fieldsSet(v.Index(i), to)
		}
	case reflect.Struct:
		if opaque(v.Type()) {
			return
		}
		for f, fv := range v.Fields() {
			if fv.IsZero() {
				continue
			}
			name := v.Type().Name() + "." + fieldName(f)
			if to[name] = true; name != "Flow.from" { // callers of an invariant, which no sidecar sees
				fieldsSet(fv, to)
			}
		}
	}
}

// opaque reports whether a type's own fields are none of ours.
func opaque(t reflect.Type) bool {
	return t == reflect.TypeFor[time.Time]() || t == reflect.TypeFor[netip.Prefix]()
}

func fieldName(f reflect.StructField) string {
	if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
		return name
	}
	return f.Name
}

// TestEnforcedTable wants the two tables of what sidecars enforce to agree, and an older sidecar to be spared what it
// lacks.
func TestEnforcedTable(t *testing.T) {
	for _, p := range protocols {
		lacks := slices.ContainsFunc(carried[p], func(c mesh.Capability) bool { return !slices.Contains(mesh.Enforced, c) })
		if enforced := slices.Contains(mesh.EnforcedProtocols, p); enforced == lacks || len(carried[p]) == 0 {
			t.Errorf("protocol %s is enforced: %v; it needs %v", p, enforced, carried[p])
		}
	}
	doc := parse(t, map[string]string{"0.cue": base, "1.cue": `
		services: shop: web: {
			ports: http: mtls: "permissive"
			defaults: timeout: "1s"
			allow: l7: {from: [{authenticated: true}], routes: ["cart"]}
		}`})
	if _, _, findings := Compile(doc, Options{}); len(findings.Errors()) > 0 {
		t.Fatal(findings)
	}
	for _, cap := range []mesh.Capability{mesh.CapRoute, mesh.CapTimeout, mesh.CapAuthorize, mesh.CapAuthorizeL7, mesh.CapPermissive} {
		old := slices.DeleteFunc(slices.Clone(mesh.Enforced), func(c mesh.Capability) bool { return c == cap })
		m, _, findings := newCompiler(doc, Options{}, gateOf("0.0.1", old)).run()
		if m != nil || len(findings.Errors()) == 0 {
			t.Errorf("a sidecar without %s was given the policy", cap)
		}
		for _, f := range findings.Errors() {
			if f.ID != diag.NotEnforced || !strings.Contains(f.Message, "heddle-proxy 0.0.1") || f.Pos.IsZero() {
				t.Errorf("without %s: %s", cap, f)
			}
		}
	}
	if _, _, findings := Compile(doc, Options{ProxyVersion: "0.0.1"}); len(findings) != 1 || findings[0].ID != diag.NotEnforced {
		t.Errorf("a version that is not known: %v", findings)
	}
}

// TestEveryFinding wants each ID of compile's own (03xx, 04xx, 05xx) in a golden archive.
func TestEveryFinding(t *testing.T) {
	archives, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, file := range archives {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range ar.Files {
			if f.Name == "findings" {
				all.Write(f.Data)
			}
		}
	}
	for _, c := range diag.Catalogue {
		if c.ID == diag.BadTest {
			continue // reconciler/expect finds it
		}
		if c.ID >= "HDL0300" && c.ID < "HDL0600" && !strings.Contains(all.String(), "["+c.ID+"]") {
			t.Errorf("no archive of testdata has %s (%s)", c.ID, c.Title)
		}
	}
}

// TestHeadersOfSidecars: a condition on what the sidecars themselves write or take off would never match a mesh peer, and
// match whatever a stranger claims.
func TestHeadersOfSidecars(t *testing.T) {
	for name, refused := range map[string]bool{
		"heddle-client-id": true, "Heddle_Client_Id": true, "X-Forwarded-Client-Cert": true, "Connection": true,
		"transfer-encoding": true, "upgrade": true, "host": false, "x-tenant": false, "authorization": false,
	} {
		_, _, all := Compile(parse(t, map[string]string{"base.cue": base, "set.cue": addMatch + `headers: "` + name + `": exact: "1"}]}`}), Options{})
		findings := all.Errors()
		if got := len(findings) == 1 && findings[0].ID == diag.WrongValue; got != refused || !refused && len(findings) > 0 {
			t.Errorf("%s: refused is %v, want %v: %v", name, got, refused, findings)
		}
	}
}
