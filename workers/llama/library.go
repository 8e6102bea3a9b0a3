package llama

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"github.com/ebitengine/purego"
	"github.com/hybridgroup/yzma/pkg/llama"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// Build is the version of llama.cpp whose structures the binding knows. Libraries of another would read them wrongly, and end
// the process at best.
const Build = "0.4.0"

// Library is the engine's shared libraries, loaded. A process can load one engine, once, and keeps it until it ends.
type Library struct {
	dir   string
	build string

	tokenize, threadpoolNew, threadpoolFree uintptr

	log   *logSink
	abort *abortSink
}

// OpenLibrary loads the engine in dir. It fails with a sentence that says what is missing and what to install.
func OpenLibrary(dir string, log *slog.Logger) (*Library, error) {
	if strings.ContainsRune(dir, 0) {
		return nil, engineFault("The engine folder's name has a zero byte in it; choose another folder.")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find the engine folder: %w", err)
	}
	for _, name := range []string{"ggml-base", "ggml", "llama"} {
		if _, err := os.Stat(libraryFile(dir, name)); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil, engineFault("The folder %s holds no engine: it has no file %s; install one with 'apiary engine install'.", dir, filepath.Base(libraryFile(dir, name)))
			}
			return nil, engineFault("The engine in %s cannot be read: %w", dir, err)
		}
	}
	l := &Library{dir: dir, log: &logSink{log: log}, abort: &abortSink{log: log}}
	base, err := l.open("ggml-base")
	if err != nil {
		return nil, err
	}
	if _, err := l.open("ggml"); err != nil {
		return nil, err
	}
	lib, err := l.open("llama")
	if err != nil {
		return nil, err
	}
	if l.build, err = version(lib); err != nil || !strings.HasPrefix(l.build, Build) {
		return nil, engineFault("The engine in %s is llama.cpp %s and this Apiary works with %s; install that version with 'apiary engine install'.", dir, orUnknown(l.build), Build)
	}
	if err := llama.Load(dir); err != nil {
		return nil, engineFault("The engine in %s does not have what llama.cpp %s has (%w); install it again with 'apiary engine install'.", dir, Build, err)
	}
	llama.LogSet(purego.NewCallback(func(level int32, text, _ uintptr) uintptr {
		l.log.write(llama.LogLevel(level), text)
		return 0
	}))
	if set, err := purego.Dlsym(base, "ggml_set_abort_callback"); err == nil {
		purego.SyscallN(set, purego.NewCallback(func(text uintptr) uintptr { // it returns nothing that C reads
			l.abort.say(cString(text, 2048))
			return 0
		}))
	}
	llama.Init()
	if llama.GGMLBackendDeviceByType(llama.GGMLBackendDeviceTypeCPU) == 0 {
		return nil, engineFault("The engine in %s has no part that runs on this processor (%s); install an engine for this platform.%s", dir, runtime.GOARCH, l.backendProblem())
	}
	if l.tokenize, err = purego.Dlsym(lib, "llama_tokenize"); err != nil {
		return nil, engineFault("The engine in %s lacks llama_tokenize; install it again with 'apiary engine install'.", dir)
	}
	l.findThreadpool(base)
	return l, nil
}

func engineFault(format string, args ...any) error {
	return fault.New(fault.Unavailable, "engine_unusable", format, args...)
}

func orUnknown(s string) string {
	if s == "" {
		return "of an unknown version"
	}
	return s
}

func libraryFile(dir, name string) string {
	ext := ".so"
	if runtime.GOOS == "darwin" {
		ext = ".dylib"
	}
	return filepath.Join(dir, "lib"+name+ext)
}

func (l *Library) open(name string) (uintptr, error) {
	path := libraryFile(l.dir, name)
	h, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return 0, engineFault("The engine library %s cannot be loaded (%w)%s", path, err, hint(err.Error()))
	}
	return h, nil
}

// hint says which package brings a library that the dynamic linker missed.
func hint(message string) string {
	for _, p := range []struct{ in, advice string }{
		{"libstdc++", "install the C++ runtime (Debian, Ubuntu: apt install libstdc++6)"},
		{"libgomp", "install the OpenMP runtime (Debian, Ubuntu: apt install libgomp1)"},
		{"libgcc_s", "install the GCC runtime (Debian, Ubuntu: apt install libgcc-s1)"},
		{"libvulkan", "install the Vulkan loader (Debian, Ubuntu: apt install libvulkan1)"},
		{"libcudart", "install the CUDA 13 runtime (NVIDIA's packages cuda-cudart-13-0 and libcublas-13-0)"},
		{"libcublas", "install the CUDA 13 runtime (NVIDIA's packages cuda-cudart-13-0 and libcublas-13-0)"},
		{"libcuda.so", "install the NVIDIA driver"},
		{"GLIBC_", "this system's glibc is too old; use a newer release of the system"},
		{"GLIBCXX_", "this system's C++ runtime is too old; use a newer release of the system"},
		{"invalid ELF header", "the file is damaged or made for another platform; install the engine again"},
		{"file too short", "the file is damaged; install the engine again"},
		{"wrong ELF class", "the file is made for another platform; install the engine for this one"},
	} {
		if strings.Contains(message, p.in) {
			return "; " + p.advice + "."
		}
	}
	return "; install the engine again with 'apiary engine install'."
}

// version asks the library for its version. The symbol is new enough that an old library lacks it.
func version(lib uintptr) (string, error) {
	f, err := purego.Dlsym(lib, "llama_version")
	if err != nil {
		return "", err
	}
	r, _, _ := purego.SyscallN(f)
	return cString(r, 64), nil
}

// cString copies the C string at p, at most limit bytes of it.
func cString(p uintptr, limit int) string {
	if p == 0 {
		return ""
	}
	start := *(*unsafe.Pointer)(unsafe.Pointer(&p)) // C memory: the collector does not move it
	n := 0
	for n < limit && *(*byte)(unsafe.Add(start, n)) != 0 {
		n++
	}
	return string(unsafe.Slice((*byte)(start), n))
}

// Devices returns what the engine can run on. IDs count the devices of each kind from 0.
func (l *Library) Devices() []contract.Device {
	var out []contract.Device
	for _, d := range l.devices() {
		out = append(out, d.Device)
	}
	return out
}

// nativeDevice is a device with the handle that llama.cpp wants.
type nativeDevice struct {
	contract.Device
	handle llama.GGMLBackendDevice
}

func (l *Library) devices() []nativeDevice {
	var out []nativeDevice
	seen := map[string]int{}
	for i := range llama.GGMLBackendDeviceCount() {
		h := llama.GGMLBackendDeviceGet(i)
		kind := kindOf(llama.GGMLBackendRegName(llama.GGMLBackendDeviceBackendReg(h)))
		switch llama.GGMLBackendDevType(h) {
		case llama.GGMLBackendDeviceTypeGPU, llama.GGMLBackendDeviceTypeIGPU, llama.GGMLBackendDeviceTypeCPU:
		default:
			continue // BLAS and the like help the processor; they are no place for a model
		}
		free, total := llama.GGMLBackendDeviceMemory(h)
		d := nativeDevice{handle: h, Device: contract.Device{
			ID: fmt.Sprintf("%s%d", kind, seen[kind]), Kind: kind, Name: llama.GGMLBackendDeviceDescription(h),
			MemoryFree: contract.Bytes(free), MemoryTotal: contract.Bytes(total), Source: "engine",
		}}
		if kind == "cpu" {
			d.Cores = runtime.NumCPU()
		}
		seen[kind]++
		out = append(out, d)
	}
	return out
}

// kindOf translates ggml's name of a backend to that of the worker contract.
func kindOf(registry string) string {
	switch k := strings.ToLower(registry); k {
	case "mtl":
		return "metal"
	case "hip":
		return "rocm"
	default:
		return k
	}
}

// pick returns the accelerators among ids ("cpu0", "cuda0", …). Without one the model runs on the processor.
func (l *Library) pick(ids []string) ([]llama.GGMLBackendDevice, error) {
	var out []llama.GGMLBackendDevice
	known := l.devices()
	for _, id := range ids {
		found := false
		var names []string
		for _, d := range known {
			names = append(names, d.ID)
			if d.ID == id {
				found = true
				if d.Kind != "cpu" {
					out = append(out, d.handle)
				}
			}
		}
		if !found {
			return nil, fault.New(fault.Invalid, "device_unknown", "The engine in %s cannot use the device %q; it has %s.%s",
				l.dir, id, strings.Join(names, ", "), l.backendProblem())
		}
	}
	return out, nil
}

// freeOn is what is free on those of the devices that are accelerators, all together.
func (l *Library) freeOn(ids []string) contract.Bytes {
	var free contract.Bytes
	for _, d := range l.devices() {
		if d.Kind != "cpu" && slices.Contains(ids, d.ID) {
			free += d.MemoryFree
		}
	}
	return free
}

// taken is what a model took of its accelerators' memory, by what was free before it was loaded and after. The engine does not say what is its
// own: where other programs took or gave back so much meanwhile that it cannot be this model's, it is not known, which is 0. All of
// it is allocated by then: weights, cache and buffers.
func taken(before, after contract.Bytes, path string) contract.Bytes {
	size, err := checkFile(path)
	if err != nil || after >= before || before-after > 8*size+8*contract.GiB {
		return 0
	}
	return before - after
}

// backendProblem explains why a backend that lies in the engine's folder is not there: ggml passes over one that it cannot load
// without a word.
func (l *Library) backendProblem() string {
	files, _ := filepath.Glob(libraryFile(l.dir, "ggml-*"))
	for _, f := range files {
		name := strings.TrimPrefix(filepath.Base(f), "libggml-")
		name, _, _ = strings.Cut(name, ".")
		if name == "base" || strings.HasPrefix(name, "cpu") {
			continue
		}
		if _, err := purego.Dlopen(f, purego.RTLD_NOW|purego.RTLD_LOCAL); err != nil {
			return fmt.Sprintf(" Its part %s cannot be loaded (%v)%s", filepath.Base(f), err, hint(err.Error()))
		}
	}
	return ""
}

// abortSink is told when an assertion of ggml fails, after which the process ends. While a model is being loaded that means a
// damaged file, whose numbers ggml believed: the thread is then held for good instead, so that the worker can say what
// happened and end in order.
type abortSink struct {
	log *slog.Logger

	mu      sync.Mutex // guards the field below
	loading chan string
}

func (s *abortSink) say(text string) {
	s.log.Error("llama.cpp gives up", "text", text)
	s.mu.Lock()
	loading := s.loading
	s.mu.Unlock()
	if loading == nil {
		return
	}
	select {
	case loading <- text:
	default:
	}
	<-make(chan struct{})
}

// during makes assertions that fail arrive on the returned channel, until end is called.
func (s *abortSink) during() (failed <-chan string, end func()) {
	ch := make(chan string, 1)
	s.mu.Lock()
	s.loading = ch
	s.mu.Unlock()
	return ch, func() {
		s.mu.Lock()
		s.loading = nil
		s.mu.Unlock()
	}
}

// logSink takes llama.cpp's messages: warnings and errors go to the worker's log, and the last errors are kept to explain a
// failed load. It is called from threads of C.
type logSink struct {
	log *slog.Logger

	mu    sync.Mutex // guards the fields below
	level llama.LogLevel
	last  []string
}

func (s *logSink) write(level llama.LogLevel, text uintptr) {
	s.mu.Lock()
	if level == llama.LogLevelContinue {
		level = s.level
	}
	s.level = level
	s.mu.Unlock()
	if level != llama.LogLevelWarn && level != llama.LogLevelError {
		return
	}
	line := strings.TrimSpace(cString(text, 2048))
	if len(line) < 2 { // the dots of a progress bar
		return
	}
	if strings.Contains(line, "possible training context overflow") {
		return // it takes the cells that all requests share for those of one
	}
	if level == llama.LogLevelError {
		s.mu.Lock()
		if len(s.last) < 8 {
			s.last = append(s.last, line)
		}
		s.mu.Unlock()
	}
	if s.log != nil {
		s.log.Warn("llama.cpp says", "text", line)
	}
}

// errors returns what was said at error level since the last call.
func (s *logSink) errors() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := strings.Join(s.last, "; ")
	s.last = nil
	return out
}
