package compile

import (
	"fmt"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/spiffe"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// identities are the SPIFFE IDs of a service, sorted.
func (c *compiler) identities(s *service) []string {
	at := s.at.at("identities")
	if c.empty(at, len(s.src.Identities), s.src.Identities == nil) {
		c.find(diag.BadIdentity, at, "a service without an identity can neither call nor be called",
			"name one, or leave the field out for "+string(spiffe.ServiceID(c.trustDomain, s.name)))
	}
	if len(s.src.Identities) == 0 {
		return []string{string(spiffe.ServiceID(c.trustDomain, s.name))}
	}
	var ids []string
	for i, id := range s.src.Identities {
		if c.identity(at.index(i), id) {
			ids = append(ids, string(id))
		}
	}
	return set(ids)
}

// identity checks a SPIFFE ID that policy names.
func (c *compiler) identity(at path, id v1alpha1.SpiffeID) bool {
	parsed, err := spiffe.ParseID(string(id))
	if err != nil {
		c.find(diag.BadIdentity, at, err.Error(), fmt.Sprintf("write it as spiffe://%s/path", c.trustDomain))
		return false
	}
	td := parsed.TrustDomain()
	workload := strings.TrimPrefix(string(id), "spiffe://"+td)
	if strings.HasPrefix(workload+"/", "/heddle/") {
		c.find(diag.BadIdentity, at,
			fmt.Sprintf("%s is Heddle's own: no workload is ever given an identity under /heddle/", id),
			"choose another path")
		return false
	}
	if c.trustDomain != "" && td != c.trustDomain {
		c.find(diag.UnknownDomain, at, fmt.Sprintf("%s is of trust domain %q; the mesh's is %q", id, td, c.trustDomain),
			fmt.Sprintf("write spiffe://%s%s; identities of other trust domains cannot be proven here", c.trustDomain, workload),
			c.pos("mesh.trustDomain"))
		return false
	}
	return true
}

// checkIdentities finds identities that several services claim.
func (c *compiler) checkIdentities(services []*service) {
	owner := map[string]*service{}
	for _, s := range services {
		for _, id := range s.in.Identities {
			other := owner[id]
			if other == nil {
				owner[id] = s
				continue
			}
			// The place to look at is the one where the identity is written out, if only one of the two does.
			at, related := s.identityAt(id), other.identityAt(id)
			if at == s.at && related != other.at {
				at, related = related, at
			}
			c.find(diag.DuplicateID, at, fmt.Sprintf("%s and %s have the same identity, %s", other.name, s.name, id),
				"give each service an identity of its own: rules admit callers by it, and callers know servers by it", c.pos(related))
		}
	}
}

// identityAt is where a service's identity is written, or the service's path for the one that it has by default.
func (s *service) identityAt(id string) path {
	if i := slices.Index(s.src.Identities, v1alpha1.SpiffeID(id)); i >= 0 {
		return s.at.at("identities").index(i)
	}
	return s.at
}
