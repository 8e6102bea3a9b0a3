// Package proto turns the messages of the contract of plugins from canonical proto3 JSON into protobuf and back, by the name
// of a method. Its folders hold the contract, and the code generated from it (make proto).
package proto

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "github.com/apiary-dev/apiary/plugins/proto/hostv1" // registers its messages, like the others
	_ "github.com/apiary-dev/apiary/plugins/proto/pluginv1"
	_ "github.com/apiary-dev/apiary/plugins/proto/provisionerv1"
	_ "github.com/apiary-dev/apiary/plugins/proto/vendorv1"
)

// Messages returns an empty request and an empty reply of method, such as "/vendor.v1.Vendor/Resolve". It fails for a method
// that the contract does not have and for streams.
func Messages(method string) (request, reply proto.Message, err error) {
	name := strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", ".")
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		return nil, nil, fmt.Errorf("the contract has no method %q", method)
	}
	m, ok := d.(protoreflect.MethodDescriptor)
	if !ok || m.IsStreamingClient() || m.IsStreamingServer() || strings.Count(method, "/") != 2 {
		return nil, nil, fmt.Errorf("%q is no method with one request and one reply", method)
	}
	if request, err = empty(m.Input()); err != nil {
		return nil, nil, err
	}
	reply, err = empty(m.Output())
	return request, reply, err
}

func empty(d protoreflect.MessageDescriptor) (proto.Message, error) {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		return nil, fmt.Errorf("find the message %s: %w", d.FullName(), err)
	}
	return t.New().Interface(), nil
}

// FromJSON reads canonical proto3 JSON into m. Fields that it does not know are left out: they belong to a later minor version.
func FromJSON(raw []byte, m proto.Message) error {
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, m); err != nil {
		return fmt.Errorf("read %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	return nil
}

// ToJSON writes m as canonical proto3 JSON.
func ToJSON(m proto.Message) ([]byte, error) {
	raw, err := protojson.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	return raw, nil
}
