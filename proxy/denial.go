package proxy

import (
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// denials makes one log line out of many: the first denial of a rule for a peer, or on the way to a service, is logged
// at once, then at most one line every denialEvery with the number since. A busy client that is not allowed must not
// fill a disk.
type denials struct {
	mu sync.Mutex
	m  map[denialKey]*denial // guarded by mu
}

const (
	denialEvery = 10 * time.Second
	maxDenials  = 1024 // keys; beyond that peers of a rule are counted together
)

// denialKey tells kinds of denial apart. peer is the caller of an inbound denial, backend the service that an outbound
// one did not reach. observed is set where nothing was denied: a rule that only observes matched, or the default of a
// port in the audit mode, which under another policy denies.
type denialKey struct {
	rule, peer, backend string
	observed            bool
}

// denial is one kind of denial. commit and pos are those of the first one since the last line.
type denial struct {
	denialKey
	commit, pos, id string
	why             string // beyond the rule; may be empty
	tcp             bool
	logged          time.Time
	count           uint64 // not logged yet
}

// note counts a denial and logs it where none was logged lately.
func (d *denials) note(log *zerolog.Logger, now time.Time, n denial) {
	d.mu.Lock()
	if d.m == nil {
		d.m = map[denialKey]*denial{}
	}
	was := d.m[n.denialKey]
	if was == nil && len(d.m) >= maxDenials {
		n.peer = ""
		was = d.m[n.denialKey]
	}
	if was != nil && now.Sub(was.logged) < denialEvery {
		was.count++
		was.commit, was.pos, was.id = n.commit, n.pos, n.id
		d.mu.Unlock()
		return
	}
	n.count = 1
	if was != nil {
		n.count += was.count
	}
	keep := n
	keep.logged, keep.count = now, 0
	d.m[n.denialKey] = &keep
	d.mu.Unlock()
	n.write(log)
}

// flush logs what was counted denialEvery ago or longer, and forgets what was quiet since.
func (d *denials) flush(log *zerolog.Logger, now time.Time) {
	var due []denial
	d.mu.Lock()
	for k, n := range d.m {
		switch {
		case now.Sub(n.logged) < denialEvery:
		case n.count == 0:
			delete(d.m, k)
		default:
			due = append(due, *n)
			n.logged, n.count = now, 0
		}
	}
	d.mu.Unlock()
	for i := range due {
		due[i].write(log)
	}
}

func (n *denial) write(log *zerolog.Logger) {
	e := log.Info().Str("policy", n.rule).Str("pos", n.pos).Str("commit", n.commit)
	switch {
	case n.backend != "":
		e = e.Str("component", "outbound").Str("backend", n.backend)
	case n.peer != "":
		e = e.Str("component", "inbound").Str("peer", n.peer)
	default:
		e = e.Str("component", "inbound").Str("peer", "unauthenticated").Str("id", n.id)
	}
	if n.tcp {
		e = e.Str("proto", "tcp")
	} else {
		e = e.Str("proto", "http1")
	}
	if n.why != "" {
		e = e.Str("err", n.why)
	}
	e = e.Uint64("count", n.count)
	if n.observed {
		e.Msg("observed")
		return
	}
	e.Msg("denied")
}
