package pinned

import (
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	key, err := LoadOrCreateKey(filepath.Join(t.TempDir(), "state", "key"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "key")
	made, err := LoadOrCreateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v; want 0600", info.Mode(), err)
	}
	again, err := LoadOrCreateKey(path)
	if err != nil || !again.Equal(made) {
		t.Fatalf("the second load gave another key (%v)", err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func() error{
		"truncated":          func() error { return os.WriteFile(path, whole[:len(whole)/2], 0o600) },
		"empty":              func() error { return os.WriteFile(path, nil, 0o600) },
		"two keys":           func() error { return os.WriteFile(path, append(whole, whole...), 0o600) },
		"readable by others": func() error { return errors.Join(os.WriteFile(path, whole, 0o600), os.Chmod(path, 0o644)) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if key, err := LoadOrCreateKey(path); err == nil {
			t.Errorf("%s: accepted as %x", name, key)
		}
		if err := errors.Join(os.WriteFile(path, whole, 0o600), os.Chmod(path, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

// Both ends judge the other's key, and only the key.
func TestHandshake(t *testing.T) {
	server, client, stranger := newKey(t), newKey(t), newKey(t)
	only := func(k ed25519.PrivateKey) func(ed25519.PublicKey) bool {
		return func(p ed25519.PublicKey) bool { return p.Equal(Public(k)) }
	}
	// A certificate of the right key, presented by who does not hold it.
	stolen := ClientTLS(stranger, Public(server))
	stolen.Certificates = []tls.Certificate{{Certificate: certificate(client).Certificate, PrivateKey: stranger}}
	none := ClientTLS(client, Public(server))
	none.Certificates = nil
	old := ClientTLS(client, Public(server))
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12

	for _, c := range []struct {
		name   string
		client *tls.Config
		ok     bool
		peer   bool // the client's side refuses, with ErrPeer
	}{
		{"pinned on both sides", ClientTLS(client, Public(server)), true, false},
		{"another client key", ClientTLS(stranger, Public(server)), false, false},
		{"another server key expected", ClientTLS(client, Public(stranger)), false, true},
		{"a stolen certificate", stolen, false, false},
		{"no client certificate", none, false, false},
		{"TLS 1.2", old, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := tls.Listen("tcp", "127.0.0.1:0", ServerTLS(server, only(client)))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			served := make(chan error, 1)
			go func() {
				conn, err := l.Accept()
				if err != nil {
					served <- err
					return
				}
				defer conn.Close()
				_, err = io.WriteString(conn, "hello")
				served <- err
			}()
			raw, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			conn := tls.Client(raw, c.client)
			got, err := io.ReadAll(conn) // TLS 1.3 tells the client of a refusal with the first read
			if c.ok {
				if err != nil || string(got) != "hello" {
					t.Fatalf("read %q, %v", got, err)
				}
				if key, err := PeerKey(conn.ConnectionState()); err != nil || !key.Equal(Public(server)) {
					t.Errorf("PeerKey: %v, %v", key, err)
				}
			} else if err == nil || len(got) > 0 {
				t.Fatalf("read %q, %v; want a refusal", got, err)
			}
			if errors.Is(err, ErrPeer) != c.peer {
				t.Errorf("error %v; ErrPeer wanted: %v", err, c.peer)
			}
			raw.Close()
			if err := <-served; (err == nil) != c.ok {
				t.Errorf("the server's side: %v", err)
			}
		})
	}
}
