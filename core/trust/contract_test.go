package trust

import (
	"testing"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/testutil/apitest"
)

func TestDocumentIsComplete(t *testing.T) {
	doc := apitest.Load(t, "queen-api.yaml")
	for name, v := range map[string]any{
		"JoinRequest": contract.JoinRequest{}, "JoinReply": contract.JoinReply{},
		"RenewRequest": contract.RenewRequest{}, "RenewReply": contract.RenewReply{},
		"NewToken": contract.NewToken{}, "MadeToken": contract.MadeToken{},
	} {
		doc.Fields(t, name, v)
	}
}
