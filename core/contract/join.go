package contract

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
)

// SplitJoin reads an entry of the list of those to join: host:port or dns:host:port; without a port it is the usual one.
func SplitJoin(entry string) (host string, port uint16, err error) {
	s := strings.TrimPrefix(entry, "dns:")
	if at, err := netip.ParseAddrPort(s); err == nil && at.Port() > 0 {
		return at.Addr().Unmap().String(), at.Port(), nil
	}
	if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return ip.Unmap().String(), GossipPort, nil
	}
	host, digits, ok := strings.Cut(s, ":")
	port = GossipPort
	if ok {
		n, err := strconv.ParseUint(digits, 10, 16)
		if err != nil || n == 0 {
			return "", 0, errJoin
		}
		port = uint16(n)
	}
	if host == "" || len(host) > 253 || strings.ContainsFunc(host, func(r rune) bool {
		return r != '.' && r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) {
		return "", 0, errJoin
	}
	return host, port, nil
}

var errJoin = errors.New(`an agent to join is named by its gossip address, for example "10.0.0.5:7834" or "dns:apiary.lan"`)
