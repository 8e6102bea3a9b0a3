package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/sandbox"
	"github.com/apiary-dev/apiary/plugins/conformance"
	"github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/process"
)

// pluginReport is what the suite found of one file, as programs see it.
type pluginReport struct {
	Path      string `json:"path"`
	Transport string `json:"transport"`
	conformance.Summary
	Results []conformance.Result `json:"results"`
}

// pluginCheck is `plugin test`.
func (a *app) pluginCheck() *cobra.Command {
	var casesFile string
	c := &cobra.Command{Use: "test [FILE|DIR]", Short: "Run the conformance suite against a plugin, or all that was built in a folder", Args: argCount(0, 1, "[FILE|DIR]")}
	c.Long = c.Short + ".\n\nThe plugin runs as an agent would run it; its requests are answered from the cases in " + conformance.CasesFile + " beside it, and\nno server is asked. Without cases what can be known without them is checked. A program is run, with the rights of your user."
	c.Flags().StringVar(&casesFile, "cases", "", "the cases, a `file` (default: "+conformance.CasesFile+" in the folder of the plugin)")
	c.RunE = interruptible(func(ctx context.Context, args []string) error {
		files, dir, err := filesToCheck(append(args, ".")[0])
		if err != nil {
			return err
		}
		if casesFile == "" {
			casesFile = filepath.Join(dir, filepath.FromSlash(conformance.CasesFile))
		} else if _, err := os.Stat(casesFile); err != nil {
			return fault.New(fault.NotFound, "no_file", "The cases in %s cannot be read: %w.", casesFile, err)
		}
		cases, err := conformance.ReadCases(casesFile)
		if err != nil {
			return err
		}
		work, err := os.MkdirTemp("", "apiary-plugin-")
		if err != nil {
			return fmt.Errorf("make a folder for the plugin: %w", err)
		}
		defer func() { _ = os.RemoveAll(work) }()
		var reports []pluginReport
		for _, file := range files {
			r, err := a.check(ctx, file, work, cases)
			if err != nil {
				return err
			}
			reports = append(reports, r)
		}
		return a.showReports(ctx, reports)
	})
	return c
}

// filesToCheck are the plugins that a file, or a folder, stands for, and the folder that they are in.
func filesToCheck(at string) (files []string, dir string, err error) {
	at, err = filepath.Abs(at)
	if err != nil {
		return nil, "", fmt.Errorf("find %s: %w", at, err)
	}
	info, err := os.Stat(at)
	if err != nil {
		return nil, "", fault.New(fault.NotFound, "file_not_found", "There is no %s; give the file of a plugin, or the folder in which one was built.", at)
	}
	if !info.IsDir() {
		return []string{at}, filepath.Dir(at), nil
	}
	modules, programs, err := builtFiles(at)
	if err != nil {
		return nil, "", err
	}
	if files = append(programs, modules...); len(files) == 0 {
		return nil, "", fault.New(fault.NotFound, "not_built", "Nothing that could be tested was built in %s; say `apiary plugin build %s` first.", at, at)
	}
	return files, at, nil
}

// check runs the suite against one file.
func (a *app) check(ctx context.Context, file, work string, cases conformance.Cases) (pluginReport, error) {
	c, err := host.Inspect(file)
	if err != nil {
		return pluginReport{}, err
	}
	spec, err := a.specOf(file, c, work)
	if err != nil {
		return pluginReport{}, err
	}
	subject := conformance.Program(spec)
	if c.Transport == config.TransportWASM {
		subject.Manifest = &c.Manifest
	} else if m := manifestBeside(file); m != nil {
		subject.Manifest = m
	}
	r := pluginReport{Path: file, Transport: c.Transport}
	r.Summary = conformance.Run(ctx, subject, cases, func(result conformance.Result) {
		r.Results = append(r.Results, result)
		if !a.json && result.Outcome == conformance.Fail {
			_, _ = fmt.Fprintf(a.out, "fail  as %s: %s: %s\n", c.Transport, result.Name, printable(result.Detail))
		}
	})
	return r, ctx.Err()
}

// specOf says how a file is started as an agent would; what that leaves behind is in the folder work.
func (a *app) specOf(file string, c *host.Candidate, work string) (process.Spec, error) {
	own, err := os.Executable()
	if err != nil {
		return process.Spec{}, fmt.Errorf("find this executable: %w", err)
	}
	name := strings.TrimSuffix(filepath.Base(file), ".wasm")
	spec := process.Spec{Name: name, Path: file, Store: filepath.Join(work, "programs"), ExecChild: []string{own, "exec-child"}, Sandbox: sandbox.Kernel(), Log: slog.New(slog.DiscardHandler)}
	if c.Transport != config.TransportWASM {
		if m := manifestBeside(file); m != nil {
			spec.TLS = m.TLS
		}
		return spec, nil
	}
	module, err := os.ReadFile(file)
	if err != nil {
		return process.Spec{}, fmt.Errorf("read the plugin: %w", err)
	}
	sum := sha256.Sum256(module)
	spec.Path, spec.StartTimeout = own, host.CompileTime
	spec.Read, spec.Write = []string{file}, []string{filepath.Join(work, "cache")}
	spec.Args = host.ModuleArgs(file, hex.EncodeToString(sum[:]), filepath.Join(work, "cache"), c.Asked().Memory)
	return spec, nil
}

func (a *app) showReports(ctx context.Context, reports []pluginReport) error {
	failed, contract := 0, ""
	var parts []string
	for _, r := range reports {
		failed += r.Failed
		if r.Contract != "" {
			contract = " " + r.Contract
		}
		part := fmt.Sprintf("%d passed", r.Passed)
		if r.Failed > 0 {
			part += fmt.Sprintf(" and %d failed", r.Failed)
		}
		parts = append(parts, part+" as "+r.Transport)
	}
	if a.json {
		if err := a.printJSON(map[string]any{"failed": failed, "plugins": reports}); err != nil {
			return err
		}
	} else if _, err := fmt.Fprintf(a.out, "conformance%s: %s\n", contract, strings.Join(parts, ", ")); err != nil {
		return err
	}
	if failed > 0 {
		return fault.New(fault.Invalid, "not_conformant", "%s of the plugin contract failed; each line above that begins with \"fail\" says what is wrong.", plural(failed, "check"))
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(reports) > 0 && reports[0].Skipped > 0 && !a.json {
		_, err := fmt.Fprintf(a.err, "%s did not apply; with --json each says why.\n", plural(reports[0].Skipped, "check"))
		return err
	}
	return nil
}
