package reconciler

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/heddle-mesh/heddle/internal/operator"
	"github.com/heddle-mesh/heddle/schema/release"
)

// operatorAPI is what the heddle command asks on the operator socket.
func (r *reconciler) operatorAPI() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		operator.Reply(w, r.snapshot())
	})
	mux.HandleFunc("GET /v1/history", func(w http.ResponseWriter, _ *http.Request) {
		h, err := r.history()
		if err != nil {
			operator.Fail(w, err)
			return
		}
		operator.Reply(w, h)
	})
	mux.HandleFunc("POST /v1/resume", func(w http.ResponseWriter, req *http.Request) {
		var in ResumeRequest
		err := operator.Read(w, req, &in)
		var out ResumeReply
		if err == nil {
			out, err = r.resume(req.Context(), in)
		}
		if err != nil {
			operator.Fail(w, err)
			return
		}
		operator.Reply(w, out)
	})
	mux.HandleFunc("POST /v1/hint", func(w http.ResponseWriter, _ *http.Request) {
		notify(r.asked)
		operator.Reply(w, struct {
			APIVersion string `json:"apiVersion"`
		}{APIVersion})
	})
	return mux
}

func (r *reconciler) history() (History, error) {
	entries, err := r.store.History()
	if err != nil && entries == nil {
		return History{}, err
	}
	h := History{APIVersion: APIVersion, Items: []HistoryEntry{}}
	if err != nil {
		h.Damaged = err.Error()
	}
	for _, e := range entries {
		item := HistoryEntry{Epoch: e.Epoch, Commit: e.Commit(), Behaviour: e.Behaviour, Published: e.Published,
			Applied: e.Applied, Unchanged: e.Unchanged}
		if len(e.Sources) > 0 {
			item.Subject, item.Author = e.Sources[0].Subject, e.Sources[0].Author
		}
		h.Items = append(h.Items, item)
	}
	return h, nil
}

// resume lets the held commit pass the guard that holds it, and no other: neither another commit nor another guard.
func (r *reconciler) resume(ctx context.Context, in ResumeRequest) (ResumeReply, error) {
	refuse := func(hint, format string, args ...any) (ResumeReply, error) {
		return ResumeReply{}, &operator.Error{Status: http.StatusConflict, Message: fmt.Sprintf(format, args...), Hint: hint}
	}
	if !slices.Contains([]Accept{AcceptFirst, AcceptRewind, AcceptEmpty, AcceptTrustDomain, AcceptFences, AcceptInvariants}, in.Accept) {
		return ResumeReply{}, &operator.Error{Status: http.StatusBadRequest, Message: fmt.Sprintf("%q cannot be accepted", in.Accept),
			Hint: "accept first, rewind, empty or trust-domain"}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.status.Observed
	switch {
	case o == nil:
		return refuse("heddle status", "no commit was seen yet")
	case o.State != Held:
		return refuse("heddle status", "commit %s is %s, not held", short(o.Commit), o.State)
	case in.Commit != "" && in.Commit != o.Commit:
		return refuse("heddle status", "the held commit is %s, not %s", short(o.Commit), short(in.Commit))
	case in.Accept != o.Accept:
		return refuse("heddle resume --accept-"+string(o.Accept), "commit %s is held for another reason: %s", short(o.Commit), o.Reason)
	}
	if r.permit.commit != o.Commit {
		r.permit = permit{commit: o.Commit}
	}
	r.permit.accepts = append(slices.Clone(r.permit.accepts), in.Accept)
	r.set(r.tip, Observed{State: Fetched})
	r.enqueue()
	zerolog.Ctx(ctx).Warn().Str("commit", o.Commit).Str("accept", string(in.Accept)).Msg("held commit accepted by an operator")
	return ResumeReply{APIVersion: APIVersion, Commit: o.Commit, Accept: in.Accept}, nil
}

const (
	// Strangers can reach the hint port: these bound what they get of us.
	hintConns   = 64
	hintTimeout = 10 * time.Second
	hintHeader  = 8 << 10 // bytes
)

// serveHints takes POST /hint: "the repository changed", from a Git server's webhook or a hook script. It answers 202
// at once. The body is not read: whatever it claims, the repository is asked. Hints coalesce in the channel.
func serveHints(ctx context.Context, l net.Listener, hints chan struct{}) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/hint", func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "a hint is a POST", http.StatusMethodNotAllowed)
			return
		}
		notify(hints)
		w.WriteHeader(http.StatusAccepted)
	})
	conns := &newest{most: hintConns}
	s := &http.Server{Handler: mux, ReadHeaderTimeout: hintTimeout, ReadTimeout: hintTimeout, WriteTimeout: hintTimeout,
		MaxHeaderBytes: hintHeader, ConnState: conns.state}
	s.SetKeepAlivesEnabled(false)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		s.Close() // an answer is one line and written at once: there is nothing to drain
	})
	err := s.Serve(l)
	if stop() {
		s.Close()
		return fmt.Errorf("serving hints on %s: %w", l.Addr(), err)
	}
	<-stopped
	return nil
}

// newest keeps the newest connections and closes the oldest beyond them: who connects and says nothing does not keep out
// those who do, as waiting for a free place would.
type newest struct {
	most int

	mu    sync.Mutex // guards conns
	conns []net.Conn // oldest first
}

// state is an http.Server's ConnState.
func (n *newest) state(c net.Conn, state http.ConnState) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch state {
	case http.StateNew:
		if n.conns = append(n.conns, c); len(n.conns) > n.most {
			n.conns[0].Close() // the server sees that, and forgets it
			n.conns = slices.Delete(n.conns, 0, 1)
		}
	case http.StateClosed:
		n.conns = slices.DeleteFunc(n.conns, func(o net.Conn) bool { return o == c })
	}
}

// allowed are the control planes that may connect.
type allowed struct {
	keys  []ed25519.PublicKey
	files []string

	mu     sync.Mutex // guards what follows
	warned time.Time  // when a refusal was logged last
}

// parseAllowed reads Config.ControlPlaneKeys. Files are read when a control plane connects, so that keys can be added
// without a restart and the file may come later.
func parseAllowed(entries []string) (*allowed, error) {
	a := &allowed{}
	for _, e := range entries {
		if file, ok := strings.CutPrefix(e, "@"); ok {
			a.files = append(a.files, file)
			continue
		}
		key, err := release.ParseKey(e)
		if err != nil {
			return nil, fmt.Errorf("the key of a control plane: %w", err)
		}
		a.keys = append(a.keys, key)
	}
	return a, nil
}

func (a *allowed) none() bool { return len(a.keys) == 0 && len(a.files) == 0 }

// allow returns the judge of a connecting key. A refusal is logged with the key, so that it can be allowed; at most
// once in ten seconds, since anyone can knock.
func (a *allowed) allow(ctx context.Context) func(ed25519.PublicKey) bool {
	return func(key ed25519.PublicKey) bool {
		known := func(k ed25519.PublicKey) bool { return k.Equal(key) }
		if slices.ContainsFunc(a.keys, known) {
			return true
		}
		var failed error
		for _, file := range a.files {
			keys, err := readKeys(file)
			if slices.ContainsFunc(keys, known) {
				return true
			}
			if err != nil {
				failed = err
			}
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if now := time.Now(); now.Sub(a.warned) > 10*time.Second {
			a.warned = now
			zerolog.Ctx(ctx).Warn().Err(failed).Str("peer", release.FormatKey(key)).
				Msg("control plane refused: its key is not allowed; allow it with --control-plane-key")
		}
		return false
	}
}

// readKeys reads one key a line; blank lines and what follows a # do not count. Lines that are no key are reported, and
// do not take away the others.
func readKeys(file string) ([]ed25519.PublicKey, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the keys of control planes: %w", err)
	}
	var keys []ed25519.PublicKey
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		key, parseErr := release.ParseKey(text)
		if parseErr != nil {
			err = fmt.Errorf("%s:%d: %w", file, n, parseErr)
			continue
		}
		keys = append(keys, key)
	}
	return keys, err
}
