package compile

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// authorization is what compiling rules needs of the mesh as a whole.
type authorization struct {
	now     time.Time // Options.Now
	issuers map[string]*issuer
}

// issuer is an issuer of tokens; used is set as soon as a rule names it.
type issuer struct {
	at   path
	out  mesh.JWTIssuer
	used bool
}

// compileIssuers compiles the issuers of tokens; rules name them afterwards.
func (c *compiler) compileIssuers() {
	c.issuers = map[string]*issuer{}
	m := c.doc.Policy.Mesh
	if m == nil {
		return
	}
	claimed := map[string]*issuer{}
	for _, name := range slices.Sorted(maps.Keys(m.JwtIssuers)) {
		src := m.JwtIssuers[name]
		is := &issuer{at: path("mesh").at("jwtIssuers", name), out: mesh.JWTIssuer{Name: name, Issuer: src.Issuer, JWKS: src.Jwks, URL: src.JwksURL}}
		c.issuers[name] = is
		c.checkRuleName(is.at, "token issuer", name)
		if src.Issuer == "" {
			c.find(diag.MissingField, is.at.at("issuer"), "the issuer says not what stands in its tokens' iss claim", `write issuer: "https://login.example.org"`)
		} else if !plainText(src.Issuer) {
			c.find(diag.WrongValue, is.at.at("issuer"), fmt.Sprintf("no token is of issuer %q", src.Issuer), "leave out spaces at the ends and control characters")
		} else if other := claimed[src.Issuer]; other != nil {
			c.find(diag.DuplicateEntry, is.at.at("issuer"), fmt.Sprintf("%q is issuer %q already", src.Issuer, other.out.Name),
				"let the two be one, with all audiences", c.pos(other.at.at("issuer")))
		} else {
			claimed[src.Issuer] = is
		}
		is.out.Audiences = c.audiences(is.at.at("audiences"), src.Audiences)
		c.keys(is, &src)
		is.out.Header = mesh.BuiltInTokenHeader
		if src.Header != "" {
			if is.out.Header = strings.ToLower(src.Header); !token(src.Header) {
				c.find(diag.WrongValue, is.at.at("header"), fmt.Sprintf("%q is no header name", src.Header), `write a name as in "x-token"`)
			} else if why := notPassedOn(is.out.Header); why != "" {
				c.find(diag.WrongValue, is.at.at("header"), fmt.Sprintf("header %s %s, so no token can come in it", is.out.Header, why), "name another header")
			}
		}
	}
}

// plainText reports whether a text is one that people can tell from others: spaces at its ends and control characters are
// slips of the hand.
func plainText(s string) bool {
	return strings.TrimSpace(s) == s && !strings.ContainsFunc(s, unicode.IsControl)
}

func (c *compiler) audiences(at path, src []string) (out []string) {
	if len(src) == 0 {
		c.find(diag.MissingField, at, "a token for anybody would do: no audience is named",
			`name whom tokens must be meant for, as in audiences: ["shop.example"]`)
	}
	for i, a := range src {
		switch {
		case a == "":
			c.find(diag.WrongValue, at.index(i), "an audience is not empty", "name it, or delete the element")
		case !plainText(a):
			c.find(diag.WrongValue, at.index(i), fmt.Sprintf("no token is meant for %q", a), "leave out spaces at the ends and control characters")
		case slices.Contains(out, a):
			c.duplicate(at, i, slices.Index(src, a), fmt.Sprintf("audience %q", a))
		default:
			out = append(out, a)
		}
	}
	slices.Sort(out)
	return out
}

// keys checks where an issuer's keys come from.
func (c *compiler) keys(is *issuer, src *v1alpha1.JWTIssuer) {
	switch {
	case (src.Jwks != "") == (src.JwksURL != ""):
		c.find(diag.WrongValue, is.at, "an issuer's keys are exactly one of jwks, jwksURL", `write jwksURL: "https://…", or the key set itself into jwks`)
	case src.JwksURL != "":
		if u, err := url.Parse(src.JwksURL); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
			shown := src.JwksURL
			if i := strings.LastIndexByte(shown, '@'); i >= 0 { // a finding stands in comments and logs, and that may be a password
				shown = "…" + shown[i:]
			}
			c.find(diag.WrongValue, is.at.at("jwksURL"), fmt.Sprintf("%q is no https URL", shown),
				"whoever can change the answer can sign tokens: write an https URL, without user and fragment")
		}
	default:
		if why := keySet(src.Jwks); why != "" {
			c.find(diag.WrongValue, is.at.at("jwks"), why, `write a JSON Web Key Set (RFC 7517, 5), as in {"keys": […]}, with public keys only`)
		}
	}
}

// keyFields are what a public key has, by its kind (RFC 7518, 6; RFC 8037, 2).
var keyFields = map[string][]string{"RSA": {"n", "e"}, "EC": {"crv", "x", "y"}, "OKP": {"crv", "x"}}

// keySet says why a text is no JSON Web Key Set of public keys, or "".
func keySet(text string) string {
	var set struct {
		Keys []map[string]json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal([]byte(text), &set); err != nil {
		return "it is no JSON Web Key Set: " + err.Error()
	}
	if len(set.Keys) == 0 {
		return "the key set has no keys, so no token would ever be valid"
	}
	for i, k := range set.Keys {
		var kty string
		switch err := json.Unmarshal(k["kty"], &kty); {
		case err != nil || kty == "":
			return fmt.Sprintf("key %d has no kty", i)
		case kty == "oct":
			return fmt.Sprintf("key %d is a shared secret: whoever reads the repository could sign tokens", i)
		case k["d"] != nil:
			return fmt.Sprintf("key %d has its private half: whoever reads the repository could sign tokens", i)
		case keyFields[kty] == nil:
			return fmt.Sprintf("key %d is of kind %q, and tokens are signed by keys of kind RSA, EC or OKP", i, kty)
		}
		for _, field := range keyFields[kty] {
			if k[field] == nil {
				return fmt.Sprintf("key %d is of kind %s and has no %s", i, kty, field)
			}
		}
	}
	return ""
}

// namedIssuers are the issuers that rules name, sorted.
func (c *compiler) namedIssuers() (out []mesh.JWTIssuer) {
	for _, name := range slices.Sorted(maps.Keys(c.issuers)) {
		is := c.issuers[name]
		if !is.used {
			continue
		}
		out = append(out, is.out)
		if is.out.URL != "" {
			c.need(nil, mesh.CapJWKSURL, is.at.at("jwksURL"), "jwksURL")
		}
	}
	return out
}

// jwt compiles what a rule asks of a token.
func (c *compiler) jwt(at path, src *v1alpha1.JWTMatch) *mesh.JWTMatch {
	if src == nil {
		return nil
	}
	is := c.issuers[src.Issuer]
	if is == nil {
		c.find(diag.UnknownIssuer, at.at("issuer"), fmt.Sprintf("no issuer of tokens is named %q", src.Issuer),
			nameHint(src.Issuer, slices.Sorted(maps.Keys(c.issuers)), "declare it under mesh.jwtIssuers"), c.pos("mesh.jwtIssuers"))
	} else {
		is.used = true
	}
	c.noEntries(at.at("claims"), len(src.Claims), "claims")
	out := &mesh.JWTMatch{Issuer: src.Issuer}
	for _, name := range slices.Sorted(maps.Keys(src.Claims)) {
		values, at := src.Claims[name], at.at("claims", name)
		if name == "" || slices.Contains(strings.Split(name, "."), "") {
			c.find(diag.WrongValue, at, fmt.Sprintf("%q is no name of a claim", name), `write it as in "role", nested ones as in "realm.role"`)
		}
		if len(values) == 0 {
			c.find(diag.WrongValue, at, "an empty list of values matches nothing", "name the values that do, or leave the claim out")
		}
		m := mesh.ClaimMatch{Name: name}
		for i, v := range values {
			if slices.Contains(m.Values, v) {
				c.duplicate(at, i, slices.Index(values, v), fmt.Sprintf("value %q", v))
			} else {
				m.Values = append(m.Values, v)
			}
		}
		slices.Sort(m.Values)
		out.Claims = append(out.Claims, m)
	}
	return out
}
