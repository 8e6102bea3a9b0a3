package config

import (
	"slices"

	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"
)

// JoinSettings is what an agent that joins a cluster needs in its configuration. What is empty stays as it is.
type JoinSettings struct {
	Roles       []string
	GossipBind  string
	GossipJoin  []string // added to those that are there
	QueenListen string
	HiveListen  string
}

// PutJoin writes s into the configuration file at path, as PutPlugin does. A gossip key that the file names is taken out, because the
// one that the cluster gave is in the data folder.
func PutJoin(path string, now *Config, s JoinSettings) error {
	return edit(path, func(body *hclwrite.Body) {
		set := func(block, name string, v cty.Value) {
			b := body.FirstMatchingBlock(block, nil)
			if b == nil {
				if len(body.Attributes())+len(body.Blocks()) > 0 {
					body.AppendNewline()
				}
				b = body.AppendNewBlock(block, nil)
			}
			b.Body().SetAttributeValue(name, v)
		}
		if len(s.Roles) > 0 {
			set("agent", "roles", textList(s.Roles))
		}
		if s.GossipBind != "" {
			set("gossip", "bind", cty.StringVal(s.GossipBind))
		}
		join := slices.Clone(now.Gossip.Join)
		for _, at := range s.GossipJoin {
			if !slices.Contains(join, at) {
				join = append(join, at)
			}
		}
		if len(join) > 0 {
			set("gossip", "join", textList(join))
		}
		if g := body.FirstMatchingBlock("gossip", nil); g != nil {
			g.Body().RemoveAttribute("key")
		}
		if s.QueenListen != "" {
			set("queen", "listen", cty.StringVal(s.QueenListen))
		}
		if s.HiveListen != "" {
			set("hive", "listen", cty.StringVal(s.HiveListen))
		}
	})
}
