package remote

import (
	"context"
	"path"
	"strings"
)

const gossipKeyFile = "gossip.key"

// GossipKeyPath is where the gossip key of an installation lies, beside the cluster key.
func (l Layout) GossipKeyPath() string { return path.Join(l.Data, "secrets", gossipKeyFile) }

// gossipKey writes the gossip key, as the account that owns the data folder. One that is there and differs is an older one of the
// same cluster, whose key has been compared before.
func (in *installation) gossipKey(ctx context.Context) error {
	if in.p.GossipKey == "" {
		return nil
	}
	in.say("key", "writing the gossip key")
	content := in.p.GossipKey.Reveal() + "\n"
	s := in.script("write the gossip key", `put "$data/secrets/`+gossipKeyFile+`" 0600 "$want"`).set("want", digest([]byte(content)))
	s.as = in.l.as()
	out, err := in.c.run(ctx, scriptTimeout, s, strings.NewReader(content))
	if err == nil && fields(out)["put"] != "same" {
		in.newKey = true
		in.later("take back the gossip key", in.l.as(), `back "$data/secrets/`+gossipKeyFile+`"`)
	}
	return err
}

// forgetOldKey removes the key that was kept to go back to. It is in a folder of the account, so the account removes it.
func (in *installation) forgetOldKey(ctx context.Context) {
	if !in.newKey {
		return
	}
	s := in.script("remove the old gossip key", `rm -f "$data/secrets/`+gossipKeyFile+`.apiary-old"`)
	s.as = in.l.as()
	if _, err := in.c.run(ctx, scriptTimeout, s, nil); err != nil {
		in.note("The former gossip key could not be removed there: " + in.l.GossipKeyPath() + ".apiary-old")
	}
}
