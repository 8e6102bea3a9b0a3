// Command plugin is the provisioner github as a plugin, from the same source as the one inside apiary.
package main

import (
	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/workers/provision/github"
)

func init() { sdk.Register(github.New()) }

func main() { sdk.Main() }
