// Command plugin is the vendor url as a plugin: a program, or a WASM module, from the same source as the one inside apiary.
package main

import (
	"github.com/apiary-dev/apiary/plugins/sdk"
	webaddress "github.com/apiary-dev/apiary/vendors/url"
)

func init() { sdk.Register(webaddress.New()) }

func main() { sdk.Main() }
