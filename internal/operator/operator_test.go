package operator

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func serve(t *testing.T, path string) {
	t.Helper()
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/name", func(w http.ResponseWriter, r *http.Request) { Reply(w, map[string]string{"name": "<heddle>"}) })
	mux.HandleFunc("POST /v1/double", func(w http.ResponseWriter, r *http.Request) {
		var in struct{ N int }
		if err := Read(w, r, &in); err != nil {
			Fail(w, err)
			return
		}
		if in.N == 0 {
			Fail(w, &Error{Status: http.StatusConflict, Message: "nothing to double", Hint: "send n"})
			return
		}
		Reply(w, map[string]int{"n": 2 * in.N})
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, mux) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if _, err := os.Lstat(path); err == nil {
			t.Error("the socket stayed behind")
		}
	})
}

func TestConversation(t *testing.T) {
	for name, dir := range map[string]string{
		"short": "s",
		"long":  filepath.Join(strings.Repeat("d", 100), strings.Repeat("e", 100)), // beyond sun_path
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), dir, SocketName)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			c := NewClient(path)
			if err := c.Get(t.Context(), "/v1/name", nil); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), path) {
				t.Fatalf("before the start: %v", err)
			}
			serve(t, path)

			info, err := os.Lstat(path)
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Fatalf("socket: %v, %v; want mode 0600", info.Mode(), err)
			}
			if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another process answers") {
				t.Errorf("a second listener: %v", err)
			}
			var got struct{ Name string }
			if err := c.Get(t.Context(), "/v1/name", &got); err != nil || got.Name != "<heddle>" {
				t.Errorf("got %+v, %v", got, err)
			}
			var out struct{ N int }
			if err := c.Post(t.Context(), "/v1/double", map[string]int{"n": 21}, &out); err != nil || out.N != 42 {
				t.Errorf("got %+v, %v", out, err)
			}
			for what, in := range map[string]any{
				"nothing to double": nil, "unknown field": map[string]int{"m": 1}, "too large": strings.Repeat("x", maxRequest),
			} {
				var e *Error
				if err := c.Post(t.Context(), "/v1/double", in, &out); !errors.As(err, &e) || e.Hint == "" || !strings.Contains(e.Message, what) {
					t.Errorf("%s: %v", what, err)
				}
			}
			var e *Error
			if err := c.Get(t.Context(), "/v1/nowhere", nil); !errors.As(err, &e) || e.Status != http.StatusNotFound {
				t.Errorf("unknown path: %v", err)
			}
		})
	}
}

func TestStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), SocketName)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close() // as a killed process leaves it
	if err := NewClient(path).Get(t.Context(), "/v1/name", nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a dead socket: %v", err)
	}
	serve(t, path)
	if err := NewClient(path).Get(t.Context(), "/v1/name", nil); err != nil {
		t.Error(err)
	}

	file := filepath.Join(t.TempDir(), SocketName)
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file); err == nil {
		t.Error("a plain file was replaced")
	}
}
