// Command plugin is the vendor pypi as a plugin: a program, or a WASM module, from the same source as the one inside apiary.
package main

import (
	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/vendors/pypi"
)

func init() { sdk.Register(pypi.New()) }

func main() { sdk.Main() }
