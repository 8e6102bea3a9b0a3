// Command apiary-llama is the native worker: llama.cpp behind the worker contract. It is an executable of its own because the
// binding needs libc and libffi, which the static executable apiary must not.
//
//	apiary-llama serve <arguments of the worker contract>
//	apiary-llama devices --engine-dir DIR
//	apiary-llama selftest --engine-dir DIR [--model-path FILE] [--device LIST]
//
// devices and selftest print JSON; a failure is one sentence on stderr.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/workers/llama"
	_ "github.com/apiary-dev/apiary/workers/llama/preflight"
	"github.com/apiary-dev/apiary/workers/sdk"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

const usage = `Usage:
  apiary-llama serve <arguments of the worker contract>
  apiary-llama devices --engine-dir DIR
  apiary-llama selftest --engine-dir DIR [--model-path FILE] [--device LIST]
`

func run(args []string, out, errs io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(errs, usage)
		return 2
	}
	switch args[0] {
	case "serve":
		return sdk.Main(args[1:], llama.Implementation())
	case "devices", "selftest":
		return inspect(args[0], args[1:], out, errs)
	case "help", "-h", "--help":
		fmt.Fprint(out, usage)
		return 0
	}
	fmt.Fprintf(errs, "apiary-llama has no command %q.\n%s", args[0], usage)
	return 2
}

// inspect loads the engine and prints what it finds.
func inspect(command string, args []string, out, errs io.Writer) int {
	fs := flag.NewFlagSet(command, flag.ContinueOnError)
	fs.SetOutput(errs)
	dir := fs.String("engine-dir", "", "folder of the engine's libraries")
	model, devices := new(string), new(string)
	if command == "selftest" {
		model = fs.String("model-path", "", "GGUF file to load and try")
		devices = fs.String("device", "cpu0", "devices for the model, joined by commas")
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if *dir == "" || fs.NArg() > 0 {
		fmt.Fprintf(errs, "apiary-llama %s needs --engine-dir, and takes no other words.\n%s", command, usage)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(errs, &slog.HandlerOptions{Level: slog.LevelWarn}))
	report, err := llama.SelfTest(ctx, *dir, *model, strings.Split(*devices, ","), log)
	if err != nil {
		fmt.Fprintln(errs, err)
		return fault.ExitCode(err)
	}
	var v any = report
	if command == "devices" {
		v = report.Devices
	}
	if err := json.NewEncoder(out).Encode(v); err != nil {
		fmt.Fprintf(errs, "The report could not be written: %v\n", err)
		return 1
	}
	return 0
}
