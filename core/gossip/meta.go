package gossip

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"github.com/apiary-dev/apiary/core/contract"
)

// Self is what an agent tells the others of itself.
type Self struct {
	NodeID  string // of node.json
	Start   string // of this run; of two starts of a node the later one has the greater text, see NewStart
	Name    string // agent.name
	Version string
	Queen   string // base URL; "": no queen
	Hive    string // base URL; "": no hive
}

// metadata is the wire form. Unknown fields are ignored, so that newer agents may add some.
type metadata struct {
	Version int      `json:"v"` // of this form
	Name    string   `json:"n"`
	Release string   `json:"r"`
	Queen   string   `json:"q,omitempty"`
	Hive    string   `json:"h,omitempty"`
	Leaving bool     `json:"l,omitempty"`
	Keys    []string `json:"k,omitempty"` // fingerprints of the keys that it accepts, the one that it uses first
}

const (
	metaVersion = 1
	maxMeta     = 512 // memberlist's bound
	maxURL      = 128
	maxRelease  = 48
)

var (
	nodePattern  = regexp.MustCompile(`^([a-z0-9]{12})\.([0-9a-v]{13})$`)
	namePattern  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	printPattern = regexp.MustCompile(`^[0-9a-f]{8}$`)
)

func (s Self) meta(leaving bool, keys []string) metadata {
	release := s.Version
	if len(release) > maxRelease {
		release = release[:maxRelease]
	}
	return metadata{Version: metaVersion, Name: s.Name, Release: release, Queen: s.Queen, Hive: s.Hive, Leaving: leaving, Keys: keys}
}

func (s Self) check() error {
	if _, _, err := splitName(s.NodeID + "." + s.Start); err != nil {
		return err
	}
	return s.meta(false, nil).check()
}

// encode gives at most maxMeta bytes: everything in a checked form is bounded.
func (m metadata) encode() []byte {
	b, err := json.Marshal(m)
	if err != nil || len(b) > maxMeta {
		m.Keys, m.Release = nil, ""
		b, _ = json.Marshal(m)
	}
	return b
}

// decodeMeta reads what another agent tells of itself.
func decodeMeta(b []byte) (metadata, error) {
	var m metadata
	if len(b) > maxMeta {
		return m, errors.New("its metadata is too long")
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, errors.New("its metadata is not JSON of the form that is known here")
	}
	return m, m.check()
}

// check refuses what no agent can say of itself.
func (m metadata) check() error {
	switch {
	case m.Version != metaVersion:
		return fmt.Errorf("its metadata has version %d, and this agent reads version %d", m.Version, metaVersion)
	case !namePattern.MatchString(m.Name):
		return fmt.Errorf("%.80q is not the name of an agent", m.Name)
	case len(m.Release) > maxRelease || contract.HasHidden(m.Release):
		return errors.New("its version is too long or holds control characters")
	case len(m.Keys) > maxKeys:
		return errors.New("it has too many keys")
	}
	for _, k := range m.Keys {
		if !printPattern.MatchString(k) {
			return errors.New("the fingerprint of one of its keys is none")
		}
	}
	for _, base := range []string{m.Queen, m.Hive} {
		if base != "" {
			if err := checkBase(base); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkBase wants scheme, host and port and nothing else, and a host that can be connected to.
func checkBase(base string) error {
	u, err := url.Parse(base)
	if err != nil || len(base) > maxURL || contract.HasHidden(base) || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" ||
		u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%.150q is not the base URL of an agent", base)
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil && (ip.IsUnspecified() || ip.IsMulticast()) {
		return fmt.Errorf("%.150q has an address that nobody can connect to", base)
	}
	return nil
}

// checkPlace refuses a member whose addresses do not go together: one that gossips from another machine must not have its
// callers go to their own.
func (m metadata) checkPlace(at netip.Addr) error {
	if at = at.Unmap(); !at.IsValid() || at.IsUnspecified() || at.IsMulticast() {
		return errors.New("its address is none that can be connected to")
	}
	for _, base := range []string{m.Queen, m.Hive} {
		if base != "" && !at.IsLoopback() && isLoopbackURL(base) {
			return fmt.Errorf("it says that it is reached at %s, which means every machine's own; set queen.listen, hive.listen or agent.advertise there", base)
		}
	}
	return nil
}

func isLoopbackURL(base string) bool {
	u, err := url.Parse(base)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return err == nil && ip.Unmap().IsLoopback() || strings.EqualFold(u.Hostname(), "localhost")
}

// splitName splits a member's name into node id and start.
func splitName(name string) (id, start string, err error) {
	m := nodePattern.FindStringSubmatch(name)
	if m == nil {
		return "", "", fmt.Errorf("%.80q is not the name of a member: it must be a node id of 12 characters, a dot and a start of 13", name)
	}
	return m[1], m[2], nil
}
