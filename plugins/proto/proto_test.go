package proto

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	hostv1 "github.com/apiary-dev/apiary/plugins/proto/hostv1"
	pluginv1 "github.com/apiary-dev/apiary/plugins/proto/pluginv1"
	provisionerv1 "github.com/apiary-dev/apiary/plugins/proto/provisionerv1"
	vendorv1 "github.com/apiary-dev/apiary/plugins/proto/vendorv1"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// fill gives every field of v a value that is not its zero, going depth levels down.
func fill(v reflect.Value, n *int64, depth int) {
	*n++
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d \"é\" </>", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int32:
		v.SetInt(*n)
	case reflect.Int64:
		v.SetInt(1<<53 + *n)
	case reflect.Uint32:
		v.SetUint(uint64(*n))
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n, depth)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n, depth)
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte{0, 255, byte(*n)})
			return
		}
		if depth == 0 {
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), n, depth-1)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, n, depth)
		fill(value, n, depth)
		v.SetMapIndex(key, value)
	default:
		panic("a kind that the contract does not use: " + v.Kind().String())
	}
}

// TestStructsAreMessages: what a plugin author writes as a struct is the message, field by field, in both directions.
func TestStructsAreMessages(t *testing.T) {
	for _, x := range []struct {
		plain   any
		message proto.Message
	}{
		{&vendor.Info{}, &pluginv1.Info{}},
		{&vendor.Schema{}, &pluginv1.Schema{}},
		{&vendor.ConfigureRequest{}, &pluginv1.ConfigureRequest{}},
		{&vendor.Error{}, &pluginv1.ErrorDetail{}},
		{&vendor.ResolveRequest{}, &vendorv1.ResolveRequest{}},
		{&vendor.Manifest{}, &vendorv1.Manifest{}},
		{&vendor.SearchRequest{}, &vendorv1.SearchRequest{}},
		{&vendor.SearchResponse{}, &vendorv1.SearchResponse{}},
		{&vendor.RefreshRequest{}, &vendorv1.RefreshRequest{}},
		{&vendor.RefreshResponse{}, &vendorv1.RefreshResponse{}},
		{&vendor.PlanRequest{}, &provisionerv1.PlanRequest{}},
		{&vendor.Plan{}, &provisionerv1.Plan{}},
		{&vendor.ListRequest{}, &provisionerv1.ListRequest{}},
		{&vendor.ListResponse{}, &provisionerv1.ListResponse{}},
		{&vendor.LaunchRequest{}, &provisionerv1.LaunchRequest{}},
		{&vendor.LaunchSpec{}, &provisionerv1.LaunchSpec{}},
		{&vendor.PinResponse{}, &provisionerv1.PinResponse{}},
		{&vendor.HTTPRequest{}, &hostv1.HttpRequest{}},
		{&vendor.HTTPResponse{}, &hostv1.HttpResponse{}},
		{&vendor.KVGetRequest{}, &hostv1.KvGetRequest{}},
		{&vendor.KVGetResponse{}, &hostv1.KvGetResponse{}},
		{&vendor.KVSetRequest{}, &hostv1.KvSetRequest{}},
		{&vendor.LogRequest{}, &hostv1.LogRequest{}},
	} {
		name := reflect.TypeOf(x.plain).Elem().Name()
		var n int64
		fill(reflect.ValueOf(x.plain).Elem(), &n, 3)
		if p, ok := x.plain.(*vendor.Plan); ok { // of a step, one action is set
			for i := range p.Steps {
				s := p.Steps[i]
				p.Steps[i] = []vendor.Step{{Extract: s.Extract}, {Run: s.Run}}[i]
			}
			p.Steps = append(p.Steps, vendor.Step{Link: &vendor.LinkStep{Name: "a"}}, vendor.Step{Expect: &vendor.ExpectStep{Path: "b", Executable: true, Message: "c"}})
		}
		raw, err := json.Marshal(x.plain)
		if err != nil {
			t.Fatal(err)
		}
		if err := protojson.Unmarshal(raw, x.message); err != nil { // strict: an unknown field is an error
			t.Errorf("%s as %s: %v", name, raw, err)
			continue
		}
		if empty := unset(x.message.ProtoReflect()); empty != "" && name != "Plan" && name != "Schema" {
			t.Errorf("%s has no field for %s", name, empty)
		}
		if raw, err = ToJSON(x.message); err != nil {
			t.Fatal(err)
		}
		back := reflect.New(reflect.TypeOf(x.plain).Elem()).Interface()
		if err := json.Unmarshal(raw, back); err != nil || !reflect.DeepEqual(back, x.plain) {
			t.Errorf("%s comes back as %s, %v", name, raw, err)
		}
	}
}

// unset names a field of m, or of a message inside it, that has no value.
func unset(m protoreflect.Message) string {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.Has(f) {
			return string(f.FullName())
		}
		if f.Message() != nil && !f.IsList() && !f.IsMap() {
			if name := unset(m.Get(f).Message()); name != "" {
				return name
			}
		}
	}
	return ""
}

func TestMessages(t *testing.T) {
	for _, method := range []string{
		vendor.MethodGetInfo, vendor.MethodGetSchema, vendor.MethodConfigure, vendor.MethodResolve, vendor.MethodSearch, vendor.MethodRefreshSources,
		vendor.MethodPlan, vendor.MethodList, vendor.MethodLaunch, vendor.MethodPin, vendor.MethodHTTPDo, vendor.MethodKVGet, vendor.MethodKVSet, vendor.MethodLog,
	} {
		if _, _, err := Messages(method); err != nil {
			t.Error(err)
		}
	}
	for _, method := range []string{"", "/", "/vendor.v1.Vendor", "/vendor.v1.Vendor/None", "/vendor.v1/File", "/plugin.v1.Plugin/Host", "vendor.v1.Vendor.Resolve", "/vendor.v1.Vendor/Resolve/"} {
		if _, _, err := Messages(method); err == nil {
			t.Errorf("%q is no method", method)
		}
	}
}

// TestNothingBreaks: what plugins in the world were built for stays. contract.txt has a line for each field and method that was
// ever released; a change adds lines (go test -run TestNothingBreaks -args add), and never takes one away.
func TestNothingBreaks(t *testing.T) {
	var now []string
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		switch f.Package() {
		case "plugin.v1", "vendor.v1", "provisioner.v1", "host.v1":
			now = append(now, describe(f)...)
		}
		return true
	})
	slices.Sort(now)
	raw, err := os.ReadFile("contract.txt")
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	kept := strings.Split(strings.TrimSuffix(string(raw), "\n"), "\n")
	if slices.Contains(os.Args, "add") {
		all := slices.Concat(kept, now)
		slices.Sort(all)
		if err := os.WriteFile("contract.txt", []byte(strings.TrimPrefix(strings.Join(slices.Compact(all), "\n"), "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for _, line := range kept {
		if !slices.Contains(now, line) {
			t.Errorf("the contract had %q, which plugins that were built rely on", line)
		}
	}
	for _, line := range now {
		if !slices.Contains(kept, line) {
			t.Errorf("%q is new: say `make proto`", line)
		}
	}
}

func describe(f protoreflect.FileDescriptor) []string {
	var lines []string
	for i := range f.Services().Len() {
		methods := f.Services().Get(i).Methods()
		for j := range methods.Len() {
			m := methods.Get(j)
			lines = append(lines, fmt.Sprintf("rpc %s(%s) returns (%s) stream %t %t", m.FullName(), m.Input().FullName(), m.Output().FullName(), m.IsStreamingClient(), m.IsStreamingServer()))
		}
	}
	for i := range f.Messages().Len() {
		fields := f.Messages().Get(i).Fields()
		for j := range fields.Len() {
			d := fields.Get(j)
			kind := d.Kind().String()
			if d.Message() != nil && !d.IsMap() {
				kind = string(d.Message().FullName())
			} else if d.IsMap() {
				kind = fmt.Sprintf("map<%s,%s>", d.MapKey().Kind(), d.MapValue().Kind())
			}
			lines = append(lines, fmt.Sprintf("field %s = %d %s %s json=%s", d.FullName(), d.Number(), d.Cardinality(), kind, d.JSONName()))
		}
	}
	return lines
}
