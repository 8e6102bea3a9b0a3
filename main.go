// Command apiary turns the machines you have into one private AI endpoint: agent, command line, echo worker and launcher of
// workers in one executable. This file holds the default configuration and the version; core/cli does the rest.
package main

import (
	_ "embed"
	"os"

	"github.com/apiary-dev/apiary/core/cli"
)

//go:embed config.hcl
var defaultConfig []byte

// version is set by the linker.
var version = "dev"

func main() {
	os.Exit(cli.Main(cli.Options{
		Args: os.Args[1:], Version: version, Config: defaultConfig, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	}))
}
