package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/vendors/builtin"
)

// indexModel is a model in the index that the examples of plugins read.
type indexModel struct {
	Name        string      `json:"name"`
	Description string      `json:"description"`
	Format      string      `json:"format"`
	Files       []indexFile `json:"files"`
	open        func() (io.ReadSeekCloser, error)
}

type indexFile struct {
	Path   string `json:"path"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	URL    string `json:"url"`
}

// pluginServe is a server to try a plugin with.
func (a *app) pluginServe() *cobra.Command {
	var listen string
	c := &cobra.Command{Use: "serve [FILE]…", Short: "Serve models on this machine as a JSON index, to try a plugin with",
		Long: "Serve models on this machine as a JSON index, to try a plugin with: GGUF files under their names, or, without any, the model that\ntravels in this program under the name stories. It serves until it is stopped.",
		RunE: interruptible(func(ctx context.Context, args []string) error {
			models, err := indexModels(ctx, args)
			if err != nil {
				return err
			}
			if host, _, err := net.SplitHostPort(listen); err != nil || net.ParseIP(host) == nil || !net.ParseIP(host).IsLoopback() {
				return fault.New(fault.Invalid, "bad_flag", "--listen must be an address of this machine alone, for example 127.0.0.1:7899, not %q.", listen)
			}
			l, err := net.Listen("tcp", listen)
			if err != nil {
				return fault.New(fault.Conflict, "port_taken", "The index cannot listen at %s: %w; choose another address with --listen.", listen, err)
			}
			base := "http://" + l.Addr().String()
			if err := a.tell("%s at %s/index.json, until it is stopped", plural(len(models), "model"), base); err != nil {
				return errors.Join(err, l.Close())
			}
			s := &http.Server{Handler: indexHandler(base, models), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
			stop := context.AfterFunc(ctx, func() { _ = s.Close() })
			defer stop()
			if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve the index: %w", err)
			}
			return nil
		})}
	c.Flags().StringVar(&listen, "listen", "127.0.0.1:7899", "`address` to listen at")
	return c
}

// indexModels reads what is served once, for sizes and digests.
func indexModels(ctx context.Context, files []string) ([]indexModel, error) {
	var models []indexModel
	for _, path := range files {
		models = append(models, indexModel{
			Name: strings.TrimSuffix(filepath.Base(path), filepath.Ext(path)), Description: "A file of this machine.",
			Files: []indexFile{{Path: filepath.Base(path)}},
			open: func() (io.ReadSeekCloser, error) {
				f, err := os.Open(path)
				if err != nil {
					return nil, fault.New(fault.NotFound, "file_not_found", "The model %s cannot be read: %w.", path, err)
				}
				return f, nil
			},
		})
	}
	if len(files) == 0 {
		body, _, err := builtin.New().Open(ctx, builtin.Scheme+":stories260k")
		if err != nil {
			return nil, err
		}
		raw, err := io.ReadAll(body)
		if err = errors.Join(err, body.Close()); err != nil {
			return nil, fmt.Errorf("read the model in this program: %w", err)
		}
		models = []indexModel{{Name: "stories", Description: "A very small model that tells stories.", Files: []indexFile{{Path: "stories.gguf"}},
			open: func() (io.ReadSeekCloser, error) { return inMemory{bytes.NewReader(raw)}, nil }}}
	}
	for i := range models {
		m := &models[i]
		m.Format = "gguf"
		f, err := m.open()
		if err != nil {
			return nil, err
		}
		sum := sha256.New()
		m.Files[0].Size, err = io.Copy(sum, f)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("read the model %s: %w", m.Name, err)
		}
		m.Files[0].SHA256 = hex.EncodeToString(sum.Sum(nil))
	}
	return models, nil
}

type inMemory struct{ *bytes.Reader }

func (inMemory) Close() error { return nil }

// indexHandler serves the index, and each model at /models/NUMBER/PATH.
func indexHandler(base string, models []indexModel) http.Handler {
	mux := http.NewServeMux()
	for i := range models {
		m := &models[i]
		path := fmt.Sprintf("/models/%d/", i)
		m.Files[0].URL = base + path + url.PathEscape(m.Files[0].Path)
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			f, err := m.open()
			if err != nil {
				http.NotFound(w, r)
				return
			}
			defer func() { _ = f.Close() }()
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Header().Set("ETag", `"`+m.Files[0].SHA256+`"`)
			http.ServeContent(w, r, "", time.Time{}, f)
		})
	}
	mux.HandleFunc("GET /index.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"models": models})
	})
	return mux
}
