// Package local is the vendor of models that lie on this machine already: file:/absolute/path names a GGUF file, one shard
// of a split model, or a folder that holds one model. It looks at names and sizes only; the files stay where they are and
// core/artifact opens, checks and hashes them.
package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Scheme is the scheme of local references and of the URLs of their files.
const Scheme = "file"

// maxPath is the longest path, in bytes.
const maxPath = 4096

// maxListed bounds how many names of a folder an error message lists.
const maxListed = 8

// Vendor resolves file:PATH.
type Vendor struct{}

// New returns the vendor of local files.
func New() *Vendor { return &Vendor{} }

// Info implements vendor.Vendor.
func (v *Vendor) Info() vendor.Info {
	return vendor.Info{Name: "local", Version: "1.0.0", Kind: vendor.KindVendor, Schemes: []string{Scheme}, Description: "GGUF files on this machine, used where they lie."}
}

// Supports implements vendor.Vendor.
func (v *Vendor) Supports(ref string) bool { return strings.HasPrefix(ref, Scheme+":") }

// Resolve implements vendor.Vendor. The canonical reference is not pinned: the core adds the digest once it has read the
// files. A pinned reference (file:/m.gguf@0123456789ab) is accepted, and the core compares.
func (v *Vendor) Resolve(_ context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
	path := strings.TrimPrefix(req.Reference, Scheme+":")
	if rest, ok := strings.CutPrefix(path, "//"); ok { // file:///path
		path = "/" + strings.TrimLeft(rest, "/")
	}
	if len(path) > maxPath {
		return nil, fail(vendor.KindInvalid, "invalid_reference", "The path of the model has more than %d bytes, which no path has; write file:/folder/model.gguf.", maxPath)
	}
	if strings.ContainsRune(path, 0) || !filepath.IsAbs(path) {
		return nil, fail(vendor.KindInvalid, "invalid_reference", "%q is not an absolute path; write file:/folder/model.gguf.", path)
	}
	path = filepath.Clean(path)
	st, err := os.Stat(path)
	if base, pin, ok := cutPin(path); ok && errors.Is(err, fs.ErrNotExist) && pin != "" {
		path = base
		st, err = os.Stat(path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fail(vendor.KindNotFound, "model_not_found", "There is no file or folder %s; check the path.", path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fail(vendor.KindDenied, "model_unreadable", "Apiary may not read %s; check its permissions and those of the folders above it.", path)
	case err != nil:
		return nil, fail(vendor.KindInvalid, "invalid_reference", "%s cannot be looked at: %v.", path, err)
	}
	files := []string{path}
	switch {
	case st.IsDir():
		files, err = inFolder(path)
	case st.Mode().IsRegular():
		if s, ok := parseShard(filepath.Base(path)); ok {
			files, err = shardFiles(filepath.Dir(path), s)
		}
	default:
		err = fail(vendor.KindInvalid, "not_a_model", "%s is neither a file nor a folder, so it cannot be a model.", path)
	}
	if err != nil {
		return nil, err
	}
	m := &vendor.Manifest{Reference: Scheme + ":" + path, Format: "gguf"}
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil {
			return nil, fail(vendor.KindNotFound, "model_not_found", "%s cannot be looked at; check the path and the permissions.", f)
		}
		m.Files = append(m.Files, vendor.File{
			Path: filepath.Base(f), Role: "weights", Size: st.Size(),
			Sources: []vendor.Source{{URL: (&url.URL{Scheme: Scheme, Path: f}).String()}},
		})
	}
	return m, nil
}

func fail(kind vendor.Kind, code, format string, args ...any) error {
	return &vendor.Error{Kind: kind, Code: code, Message: fmt.Sprintf(format, args...)}
}

// cutPin splits path@<12 hex>.
func cutPin(path string) (base, pin string, ok bool) {
	i := strings.LastIndexByte(path, '@')
	if i < 0 || len(path)-i-1 != 12 || strings.Trim(path[i+1:], "0123456789abcdef") != "" {
		return path, "", false
	}
	return path[:i], path[i+1:], true
}

// shard is a file name of a split model: stem-00001-of-00003.gguf.
type shard struct {
	stem         string
	index, count int
}

func (s shard) name(i int) string { return fmt.Sprintf("%s-%05d-of-%05d.gguf", s.stem, i, s.count) }

func parseShard(name string) (shard, bool) {
	rest, ok := strings.CutSuffix(name, ".gguf")
	const tail = len("-00001-of-00003")
	if !ok || len(rest) <= tail {
		return shard{}, false
	}
	s := shard{stem: rest[:len(rest)-tail]}
	t := rest[len(rest)-tail:]
	var err1, err2 error
	s.index, err1 = strconv.Atoi(t[1:6])
	s.count, err2 = strconv.Atoi(t[10:])
	if err1 != nil || err2 != nil || s.index < 1 || s.index > s.count || s.name(s.index) != name {
		return shard{}, false
	}
	return s, true
}

// shardFiles returns the paths of all shards, in order; one that is missing is an error.
func shardFiles(dir string, s shard) ([]string, error) {
	files := make([]string, 0, 16)
	for i := 1; i <= s.count; i++ {
		p := filepath.Join(dir, s.name(i))
		if _, err := os.Stat(p); err != nil {
			return nil, fail(vendor.KindNotFound, "shard_missing", "%s is one of %d files of a split model, and %s is missing beside it; put all of them into one folder.", s.name(s.index), s.count, s.name(i))
		}
		files = append(files, p)
	}
	return files, nil
}

// inFolder finds the one model of a folder: the only GGUF file, or the shards of the only split model.
func inFolder(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fail(vendor.KindDenied, "model_unreadable", "Apiary may not list the folder %s; check its permissions.", dir)
	}
	var models []string // one name a model
	seen := map[string]bool{}
	for _, e := range entries {
		name := e.Name()
		if !strings.HasSuffix(name, ".gguf") || e.IsDir() {
			continue
		}
		if s, ok := parseShard(name); ok {
			if first := s.name(1); !seen[first] {
				seen[first] = true
				models = append(models, first)
			}
			continue
		}
		models = append(models, name)
	}
	switch len(models) {
	case 0:
		return nil, fail(vendor.KindNotFound, "model_not_found", "The folder %s holds no .gguf file; give the path of a model.", dir)
	case 1:
		if s, ok := parseShard(models[0]); ok {
			return shardFiles(dir, s)
		}
		return []string{filepath.Join(dir, models[0])}, nil
	}
	list := models
	more := ""
	if len(list) > maxListed {
		list, more = list[:maxListed], fmt.Sprintf(" and %d more", len(models)-maxListed)
	}
	return nil, fail(vendor.KindInvalid, "ambiguous_model", "The folder %s holds %d models, %s%s; name one of them, for example file:%s.", dir, len(models), strings.Join(list, ", "), more, filepath.Join(dir, models[0]))
}
