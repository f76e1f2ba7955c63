package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

// The ledger's protocol is made of lines of at most 512 bytes. The server speaks first:
//
//	S: LEDGER/1
//	C: ADD <entry> <account> <amount>    S: OK <balance>
//	C: GET <account>                     S: OK <balance>
//	                                     S: ERR <reason>
//
// An entry's name makes ADD idempotent: the same entry twice counts once, so that a client may repeat what it lost the
// answer to.
const (
	greeting = "LEDGER/1"
	maxLine  = 512
)

// book is the ledger's memory.
type book struct {
	mu       sync.Mutex       // guards all that follows
	balances map[string]int64 // by account
	results  map[string]int64 // by entry: the answer it was given
	recent   []string         // entries in results, oldest first, to bound it
}

// remembered is how many entries a book can tell from repetitions: minutes of the demo's load.
const remembered = 1 << 16

func (b *book) add(entry, account string, amount int64) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n, ok := b.results[entry]; ok {
		return n
	}
	b.balances[account] += amount
	if len(b.recent) == remembered {
		delete(b.results, b.recent[0])
		b.recent = b.recent[1:]
	}
	b.recent = append(b.recent, entry)
	b.results[entry] = b.balances[account]
	return b.balances[account]
}

func (b *book) get(account string) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.balances[account]
}

func (b *book) answer(line string) string {
	var entry, account string
	var amount int64
	if n, err := fmt.Sscanf(line, "ADD %s %s %d", &entry, &account, &amount); n == 3 && err == nil {
		return fmt.Sprintf("OK %d", b.add(entry, account, amount))
	}
	if n, err := fmt.Sscanf(line, "GET %s", &account); n == 1 && err == nil {
		return fmt.Sprintf("OK %d", b.get(account))
	}
	return "ERR want ADD <entry> <account> <amount> or GET <account>"
}

func ledger(ctx context.Context) error {
	l, err := net.Listen("tcp", env("LISTEN_TCP", "127.0.0.1:9000"))
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "listening on %s\n", l.Addr())
	return serveLedger(ctx, l)
}

// serveLedger answers connections until ctx ends; it closes the listener and every connection then.
func serveLedger(ctx context.Context, l net.Listener) error {
	b := &book{balances: map[string]int64{}, results: map[string]int64{}}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // out of descriptors: the next one may fare better
			time.Sleep(10 * time.Millisecond)
			continue
		}
		wg.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			fmt.Fprintln(c, greeting)
			s := bufio.NewScanner(c)
			s.Buffer(make([]byte, maxLine), maxLine)
			for s.Scan() {
				if _, err := fmt.Fprintln(c, b.answer(s.Text())); err != nil {
					return
				}
			}
		})
	}
}

// ledgerClient keeps idle connections to the ledger and repeats what it lost the answer to.
type ledgerClient struct {
	addr string
	mu   sync.Mutex // guards idle
	idle []*ledgerConn
}

type ledgerConn struct {
	net.Conn
	r *bufio.Reader
}

func newLedgerClient(addr string) *ledgerClient { return &ledgerClient{addr: addr} }

// add posts an amount and returns the account's balance.
func (l *ledgerClient) add(ctx context.Context, account string, amount int64) (balance int64, err error) {
	line := fmt.Sprintf("ADD %s %s %d", rand.Text(), account, amount)
	var answer string
	_, err = again(ctx, func(ctx context.Context) error {
		c, err := l.conn(ctx)
		if err != nil {
			return err
		}
		if answer, err = c.exchange(ctx, line); err != nil {
			c.Close()
			return err
		}
		l.put(c)
		return nil
	})
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Sscanf(answer, "OK %d", &balance); err != nil {
		return 0, fmt.Errorf("the ledger answers %q", answer)
	}
	return balance, nil
}

func (l *ledgerClient) conn(ctx context.Context) (*ledgerConn, error) {
	l.mu.Lock()
	if n := len(l.idle); n > 0 {
		c := l.idle[n-1]
		l.idle = l.idle[:n-1]
		l.mu.Unlock()
		return c, nil
	}
	l.mu.Unlock()
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", l.addr)
	if err != nil {
		return nil, err
	}
	c := &ledgerConn{Conn: raw, r: bufio.NewReaderSize(raw, maxLine)}
	hello, err := c.exchange(ctx, "")
	if err == nil && hello != greeting {
		err = fmt.Errorf("it greets with %q, not %q", hello, greeting)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// put gives a healthy connection back.
func (l *ledgerClient) put(c *ledgerConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.idle = append(l.idle, c)
}

func (l *ledgerClient) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.idle {
		c.Close()
	}
	l.idle = nil
}

// answerWithin bounds one exchange: a connection that a sidecar lost without closing it must not hold a request.
const answerWithin = 3 * time.Second

// exchange sends a line, unless it is empty, and reads one.
func (c *ledgerConn) exchange(ctx context.Context, line string) (string, error) {
	deadline := time.Now().Add(answerWithin)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := c.SetDeadline(deadline); err != nil {
		return "", err
	}
	if line != "" {
		if _, err := io.WriteString(c, line+"\n"); err != nil {
			return "", err
		}
	}
	s, err := c.r.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(string(s), "\n"), nil
}
