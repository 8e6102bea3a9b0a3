package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/client"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

func (a *app) modelCommand() *cobra.Command {
	var hive string
	pull := &cobra.Command{Use: "pull MODEL", Short: "Fetch a model into the catalog", Args: argCount(1, 1, "MODEL"),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			ref, err := reference(args[0])
			if err != nil {
				return err
			}
			return fetch(ctx, a, contract.ArtifactRef{Operation: contract.OpModelDownload, Reference: ref, HiveID: hive}, "model  ", modelID, func(_ *story, m contract.Model, present bool) string {
				if present {
					return m.ID + " is in the catalog already"
				}
				proof := "verified"
				if m.Unproved {
					proof = "pinned to these bytes" // there was nothing to compare them with
				}
				return fmt.Sprintf("%s · %s · %s", m.ID, m.SizeBytes, proof)
			})
		})}
	list := &cobra.Command{Use: "list", Short: "List the models: fetched ones and those of the configuration", Args: argCount(0, 0, ""),
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			return ask(ctx, a, op{Operation: contract.OpModelList}, func(views []contract.ModelView) error {
				rows := make([][]string, 0, len(views))
				for _, v := range views {
					row := []string{displayName(v), "-", "-", "-", fmt.Sprint(len(v.Workers)), "not fetched"}
					if m := v.Model; m != nil {
						row[1], row[2], row[3] = cmp.Or(m.Architecture, "-"), cmp.Or(m.Quantization, "-"), m.SizeBytes.String()
						row[5] = m.ID
					}
					rows = append(rows, row)
				}
				return a.table([]string{"MODEL", "ARCHITECTURE", "QUANT", "SIZE", "WORKERS", "ID"}, rows, "There are no models; `apiary model pull REFERENCE` fetches one.")
			})
		})}
	get := &cobra.Command{Use: "get MODEL", Short: "Show a model", Args: argCount(1, 1, "MODEL"),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			ref, err := reference(args[0])
			if err != nil {
				return err
			}
			return ask(ctx, a, contract.ArtifactRef{Operation: contract.OpModelGet, Reference: ref, HiveID: hive}, func(v contract.ModelView) error {
				m := contract.Model{ID: v.ID, References: v.Names}
				if v.Model != nil {
					m = *v.Model
				}
				chat := "no: it continues text"
				if m.Chat {
					chat = "yes"
				}
				rows := [][2]string{{"id", m.ID}, {"references", strings.Join(m.References, ", ")}, {"vendor", m.Vendor}, {"format", m.Format},
					{"architecture", m.Architecture}, {"quantization", m.Quantization}, {"parameters", count(m.Parameters)}, {"context", count(uint64(m.ContextLength))},
					{"chat", chat}, {"size", m.SizeBytes.String()}, {"added", when(m.AddedAt)}}
				for _, f := range m.Files {
					at := f.Path
					if f.InPlace != nil {
						at = f.InPlace.Path
					}
					rows = append(rows, [2]string{"file", fmt.Sprintf("%s · %s · sha256 %s", at, f.SizeBytes, f.SHA256)})
				}
				return a.fields(rows)
			})
		})}
	rm := &cobra.Command{Use: "rm MODEL", Aliases: []string{"delete"}, Short: "Take a model out of the catalog", Args: argCount(1, 1, "MODEL"),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			ref, err := reference(args[0])
			if err != nil {
				return err
			}
			return a.remove(ctx, contract.ArtifactRef{Operation: contract.OpModelDelete, Reference: ref, HiveID: hive}, "model "+ref)
		})}
	search := a.modelSearch(&hive)
	for _, c := range []*cobra.Command{pull, search, get, rm} {
		hiveFlag(c, &hive)
	}
	return a.holder("model", "Find, fetch, list and remove models", search, pull, list, get, rm)
}

// modelSearch is the command that asks the vendors for models.
func (a *app) modelSearch(hive *string) *cobra.Command {
	s := contract.ModelSearch{Operation: contract.OpModelSearch}
	c := &cobra.Command{Use: "search WORDS", Short: "Look for models where the vendors have theirs", Args: argCount(1, 32, "WORDS"),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			s.Query, s.HiveID = strings.Join(args, " "), *hive
			if s.Limit < 1 || s.Limit > contract.MaxSearchResults {
				return fault.New(fault.Invalid, "invalid_limit", "A search gives 1 to %d results, and --limit is %d.", contract.MaxSearchResults, s.Limit)
			}
			return ask(ctx, a, s, func(found contract.ModelsFound) error {
				rows := make([][]string, 0, len(found.Models))
				for _, m := range found.Models {
					size := "-"
					if m.SizeBytes > 0 {
						size = m.SizeBytes.String()
					}
					rows = append(rows, []string{m.Reference, size, m.Vendor, cmp.Or(m.Description, "-")})
				}
				if err := a.table([]string{"REFERENCE", "SIZE", "VENDOR", "DESCRIPTION"}, rows, "Nothing was found; try fewer or other words."); err != nil {
					return err
				}
				for _, f := range found.Failed {
					if _, err := fmt.Fprintf(a.err, "%s could not be searched: %s\n", printable(f.Vendor), printable(f.Error.Message)); err != nil {
						return err
					}
				}
				return nil
			})
		})}
	c.Flags().StringVar(&s.Vendor, "vendor", "", "`name` or scheme of the one vendor to ask (default: all that can search)")
	c.Flags().IntVar(&s.Limit, "limit", 20, "most results")
	return c
}

func (a *app) engineCommand() *cobra.Command {
	var hive string
	var yes bool
	install := &cobra.Command{Use: "install [REFERENCE]", Short: "Install an engine (default: the one of the configuration)", Args: argCount(0, 1, "[REFERENCE]"),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			ref, err := a.engineReference(args)
			if err != nil {
				return err
			}
			if err := a.agreeToRecipe(ctx, ref, hive, yes); err != nil {
				return err
			}
			return fetch(ctx, a, contract.ArtifactRef{Operation: contract.OpWorkerInstall, Reference: ref, HiveID: hive}, "engine ", engineID, engineLine)
		})}
	install.Flags().BoolVarP(&yes, "yes", "y", false, "run the programs of a recipe without a question")
	list := &cobra.Command{Use: "list", Short: "List the installed engines", Args: argCount(0, 0, ""),
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			return ask(ctx, a, contract.ArtifactRef{Operation: contract.OpWorkerInstalledList, HiveID: hive}, func(engines []contract.Engine) error {
				rows := make([][]string, 0, len(engines))
				for _, e := range engines {
					var devices []string
					for _, d := range e.Devices {
						devices = append(devices, d.ID)
					}
					rows = append(rows, []string{e.Name, versionOf(e), e.Platform, strings.Join(devices, ","), e.SizeBytes.String(), e.ID})
				}
				return a.table([]string{"ENGINE", "VERSION", "PLATFORM", "DEVICES", "SIZE", "ID"}, rows, "There are no engines; `apiary engine install` fetches one.")
			})
		})}
	rm := &cobra.Command{Use: "rm REFERENCE", Aliases: []string{"delete"}, Short: "Remove an installed engine", Args: argCount(1, 1, "REFERENCE"),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			ref, err := a.engineReference(args)
			if err != nil {
				return err
			}
			return a.remove(ctx, contract.ArtifactRef{Operation: contract.OpWorkerRemove, Reference: ref, HiveID: hive}, "engine "+ref)
		})}
	for _, c := range []*cobra.Command{install, list, rm} {
		hiveFlag(c, &hive)
	}
	return a.holder("engine", "Install, list and remove engines", install, list, rm)
}

// engineReference is the argument with its path made absolute, or the source of the configuration's first native worker.
func (a *app) engineReference(args []string) (string, error) {
	if len(args) == 0 {
		return a.defaultEngine()
	}
	for _, scheme := range []string{"path:", "recipe:"} {
		if name, ok := strings.CutPrefix(args[0], scheme); ok {
			abs, err := absolute(name)
			return scheme + abs, err
		}
	}
	return args[0], nil
}

func modelID(m contract.Model) string   { return m.ID }
func engineID(e contract.Engine) string { return e.ID }

func engineLine(s *story, e contract.Engine, present bool) string {
	note := ""
	if e.Server {
		note = " · a server program, which no worker of this version runs yet"
	}
	if present {
		return fmt.Sprintf("%s %s for %s is installed already%s", e.Name, versionOf(e), e.Platform, note)
	}
	line := fmt.Sprintf("installed %s %s for %s ", e.Name, versionOf(e), e.Platform)
	if drawn := s.bar(1, 1); drawn != "" {
		line += drawn
	} else {
		line += "· "
	}
	return line + fmt.Sprintf("%s · verified · self-test ok", e.SizeBytes) + note
}

// versionOf is what people know an engine's version by: that of the package, with the engine's own as its self-test named it
// where that is another. A folder of the user's has no version.
func versionOf(e contract.Engine) string {
	build := strings.TrimSpace(strings.TrimPrefix(e.Build, e.Name)) // it may begin with the engine's own name
	switch {
	case e.Version == "" || e.Version == "local":
		return cmp.Or(build, e.Version)
	case build == "" || build == e.Version:
		return e.Version
	}
	return fmt.Sprintf("%s (%s)", e.Version, build)
}

func hiveFlag(c *cobra.Command, hive *string) {
	c.Flags().StringVar(hive, "hive", "", "node `id` of the hive (default: the local one to fetch, every one otherwise)")
}

// op is an operation without fields.
type op struct {
	Operation string `json:"operation"`
}

// ask runs a reading operation and shows its result: as JSON, or by show.
func ask[T any](ctx context.Context, a *app, operation any, show func(T) error) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	result, err := client.Run[T](ctx, c.Client, operation, nil)
	if err != nil {
		return a.outdated(c.target, operation, err)
	}
	if a.json {
		return a.printJSON(result)
	}
	return show(result)
}

// fetch runs an operation that brings something, tells its story and says what came of it. Its id goes to standard output where
// that is not the terminal that shows the story.
func fetch[T any](ctx context.Context, a *app, operation any, label string, id func(T) string, line func(s *story, result T, present bool) string) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	s := a.story(ctx)
	defer s.end()
	s.step(label)
	present := false
	result, err := client.Run[T](ctx, c.Client, operation, func(n contract.Narration) {
		present = present || n.Action == contract.ActionPresent
		s.narrate(n)
	})
	if err != nil {
		return a.outdated(c.target, operation, err)
	}
	s.done("%s", line(s, result, present))
	if a.json {
		return a.printJSON(result)
	}
	if isTerminal(a.out) {
		return nil // the story has it
	}
	_, err = fmt.Fprintln(a.out, printable(id(result)))
	return err
}

// remove runs an operation that takes something away.
func (a *app) remove(ctx context.Context, operation any, what string) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	result, err := c.Do(ctx, operation, nil)
	if err != nil {
		return a.outdated(c.target, operation, err)
	}
	if a.json {
		return a.printJSON(result)
	}
	_, err = fmt.Fprintf(a.err, "Removed %s.\n", printable(what))
	return err
}

// displayName is the name by which people know a model: the configured one, else the reference that was asked for.
func displayName(v contract.ModelView) string {
	if len(v.Names) > 0 {
		return v.Names[0]
	}
	return cmp.Or(v.Source, v.ID)
}

// fields shows one thing, a line for each property that it has.
func (a *app) fields(rows [][2]string) error {
	width := 0
	for _, r := range rows {
		width = max(width, len(r[0]))
	}
	for _, r := range rows {
		if r[1] == "" {
			continue
		}
		if _, err := fmt.Fprintf(a.out, "%-*s  %s\n", width, r[0], printable(r[1])); err != nil {
			return err
		}
	}
	return nil
}

// count writes a number with its thousands apart; 0 is not known.
func count(n uint64) string {
	if n == 0 {
		return ""
	}
	return thousands(int(n))
}

func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.DateTime + " MST")
}
