package gossip

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// Message types of memberlist's wire format.
const (
	wireCompress = 9
	wireEncrypt  = 10
	wireTypes    = 15
)

// seal encrypts like memberlist's version 1: version, nonce, AES-GCM.
func seal(key, plain, data []byte) []byte {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	nonce := make([]byte, gcm.NonceSize())
	for i := range nonce {
		nonce[i] = byte(rand.Uint32())
	}
	return append(append([]byte{1}, nonce...), gcm.Seal(nil, nonce, plain, data)...)
}

func garbage(rng *rand.Rand, most int) []byte {
	b := make([]byte, rng.IntN(most))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	if len(b) > 0 {
		b[0] = byte(rng.IntN(wireTypes))
	}
	return b
}

// TestHostileTraffic sends what strangers, and members that are mad, can send; nobody minds.
func TestHostileTraffic(t *testing.T) {
	a := start(t, 1, nil)
	b := start(t, 2, joining(a))
	eventually(t, "a cluster of two", func() bool { return a.state(2) == contract.MemberAlive && b.state(1) == contract.MemberAlive })
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	rng := rand.New(rand.NewPCG(1, 2))
	key := a.o.Keys.derive(a.o.Keys.keys[0])
	p, err := net.Dial("udp", a.at())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	stream := func(b []byte) {
		c, err := net.Dial("tcp", a.at())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		_, _ = c.Write(b)
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = c.Read(make([]byte, 64))
	}
	encrypted := func(plain []byte) []byte {
		size := uint32(1 + 12 + len(plain) + 16)
		head := binary.BigEndian.AppendUint32([]byte{wireEncrypt}, size)
		return append(head, seal(key, plain, head)...)
	}
	began := time.Now()
	until := began.Add(3 * time.Second)
	for n := 0; time.Now().Before(until); n++ {
		_, _ = p.Write(garbage(rng, 1500))
		_, _ = p.Write(seal(key, garbage(rng, 200), nil))
		_, _ = p.Write([]byte{0, 0, 0})
		if n%50 == 0 {
			stream(garbage(rng, 300))
			stream(encrypted(garbage(rng, 300)))
		}
		if n%20 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	for _, plain := range [][]byte{{}, {wireCompress}, {6}, {6, 0x83}, {0}, {wireEncrypt}, {6, 0x83, 0xa5, 'N', 'o', 'd', 'e', 's', 0xd3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}} {
		stream(encrypted(plain))
		_, _ = p.Write(seal(key, plain, nil))
	}
	stream(binary.BigEndian.AppendUint32([]byte{wireEncrypt}, 20<<20)) // claims 20 MB
	stream(binary.BigEndian.AppendUint32([]byte{wireEncrypt}, 1<<31))
	heard := a.heard(2)
	eventually(t, "beats flow", func() bool { return a.heard(2) > heard+2 })
	if a.state(2) != contract.MemberAlive || b.state(1) != contract.MemberAlive || len(a.Members()) != 2 {
		t.Errorf("the members have changed: %+v", a.Members())
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 50<<20 {
		t.Errorf("the heap has grown by %d MiB", grown>>20)
	}
	if n := strings.Count(a.log.String(), "msg=memberlist"); time.Duration(n) > time.Since(began)/complaintGap+2 {
		t.Errorf("%d lines about what memberlist complains of in %v", n, time.Since(began))
	}
	if n := strings.Count(a.log.String(), "cannot be read is dropped"); n > 2 {
		t.Errorf("%d lines about what cannot be read", n)
	}
}
