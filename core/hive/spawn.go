package hive

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/device"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/job"
	"github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/core/secret"
)

// maxPorts is how many ports are tried when workers find theirs taken.
const maxPorts = 5

// echoScheme marks models that exist in the echo worker alone.
const echoScheme = "echo:"

// spawn starts a worker, or returns the one that runs under the same spawn key.
func (h *Hive) spawn(ctx context.Context, n *job.Narrator, spec contract.WorkerSpawn) (contract.WorkerSpawned, error) {
	var none contract.WorkerSpawned
	if spec.SpawnKey == "" {
		spec.SpawnKey = defaultKey(spec.WorkerID)
	}
	if len(spec.Devices) == 0 {
		spec.Devices = []string{"cpu0"}
	}
	if len(spec.QueenURLs) == 0 {
		spec.QueenURLs = h.queens()
	}
	launch := h.opts.Launchers[spec.Worker.Adapter]
	if launch == nil {
		return none, invalid("worker", "This hive cannot start workers of the adapter %q; it knows %s.", spec.Worker.Adapter,
			strings.Join(slices.Sorted(maps.Keys(h.opts.Launchers)), ", "))
	}
	if err := h.checkFence(spec.Devices); err != nil {
		return none, err
	}
	// Before fetching anything: the same key again is common, because replies get lost.
	if found, err := h.existing(spec); err != nil || found != nil {
		return narrateExisting(n, found), err
	}
	if err := h.checkDevices(ctx, spec); err != nil {
		return none, err
	}
	system, err := h.devices.newest(ctx, deviceEvery)
	if err != nil {
		return none, err
	}
	if err := device.CheckThreads(h.opts.Name, system, spec.Threads); err != nil {
		return none, err
	}
	if spec.Worker.Source != "" && h.opts.Artifacts.IsServer(ctx, spec.Worker.Source) { // before anything is fetched
		return none, fault.New(fault.Invalid, "engine_is_server", "The engine %s of the worker %q is a server program, and workers of the adapter %q run llama.cpp's libraries; give the worker an engine of npm: or path:.",
			cut(spec.Worker.Source, 200), spec.Worker.Name, spec.Worker.Adapter)
	}
	modelPath, model, err := h.modelPath(ctx, n, spec)
	if err != nil {
		return none, err
	}
	engineDir, err := h.engineDir(ctx, n, spec)
	if err != nil {
		return none, err
	}
	if err := h.checkDevices(ctx, spec); err != nil { // the engine may have come just now
		return none, err
	}
	path, prefix, err := launch(ctx, spec, engineDir)
	if err != nil {
		return none, fmt.Errorf("prepare the program of adapter %s: %w", spec.Worker.Adapter, err)
	}
	if !filepath.IsAbs(path) {
		return none, fmt.Errorf("the program %q of adapter %s is not named by an absolute path", path, spec.Worker.Adapter)
	}
	if spec.Threads == 0 {
		spec.Threads = device.FreeCores()
	}

	for _, key := range []string{"worker " + spec.WorkerID, "key " + spec.SpawnKey} {
		unlock, err := h.keys.lock(ctx, key)
		if err != nil {
			return none, err
		}
		defer unlock()
	}
	if found, err := h.existing(spec); err != nil || found != nil {
		return narrateExisting(n, found), err
	}
	tried := map[int]bool{}
	for len(tried) < maxPorts {
		running, err := process.Scan(h.opts.NodeID)
		if err != nil {
			return none, err
		}
		port, err := h.takePort(running, tried)
		if err != nil {
			return none, err
		}
		tried[port] = true
		args := append(slices.Clone(prefix), h.arguments(spec, port, modelPath, engineDir)...)
		id, taken, err := h.start(ctx, spec, program{path: path, engine: engineDir, model: model}, args, port)
		h.freePort(port)
		switch {
		case err != nil:
			return none, err
		case taken:
			n.Warn("spawn", "Port %d was taken by another program; another port is tried.", port)
			continue
		}
		n.Info("spawn", "Worker %s runs as process %d on port %d of %s.", spec.WorkerID, id.PID, port, strings.Join(spec.Devices, ","))
		h.log.Info("worker started", "worker", spec.WorkerID, "pid", id.PID, "port", port, "model", spec.Model)
		return contract.WorkerSpawned{Identity: id, Port: port, Address: h.host, HiveID: h.opts.NodeID}, nil
	}
	return none, fault.New(fault.Unavailable, "port_taken", "Worker %q found %d ports taken one after the other; see what else listens between %d and %d.",
		spec.WorkerID, maxPorts, h.opts.Ports[0], h.opts.Ports[1])
}

func narrateExisting(n *job.Narrator, found *contract.WorkerSpawned) contract.WorkerSpawned {
	if found == nil {
		return contract.WorkerSpawned{}
	}
	n.Info("spawn", "Worker %s runs already as process %d on port %d.", found.WorkerID, found.PID, found.Port)
	return *found
}

// defaultKey is the spawn key of a spawn without one.
func defaultKey(workerID string) string { return workerID }

// existing looks for the spawn in the process table: nil when nothing stands in its way.
func (h *Hive) existing(spec contract.WorkerSpawn) (*contract.WorkerSpawned, error) {
	running, err := process.Scan(h.opts.NodeID)
	if err != nil {
		return nil, err
	}
	var found *process.Entry
	for i, e := range running {
		if e.SpawnKey == spec.SpawnKey && (found == nil || e.Generation > found.Generation) {
			found = &running[i]
		}
	}
	taken := func(id, how string) error {
		return fault.New(fault.Conflict, "worker_exists", "A worker %q runs already %s; choose another id or delete it first.", id, how)
	}
	switch {
	case found != nil && spec.SpawnKey == defaultKey(spec.WorkerID) && found.Model != spec.Model:
		return nil, taken(found.WorkerID, "and serves another model") // a name that was chosen twice, not a spawn that is repeated
	case found != nil && found.Generation > spec.Generation:
		return nil, fault.New(fault.Conflict, "stale_generation",
			"Generation %d of %q was asked for, but worker %q of generation %d runs already; the asker's plan is out of date.",
			spec.Generation, spec.SpawnKey, found.WorkerID, found.Generation)
	case found != nil && found.Generation == spec.Generation:
		return &contract.WorkerSpawned{Identity: found.Identity, Port: found.Port, Address: h.host, HiveID: h.opts.NodeID, Existing: true}, nil
	}
	for _, e := range running {
		if e.WorkerID == spec.WorkerID {
			return nil, taken(e.WorkerID, "under another spawn key")
		}
	}
	return nil, nil
}

// modelPath resolves the model in the catalog, fetching it when it is missing, and says what a worker reads of it. It is "" for a
// model of the echo worker.
func (h *Hive) modelPath(ctx context.Context, n *job.Narrator, spec contract.WorkerSpawn) (path string, files []string, err error) {
	if strings.HasPrefix(spec.Model, echoScheme) {
		if spec.Worker.Adapter != "echo" {
			return "", nil, invalid("model", "The model %s exists in echo workers only; the worker %q has the adapter %q.", spec.Model, spec.Worker.Name, spec.Worker.Adapter)
		}
		return "", nil, nil
	}
	if spec.Worker.Adapter == "echo" {
		return "", nil, invalid("model", "The worker %q serves only models of its own, such as echo:hello; %s needs another worker.", spec.Worker.Name, cut(spec.Model, 200))
	}
	m, err := h.opts.Artifacts.Model(spec.Model)
	if fault.KindOf(err) == fault.NotFound {
		n.Info("download", "The model %s is not on this hive yet and is fetched.", spec.Model)
		m, err = h.opts.Artifacts.PullModel(ctx, spec.Model, reporter(n), h.others(spec.Peers)...)
	}
	if err != nil {
		return "", nil, err
	}
	if err := h.checkMemory(spec, m); err != nil {
		return "", nil, err
	}
	if path, err = h.opts.Artifacts.ModelPath(ctx, m); err != nil {
		return "", nil, err
	}
	return path, h.modelFiles(m, path), nil
}

// checkDevices refuses devices that are not there. The engine that is to run there is the authority once it is installed; before
// that, a driver that the system does not show may yet be found by it.
func (h *Hive) checkDevices(ctx context.Context, spec contract.WorkerSpawn) error {
	system, err := h.devices.newest(ctx, deviceEvery)
	if err != nil {
		return err
	}
	have, open := system, spec.Worker.Source != ""
	if open {
		if e, err := h.opts.Artifacts.Engine(spec.Worker.Source); err == nil {
			have, open = device.Runs(system, e.Devices), false
		}
	}
	return device.Check(h.opts.Name, have, spec.Devices, open)
}

// checkMemory refuses a model whose files alone exceed what a processor's memory has left. On a GPU the engine decides.
func (h *Hive) checkMemory(spec contract.WorkerSpawn, m contract.Model) error {
	if slices.ContainsFunc(spec.Devices, func(d string) bool { return !strings.HasPrefix(d, "cpu") }) {
		return nil
	}
	_, free, err := device.Memory()
	if err != nil {
		return err
	}
	if m.SizeBytes+h.opts.ReserveMemory > free {
		return fault.New(fault.Unavailable, "does_not_fit", "%s needs at least %s and %s of memory is free, of which hive.reserve.memory keeps %s; end something, or take a smaller model.",
			m.ID, m.SizeBytes, free, h.opts.ReserveMemory)
	}
	return nil
}

// engineDir resolves the engine in the worker catalog, installing it when it is missing. It is "" for an adapter without one.
func (h *Hive) engineDir(ctx context.Context, n *job.Narrator, spec contract.WorkerSpawn) (string, error) {
	if spec.Worker.Source == "" {
		return "", nil
	}
	e, err := h.opts.Artifacts.Engine(spec.Worker.Source)
	if fault.KindOf(err) == fault.NotFound {
		n.Info("install", "The engine %s is not on this hive yet and is installed.", spec.Worker.Source)
		e, err = h.install(ctx, n, spec.Worker.Source)
	}
	if err != nil {
		return "", err
	}
	return h.opts.Artifacts.EngineDir(e), nil
}

// arguments is the argument vector of the worker contract, extra arguments last.
func (h *Hive) arguments(spec contract.WorkerSpawn, port int, modelPath, engineDir string) []string {
	args := []string{"--worker-id", spec.WorkerID, "--model", spec.Model}
	if modelPath != "" {
		args = append(args, "--model-path", modelPath)
	}
	if engineDir != "" {
		args = append(args, "--engine-dir", engineDir)
	}
	args = append(args, "--device", strings.Join(spec.Devices, ","), "--port", strconv.Itoa(port), "--address", h.host)
	for _, q := range spec.QueenURLs {
		args = append(args, "--queen-url", q)
	}
	args = append(args, "--hive-id", h.opts.NodeID, "--spawn-key", spec.SpawnKey, "--generation", strconv.FormatInt(spec.Generation, 10),
		"--secret-fd", strconv.Itoa(process.SecretFD), "--context", strconv.Itoa(spec.Context), "--slots", strconv.Itoa(spec.Slots),
		"--threads", strconv.Itoa(spec.Threads), "--landlock", strconv.Itoa(h.support.ABI))
	return append(args, spec.Args...)
}

// environment is all that a worker sees of ours (S11): nothing but what is listed here and what the spawn declares.
func environment(spec contract.WorkerSpawn, tmp string) []string {
	path, lang := os.Getenv("PATH"), os.Getenv("LANG")
	if path == "" {
		path = "/usr/local/bin:/usr/bin:/bin"
	}
	if lang == "" {
		lang = "C.UTF-8"
	}
	env := []string{"PATH=" + path, "HOME=/nonexistent", "LANG=" + lang, "TMPDIR=" + tmp}
	if v, ok := os.LookupEnv("CUDA_VISIBLE_DEVICES"); ok {
		if _, declared := spec.Env["CUDA_VISIBLE_DEVICES"]; !declared {
			env = append(env, "CUDA_VISIBLE_DEVICES="+v)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(spec.Env)) {
		env = append(env, k+"="+spec.Env[k])
	}
	return env
}

// settleTime bounds how long a spawn watches a new worker for the discovery that its port is taken.
const settleTime = 3 * time.Second

// start starts the process and stays until it listens, has ended, or settleTime has passed. taken says that it ended because its
// port was taken; every other end is reported to the queens like one that comes later.
func (h *Hive) start(ctx context.Context, spec contract.WorkerSpawn, p program, args []string, port int) (id contract.Identity, taken bool, err error) {
	dir, tmp := h.workerDir(spec.WorkerID), h.workerTmp(spec.WorkerID)
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return id, false, fmt.Errorf("make the folder of worker %s: %w", spec.WorkerID, err)
	}
	logPath := filepath.Join(dir, logName)
	if err := process.Rotate(logPath, logMax, logKeep); err != nil {
		return id, false, err
	}
	if err := ctx.Err(); err != nil {
		return id, false, err
	}
	confined, err := h.confinement(spec, p, port)
	if err != nil {
		return id, false, err
	}
	child, err := process.Start(process.Spec{
		ExecChild: h.opts.ExecChild, Path: p.path, Args: args, Sandbox: confined, Env: environment(spec, tmp), Dir: tmp, LogPath: logPath,
		Secret: secret.ForWorker(h.opts.ClusterKey, spec.WorkerID),
	})
	if err != nil {
		return id, false, err
	}
	w := watched{child: child, spec: spec, exited: make(chan process.Exit, 1), settled: make(chan bool, 1)}
	if !h.spawnTask(func() { h.watch(w) }) {
		_, kerr := process.Kill(context.WithoutCancel(ctx), child.Identity(), h.opts.Kill)
		return id, false, errors.Join(fault.New(fault.Unavailable, "stopping", "The hive is stopping and starts no workers; try again when it is back."), kerr)
	}
	report := true
	defer func() { w.settled <- report }()
	exit, err := settle(ctx, w.exited, net.JoinHostPort(h.host, strconv.Itoa(port)))
	switch {
	case err != nil: // the job was cancelled: so is what it started
		report = false
		_, kerr := process.Kill(context.WithoutCancel(ctx), child.Identity(), h.opts.Kill)
		return id, false, errors.Join(err, kerr)
	case exit != nil && exit.Code == process.ExitPortTaken:
		report = false
		return id, true, nil
	}
	return child.Identity(), false, nil
}

// settle waits for the first of: the worker's end, a listener at addr and a moment more, settleTime.
func settle(ctx context.Context, exited <-chan process.Exit, addr string) (*process.Exit, error) {
	bound := time.NewTimer(settleTime)
	defer bound.Stop()
	listening := time.NewTicker(10 * time.Millisecond)
	defer listening.Stop()
	var moment <-chan time.Time
	for {
		select {
		case e := <-exited:
			return &e, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-bound.C:
			return nil, nil
		case <-moment:
			return nil, nil
		case <-listening.C:
			c, err := net.DialTimeout("tcp", addr, 100*time.Millisecond)
			if err != nil {
				continue
			}
			// Where ports are those that dialling uses too, a dial can meet itself.
			self := c.LocalAddr().String() == c.RemoteAddr().String()
			if _ = c.Close(); self {
				continue
			}
			// The listener may be the other program that takes the port; then the worker is about to end.
			listening.Stop()
			moment = time.After(50 * time.Millisecond)
		}
	}
}
