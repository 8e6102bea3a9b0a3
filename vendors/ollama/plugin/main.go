// Command plugin is the vendor ollama as a plugin: a program, or a WASM module, from the same source as the one inside apiary.
package main

import (
	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/vendors/ollama"
)

func init() { sdk.Register(ollama.New()) }

func main() { sdk.Main() }
