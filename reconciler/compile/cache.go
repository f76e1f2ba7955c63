package compile

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// Cache keeps the last compilation that succeeded, so that a commit costs what it changes: namespaces that are as they
// were are taken over. Its Compile returns what the function [Compile] returns, always. The zero Cache is empty. It is
// for one goroutine at a time.
//
// What a namespace compiles to depends on what it says itself, on what mesh.cue says, and on the names, ports and
// identities of all services. So it is taken over if the first two are the same, value by value, and those last did not
// change anywhere. All else is compiled anew: where anything is in doubt (a service or port that came or went, consumer
// routes into or out of what changed, a finding) everything is. Documents must not be written after they were compiled.
type Cache struct {
	last  *compiler
	mesh  *mesh.Mesh
	opts  Options
	taken int // services that the last compilation took over, for tests
}

// Compile is the function Compile, in the time that the difference to the last document takes.
func (k *Cache) Compile(doc *v1alpha1.Document, opts Options) (*mesh.Mesh, mesh.Origins, diag.List) {
	k.taken = 0
	g, err := newGate(opts.ProxyVersion)
	if err != nil {
		return Compile(doc, opts)
	}
	if changed, ok := k.changed(doc, opts); ok {
		c := newCompiler(doc, opts, g)
		c.last, c.changed = k.last, changed
		if m, origins, findings := c.run(); m != nil {
			k.taken = len(c.ordered) - len(c.fresh())
			k.keep(c, m, opts)
			return m, origins, findings
		}
		g, _ = newGate(opts.ProxyVersion) // everything is looked at, so that all findings are told
	}
	c := newCompiler(doc, opts, g)
	m, origins, findings := c.run()
	if m != nil {
		k.keep(c, m, opts)
	}
	return m, origins, findings
}

// keep remembers a compilation that succeeded.
func (k *Cache) keep(c *compiler, m *mesh.Mesh, opts Options) {
	c.last, c.changed = nil, nil
	k.last, k.mesh, k.opts = c, m, opts
}

// changed are the namespaces that must be compiled anew; false: all of them.
func (k *Cache) changed(doc *v1alpha1.Document, opts Options) (map[string]bool, bool) {
	if k.last == nil || opts.ProxyVersion != k.opts.ProxyVersion || len(doc.Unread) > 0 {
		return nil, false
	}
	old := k.last.doc
	if len(doc.Positions)+len(old.Positions) > 0 || // positions that are not told apart by namespace
		!samePlaces(doc.Places[""], old.Places[""]) || !reflect.DeepEqual(doc.Policy.Mesh, old.Policy.Mesh) ||
		!reflect.DeepEqual(doc.Policy.Invariants, old.Policy.Invariants) ||
		!opts.Now.Equal(k.opts.Now) && k.last.timed() {
		return nil, false
	}
	changed := map[string]bool{}
	for _, d := range []*v1alpha1.Document{doc, old} {
		p := &d.Policy
		for _, namespaces := range [][]string{keysOf(p.Namespaces), keysOf(p.Services), keysOf(p.Workloads), keysOf(p.Groups), keysOf(p.Egress), keysOf(d.Places)} {
			for _, ns := range namespaces {
				if _, judged := changed[ns]; !judged && ns != "" {
					changed[ns] = !sameNamespace(doc, old, ns)
				}
			}
		}
	}
	maps.DeleteFunc(changed, func(_ string, is bool) bool { return !is })
	for _, d := range []*v1alpha1.Document{doc, old} {
		for ns, n := range d.Policy.Namespaces {
			if len(n.Calls) > 0 && changed[ns] {
				return nil, false
			}
			for s := range n.Calls {
				if changed[mesh.ServiceName(s).Namespace()] {
					return nil, false
				}
			}
		}
	}
	return changed, true
}

func keysOf[V any](m map[string]V) []string { return slices.Collect(maps.Keys(m)) }

// sameNamespace reports whether two documents say the same of a namespace, at the same places.
func sameNamespace(a, b *v1alpha1.Document, ns string) bool {
	p, q := &a.Policy, &b.Policy
	return samePlaces(a.Places[ns], b.Places[ns]) && reflect.DeepEqual(p.Namespaces[ns], q.Namespaces[ns]) &&
		reflect.DeepEqual(p.Services[ns], q.Services[ns]) && reflect.DeepEqual(p.Workloads[ns], q.Workloads[ns]) &&
		reflect.DeepEqual(p.Groups[ns], q.Groups[ns]) && reflect.DeepEqual(p.Egress[ns], q.Egress[ns])
}

func samePlaces(a, b []*v1alpha1.Places) bool {
	return slices.EqualFunc(a, b, func(p, q *v1alpha1.Places) bool { return p == q || p.Equal(q) })
}

// timed reports whether what was compiled depends on when that was.
func (c *compiler) timed() bool {
	return slices.ContainsFunc(c.ordered, func(s *service) bool {
		return slices.ContainsFunc(s.in.Rules, func(r mesh.Rule) bool { return r.Until != time.Time{} })
	})
}

// reused is a service that was compiled before and is as it was, or nil.
func (c *compiler) reused(ns string, name mesh.ServiceName) *service {
	if c.last == nil || c.changed[ns] {
		return nil
	}
	return c.last.services[name]
}

// fresh are the services to compile, in order: all, where nothing is taken over.
func (c *compiler) fresh() []*service {
	if c.last == nil {
		return c.ordered
	}
	return slices.DeleteFunc(slices.Clone(c.ordered), func(s *service) bool { return !c.changed[s.name.Namespace()] })
}

// takeOver adds what is known of services that are not compiled anew: their warnings, the issuers that they name and
// where their rules stand. It reports false where another service's names, ports or identities changed, on which they may
// depend.
func (c *compiler) takeOver() bool {
	if len(c.ordered) != len(c.last.ordered) {
		return false
	}
	for i, s := range c.ordered {
		if !sameToOthers(s, c.last.ordered[i]) {
			return false
		}
	}
	c.origins = maps.Clone(c.last.origins)
	for _, s := range c.last.ordered {
		if c.changed[s.name.Namespace()] {
			c.forget(s)
			continue
		}
		c.findings = append(c.findings, s.warnings...)
		for i := range s.in.Rules {
			if t := s.in.Rules[i].JWT; t != nil && c.issuers[t.Issuer] != nil {
				c.issuers[t.Issuer].used = true
			}
		}
	}
	for ns := range c.changed {
		delete(c.origins, egressDefaultID(ns))
		for name := range c.last.doc.Policy.Egress[ns] {
			delete(c.origins, egressID(ns, name))
		}
	}
	for _, s := range c.fresh() { // whose declaration was noted before
		c.noteDeclaration(s)
	}
	return true
}

// forget deletes where the rules of a service stood.
func (c *compiler) forget(s *service) {
	delete(c.origins, string(s.name))
	for _, p := range s.in.Ports {
		delete(c.origins, p.DefaultID)
	}
	for i := range s.in.Rules {
		delete(c.origins, s.in.Rules[i].ID)
	}
	for i := range s.out.Routes {
		delete(c.origins, s.out.Routes[i].ID)
	}
}

// sameToOthers reports whether other services' policy sees no difference between two services.
func sameToOthers(a, b *service) bool {
	return a == b || a.name == b.name && slices.Equal(a.in.Identities, b.in.Identities) &&
		slices.EqualFunc(a.ports, b.ports, func(p, q *port) bool {
			return cmp.Or(strings.Compare(p.name, q.name), cmp.Compare(p.number, q.number), strings.Compare(string(p.protocol), string(q.protocol))) == 0
		})
}
