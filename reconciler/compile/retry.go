package compile

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// grpcStatuses are the names of gRPC's statuses by their code, but for OK, as `on` has them.
var grpcStatuses = []string{1: "cancelled", "unknown", "invalid-argument", "deadline-exceeded", "not-found", "already-exists",
	"permission-denied", "resource-exhausted", "failed-precondition", "aborted", "out-of-range", "unimplemented", "internal",
	"unavailable", "data-loss", "unauthenticated"}

// condition is what one entry of `on` counts as failed; the zero condition is of connections, which always count.
type condition struct {
	from, to uint16 // HTTP statuses
	grpc     uint32 // a gRPC code
}

// parseCondition reads an entry of `on`.
func parseCondition(s string) (condition, bool) {
	switch s {
	case "5xx":
		return condition{from: 500, to: 599}, true
	case "gateway-error":
		return condition{from: 502, to: 504}, true
	case "connect-failure", "refused-stream":
		return condition{}, true
	}
	if i := slices.Index(grpcStatuses, s); i > 0 {
		return condition{grpc: uint32(i)}, true
	}
	from, to, ranged := strings.Cut(s, "-")
	if !ranged {
		to = from
	}
	a, err := strconv.ParseUint(from, 10, 16)
	b, err2 := strconv.ParseUint(to, 10, 16)
	if err != nil || err2 != nil || len(from) != 3 || len(to) != 3 || a < 400 || a > b || b > 599 {
		return condition{}, false
	}
	return condition{from: uint16(a), to: uint16(b)}, true
}

// overRetry lays what a level says of retries over what holds already.
func (c *compiler) overRetry(to *retry, src *v1alpha1.Retry, at path, l level) {
	if src == nil {
		return
	}
	to.asked.at(at, l, true)
	c.overCount(&to.retries, src.Retries, 0, 10, at.at("retries"), l)
	c.overDuration(&to.try, src.Timeout, at.at("timeout"), l)
	c.overBackoff(&to.backoff, src.Backoff, at.at("backoff"), l)
	if b := src.Budget; b != nil {
		at := at.at("budget")
		c.overShare(&to.percent, &b.Percent, at.at("percent"), l)
		c.overCount(&to.minPerSecond, b.MinPerSecond, 0, 100_000, at.at("minPerSecond"), l)
		c.overDuration(&to.window, b.Window, at.at("window"), l)
	}
	if src.Idempotent != nil {
		to.idempotent.at(at.at("idempotent"), l, *src.Idempotent)
	}
	if c.empty(at.at("on"), len(src.On), src.On == nil) {
		c.find(diag.WrongValue, at.at("on"), "an empty list of conditions retries nothing",
			`leave the field out for "5xx" and "unavailable", or write ["connect-failure"]`)
	}
	seen := map[string]path{}
	for i, on := range src.On {
		at := at.at("on").index(i)
		if _, ok := parseCondition(on); !ok {
			c.find(diag.WrongValue, at, fmt.Sprintf("%q is no failure that is tried again", on),
				failureHint(on))
		}
		c.once(seen, on, at, "condition")
	}
	if len(src.On) > 0 {
		to.on.at(at.at("on"), l, src.On)
	}
}

// failureHint guesses which condition was meant, or says what there is.
func failureHint(on string) string {
	if n := diag.Nearest(on, append([]string{"5xx", "gateway-error", "connect-failure", "refused-stream"}, grpcStatuses[1:]...)); n != "" {
		return fmt.Sprintf("did you mean %q?", n)
	}
	return `write "5xx", "gateway-error", "connect-failure", "refused-stream", a status from 400 to 599, a range as in "500-504", ` +
		`or the name of a gRPC status`
}

// compile makes what callers do of the settings in force; nil where nothing is tried again. Of a list that several kinds
// of routes inherit, each takes what it can see.
func (r *retry) compile(grpc bool) *mesh.Retry {
	if !r.asked.set() || r.retries.v == 0 {
		return nil
	}
	out := &mesh.Retry{
		Tries: r.retries.v, Timeout: r.try.v, BackoffMin: r.backoff.v.min, BackoffMax: r.backoff.v.max,
		Budget: r.percent.v, MinPerSecond: r.minPerSecond.v, Window: r.window.v, Idempotent: r.idempotent.v,
	}
	applies := false
	for _, on := range r.on.v {
		cond, ok := parseCondition(on)
		switch {
		case !ok:
		case cond == condition{}:
			applies = true
		case cond.grpc != 0 && grpc:
			applies, out.GRPC = true, append(out.GRPC, cond.grpc)
		case cond.grpc == 0 && !grpc:
			applies, out.Statuses = true, append(out.Statuses, mesh.StatusRange{From: cond.from, To: cond.to})
		}
	}
	switch {
	case applies:
	case grpc:
		out.GRPC = []uint32{mesh.BuiltInRetryGRPCStatus}
	default:
		out.Statuses = []mesh.StatusRange{{From: 500, To: 599}}
	}
	slices.Sort(out.GRPC)
	out.GRPC = slices.Compact(out.GRPC)
	slices.SortFunc(out.Statuses, func(a, b mesh.StatusRange) int { return int(a.From) - int(b.From) })
	apart := out.Statuses[:0]
	for _, s := range out.Statuses {
		if n := len(apart); n > 0 && s.From <= apart[n-1].To+1 {
			apart[n-1].To = max(apart[n-1].To, s.To)
		} else {
			apart = append(apart, s)
		}
	}
	out.Statuses = apart
	return out
}

// checkRetry finds retries of a route that could never happen.
func (c *compiler) checkRetry(r *route) {
	if own := r.retry.asked; own.level == routeLevel && r.retry.on.level == routeLevel {
		for i, on := range r.retry.on.v {
			cond, _ := parseCondition(on)
			if cond.grpc != 0 && !r.compiled.GRPC {
				c.find(diag.WrongProtocol, r.retry.on.from.index(i), fmt.Sprintf("%q is a gRPC status, which only gRPC routes see", on),
					`write an HTTP status or "5xx", or make it a gRPC route`)
			}
			if cond.from != 0 && r.compiled.GRPC {
				c.find(diag.WrongProtocol, r.retry.on.from.index(i),
					fmt.Sprintf("%q is of HTTP statuses; failures of gRPC calls are gRPC statuses", on), `write a gRPC status, as in "unavailable"`)
			}
		}
	}
	out := r.compiled.Retry
	if out == nil {
		return
	}
	byResponse := len(out.Statuses)+len(out.GRPC) > 0
	unsafe := !slices.ContainsFunc(r.matches, func(m mesh.Match) bool { return m.Method == "" || idempotent(m.Method) })
	if r.retry.asked.level == routeLevel && byResponse && unsafe && !out.Idempotent && !r.broken && len(r.matches) > 0 {
		why := "the route takes only requests whose method is not idempotent"
		if r.compiled.GRPC {
			why = "a gRPC call is a POST, which is not idempotent by itself"
		}
		c.find(diag.UnsafeRetry, r.retry.asked.from, why+", so none that got an answer is tried again",
			`write idempotent: true if trying again does no harm, or on: ["connect-failure"]`)
	}
}

// idempotent reports whether a method may be tried again by itself (RFC 9110, 9.2.2).
func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// checkTimes finds times that leave no room for another. A limit that a farther level set is narrowed by a nearer one in
// silence: that is what nearer levels are for.
func (c *compiler) checkTimes(r *route) {
	limit := r.timeouts.request
	if limit.v == 0 || r.answered {
		return
	}
	within := func(v value[time.Duration], what string, equal bool) bool {
		if v.v == 0 || v.level < limit.level || v.v < limit.v || !equal && v.v == limit.v {
			return true
		}
		c.find(diag.TryCannotFit, v.from, fmt.Sprintf("%s is %s, and the whole request may take %s", what, mesh.Short(v.v), mesh.Short(limit.v)),
			"write less than the timeout, or leave it out", c.pos(limit.from))
		return false
	}
	within(r.timeouts.response, "responseTimeout", false)
	within(r.timeouts.idle, "idleTimeout", false)
	if retry := r.compiled.Retry; retry != nil && within(r.retry.try, "the timeout of one try", true) {
		least := time.Duration(retry.Tries) * retry.BackoffMin
		nearest := max(r.retry.retries.level, r.retry.backoff.level, r.retry.try.level)
		switch all := least + time.Duration(retry.Tries+1)*retry.Timeout; {
		case nearest < limit.level:
		case least >= limit.v: // a share of it is waited, so that some tries still fit
			c.warn(diag.TryCannotFit, r.retry.asked.from,
				fmt.Sprintf("waiting up to %s before each of %d tries can take the whole timeout of %s", mesh.Short(retry.BackoffMin), retry.Tries, mesh.Short(limit.v)),
				"try less often, wait less, or raise the timeout", c.pos(limit.from))
		case retry.Timeout > 0 && all > limit.v:
			c.warn(diag.TryCannotFit, r.retry.asked.from,
				fmt.Sprintf("%d tries of %s and the waits between them take %s, and the request may take %s: the last is cut short",
					retry.Tries+1, mesh.Short(retry.Timeout), mesh.Short(all), mesh.Short(limit.v)),
				"try less often, give each try less time, or raise the timeout", c.pos(limit.from))
		}
	}
	for i, f := range r.src.filters {
		if f.Fault == nil || f.Fault.Delay == nil {
			continue
		}
		if d, err := time.ParseDuration(string(f.Fault.Delay.Duration)); err == nil && d >= limit.v {
			c.find(diag.TryCannotFit, r.at.at("filters").index(i).at("fault", "delay", "duration"),
				fmt.Sprintf("every delayed request times out: the delay is %s, the timeout %s", mesh.Short(d), mesh.Short(limit.v)),
				"write a shorter delay, or abort with status 504", c.pos(limit.from))
		}
	}
}
