package reach

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// dimKind is what a dimension is about, as a reader calls it.
type dimKind string

const (
	dimTime   dimKind = "time"
	dimAddr   dimKind = "address"
	dimSNI    dimKind = "server name"
	dimToken  dimKind = "token"
	dimClaim  dimKind = "claim"
	dimHeader dimKind = "header"
	dimQuery  dimKind = "parameter"
)

// raw reports whether a connection in which no request is seen has it too.
func (k dimKind) raw() bool { return k == dimTime || k == dimAddr || k == dimSNI }

// value stands for all values of a dimension that no condition tells apart.
type value struct {
	there bool // whether there is such a header, parameter, token or claim
	text  string
	list  []string
	addr  netip.Addr
	at    time.Time
}

// dim is a dimension: a finite set of values that every value has its like in.
type dim struct {
	kind   dimKind
	name   string
	issuer string
	token  int // the dimension of the claim's token; -1: none
	vals   []value
	index  map[string]int // by what the conditions say of a value
	sign   func(value) string
}

// put adds a value unless it has its like already.
func (d *dim) put(v value) {
	k := d.sign(v)
	if _, ok := d.index[k]; !ok {
		d.index[k] = len(d.vals)
		d.vals = append(d.vals, v)
	}
}

// keyOf is what the conditions say of a call's value.
func (d *dim) keyOf(c *decide.Call) string {
	v := value{there: true}
	switch d.kind {
	case dimTime:
		v.at = c.Now
	case dimAddr:
		v.addr = c.Addr.Unmap().WithZone("")
	case dimSNI:
		v.text = c.SNI
	case dimHeader:
		v.text, v.there = "", false
		if c.Header != nil {
			v.text, v.there = c.Header(d.name)
		}
	case dimQuery:
		v.text, v.there = "", false
		if c.Query != nil {
			v.text, v.there = c.Query(d.name)
		}
	case dimToken:
		v.there = false
		if c.Claim != nil {
			_, v.there = c.Claim(d.issuer, "")
		}
	case dimClaim:
		v.there = false
		if c.Claim != nil {
			v.list, v.there = c.Claim(d.issuer, d.name)
		}
	}
	return d.sign(v)
}

// bitsOf is a signature: which of n conditions hold.
func bitsOf(n int, holds func(int) bool) string {
	b := make([]byte, n)
	for i := range n {
		b[i] = '0'
		if holds(i) {
			b[i] = '1'
		}
	}
	return string(b)
}

func (s *Space) cutMethods() {
	var named []string
	for i := range s.conds {
		named = append(named, s.conds[i].methods...)
	}
	if asked := len(named); !s.spend(asked * asked / 8) {
		return
	}
	slices.Sort(named)
	s.methods = slices.Compact(named)
	for _, m := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "LINK", "UNLINK"} {
		if !slices.Contains(s.methods, m) {
			named = append(s.methods, m)
			break
		}
	}
	if len(named) == len(s.methods) { // all of those are named
		fresh := "X"
		for slices.Contains(s.methods, fresh) {
			fresh += "X"
		}
		named = append(s.methods, fresh)
	}
	s.methods = named
	s.other = len(s.methods) - 1
	for j, m := range s.methods {
		b := newSet(len(s.conds))
		for i := range s.conds {
			if ms := s.conds[i].methods; len(ms) == 0 || j != s.other && slices.Contains(ms, m) {
				b.add(i)
			}
		}
		s.methBits = append(s.methBits, b)
	}
}

// cutRest makes the dimensions that conditions name.
func (s *Space) cutRest(g *gatherer, now time.Time) {
	ends := []time.Time{}
	prefixes := map[netip.Prefix]bool{}
	snis := map[string]bool{}
	headers, queries, lists := map[string][]mesh.HeaderMatch{}, map[string][]mesh.HeaderMatch{}, map[string][]mesh.HeaderMatch{}
	claims := map[string]map[string][][]string{}
	for i := range s.conds {
		c := &s.conds[i]
		if c.until.After(now) {
			ends = append(ends, c.until)
		}
		for _, p := range c.networks {
			prefixes[p] = true
		}
		for _, n := range c.sni {
			snis[n] = true
		}
		for _, h := range c.headers {
			headers[h.Name] = append(headers[h.Name], h)
			if c.lists && !h.Present && !strings.HasPrefix(h.Name, "\x00") { // which only stands for an expression
				lists[h.Name] = append(lists[h.Name], h)
			}
		}
		for _, h := range c.query {
			queries[h.Name] = append(queries[h.Name], h)
		}
		if c.jwt != nil {
			if claims[c.jwt.Issuer] == nil {
				claims[c.jwt.Issuer] = map[string][][]string{}
			}
			for _, m := range c.jwt.Claims {
				claims[c.jwt.Issuer][m.Name] = append(claims[c.jwt.Issuer][m.Name], m.Values)
			}
		}
	}
	if !s.spend((len(ends)*len(ends) + 3*len(prefixes)*len(prefixes) + len(snis)*len(snis)) / 8) {
		return
	}
	for _, named := range []map[string][]mesh.HeaderMatch{headers, queries} {
		for _, list := range named {
			values := 0
			for i := range list {
				values += 1 + len(list[i].OneOf)
			}
			if !s.spend(values * (values + len(list)) / 8) {
				return
			}
		}
	}
	s.addDim(timeDim(now, ends))
	if len(prefixes) > 0 {
		s.addDim(addrDim(prefixes))
	}
	if len(snis) > 0 {
		s.addDim(sniDim(sortedKeys(snis)))
	}
	for _, issuer := range sortedKeys(claims) {
		d := dim{kind: dimToken, issuer: issuer, token: -1, sign: func(v value) string { return bitsOf(1, func(int) bool { return v.there }) }}
		at := s.addDim(d, value{}, value{there: true})
		for _, name := range sortedKeys(claims[issuer]) {
			d, ok := claimDim(issuer, name, claims[issuer][name], at)
			s.overflow = s.overflow || !ok
			s.addDim(d)
		}
	}
	for _, name := range sortedKeys(headers) {
		d, ok := fieldDim(dimHeader, name, headers[name], lists[name], g.added[name])
		s.overflow = s.overflow || !ok
		s.addDim(d)
	}
	for _, name := range sortedKeys(queries) {
		d, _ := fieldDim(dimQuery, name, queries[name], nil, nil)
		s.addDim(d)
	}
	// Which dimensions each condition looks at.
	for i := range s.conds {
		c := &s.conds[i]
		c.dims = newSet(len(s.dims))
		look := func(kind dimKind, name string) {
			if at, ok := s.slot(kind, name); ok {
				c.dims.add(at)
			}
		}
		if c.until.After(now) {
			look(dimTime, "")
		}
		if len(c.networks) > 0 {
			look(dimAddr, "")
		}
		if len(c.sni) > 0 {
			look(dimSNI, "")
		}
		for _, h := range c.headers {
			look(dimHeader, h.Name)
		}
		for _, h := range c.query {
			look(dimQuery, h.Name)
		}
		if c.jwt != nil {
			look(dimToken, c.jwt.Issuer)
			for _, m := range c.jwt.Claims {
				look(dimClaim, c.jwt.Issuer+"\x00"+m.Name)
			}
		}
	}
}

func (s *Space) addDim(d dim, vals ...value) int {
	if d.index == nil {
		d.index = map[string]int{}
	}
	for _, v := range vals {
		d.put(v)
	}
	name := d.name
	switch d.kind {
	case dimToken:
		name = d.issuer
	case dimClaim:
		name = d.issuer + "\x00" + d.name
	}
	s.slots[string(d.kind)+"\x00"+name] = len(s.dims)
	s.dims = append(s.dims, d)
	return len(s.dims) - 1
}

// timeDim has the present and the end of each rule, from which on it is as if it were not there.
func timeDim(now time.Time, ends []time.Time) dim {
	slices.SortFunc(ends, time.Time.Compare)
	ends = slices.CompactFunc(ends, time.Time.Equal)
	d := dim{kind: dimTime, token: -1, index: map[string]int{}}
	d.sign = func(v value) string { return bitsOf(len(ends), func(i int) bool { return !v.at.Before(ends[i]) }) }
	d.put(value{there: true, at: now})
	for _, t := range ends {
		d.put(value{there: true, at: t})
	}
	return d
}

// addrDim has an address for each way to lie in and out of some networks. Such a region begins where a network begins,
// or behind one's end; the first of the addresses outside of all is of those kept for documentation (RFC 5737, RFC 3849).
func addrDim(prefixes map[netip.Prefix]bool) dim {
	list := make([]netip.Prefix, 0, len(prefixes))
	for p := range prefixes {
		list = append(list, p.Masked())
	}
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	d := dim{kind: dimAddr, token: -1, index: map[string]int{}}
	d.sign = func(v value) string {
		if !v.addr.IsValid() {
			return "-"
		}
		return bitsOf(len(list), func(i int) bool { return list[i].Contains(v.addr) })
	}
	put := func(a netip.Addr) {
		if a.IsValid() {
			d.put(value{there: true, addr: a})
		}
	}
	for _, a := range []string{"192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1"} {
		put(netip.MustParseAddr(a))
	}
	for _, p := range list {
		put(p.Addr().Next()) // a host of it rather than the network's own address
		put(p.Addr())
		put(Last(p).Next())
	}
	put(netip.IPv4Unspecified())
	put(netip.IPv6Unspecified())
	return d
}

// Last is the last address of a network.
func Last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func sniDim(patterns []string) dim {
	d := dim{kind: dimSNI, token: -1, index: map[string]int{}}
	d.sign = func(v value) string {
		if v.text == "" {
			return "-"
		}
		return bitsOf(len(patterns), func(i int) bool { return decide.HostMatches(patterns[i], v.text) })
	}
	d.put(value{there: true})
	for _, p := range patterns {
		if suffix, ok := strings.CutPrefix(p, "*."); ok {
			fresh := "x"
			for slices.Contains(patterns, fresh+"."+suffix) {
				fresh += "x"
			}
			d.put(value{there: true, text: fresh + "." + suffix})
		} else {
			d.put(value{there: true, text: p})
		}
	}
	fresh := "x.invalid"
	for slices.ContainsFunc(patterns, func(p string) bool { return decide.HostMatches(p, fresh) }) {
		fresh = "x" + fresh
		if len(fresh) > 64 { // "*." and a suffix of all of those: then there is no other name of this kind
			break
		}
	}
	d.put(value{there: true, text: fresh})
	d.put(value{there: true, text: "x"})
	return d
}

// fieldDim has the values of a header, or of a parameter, that conditions tell apart: each that one names, another, none.
// lists are the conditions that may be meant by one of several values, so that each union of values is one too. added are
// values that filters put behind it. It reports whether there are few enough to try them all.
func fieldDim(kind dimKind, name string, matches, lists []mesh.HeaderMatch, added []string) (dim, bool) {
	matches, lists = distinct(matches), distinct(lists)
	var texts []string
	for _, m := range matches {
		switch {
		case m.Present:
		case len(m.OneOf) > 0:
			texts = append(texts, m.OneOf...)
		case m.Regex != "":
			texts = append(texts, samples(m.Regex)...)
		default:
			texts = append(texts, m.Exact)
		}
	}
	for range added { // values that become one that is asked for once a filter has added to them, as often as it may
		for _, t := range slices.Clone(texts) {
			for _, a := range added {
				if head, ok := strings.CutSuffix(t, ","+a); ok && !slices.Contains(texts, head) {
					texts = append(texts, head)
				}
			}
		}
	}
	d := dim{kind: kind, name: name, token: -1, index: map[string]int{}}
	exact := len(added) > 0
	d.sign = func(v value) string {
		switch {
		case !v.there:
			return "-"
		case exact && slices.Contains(texts, v.text):
			return "=" + v.text
		}
		return bitsOf(len(matches), func(i int) bool { return decide.ValueMatches(&matches[i], v.text) }) +
			bitsOf(len(lists), func(i int) bool { return decide.ValueMayMatch(&lists[i], v.text) })
	}
	if !strings.HasPrefix(name, atomPath) { // a path is never missing
		d.put(value{})
	}
	fresh := "x"
	for slices.Contains(texts, fresh) || slices.ContainsFunc(matches, func(m mesh.HeaderMatch) bool { return m.Exact == fresh }) {
		fresh += "x"
	}
	d.put(value{there: true, text: fresh})
	for _, t := range texts {
		d.put(value{there: true, text: t})
	}
	beside := len(d.vals)
	for _, m := range lists {
		for _, t := range slices.Concat(m.OneOf, []string{m.Exact}) {
			if t != "" {
				d.put(value{there: true, text: t + "," + fresh})
			}
		}
	}
	for i := beside; i < len(d.vals); i++ {
		for j := beside; j < i; j++ {
			if len(d.vals) > mostClaims {
				return d, false
			}
			d.put(value{there: true, text: d.vals[i].text + "," + d.vals[j].text})
		}
	}
	return d, true
}

// distinct leaves out repetitions.
func distinct(matches []mesh.HeaderMatch) (out []mesh.HeaderMatch) {
	seen := map[string]bool{}
	for _, m := range matches {
		b, _ := json.Marshal(m)
		if !seen[string(b)] {
			out = append(out, m)
		}
		seen[string(b)] = true
	}
	return out
}

// mostClaims bounds the sets of values that one claim, or one header, is tried with.
const mostClaims = 512

// claimDim has the lists of values of a claim that conditions tell apart. A claim may hold several values, so each union
// of lists is one too.
func claimDim(issuer, name string, wants [][]string, token int) (dim, bool) {
	d := dim{kind: dimClaim, issuer: issuer, name: name, token: token, index: map[string]int{}}
	d.sign = func(v value) string {
		if !v.there {
			return "-"
		}
		return bitsOf(len(wants), func(i int) bool {
			return slices.ContainsFunc(v.list, func(s string) bool { return slices.Contains(wants[i], s) })
		})
	}
	d.put(value{})
	all := slices.Concat(wants...)
	slices.Sort(all)
	all = slices.Compact(all)
	fresh := "x"
	for slices.Contains(all, fresh) {
		fresh += "x"
	}
	d.put(value{there: true, list: []string{fresh}})
	for _, s := range all {
		d.put(value{there: true, list: []string{s}})
	}
	for i := 2; i < len(d.vals); i++ {
		for j := 2; j < i; j++ {
			if len(d.vals) > mostClaims {
				return d, false
			}
			d.put(value{there: true, list: slices.Concat(d.vals[i].list, d.vals[j].list)})
		}
	}
	return d, true
}
