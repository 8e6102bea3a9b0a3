// Command plugin is the provisioner npm as a plugin, from the same source as the one inside apiary.
package main

import (
	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/workers/provision/npm"
)

func init() { sdk.Register(npm.New()) }

func main() { sdk.Main() }
