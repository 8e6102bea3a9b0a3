// Package folder makes and checks the folders below APIARY_HOME, opens the files in them, and has the words for a full disk. It
// knows the names of the folders and not what is in them.
package folder

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// CodeUnsafe is the code of the conflict that a folder is which is not what Apiary made.
const CodeUnsafe = "unsafe_folder"

// secrets is the folder in which, and below which, others may do nothing.
const secrets = "secrets"

// Make makes folders below home ("catalog/models") with mode 0700, home itself too, and refuses, with CodeUnsafe, those that
// Check refuses.
func Make(home string, folders ...string) error {
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	for _, folder := range folders {
		err := steps(home, folder, func(path string, private bool) error {
			if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			return check(path, private)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// CodeNoHome is the code of the mistake that a data folder is which is no folder.
const CodeNoHome = "home_not_a_folder"

// CheckHome refuses a data folder that is something else; the fault is Invalid with CodeNoHome. One that is missing is none of
// that, because the first use makes it.
func CheckHome(home string) error {
	st, err := os.Stat(home)
	if errors.Is(err, syscall.ENOTDIR) || err == nil && !st.IsDir() {
		return fault.New(fault.Invalid, CodeNoHome, "The data folder %s is not a folder, or lies below a file; set APIARY_HOME to a folder.", home)
	}
	return nil
}

// Check refuses folders below home that are symbolic links or no folders, because what is stored there would go elsewhere,
// and the folder of secrets also where another user owns it or may write to it: the fault is a Conflict with CodeUnsafe. A
// folder that is missing is none of that. Home itself may be a link.
func Check(home string, folders ...string) error {
	for _, folder := range folders {
		err := steps(home, folder, check)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// CheckAll checks all folders that Apiary makes below home.
func CheckAll(home string) error {
	all := []string{
		"run", secrets, secrets + "/credentials", "blobs/sha256", "partial", "quarantine", "catalog/models", "catalog/engines", "views", "engines", "workers", "plugins/store", "plugins/cache", "plugins/programs", "state/plugins",
	}
	for _, pattern := range []string{"blobs/sha256/*", "engines/*", "workers/*"} {
		found, err := filepath.Glob(filepath.Join(home, filepath.FromSlash(pattern)))
		if err != nil {
			return err
		}
		for _, path := range found {
			if st, err := os.Lstat(path); err == nil && st.Mode()&fs.ModeSymlink != 0 {
				all = append(all, filepath.ToSlash(strings.TrimPrefix(path, filepath.Clean(home)+string(filepath.Separator))))
			}
		}
	}
	return Check(home, all...)
}

// steps calls f for each folder on the way from home to sub.
func steps(home, sub string, f func(path string, private bool) error) error {
	path := home
	for part := range strings.SplitSeq(sub, "/") {
		path = filepath.Join(path, part)
		if err := f(path, sub == secrets || strings.HasPrefix(sub, secrets+"/")); err != nil {
			return err
		}
	}
	return nil
}

func check(path string, private bool) error {
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	unsafe := func(format string, args ...any) error {
		return fault.New(fault.Conflict, CodeUnsafe, format, args...)
	}
	switch {
	case st.Mode()&fs.ModeSymlink != 0:
		return unsafe("The folder %s is a symbolic link, and Apiary stores nothing through links inside its data folder; put a real folder in its place, or set APIARY_HOME to where the data should be.", path)
	case !st.IsDir():
		return unsafe("There is a file %s where Apiary needs a folder; move it away.", path)
	case !private:
		return nil
	case st.Mode().Perm()&0o022 != 0:
		return unsafe("The folder %s holds secrets and others may write to it; run chmod 700 on it, and replace its keys if you do not trust them.", path)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && int(sys.Uid) != os.Geteuid() {
		return unsafe("The folder %s holds secrets and belongs to another user (uid %d); run this command as that user, or set APIARY_HOME to a folder of your own.", path, sys.Uid)
	}
	return nil
}

// Full turns an error of a write below dir into a fault, Exhausted with the code no_space, where the disk or the quota is
// full: what needs need more bytes there; 0: nobody knows how many. Other errors, and nil, are returned as they are.
func Full(err error, dir, what string, need int64) error {
	if !IsFull(err) {
		return err
	}
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return f // somebody knew more
	}
	more, free := "more space", ""
	if need > 0 {
		more = contract.Bytes(need).String() + " more"
	}
	if n, err := Free(dir); err == nil {
		free = ", and " + n.String() + " are free there"
	}
	f := fault.New(fault.Exhausted, "no_space", "The disk that holds %s is full: %s needs %s%s; free some space and run the same command again.", dir, what, more, free)
	f.Err = err
	return f
}

// IsFull reports whether err is that of a write to a full disk or beyond a quota.
func IsFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }
