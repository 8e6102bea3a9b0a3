package trust

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Roles of nodes in certificates and tokens.
const (
	RoleHive  = "hive"
	RoleQueen = "queen"
)

// roleIssuer is what the certificate of an issuing CA has in the place of a role.
const roleIssuer = "issuer"

const uriScheme = "apiary"

var (
	nodeIDForm  = regexp.MustCompile(`^[a-z0-9]{12}$`)
	nameForm    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	clusterForm = regexp.MustCompile(`^[0-9a-f]{32}$`)
	hex64Form   = regexp.MustCompile(`^[0-9a-f]{64}$`) // hashes and keys
	hostForm    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)
)

// Fingerprint is the SHA-256 of a certificate.
func Fingerprint(cert *x509.Certificate) [32]byte { return sha256.Sum256(cert.Raw) }

// ClusterID is the id of the cluster whose root is cert: the first half of its fingerprint in hex.
func ClusterID(root *x509.Certificate) string {
	f := Fingerprint(root)
	return hex.EncodeToString(f[:16])
}

// keyHash names the public key of a certificate: the SHA-256 of its SubjectPublicKeyInfo in hex.
func keyHash(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// nodeURI is the URI that gives a node a role.
func nodeURI(cluster, role, nodeID string) *url.URL {
	return &url.URL{Scheme: uriScheme, Host: cluster, Path: "/" + role + "/" + nodeID}
}

// checkRoles returns the roles sorted, or an error where they are not one or two different known ones.
func checkRoles(roles []string) ([]string, error) {
	out := slices.Clone(roles)
	slices.Sort(out)
	if len(out) == 0 || len(slices.Compact(slices.Clone(out))) != len(out) {
		return nil, errors.New("the roles of a node are hive, queen, or both")
	}
	for _, r := range out {
		if r != RoleHive && r != RoleQueen {
			return nil, errors.New("the roles of a node are hive, queen, or both")
		}
	}
	return out, nil
}

// identityOf reads the URIs of a certificate: all must be of one node in this cluster, each with another role, and there is no other
// spelling of any.
func identityOf(cert *x509.Certificate, cluster string) (nodeID string, roles []string, err error) {
	if len(cert.URIs) == 0 || len(cert.URIs) > 2 || len(cert.EmailAddresses) > 0 {
		return "", nil, denied(CodeBad, "The certificate does not name a node of Apiary.")
	}
	for _, u := range cert.URIs {
		parts := strings.Split(u.Path, "/")
		if len(parts) != 3 || !clusterForm.MatchString(u.Host) || !nodeIDForm.MatchString(parts[2]) || u.String() != nodeURI(u.Host, parts[1], parts[2]).String() {
			return "", nil, denied(CodeBad, "The certificate has a name that is not one of a node of Apiary.")
		}
		if u.Host != cluster {
			return "", nil, denied(CodeWrongCluster, "The certificate is of another cluster (%s, this one is %s).", u.Host, cluster)
		}
		if nodeID != "" && nodeID != parts[2] {
			return "", nil, denied(CodeBad, "The certificate names more than one node.")
		}
		nodeID = parts[2]
		roles = append(roles, parts[1])
	}
	if cert.IsCA {
		if !slices.Equal(roles, []string{roleIssuer}) {
			return "", nil, denied(CodeBad, "The certificate of a CA names a node that is none.")
		}
		return nodeID, nil, nil
	}
	if roles, err = checkRoles(roles); err != nil {
		return "", nil, denied(CodeBad, "The certificate names a role that does not exist, or one twice.")
	}
	return nodeID, roles, nil
}

// maxAddresses bounds the addresses that a request names.
const maxAddresses = 16

// parseAddresses reads hosts without ports, as IP addresses and as names in lower case. Zones, and addresses that are nobody's, are
// refused.
func parseAddresses(list []string) (ips []netip.Addr, names []string, err error) {
	if len(list) > maxAddresses {
		return nil, nil, errors.New("there are too many addresses")
	}
	for _, a := range list {
		if ip, err := netip.ParseAddr(a); err == nil {
			ip = ip.Unmap()
			if ip.Zone() != "" || ip.IsUnspecified() || ip.IsMulticast() {
				return nil, nil, errors.New("an address of a node is one at which others can reach it, without a zone")
			}
			if !slices.Contains(ips, ip) {
				ips = append(ips, ip)
			}
			continue
		}
		// A name whose last part is digits would be an IP address to some readers.
		last := a[strings.LastIndexByte(a, '.')+1:]
		if len(a) > 253 || !hostForm.MatchString(a) || strings.Trim(last, "0123456789") == "" {
			return nil, nil, errors.New("an address of a node is an IP address or the name of a host, without a port")
		}
		if a = strings.ToLower(a); !slices.Contains(names, a) {
			names = append(names, a)
		}
	}
	return ips, names, nil
}
