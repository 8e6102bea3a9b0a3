// Command plugin is the provisioner path as a plugin: a program, since a WASM module sees no files. It is for the tests of the contract:
// the core takes folders of this machine from the provisioner inside apiary, and from a plugin that was granted to run things.
package main

import (
	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/workers/provision/path"
)

func init() { sdk.Register(path.New()) }

func main() { sdk.Main() }
