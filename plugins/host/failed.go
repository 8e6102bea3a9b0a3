package host

import (
	"context"
	"errors"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// CodeFailed is the code of the error for a plugin that broke instead of answering.
const CodeFailed = "plugin_failed"

// maxMessage bounds the message of a plugin, in bytes.
const maxMessage = 4 << 10

// ask calls a method of a plugin for the core. An error that the plugin meant for the user stays a *vendor.Error, of text that a
// terminal can show. What the plugin broke is a fault of kind Unavailable that names the plugin.
func ask[Reply any](ctx context.Context, bound time.Duration, r remote, method string, req any) (*Reply, error) {
	reply, err := call[Reply](ctx, bound, r.on, method, req)
	if err != nil {
		return nil, failed(r.name(), method, err)
	}
	return reply, nil
}

// name is what the configuration calls the plugin.
func (r remote) name() string {
	if c, ok := r.on.(*checked); ok {
		return c.plugin.Name
	}
	return r.info.Name
}

func failed(name, method string, err error) error {
	said, ok := errors.AsType[*vendor.Error](err)
	meant := []vendor.Kind{vendor.KindInvalid, vendor.KindNotFound, vendor.KindUnavailable, vendor.KindExhausted, vendor.KindDenied}
	switch {
	case ok && slices.Contains(meant, said.Kind):
		e := *said
		e.Message = plain(e.Message)
		if e.Code != "" && !regexp.MustCompile(`^[a-z0-9_]{1,64}$`).MatchString(e.Code) {
			e.Code = "plugin_error"
		}
		return &e
	case ok:
		return broken(name, method, said.Message, nil) // the *vendor.Error is no cause: its kind would count
	}
	if fault.KindOf(err) != fault.Internal {
		return err
	}
	if e, ok := errors.AsType[*fault.Error](err); ok {
		c := *e
		c.Kind = fault.Unavailable
		return &c
	}
	return broken(name, method, err.Error(), err)
}

// broken says which plugin broke at what.
func broken(name, method, said string, cause error) error {
	said = strings.TrimSuffix(plain(said), ".")
	said, _, _ = strings.Cut(said, "; report it to its author")
	text, of := strings.CutPrefix(said, "The plugin ")
	switch {
	case said == "":
		text = "failed while it answered " + path.Base(method) + ", without a word"
	case !of:
		text = "failed while it answered " + path.Base(method) + ": " + said
	}
	e := fault.New(fault.Unavailable, CodeFailed, "The plugin %s %s; see `apiary plugin doctor %s`.", name, text, name)
	e.Err = cause
	return e
}

// plain is s on one line, without what a terminal would act on, and not longer than a message may be.
func plain(s string) string {
	if len(s) > maxMessage {
		s = s[:maxMessage] + "…"
	}
	return strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\r' || r == '\t':
			return ' '
		case contract.Hidden(r):
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "?"))), " ")
}
