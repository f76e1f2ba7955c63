package compile

import (
	"fmt"
	"maps"
	"slices"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// compileInvariants compiles what must hold of the mesh: sorted by name. Whether it does is proved elsewhere.
func (c *compiler) compileInvariants() (out []mesh.Invariant) {
	for _, name := range slices.Sorted(maps.Keys(c.doc.Policy.Invariants)) {
		src := c.doc.Policy.Invariants[name]
		at := path("invariants").at(name)
		inv := mesh.Invariant{Name: name, ID: "invariants/" + name}
		c.origins[inv.ID] = c.pos(at)
		n := 0
		for _, set := range []bool{src.Never != nil, src.Only != nil, src.Always != ""} {
			if set {
				n++
			}
		}
		if n != 1 {
			c.find(diag.EmptyInvariant, at, fmt.Sprintf("an invariant is exactly one of never, always, only; %d are set", n),
				"write an invariant for each")
			continue
		}
		if src.To != nil && src.Always == "" {
			c.find(diag.WrongValue, at.at("to"), "to stands beside always; never and only have a to of their own", "move it into the flow")
			continue
		}
		switch {
		case src.Never != nil:
			inv.Never = c.flow(at.at("never"), src.Never)
		case src.Only != nil:
			inv.Only = c.flow(at.at("only"), src.Only)
			if src.Only.From.Anyone {
				c.find(diag.EmptyInvariant, at.at("only", "from", "anyone"), "nobody but anyone: the invariant always holds", "name who is meant, or delete it")
			}
		case src.Always != "mtls":
			c.find(diag.WrongValue, at.at("always"), fmt.Sprintf("%q is nothing that can always hold", src.Always), `write always: "mtls"`)
		default:
			inv.AlwaysMTLS = &mesh.Target{}
			if src.To != nil {
				c.target(at.at("to"), src.To, inv.AlwaysMTLS)
				if len(src.To.Methods)+len(src.To.Paths) > 0 {
					c.find(diag.WrongValue, at.at("to"), "encryption is of connections, whatever is asked in them", "leave methods and paths out")
				}
			}
		}
		out = append(out, inv)
	}
	return out
}

// flow compiles a set of calls.
func (c *compiler) flow(at path, src *v1alpha1.Flow) *mesh.Flow {
	f := &mesh.Flow{}
	c.caller(at.at("from"), &src.From, f)
	c.target(at.at("to"), &src.To, &f.To)
	return f
}

// caller compiles a set of callers.
func (c *compiler) caller(at path, src *v1alpha1.Caller, to *mesh.Flow) {
	services := src.Services != nil || c.empty(at.at("services"), len(src.Services), src.Services == nil)
	n := 0
	for _, set := range []bool{src.Namespace != "", src.Service != "", services, src.Identity != "", src.Authenticated, src.Unauthenticated, src.Anyone} {
		if set {
			n++
		}
	}
	if n != 1 {
		c.find(diag.EmptyInvariant, at,
			fmt.Sprintf("callers are exactly one of namespace, service, services, identity, authenticated, unauthenticated, anyone; %d are set", n),
			`write it as in from: {namespace: "dev"}`)
		return
	}
	switch {
	case src.Namespace != "":
		if c.namespace(at.at("namespace"), string(src.Namespace)) {
			to.From = c.peersIn(string(src.Namespace))
		}
	case src.Service != "", services:
		names, _ := c.invariantServices(at, src.Service, src.Services)
		for _, name := range names {
			to.From = append(to.From, c.peersOf(c.services[name])...)
		}
		to.From = sortPeers(to.From)
	case src.Identity != "":
		if c.identity(at.at("identity"), src.Identity) {
			to.From = []mesh.Peer{{Identity: string(src.Identity)}}
		}
	case src.Anyone:
		to.Anyone = true
	default:
		to.From = []mesh.Peer{{Authenticated: src.Authenticated, Unauthenticated: src.Unauthenticated}}
	}
}

// invariantServices resolves one service or several, sorted; the second result is false where one could not be.
func (c *compiler) invariantServices(at path, one v1alpha1.ServiceName, several []v1alpha1.ServiceName) (out []mesh.ServiceName, all bool) {
	if one != "" {
		if s := c.lookup(at.at("service"), one); s != nil {
			return []mesh.ServiceName{s.name}, true
		}
		return nil, false
	}
	at, all = at.at("services"), true
	if len(several) == 0 {
		c.find(diag.EmptyInvariant, at, "an empty list of services is about nothing", "name one, or delete the invariant")
	}
	for i, n := range several {
		switch s := c.lookup(at.index(i), n); {
		case s == nil:
			all = false
		case slices.Contains(out, s.name):
			c.duplicate(at, i, slices.Index(several, n), fmt.Sprintf("service %q", n))
		default:
			out = append(out, s.name)
		}
	}
	slices.Sort(out)
	return out, all
}

// target compiles a set of requests.
func (c *compiler) target(at path, src *v1alpha1.Target, to *mesh.Target) {
	several := src.Services != nil || c.empty(at.at("services"), len(src.Services), src.Services == nil)
	n := 0
	for _, set := range []bool{src.Namespace != "", src.Service != "", several} {
		if set {
			n++
		}
	}
	if n != 1 {
		c.find(diag.EmptyInvariant, at, fmt.Sprintf("destinations are exactly one of namespace, service, services; %d are set", n),
			`write it as in to: {namespace: "pci"}`)
		return
	}
	var about []*service
	whole := true // nothing that it is about could not be read
	if src.Namespace != "" {
		ns := string(src.Namespace)
		if !c.namespace(at.at("namespace"), ns) {
			return
		}
		to.Namespace = ns
		for _, name := range slices.Sorted(maps.Keys(c.doc.Policy.Services[ns])) {
			about = append(about, c.services[mesh.Name(ns, name)])
		}
		whole = !slices.ContainsFunc(c.doc.Unread, func(u string) bool { return mesh.ServiceName(u).Namespace() == ns })
		if len(about) == 0 && whole {
			c.find(diag.EmptyInvariant, at.at("namespace"), fmt.Sprintf("namespace %q has no services", ns), "name one that has, or delete the invariant")
			return
		}
	} else {
		to.Services, whole = c.invariantServices(at, src.Service, src.Services)
		for _, name := range to.Services {
			about = append(about, c.services[name])
		}
	}
	to.Ports = c.targetPorts(at.at("ports"), src.Ports, about, whole)
	to.Methods = c.ruleMethods(at.at("methods"), src.Methods)
	to.Paths = c.rulePaths(at.at("paths"), src.Paths)
	if len(src.Methods)+len(src.Paths) == 0 || !whole || len(about) == 0 {
		return
	}
	if !slices.ContainsFunc(about, func(s *service) bool { return len(s.portNames((*port).http)) > 0 }) {
		field := "methods"
		if len(src.Methods) == 0 {
			field = "paths"
		}
		c.find(diag.EmptyInvariant, at.at(field), "the invariant is about requests, and nothing that it is about speaks HTTP",
			"leave methods and paths out to speak of connections")
	}
}

// targetPorts resolves names of ports, each of which one of the services must have.
func (c *compiler) targetPorts(at path, src []string, about []*service, whole bool) (out []string) {
	c.nonEmpty(at, len(src), src == nil, "ports")
	var known []string
	for _, s := range about {
		known = append(known, s.portNames(nil)...)
	}
	known = set(known)
	for i, n := range src {
		switch {
		case slices.Contains(out, n):
			c.duplicate(at, i, slices.Index(src, n), fmt.Sprintf("port %q", n))
		case whole && len(about) > 0 && !slices.Contains(known, n):
			c.find(diag.UnknownPort, at.index(i), fmt.Sprintf("none of the services has a port named %q", n),
				nameHint(n, known, "the services declare no ports"))
		default:
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}
