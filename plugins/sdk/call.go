// Package sdk is what an author builds a plugin with: one type that keeps the contract of plugins/vendor becomes a program
// that the agent runs as a process, or a WASM module, from the same source. Register it in the init function of the plugin's
// main package and let main call Main:
//
//	func init() { sdk.Register(&myVendor{}) }
//	func main() { sdk.Main() }
//
// A module holds neither protobuf nor gRPC; they are behind the build tag of processes.
package sdk

import (
	"context"
	"encoding/json"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// InvokerFunc is a function that is a vendor.Invoker.
type InvokerFunc func(ctx context.Context, method string, request []byte) ([]byte, error)

// Invoke implements vendor.Invoker.
func (f InvokerFunc) Invoke(ctx context.Context, method string, request []byte) ([]byte, error) {
	return f(ctx, method, request)
}

// Call calls method on the other side with req, one of the structs of the contract, and reads the answer into a Reply. A nil req
// is the empty message. The errors are those of vendor.Invoker; an answer that cannot be read is an *Error of KindInternal.
func Call[Reply any](ctx context.Context, on vendor.Invoker, method string, req any) (*Reply, error) {
	raw := []byte("{}")
	if req != nil {
		var err error
		if raw, err = json.Marshal(req); err != nil {
			return nil, internal("bad_request", "The request of "+method+" cannot be written: "+err.Error()+".")
		}
	}
	answer, err := on.Invoke(ctx, method, raw)
	if err != nil {
		return nil, err
	}
	reply := new(Reply)
	if len(answer) == 0 {
		return reply, nil
	}
	if err := json.Unmarshal(answer, reply); err != nil {
		return nil, internal("bad_reply", "The answer of "+method+" cannot be read: "+err.Error()+".")
	}
	return reply, nil
}

func unimplemented(method string) *vendor.Error {
	return &vendor.Error{Kind: vendor.KindInvalid, Code: vendor.CodeUnimplemented, Message: "There is no method " + method + " on the other side."}
}

func internal(code, message string) *vendor.Error {
	return &vendor.Error{Kind: vendor.KindInternal, Code: code, Message: message}
}
