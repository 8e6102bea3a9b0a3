package placement

import (
	"strconv"
	"strings"
)

// Key names a replica of a deployment: the spawn key of its workers.
func Key(deployment string, replica int) string { return deployment + "#" + strconv.Itoa(replica) }

// ParseKey takes a key apart. ok is false for one that Key does not make.
func ParseKey(key string) (deployment string, replica int, ok bool) {
	i := strings.LastIndexByte(key, '#')
	if i <= 0 {
		return "", 0, false
	}
	n, err := strconv.Atoi(key[i+1:])
	if err != nil || n < 0 || Key(key[:i], n) != key {
		return "", 0, false
	}
	return key[:i], n, true
}

// Owner returns the queen that acts for a key: the one with the highest weight for it (rendezvous hashing, Thaler and
// Ravishankar 1998). When a queen comes or goes, only the keys that it owns then or owned before change hands. It is empty
// when there is no queen.
func Owner(key string, queens []string) string {
	best, weight := "", uint64(0)
	for _, q := range queens {
		if w := mix(key, q); best == "" || w > weight || w == weight && q < best {
			best, weight = q, w
		}
	}
	return best
}

// mix hashes two strings: FNV-1a, whose high bits know little of the last characters, and a finalizer that spreads them
// (SplitMix64, Steele, Lea and Flood 2014).
func mix(a, b string) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for _, s := range [2]string{a, b} {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * prime
		}
		h = (h ^ 0xff) * prime // no text ends another
	}
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
