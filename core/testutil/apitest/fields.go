package apitest

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// Fields checks that the named schema and the Go struct v have the same JSON fields, and that the schema requires exactly those
// without omitempty. It is how a document is kept complete.
func (d *Document) Fields(t testing.TB, schema string, v any) {
	t.Helper()
	ref := d.spec.Components.Schemas[schema]
	if ref == nil {
		t.Errorf("%s has no schema %s", d.name, schema)
		return
	}
	var documented []string
	for name := range ref.Value.Properties {
		documented = append(documented, name)
	}
	required := slices.Clone(ref.Value.Required)
	fields, always := jsonFields(reflect.TypeOf(v))
	for _, p := range []struct {
		what      string
		doc, code []string
	}{{"properties", documented, fields}, {"required properties", required, always}} {
		slices.Sort(p.doc)
		slices.Sort(p.code)
		if !slices.Equal(p.doc, p.code) {
			t.Errorf("%s: the %s of %s are %v, those of %T are %v", d.name, p.what, schema, p.doc, v, p.code)
		}
	}
}

// jsonFields returns the JSON names of a struct's fields, and of those that are always written.
func jsonFields(typ reflect.Type) (all, always []string) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		tag, ok := f.Tag.Lookup("json")
		if f.Anonymous && !ok {
			a, b := jsonFields(f.Type)
			all, always = append(all, a...), append(always, b...)
			continue
		}
		name, options, _ := strings.Cut(tag, ",")
		if !f.IsExported() || name == "-" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		all = append(all, name)
		if !strings.Contains(options, "omitempty") && !strings.Contains(options, "omitzero") {
			always = append(always, name)
		}
	}
	return all, always
}
