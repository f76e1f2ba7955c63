package story

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// call [-address IP] FROM TO VERDICT RULE METHOD PATH [NAME=VALUE…] makes a request and asks heddle explain about it: both
// must come to the verdict (allow, deny, or 400 for a path that rules cannot judge) by the same rule, and a denied peer of
// the mesh must be told the commit and the line that explain prints. FROM is a service with a sidecar SERVICE-1, or "-" for
// a caller from outside, who comes to $ENTRY from the address. "-" for RULE is any. Nothing is said of what the application
// answers.
func call(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	address := "127.0.0.1"
	if len(args) > 2 && args[0] == "-address" {
		address, args = args[1], args[2:]
	}
	if len(args) < 6 {
		ts.Fatalf("usage: call [-address IP] FROM TO VERDICT RULE METHOD PATH [NAME=VALUE…]")
	}
	from, to, verdict, rule, method, path, fields := args[0], args[1], args[2], args[3], args[4], args[5], args[6:]
	ns, local, _ := strings.Cut(to, "/")

	// The request, with the path as it was written.
	tr := &http.Transport{DisableKeepAlives: true}
	target := &url.URL{Scheme: "http", Host: local + "." + ns + ".mesh", Opaque: path}
	if from == "-" {
		entry, err := url.Parse(ts.Getenv("ENTRY"))
		ts.Check(err)
		target.Host = entry.Host
		tr.DialContext = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}).DialContext
	} else {
		proxy := of(ts).mesh.Address(from + "-1/outbound")
		target.Opaque = "//" + target.Host + path
		tr.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: proxy})
	}
	req := &http.Request{Method: method, URL: target, Host: target.Host, Header: http.Header{}}
	explain := []string{"explain", from, to, method, path, "--address", address, "-o", "json"}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, "=")
		req.Header.Add(name, value)
		explain = append(explain, "--header", f)
	}
	res, err := (&http.Client{Transport: tr, Timeout: 30 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(req)
	ts.Check(err)
	body, err := io.ReadAll(res.Body)
	ts.Check(err)
	res.Body.Close()
	got := "allow"
	switch reason := res.Header.Get("heddle-error"); {
	case res.StatusCode == 403 && reason == "denied":
		got = "deny"
	case res.StatusCode == 400 && reason == "non-canonical-path":
		got = "400"
	case reason != "":
		got = res.Status + " " + reason
	}
	if got != verdict {
		ts.Fatalf("the mesh says %s, want %s: %s %v\n%s", got, verdict, res.Status, res.Header, body)
	}

	cmd := exec.Command(filepath.Join(bin, "heddle"), explain...)
	cmd.Env = append(os.Environ(), "NO_COLOR=1", "HEDDLE_STATE="+ts.Getenv("HEDDLE_STATE"))
	out, err := cmd.CombinedOutput()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		ts.Fatalf("heddle explain: %v", err)
	}
	var said struct {
		Verdict string `json:"verdict"`
		Because struct {
			Rule string   `json:"rule"`
			Pos  diag.Pos `json:"pos"`
		} `json:"because"`
	}
	if err := json.Unmarshal(out, &said); err != nil {
		ts.Fatalf("heddle %s: %v\n%s", strings.Join(explain, " "), err, out)
	}
	code, want := 0, "allow"
	if verdict != "allow" {
		code, want = 1, "deny"
	}
	if cmd.ProcessState.ExitCode() != code || !strings.EqualFold(said.Verdict, want) || rule != "-" && said.Because.Rule != rule {
		ts.Fatalf("the mesh says %s, and by %s is wanted; heddle %s ends with %d:\n%s", verdict, rule, strings.Join(explain, " "), cmd.ProcessState.ExitCode(), out)
	}
	if verdict != "deny" {
		return
	}
	if from == "-" {
		if res.Header.Get("heddle-id") == "" || res.Header.Get("heddle-policy") != "" || rule != "-" && strings.Contains(string(body), rule) {
			ts.Fatalf("a stranger was told %v\n%s", res.Header, body)
		}
		return
	}
	policy := ts.Getenv("COMMIT") + " " + said.Because.Rule + " " + said.Because.Pos.Short()
	if got := res.Header.Get("heddle-policy"); got != policy {
		ts.Fatalf("heddle-policy: %s, want %s", got, policy)
	}
}

// soon VARIABLE SECONDS sets a variable to a time that is soon, as policy writes it.
func soon(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	ts.Setenv(args[0], time.Now().Add(time.Duration(number(ts, args[1]))*time.Second).UTC().Format(time.RFC3339))
}

// past TIME waits until a time has come.
func past(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	t, err := time.Parse(time.RFC3339, args[0])
	ts.Check(err)
	ts.Check(of(ts).mesh.Until("it is "+args[0], func() bool { return time.Now().After(t) }))
}

// tunnel open NAME connects to an upstream of a workload, by its name in up.json, and talks to the ledger behind it;
// where it is negated, nobody may be there. tunnel closed NAME TIME waits until the mesh closes it, which must not be before
// a time. tunnel works NAME talks again. tunnel await NAME waits until the ledger can be reached.
func tunnel(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if len(args) < 2 {
		ts.Fatalf("usage: tunnel open|await|works|closed NAME [TIME]")
	}
	name := args[1]
	switch args[0] {
	case "open":
		l, err := openLedger(s.mesh.Address(name))
		if neg {
			if err == nil {
				l.Close()
				ts.Fatalf("%s is let through", name)
			}
			return
		}
		ts.Check(err)
		s.env.Defer(func() { l.Close() })
		s.tunnels[name] = l
	case "await":
		plain(ts, neg)
		ts.Check(s.mesh.Until(name+" is let through", func() bool {
			l, err := openLedger(s.mesh.Address(name))
			if err == nil {
				l.Close()
			}
			return err == nil
		}))
	case "works":
		plain(ts, neg)
		ts.Check(s.tunnels[name].ask())
	case "closed":
		plain(ts, neg)
		end, err := time.Parse(time.RFC3339, args[2])
		ts.Check(err)
		if b, err := s.tunnels[name].r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			ts.Fatalf("%s is not closed: %q %v", name, b, err)
		}
		if now := time.Now(); now.Before(end) {
			ts.Fatalf("%s was closed %s before its time", name, end.Sub(now))
		}
	}
}

// ledger is a connection to the shop's ledger, which speaks first.
type ledger struct {
	net.Conn
	r *bufio.Reader
}

func openLedger(address string) (*ledger, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	l := &ledger{c, bufio.NewReader(c)}
	line, err := l.r.ReadString('\n')
	if err == nil && line != "LEDGER/1\n" {
		err = fmt.Errorf("the ledger says %q", line)
	}
	if err == nil {
		err = l.ask()
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return l, nil
}

func (l *ledger) ask() error {
	if _, err := io.WriteString(l, "GET x\n"); err != nil {
		return err
	}
	line, err := l.r.ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "OK ") {
		err = fmt.Errorf("the ledger answers %q", line)
	}
	return err
}

// write FILE OF puts a file of the archive into the repository, with variables of the script replaced.
func write(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	text := os.Expand(ts.ReadFile(args[1]), ts.Getenv)
	ts.Check(os.WriteFile(filepath.Join(of(ts).mesh.Repository(), args[0]), []byte(text), 0o644))
}

// observed WORKLOAD REGEXP wants the metrics of a sidecar to have a line that matches.
func observed(ts *testscript.TestScript, neg bool, args []string) {
	out, err := fetch("", "http://"+of(ts).mesh.Address(args[0]+"/admin")+"/metrics", nil)
	ts.Check(err)
	re := regexp.MustCompile(args[1])
	lines := strings.Split(out, "\n")
	if found := slices.ContainsFunc(lines, re.MatchString); found == neg {
		ts.Fatalf("a sample that matches %s: %v, in\n%s", re, found, out)
	}
}
