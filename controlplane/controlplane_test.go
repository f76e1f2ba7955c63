package controlplane_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/heddle-mesh/heddle/controlplane"
	"github.com/heddle-mesh/heddle/internal/operator"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
	"github.com/heddle-mesh/heddle/schema/release"
)

var shop = []service{
	{name: "shop/api", from: []mesh.ServiceName{"shop/web"}, backends: []mesh.ServiceName{"shop/api", "shop/api-next"}},
	{name: "shop/api-next", from: []mesh.ServiceName{"shop/web"}},
	{name: "shop/ledger", from: []mesh.ServiceName{"shop/api"}},
	{name: "shop/web"},
}

func commit(n int) string { return fmt.Sprintf("%040d", n) }

func TestTokenEnrolsOneHost(t *testing.T) {
	w := newWorld(t)
	w.startControlPlane()
	var reply controlplane.TokenReply
	err := w.api.Post(t.Context(), "/v1/tokens", controlplane.TokenRequest{Workload: "shop/web-1", Service: "shop/web"}, &reply)
	if err == nil || !strings.Contains(err.Error(), "no release has arrived") {
		t.Errorf("a token before the first release: %v", err)
	}
	m, origins := compiled(shop)
	w.publish(m, commit(1), origins)

	tok := w.token("shop/web-1", "shop/web")
	h := w.newHost("shop/web-1")
	must(t, h.enrol(tok, "", nil))
	if h.id != "spiffe://mesh.test/ns/shop/sa/web" || h.service != "shop/web" {
		t.Errorf("enrolled as %s of %s", h.id, h.service)
	}
	leaf, err := x509.ParseCertificate(h.svid.Certificate[0])
	must(t, err)
	if len(h.svid.Certificate) != 2 || leaf.NotAfter.Sub(time.Now()) > 24*time.Hour {
		t.Errorf("a chain of %d that ends %v", len(h.svid.Certificate), leaf.NotAfter)
	}

	must(t, h.enrol(tok, "", nil)) // an answer can get lost
	must(t, h.enrol(nil, tok.Fingerprint, nil))

	thief := w.newHost("shop/web-1")
	wantCode(t, thief.enrol(tok, "", nil), codes.PermissionDenied, "used by another host key")
	wantCode(t, thief.enrol(nil, tok.Fingerprint, nil), codes.PermissionDenied, "enrolled with another host key")
	stranger := w.newHost("shop/api-1")
	wantCode(t, stranger.enrol(tok, "", nil), codes.PermissionDenied, "is for workload shop/web-1")
	wantCode(t, stranger.enrol(nil, tok.Fingerprint, nil), codes.PermissionDenied, "not enrolled")

	csr := func(c *x509.CertificateRequest, curve elliptic.Curve) func(*proxyapi.EnrolRequest) {
		return func(q *proxyapi.EnrolRequest) {
			key, err := ecdsa.GenerateKey(curve, rand.Reader)
			must(t, err)
			q.Csr, err = x509.CreateCertificateRequest(rand.Reader, c, key)
			must(t, err)
			q.Proof, err = ecdsa.SignASN1(rand.Reader, h.key, proxyapi.EnrolDigest(q))
			must(t, err)
		}
	}
	uri := func(s string) *url.URL { u, err := url.Parse(s); must(t, err); return u }
	for what, c := range map[string]struct {
		edit func(*proxyapi.EnrolRequest)
		code codes.Code
		part string
	}{
		"another identity in the CSR": {csr(&x509.CertificateRequest{URIs: []*url.URL{uri("spiffe://mesh.test/ns/shop/sa/api")}}, elliptic.P256()), codes.InvalidArgument, "what was proven is"},
		"the control plane's":         {csr(&x509.CertificateRequest{URIs: []*url.URL{uri("spiffe://mesh.test/heddle/control-plane")}}, elliptic.P256()), codes.InvalidArgument, "what was proven is"},
		"two identities":              {csr(&x509.CertificateRequest{URIs: []*url.URL{uri(h.id), uri(h.id)}}, elliptic.P256()), codes.InvalidArgument, "what was proven is"},
		"a DNS name":                  {csr(&x509.CertificateRequest{DNSNames: []string{"api.shop"}}, elliptic.P256()), codes.InvalidArgument, "other names"},
		"a weak key":                  {csr(&x509.CertificateRequest{}, elliptic.P224()), codes.InvalidArgument, "P-256"},
		"a changed request":           {func(q *proxyapi.EnrolRequest) { q.Csr = append(q.Csr, 0) }, codes.PermissionDenied, "proof"},
		"an old request": {func(q *proxyapi.EnrolRequest) { q.Time = timestamppb.New(time.Now().Add(-time.Hour)) },
			codes.FailedPrecondition, "clock"},
		"no time": {func(q *proxyapi.EnrolRequest) { q.Time = nil }, codes.FailedPrecondition, "clock"},
	} {
		t.Run(what, func(t *testing.T) { wantCode(t, h.enrol(nil, tok.Fingerprint, c.edit), c.code, c.part) })
	}
	must(t, h.enrol(nil, tok.Fingerprint, csr(&x509.CertificateRequest{URIs: []*url.URL{uri(h.id)}}, elliptic.P256())))

	// A service that policy does not know yet: the token stays good.
	early := w.newHost("shop/cart-1")
	cart := w.token("shop/cart-1", "shop/cart")
	wantCode(t, early.enrol(cart, "", nil), codes.FailedPrecondition, "no service shop/cart")
	m, origins = compiled(append(slices.Clone(shop), service{name: "shop/cart"}))
	w.publish(m, commit(2), origins)
	w.eventually("the new service can enrol", func() bool { return early.enrol(cart, "", nil) == nil })

	// Enrolments and used tokens outlive a restart, and revoking ends both.
	w.stopControlPlane()
	w.startControlPlane()
	w.eventually("the release is there again", func() bool { return w.status().Ready })
	must(t, h.enrol(nil, tok.Fingerprint, nil))
	wantCode(t, thief.enrol(tok, "", nil), codes.PermissionDenied, "used by another host key")
	s := h.connect()
	s.reaches(2)
	var revoked controlplane.RevokeReply
	must(t, w.api.Post(t.Context(), "/v1/revoke", controlplane.RevokeRequest{Workload: "shop/web-1"}, &revoked))
	leaf, err = x509.ParseCertificate(h.svid.Certificate[0])
	must(t, err)
	if revoked.Workload != "shop/web-1" || revoked.CertificateEnds.Before(leaf.NotAfter) {
		t.Errorf("revoked: %+v, and the certificate ends %v", revoked, leaf.NotAfter)
	}
	wantCode(t, s.fails(), codes.PermissionDenied, "revoked")
	var refusal *operator.Error
	err = w.api.Post(t.Context(), "/v1/revoke", controlplane.RevokeRequest{Workload: "shop/web-1"}, nil)
	if !errors.As(err, &refusal) || refusal.Status != http.StatusNotFound || !strings.Contains(refusal.Hint, "heddle enrolments") {
		t.Errorf("revoked twice: %v", err)
	}
	wantCode(t, h.enrol(tok, "", nil), codes.PermissionDenied, "not known")
	wantCode(t, h.enrol(nil, tok.Fingerprint, nil), codes.PermissionDenied, "not enrolled")
	wantCode(t, h.connect().fails(), codes.PermissionDenied, "not enrolled")
}

// A workload is its host: a certificate opens a stream, and is renewed, for the enrolment that it was issued for only.
func TestWorkloadIsBoundToItsHost(t *testing.T) {
	w := newWorld(t)
	w.startControlPlane()
	m, origins := compiled(shop)
	w.publish(m, commit(1), origins)
	old, twin := w.enrolled("shop/web-1", "shop/web"), w.enrolled("shop/web-2", "shop/web")

	// Another workload of the same service has the same identity and is another one all the same.
	liar := *twin
	liar.workload = "shop/web-1"
	wantCode(t, liar.connect().fails(), codes.PermissionDenied, "of another enrolment")

	stream := old.connect()
	stream.reaches(1)
	moved := w.newHost("shop/web-1")
	must(t, moved.enrol(w.token("shop/web-1", "shop/web"), "", nil))
	// The old host loses the stream that it has, gets no other, and takes nothing from the new one.
	wantCode(t, stream.fails(), codes.PermissionDenied, "heddle token create")
	now := moved.connect()
	now.reaches(1)
	wantCode(t, old.connect(keeping(stream)).fails(), codes.PermissionDenied, "heddle token create")
	if err := at(now, func() error { return now.err }); err != nil {
		t.Errorf("the old host ended the stream of the new one: %v", err)
	}

	// Renewed over the stream, the certificate is still of that enrolment.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	must(t, err)
	now.send(&proxyapi.ProxyMessage{Message: &proxyapi.ProxyMessage_CertificateRequest{CertificateRequest: &proxyapi.CertificateRequest{Csr: csr}}})
	w.eventually("an answer to the request comes", func() bool { return at(now, func() bool { return len(now.certificates) > 0 }) })
	moved.svid = tls.Certificate{Certificate: at(now, func() [][]byte { return now.certificates[0].Chain }), PrivateKey: key}
	again := moved.connect(keeping(now))
	w.eventually("the renewed certificate opens a stream", func() bool { return at(again, func() bool { return again.bundles > 0 }) })

	// Revoked and enrolled again, with the same host key: what was issued before opens nothing.
	before := *moved
	must(t, w.api.Post(t.Context(), "/v1/revoke", controlplane.RevokeRequest{Workload: "shop/web-1"}, nil))
	wantCode(t, again.fails(), codes.PermissionDenied, "revoked")
	must(t, moved.enrol(w.token("shop/web-1", "shop/web"), "", nil))
	wantCode(t, before.connect().fails(), codes.PermissionDenied, "of another enrolment")
	moved.connect().reaches(1)
}

func TestStreamFollowsReleases(t *testing.T) {
	w := newWorld(t)
	w.startControlPlane()
	m, origins := compiled(shop)
	w.publish(m, commit(1), origins)
	web, api := w.enrolled("shop/web-1", "shop/web").connect(), w.enrolled("shop/api-1", "shop/api").connect()
	web.reaches(1)
	api.reaches(1)

	// What each holds, and what it does not.
	w.eventually("web knows where api is", func() bool { return slices.Equal(web.endpoints("shop/api"), []string{"shop/api-1"}) })
	for name, c := range map[string]struct {
		s          *sidecar
		kind, name string
		want       bool
	}{
		"settings":                         {web, "settings", "mesh", true},
		"index":                            {web, "index", "shop", true},
		"its own rules":                    {web, "inbound", "shop/web", true},
		"where its own rules are written":  {web, "origin", "shop/web", true},
		"a callee":                         {web, "outbound", "shop/api", true},
		"where the callee's are written":   {web, "origin", "shop/api", true},
		"a backend of the callee's routes": {web, "endpoints", "shop/api-next", true},
		"the callee's own rules":           {web, "inbound", "shop/api", false},
		"what it may not call":             {web, "outbound", "shop/ledger", false},
		"what it may call":                 {api, "outbound", "shop/ledger", true},
	} {
		if c.s.has(c.kind, c.name) != c.want {
			t.Errorf("%s: %s %s is there: %v", name, c.kind, c.name, !c.want)
		}
	}
	if first := at(web, func() *proxyapi.Transaction { return web.transactions[0] }); !first.Full || first.Commit != commit(1) {
		t.Errorf("the first transaction is full: %v, of commit %s", first.Full, first.Commit)
	}
	w.eventually("both acknowledged, as the reconciler hears", func() bool {
		r := w.lastReport()
		return r != nil && r.Epoch == 1 && r.Acked == 2 && r.Total == 2
	})

	// A release that changes one service's routes sends that service only.
	n := at(web, func() int { return len(web.transactions) })
	asked := w.asked
	changed := slices.Clone(shop)
	changed[0].backends = []mesh.ServiceName{"shop/api"}
	m, origins = compiled(changed)
	w.publish(m, commit(2), origins)
	web.reaches(2)
	at(web, func() any {
		tx := web.transactions[n]
		if tx.Full || len(tx.Upserts) != 1 || tx.Upserts[0].Kind != "outbound" || tx.Upserts[0].Name != "shop/api" || len(tx.Deletes) != 0 {
			t.Errorf("a changed route came as %v", tx)
		}
		return nil
	})
	w.mu.Lock()
	if w.asked != asked+1 {
		t.Errorf("%d blobs were fetched for one changed namespace", w.asked-asked)
	}
	w.mu.Unlock()

	// A release that changes nothing for a sidecar is acknowledged all the same.
	w.publish(m, commit(3), origins)
	api.reaches(3)
	web.reaches(3)

	// Taking away a permission takes away what it served, and the plaintext of the service is not left in reach.
	denied := slices.Clone(changed)
	denied[0].from = nil
	m, origins = compiled(denied)
	w.publish(m, commit(4), origins)
	web.reaches(4)
	if web.has("outbound", "shop/api") || web.has("endpoints", "shop/api") {
		t.Error("a service that may no longer be called is still served")
	}

	// Asked for all the same, it is refused with the line that decides; what does not exist is unknown.
	web.send(&proxyapi.ProxyMessage{Message: &proxyapi.ProxyMessage_Subscribe{Subscribe: &proxyapi.Subscribe{Add: []string{"shop/api", "shop/nope"}}}})
	w.eventually("both are refused", func() bool { return at(web, func() bool { return len(web.refused) == 2 }) })
	at(web, func() any {
		for _, r := range web.refused {
			switch {
			case r.Service == "shop/api" && (r.Reason != "denied" || r.Rule != "shop/api/default/http" || r.Origin != "mesh.cue:1"):
				t.Errorf("shop/api is refused with %v", r)
			case r.Service == "shop/nope" && r.Reason != "unknown":
				t.Errorf("shop/nope is refused with %v", r)
			}
		}
		return nil
	})
	// Allowed again, it comes by itself.
	m, origins = compiled(changed)
	w.publish(m, commit(5), origins)
	web.reaches(5)
	if !web.has("outbound", "shop/api") {
		t.Error("a service that may be called again is not served")
	}

	// A service taken out of policy leaves nothing that its sidecar would go on enforcing.
	m, origins = compiled(changed[:3])
	w.publish(m, commit(6), origins)
	web.reaches(6)
	if web.has("inbound", "shop/web") {
		t.Error("the rules of a removed service are still served")
	}
	again := web.h.connect(keeping(web))
	w.eventually("a sidecar of a removed service may connect", func() bool {
		return at(again, func() bool { return again.bundles > 0 && again.err == nil })
	})
}

func TestDeclaredIsServedThoughDenied(t *testing.T) {
	w := newWorld(t)
	w.startControlPlane()
	m, origins := compiled(shop)
	w.publish(m, commit(1), origins)
	web := w.enrolled("shop/web-1", "shop/web").connect(func(_ *sidecar, q *proxyapi.Hello) { q.Declared = []string{"shop/ledger"} })
	web.reaches(1)
	if !web.has("outbound", "shop/ledger") || !web.has("endpoints", "shop/ledger") {
		t.Error("a declared destination is not served")
	}
}

func TestNackKeepsTheLastGoodAndIsReported(t *testing.T) {
	w := newWorld(t)
	w.startControlPlane()
	m, origins := compiled(shop)
	w.publish(m, commit(1), origins)
	picky := w.enrolled("shop/web-1", "shop/web").connect(nackWith(func(tx *proxyapi.Transaction) string {
		if tx.Commit == commit(2) {
			return "cannot do that"
		}
		return ""
	}))
	picky.reaches(1)
	changed := slices.Clone(shop)
	changed[0].backends = nil
	m2, origins2 := compiled(changed)
	w.publish(m2, commit(2), origins2)
	w.eventually("the reconciler hears the nack", func() bool {
		r := w.lastReport()
		return r.GetEpoch() == 2 && r.GetAcked() == 0 && r.GetTotal() == 1 && len(r.Nacks) == 1 && r.Nacks[0].Workload == "shop/web-1" && r.Nacks[0].Reason == "cannot do that"
	})
	if s := w.proxy("shop/web-1"); s != "nack" {
		t.Errorf("the proxy is shown as %s", s)
	}

	// New endpoints arrive within the release that it took; what it refused is not offered again, after a reconnect
	// of the same process neither.
	api := w.enrolled("shop/api-1", "shop/api").connect()
	api.reaches(2)
	w.eventually("endpoints still arrive", func() bool { return slices.Equal(picky.endpoints("shop/api"), []string{"shop/api-1"}) })
	offered := func() int {
		return at(picky, func() (n int) {
			for _, tx := range picky.transactions {
				if tx.Commit == commit(2) {
					n++
				}
			}
			return n
		})
	}
	if n := offered(); n != 1 {
		t.Errorf("what was refused was offered %d times", n)
	}
	if e := at(picky, func() uint64 { return picky.epoch }); e != 1 {
		t.Errorf("it is at epoch %d", e)
	}

	// The next release is offered, and heals.
	w.publish(m, commit(3), origins)
	picky.reaches(3)
	w.eventually("the nack is gone", func() bool {
		r := w.lastReport()
		return r.GetEpoch() == 3 && len(r.Nacks) == 0 && r.Acked == 2 && w.proxy("shop/web-1") == "ok"
	})
}

func TestCapabilityHoldsTheRelease(t *testing.T) {
	w := newWorld(t)
	w.startControlPlane()
	m, origins := compiled(shop)
	w.publish(m, commit(1), origins)
	old := w.enrolled("shop/web-1", "shop/web").connect(func(_ *sidecar, q *proxyapi.Hello) { q.Capabilities = []string{"http1"} })
	old.reaches(1)
	needs := slices.Clone(shop)
	needs[3].needs = []mesh.Capability{mesh.CapAuthorizeL7, mesh.CapHTTP1}
	m2, origins2 := compiled(needs)
	w.publish(m2, commit(2), origins2)
	w.eventually("the lacking capability is reported", func() bool {
		r := w.lastReport()
		return r.GetEpoch() == 2 && len(r.Nacks) == 1 && strings.Contains(r.Nacks[0].Reason, string(mesh.CapAuthorizeL7))
	})
	at(old, func() any {
		for _, tx := range old.transactions {
			if tx.Epoch == 2 {
				t.Error("a release was sent that the sidecar cannot enforce")
			}
		}
		return nil
	})
}

func TestRestartsInAnyOrder(t *testing.T) {
	w := newWorld(t)
	w.startControlPlane()
	m, origins := compiled(shop)
	w.publish(m, commit(1), origins)
	hosts := []*host{w.enrolled("shop/web-1", "shop/web"), w.enrolled("shop/api-1", "shop/api"), w.enrolled("shop/api-2", "shop/api")}
	web, api1, api2 := hosts[0].connect(), hosts[1].connect(), hosts[2].connect()
	both := []string{"shop/api-1", "shop/api-2"}
	w.eventually("web knows both", func() bool { return slices.Equal(web.endpoints("shop/api"), both) })
	web.reaches(1)

	// A reconnect that has everything is sent nothing, and is told so.
	web.close()
	web = hosts[0].connect(keeping(web))
	w.eventually("web is in sync", func() bool { return w.proxy("shop/web-1") == "ok" })
	if n := at(web, func() int { return len(web.transactions) }); n != 0 {
		t.Errorf("a reconnect was sent %d transactions", n)
	}

	// The control plane restarts while the reconciler is away and no api is connected: web still holds both, and is
	// sent nothing.
	w.reconciler.stop()
	w.stopControlPlane()
	for _, s := range []*sidecar{web, api1, api2} {
		s.close()
	}
	w.startControlPlane()
	w.eventually("it serves from the mirror", func() bool { s := w.status(); return s.Ready && s.Epoch == 1 && !s.Reconciler.Connected })
	web = hosts[0].connect(keeping(web))
	w.eventually("web is in sync", func() bool { return w.proxy("shop/web-1") == "ok" })
	if n := at(web, func() int { return len(web.transactions) }); n != 0 {
		t.Errorf("a restart of the control plane sent %d transactions: %v", n, web.transactions)
	}
	if !slices.Equal(web.endpoints("shop/api"), both) {
		t.Errorf("a restart of the control plane dropped endpoints: %v left", web.endpoints("shop/api"))
	}

	// The reconciler returns with a new release.
	w.reconciler.start()
	w.publish(m, commit(2), origins)
	web.reaches(2)
	api1, api2 = hosts[1].connect(keeping(api1)), hosts[2].connect(keeping(api2))
	api1.reaches(2)
	api2.reaches(2)
	w.eventually("all acknowledged", func() bool { r := w.lastReport(); return r.Epoch == 2 && r.Acked == 3 && r.Total == 3 })

	// A peer cannot connect and the stream is gone: the endpoint leaves before its grace is over.
	api2.close()
	w.eventually("api-2 is seen to be gone", func() bool { return w.proxy("shop/api-2") == "disconnected" })
	web.send(&proxyapi.ProxyMessage{Message: &proxyapi.ProxyMessage_ConnectFailure{ConnectFailure: &proxyapi.ConnectFailure{Service: "shop/api", Address: hosts[2].address}}})
	w.eventually("the endpoint leaves", func() bool { return slices.Equal(web.endpoints("shop/api"), both[:1]) })

	// An older release is refused, by a restarted control plane too.
	w.mu.Lock()
	w.epoch = 0
	w.mu.Unlock()
	w.publish(m, commit(9), origins)
	w.eventually("the older epoch is refused", func() bool { return strings.Contains(w.status().Reconciler.Fault, "older release is refused") })
	if s := w.status(); s.Epoch != 2 || s.Commit != commit(2) {
		t.Errorf("epoch %d of commit %s is served", s.Epoch, s.Commit)
	}
}

// What the mirror has is served from the first moment; where it has nothing, sidecars are told to come again and not that
// they are nobody.
func TestStartIsNoRefusal(t *testing.T) {
	w := newWorld(t)
	w.startControlPlane()
	m, origins := compiled(shop)
	w.publish(m, commit(1), origins)
	web := w.enrolled("shop/web-1", "shop/web")
	web.connect().reaches(1)
	w.reconciler.stop()
	for range 5 {
		w.stopControlPlane()
		w.startControlPlane() // returns with the first answer
		if s := w.status(); !s.Ready || s.Epoch != 1 {
			t.Fatalf("it answers before it serves: %+v", s)
		}
		web.connect().reaches(1)
	}
	w.stopControlPlane()
	must(t, os.RemoveAll(filepath.Join(w.state, "releases")))
	w.startControlPlane()
	wantCode(t, web.connect().fails(), codes.Unavailable, "no release has arrived")
	wantCode(t, web.enrol(nil, w.status().CA.Fingerprint, nil), codes.Unavailable, "no release has arrived")
	w.reconciler.start()
	w.eventually("the release is fetched again", func() bool { return w.status().Ready })
	web.connect().reaches(1)
}

func TestForeignReleasesAreNotServed(t *testing.T) {
	w := newWorld(t)
	w.startControlPlane()
	m, origins := compiled(shop)
	w.publish(m, commit(1), origins)
	web := w.enrolled("shop/web-1", "shop/web").connect()
	web.reaches(1)

	// Whoever holds the transport but not the key that signs decides nothing.
	rec := &release.Record{Epoch: 2, Sources: []release.Source{{Commit: commit(66)}}}
	rec.Behaviour = mesh.BehaviourHash(nil)
	_, forger, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	w.mu.Lock()
	w.signed, w.epoch = release.Sign(forger, rec), 2
	close(w.changed)
	w.changed = make(chan struct{})
	w.mu.Unlock()
	w.eventually("the forged release is refused", func() bool { return strings.Contains(w.status().Reconciler.Fault, "signature") })

	// Another trust domain is signed rightly and not served: the authority is of the first one.
	other, _ := compiled(shop)
	other.Settings.TrustDomain = "other.test"
	w.publish(other, commit(3), origins)
	w.eventually("the other trust domain is refused", func() bool { return strings.Contains(w.status().Fault, "trust domain") })
	if s := w.status(); s.Epoch != 1 || !s.Ready {
		t.Errorf("served is epoch %d, ready %v", s.Epoch, s.Ready)
	}
	w.publish(m, commit(4), origins)
	web.reaches(4)
}

// A disk that takes nothing keeps no policy from being enforced; a mirror that lost it heals.
func TestServesWhatItCannotKeep(t *testing.T) {
	w := newWorld(t)
	w.startControlPlane()
	m, origins := compiled(shop)
	w.publish(m, commit(1), origins)
	web := w.enrolled("shop/web-1", "shop/web").connect()
	web.reaches(1)
	records := filepath.Join(w.state, "releases", "records")
	must(t, os.RemoveAll(records))
	must(t, os.WriteFile(records, nil, 0o600)) // root ignores permissions, nobody ignores this
	changed := slices.Clone(shop)
	changed[0].backends = nil
	m, origins = compiled(changed)
	w.publish(m, commit(2), origins)
	web.reaches(2)

	w.stopControlPlane()
	must(t, os.RemoveAll(filepath.Join(w.state, "releases")))
	w.startControlPlane()
	w.eventually("the release is fetched again", func() bool { return w.status().Epoch == 2 })
	again := web.h.connect(keeping(web))
	w.eventually("it is in sync", func() bool { return w.proxy("shop/web-1") == "ok" })
	if n := at(again, func() int { return len(again.transactions) }); n != 0 {
		t.Errorf("%d transactions were sent", n)
	}
}

func TestWhoMayStream(t *testing.T) {
	w := newWorld(t)
	w.startControlPlane()
	m, origins := compiled(shop)
	w.publish(m, commit(1), origins)
	web, api := w.enrolled("shop/web-1", "shop/web"), w.enrolled("shop/api-1", "shop/api")

	liar := *web
	liar.workload = "shop/api-1" // enrolled, but not for this identity
	wantCode(t, liar.connect().fails(), codes.Unauthenticated, "the certificate says")
	nobody := *web
	nobody.workload = "shop/web-2"
	wantCode(t, nobody.connect().fails(), codes.PermissionDenied, "not enrolled")
	for _, addr := range []string{"", "0.0.0.0:4143", "host:4143", "127.0.0.1:0", "224.0.0.1:4143"} {
		lost := *web
		lost.address = addr
		wantCode(t, lost.connect().fails(), codes.InvalidArgument, "--advertise")
	}
	// Without a certificate, or with one of another authority, the handshake itself fails.
	foreign := newWorld(t)
	foreign.startControlPlane()
	foreign.publish(m, commit(1), origins)
	for what, certs := range map[string][]tls.Certificate{
		"no certificate": nil, "another authority's": {foreign.enrolled("shop/web-1", "shop/web").svid},
	} {
		conn, err := tls.Dial("tcp", w.cfg.Listen, &tls.Config{Certificates: certs, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err == nil { // TLS 1.3 tells the client on its first read
			must(t, conn.SetDeadline(time.Now().Add(patience)))
			_, err = io.ReadAll(conn)
			conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "remote error: tls") {
			t.Errorf("%s: %v", what, err)
		}
	}

	// The same workload again replaces its stream: the old one may be half open.
	first := web.connect()
	first.reaches(1)
	second := web.connect()
	second.reaches(1)
	wantCode(t, first.fails(), codes.Aborted, "another stream")
	if w.proxy("shop/web-1") == "disconnected" {
		t.Error("the end of the old stream hides the new one")
	}

	// Certificates on the stream: one's own identity only.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	ask := func(uris ...string) *proxyapi.Certificate {
		t.Helper()
		c := &x509.CertificateRequest{}
		for _, u := range uris {
			p, err := url.Parse(u)
			must(t, err)
			c.URIs = append(c.URIs, p)
		}
		csr, err := x509.CreateCertificateRequest(rand.Reader, c, key)
		must(t, err)
		n := at(second, func() int { return len(second.certificates) })
		second.send(&proxyapi.ProxyMessage{Message: &proxyapi.ProxyMessage_CertificateRequest{CertificateRequest: &proxyapi.CertificateRequest{Csr: csr}}})
		w.eventually("an answer to the request comes", func() bool { return at(second, func() bool { return len(second.certificates) > n }) })
		return at(second, func() *proxyapi.Certificate { return second.certificates[n] })
	}
	if c := ask(api.id); c.Error == "" || len(c.Chain) != 0 {
		t.Errorf("asked for another's identity, got %v", c)
	}
	c := ask(web.id)
	if c.Error != "" || len(c.Chain) != 2 {
		t.Fatalf("asked for its own identity, got %v", c)
	}
	leaf, err := x509.ParseCertificate(c.Chain[0])
	must(t, err)
	if leaf.URIs[0].String() != web.id || !leaf.PublicKey.(*ecdsa.PublicKey).Equal(&key.PublicKey) {
		t.Errorf("the new certificate is for %v", leaf.URIs)
	}
}

// A stream ends with the certificate that opened it, is told before, and the next one is not sent anything again.
func TestStreamEndsWithItsCertificate(t *testing.T) {
	w := newWorld(t)
	w.cfg.LeafTTL = 3 * time.Second
	w.startControlPlane()
	m, origins := compiled(shop)
	w.publish(m, commit(1), origins)
	h := w.enrolled("shop/web-1", "shop/web")
	s := h.connect()
	s.reaches(1)
	wantCode(t, s.fails(), codes.Unauthenticated, "has ended")
	if at(s, func() int { return s.drains }) == 0 {
		t.Error("it was not asked to reconnect before")
	}
	must(t, h.enrol(nil, w.status().CA.Fingerprint, nil)) // the control plane renewed its own certificate meanwhile
	again := h.connect(keeping(s))
	w.eventually("it is in sync", func() bool { return w.proxy("shop/web-1") == "ok" })
	if n := at(again, func() int { return len(again.transactions) }); n != 0 {
		t.Errorf("%d transactions were sent", n)
	}
}

// A sidecar that does not read costs the others nothing: hundreds of releases go by, and when it reads again it gets
// the newest state in a few transactions, not every one there was.
func TestSlowReaderDelaysNobody(t *testing.T) {
	w := newWorld(t)
	w.startControlPlane()
	m, origins := compiled(shop)
	w.publish(m, commit(1), origins)
	slow := w.enrolled("shop/web-1", "shop/web").connect(func(s *sidecar, _ *proxyapi.Hello) { s.gate = make(chan struct{}) })
	quick := w.enrolled("shop/api-1", "shop/api").connect()
	quick.reaches(1)
	const releases = 50
	for i := range releases {
		changed := slices.Clone(shop)
		if i%2 == 0 {
			changed[0].backends = nil
		}
		m, origins := compiled(changed)
		rec := w.publish(m, commit(2+i), origins)
		quick.reaches(rec.Epoch)
	}
	close(slow.gate)
	slow.reaches(releases + 1)
	if n := at(slow, func() int { return len(slow.transactions) }); n > 3 {
		t.Errorf("the slow reader was sent %d transactions", n)
	}
}

func TestManySidecarsConverge(t *testing.T) {
	w := newWorld(t)
	w.startControlPlane()
	const services, each = 20, 10
	var policy []service
	for i := range services {
		s := service{name: mesh.Name("load", fmt.Sprintf("s%02d", i))}
		for j := range 3 {
			s.from = append(s.from, mesh.Name("load", fmt.Sprintf("s%02d", (i+j+1)%services)))
		}
		policy = append(policy, s)
	}
	m, origins := compiled(policy)
	w.publish(m, commit(1), origins)
	var hosts []*host
	for i := range services * each {
		hosts = append(hosts, w.enrolled(fmt.Sprintf("load/w%03d", i), string(policy[i%services].name)))
	}
	var sidecars []*sidecar
	for _, h := range hosts {
		sidecars = append(sidecars, h.connect())
	}
	settled := func(epoch uint64) {
		t.Helper()
		for _, s := range sidecars {
			s.reaches(epoch)
		}
		w.eventually("every sidecar knows every endpoint of its callees", func() bool {
			for i, s := range sidecars {
				callee := fmt.Sprintf("load/s%02d", (i%services+services-1)%services)
				if len(s.endpoints(callee)) != each {
					return false
				}
			}
			return true
		})
		w.eventually("all acknowledged", func() bool {
			r := w.lastReport()
			return r.Epoch == epoch && r.Acked == services*each && r.Total == services*each
		})
	}
	settled(1)
	started := time.Now()
	policy[0].from = policy[0].from[:2]
	m, origins = compiled(policy)
	w.publish(m, commit(2), origins)
	settled(2)
	t.Logf("a commit reached %d sidecars in %v", len(sidecars), time.Since(started))

	// All come back at once, to a control plane that was restarted: nobody is sent an object.
	w.stopControlPlane()
	for i, s := range sidecars {
		s.close()
		sidecars[i] = nil
		hosts[i].kept = s
	}
	w.startControlPlane()
	started = time.Now()
	for i, h := range hosts {
		sidecars[i] = h.connect(keeping(h.kept))
	}
	settled(2)
	t.Logf("%d sidecars came back in %v", len(sidecars), time.Since(started))
	sent := 0
	for _, s := range sidecars {
		sent += at(s, func() (n int) {
			for _, tx := range s.transactions {
				n += len(tx.Upserts) + len(tx.Deletes)
			}
			return n
		})
	}
	if sent != 0 {
		t.Errorf("a restart of the control plane sent %d objects", sent)
	}
}

func TestOperatorSees(t *testing.T) {
	w := newWorld(t)
	w.startControlPlane()
	probe := func(path string) (int, string) {
		t.Helper()
		resp, err := http.Get("http://" + w.cfg.ListenMetrics + path)
		must(t, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		must(t, err)
		return resp.StatusCode, string(b)
	}
	if code, body := probe("/ready"); code != 503 || !strings.Contains(body, "no release") {
		t.Errorf("/ready before the first release: %d %s", code, body)
	}
	if code, _ := probe("/live"); code != 200 {
		t.Errorf("/live: %d", code)
	}
	m, origins := compiled(shop)
	w.publish(m, commit(1), origins)
	web := w.enrolled("shop/web-1", "shop/web").connect()
	web.reaches(1)
	w.eventually("it is ready and in sync", func() bool {
		code, _ := probe("/ready")
		return code == 200 && w.status().Proxies == controlplane.Count{Acked: 1, Total: 1}
	})
	if _, body := probe("/metrics"); !strings.Contains(body, `heddle_controlplane_proxies{state="ok"} 1`) ||
		!strings.Contains(body, `heddle_controlplane_info{version="v0-test",commit="`+commit(1)+`"} 1`) {
		t.Errorf("/metrics: %s", body)
	}
	web.send(&proxyapi.ProxyMessage{Message: &proxyapi.ProxyMessage_Traffic{Traffic: &proxyapi.TrafficReport{Edges: []*proxyapi.EdgeTraffic{
		{Service: "shop/api", Requests: 40, Successes: 30, Mtls: true, Latency: []uint64{0, 40}},
	}}}})
	var edges controlplane.Edges
	w.eventually("the edge is there", func() bool {
		must(t, w.api.Get(t.Context(), "/v1/edges", &edges))
		return len(edges.Items) == 1
	})
	if e := edges.Items[0]; e.From != "shop/web" || e.To != "shop/api" || !e.MTLS || *e.Success != 0.75 || *e.P50 <= 1 || *e.P50 >= 2 || e.RequestsPerSecond <= 0 {
		t.Errorf("the edge is %+v", e)
	}
	var list controlplane.Enrolments
	must(t, w.api.Get(t.Context(), "/v1/enrolments", &list))
	if len(list.Items) != 1 || list.Items[0].Identity != "spiffe://mesh.test/ns/shop/sa/web" {
		t.Errorf("enrolments are %+v", list)
	}

	// One control plane owns a state directory.
	if err := controlplane.Run(t.Context(), w.cfg); err == nil || !strings.Contains(err.Error(), "held by process") {
		t.Errorf("a second control plane on the directory: %v", err)
	}
}
