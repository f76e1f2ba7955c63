package controlplane

import (
	"fmt"
	"io"

	"github.com/heddle-mesh/heddle/controlplane/push"
)

// writeMetrics writes what is known of this control plane in Prometheus' text format. The commit is a label of one info
// metric only, so that a commit never starts new series elsewhere.
func (cp *controlPlane) writeMetrics(w io.Writer) {
	s := cp.status()
	gauge := func(name, help string, v float64) {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s gauge\n%s %g\n", name, help, name, name, v)
	}
	truth := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	fmt.Fprintf(w, "# HELP heddle_controlplane_info The release that is served.\n# TYPE heddle_controlplane_info gauge\n"+
		"heddle_controlplane_info{version=%q,commit=%q} 1\n", s.Version, s.Commit)
	gauge("heddle_controlplane_epoch", "Epoch of the release that is served; 0: none.", float64(s.Epoch))
	gauge("heddle_controlplane_ready", "Whether sidecars are served and enrolled.", truth(s.Ready))
	gauge("heddle_controlplane_reconciler_connected", "Whether the reconciler is followed.", truth(s.Reconciler.Connected))
	if !s.CA.NotAfter.IsZero() {
		gauge("heddle_controlplane_issuer_expiration_timestamp_seconds", "When the first of root and intermediate ends.", float64(s.CA.NotAfter.Unix()))
		gauge("heddle_controlplane_root_expiration_timestamp_seconds", "When the root ends.", float64(s.CA.Root.Unix()))
	}
	states := map[push.State]int{push.OK: 0, push.Behind: 0, push.Nack: 0, push.Disconnected: 0}
	for _, p := range cp.streams.Proxies() {
		states[p.State]++
	}
	fmt.Fprint(w, "# HELP heddle_controlplane_proxies Enrolled sidecars by state.\n# TYPE heddle_controlplane_proxies gauge\n")
	for _, state := range []push.State{push.OK, push.Behind, push.Nack, push.Disconnected} {
		fmt.Fprintf(w, "heddle_controlplane_proxies{state=%q} %d\n", state, states[state])
	}
}
