package compile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/spiffe"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// settings compiles what holds for the mesh as a whole and returns the mesh's defaults.
func (c *compiler) settings(to *mesh.Settings) defaults {
	src := c.doc.Policy.Mesh
	if src == nil && len(c.doc.Unread) > 0 {
		return builtIn // it is there and could not be read
	}
	if src == nil {
		c.find(diag.NoPolicy, "mesh", "the repository says nothing about the mesh",
			`write mesh.cue with mesh: trustDomain: "example.org"`)
		return builtIn
	}
	const at path = "mesh"
	if err := spiffe.CheckTrustDomain(src.TrustDomain); err != nil {
		c.find(diag.BadIdentity, at.at("trustDomain"), err.Error(),
			`write a name of your own, as in "mesh.example.org"`)
	} else {
		c.trustDomain = src.TrustDomain
	}
	to.TrustDomain = src.TrustDomain
	if src.MaxStale != "" {
		to.MaxStale, _ = c.duration(at.at("maxStale"), src.MaxStale)
	}
	if networks := c.ranges(at.at("clusterNetworks"), src.ClusterNetworks); len(networks) > 0 {
		to.ClusterNetworks = networks
		c.need(&to.Needs, mesh.CapNetworks, at.at("clusterNetworks"), "clusterNetworks")
	}
	to.OpaquePorts = c.portSet(to, at.at("opaquePorts"), src.OpaquePorts, mesh.CapOpaquePorts, "opaquePorts")
	if s := src.SkipPorts; s != nil {
		at := at.at("skipPorts")
		to.SkipInbound = c.portSet(to, at.at("inbound"), s.Inbound, mesh.CapSkipPorts, "skipPorts")
		to.SkipOutbound = c.portSet(to, at.at("outbound"), s.Outbound, mesh.CapSkipPorts, "skipPorts")
	}
	c.environments(at.at("environments"), src.Environments)
	c.telemetry(to, at.at("telemetry"), src.Telemetry)
	c.rollout(to, at.at("rollout"), src.Rollout)
	c.sources(at.at("sources"), src.Sources)
	return c.over(builtIn, src.Defaults, at.at("defaults"), meshLevel)
}

// ranges compiles a list of ranges: in one spelling, sorted. One inside another is a repetition.
func (c *compiler) ranges(at path, src []v1alpha1.CIDR) (out []netip.Prefix) {
	if c.empty(at, len(src), src == nil) {
		c.find(diag.WrongValue, at, "an empty list never means all, nor none", "leave the field out for the built-in ranges")
	}
	where := map[netip.Prefix]path{}
	for i, s := range src {
		at := at.index(i)
		p, ok := c.cidr(at, s)
		if !ok {
			continue
		}
		for _, other := range out {
			if contains(other, p) || contains(p, other) {
				c.find(diag.DuplicateEntry, at, fmt.Sprintf("%s and %s overlap: the wider one is enough", p, other), "delete the narrower one", c.pos(where[other]))
			}
		}
		where[p] = at
		out = append(out, p)
	}
	return prefixes(out)
}

// portSet compiles a list of port numbers of the mesh, sorted.
func (c *compiler) portSet(to *mesh.Settings, at path, src []v1alpha1.PortNumber, capability mesh.Capability, what string) (out []uint16) {
	if c.empty(at, len(src), src == nil) {
		c.find(diag.WrongValue, at, "an empty list says nothing", "leave the field out for the built-in ports")
	}
	if len(src) == 0 {
		return nil
	}
	c.need(&to.Needs, capability, at, what)
	seen := map[string]path{}
	for i, p := range src {
		n := c.portNumber(at.index(i), p)
		c.once(seen, fmt.Sprint(n), at.index(i), "port")
		out = append(out, n)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// checkSkipped finds services' ports that connections would reach past the sidecar, and so past every rule.
func (c *compiler) checkSkipped(services []*service) {
	src := c.doc.Policy.Mesh
	if src == nil || src.SkipPorts == nil || len(src.SkipPorts.Inbound) == 0 {
		return
	}
	for _, s := range services {
		for _, p := range s.ports {
			if i := slices.Index(src.SkipPorts.Inbound, v1alpha1.PortNumber(p.number)); i >= 0 {
				c.find(diag.WrongValue, path("mesh.skipPorts.inbound").index(i),
					fmt.Sprintf("port %d is declared by a service: connections to it would pass by the sidecar, and so by every rule", p.number),
					"skip ports that no service declares", c.pos(p.at.at("port")))
			}
		}
	}
}

// environments checks the list that `--all-envs` goes by; it is no behaviour of a mesh.
func (c *compiler) environments(at path, names []string) {
	if c.empty(at, len(names), names == nil) {
		c.find(diag.WrongValue, at, "an empty list names no environment", "leave the field out")
	}
	seen := map[string]path{}
	for i, n := range names {
		if !named(n, "-_.", true) {
			c.find(diag.WrongValue, at.index(i), fmt.Sprintf("%q is no name of an environment", n),
				"use letters, digits, '-', '_' and '.', at most 63, with a letter or digit at the ends")
		}
		c.once(seen, n, at.index(i), "environment")
	}
}

func (c *compiler) telemetry(to *mesh.Settings, at path, src *v1alpha1.Telemetry) {
	if src == nil {
		return
	}
	out := &to.Telemetry
	if c.empty(at.at("labels"), len(src.Labels), src.Labels == nil) {
		c.find(diag.WrongValue, at.at("labels"), "an empty list adds no label", "leave the field out")
	}
	seen := map[string]path{}
	known := []string{"route", "backend", "client_id", "authz_name"}
	for i, l := range src.Labels {
		at := at.at("labels").index(i)
		if !slices.Contains(known, l) {
			c.find(diag.WrongValue, at, fmt.Sprintf("%q is no label that can be added", l), nameHint(l, known, ""))
		}
		c.once(seen, l, at, "label")
		c.need(&to.Needs, mesh.CapTelemetry, at, fmt.Sprintf("label %q", l))
	}
	out.Labels = set(slices.Clone(src.Labels))
	if src.MaxSeries != 0 {
		if src.MaxSeries < 100 || src.MaxSeries > 100_000 {
			c.find(diag.WrongValue, at.at("maxSeries"), fmt.Sprintf("%d is out of range", src.MaxSeries), "write a number from 100 to 100000")
		} else {
			out.MaxSeries = uint32(src.MaxSeries)
			c.need(&to.Needs, mesh.CapTelemetry, at.at("maxSeries"), "maxSeries")
		}
	}
	if src.Tracing != nil {
		out.Tracing, _ = c.share(at.at("tracing"), *src.Tracing)
		c.need(&to.Needs, mesh.CapTracing, at.at("tracing"), "tracing")
	}
	switch src.AccessLog {
	case "", "off":
	case "json", "apache":
		out.AccessLog = src.AccessLog
		c.need(&to.Needs, mesh.CapAccessLog, at.at("accessLog"), "accessLog")
	default:
		c.find(diag.WrongValue, at.at("accessLog"), fmt.Sprintf("%q is no form of access log", src.AccessLog), `write "off", "json" or "apache"`)
	}
}

func (c *compiler) rollout(to *mesh.Settings, at path, src *v1alpha1.Rollout) {
	if src == nil {
		return
	}
	switch src.Strategy {
	case "staged":
	case "", "all":
		for _, f := range []struct {
			field string
			set   bool
		}{{"steps", src.Steps != nil}, {"pause", src.Pause != ""}, {"halt", src.Halt != nil}} {
			if f.set {
				c.find(diag.WrongValue, at.at(f.field), f.field+" is of a staged rollout, and this one goes to all at once",
					`write strategy: "staged", or leave it out`)
			}
		}
		return
	default:
		c.find(diag.WrongValue, at.at("strategy"), fmt.Sprintf("%q is no rollout strategy", src.Strategy), `write "all" or "staged"`)
		return
	}
	c.need(&to.Needs, mesh.CapStaged, at, "a staged rollout")
	out := &to.Rollout
	resolved := defaultRollout
	if len(src.Steps) == 0 {
		c.find(diag.MissingField, at, "a staged rollout needs steps", "write the shares of services, as in steps: [5, 25, 100]")
	}
	for i, p := range src.Steps {
		at := at.at("steps").index(i)
		step, ok := c.share(at, p)
		switch {
		case !ok:
			continue
		case step == 0:
			c.find(diag.WrongValue, at, "a step of nothing", "begin with a share above 0")
		case len(out.Steps) > 0 && step <= out.Steps[len(out.Steps)-1]:
			c.find(diag.WrongValue, at, fmt.Sprintf("the steps do not rise: %v comes after %s", p, out.Steps[len(out.Steps)-1].Percent()),
				"write them in rising order, up to 100")
		case i == len(src.Steps)-1 && step != mesh.AllPPM:
			c.find(diag.WrongValue, at, fmt.Sprintf("the last step is %v: the other services would never get the release", p), "end with 100")
		}
		out.Steps = append(out.Steps, step)
	}
	if src.Pause != "" {
		resolved.Pause, _ = c.duration(at.at("pause"), src.Pause)
	}
	if h := src.Halt; h != nil {
		at := at.at("halt")
		if h.Nacks < 0 || h.Nacks > 10_000 {
			c.find(diag.WrongValue, at.at("nacks"), fmt.Sprintf("%d is out of range", h.Nacks), "write a number from 1 to 10000")
		} else if h.Nacks > 0 {
			resolved.HaltNacks = uint32(h.Nacks)
		}
		if h.Denials != nil {
			resolved.HaltDenials, _ = c.share(at.at("denials"), *h.Denials)
		}
		if h.Failures != nil {
			resolved.HaltFailures, _ = c.share(at.at("failures"), *h.Failures)
		}
	}
	resolved.Steps = out.Steps
	*out = resolved
}

// defaultRollout is a staged rollout of which only the steps are said.
var defaultRollout = mesh.Rollout{
	Pause: mesh.BuiltInRolloutPause, HaltNacks: mesh.BuiltInHaltNacks, HaltDenials: mesh.BuiltInHaltDenials, HaltFailures: mesh.BuiltInHaltFailures,
}

// sources checks who else may write policy. Whose file wrote what is judged before compilation, by the fences.
func (c *compiler) sources(at path, src map[string]v1alpha1.Source) {
	known := c.namespaceNames()
	type claim struct {
		pattern string
		at      path
		source  string
	}
	var claims []claim
	directories := map[string]path{}
	for _, name := range sortedKeys(src) {
		s, at := src[name], at.at(name)
		c.checkLabel(at, "source", name)
		switch n := count(s.Repository != "", s.Directory != ""); {
		case n != 1:
			c.find(diag.WrongValue, at, fmt.Sprintf("a source is exactly one of repository, directory; %d are set", n), `write directory: "team-pay", or repository: "https://git.example/team/policy"`)
		case s.Repository != "":
			c.need(nil, mesh.CapRemoteSource, at.at("repository"), "a source in another repository")
		case s.Ref != "":
			c.find(diag.WrongValue, at.at("ref"), "a directory of this repository has no branch of its own", "leave ref out")
		}
		if s.Directory != "" {
			c.once(directories, strings.Trim(s.Directory, "/"), at.at("directory"), "directory")
		}
		if len(s.Namespaces) == 0 {
			c.find(diag.WrongValue, at.at("namespaces"), "the source may write no namespace", "name at least one")
		}
		seen := map[string]path{}
		for i, k := range s.Kinds {
			c.once(seen, k, at.at("kinds").index(i), "kind")
			if !slices.Contains(v1alpha1.SourceKinds, k) {
				c.find(diag.WrongValue, at.at("kinds").index(i), fmt.Sprintf("%q is no kind of policy", k), nameHint(k, v1alpha1.SourceKinds, ""))
			}
		}
		if c.empty(at.at("kinds"), len(s.Kinds), s.Kinds == nil) {
			c.find(diag.WrongValue, at.at("kinds"), "the source may write nothing", "leave the field out for all kinds")
		}
		for i, ns := range s.Namespaces {
			at := at.at("namespaces").index(i)
			prefix, starred := strings.CutSuffix(ns, "*")
			if !named(strings.TrimSuffix(prefix, "-"), "-", false) {
				c.find(diag.WrongValue, at, fmt.Sprintf("%q names no namespace", ns), `write a name, or the beginning of names, as in "pay-*"; the whole mesh is nobody's to give away`)
				continue
			}
			if !starred && !slices.Contains(known, ns) {
				// A grant comes before what is granted: the source's first commit is judged by it.
				c.warn(diag.UnknownService, at, fmt.Sprintf("nothing is declared in namespace %q yet", ns), nameHint(ns, known, "check the name"))
			}
			for _, other := range claims {
				if patternsMeet(other.pattern, ns) {
					what := fmt.Sprintf("source %q may write %s too", other.source, other.pattern)
					if other.source == name {
						what = fmt.Sprintf("%s is in the list already", other.pattern)
					}
					c.find(diag.DuplicateEntry, at, what, "give each namespace to one source", c.pos(other.at))
				}
			}
			claims = append(claims, claim{ns, at, name})
		}
	}
}

// patternsMeet reports whether a namespace can be meant by both patterns.
func patternsMeet(a, b string) bool {
	p, starred := strings.CutSuffix(a, "*")
	q, starred2 := strings.CutSuffix(b, "*")
	switch {
	case starred && starred2:
		return strings.HasPrefix(p, q) || strings.HasPrefix(q, p)
	case starred:
		return strings.HasPrefix(q, p)
	case starred2:
		return strings.HasPrefix(p, q)
	}
	return p == q
}

// namespaceNames are the namespaces that the repository says anything about, sorted.
func (c *compiler) namespaceNames() []string {
	all := map[string]bool{}
	p := &c.doc.Policy
	for ns := range p.Namespaces {
		all[ns] = true
	}
	for ns := range p.Services {
		all[ns] = true
	}
	for ns := range p.Workloads {
		all[ns] = true
	}
	for ns := range p.Groups {
		all[ns] = true
	}
	for ns := range p.Egress {
		all[ns] = true
	}
	for _, name := range c.doc.Unread {
		ns, _, _ := strings.Cut(name, "/")
		all[ns] = true
	}
	return sortedKeys(all)
}
