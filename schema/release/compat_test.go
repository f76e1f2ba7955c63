package release

import (
	"bytes"
	"crypto/ed25519"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

// TestOtherVersions: a record of before guards knew invariants and fences is read as one that has none, and a record with
// a guard that this version does not know is refused, not read without it: what judges the next commit must not get lost
// on the way back to an older version.
func TestOtherVersions(t *testing.T) {
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(b []byte) Signed {
		return Signed{Bytes: b, Signature: ed25519.Sign(key, append([]byte(context), b...))}
	}
	now := mesh.Canonical(&Record{Guards: Guards{TrustDomain: "a.example", Services: 2}, Behaviour: mesh.BehaviourHash(nil)})
	if bytes.Contains(now, []byte("invariants")) || bytes.Contains(now, []byte("fences")) {
		t.Fatalf("guards that are not there are written: %s", now)
	}
	r, err := sign(now).Verify(public)
	if err != nil || r.Guards.TrustDomain != "a.example" || r.Guards.Invariants != nil || r.Guards.Fences != nil {
		t.Errorf("%+v, %v", r, err)
	}
	later := bytes.Replace(now, []byte(`"guards":{`), []byte(`"guards":{"quorum":2,`), 1)
	if bytes.Equal(later, now) {
		t.Fatalf("no guards in %s", now)
	}
	if r, err := sign(later).Verify(public); err == nil || !strings.Contains(err.Error(), "quorum") {
		t.Errorf("an unknown guard: %+v, %v", r, err)
	}
}
