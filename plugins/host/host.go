// Package host makes plugins usable: it finds them by their pins, starts them in a transport, grants what the operator
// granted, restarts what crashed and disables what crashes again. The core sees a vendor.Vendor or a vendor.Provisioner,
// whatever is behind it.
package host

import (
	"errors"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Fault gives an error of a plugin the kind that the rest of the core goes by. Other errors are returned as they are. KindInternal is
// a fault of this program's own vendors and provisioners: what other plugins break is of kind Unavailable already.
func Fault(err error) error {
	e, ok := errors.AsType[*vendor.Error](err)
	if !ok {
		return err
	}
	kind := fault.Internal
	switch e.Kind {
	case vendor.KindInvalid:
		kind = fault.Invalid
	case vendor.KindNotFound:
		kind = fault.NotFound
	case vendor.KindUnavailable:
		kind = fault.Unavailable
	case vendor.KindExhausted:
		kind = fault.Exhausted
	case vendor.KindDenied:
		kind = fault.Denied
	case vendor.KindInternal:
	}
	return &fault.Error{
		Kind: kind, Code: e.Code, Message: e.Message, Param: e.Param, Err: err,
		RetryAfter: time.Duration(min(max(e.RetryAfterMS, 0), int64(24*time.Hour/time.Millisecond))) * time.Millisecond,
	}
}
