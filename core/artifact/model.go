package artifact

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/gguf"
	pluginhost "github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// maxFiles bounds the files of one model.
const maxFiles = 1024

// maxSideFile bounds a file of a model that holds no weights: a template, parameters, a licence.
const maxSideFile = 64 << 20

// PullModel makes sure that the model that ref names is in the catalog, and returns its entry: it asks the vendor which files
// it consists of, transfers, verifies and publishes them. A model that is there already needs no network, and a file that
// stays in place is only looked at again. Callers that ask for the same model at once share one transfer.
// Where peers has other hives that hold the model, they are asked for it first, and its vendor only where they cannot help.
// A cancelled ctx keeps what has arrived for seven days.
func (s *Store) PullModel(ctx context.Context, ref string, report Report, peers ...contract.Peer) (contract.Model, error) {
	if len(ref) == 0 || len(ref) > 4096 {
		return contract.Model{}, fault.New(fault.Invalid, "invalid_reference", "A model reference is a scheme and a name, for example builtin:stories260k.")
	}
	if contract.HasHidden(ref) {
		return contract.Model{}, hiddenReference(ref)
	}
	return share(ctx, &s.flights, "model:"+ref, report, func(ctx context.Context, report Report) (contract.Model, error) {
		unlock, err := s.lock(ctx, "ref-"+hashText("model:" + ref)[:32], func() { report("wait", "waiting for another process that fetches "+ref, nil) })
		if err != nil {
			return contract.Model{}, err
		}
		defer unlock()
		return s.pullModel(ctx, ref, report, peers)
	})
}

// hiddenReference is the error for a reference that would be listed and could not be read.
func hiddenReference(ref string) error {
	return fault.New(fault.Invalid, "invalid_reference", "The reference %q holds characters that cannot be shown; leave them out, and rename a file or folder whose name has them.", printable(ref))
}

func (s *Store) pullModel(ctx context.Context, ref string, report Report, peers []contract.Peer) (contract.Model, error) {
	if m, err := s.Model(ref); err == nil && s.complete(m) {
		report(contract.ActionPresent, m.ID+" is in the catalog already", nil)
		return m, nil
	}
	if len(peers) == 0 {
		return s.pullFromOrigin(ctx, ref, ref, report)
	}
	m, err := s.pullFromPeers(ctx, ref, peers, report)
	if err == nil || ours(ctx, err) {
		return m, err
	}
	report("retry", fmt.Sprintf("%v It is fetched from where it is published.", err), nil)
	return s.pullFromOrigin(ctx, ref, peers[0].Model, report)
}

// pullFromOrigin brings a model from where its vendor has it. ref is what was asked for, and exact the same or what that stands for.
func (s *Store) pullFromOrigin(ctx context.Context, ref, exact string, report Report) (contract.Model, error) {
	i := slices.IndexFunc(s.opts.Vendors, func(v vendor.Vendor) bool { return v.Supports(exact) })
	if i < 0 {
		if err := s.leftOut(exact); err != nil {
			return contract.Model{}, err
		}
		return contract.Model{}, fault.New(fault.Invalid, "unknown_scheme", "No vendor knows references like %q; known are %s.", exact, s.schemes())
	}
	v := s.opts.Vendors[i]
	report("resolve", "looking up "+exact, nil)
	man, err := v.Resolve(ctx, vendor.ResolveRequest{Reference: exact, Platform: platform(nil)})
	if err != nil {
		return contract.Model{}, pluginhost.Fault(err)
	}
	if err := checkManifest(man, v.Info()); err != nil {
		return contract.Model{}, err
	}
	m := contract.Model{Vendor: v.Info().Name, Format: man.Format, Unproved: unproved(man), AddedAt: s.now().UTC()}
	if inPlace(man) {
		return s.pullInPlace(ctx, exact, man, m, report)
	}
	from := s.originOf(v, man)
	err = s.bring(ctx, &m, man.Files, func(f vendor.File) (contract.File, error) { return s.fetchBlob(ctx, from, f, report) }, func() error {
		var err error
		if m.ID, err = pin(exact, man, m.Files); err != nil {
			return err
		}
		m.References = references(ref, m.ID, man)
		return nil
	}, report)
	return m, err
}

// bring fetches the files of m, describes it by them, has name say under which names it is to be found, and publishes it.
func (s *Store) bring(ctx context.Context, m *contract.Model, files []vendor.File, fetch func(vendor.File) (contract.File, error), name func() error, report Report) error {
	// A model that is removed meanwhile may take a blob with it that is shared with this one: then that is fetched again.
	for range 3 {
		m.Files, m.SizeBytes = nil, 0
		for _, f := range weightsFirst(files) {
			file, err := fetch(f)
			if err != nil {
				return err
			}
			m.Files = append(m.Files, file)
			m.SizeBytes += file.SizeBytes
		}
		if err := s.describe(m); err != nil {
			return err
		}
		if err := name(); err != nil {
			return err
		}
		if err := s.publishIfComplete(ctx, m); err == nil {
			report("publish", m.ID+" is in the catalog", nil)
			return nil
		} else if !errors.Is(err, errBlobGone) {
			return err
		}
	}
	return fault.New(fault.Conflict, "store_busy", "The files of %s were removed while they were being added; run the command again.", m.ID)
}

// errBlobGone says that a blob was collected between its transfer and the publishing of its model.
var errBlobGone = errors.New("a blob is gone")

// publishIfComplete publishes m, with the references that its entry has already, under the lock that guards blobs.
func (s *Store) publishIfComplete(ctx context.Context, m *contract.Model) error {
	unlock, err := s.lockCatalog(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if !s.complete(*m) {
		return errBlobGone
	}
	if old, err := readEntry[contract.Model](s.entryPath("models", m.ID)); err == nil && old.ID == m.ID {
		m.AddedAt = old.AddedAt
		for _, r := range old.References {
			if !slices.Contains(m.References, r) {
				m.References = append(m.References, r)
			}
		}
	}
	return s.publishModel(*m)
}

// leftOut is the error for a reference that a plugin would answer for which cannot be used.
func (s *Store) leftOut(ref string) error {
	scheme, _, _ := strings.Cut(ref, ":")
	if why := s.opts.LeftOut[scheme]; why != "" {
		return fault.New(fault.Invalid, "plugin_left_out", "%s", why)
	}
	return nil
}

// schemes lists the schemes of all vendors.
func (s *Store) schemes() string {
	var all []string
	for _, v := range s.opts.Vendors {
		for _, scheme := range v.Info().Schemes {
			all = append(all, scheme+":")
		}
	}
	return strings.Join(all, ", ")
}

// checkManifest refuses what a vendor may not say, and what cannot be run.
func checkManifest(man *vendor.Manifest, by vendor.Info) error {
	if err := CheckManifest(man, by); err != nil {
		return err
	}
	if man.Format != "gguf" {
		return fault.New(fault.Invalid, "unsupported_format", "%s has the format %q; this version of Apiary runs models in the format GGUF.", man.Reference, man.Format)
	}
	return nil
}

// isWeights reports whether a file with that role holds weights of the model itself.
func isWeights(role string) bool { return role == "" || role == vendor.RoleWeights }

// limit is the most that a file of a model may have whose size nobody has promised. What holds no weights never has more.
func (s *Store) limit(f vendor.File) int64 {
	if mayBeLarge(f) {
		return int64(s.opts.MaxFile)
	}
	return maxSideFile
}

func mayBeLarge(f vendor.File) bool { return isWeights(f.Role) || f.Role == vendor.RoleProjector }

// weightsFirst returns the files with the weights, of which an engine is told the first one, before the others.
func weightsFirst(files []vendor.File) []vendor.File {
	out := make([]vendor.File, 0, len(files))
	for _, first := range []bool{true, false} {
		for _, f := range files {
			if isWeights(f.Role) == first {
				out = append(out, f)
			}
		}
	}
	return out
}

// inPlace reports whether the files of a manifest stay where they are.
func inPlace(man *vendor.Manifest) bool {
	for _, f := range man.Files {
		for _, src := range f.Sources {
			if strings.HasPrefix(src.URL, "file:") {
				return true
			}
		}
	}
	return false
}

// unproved reports whether nobody published a digest for some file of a manifest.
func unproved(man *vendor.Manifest) bool {
	return slices.ContainsFunc(man.Files, func(f vendor.File) bool { return f.Digests == vendor.Digests{} && f.Member == nil })
}

// pin returns the ID of a model: the canonical reference, with the first 12 hex of a digest where the vendor could not pin it.
// When ref asks for other bytes than there are, that is an error.
func pin(ref string, man *vendor.Manifest, files []contract.File) (string, error) {
	id := man.Reference
	if unproved(man) {
		id += "@" + digestOf(files)[:12]
		if old, ok := strings.CutPrefix(ref, man.Reference+"@"); ok && ref != id {
			return "", fault.New(fault.Conflict, "model_changed", "%s has changed: its bytes are %s now, and %s was asked for; ask for %s to use what is there.", man.Reference, id[len(id)-12:], old, man.Reference)
		}
	}
	return id, nil
}

// references lists what leads to a new entry: what was asked for, and the canonical reference where that is not the ID.
func references(ref, id string, man *vendor.Manifest) []string {
	refs := []string{}
	for _, r := range []string{ref, man.Reference} {
		if r != id && !slices.Contains(refs, r) {
			refs = append(refs, r)
		}
	}
	return refs
}

// askFor is how a person asks for m again.
func askFor(m contract.Model) string {
	if len(m.References) > 0 {
		return m.References[0]
	}
	return m.ID
}

// digestOf is the SHA-256 of a single file, and that of the list of digests and names of several.
func digestOf(files []contract.File) string {
	if len(files) == 1 {
		return files[0].SHA256
	}
	var list strings.Builder
	for _, f := range files {
		fmt.Fprintf(&list, "%s  %s\n", f.SHA256, f.Path)
	}
	return hashText(list.String())
}

// fetchBlob makes sure that the bytes of f are in the store.
func (s *Store) fetchBlob(ctx context.Context, from origin, f vendor.File, report Report) (contract.File, error) {
	out := contract.File{Path: f.Path, SHA256: f.Digests.SHA256}
	if !isWeights(f.Role) {
		out.Role = f.Role
	}
	have := func() bool {
		if f.Digests.SHA256 == "" || !s.hasBlob(f.Digests.SHA256, f.Size) {
			return false
		}
		st, err := os.Lstat(s.blobPath(f.Digests.SHA256))
		if err == nil {
			out.SizeBytes = contract.Bytes(st.Size())
		}
		return err == nil
	}
	if have() {
		return out, nil
	}
	if f.Member != nil {
		got, err := s.fetchMember(ctx, from, f, report, have)
		if got.SHA256 != "" {
			out.SHA256, out.SizeBytes = got.SHA256, got.SizeBytes
		}
		return out, err
	}
	err := s.fetch(ctx, from, f, s.limit(f), f.Path, report, have, func(got fetched) error {
		if err := inspectRole(got.path, f); err != nil {
			return err
		}
		out.SHA256, out.SizeBytes = got.sha256, contract.Bytes(got.size)
		return s.publishBlob(got.path, got.sha256)
	})
	return out, err
}

// inspectRole checks the header of a file that is to be published, where its role says that it has one.
func inspectRole(path string, f vendor.File) error {
	if !isWeights(f.Role) && f.Role != vendor.RoleProjector {
		return nil
	}
	_, err := inspect(path, f.Path, f.Role)
	return err
}

// inspect reads the header of a model file that lies at path and is called name to people.
func inspect(path, name, role string) (*gguf.Info, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return inspectOpen(f, name, role)
}

// OpenBlob opens a file of the store by its digest. Without one, it is fault.NotFound with the code blob_not_found.
func (s *Store) OpenBlob(sha256 string) (*os.File, error) {
	missing := fault.New(fault.NotFound, "blob_not_found", "The store of this hive has no file with that digest.")
	if !validDigest(sha256) {
		return nil, missing
	}
	f, err := openRegular(s.blobPath(sha256))
	if errors.Is(err, os.ErrNotExist) {
		return nil, missing
	}
	return f, err
}

// openRegular opens a regular file; what is at the end of path must be no link.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) // a FIFO must not block
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		_ = f.Close()
		return nil, errors.Join(err, fault.New(fault.Invalid, "not_a_model", "%s is no regular file, so it cannot be a model.", filepath.Base(path)))
	}
	return f, nil
}

func inspectOpen(f *os.File, name, role string) (*gguf.Info, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	info, err := gguf.Read(f, st.Size())
	name = filepath.Base(name)
	switch {
	case err == nil:
	case isType[*gguf.NotGGUFError](err), isType[*gguf.VersionError](err):
		return nil, fault.New(fault.Invalid, "not_a_model", "%s %w.", name, err)
	case isType[*gguf.TruncatedError](err):
		return nil, fault.New(fault.Invalid, "model_truncated", "%s %w.", name, err)
	case errors.Is(err, gguf.ErrMalformed):
		return nil, fault.New(fault.Invalid, "model_malformed", "%s %w.", name, err)
	default:
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if isWeights(role) && info.Type != "" && info.Type != "model" {
		return nil, fault.New(fault.Invalid, "not_a_model", "%s is a GGUF file of the kind %q, which is an addition to a model; give the model itself.", name, info.Type)
	}
	return info, nil
}

func isType[T error](err error) bool { _, ok := errors.AsType[T](err); return ok }

// describe fills in what the headers of m's weights say.
func (s *Store) describe(m *contract.Model) error {
	infos := make([]*gguf.Info, 0, len(m.Files))
	for _, f := range m.Files {
		if !isWeights(f.Role) {
			continue
		}
		info, err := inspect(s.blobPath(f.SHA256), f.Path, f.Role)
		if err != nil {
			return err
		}
		infos = append(infos, info)
	}
	return summarize(m, infos)
}

// summarize merges the headers of all weights of a model, which are one file or all shards in order and come first in m.Files.
func summarize(m *contract.Model, infos []*gguf.Info) error {
	m.Parameters = 0
	for i, info := range infos {
		m.Parameters += info.Parameters
		if info.ShardCount != len(infos) || info.ShardIndex != i {
			return fault.New(fault.Invalid, "shard_missing", "%s is file %d of a model of %d files, and the model has %d; put all of them into one folder.", filepath.Base(m.Files[i].Path), info.ShardIndex+1, info.ShardCount, len(infos))
		}
	}
	first := infos[0]
	if m.Parameters == 0 {
		return fault.New(fault.Invalid, "not_a_model", "%s has a header but no weights, so it cannot run; give the whole model.", filepath.Base(m.Files[0].Path))
	}
	m.Architecture, m.Quantization, m.ContextLength, m.Chat = first.Architecture, first.Quantization, first.ContextLength, first.ChatTemplate
	m.CachePerToken = contract.Bytes(first.CachePerToken)
	return nil
}

// complete reports whether all files of m that are in the store are there.
func (s *Store) complete(m contract.Model) bool {
	for _, f := range m.Files {
		if f.InPlace != nil {
			if !sameFingerprint(f) {
				return false
			}
		} else if !s.hasBlob(f.SHA256, int64(f.SizeBytes)) {
			return false
		}
	}
	return true
}

// ModelPath returns the absolute path of the file that an engine opens to load m: the blob, the file in place after a look at
// it, or the first shard in a folder with all of them. A file in place that has changed makes it fault.Conflict with the code
// model_changed; a file that is gone fault.NotFound with the code model_not_found.
func (s *Store) ModelPath(ctx context.Context, m contract.Model) (string, error) {
	if !wellFormed(m) {
		return "", fault.New(fault.Invalid, "bad_model", "The catalog entry of %s names no usable file; pull the model again.", m.ID)
	}
	if m.Files[0].InPlace != nil {
		if err := s.verifyInPlace(ctx, m); err != nil {
			return "", err
		}
		return m.Files[0].InPlace.Path, nil
	}
	if !s.complete(m) {
		return "", fault.New(fault.NotFound, "model_not_found", "Files of %s are missing in the store of this hive; fetch them again with `apiary model pull %s`.", m.ID, askFor(m))
	}
	if len(m.Files) == 1 {
		return s.blobPath(m.Files[0].SHA256), nil
	}
	return s.view(ctx, m)
}

// view makes a folder with the names of m's files that lead to its blobs, because engines find shards by name.
func (s *Store) view(ctx context.Context, m contract.Model) (string, error) {
	dir := s.path("views", digestOf(m.Files)[:32])
	first := filepath.Join(dir, filepath.FromSlash(m.Files[0].Path))
	unlock, err := s.lockCatalog(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(first); err == nil {
		return first, nil // published whole, and named by its content
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	full := func(err error) error { return s.noSpace(err, "the folder of links to "+m.ID, 0) }
	tmp, err := os.MkdirTemp(s.path("views"), tmpPrefix+"*")
	if err != nil {
		return "", full(err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	for _, f := range m.Files {
		at := filepath.Join(tmp, filepath.FromSlash(f.Path))
		if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
			return "", full(err)
		}
		if err := os.Symlink(s.blobPath(f.SHA256), at); err != nil {
			return "", full(err)
		}
	}
	if err := os.Rename(tmp, dir); err != nil {
		return "", fmt.Errorf("publish view: %w", err)
	}
	return first, syncDir(s.path("views"))
}

// RemoveModel takes the model that ref names out of the catalog and removes the blobs that no other model needs. Files in
// place stay where they are. Whether it is in use is the caller's business; an engine that has it open keeps its bytes.
func (s *Store) RemoveModel(ref string) error {
	unlock, err := s.lockCatalog(context.Background())
	if err != nil {
		return err
	}
	defer unlock()
	m, err := s.Model(ref)
	if err != nil {
		return err
	}
	if err := s.dropEntry("models", m.ID); err != nil {
		return err
	}
	s.at("model dropped")
	used, err := s.usedBlobs()
	if err != nil {
		return err
	}
	for _, f := range m.Files {
		if f.InPlace == nil && !used[f.SHA256] {
			if err := os.Remove(s.blobPath(f.SHA256)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			s.at("blob removed")
		}
	}
	if len(m.Files) > 1 {
		return os.RemoveAll(s.path("views", digestOf(m.Files)[:32]))
	}
	return nil
}
