package proxy

import (
	"net"
	"net/netip"

	"github.com/heddle-mesh/heddle/proxy/l4"
)

// Own is the sidecar's own listeners. Where one of them is taken for the application, every request would come in again,
// until there are no descriptors left; it is refused as a loop instead (decisions.md, 18).
type Own []netip.AddrPort

// reached reports whether a connection that was dialled ended at one of them. The address alone does not say: an
// application on another host may have the port that a listener has on every address of this one.
func (o Own) reached(c *l4.Conn) bool {
	to, from := addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())
	if !to.Addr().IsLoopback() && to.Addr() != from.Addr() { // the kernel answers for itself from the address that was asked
		return false
	}
	return o.at(to)
}

// at reports whether one of them takes what is sent to a local address.
func (o Own) at(to netip.AddrPort) bool {
	for _, l := range o {
		if l.Port() == to.Port() && (l.Addr() == to.Addr() || l.Addr().IsUnspecified()) {
			return true
		}
	}
	return false
}

// named is reached for an address as an operator writes it, as far as that shows without asking a name server.
func (o Own) named(hostport string) bool {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return false
	}
	n, err := net.LookupPort("tcp", port)
	if err != nil {
		return false
	}
	v4, v6 := netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()
	var ips []netip.Addr
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip = ip.Unmap(); ip.IsUnspecified() { // to dial it is to dial this host
			ips = []netip.Addr{v4, v6}
		} else if ip.IsLoopback() || local(ip) {
			ips = []netip.Addr{ip}
		}
	} else if host == "localhost" {
		ips = []netip.Addr{v4, v6}
	}
	for _, ip := range ips {
		if o.at(netip.AddrPortFrom(ip, uint16(n))) {
			return true
		}
	}
	return false
}

// local reports whether an address is one of this host's.
func local(ip netip.Addr) bool {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap().WithZone("") == ip.WithZone("") {
			return true
		}
	}
	return false
}

func addrPort(a net.Addr) netip.AddrPort {
	p := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}
