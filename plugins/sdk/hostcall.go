package sdk

import (
	"context"
	"time"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// HostDispatch serves h by method name, for the transports: it is the other end of HostClient.
func HostDispatch(h vendor.Host) vendor.Invoker {
	return &dispatcher{who: "host", methods: map[string]handler{
		vendor.MethodHTTPDo: method(h.HTTP),
		vendor.MethodKVGet: method(func(ctx context.Context, req vendor.KVGetRequest) (*vendor.KVGetResponse, error) {
			value, err := h.Get(ctx, req.Key)
			return &vendor.KVGetResponse{Value: value}, err
		}),
		vendor.MethodKVSet: method(func(ctx context.Context, req vendor.KVSetRequest) (*struct{}, error) {
			return &struct{}{}, h.Set(ctx, req.Key, req.Value, req.TTLSeconds)
		}),
		vendor.MethodLog: method(func(_ context.Context, req vendor.LogRequest) (*struct{}, error) {
			h.Log(req.Level, req.Message, req.KeysAndValues...)
			return &struct{}{}, nil
		}),
	}}
}

// HostClient is the host behind inv, for a plugin.
func HostClient(inv vendor.Invoker) vendor.Host { return hostClient{inv} }

type hostClient struct{ on vendor.Invoker }

// logTime is how long a plugin waits at most until its host has taken a line of its log.
const logTime = 5 * time.Second

func (h hostClient) HTTP(ctx context.Context, req vendor.HTTPRequest) (*vendor.HTTPResponse, error) {
	return Call[vendor.HTTPResponse](ctx, h.on, vendor.MethodHTTPDo, req)
}

func (h hostClient) Get(ctx context.Context, key string) ([]byte, error) {
	reply, err := Call[vendor.KVGetResponse](ctx, h.on, vendor.MethodKVGet, vendor.KVGetRequest{Key: key})
	if err != nil || len(reply.Value) == 0 {
		return nil, err
	}
	return reply.Value, nil
}

func (h hostClient) Set(ctx context.Context, key string, value []byte, ttlSeconds int64) error {
	_, err := Call[struct{}](ctx, h.on, vendor.MethodKVSet, vendor.KVSetRequest{Key: key, Value: value, TTLSeconds: ttlSeconds})
	return err
}

// Log loses a line that the host does not take: a log is no reason to fail.
func (h hostClient) Log(level, message string, keysAndValues ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), logTime)
	defer cancel()
	_, _ = Call[struct{}](ctx, h.on, vendor.MethodLog, vendor.LogRequest{Level: level, Message: message, KeysAndValues: keysAndValues})
}
