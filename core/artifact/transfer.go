package artifact

import (
	"cmp"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/egress"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/core/run"
	pluginhost "github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// timing bounds a transfer.
type timing struct {
	backoff  time.Duration // before the second attempt; doubled for each further one
	longest  time.Duration // of any pause between attempts, also of one that the server asks for
	busy     time.Duration // before hives are asked again that had no time
	attempts int           // in a row without progress
	span     int64         // bytes that are asked for at once, where the source has ranges
}

// Some content networks refuse to send more than 50 GB at once.
var defaultTiming = timing{backoff: 500 * time.Millisecond, longest: time.Minute, busy: 5 * time.Second, attempts: 6, span: 32 << 30}

// minProgress is how much an attempt must bring to count as one that gets on.
const minProgress = 64 << 10

// spaceCheckEvery is how often the disk is looked at while a body of unknown length is read.
const spaceCheckEvery = 64 << 20

// fetched is a verified and synced file in partial/.
type fetched struct {
	path, sha256, sha512 string
	size                 int64
}

// fetch transfers f into partial/, or goes on with what is there, verifies it, and hands it to use, which moves or reads it.
// Nobody else fetches the same file meanwhile. A file of unknown size has at most limit bytes. have is asked under that lock whether the file has become unnecessary.
func (s *Store) fetch(ctx context.Context, from origin, f vendor.File, limit int64, what string, report Report, have func() bool, use func(fetched) error) error {
	if len(f.Sources) == 0 {
		return fault.New(fault.Invalid, "invalid_source", "Nothing says where to get %s; report this to the maker of its plugin.", what)
	}
	key := partialKey(f)
	unlock, err := s.lock(ctx, key, func() { report("wait", "waiting for another process that fetches "+what, nil) })
	if err != nil {
		return err
	}
	defer unlock()
	if have() {
		return nil
	}
	t := &transfer{s: s, from: from, file: f, what: what, limit: limit, part: s.path("partial", key+".part"), note: s.path("partial", key+".json"), meter: newMeter(report, "fetch", "fetching "+what, f.Size), report: report}
	t.reset()
	got, err := t.run(ctx)
	if err != nil {
		return errors.Join(s.noSpace(err, what, t.meter.total-t.size()), t.discardHopeless())
	}
	if err := use(got); err != nil {
		if fault.KindOf(err) == fault.Invalid { // the bytes are of no use to anybody; after other failures they are
			return errors.Join(err, t.discard())
		}
		return s.noSpace(err, what, 0)
	}
	return t.discard()
}

// partialKey names the partial file of f: by what it will contain, where that is known.
func partialKey(f vendor.File) string {
	switch {
	case validDigest(f.Digests.SHA256):
		return f.Digests.SHA256
	case f.Digests.SHA512 != "":
		return hashText("sha512:" + f.Digests.SHA512)
	case f.Digests.GitBlobSHA1 != "":
		return hashText("git:" + f.Digests.GitBlobSHA1)
	}
	return hashText("url:" + f.Sources[0].URL)
}

// transfer is the fetching of one file.
type transfer struct {
	s          *Store
	from       origin
	file       vendor.File
	what       string // for messages
	limit      int64  // bytes of a file whose size nobody has promised
	part, note string // paths
	meter      *meter
	report     Report
	resumed    bool // bytes of several answers were put together
	restarted  bool // that was undone already because the whole did not verify
	refreshed  int  // how often other sources were asked for

	// The hashes of the first hashed bytes of the part.
	sha256 hash.Hash
	sha512 hash.Hash // nil where nobody wants it
	git    hash.Hash // as git names files; nil where nothing is compared with it
	hashed int64
}

func (t *transfer) reset() {
	t.sha256, t.sha512, t.git, t.hashed = sha256.New(), nil, nil, 0
	if t.file.Digests.SHA512 != "" || t.from.sha512 {
		t.sha512 = sha512.New()
	}
	if t.file.Digests.GitBlobSHA1 != "" && t.file.Size >= 0 {
		t.git = sha1.New()
		_, _ = fmt.Fprintf(t.git, "blob %d\x00", t.file.Size)
	}
}

// hashes takes what is to be hashed.
func (t *transfer) hashes() io.Writer {
	all := []io.Writer{t.sha256}
	for _, h := range []hash.Hash{t.sha512, t.git} {
		if h != nil {
			all = append(all, h)
		}
	}
	return io.MultiWriter(all...)
}

func (t *transfer) pinned() bool { return t.file.Digests != vendor.Digests{} }

// discard removes what is left of the transfer.
func (t *transfer) discard() error {
	for _, p := range []string{t.part, t.note} {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// discardHopeless removes what is left of a transfer unless another one can go on with it: nothing arrived, or nothing could
// prove what did.
func (t *transfer) discardHopeless() error {
	plain, _, _ := strings.Cut(t.file.Sources[0].URL, "?")
	if n := t.size(); n > 0 && (t.pinned() || t.readNote(plain) != "") {
		return nil
	}
	return t.discard()
}

// run tries the sources, and asks for other ones where they have expired.
func (t *transfer) run(ctx context.Context) (fetched, error) {
	for {
		got, err := t.any(ctx)
		if !t.mayRefresh() || !isType[*expiredError](err) {
			return got, err
		}
		if err := t.refresh(ctx); err != nil {
			return fetched{}, err
		}
	}
}

// any tries the sources in order.
func (t *transfer) any(ctx context.Context) (fetched, error) {
	var errs []error
	for _, src := range t.file.Sources {
		got, err := t.try(ctx, src)
		if t.mayRefresh() && isType[*expiredError](err) {
			return fetched{}, err
		}
		if err == nil {
			return got, nil
		}
		if ours(ctx, err) {
			return fetched{}, err
		}
		if t.from.failed != nil {
			t.from.failed(src, err)
		}
		errs = append(errs, err)
	}
	// The first source is the preferred one, so its failure is the one to tell of; a wrong digest, and an address that must not
	// be asked, tell more than any.
	for _, code := range []string{codeDigest, egress.CodeRefused, pluginhost.CodeNotGranted} {
		for _, err := range errs {
			if fault.As(err).Code == code {
				return fetched{}, err
			}
		}
	}
	return fetched{}, errs[0]
}

func (t *transfer) try(ctx context.Context, src vendor.Source) (fetched, error) {
	scheme, _, _ := strings.Cut(src.URL, ":")
	if scheme != "https" && scheme != "http" {
		return t.open(ctx, scheme, src)
	}
	if u, err := url.Parse(src.URL); err == nil && t.from.name != nil {
		t.meter.message = "fetching " + t.what + " from " + t.from.name(u)
	}
	failures, most := 0, t.size()
	for {
		err := t.attempt(ctx, src)
		if err == nil {
			var got fetched
			if got, err = t.verify(); !errors.Is(err, errRestart) {
				return got, err
			}
			continue
		}
		if ctx.Err() != nil {
			return fetched{}, ctx.Err()
		}
		if errors.Is(err, errMore) {
			failures = 0
			continue
		}
		again, ok := errors.AsType[*retryError](err)
		if _, ours := errors.AsType[*writeError](err); ours || !ok {
			return fetched{}, err
		}
		// What arrives again after the part was emptied is no progress: a source that breaks off every time and knows no ranges would
		// be asked for ever.
		if n := t.size(); n >= most+minProgress {
			failures, most = 0, n
		}
		if failures++; failures >= cmp.Or(again.most, t.from.tries, t.s.timing.attempts) {
			return fetched{}, err
		}
		wait := again.wait
		if wait == 0 {
			wait = time.Duration(rand.Int64N(int64(t.s.timing.backoff<<min(failures, 10)))) + 1
		}
		if wait > t.s.timing.longest {
			wait = t.s.timing.longest
		}
		t.report("retry", fmt.Sprintf("%s: %v; trying again", t.what, err), nil)
		if err := run.Sleep(ctx, wait); err != nil {
			return fetched{}, err
		}
	}
}

// open reads a source that is no network protocol.
func (t *transfer) open(ctx context.Context, scheme string, src vendor.Source) (fetched, error) {
	o, ok := t.s.opts.Openers[scheme]
	if !ok {
		return fetched{}, fault.New(fault.Invalid, "invalid_source", "%s comes from a source %q that Apiary cannot open; report this to the maker of its plugin.", t.what, scheme)
	}
	r, n, err := o.Open(ctx, src.URL)
	if err != nil {
		return fetched{}, pluginhost.Fault(err)
	}
	defer r.Close()
	if err := t.s.checkSpace(n, t.what); err != nil {
		return fetched{}, err
	}
	f, err := t.openPart()
	if err != nil {
		return fetched{}, err
	}
	defer f.Close()
	if err := t.rewind(f); err != nil {
		return fetched{}, err
	}
	if err := t.receive(ctx, f, r, n, src.URL); err != nil {
		return fetched{}, err
	}
	return t.verify()
}

func (t *transfer) size() int64 {
	st, err := os.Lstat(t.part)
	if err != nil {
		return 0
	}
	return st.Size()
}

func (t *transfer) openPart() (*os.File, error) {
	f, err := folder.OpenFile(t.part, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, &writeError{fmt.Errorf("open partial file: %w", err)}
	}
	return f, nil
}

// rewind empties the partial file.
func (t *transfer) rewind(f *os.File) error {
	t.reset()
	if err := f.Truncate(0); err != nil {
		return &writeError{err}
	}
	_, err := f.Seek(0, io.SeekStart)
	return err
}

// catchUp brings the hashes to the end of the n bytes that are in the part.
func (t *transfer) catchUp(ctx context.Context, f *os.File, n int64) error {
	if t.hashed > n {
		t.reset()
	}
	_, err := copyContext(ctx, t.hashes(), io.NewSectionReader(f, t.hashed, n-t.hashed), nil)
	t.hashed = n
	if err == nil {
		_, err = f.Seek(n, io.SeekStart)
	}
	return err
}

// attempt makes one request for what is missing and appends what arrives. nil means that the part is complete.
func (t *transfer) attempt(ctx context.Context, src vendor.Source) error {
	if t.mayRefresh() && src.ExpiresUnixMS > 0 && t.s.now().UnixMilli() >= src.ExpiresUnixMS {
		return &expiredError{fault.New(fault.Unavailable, "source_expired", "The address of %s has expired; try again later.", t.what)}
	}
	f, err := t.openPart()
	if err != nil {
		return err
	}
	defer f.Close()
	plain, _, _ := strings.Cut(src.URL, "?")
	n, etag := t.size(), t.readNote(plain)
	// Bytes from before are only of use when the end can be proved, or when the server can say that they are still current.
	if n > 0 && (!t.pinned() && etag == "" || t.file.Size >= 0 && n > t.file.Size) {
		n = 0
	}
	t.resumed = n > 0
	if n == 0 {
		if err := t.rewind(f); err != nil {
			return err
		}
	} else if err := t.catchUp(ctx, f, n); err != nil {
		return err
	}
	if t.file.Size >= 0 && n == t.file.Size || n > 0 && t.pinned() && t.mismatch() == "" {
		return nil
	}
	req, err := newRequest(ctx, http.MethodGet, src.URL, src.Credential, t.s.opts.Credentials)
	if err != nil {
		return err
	}
	req.Header.Set("Accept-Encoding", "identity")
	end := int64(-1) // the last byte that is asked for; -1: all that is left
	if src.Ranges && t.file.Size-n > t.s.timing.span {
		end = n + t.s.timing.span - 1
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", n, end))
	}
	if n > 0 {
		if end < 0 {
			last := ""
			if t.file.Size > 0 {
				last = strconv.FormatInt(t.file.Size-1, 10) // some servers understand no range without an end
			}
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-%s", n, last))
		}
		if etag != "" {
			req.Header.Set("If-Range", etag)
		}
	}
	res, err := t.from.client.Do(req)
	if err != nil {
		if err := t.stalled(t.from.place(req.URL), err); err != nil {
			return err
		}
		if err = unreachable(t.from.place(req.URL), err); fault.As(err).Code == codeUnreachable {
			err = &retryError{err: err}
		}
		return err
	}
	defer res.Body.Close()
	n, total, err := t.accept(res, f, n, end)
	if err != nil {
		return err
	}
	// Weak tags prove nothing about bytes. Those of a host that was redirected to, where the digest is known anyway, would only
	// make another host of the same network send the whole file again.
	if tag := res.Header.Get("ETag"); strings.HasPrefix(tag, `"`) && !(t.pinned() && elsewhere(res)) {
		if err := t.s.publishJSON(t.note, note{URL: plain, ETag: tag}); err != nil {
			return &writeError{err}
		}
	} else if err := os.Remove(t.note); err != nil && !errors.Is(err, os.ErrNotExist) {
		return &writeError{err}
	}
	if total >= 0 {
		t.meter.total = total
		if err := t.s.checkSpace(total-n, t.what); err != nil {
			return err
		}
	}
	if res.StatusCode == http.StatusPartialContent && end >= 0 {
		if err := t.receive(ctx, f, res.Body, end+1, t.from.place(res.Request.URL)); err != nil {
			return err
		}
		return errMore
	}
	return t.receive(ctx, f, res.Body, total, t.from.place(res.Request.URL))
}

// errMore says that an attempt brought what it asked for, and that this is not all.
var errMore = errors.New("there is more to fetch")

// stalled turns the error of an answer that brought too little into one for people; nil: it is another one.
func (t *transfer) stalled(host string, err error) error {
	if !errors.Is(err, egress.ErrStalled) {
		return nil
	}
	return &retryError{err: fault.New(fault.Unavailable, "source_stalled", "%s stopped sending %s, or sends it too slowly; try again later.", host, t.what)}
}

// accept looks at the head of an answer to a request for the bytes from n to last, or to the end where last is -1. It returns where the body starts and the length of
// the whole file, -1 if that is not known.
func (t *transfer) accept(res *http.Response, f *os.File, n, last int64) (at, total int64, err error) {
	host := t.from.place(res.Request.URL)
	switch c := res.StatusCode; {
	case c == http.StatusOK:
		if n > 0 {
			if err := t.rewind(f); err != nil {
				return 0, 0, err
			}
		}
		n, total, t.resumed = 0, res.ContentLength, false
	case c == http.StatusPartialContent && (n > 0 || last >= 0):
		var start, end int64
		if start, end, total, err = parseContentRange(res.Header.Get("Content-Range")); err != nil || start != n || res.ContentLength >= 0 && res.ContentLength != end-start+1 || last >= 0 && end != last || last < 0 && total >= 0 && end != total-1 {
			return 0, 0, t.startOver(f, fault.New(fault.Unavailable, "source_broken", "%s answered a request for a part of %s with another part; try again later.", host, t.what))
		}
	case c == http.StatusRequestedRangeNotSatisfiable && n > 0:
		return 0, 0, t.startOver(f, fault.New(fault.Unavailable, "source_broken", "%s has not the rest of %s; try again later.", host, t.what))
	case elsewhere(res) && (c == http.StatusBadRequest || c == http.StatusUnauthorized || c == http.StatusForbidden || c == http.StatusGone):
		// Redirects lead to addresses that are signed for a time, or for a number of requests: a new one comes from the source.
		err := &expiredError{fault.New(fault.Unavailable, "source_expired", "%s, where %s is kept, refused to send it (status %d); try again later.", host, t.what, c)}
		return 0, 0, &retryError{err: err, most: maxExpired}
	case t.from.name != nil && (c == http.StatusUnauthorized || c == http.StatusForbidden):
		return 0, 0, fault.New(fault.Denied, "peer_denied", "%s refused to send %s (status %d): the ticket for it has expired, or the clocks of the machines differ.", host, t.what, c)
	case t.from.name != nil && c == http.StatusServiceUnavailable:
		return 0, 0, fault.New(fault.Unavailable, codeBusy, "%s sends files to others already.", host)
	case c == http.StatusUnauthorized || c == http.StatusForbidden:
		return 0, 0, &expiredError{fault.New(fault.Denied, "source_denied", "%s refused to send %s (status %d); set a credential for it with `apiary credential set`.", host, t.what, c)}
	case c == http.StatusGone && t.mayRefresh():
		return 0, 0, &expiredError{fault.New(fault.NotFound, "source_not_found", "%s does not have %s any more (status %d); check the reference.", host, t.what, c)}
	case c == http.StatusNotFound || c == http.StatusGone:
		return 0, 0, fault.New(fault.NotFound, "source_not_found", "%s has no such file as it should send for %s (status %d); check the reference.", host, t.what, c)
	case c == http.StatusTooManyRequests || c == http.StatusRequestTimeout || c >= 500:
		return 0, 0, &retryError{err: fault.New(fault.Unavailable, "source_unavailable", "%s answered %d to the request for %s; try again later.", host, c, t.what), wait: retryAfter(res.Header, time.Now())}
	default:
		return 0, 0, fault.New(fault.Unavailable, "source_broken", "%s answered %d to the request for %s; check that the configured address is right.", host, c, t.what)
	}
	if e := res.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return 0, 0, fault.New(fault.Unavailable, "source_broken", "%s sent %s encoded as %q, which it was asked not to do.", host, t.what, e)
	}
	if t.file.Size < 0 && total > t.limit {
		return 0, 0, t.tooLong(f, host)
	}
	if t.file.Size >= 0 {
		if total >= 0 && total != t.file.Size {
			return 0, 0, fault.New(fault.Conflict, "source_changed", "%s has %s with %d bytes, and %d were promised; the file has changed since, pull the model again.", host, t.what, total, t.file.Size)
		}
		total = t.file.Size
	}
	return n, total, nil
}

// receive appends a body to the part, to which the hashes have been brought up. total is the length of the whole file, -1
// when it ends where the body ends. host is who sends it, for messages.
func (t *transfer) receive(ctx context.Context, f *os.File, body io.Reader, total int64, host string) error {
	start, checked := t.hashed, t.hashed
	var full error
	progress := func(n int64) {
		t.hashed = start + n
		t.meter.set(t.hashed)
		if total < 0 && t.hashed-checked >= spaceCheckEvery && full == nil {
			checked = t.hashed
			full = t.s.checkSpace(spaceCheckEvery, t.what)
		}
	}
	most := total
	if total < 0 {
		most = t.limit
	}
	body = io.LimitReader(body, most-start+1) // one more, to notice a body that is too long
	hashes := t.hashes()
	w := writerFunc(func(p []byte) (int, error) {
		if full != nil {
			return 0, full
		}
		t.s.at("part grows")
		n, err := f.Write(p)
		_, _ = hashes.Write(p[:n]) // a hash never fails
		return n, err
	})
	_, err := copyContext(ctx, w, body, progress)
	if _, ours := errors.AsType[*writeError](err); ours {
		t.reset() // how much was hashed is not known any more
		return err
	}
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := t.stalled(host, err); err != nil {
			return err
		}
		return &retryError{err: fault.New(fault.Unavailable, "source_cut", "The connection broke while %s was fetched (%v); try again.", t.what, err)}
	}
	switch {
	case total < 0 && t.hashed > t.limit:
		return t.tooLong(f, host)
	case total >= 0 && t.hashed > total:
		if err := t.rewind(f); err != nil {
			return err
		}
		return fault.New(fault.Unavailable, "source_broken", "The source of %s sent more than the %d bytes that it should have.", t.what, total)
	case total >= 0 && t.hashed < total:
		return &retryError{err: fault.New(fault.Unavailable, "source_cut", "The source of %s ended after %d of %d bytes; try again.", t.what, t.hashed, total)}
	}
	if err := f.Sync(); err != nil {
		return &writeError{err}
	}
	t.meter.finish(t.hashed)
	t.s.at("part complete")
	return nil
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
