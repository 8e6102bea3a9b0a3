// Command apiary turns the machines you have into one private AI endpoint: agent, command line, echo worker and launcher of
// workers in one executable. This file holds the default configuration, the sources that new plugins are made of, and the version;
// core/cli does the rest.
package main

import (
	"embed"
	"os"

	"github.com/apiary-dev/apiary/core/cli"
)

//go:embed config.hcl
var defaultConfig []byte

// sources are what `apiary plugin new` makes a folder of: the examples, and what plugins in Go are built with. Each file is named, so
// that what somebody built beside them stays out.
//
//go:embed go.mod go.sum
//go:embed plugins/vendor/*.go plugins/sdk/*.go plugins/sdk/wire/*.go plugins/proto/*.go plugins/proto/*/*.go plugins/proto/*/*.proto
//go:embed examples/plugin-go/*.go examples/plugin-go/README.md examples/plugin-go/.gitignore
//go:embed examples/provisioner-go/*.go examples/provisioner-go/README.md examples/provisioner-go/.gitignore examples/provisioner-go/testdata/*.json
//go:embed examples/plugin-rust/src/*.rs examples/plugin-rust/Cargo.toml examples/plugin-rust/Cargo.lock
//go:embed examples/plugin-rust/manifest.json examples/plugin-rust/README.md examples/plugin-rust/.gitignore
//go:embed examples/plugin-assemblyscript/assembly/index.ts examples/plugin-assemblyscript/assembly/abi.ts
//go:embed examples/plugin-assemblyscript/assembly/json.ts examples/plugin-assemblyscript/package.json examples/plugin-assemblyscript/.npmrc
//go:embed examples/plugin-assemblyscript/manifest.json examples/plugin-assemblyscript/README.md examples/plugin-assemblyscript/.gitignore
//go:embed examples/plugin-c/*.c examples/plugin-c/*.h
//go:embed examples/plugin-c/manifest.json examples/plugin-c/README.md examples/plugin-c/.gitignore
//go:embed examples/plugin-*/testdata/*.json
//go:embed examples/plugin-python/*.py examples/plugin-python/requirements.txt
//go:embed examples/plugin-python/manifest.json examples/plugin-python/README.md examples/plugin-python/.gitignore
var sources embed.FS

// version is set by the linker.
var version = "dev"

func main() {
	os.Exit(cli.Main(cli.Options{
		Args: os.Args[1:], Version: version, Config: defaultConfig, Sources: sources, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	}))
}
