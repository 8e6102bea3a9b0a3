package artifact

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	pluginhost "github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

const codeSelfTest = "engine_self_test_failed"

// InstallEngine makes sure that the engine that ref names, in the build for devices, is in the worker catalog, and returns
// its entry: it asks the provisioner for a plan, fetches and verifies the archive, unpacks it into a new folder, tests the
// engine there and publishes it. An engine that is there already needs no network. Where ref leaves the platform open and the
// best build does not work on this machine, the next one is tried, and report tells so. Nothing of an engine that fails its
// self-test (code engine_self_test_failed) stays.
func (s *Store) InstallEngine(ctx context.Context, ref string, devices []contract.Device, report Report) (contract.Engine, error) {
	if contract.HasHidden(ref) {
		return contract.Engine{}, hiddenReference(ref)
	}
	i := slices.IndexFunc(s.opts.Provisioners, func(p vendor.Provisioner) bool { return p.Supports(ref) })
	if i < 0 || len(ref) > 4096 {
		if err := s.leftOut(ref); err != nil {
			return contract.Engine{}, err
		}
		var schemes []string
		for _, p := range s.opts.Provisioners {
			for _, scheme := range p.Info().Schemes {
				schemes = append(schemes, scheme+":")
			}
		}
		return contract.Engine{}, fault.New(fault.Invalid, "unknown_scheme", "No provisioner knows references like %q; known are %s.", ref, strings.Join(schemes, ", "))
	}
	prov, on := s.opts.Provisioners[i], platform(devices)
	key := "engine:" + ref + " " + strings.Join(on.Devices, ",")
	return share(ctx, &s.flights, key, report, func(ctx context.Context, report Report) (contract.Engine, error) {
		return s.installBest(ctx, ref, prov, on, report)
	})
}

// installBest installs the first build that works, from the one for the best device down.
func (s *Store) installBest(ctx context.Context, ref string, prov vendor.Provisioner, on vendor.Platform, report Report) (contract.Engine, error) {
	if e, err := s.installed(ctx, ref, prov, on, report); err != nil || e.ID != "" {
		return e, err
	}
	report("resolve", "looking up "+ref, nil)
	var failed []string
	for {
		plan, err := prov.Plan(ctx, vendor.PlanRequest{Reference: ref, Platform: on})
		if err != nil {
			return contract.Engine{}, pluginhost.Fault(err)
		}
		e, err := s.install(ctx, ref, prov, plan, failed, report)
		if err == nil || fault.As(err).Code != codeSelfTest {
			return e, err
		}
		next, ok := nextPlatform(prov, ref, on, plan.Platform)
		if !ok {
			return contract.Engine{}, err
		}
		report("fallback", err.Error(), nil)
		s.log.Warn("engine build does not work here, trying the next one", "platform", plan.Platform, "error", err.Error())
		on, failed = next, append(failed, plan.Platform)
	}
}

// nextPlatform leaves out the best devices until another build is planned.
func nextPlatform(prov vendor.Provisioner, ref string, on vendor.Platform, current string) (vendor.Platform, bool) {
	p, ok := prov.(vendor.Pinner)
	for ok && len(on.Devices) > 0 {
		on.Devices = on.Devices[1:]
		if _, name, err := p.Pin(ref, on); err == nil && name != current {
			return on, true
		}
	}
	return on, false
}

// installed finds the engine that ref means on this machine without asking anybody; the zero Engine when there is none.
func (s *Store) installed(ctx context.Context, ref string, prov vendor.Provisioner, on vendor.Platform, report Report) (contract.Engine, error) {
	p, ok := prov.(vendor.Pinner)
	if !ok {
		return contract.Engine{}, nil
	}
	id, name, err := p.Pin(ref, on)
	if err != nil {
		return contract.Engine{}, pluginhost.Fault(err)
	}
	if id != "" {
		if why := checkReference(id, prov.Info(), false); why != "" {
			return contract.Engine{}, fault.New(fault.Invalid, "bad_plan", "The provisioner %s pinned the engine in a way that is not valid: %s; report this to its maker.", prov.Info().Name, why)
		}
	}
	all, err := s.engines()
	if err != nil {
		return contract.Engine{}, err
	}
	for _, e := range all {
		if e.ID == id {
			report(contract.ActionPresent, e.ID+" is installed already", nil)
			return e.Engine, s.addReference(ctx, &e, ref)
		}
		// A reference without a version means the one that it led to, until a person names another one.
		if id == "" && e.Platform == name && slices.Contains(e.References, ref) {
			report(contract.ActionPresent, e.ID+" is installed already", nil)
			return e.Engine, nil
		}
		if slices.Contains(e.References, ref) && slices.Contains(e.InsteadOf, name) {
			report(contract.ActionPresent, e.ID+" is installed already; the build for "+name+" does not work on this machine", nil)
			return e.Engine, nil
		}
	}
	return contract.Engine{}, nil
}

// addReference notes that ref leads to e as well.
func (s *Store) addReference(ctx context.Context, e *engineEntry, ref string) error {
	if slices.Contains(e.References, ref) {
		return nil
	}
	unlock, err := s.lockCatalog(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	e.References = append(e.References, ref)
	return s.publishJSON(s.entryPath("engines", e.ID), e)
}

// install carries out a plan.
func (s *Store) install(ctx context.Context, ref string, prov vendor.Provisioner, plan *vendor.Plan, failed []string, report Report) (contract.Engine, error) {
	if err := checkPlan(plan, prov.Info()); err != nil {
		return contract.Engine{}, err
	}
	if err := s.checkTools(prov, plan); err != nil {
		return contract.Engine{}, err
	}
	unlock, err := s.lock(ctx, "ref-"+hashText("engine:" + plan.Reference)[:32], func() {
		report("wait", "waiting for another process that installs "+plan.Reference, nil)
	})
	if err != nil {
		return contract.Engine{}, err
	}
	defer unlock()
	e := engineEntry{InsteadOf: failed, Engine: contract.Engine{
		ID: plan.Reference, References: []string{ref}, Name: plan.Name, Version: plan.Version, Platform: plan.Platform, AddedAt: s.now().UTC(),
	}}
	if plan.InPlace != "" {
		return s.installInPlace(ctx, &e, prov, plan, report)
	}
	if all, err := s.engines(); err != nil {
		return contract.Engine{}, err
	} else if i := slices.IndexFunc(all, func(o engineEntry) bool { return o.ID == plan.Reference }); i >= 0 {
		report(contract.ActionPresent, plan.Reference+" is installed already", nil) // another process was faster
		return all[i].Engine, s.addReference(ctx, &all[i], ref)
	}
	got := map[string]fetched{}
	err = s.withFiles(ctx, s.originOf(prov, nil), plan, plan.Files, got, plan.Name+" "+plan.Version+" for "+plan.Platform, report, func() error {
		return s.build(ctx, &e, prov, plan, got, report)
	})
	if err != nil {
		return contract.Engine{}, err
	}
	report("publish", e.ID+" is installed", nil)
	return e.Engine, nil
}

// checkPlan refuses what a provisioner may not say.
func checkPlan(plan *vendor.Plan, by vendor.Info) error {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "bad_plan", "The plan of the provisioner %s for the engine %s is not valid: %s; report this to its maker.", by.Name, printable(plan.Reference), fmt.Sprintf(format, args...))
	}
	if why := checkReference(plan.Reference, by, plan.InPlace != ""); why != "" {
		return bad("%s", why)
	}
	if !validSegment(plan.Name) || !validSegment(plan.Version) || !validSegment(plan.Platform) {
		return bad("its name %.80q, version %.80q or platform %.80q cannot be the name of a folder", plan.Name, plan.Version, plan.Platform)
	}
	if len(plan.Steps) > maxSteps {
		return bad("it has %d steps", len(plan.Steps))
	}
	built := slices.ContainsFunc(plan.Steps, func(st vendor.Step) bool { return st.Run != nil }) // perhaps out of nothing that is fetched
	if plan.InPlace == "" && len(plan.Files) == 0 && !built || plan.InPlace != "" && len(plan.Files) > 0 || len(plan.Files) > 16 || plan.InPlace != "" && !filepath.IsAbs(plan.InPlace) {
		return bad("it has %d files", len(plan.Files))
	}
	for _, f := range plan.Files {
		if err := validPath(f.Path); err != nil {
			return bad("%v", err)
		}
		if f.Digests == (vendor.Digests{}) {
			return bad("it gives no digest for %q", f.Path)
		}
	}
	for _, st := range plan.Steps {
		if plan.InPlace != "" && st.Expect == nil {
			return bad("it would change a folder that is not Apiary's")
		}
		if st.Run != nil {
			if err := checkRun(st.Run); err != nil {
				return bad("%v", err)
			}
		}
	}
	return nil
}

// withFiles fetches files and calls f while all of them are held.
func (s *Store) withFiles(ctx context.Context, from origin, plan *vendor.Plan, files []vendor.File, got map[string]fetched, what string, report Report, f func() error) error {
	if len(files) == 0 {
		return f()
	}
	return s.fetch(ctx, from, files[0], s.packedLimit(plan, files[0].Path), what, report, func() bool { return false }, func(g fetched) error {
		got[files[0].Path] = g
		return s.withFiles(ctx, from, plan, files[1:], got, what, report, f)
	})
}

// packedLimit is the most that an archive may have which unpacks to no more than the plan allows: what cannot be packed gets
// hardly larger, and every entry has its header.
func (s *Store) packedLimit(plan *vendor.Plan, file string) int64 {
	limit := int64(s.opts.MaxFile)
	for _, st := range plan.Steps {
		if x := st.Extract; x != nil && x.File == file && x.MaxBytes > 0 {
			entries := int64(maxArchiveEntries)
			if x.MaxEntries > 0 {
				entries = min(entries, int64(x.MaxEntries))
			}
			unpacked := min(x.MaxBytes, limit) // no overflow, whatever the plan says
			limit = min(limit, unpacked+unpacked/512+entries*headerAllowance+64<<10)
		}
	}
	return limit
}

// build makes the engine's folder, tests it and publishes it.
func (s *Store) build(ctx context.Context, e *engineEntry, prov vendor.Provisioner, plan *vendor.Plan, got map[string]fetched, report Report) error {
	tmp := s.path("engines", tmpPrefix+hashText(plan.Reference)[:24])
	if err := removeAll(tmp); err != nil { // left by a process that died; its lock is ours now
		return err
	}
	full := func(err error) error { return s.noSpace(err, "installing the engine "+e.ID, int64(e.SizeBytes)) }
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return full(err)
	}
	defer func() { _ = removeAll(tmp) }()
	for _, st := range plan.Steps {
		if err := s.step(ctx, tmp, st, got, report); err != nil {
			return err
		}
	}
	s.at("engine unpacked")
	size, err := syncTree(tmp)
	if err != nil {
		return full(err)
	}
	e.SizeBytes = contract.Bytes(size)
	if err := s.selfTest(ctx, e, prov, plan, tmp, report); err != nil {
		return err
	}
	var list []contract.File
	for _, f := range plan.Files {
		list = append(list, contract.File{Path: f.Path, SHA256: got[f.Path].sha256})
	}
	if slices.ContainsFunc(plan.Steps, func(st vendor.Step) bool { return st.Run != nil }) {
		// The same sources, built in another way, are another engine.
		steps, err := json.Marshal(plan.Steps)
		if err != nil {
			return err
		}
		list = append(list, contract.File{Path: "steps", SHA256: hashText(string(steps))})
	}
	e.SHA256 = digestOf(list)
	if len(plan.Files) == 1 {
		e.SHA512 = got[plan.Files[0].Path].sha512
	}
	e.Dir = filepath.Join(e.Name, e.Version+"-"+e.SHA256[:12])
	s.at("engine tested")
	unlock, err := s.lockCatalog(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.publishEngineDir(tmp, s.EngineDir(e.Engine)); err != nil {
		return full(err)
	}
	s.at("engine renamed")
	return s.publishJSON(s.entryPath("engines", e.ID), e)
}

// publishEngineDir gives a finished folder its name. One that has the name already is of a process that died before it could
// put it into the catalog, or of an entry that was lost; nobody can have started it from the catalog.
func (s *Store) publishEngineDir(tmp, dir string) error {
	parent := filepath.Dir(dir)
	if err := folder.Make(s.home, "engines/"+filepath.Base(parent)); err != nil {
		return err
	}
	old := tmp + "-old"
	if err := os.RemoveAll(old); err != nil {
		return err
	}
	if err := os.Rename(dir, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("publish engine: %w", err)
	}
	return errors.Join(syncDir(parent), syncDir(filepath.Dir(parent)), os.RemoveAll(old))
}

// installInPlace tests and lists an engine that stays where it is. Its ID holds the digest of its files, so that a build that
// was replaced is tested again.
func (s *Store) installInPlace(ctx context.Context, e *engineEntry, prov vendor.Provisioner, plan *vendor.Plan, report Report) (contract.Engine, error) {
	for _, st := range plan.Steps {
		if err := expect(plan.InPlace, st.Expect); err != nil {
			return contract.Engine{}, err
		}
	}
	sha, size, err := listing(ctx, plan.InPlace)
	if err != nil {
		return contract.Engine{}, err
	}
	e.ID, e.SHA256, e.SizeBytes, e.Dir = plan.Reference+"@"+sha[:12], sha, contract.Bytes(size), plan.InPlace
	all, err := s.engines()
	if err != nil {
		return contract.Engine{}, err
	}
	if i := slices.IndexFunc(all, func(o engineEntry) bool { return o.ID == e.ID }); i >= 0 {
		report(contract.ActionPresent, e.ID+" is listed already", nil)
		return all[i].Engine, s.addReference(ctx, &all[i], e.References[0])
	}
	if err := s.selfTest(ctx, e, prov, plan, plan.InPlace, report); err != nil {
		return contract.Engine{}, err
	}
	unlock, err := s.lockCatalog(ctx)
	if err != nil {
		return contract.Engine{}, err
	}
	defer unlock()
	for _, o := range all {
		if o.Dir == e.Dir {
			if err := s.dropEntry("engines", o.ID); err != nil {
				return contract.Engine{}, err
			}
		}
	}
	if err := s.publishJSON(s.entryPath("engines", e.ID), e); err != nil {
		return contract.Engine{}, err
	}
	report("publish", e.ID+" is listed", nil)
	return e.Engine, nil
}

// RemoveEngine takes the engine that ref names out of the catalog and removes its folder; one in place keeps it. Whether it
// is in use is the caller's business.
func (s *Store) RemoveEngine(ref string) error {
	unlock, err := s.lockCatalog(context.Background())
	if err != nil {
		return err
	}
	defer unlock()
	e, err := s.Engine(ref)
	if err != nil {
		return err
	}
	if filepath.IsAbs(e.Dir) {
		return s.dropEntry("engines", e.ID)
	}
	trash := s.path("engines", tmpPrefix+"rm-"+hashText(e.ID)[:24])
	if err := os.RemoveAll(trash); err != nil {
		return err
	}
	// The folder goes first: an entry without one is not listed, and installing it again replaces it.
	if err := os.Rename(s.EngineDir(e), trash); err != nil {
		return fmt.Errorf("remove engine: %w", err)
	}
	s.at("engine dropped")
	return errors.Join(s.dropEntry("engines", e.ID), os.RemoveAll(trash))
}

// listing is the SHA-256 of the list of the digests, sizes and names of all files below dir, links followed, and the sum of
// their sizes.
func listing(ctx context.Context, dir string) (sha string, size int64, err error) {
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", 0, fmt.Errorf("read the engine's folder: %w", err)
	}
	var list strings.Builder
	entries := 0
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if entries++; entries > maxArchiveEntries {
			return fault.New(fault.Invalid, "engine_too_large", "The folder %s holds more than %d files, so it is not the folder of an engine alone; give that.", dir, maxArchiveEntries)
		}
		if st, err := os.Stat(p); err != nil || !st.Mode().IsRegular() {
			return nil // a link to nowhere, a socket
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		n, err := copyContext(ctx, h, f, nil)
		if err != nil {
			return err
		}
		size += n
		rel, err := filepath.Rel(dir, p)
		fmt.Fprintf(&list, "%x %d %q\n", h.Sum(nil), n, rel)
		return err
	})
	if err != nil {
		return "", 0, fmt.Errorf("read the engine's folder: %w", err)
	}
	return hashText(list.String()), size, nil
}
