// Command plugin is the vendor local as a plugin: a program, since a WASM module sees no files. It is for the tests of the contract:
// the core takes files of this machine from the vendor inside apiary alone.
package main

import (
	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/vendors/local"
)

func init() { sdk.Register(local.New()) }

func main() { sdk.Main() }
