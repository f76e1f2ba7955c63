package compile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// admission are the cases that other meshes' admission webhooks refuse (the design's "admission (findings)", from
// Linkerd's own suites), each with the archive that sees it and a line of what is said. A case that the language cannot
// even express says so.
var admission = []struct{ traps, archive, said string }{
	{"rule in another namespace", "", "a rule stands inside the service that it protects; writing another namespace's is HDL0211 of reconciler/policy"},
	{"wrong target kind", "auth_names", `allow.tlsroute.routes.0: shop/api has no HTTP route named "sni" [HDL0303]`},
	{"wrong target kind: requests on a port of bytes", "auth_dead", `the rule judges by paths, and port "sql" speaks tcp: its requests cannot be seen [HDL0309]`},
	{"duplicate authentications", "auth_lists", "allow.from.from.2: the caller is in the list already [HDL0326]"},
	{"empty authentications", "auth_lists", "allow.empty.from: the rule names no caller, so it matches nobody [HDL0311]"},
	{"references and strings mixed", "auth_lists", "allow.oneof.from.1: a caller is exactly one of service, namespace, identity, identityPrefix, identitySuffix, authenticated, unauthenticated; 2 are set [HDL0203]"},
	{"network exception equal to its network", "auth_names", "the exception 10.0.0.0/8 is the whole network [HDL0323]"},
	{"network exception outside its network", "auth_names", "the exception 11.0.0.0/16 is not inside 10.0.0.0/8 [HDL0323]"},
	{"network exception wider than its network", "auth_names", "the exception 0.0.0.0/0 is not inside 10.0.0.0/8 [HDL0323]"},
	{"exceptions that leave nothing", "auth_names", "the exceptions leave nothing of 192.0.2.0/30 [HDL0323]"},
	{"malformed CIDR", "auth_names", `"10.0.0.0/33" is no range of addresses [HDL0323]`},
	{"address in place of a CIDR", "auth_names", `for the one address write "10.0.0.0/32"`},
	{"host bits in a CIDR", "auth_names", "10.1.0.0/8 begins inside its range [HDL0323]"},
	{"relative paths", "auth_names", `paths.0.exact: "admin" does not start with "/" [HDL0203]`},
	{"relative templates", "auth_names", `"users/{id}" does not start with "/" [HDL0327]`},
	{"parent without a needed port", "auth_dead", "the rule judges requests, and no port of shop/bytes speaks HTTP [HDL0313]"},
	{"misspelt name", "auth_names", `hint: did you mean "login"?`},
	{"identity of another trust domain", "auth_names", `spiffe://other.example/ns is of trust domain "other.example"; the mesh's is "corp.example" [HDL0304]`},
	{"network that no mTLS caller is known by", "auth_dead", `callers known by their network alone are outside the mesh, and every port of the rule is mtls "strict" [HDL0320]`},
	{"expired rule", "auth_until", "warning: services.shop.api.allow.over.until: the rule has ended"},
	{"private keys in the repository", "auth_names", "key 0 has its private half: whoever reads the repository could sign tokens [HDL0203]"},
}

// TestAdmission wants each case in its archive, word for word.
func TestAdmission(t *testing.T) {
	for _, c := range admission {
		if c.archive == "" {
			continue
		}
		b, err := os.ReadFile(filepath.Join("testdata", c.archive+".txtar"))
		if err != nil {
			t.Fatal(err)
		}
		_, findings, _ := strings.Cut(string(b), "-- findings --")
		if !strings.Contains(findings, c.said) {
			t.Errorf("%s: testdata/%s.txtar does not say %q", c.traps, c.archive, c.said)
		}
	}
}
