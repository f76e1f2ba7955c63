package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
)

func startLedger(t *testing.T, ctx context.Context, addr string) (string, chan error) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- serveLedger(ctx, l) }()
	return l.Addr().String(), done
}

func TestLedgerProtocol(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	addr, done := startLedger(t, ctx, "127.0.0.1:0")
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	for _, step := range []struct{ say, hear string }{
		{"", "LEDGER/1"}, // the server speaks first
		{"ADD e1 orders 1", "OK 1"},
		{"ADD e2 orders 5", "OK 6"},
		{"ADD e1 orders 1", "OK 1"}, // a repetition counts once, and gets the answer that was lost
		{"GET orders", "OK 6"},
		{"GET nothing", "OK 0"},
		{"STEAL orders", "ERR want ADD <entry> <account> <amount> or GET <account>"},
	} {
		if step.say != "" {
			fmt.Fprintln(c, step.say)
		}
		got, err := r.ReadString('\n')
		if err != nil || strings.TrimSpace(got) != step.hear {
			t.Fatalf("%q is answered %q, %v; want %q", step.say, got, err, step.hear)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadString('\n'); err == nil {
		t.Error("the connection outlives the ledger")
	}
}

// What a sidecar's restart looks like from here: every connection breaks, and for a while nobody listens.
func TestLedgerClientSurvivesARestart(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	addr, done := startLedger(t, ctx, "127.0.0.1:0")
	l := newLedgerClient(addr)
	defer l.close()
	if n, err := l.add(t.Context(), "orders", 2); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	cancel()
	<-done
	answered := make(chan error, 1)
	go func() {
		_, err := l.add(t.Context(), "orders", 3)
		answered <- err
	}()
	again, cancel := context.WithCancel(t.Context())
	_, done = startLedger(t, again, addr)
	if err := <-answered; err != nil {
		t.Error(err)
	}
	cancel()
	<-done
}
