package llamaserver

import (
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

func TestLaunch(t *testing.T) {
	spec := Launch("bin/llama-server", vendor.LaunchRequest{EngineDir: "/e/x", Model: "/m/a b.gguf", ModelName: "hf:a/b", Devices: []string{"cuda0", "vulkan1"}, Context: 4096, Slots: 4, Threads: 2})
	want := "--model|/m/a b.gguf|--host|127.0.0.1|--port|{port}|--alias|hf:a/b|--ctx-size|16384|--parallel|4|--threads|2|--device|CUDA0,Vulkan1"
	if got := strings.Join(spec.Args, "|"); got != want || spec.Path != "bin/llama-server" || spec.Env["LD_LIBRARY_PATH"] != "/e/x/bin" || spec.Protocol != vendor.ProtocolOpenAI || spec.ReadyPath != "/health" {
		t.Errorf("got %q, %+v", got, spec)
	}
	spec = Launch("llama-server", vendor.LaunchRequest{EngineDir: "/e", Model: "/m"})
	if got := strings.Join(spec.Args, "|"); got != "--model|/m|--host|127.0.0.1|--port|{port}" || spec.Env["LD_LIBRARY_PATH"] != "/e" {
		t.Errorf("got %q, %v", got, spec.Env)
	}
	for ids, want := range map[string]string{"cpu0": "none", "": "", "metal0": "", "rocm2": "ROCm2", "cpu0,cuda0": "CUDA0"} {
		if got := devices(strings.FieldsFunc(ids, func(r rune) bool { return r == ',' })); got != want {
			t.Errorf("%s: %q", ids, got)
		}
	}
}
