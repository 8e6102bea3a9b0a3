package echo

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/workers/sdk"
)

// The echo worker stands behind the relays that are measured, so its own cost is watched: both ends of a request on loopback.
func BenchmarkChat(b *testing.B) {
	for name, prompt := range map[string]string{"1KB": strings.Repeat("bee ", 250), "32KB": strings.Repeat("bee ", 8000)} {
		b.Run(name, func(b *testing.B) {
			url := inProcess(b, func(f *Faults, c *sdk.Config) { f.Tokens, c.Slots = 1, 64 })
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
			body := `{"model":"m","messages":[{"role":"user","content":"` + prompt + `"}]}`
			b.ReportAllocs()
			for b.Loop() {
				req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, url+"/v1/chat/completions", strings.NewReader(body))
				if err != nil {
					b.Fatal(err)
				}
				req.Header.Set("Authorization", "Bearer "+key.Reveal())
				req.Header.Set("Content-Type", "application/json")
				res, err := client.Do(req)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
					b.Fatal(res.StatusCode, err)
				}
				_ = res.Body.Close()
			}
		})
	}
}
