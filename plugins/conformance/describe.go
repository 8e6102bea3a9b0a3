package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

const nameInfo = "info: it says what it is, quickly, and always the same"

// describing are the checks of what a plugin says about itself.
func describing() []check {
	return []check{
		{nameInfo, "", checkInfo},
		{"schema: it describes its settings, quickly, and always the same", "", checkSchemaStable},
		{"info: name, version, schemes and requests can be used", "", checkUsable},
		{"manifest: what its file says is what the plugin says", "", checkStatic},
		{"schema: every setting has a type, a default that fits and a description", "", checkSchema},
		{"settings: those of the cases are taken", "", checkSettings},
		{"settings: wrong ones are refused with the name of the setting", "", checkBadSettings},
		{"settings: garbage is an error and no crash", "", checkGarbageSettings},
	}
}

// stable asks several times, and a second instance once, and wants the same answer without a request to the host.
func stable[Reply any](ctx context.Context, s *suite, method string) (*Reply, error) {
	var first []byte
	before := s.host.count()
	var reply *Reply
	for _, times := range []int{3, 1} {
		in, err := s.fresh(ctx)
		if err != nil {
			return nil, err
		}
		err = func() error {
			for range times {
				begun := time.Now()
				got, err := sdk.Call[Reply](ctx, in, method, nil)
				if err != nil {
					return fmt.Errorf("it is answered with an error: %w", err)
				}
				if took := time.Since(begun); took > quickTime {
					return fmt.Errorf("it took %v, and at most %v are possible", took.Round(time.Millisecond), quickTime)
				}
				raw, err := json.Marshal(got)
				if err != nil {
					return err
				}
				if first == nil {
					first, reply = raw, got
				}
				if string(raw) != string(first) {
					return fmt.Errorf("it was %.300s and then %.300s", first, raw)
				}
			}
			return nil
		}()
		if err := errors.Join(err, in.Close()); err != nil {
			return nil, err
		}
	}
	if s.host.count() != before {
		return nil, errors.New("it makes requests, and it may not do more than return what it knows")
	}
	return reply, nil
}

func checkInfo(ctx context.Context, s *suite) error {
	info, err := stable[vendor.Info](ctx, s, vendor.MethodGetInfo)
	if err != nil {
		return err
	}
	s.info = *info
	if len(info.Schemes) == 0 || contractOf(info.Kind) == "" {
		return fmt.Errorf("it says neither that it is a vendor nor that it is a provisioner, or names no scheme: kind %q, schemes %q", info.Kind, info.Schemes)
	}
	s.host.allow(s.grants())
	return nil
}

func checkSchemaStable(ctx context.Context, s *suite) error {
	schema, err := stable[vendor.Schema](ctx, s, vendor.MethodGetSchema)
	if err != nil {
		return err
	}
	s.schema = *schema
	settings := s.cases.Settings
	if settings == nil {
		settings = defaults(s.schema)
	}
	s.values, err = decode(s.schema, settings)
	if err != nil {
		return fmt.Errorf("the settings of the cases do not follow it: %w", err)
	}
	return nil
}

func checkUsable(_ context.Context, s *suite) error {
	m := vendor.StaticManifest{Contract: contractOf(s.info.Kind), Info: s.info, Schema: s.schema}
	if err := host.CheckManifest(&m); err != nil {
		return err
	}
	if s.info.Description == "" {
		return errors.New("it has no description, which is what people see before they install it")
	}
	return nil
}

func checkStatic(_ context.Context, s *suite) error {
	if s.Manifest == nil {
		return skipError("its file says nothing without being run")
	}
	for what, pair := range map[string][2]any{"info": {s.Manifest.Info, s.info}, "schema": {s.Manifest.Schema, s.schema}} {
		static, err := json.Marshal(pair[0])
		if err != nil {
			return err
		}
		said, err := json.Marshal(pair[1])
		if err != nil {
			return err
		}
		if string(static) != string(said) {
			return fmt.Errorf("its file says in %s %.500s, and the plugin says %.500s", what, static, said)
		}
	}
	if want := contractOf(s.info.Kind); s.Manifest.Contract != want {
		return fmt.Errorf("its file says that it keeps %q, and a %s keeps %q", s.Manifest.Contract, s.info.Kind, want)
	}
	return nil
}

func checkSchema(_ context.Context, s *suite) error {
	if err := config.CheckSchema(s.schema); err != nil {
		return err
	}
	return described(s.schema)
}

func described(schema vendor.Schema) error {
	for _, a := range schema.Attributes {
		if a.Description == "" {
			return fmt.Errorf("the setting %q has no description", a.Name)
		}
	}
	for _, b := range schema.Blocks {
		if err := described(b.Schema); err != nil {
			return fmt.Errorf("block %q: %w", b.Name, err)
		}
	}
	return nil
}

func checkSettings(ctx context.Context, s *suite) error {
	_, err := s.use(ctx)
	return err
}

// configure gives settings to an instance of its own.
func (s *suite) configure(ctx context.Context, values string) error {
	in, err := s.fresh(ctx)
	if err != nil {
		return err
	}
	_, err = s.call(ctx, in, vendor.MethodConfigure, vendor.ConfigureRequest{ConfigJSON: values})
	if err == nil {
		_, err = host.Info(ctx, in) // it is still there
		return errors.Join(err, in.Close())
	}
	_ = in.Close() // the error of the call says more
	return err
}

func checkBadSettings(ctx context.Context, s *suite) error {
	if len(s.cases.Bad) == 0 {
		return skipError("the cases name no settings that must be refused")
	}
	for _, bad := range s.cases.Bad {
		all := maps.Clone(s.cases.Settings)
		if all == nil {
			all = map[string]json.RawMessage{}
		}
		maps.Copy(all, bad.Settings)
		values, err := decode(s.schema, all)
		if err != nil {
			raw, err := json.Marshal(all)
			if err != nil {
				return err
			}
			values = string(raw) // the configuration refuses it too
		}
		e, err := typed(s.configure(ctx, values))
		if err != nil {
			return fmt.Errorf("with %s: %w", values, err)
		}
		if e.Kind != vendor.KindInvalid || e.Param != bad.Param {
			return fmt.Errorf("with %s the error is of the kind %q for the setting %q, and should be %q for %q", values, e.Kind, e.Param, vendor.KindInvalid, bad.Param)
		}
	}
	return nil
}

func checkGarbageSettings(ctx context.Context, s *suite) error {
	for _, values := range []string{"{", "[1]", `"x"`, "null", `{"` + "\x00" + `":1}`, `{"later":{"a":[1,2,{}]}}`} {
		err := s.configure(ctx, values)
		if err == nil {
			continue // a plugin without settings need not look
		}
		if _, err := typed(err); err != nil {
			return fmt.Errorf("with %q: %w", values, err)
		}
	}
	return nil
}

// secretSettings are the settings of the cases with a secret in each text that is said to be one.
func (s *suite) secretSettings() map[string]json.RawMessage {
	out := maps.Clone(s.cases.Settings)
	if s.cases.Settings == nil {
		out = defaults(s.schema)
	}
	for _, a := range s.schema.Attributes {
		if a.Sensitive && a.Type == "string" {
			out[a.Name] = json.RawMessage(`"` + secret + `"`)
		}
	}
	return out
}
