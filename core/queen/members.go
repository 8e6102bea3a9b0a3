package queen

import (
	"maps"
	"slices"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/trust"
)

// LetIn names the nodes that the records of a data folder say were let into its cluster and not shut out, but for one node id.
func LetIn(home, without string) ([]string, error) {
	b, err := openBook(home, without)
	if err != nil {
		return nil, err
	}
	r := trust.NewRoster()
	r.Take(b.about(contract.RecordNode, contract.RecordRevocation)...)
	nodes := r.Nodes()
	var out []string
	for _, id := range slices.Sorted(maps.Keys(nodes)) {
		if id != without {
			out = append(out, nodes[id].Name)
		}
	}
	return out, nil
}
