package compile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// routeTraps are the cases of other meshes' admission webhooks and of their outbound suites that are about routes, ports,
// limits and what leaves the mesh; those of rules are in admission.
var routeTraps = []struct{ traps, archive, said string }{
	{"relative paths", "values", `does not start with "/" [HDL0203]`},
	{"relative redirect paths", "filters", `redirect.path.full: "relative" does not start with "/" [HDL0203]`},
	{"redirect to itself", "filters", "the redirect leads back to this route [HDL0308]"},
	{"backend without a port", "names", "backends.0: shop/front has 2 ports that speak HTTP, and none is named here [HDL0305]"},
	{"backend with a port that is not there", "names", `backends.0.port: shop/web has no port named "htp" [HDL0302]`},
	{"invalid backend", "routes", `httpRoutes.far.backends.0.service: no service is named "shop/gone" [HDL0301]`},
	{"backend that speaks something else", "routes", `port "old" of shop/web speaks http1, so it takes no gRPC calls [HDL0309]`},
	{"parent without a needed port", "names", "httpRoutes.none: pay/api has 2 ports that speak HTTP, and none is named here [HDL0305]"},
	{"missing parent", "settings", `namespaces.pay.calls.shop/gone: no service is named "shop/gone" [HDL0301]`},
	{"wrong target kind: HTTP on bytes", "routes", `port "tcp" speaks tcp, so no HTTP route can stand on it [HDL0309]`},
	{"wrong target kind: TLS on bytes", "routes", `port "tcp" speaks tcp, so no TLS route can stand on it [HDL0309]`},
	{"wrong target kind: gRPC on HTTP/1", "routes", `port "old" speaks http1, so no gRPC route can stand on it [HDL0309]`},
	{"more than one rule where one is allowed", "routes", `route "all" takes every connection of port "tcp" already [HDL0306]`},
	{"more than one filter where one is allowed", "filters", "a second rewrite: only one can be done [HDL0328]"},
	{"unsupported filter", "notenforced", "filters.1: a mirror is not enforced by heddle-proxy 0.1.0 [HDL0501]"},
	{"filter in the wrong place", "filters", "redirect answers before a backend is chosen [HDL0328]"},
	{"filter of the wrong kind of route", "routes", "filters change requests, and the route sends connections [HDL0328]"},
	{"weights that are all 0", "routes", "no backend has weight, so the route takes requests and sends them nowhere [HDL0317]"},
	{"per-identity limit above the total", "limits", "each identity may make 20 requests a second, all together only 10 [HDL0325]"},
	{"override above the total", "limits", "these callers may make 30 requests a second, all together only 10 [HDL0325]"},
	{"rate limit where no request is seen", "limits", `a rate limit counts requests, and port "raw" speaks tcp [HDL0309]`},
	{"breaker out of range", "limits", "breaker.consecutive: 1001 is out of range [HDL0203]"},
	{"retries and timeouts at odds", "retries", "the timeout of one try is 2s, and the whole request may take 2s [HDL0316]"},
	{"retries of what is not idempotent", "retries", "so none that got an answer is tried again [HDL0315]"},
	{"invalid protocol", "values", `"http" is no protocol [HDL0203]`},
	{"invalid access policy", "values", `"open" is no inbound policy [HDL0203]`},
	{"invalid port", "settings", "70000 is no port number [HDL0203]"},
	{"invalid duration", "values", `"2d" is no duration [HDL0203]`},
	{"invalid regular expression", "routes", "the regular expression cannot be read: unexpected ): `/a)(b` [HDL0327]"},
	{"malformed CIDR of a destination", "egress", `"10.0.0.1" is no range of addresses [HDL0323]`},
	{"exception outside its network", "egress", "the exception 11.0.0.0/16 is not inside 10.0.0.0/8 [HDL0323]"},
	{"egress back into the mesh", "egress", "web.shop.mesh is a name of the mesh, which egress never decides about [HDL0203]"},
	{"egress that contradicts itself", "egress", `bad.example.org is denied by "exception", so this entry never lets anybody there [HDL0321]`},
	{"skipped port that a service declares", "settings", "port 80 is declared by a service: connections to it would pass by the sidecar"},
	{"overlapping selectors", "limits", "every workload that shop/api selects is selected by shop/web too [HDL0329]"},
	{"external workload of a service that leaves it out", "limits", "the selector of shop/web leaves this workload out [HDL0331]"},
}

// TestRouteTraps wants each case in its archive, word for word.
func TestRouteTraps(t *testing.T) {
	for _, c := range routeTraps {
		b, err := os.ReadFile(filepath.Join("testdata", c.archive+".txtar"))
		if err != nil {
			t.Fatal(err)
		}
		if _, findings, _ := strings.Cut(string(b), "-- findings --"); !strings.Contains(findings, c.said) {
			t.Errorf("%s: testdata/%s.txtar does not say %q", c.traps, c.archive, c.said)
		}
	}
}
