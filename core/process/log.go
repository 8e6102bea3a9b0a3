package process

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/contract"
)

// maxLine bounds a line of a log tail in bytes.
const maxLine = 500

// LogTail returns the last n lines of the file at path, without control characters, escape sequences and invalid UTF-8, each
// at most 500 bytes. It reads at most n × 500 bytes, and fewer lines, or none, when there are no more or the file is missing.
func LogTail(path string, n int) []string {
	out := []string{}
	// The worker may have put anything there: a link is not followed, and a pipe is not waited for.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil || n <= 0 {
		return out
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return out
	}
	offset := max(0, st.Size()-int64(n)*maxLine)
	b, err := io.ReadAll(io.NewSectionReader(f, offset, int64(n)*maxLine))
	if err != nil {
		return out
	}
	if offset > 0 {
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			b = b[i+1:] // a line cut in two says nothing
		}
	}
	b = bytes.TrimRight(b, "\n")
	if len(b) == 0 {
		return out
	}
	lines := strings.Split(string(b), "\n")
	for _, line := range lines[max(0, len(lines)-n):] {
		out = append(out, sanitise(line))
	}
	return out
}

// sanitise makes a foreign line safe to show and to send as JSON.
func sanitise(s string) string {
	var b strings.Builder
	escape := false
	for _, r := range strings.TrimRight(s, "\r\n") {
		switch {
		case escape: // a terminal escape sequence ends with a letter
			escape = !unicode.IsLetter(r)
			continue
		case r == 0x1b:
			escape = true
			continue
		case r == '\t' || r == '\n':
			r = ' '
		case r == utf8.RuneError || !unicode.IsPrint(r):
			r = '?'
		}
		if b.Len()+utf8.RuneLen(r) > maxLine {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}

// Rotate keeps the log at path below about max bytes for a writer that holds it open with O_APPEND: when it has grown to max,
// its contents are copied to path.1, older copies move up to path.<keep>, and the file is cut to nothing. A missing file, and
// one that is no regular file, is left alone. Lines written between the copy and the cut are lost.
func Rotate(path string, maxSize contract.Bytes, keep int) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && (!st.Mode().IsRegular() || contract.Bytes(st.Size()) < maxSize) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("rotate log: %w", err)
	}
	for i := keep - 1; i >= 1; i-- {
		if err := os.Rename(numbered(path, i), numbered(path, i+1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("rotate log: %w", err)
		}
	}
	if keep > 0 {
		if err := copyEnd(path, numbered(path, 1), maxSize); err != nil {
			return fmt.Errorf("rotate log: %w", err)
		}
	}
	if err := os.Truncate(path, 0); err != nil {
		return fmt.Errorf("rotate log: %w", err)
	}
	return nil
}

func numbered(path string, i int) string { return fmt.Sprintf("%s.%d", path, i) }

// copyEnd copies the last limit bytes of from: a flood may have made it far larger.
func copyEnd(from, to string, limit contract.Bytes) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if _, err := in.Seek(max(0, st.Size()-int64(limit)), io.SeekStart); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.LimitReader(in, int64(limit)))
	return errors.Join(err, out.Close())
}
