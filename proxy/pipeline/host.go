package pipeline

import (
	"strconv"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

// service is what lookups by name and by host find. Never written again once its Pipeline is built.
type service struct {
	name    mesh.ServiceName
	known   bool
	ports   []*Upstream
	unknown *Upstream // for a port that there is not
}

func (s *service) add(u *Upstream) {
	u.Service = s.name
	u.Authority = s.name.Host() + ":" + strconv.Itoa(int(u.PortNumber))
	s.ports = append(s.ports, u)
}

func (s *service) refuse(r *Refusal) {
	for _, u := range s.ports {
		u.State, u.Refusal = Refused, r
	}
	s.unknown = &Upstream{State: Refused, Service: s.name, Authority: s.name.Host(), Refusal: r}
}

func (s *service) port(name string) *Upstream {
	for _, u := range s.ports {
		if u.PortName == name {
			return u
		}
	}
	return nil
}

// only is the port that no port in an authority means: the only one of protocol http1, else the only one of protocol
// detect.
func (s *service) only() *Upstream {
	for _, want := range []mesh.Protocol{mesh.HTTP1, mesh.Detect} {
		var found *Upstream
		n := 0
		for _, u := range s.ports {
			if u.Protocol == want {
				found = u
				n++
			}
		}
		switch {
		case n == 1:
			return found
		case n > 1:
			return s.unknown
		}
	}
	return s.unknown
}

var (
	noConfig = &Upstream{State: NoConfig}
	unknown  = &Upstream{State: Unknown}
)

func (p *Pipeline) nothing() *Upstream {
	if p.TrustDomain == "" {
		return noConfig
	}
	return unknown
}

// ByName finds a port of a service by name, or by number in decimal.
func (p *Pipeline) ByName(n mesh.ServiceName, port string) *Upstream {
	s := p.services[n]
	if s == nil {
		return p.nothing()
	}
	if u := s.port(port); u != nil {
		return u
	}
	if number, ok := portNumber(port); ok {
		return s.byNumber(number)
	}
	return s.unknown
}

func (s *service) byNumber(number uint16) *Upstream {
	for _, u := range s.ports {
		if u.PortNumber == number {
			return u
		}
	}
	return s.unknown
}

// maxHost is the longest DNS name (RFC 1035, 2.3.4).
const maxHost = 253

// ByHost finds the upstream of an authority, "api.shop.mesh" or "api.shop.mesh:8080", in any case and with or without a
// trailing dot. Without a port it is the service's only HTTP port (the only one of protocol http1, else the only one of
// protocol detect). Anything that is no legal authority of the mesh is Unknown: an address, userinfo, an empty or
// oversized port, other characters than those of host names.
func (p *Pipeline) ByHost(authority []byte) *Upstream {
	var buf [maxHost]byte
	n := 0
	rest := authority
	for len(rest) > 0 && rest[0] != ':' {
		c := rest[0]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if n == len(buf) {
			if c == '.' && (len(rest) == 1 || rest[1] == ':') {
				rest = rest[1:] // the trailing dot of the longest name
				break
			}
			return p.nothing()
		}
		buf[n] = c
		n++
		rest = rest[1:]
	}
	if n > 0 && buf[n-1] == '.' {
		n--
	}
	s := p.hosts[string(buf[:n])] // has legal names only
	if s == nil {
		return p.nothing()
	}
	if len(rest) == 0 {
		return s.only()
	}
	number, ok := portNumber(rest[1:])
	if !ok {
		return unknown
	}
	return s.byNumber(number)
}

// portNumber reads 1 to 65535 in decimal, without leading zeros.
func portNumber[T string | []byte](s T) (uint16, bool) {
	if len(s) == 0 || len(s) > 5 || s[0] == '0' {
		return 0, false
	}
	n := 0
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int(s[i]-'0')
	}
	return uint16(n), n <= 65535
}

// legalHost reports whether a host name consists of DNS labels (RFC 1123) in lower case, three of them.
func legalHost(h string) bool {
	if len(h) > maxHost {
		return false
	}
	labels, start := 0, 0
	for i := 0; i <= len(h); i++ {
		if i < len(h) && h[i] != '.' {
			c := h[i]
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
			continue
		}
		l := h[start:i]
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return false
		}
		labels, start = labels+1, i+1
	}
	return labels == 3
}
