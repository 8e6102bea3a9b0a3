//go:build wasip1

package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"unsafe"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Main does nothing in a WASM module: its host calls the exported functions.
func Main() {}

// guest is the state behind the exported functions. A module runs one call at a time.
var guest struct {
	invoker vendor.Invoker
	buffers map[uint32][]byte // what the host holds pointers to, so that it stays where it is
}

//go:wasmimport apiary_v1 call
func hostCall(method unsafe.Pointer, methodLen uint32, request unsafe.Pointer, requestLen uint32) int64

//go:wasmimport apiary_v1 reply
func hostReply(into unsafe.Pointer)

// abiV1 marks the module as a plugin; the result is the minor version of the ABI.
//
//go:wasmexport apiary_abi_v1
func abiV1() int32 { return 0 }

//go:wasmexport apiary_alloc
func alloc(size uint32) uint32 { return keep(make([]byte, max(size, 1))) }

//go:wasmexport apiary_free
func free(pointer uint32) { delete(guest.buffers, pointer) }

// invoke answers a call with pointer<<32 | length of a buffer that the host frees. Its first byte is 0 before a message, 1
// before an error.
//
//go:wasmexport apiary_invoke
func invoke(methodPointer, methodLen, requestPointer, requestLen uint32) uint64 {
	if guest.invoker == nil {
		guest.invoker = Dispatch(registered, guestHost{HostClient(InvokerFunc(callHost))})
	}
	method := string(guest.buffers[methodPointer][:methodLen])
	var request []byte
	if requestLen > 0 {
		request = guest.buffers[requestPointer][:requestLen]
	}
	reply, err := guest.invoker.Invoke(context.Background(), method, request)
	first := byte(0)
	if err != nil {
		first, reply = 1, errorJSON(err)
	}
	out := append(make([]byte, 0, 1+len(reply)), first)
	out = append(out, reply...)
	return uint64(keep(out))<<32 | uint64(len(out))
}

func keep(b []byte) uint32 {
	if guest.buffers == nil {
		guest.buffers = map[uint32][]byte{}
	}
	p := uint32(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
	guest.buffers[p] = b
	return p
}

func errorJSON(err error) []byte {
	e, ok := errors.AsType[*vendor.Error](err)
	if !ok {
		e = internal("plugin_failed", err.Error())
	}
	raw, err := json.Marshal(e)
	if err != nil {
		return []byte(`{"kind":"internal","code":"plugin_failed"}`)
	}
	return raw
}

// callHost calls a method of the host. A negative result is the length of an error.
func callHost(_ context.Context, method string, request []byte) ([]byte, error) {
	n := hostCall(unsafe.Pointer(unsafe.StringData(method)), uint32(len(method)), unsafe.Pointer(unsafe.SliceData(request)), uint32(len(request)))
	failed := n < 0
	if failed {
		n = -n
	}
	answer := make([]byte, n)
	if n > 0 {
		hostReply(unsafe.Pointer(unsafe.SliceData(answer)))
	}
	if !failed {
		return answer, nil
	}
	e := &vendor.Error{}
	if err := json.Unmarshal(answer, e); err != nil {
		return nil, internal("bad_reply", "The host answered with an error that cannot be read.")
	}
	return nil, e
}

// guestHost fetches the bodies of answers as they are, which spares their encoding in JSON.
type guestHost struct{ vendor.Host }

func (h guestHost) HTTP(ctx context.Context, req vendor.HTTPRequest) (*vendor.HTTPResponse, error) {
	resp, err := h.Host.HTTP(ctx, req)
	if err != nil {
		return nil, err
	}
	if resp.Body, err = callHost(ctx, vendor.MethodHTTPBody, nil); err != nil {
		return nil, err
	}
	return resp, nil
}
