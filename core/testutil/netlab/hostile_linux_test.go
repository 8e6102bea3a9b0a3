package netlab

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/secret"
)

// sealer encrypts as memberlist's version 1 does, with the lab's keys.
func sealer(t *testing.T) func(plain, data []byte) []byte {
	key, err := hex.DecodeString(secret.Derive(secret.Secret(strings.Repeat("ab", 32)), "gossip:"+strings.Repeat("k", 40)).Reveal())
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return func(plain, data []byte) []byte {
		nonce := make([]byte, gcm.NonceSize())
		binary.LittleEndian.PutUint64(nonce, rand.Uint64())
		return append(append([]byte{1}, nonce...), gcm.Seal(nil, nonce, plain, data)...)
	}
}

// TestHostileGossip is T68: 10,000 packets and streams a second for 20 s, of strangers and of somebody who has the key.
func TestHostileGossip(t *testing.T) {
	l := newLab(t)
	q, h, from := l.machine(1, both, ""), l.machine(2, hive, ""), l.machine(3, hive, "")
	q.start()
	h.start(1)
	within(t, 30*time.Second, "two hives are alive", func() bool { return q.alive() == 2 })
	time.Sleep(5 * time.Second)
	seal := sealer(t)
	rng := rand.New(rand.NewPCG(6, 8))
	random := func(most int) []byte {
		b := make([]byte, 1+rng.IntN(most))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		b[0] = byte(rng.IntN(16)) // a type of memberlist, mostly
		return b
	}
	special := [][]byte{{}, {9}, {6}, {6, 0x83}, {0}, {10}, {7, 0xff}, {4, 0x81, 0xa3, 'V', 's', 'n', 0x91, 1}, {6, 0x81, 0xa5, 'N', 'o', 'd', 'e', 's', 0xd3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	for _, with := range []string{"without the key", "with the key"} {
		t.Run("T68 "+with, func(t *testing.T) {
			packet := func() []byte {
				if rng.IntN(10) == 0 {
					return special[rng.IntN(len(special))]
				}
				return random(600)
			}
			udp, err := from.dial(context.Background(), "udp", q.ip+":7834")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = udp.Close() }()
			lines, memory, used := q.lines(""), resident(q.pid()), cpu(q.pid())
			most, sent, begin := memory, 0, time.Now()
			seen := q.watch(func() {
				for tick := 0; time.Since(begin) < 20*time.Second; tick++ { // of 10 ms, with 100 each
					for range 99 {
						b := packet()
						if with == "with the key" {
							b = seal(b, nil)
						}
						_, _ = udp.Write(b)
						sent++
					}
					if tick%5 == 0 {
						b := packet()
						switch {
						case tick%50 == 0:
							b = binary.BigEndian.AppendUint32([]byte{10}, 20<<20)
						case with == "with the key":
							head := binary.BigEndian.AppendUint32([]byte{10}, uint32(29+len(b)))
							b = append(head, seal(b, head)...)
						}
						if c, err := from.dial(context.Background(), "tcp", q.ip+":7834"); err == nil {
							_, _ = c.Write(b)
							_ = c.Close()
							sent++
						}
					}
					if tick%50 == 0 {
						most = max(most, resident(q.pid()))
					}
					if wait := time.Until(begin.Add(time.Duration(tick+1) * 10 * time.Millisecond)); wait > 0 {
						time.Sleep(wait)
					}
				}
			})
			took := time.Since(begin)
			row("cluster/fuzz_packets", float64(sent)/took.Seconds(), "1/s", 0, true)
			row("cluster/fuzz_cores", (cpu(q.pid())-used).Seconds()/took.Seconds(), "cores", 0, true)
			row("cluster/fuzz_memory", float64(most-memory)/(1<<20), "MiB", 50, false)
			if !alive(q.pid()) {
				t.Fatal("the queen has ended")
			}
			if most-memory > 50<<20 {
				t.Errorf("its memory grew by %d MB", (most-memory)>>20)
			}
			if n := q.lines("") - lines; float64(n) > 10*took.Seconds() {
				t.Errorf("it logged %d lines in %v", n, took)
			}
			for _, name := range []string{"h1", "h2"} {
				if s := seen[name]; !slices.Equal(s, []contract.Liveness{contract.LivenessAlive}) {
					t.Errorf("%s went through %v", name, s)
				}
			}
			if m := q.cluster().Members; len(m) != 2 || q.member(2) != contract.MemberAlive {
				t.Errorf("the members are %+v", m)
			}
		})
	}
}
