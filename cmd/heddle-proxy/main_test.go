package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// TestExitCodes: stdout is data, stderr is talk, every mistake says what to try.
func TestExitCodes(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	good := []string{"run", "--state", state, "--control-plane", "127.0.0.1:1", "--enrolment", "127.0.0.1:1",
		"--inbound", "127.0.0.1:0", "--outbound", "127.0.0.1:0", "--admin", "127.0.0.1:0"}
	with := func(more ...string) []string { return append(good[:len(good):len(good)], more...) }
	for _, test := range []struct {
		name   string
		args   []string
		env    map[string]string
		exit   int
		stdout string
		stderr string
	}{
		{"help", nil, nil, 0, "heddle-proxy stands beside one workload", ""},
		{"help", []string{"run", "--help"}, nil, 0, "[HEDDLE_CONTROL_PLANE]", ""},
		{"version", []string{"version"}, nil, 0, "heddle-proxy v", ""},
		{"version", []string{"version", "-o", "yaml"}, nil, 2, "", "want text or json"},
		{"unknown command", []string{"walk"}, nil, 2, "", "try: heddle-proxy --help"},
		{"unknown flag", []string{"run", "--contol-plane", "x"}, nil, 2, "", "try: heddle-proxy run --help"},
		{"argument", []string{"run", "shop/web"}, nil, 2, "", "try: heddle-proxy run --help"},
		{"no flags", []string{"run"}, nil, 2, "", "--control-plane is missing"},
		{"open relay", with("--outbound", "0.0.0.0:0"), nil, 2, "", "use 127.0.0.1"},
		{"environment", with(), map[string]string{"HEDDLE_LISTEN": "shop/ledger:tcp=10.0.0.1:1"}, 2, "", "--listen shop/ledger:tcp"},
		{"environment", with(), map[string]string{"HEDDLE_DRAIN": "soon"}, 2, "", "HEDDLE_DRAIN"},
		{"flag over environment", with("--log-level", "loud"), map[string]string{"HEDDLE_LOG_LEVEL": "info"}, 2, "", `"loud"`},
		{"listener", with("--listen", "ledger=1"), nil, 2, "", "shop/ledger:tcp=127.0.0.1:5432"},
		{"application twice", with("--app", "http=127.0.0.1:1,http=127.0.0.1:2"), nil, 2, "", "given twice"},
		{"application without name", with("--app", "127.0.0.1:1"), nil, 2, "", "NAME=HOST:PORT"},
		{"no token", with(), nil, 2, "", "heddle token create --workload"},
		{"no such directory", with("--state", "/dev/null/x"), nil, 3, "", "state directory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for k, v := range test.env {
				t.Setenv(k, v)
			}
			var stdout, stderr bytes.Buffer
			if exit := run(test.args, &stdout, &stderr); exit != test.exit {
				t.Errorf("exit code %d, want %d; stderr:\n%s", exit, test.exit, &stderr)
			}
			if !strings.Contains(stdout.String(), test.stdout) || test.stdout == "" && stdout.Len() > 0 {
				t.Errorf("stdout is %q, want %q", &stdout, test.stdout)
			}
			if !strings.Contains(stderr.String(), test.stderr) || test.exit != 0 && !strings.Contains(stderr.String(), "error: ") {
				t.Errorf("stderr is %q, want %q", &stderr, test.stderr)
			}
		})
	}
	var stdout, stderr bytes.Buffer
	run([]string{"version", "-o", "json"}, &stdout, &stderr)
	var v struct{ APIVersion, Version string }
	if err := json.Unmarshal(stdout.Bytes(), &v); err != nil || v.APIVersion != "heddle/v1" || v.Version == "" {
		t.Errorf("%s: %v", &stdout, err)
	}
}

// TestFlagsAreDocumented: each says what it is and which variable sets it.
func TestFlagsAreDocumented(t *testing.T) {
	started := false
	cmd := runCommand(&bytes.Buffer{}, &started)
	if cmd.Example == "" || cmd.Long == "" {
		t.Error("run has no example or no explanation")
	}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" && !strings.Contains(f.Usage, "[HEDDLE_") {
			t.Errorf("--%s names no variable", f.Name)
		}
	})
}
