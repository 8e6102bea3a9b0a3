package artifact

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// note is what is kept beside a partial file: for which representation of which URL its bytes are.
type note struct {
	URL  string `json:"url"` // without query
	ETag string `json:"etag"`
}

func (t *transfer) readNote(url string) string {
	var n note
	b, err := folder.ReadFile(t.note, 64<<10)
	if err != nil || json.Unmarshal(b, &n) != nil || n.URL != url {
		return ""
	}
	return n.ETag
}

const codeDigest = "digest_mismatch"

// errRestart asks for the whole file again: bytes from before did not fit to those that came now.
var errRestart = errors.New("the resumed file does not verify")

// sums are the digests of what was hashed.
func (t *transfer) sums() vendor.Digests {
	d := vendor.Digests{SHA256: hex.EncodeToString(t.sha256.Sum(nil))}
	if t.sha512 != nil {
		d.SHA512 = hex.EncodeToString(t.sha512.Sum(nil))
	}
	if t.git != nil {
		d.GitBlobSHA1 = hex.EncodeToString(t.git.Sum(nil))
	}
	return d
}

// mismatch says which digest is not the one that was promised; empty: all are.
func (t *transfer) mismatch() string {
	got, want := t.sums(), t.file.Digests
	switch {
	case want.SHA256 != "" && want.SHA256 != got.SHA256:
		return fmt.Sprintf("its sha256 should be %s and is %s", want.SHA256, got.SHA256)
	case want.SHA512 != "" && want.SHA512 != got.SHA512:
		return fmt.Sprintf("its sha512 should be %s and is %s", want.SHA512, got.SHA512)
	case want.GitBlobSHA1 != "" && t.git == nil:
		return "git's name for it is known, but not its size"
	case want.GitBlobSHA1 != "" && want.GitBlobSHA1 != got.GitBlobSHA1:
		return fmt.Sprintf("git's name for it should be %s and is %s", want.GitBlobSHA1, got.GitBlobSHA1)
	}
	return ""
}

// verify compares the complete part with what was promised. Wrong bytes go to quarantine.
func (t *transfer) verify() (fetched, error) {
	sums, wrong := t.sums(), t.mismatch()
	if wrong == "" {
		return fetched{path: t.part, size: t.hashed, sha256: sums.SHA256, sha512: sums.SHA512}, nil
	}
	if t.resumed && !t.restarted {
		t.resumed, t.restarted = false, true
		t.report("retry", t.what+": the partial file from before was damaged; fetching it anew", nil)
		if err := t.discard(); err != nil {
			return fetched{}, err
		}
		return fetched{}, errRestart
	}
	kept, err := t.s.quarantine(t.part, sums.SHA256)
	if err != nil {
		return fetched{}, err
	}
	if err := t.discard(); err != nil {
		return fetched{}, err
	}
	where := "it was removed"
	if kept {
		where = "it was put into quarantine"
	}
	return fetched{}, fault.New(fault.Conflict, codeDigest, "%s did not arrive as it was published: %s; %s and nothing uses it, try again later or from another source.", t.what, wrong, where)
}

// quarantine moves a file with the wrong bytes, whose digest is sha, to where nothing uses it. The oldest ones there make
// room; kept tells whether there was enough for this one.
func (s *Store) quarantine(file, sha string) (kept bool, err error) {
	jail := s.path("quarantine", sha[:32]+"-"+strconv.FormatInt(s.now().UnixNano(), 36))
	if err := os.Rename(file, jail); err != nil {
		return false, fmt.Errorf("quarantine: %w", err)
	}
	entries, err := os.ReadDir(filepath.Dir(jail))
	if err != nil {
		return false, fmt.Errorf("quarantine: %w", err)
	}
	type inmate struct {
		path string
		size int64
		at   time.Time
	}
	all := []inmate{}
	var bytes int64
	for _, e := range entries {
		if st, err := e.Info(); err == nil { // otherwise another process removed it
			all = append(all, inmate{filepath.Join(filepath.Dir(jail), e.Name()), st.Size(), st.ModTime()})
			bytes += st.Size()
		}
	}
	slices.SortFunc(all, func(a, b inmate) int { return a.at.Compare(b.at) })
	for len(all) > maxQuarantined || len(all) > 0 && bytes > s.maxQuarantine {
		if err := os.RemoveAll(all[0].path); err != nil {
			return false, fmt.Errorf("make room in quarantine: %w", err)
		}
		bytes -= all[0].size
		all = all[1:]
	}
	return slices.ContainsFunc(all, func(i inmate) bool { return i.path == jail }), nil
}

// tooLong empties the part, which will never be what was wanted.
func (t *transfer) tooLong(f *os.File, host string) error {
	if err := t.rewind(f); err != nil {
		return err
	}
	return fault.New(fault.Unavailable, "source_too_large", "%s sends more than %s for %s, which is more than that may have; check the reference and the configured address.", host, contract.Bytes(t.limit), t.what)
}

// startOver empties the part and asks for another attempt.
func (t *transfer) startOver(f *os.File, cause error) error {
	if err := t.rewind(f); err != nil {
		return err
	}
	return &retryError{err: cause}
}

// parseContentRange reads "bytes 5-9/10"; the total may be "*", which is -1.
func parseContentRange(s string) (start, end, total int64, err error) {
	spec, ok := strings.CutPrefix(s, "bytes ")
	span, all, ok2 := strings.Cut(spec, "/")
	from, to, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, 0, fmt.Errorf("malformed Content-Range %q", s)
	}
	start, err1 := strconv.ParseInt(from, 10, 64)
	end, err2 := strconv.ParseInt(to, 10, 64)
	total = -1
	var err3 error
	if all != "*" {
		total, err3 = strconv.ParseInt(all, 10, 64)
	}
	if err := errors.Join(err1, err2, err3); err != nil || start < 0 || end < start || end-start == 1<<63-1 {
		return 0, 0, 0, fmt.Errorf("malformed Content-Range %q", s)
	}
	return start, end, total, nil
}
