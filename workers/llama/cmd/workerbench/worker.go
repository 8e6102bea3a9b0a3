package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// worker is a worker process and the way to it.
type worker struct {
	cmd    *exec.Cmd
	base   string
	secret string
	client *http.Client
}

// startWorker starts the worker and waits until it has loaded the model.
func startWorker(ctx context.Context, o options, contextLength, slots int, errs io.Writer) (*worker, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	path := o.worker
	if path == "" {
		if path, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("find this program: %w", err)
		}
	}
	key := make([]byte, 32)
	for i := range key {
		key[i] = byte(rand.Uint32())
	}
	w := &worker{base: "http://127.0.0.1:" + strconv.Itoa(port), secret: hex.EncodeToString(key),
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	r, pipe, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	w.cmd = exec.Command(path, "serve", "--worker-id", "bench", "--model", "bench", "--model-path", o.model, "--engine-dir", o.engine,
		"--device", "cpu0", "--port", strconv.Itoa(port), "--hive-id", "bench", "--spawn-key", "bench", "--secret-fd", "3",
		"--context", strconv.Itoa(contextLength), "--slots", strconv.Itoa(slots), "--threads", strconv.Itoa(o.threads), "--drain", "1s")
	w.cmd.ExtraFiles = []*os.File{r}
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if o.verbose {
		w.cmd.Stderr = errs
	}
	if err := w.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the worker: %w", err)
	}
	_ = r.Close()
	if _, err := io.WriteString(pipe, w.secret); err != nil {
		return nil, errors.Join(err, w.stop())
	}
	_ = pipe.Close()
	deadline := time.Now().Add(2 * time.Minute)
	for time.Now().Before(deadline) && ctx.Err() == nil {
		if w.ready(ctx) {
			return w, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil, errors.Join(errors.New("the worker was not ready within two minutes; run with -v for its log"), w.stop())
}

func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

func (w *worker) ready(ctx context.Context) bool {
	resp, err := w.do(ctx, http.MethodGet, "/info", nil)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	var info contract.WorkerInfo
	return json.NewDecoder(resp.Body).Decode(&info) == nil && info.Status == contract.StatusReady
}

func (w *worker) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, w.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+w.secret)
	req.Header.Set("Content-Type", "application/json")
	return w.client.Do(req)
}

// round streams n tokens for each prompt, all at once, and returns tokens per second.
func (w *worker) round(ctx context.Context, prompts []string, n int) (float64, error) {
	start := time.Now()
	results := make([]error, len(prompts))
	var wg sync.WaitGroup
	for i, p := range prompts {
		wg.Go(func() { results[i] = w.stream(ctx, p, n) })
	}
	wg.Wait()
	return float64(len(prompts)*n) / time.Since(start).Seconds(), errors.Join(results...)
}

// stream reads one completion to its end and checks the number of its tokens.
func (w *worker) stream(ctx context.Context, prompt string, n int) error {
	body, err := json.Marshal(map[string]any{"model": "bench", "prompt": prompt, "max_tokens": n, "temperature": 0, "stream": true, "ignore_eos": true})
	if err != nil {
		return err
	}
	resp, err := w.do(ctx, http.MethodPost, "/v1/completions", body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("the worker answered %s: %s", resp.Status, text)
	}
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		if bytes.HasPrefix(s.Bytes(), []byte(`data: {"error"`)) {
			return fmt.Errorf("the stream failed: %s", s.Bytes())
		}
	}
	var u contract.Usage
	if err := json.Unmarshal([]byte(resp.Trailer.Get(contract.UsageTrailer)), &u); err != nil || u.CompletionTokens != n {
		return fmt.Errorf("the stream ended with usage %+v, want %d tokens (%w)", u, n, err)
	}
	return nil
}

// stop ends the worker.
func (w *worker) stop() error {
	if err := w.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	kill := time.AfterFunc(10*time.Second, func() { _ = w.cmd.Process.Kill() })
	defer kill.Stop()
	return w.cmd.Wait()
}
