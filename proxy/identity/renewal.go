package identity

import "time"

// Constants of renewal: Linkerd's share of the remaining life; the rest is ours.
const (
	renewAt     = 0.7 // of what remained of the life when the SVID was received
	renewSpread = 0.1 // of that, earlier, at random, so that sidecars which started together do not renew together
	retryMin    = time.Second
	retryMax    = time.Minute
)

// Renewal says when to ask for the next SVID. It is a value without a clock: the caller counts failures and waits.
type Renewal struct {
	// Received is when the SVID at hand was received, NotAfter when it ends. The zero value has none: ask at once.
	Received, NotAfter time.Time
	// Failures counts the attempts since then that failed, Last is the time of the last one.
	Failures int
	Last     time.Time
}

// At is when to ask next: at 63 to 70 % of the remaining life, and after a failure with exponential back-off from one
// second to one minute, but in time for a few more attempts before the end. random is in [0, 1).
func (r Renewal) At(random float64) time.Time {
	if r.Failures == 0 {
		if r.NotAfter.IsZero() {
			return r.Last
		}
		life := max(r.NotAfter.Sub(r.Received), 0)
		return r.Received.Add(time.Duration(float64(life) * renewAt * (1 - renewSpread*random)))
	}
	wait := retryMax
	if r.Failures <= 6 { // 1 s << 6 is past a minute
		wait = min(retryMin<<(r.Failures-1), retryMax)
	}
	if left := r.NotAfter.Sub(r.Last); left > 0 {
		wait = min(wait, max(left/4, retryMin))
	}
	return r.Last.Add(time.Duration(float64(wait) * (1 - random/2)))
}
