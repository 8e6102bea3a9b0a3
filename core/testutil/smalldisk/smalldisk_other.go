//go:build !linux

package smalldisk

import "testing"

// Run skips t: there are no name spaces here.
func Run(t *testing.T, _ string, _ func(dir string)) { t.Skip("needs the name spaces of Linux") }
