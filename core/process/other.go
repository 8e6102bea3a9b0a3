//go:build !linux

package process

import (
	"context"
	"runtime"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

func unsupported() error {
	return fault.New(fault.Internal, "unsupported_platform", "Apiary cannot run workers on %s yet; use a Linux machine for the hive.", runtime.GOOS)
}

// Child is a started process.
type Child struct{}

// BootID is not supported on this platform.
func BootID() (string, error) { return "", unsupported() }

// Self is not supported on this platform.
func Self(string) (contract.Identity, error) { return contract.Identity{}, unsupported() }

// Harden is not supported on this platform and does nothing.
func Harden() error { return nil }

// ExecChild is not supported on this platform.
func ExecChild([]string) error { return unsupported() }

// Protection is not supported on this platform.
func Protection(int, int) contract.Protection { return contract.Protection{} }

// Start is not supported on this platform.
func Start(Spec) (*Child, error) { return nil, unsupported() }

// Identity is not supported on this platform.
func (*Child) Identity() contract.Identity { return contract.Identity{} }

// Wait is not supported on this platform.
func (*Child) Wait(context.Context) (Exit, error) { return Exit{}, unsupported() }

// Scan is not supported on this platform.
func Scan(string) ([]Entry, error) { return nil, unsupported() }

// Verify is not supported on this platform.
func Verify(contract.Identity) error { return unsupported() }

// Kill is not supported on this platform.
func Kill(context.Context, contract.Identity, KillOptions) (string, error) { return "", unsupported() }

// LimitMemory does nothing here: the kernels of other systems have no such limit.
func LimitMemory(int64) error { return nil }

// KillSelfAfter is not supported on this platform.
func KillSelfAfter(time.Duration) (cancel func(), err error) { return nil, unsupported() }
