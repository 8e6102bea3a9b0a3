package trust

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/apiary-dev/apiary/core/contract"
)

// FuzzJoin gives an issuer requests as they come from the network. Who knows no token gets nothing.
func FuzzJoin(f *testing.F) {
	c := newCluster(f)
	tok := c.token(TokenOrder{})
	req, err := applicant(f, "aaaaaaaaaaaa", "tower").Request(tok, c.clock)
	if err != nil {
		f.Fatal(err)
	}
	raw, err := json.Marshal(req)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"roles":["hive"],"node_id":"aaaaaaaaaaaa","name":"tower","time":"2026-11-29T12:00:00Z"}`), uint16(0), byte(0))
	f.Add([]byte{}, uint16(0), byte('{')) // nothing changes
	f.Add([]byte{}, uint16(100), byte('0'))
	f.Fuzz(func(t *testing.T, made []byte, at uint16, to byte) {
		var req contract.JoinRequest
		if json.Unmarshal(edited(made, raw, at, to), &req) != nil {
			return
		}
		reply, err := c.issuer.Join(context.Background(), req, far)
		if err != nil {
			want(t, err, code(err))
			return
		}
		if req.Secret != tok.Secret.Reveal() || req.TokenID != tok.ID {
			t.Fatal("somebody without a token is in")
		}
		chain, err := parseChain([]byte(reply.Certificate))
		if err != nil {
			t.Fatal(err)
		}
		if p, err := c.verifier.Peer(state(chain...)); err != nil || p.NodeID != req.NodeID || p.Has(RoleQueen) || len(chain[0].DNSNames) > 0 {
			t.Fatalf("%+v, %v", p, err)
		}
	})
}

func FuzzCSR(f *testing.F) {
	k := key(f)
	good := csrOf(f, k)
	f.Add([]byte(good), uint16(0), byte(0))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"), uint16(0), byte(0))
	f.Add([]byte{}, uint16(100), byte('A'))
	f.Fuzz(func(t *testing.T, made []byte, at uint16, to byte) {
		pub, err := parseCSR(string(edited(made, []byte(good), at, to)))
		if err == nil && (checkKey(pub) != nil || len(made) == 0 && !pub.Equal(&k.PublicKey)) {
			t.Fatal("another key is taken")
		}
	})
}

// FuzzReply gives who joins, and who renews, answers as they come from the network.
func FuzzReply(f *testing.F) {
	c := newCluster(f)
	tok := c.token(TokenOrder{})
	a := applicant(f, "aaaaaaaaaaaa", "tower")
	req, err := a.Request(tok, c.clock)
	if err != nil {
		f.Fatal(err)
	}
	reply, err := c.issuer.Join(context.Background(), req, far)
	if err != nil {
		f.Fatal(err)
	}
	raw, err := json.Marshal(reply)
	if err != nil {
		f.Fatal(err)
	}
	chain, err := parseChain([]byte(reply.Certificate))
	if err != nil {
		f.Fatal(err)
	}
	id := c.identity(a.Key, chain)
	f.Add([]byte(`{}`), uint16(0), byte(0))
	f.Add([]byte{}, uint16(0), byte('{')) // nothing changes
	f.Add([]byte{}, uint16(100), byte('0'))
	f.Fuzz(func(t *testing.T, made []byte, at uint16, to byte) {
		raw := edited(made, raw, at, to)
		var reply contract.JoinReply
		if json.Unmarshal(raw, &reply) == nil {
			if j, err := a.Accept(tok, reply, c.clock); err == nil && Fingerprint(j.Root) != tok.Fingerprint {
				t.Fatal("another cluster is accepted")
			}
		}
		var renewed contract.RenewReply
		if json.Unmarshal(raw, &renewed) == nil {
			if _, _, err := id.Renewed(renewed, nil); err == nil && id.Peer().NodeID != a.NodeID {
				t.Fatal("another node's certificate is in use")
			}
		}
	})
}
