// Command plugin is the provisioner pypi as a plugin, from the same source as the one inside apiary.
package main

import (
	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/workers/provision/pypi"
)

func init() { sdk.Register(pypi.New()) }

func main() { sdk.Main() }
