package reach

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// Witness is one concrete call, complete enough to be judged: `heddle explain` with [Witness.Args] judges the very
// same one.
type Witness struct {
	// From is the caller as a person names it: a service, a SPIFFE ID, or "-" for a caller that proves none.
	From string `json:"from"`
	// Identity is the caller's SPIFFE ID; empty: none is proven.
	Identity string `json:"identity,omitempty"`
	// Namespace is the caller's where its identity does not say so; see decide.Call.
	Namespace string           `json:"namespace,omitempty"`
	To        mesh.ServiceName `json:"to"`
	Port      string           `json:"port"`
	// HTTP tells a request from a connection, which has neither method nor path, headers, query or tokens.
	HTTP    bool              `json:"http,omitempty"`
	Method  string            `json:"method,omitempty"`
	Path    string            `json:"path,omitempty"`
	Query   map[string]string `json:"query,omitempty"`
	Headers map[string]string `json:"headers,omitempty"` // by lower-case name
	// Tokens are the valid tokens that the request carries: claims by the name of the issuer in policy.
	Tokens  map[string]map[string][]string `json:"tokens,omitempty"`
	Address netip.Addr                     `json:"address,omitzero"`
	SNI     string                         `json:"sni,omitempty"`
	At      time.Time                      `json:"at,omitzero"`

	// Direct says that the call comes to the service's own door, as that of a caller that does not go by its routes:
	// decide.Admit judges it, and `heddle explain --direct`.
	Direct bool `json:"direct,omitempty"`

	present bool // At is the time of the question, which is the one that explain takes by itself
}

// Call is the witness as the argument of decide.Judge.
func (w *Witness) Call() decide.Call {
	c := decide.Call{Service: w.To, Port: w.Port, Namespace: w.Namespace}
	c.Peer, c.HTTP, c.Addr, c.SNI, c.Now = w.Identity, w.HTTP, w.Address, w.SNI, w.At
	if !w.HTTP {
		return c
	}
	c.Method, c.Path = w.Method, w.Path
	c.Header = func(name string) (string, bool) { v, ok := w.Headers[name]; return v, ok }
	c.Query = func(name string) (string, bool) { v, ok := w.Query[name]; return v, ok }
	c.Claim = func(issuer, claim string) ([]string, bool) {
		t, ok := w.Tokens[issuer]
		if !ok || claim == "" {
			return nil, ok
		}
		v, ok := t[claim]
		return v, ok
	}
	return c
}

// Args are the arguments of `heddle explain` that ask about the witness: FROM TO:port [METHOD PATH], then flags. A
// caller that policy declares is named by its service where the service
// has that one identity only.
func (w *Witness) Args() []string {
	to := string(w.To)
	if w.Port != "" {
		to += ":" + w.Port
	}
	args := []string{w.From, to}
	if w.HTTP {
		args = append(args, w.Method, w.Path)
		for _, name := range sortedKeys(w.Query) {
			args = append(args, "--query", name+"="+w.Query[name])
		}
		for _, name := range sortedKeys(w.Headers) {
			args = append(args, "--header", name+"="+w.Headers[name])
		}
		for _, issuer := range sortedKeys(w.Tokens) {
			claims := w.Tokens[issuer]
			if len(claims) == 0 { // a valid token, of which policy asks nothing more
				claims = map[string][]string{"any": {"x"}}
			}
			for _, name := range sortedKeys(claims) {
				for _, v := range claims[name] {
					args = append(args, "--claim", issuer+":"+name+"="+v)
				}
			}
		}
	}
	if w.Direct {
		args = append(args, "--direct")
	}
	if w.Address.IsValid() {
		args = append(args, "--address", w.Address.String())
	}
	if w.SNI != "" {
		args = append(args, "--sni", w.SNI)
	}
	if !w.At.IsZero() && !w.present {
		args = append(args, "--at", w.At.UTC().Format(time.RFC3339Nano))
	}
	return args
}

// Command is the line that a person types to see the witness judged; arguments that a shell would not take as they stand
// are quoted.
func (w *Witness) Command() string {
	words := []string{"heddle", "explain"}
	for _, a := range w.Args() {
		words = append(words, shellWord(a))
	}
	return strings.Join(words, " ")
}

func shellWord(s string) string {
	plain := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_./:=@,+%", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
