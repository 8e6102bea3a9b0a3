package folder

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// CodeUnsafeFile is the code of the conflict that a file is which is not what Apiary made.
const CodeUnsafeFile = "unsafe_file"

// OpenFile is os.OpenFile for a file that Apiary keeps. What is no regular file is refused, with CodeUnsafeFile, and never
// waited for: the plain call hangs at a FIFO. Where flag has O_NOFOLLOW a symbolic link is refused as well.
func OpenFile(path string, flag int, perm fs.FileMode) (*os.File, error) {
	stat := os.Stat
	if flag&syscall.O_NOFOLLOW != 0 {
		stat = os.Lstat
	}
	// It is looked at before, because opening some devices does something, and afterwards, because it may have changed.
	if st, err := stat(path); err == nil && !st.Mode().IsRegular() {
		return nil, irregular(path, st)
	}
	f, err := os.OpenFile(path, flag|syscall.O_NONBLOCK, perm)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = irregular(path, st)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// ReadFile reads a file that Apiary keeps, of at most limit bytes; it refuses what OpenFile refuses. A missing one is
// fs.ErrNotExist.
func ReadFile(path string, limit contract.Bytes) ([]byte, error) {
	f, err := OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	err = errors.Join(err, f.Close())
	if err == nil && int64(len(b)) > int64(limit) {
		err = fault.New(fault.Conflict, CodeUnsafeFile, "The file %s is larger than %s, so it is not what Apiary wrote there; move it away.", path, limit)
	}
	return b, err
}

func irregular(path string, st fs.FileInfo) error {
	kind := "a device"
	switch m := st.Mode(); {
	case m.IsDir():
		kind = "a folder"
	case m&fs.ModeSymlink != 0:
		kind = "a symbolic link"
	case m&fs.ModeNamedPipe != 0:
		kind = "a FIFO"
	case m&fs.ModeSocket != 0:
		kind = "a socket"
	}
	return fault.New(fault.Conflict, CodeUnsafeFile, "%s is %s where Apiary needs a regular file; move it away.", path, kind)
}
