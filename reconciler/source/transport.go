package source

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-git/v5/plumbing/format/pktline"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/transport"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
	gitssh "github.com/go-git/go-git/v5/plumbing/transport/ssh"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"
)

// Auth is how to prove who we are to a remote. Files are read at every fetch, so that a new token, key or host key needs
// no restart. Credentials in the URL work too, and are weaker: they show in process lists.
type Auth struct {
	// Username goes with the token. Default: the URL's, else "git", which the large forges accept with a token.
	Username string
	// TokenFile holds a token or password for https, which is sent as HTTP basic authentication. White space around it
	// is cut off. Over http it is refused except to this machine.
	TokenFile string
	// CAFile holds PEM certificates of authorities to trust for https, beside the system's.
	CAFile string
	// SSHKeyFile is a private key without a passphrase. Default: the agent at SSH_AUTH_SOCK.
	SSHKeyFile string
	// KnownHostsFile lists the servers' keys. Default: ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts.
	KnownHostsFile string
}

// session is one conversation with git-upload-pack.
type session interface {
	AdvertisedReferencesContext(context.Context) (*packp.AdvRefs, error)
	UploadPack(context.Context, *packp.UploadPackRequest) (*packp.UploadPackResponse, error)
	io.Closer
}

// remote knows how to reach a repository.
type remote struct {
	address
	auth Auth

	mu      sync.Mutex
	secrets map[string]bool // every secret that was read so far, in every form, to keep them out of errors; guarded by mu
}

func newRemote(a address, opts Options) (*remote, error) {
	r := &remote{address: a, auth: opts.Auth, secrets: map[string]bool{}}
	r.keepSecret(a.password)
	if a.url.Scheme != "ssh" && a.password == "" {
		r.keepSecret(a.user) // A lone user name is how tokens are often given.
	}
	if a.url.Scheme == "http" && (a.user != "" || opts.Auth.TokenFile != "") && !loopback(a.url) {
		return nil, fmt.Errorf("%s: credentials over http can be read by anybody on the way: use https", MaskedURL(opts.URL))
	}
	return r, nil
}

func (r *remote) keepSecret(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, form := range []string{s, url.PathEscape(s), url.QueryEscape(s)} {
		if len(form) > 2 {
			r.secrets[form] = true
		}
	}
}

// mask shortens a message from outside to one line and takes every known secret out of it.
func (r *remote) mask(msg string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	// The longest first: one secret may be a part of another.
	for _, s := range slices.SortedFunc(maps.Keys(r.secrets), func(a, b string) int { return cmp.Compare(len(b), len(a)) }) {
		msg = strings.ReplaceAll(msg, s, "***")
	}
	return firstLine(msg)
}

func (r *remote) dial(ctx context.Context) (session, error) {
	if r.url.Scheme == "ssh" {
		return r.dialSSH(ctx)
	}
	return r.dialHTTP()
}

// dialHTTP prepares a conversation over smart HTTP; the first request is made by asking for the refs.
func (r *remote) dialHTTP() (session, error) {
	ep, err := transport.NewEndpoint(r.url.String())
	if err != nil {
		return nil, err
	}
	user, secret := r.user, r.password
	if r.auth.TokenFile != "" {
		b, err := os.ReadFile(r.auth.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("reading the token: %w", err)
		}
		if secret = strings.TrimSpace(string(b)); secret == "" {
			return nil, fmt.Errorf("the token file %s is empty", r.auth.TokenFile)
		}
		r.keepSecret(secret)
		user = cmp.Or(r.auth.Username, r.user, "git")
	}
	var auth transport.AuthMethod
	if user != "" {
		r.keepSecret(base64.StdEncoding.EncodeToString([]byte(user + ":" + secret))) // as it is sent
		auth = &githttp.BasicAuth{Username: user, Password: secret}
	}
	base := http.DefaultTransport.(*http.Transport).Clone()
	if r.auth.CAFile != "" {
		pem, err := os.ReadFile(r.auth.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading the certificates to trust: %w", err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no PEM certificate", r.auth.CAFile)
		}
		base.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	client := githttp.NewClient(&http.Client{
		Transport: errorBodies{base},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if auth != nil && !sameServer(via[0].URL, req.URL) {
				return fmt.Errorf("the server redirects to %s://%s, which was not given our credentials: "+
					"if that is the right server, put its address into the configuration", req.URL.Scheme, req.URL.Host)
			}
			return nil
		},
	})
	sess, err := client.NewUploadPackSession(ep, auth)
	return httpSession{sess, base}, err
}

// httpSession closes its connections with the conversation: the next one is 30 seconds away and reads the credentials
// again.
type httpSession struct {
	transport.UploadPackSession
	base *http.Transport
}

func (s httpSession) Close() error {
	s.base.CloseIdleConnections()
	return s.UploadPackSession.Close()
}

// sameServer reports whether credentials for one URL may be sent to another one.
func sameServer(a, b *url.URL) bool {
	if a.Scheme == "http" && b.Scheme == "https" {
		return a.Hostname() == b.Hostname() && a.Port() == "" && b.Port() == ""
	}
	return a.Scheme == b.Scheme && a.Host == b.Host
}

// errorBodies cuts the body of an HTTP error short: go-git makes all of it part of the error.
type errorBodies struct{ http.RoundTripper }

func (t errorBodies) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(req)
	if err == nil && resp.StatusCode >= 400 {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, 1<<10), resp.Body}
	}
	return resp, err
}

// sshSession runs git-upload-pack on a server. go-git's own SSH client cannot be cancelled while it shakes hands.
type sshSession struct {
	client  *ssh.Client
	session *ssh.Session
	stop    func() bool // ends the watch over the context that it was dialled with
	in      io.WriteCloser
	out     io.Reader
	said    *tail
}

// dialSSH connects, checks the server's key, authenticates and starts git-upload-pack. The whole session ends when ctx
// does.
func (r *remote) dialSSH(ctx context.Context) (_ session, err error) {
	addr := r.url.Host
	if r.url.Port() == "" {
		addr = net.JoinHostPort(r.url.Hostname(), "22")
	}
	var files []string
	if r.auth.KnownHostsFile != "" {
		files = []string{r.auth.KnownHostsFile}
	}
	hosts, err := gitssh.NewKnownHostsDb(files...)
	if err != nil {
		return nil, fmt.Errorf("reading the known hosts: %w; ssh-keyscan writes such a file, after you compared the keys", err)
	}
	cfg := &ssh.ClientConfig{
		User:            cmp.Or(r.user, "git"),
		HostKeyCallback: checkHostKey(hosts.HostKeyCallback()),
		// Ask for the kinds of key that are known for this host: a server has several, and would offer another one.
		HostKeyAlgorithms: hosts.HostKeyAlgorithms(addr),
	}
	var closeAgent func()
	cfg.Auth, closeAgent, err = r.sshAuth(ctx)
	if err != nil {
		return nil, err
	}
	defer closeAgent()

	conn, err := (&net.Dialer{Timeout: 30 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	s := &sshSession{stop: context.AfterFunc(ctx, func() { conn.Close() }), said: &tail{}}
	defer func() {
		if err != nil {
			s.stop()
			conn.Close()
			if ctx.Err() != nil {
				err = ctx.Err() // The closed connection is only how that shows.
			}
		}
	}()
	c, chans, reqs, err := ssh.NewClientConn(conn, addr, cfg)
	if err != nil {
		if strings.Contains(err.Error(), "unable to authenticate") {
			err = fmt.Errorf("%w: %w", transport.ErrAuthenticationRequired, err)
		}
		return nil, err
	}
	s.client = ssh.NewClient(c, chans, reqs)
	if s.session, err = s.client.NewSession(); err != nil {
		return nil, err
	}
	if s.in, err = s.session.StdinPipe(); err != nil {
		return nil, err
	}
	if s.out, err = s.session.StdoutPipe(); err != nil {
		return nil, err
	}
	s.session.Stderr = s.said
	return s, s.session.Start("git-upload-pack " + quote(sshPath(r.url.Path)))
}

// sshAuth is how to authenticate: with the key file, else with the agent. done is called after the handshake.
func (r *remote) sshAuth(ctx context.Context) (methods []ssh.AuthMethod, done func(), err error) {
	done = func() {}
	if r.auth.SSHKeyFile != "" {
		pem, err := os.ReadFile(r.auth.SSHKeyFile)
		if err != nil {
			return nil, done, fmt.Errorf("reading the SSH key: %w", err)
		}
		key, err := ssh.ParsePrivateKey(pem)
		var locked *ssh.PassphraseMissingError
		if errors.As(err, &locked) {
			return nil, done, fmt.Errorf("the SSH key %s has a passphrase: give it to an agent, or use a deploy key without one",
				r.auth.SSHKeyFile)
		}
		if err != nil {
			return nil, done, fmt.Errorf("the SSH key %s: %w", r.auth.SSHKeyFile, err)
		}
		return []ssh.AuthMethod{ssh.PublicKeys(key)}, done, nil
	}
	if r.password != "" {
		return []ssh.AuthMethod{ssh.Password(r.password)}, done, nil
	}
	sock := os.Getenv("SSH_AUTH_SOCK")
	if sock == "" {
		return nil, done, errors.New("there is neither an SSH key file nor an agent: configure a key, or start ssh-agent")
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", sock)
	if err != nil {
		return nil, done, fmt.Errorf("reaching the SSH agent: %w", err)
	}
	return []ssh.AuthMethod{ssh.PublicKeysCallback(agent.NewClient(conn).Signers)}, func() { conn.Close() }, nil
}

// checkHostKey says, when a server's key is not the known one, which key it offered, so that it can be compared.
func checkHostKey(check ssh.HostKeyCallback) ssh.HostKeyCallback {
	return func(host string, addr net.Addr, key ssh.PublicKey) error {
		err := check(host, addr, key)
		var unknown *knownhosts.KeyError
		if !errors.As(err, &unknown) {
			return err
		}
		offered := key.Type() + " " + ssh.FingerprintSHA256(key)
		if len(unknown.Want) == 0 {
			return fmt.Errorf("the known hosts have no key for %s, which offers %s: compare it with what its owner publishes, "+
				"then add the line %q", host, offered, knownhosts.Line([]string{host}, key))
		}
		return fmt.Errorf("%s offers the key %s, and the known hosts say another one: the server's key was changed, or "+
			"somebody is in between; ask its owner before you replace %s:%d",
			host, offered, unknown.Want[0].Filename, unknown.Want[0].Line)
	}
}

// sshPath undoes what made a relative path, as in host:team/policy.git, fit into a URL.
func sshPath(p string) string {
	if rest, ok := strings.CutPrefix(p, "/~/"); ok {
		return rest
	}
	return p
}

// quote makes a word for the server's shell, as git does it ('!' is special to csh).
func quote(s string) string {
	return "'" + strings.NewReplacer("'", `'\''`, "!", `'\!'`).Replace(s) + "'"
}

func (s *sshSession) AdvertisedReferencesContext(ctx context.Context) (*packp.AdvRefs, error) {
	adv := packp.NewAdvRefs()
	err := adv.Decode(s.out)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, packp.ErrEmptyAdvRefs), err == nil && adv.IsEmpty():
		return nil, transport.ErrEmptyRemoteRepository
	case errors.Is(err, packp.ErrEmptyInput):
		_ = s.session.Wait() // Its exit status says less than its last words, which are all here now.
		why := firstLine(s.said.String())
		if strings.Contains(why, "not found") || strings.Contains(why, "not appear to be") {
			return nil, fmt.Errorf("%w: %s", transport.ErrRepositoryNotFound, why)
		}
		return nil, fmt.Errorf("the server said nothing about the repository: %s", cmp.Or(why, "the connection was closed"))
	case err != nil:
		return nil, err
	}
	transport.FilterUnsupportedCapabilities(adv.Capabilities)
	return adv, nil
}

func (s *sshSession) UploadPack(ctx context.Context, req *packp.UploadPackRequest) (*packp.UploadPackResponse, error) {
	err := req.UploadRequest.Encode(s.in)
	if err == nil {
		err = req.UploadHaves.Encode(s.in, false)
	}
	if err == nil {
		err = pktline.NewEncoder(s.in).EncodeString("done\n")
	}
	if err == nil {
		err = s.in.Close()
	}
	resp := packp.NewUploadPackResponse(req)
	if err == nil {
		err = resp.Decode(io.NopCloser(s.out))
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return resp, err
}

// Close ends the conversation, politely if it never got beyond the refs.
func (s *sshSession) Close() error {
	s.stop()
	_ = pktline.NewEncoder(s.in).Flush()
	_ = s.session.Close()
	return s.client.Close()
}

// tail keeps the beginning of what a server writes to stderr.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if room := 1<<10 - t.buf.Len(); room > 0 {
		t.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}
