// Package llamaserver knows the command line of llama.cpp's server, for the provisioners whose engines are builds of it. It is a
// matter of text alone.
package llamaserver

import (
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Program is the usual name of the program.
const Program = "llama-server"

// readyTime is how long the server may take to load a model.
const readyTime = 600

// Launch says how the server at program, a path relative to the engine's folder, is started. Its libraries are looked for beside it.
func Launch(program string, req vendor.LaunchRequest) *vendor.LaunchSpec {
	args := []string{"--model", req.Model, "--host", "127.0.0.1", "--port", "{port}"}
	number := func(option string, n int32) {
		if n > 0 {
			args = append(args, option, strconv.Itoa(int(n)))
		}
	}
	if req.ModelName != "" {
		args = append(args, "--alias", req.ModelName)
	}
	// The server divides its context between its slots.
	number("--ctx-size", req.Context*max(req.Slots, 1))
	number("--parallel", req.Slots)
	number("--threads", req.Threads)
	if on := devices(req.Devices); on != "" {
		args = append(args, "--device", on)
	}
	return &vendor.LaunchSpec{
		Path: program, Args: args, Env: map[string]string{"LD_LIBRARY_PATH": filepath.Join(req.EngineDir, filepath.FromSlash(path.Dir(program)))},
		Protocol: vendor.ProtocolOpenAI, ReadyPath: "/health", ReadyTimeoutSeconds: readyTime,
	}
}

// devices names Apiary's devices as llama.cpp does: "CUDA0,Vulkan1", "none" for the processor alone. It is empty where the server is
// to choose.
func devices(ids []string) string {
	var out []string
	for _, id := range ids {
		kind := strings.TrimRight(id, "0123456789")
		number := id[len(kind):]
		switch kind {
		case "cuda":
			out = append(out, "CUDA"+number)
		case "vulkan":
			out = append(out, "Vulkan"+number)
		case "rocm":
			out = append(out, "ROCm"+number)
		case "cpu":
		default:
			return "" // one whose name is not known, such as Apple's, of which there is one
		}
	}
	if len(out) == 0 && len(ids) > 0 {
		return "none"
	}
	return strings.Join(out, ",")
}

// Segment makes a text, such as a version, the name of a folder as plans have it.
func Segment(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '_' {
			return r
		}
		return '-'
	}, strings.ToLower(s))
	return strings.TrimLeft(strings.ReplaceAll(s[:min(len(s), 64)], "..", "-"), "._-")
}
