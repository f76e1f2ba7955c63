package source_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/heddle-mesh/heddle/reconciler/source"
)

// sshServer runs git-upload-pack for whoever has the client key. It has host keys of two kinds.
type sshServer struct {
	addr      string
	hostKeys  []ssh.Signer // ECDSA, Ed25519
	clientKey string       // file
}

func serveSSH(t *testing.T) *sshServer {
	t.Helper()
	s := &sshServer{clientKey: filepath.Join(t.TempDir(), "key")}
	_, client, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(client, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.clientKey, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	allowed, err := ssh.NewPublicKey(client.Public())
	if err != nil {
		t.Fatal(err)
	}
	cfg := &ssh.ServerConfig{PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if c.User() != "git" || string(key.Marshal()) != string(allowed.Marshal()) {
			return nil, errors.New("not allowed")
		}
		return nil, nil
	}}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []any{ec, ed} {
		signer, err := ssh.NewSignerFromKey(key)
		if err != nil {
			t.Fatal(err)
		}
		s.hostKeys = append(s.hostKeys, signer)
		cfg.AddHostKey(signer)
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serveConn(conn, cfg) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return s
}

func serveConn(conn net.Conn, cfg *ssh.ServerConfig) {
	defer conn.Close()
	_, chans, reqs, err := ssh.NewServerConn(conn, cfg)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(reqs) // ends with the connection
	for ch := range chans {
		c, reqs, err := ch.Accept()
		if err != nil {
			return
		}
		for req := range reqs {
			var payload struct{ Command string }
			if req.Type != "exec" || ssh.Unmarshal(req.Payload, &payload) != nil {
				req.Reply(false, nil)
				continue
			}
			req.Reply(true, nil)
			cmd := exec.Command("sh", "-c", payload.Command)
			cmd.Env, cmd.Stdout, cmd.Stderr = gitEnv, c, c.Stderr()
			in, err := cmd.StdinPipe()
			if err != nil || cmd.Start() != nil {
				return
			}
			go func() { // ends with the channel
				buf := make([]byte, 4096)
				for {
					n, err := c.Read(buf)
					if n > 0 {
						in.Write(buf[:n])
					}
					if err != nil {
						in.Close()
						return
					}
				}
			}()
			cmd.Wait()
			c.SendRequest("exit-status", false, ssh.Marshal(struct{ N uint32 }{uint32(cmd.ProcessState.ExitCode())}))
			c.Close()
		}
	}
}

func TestSSH(t *testing.T) {
	r := newRepo(t)
	first := r.commit("first", policy)
	quoted := filepath.Join(filepath.Dir(r.dir), "it's! a repo")
	if err := os.Rename(r.dir, quoted); err != nil {
		t.Fatal(err)
	}
	r.dir = quoted
	srv := serveSSH(t)
	hosts := filepath.Join(t.TempDir(), "known_hosts")
	know := func(keys ...ssh.PublicKey) {
		t.Helper()
		lines := "# known hosts\n"
		for _, k := range keys {
			lines += knownhosts.Line([]string{knownhosts.Normalize(srv.addr)}, k) + "\n"
		}
		if err := os.WriteFile(hosts, []byte(lines), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	url := "ssh://git@" + srv.addr + strings.ReplaceAll(quoted, " ", "%20")
	auth := source.Auth{SSHKeyFile: srv.clientKey, KnownHostsFile: hosts}
	s := open(t, source.Options{URL: url, Auth: auth})
	fails := func(name string, s *source.Source, want string) {
		t.Helper()
		if _, err := s.Fetch(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v does not say %q", name, err, want)
		}
	}

	fails("no known hosts", s, "reading the known hosts")
	know()
	fails("unknown host", s, "have no key for "+srv.addr+", which offers ecdsa-sha2-nistp256 SHA256:")
	other := serveSSH(t)
	know(other.hostKeys[1].PublicKey())
	fails("changed key", s, "offers the key ssh-ed25519 "+ssh.FingerprintSHA256(srv.hostKeys[1].PublicKey()))

	// Keys are added without a restart; whichever kind is known is the one that is asked for.
	for _, keys := range [][]ssh.PublicKey{
		{srv.hostKeys[0].PublicKey()}, {srv.hostKeys[1].PublicKey()},
		{srv.hostKeys[1].PublicKey(), srv.hostKeys[0].PublicKey()},
	} {
		know(keys...)
		if got := fetch(t, s).Hash; got != first {
			t.Errorf("tip %s, want %s", got, first)
		}
	}
	for i := range 2 {
		files := maps(policy, "mesh.cue", fmt.Sprint(i))
		h := r.commit("next", files)
		if got := fetch(t, s).Hash; got != h || len(contents(t, s, h)) != len(files) {
			t.Errorf("tip %s, want %s", got, h)
		}
	}

	fails("missing branch", open(t, source.Options{URL: url, Auth: auth, Ref: "mian"}), `did you mean "main"?`)
	fails("missing repository", open(t, source.Options{URL: url + "/no", Auth: auth}), "check the URL")
	auth.SSHKeyFile = other.clientKey
	fails("another key", open(t, source.Options{URL: url, Auth: auth}), "check the token or key")
	auth.SSHKeyFile = hosts
	fails("not a key", open(t, source.Options{URL: url, Auth: auth}), "the SSH key")
}

// A server that accepts and says nothing holds a fetch no longer than its context.
func TestSSHHonoursTheContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	srv := serveSSH(t)
	hosts := filepath.Join(t.TempDir(), "known_hosts")
	line := knownhosts.Line([]string{knownhosts.Normalize(l.Addr().String())}, srv.hostKeys[0].PublicKey())
	if err := os.WriteFile(hosts, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, source.Options{
		URL:  "ssh://git@" + l.Addr().String() + "/x.git",
		Auth: source.Auth{SSHKeyFile: srv.clientKey, KnownHostsFile: hosts},
	})
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() { _, err := s.Fetch(ctx); result <- err }()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
