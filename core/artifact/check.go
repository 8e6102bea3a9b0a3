package artifact

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// CheckManifest refuses what a vendor may not say, whatever the format of the model.
func CheckManifest(man *vendor.Manifest, by vendor.Info) error {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "bad_manifest", "The vendor %s gave a description of the model that is not valid: %s; report this to its maker.", by.Name, fmt.Sprintf(format, args...))
	}
	if why := checkReference(man.Reference, by, inPlace(man)); why != "" {
		return bad("%s", why)
	}
	if len(man.Files) == 0 || len(man.Files) > maxFiles {
		return bad("it has %d files", len(man.Files))
	}
	names := map[string]bool{}
	local, weights := inPlace(man), false
	for _, f := range man.Files {
		if len(f.Sources) == 0 {
			return bad("%q has no source", f.Path)
		}
		if !validDigests(f) {
			return bad("%q has a malformed digest", f.Path)
		}
		if !slices.Contains([]string{"", vendor.RoleWeights, vendor.RoleProjector, vendor.RoleTokenizer, vendor.RoleConfig, vendor.RoleTemplate, vendor.RoleLicense}, f.Role) {
			return bad("%q has the unknown role %q", f.Path, f.Role)
		}
		weights = weights || isWeights(f.Role)
		if !mayBeLarge(f) && f.Size > maxSideFile {
			return bad("%q has %s, which is too much for a file without weights", f.Path, contract.Bytes(f.Size))
		}
		if f.Member != nil {
			if err := checkMember(f.Member); err != nil {
				return bad("%v", err)
			}
		}
		if local {
			if !slices.Contains(by.Schemes, "file") {
				return bad("it names files of this machine, which only the vendor of file: may")
			}
			continue // the user's own names, never used to make a file
		}
		if err := validPath(f.Path); err != nil {
			return bad("%v", err)
		}
		if key := strings.ToLower(f.Path); names[key] {
			return bad("it has %q twice", f.Path)
		} else {
			names[key] = true
		}
	}
	if !weights {
		return bad("it has no weights")
	}
	return nil
}

// Bounds of a canonical reference, in bytes. One of files in place holds their path.
const (
	maxReference        = 1024
	maxReferenceInPlace = 4096 + 64
)

// checkReference says what is wrong with a canonical reference, for the middle of a sentence. It is the name under which something is
// published: so nobody gives one that another one answers for, and all of it can be shown.
func checkReference(ref string, by vendor.Info, inPlace bool) string {
	limit := maxReference
	if inPlace {
		limit = maxReferenceInPlace
	}
	scheme, rest, found := strings.Cut(ref, ":")
	switch {
	case ref == "":
		return "it has no reference"
	case len(ref) > limit:
		return fmt.Sprintf("its reference has %d bytes, at most %d are allowed", len(ref), limit)
	case !utf8.ValidString(ref), contract.HasHidden(ref):
		return fmt.Sprintf("its reference %q has characters that a reference cannot have", printable(ref))
	case !found, rest == "", !slices.Contains(by.Schemes, scheme):
		return fmt.Sprintf("its reference %q is not of a scheme that %s answers for (%s)", printable(ref), by.Name, strings.Join(by.Schemes, ", "))
	}
	return ""
}

// CheckPlan refuses what a provisioner may not say, also what would be refused only when a step is carried out.
func CheckPlan(plan *vendor.Plan, by vendor.Info) error {
	if err := checkPlan(plan, by); err != nil {
		return err
	}
	for i, st := range plan.Steps {
		if why := checkStep(plan, st); why != "" {
			return fault.New(fault.Invalid, "bad_plan", "The plan for the engine %s is not valid: its step %d %s; report this to the maker of its provisioner.", plan.Reference, i+1, why)
		}
	}
	return nil
}

// checkStep says what is wrong with a step.
func checkStep(plan *vendor.Plan, st vendor.Step) string {
	actions := 0
	for _, set := range []bool{st.Extract != nil, st.Link != nil, st.Run != nil, st.Expect != nil} {
		if set {
			actions++
		}
	}
	if actions != 1 {
		return fmt.Sprintf("has %d actions, and one has exactly one", actions)
	}
	inside := func(p string) bool { return validPath(p) == nil }
	switch {
	case st.Extract != nil:
		x := st.Extract
		switch {
		case !slices.ContainsFunc(plan.Files, func(f vendor.File) bool { return f.Path == x.File }):
			return fmt.Sprintf("unpacks %q, which is none of its files", x.File)
		case x.Prefix != "" && (!strings.HasSuffix(x.Prefix, "/") || !inside(strings.TrimSuffix(x.Prefix, "/"))):
			return fmt.Sprintf("takes the members below %q, which is no folder of an archive", x.Prefix)
		case x.Into != "." && !inside(x.Into):
			return fmt.Sprintf("unpacks into %q, which is not inside the engine's folder", x.Into)
		}
	case st.Link != nil:
		l := st.Link
		_, err := path.Match(l.Match, "x")
		switch {
		case !inside(l.Name):
			return fmt.Sprintf("makes the link %q, which is not inside the engine's folder", l.Name)
		case (l.Target == "") == (l.Match == ""):
			return "makes a link to a target and to a match, or to neither"
		case l.Target != "" && !inside(l.Target), err != nil, strings.HasPrefix(l.Match, "/"), strings.Contains(l.Match, ".."):
			return fmt.Sprintf("makes a link to %q, which is not inside the engine's folder", l.Target+l.Match)
		}
	case st.Run != nil:
		if r := st.Run; r.Tool == "" || strings.ContainsAny(r.Tool, "/\\") || r.Dir != "" && !inside(r.Dir) {
			return fmt.Sprintf("runs %q in %q: a tool is a name, and its folder is inside the engine's", r.Tool, r.Dir)
		}
	case !inside(st.Expect.Path) || st.Expect.Message == "":
		return fmt.Sprintf("expects %q: it is not inside the engine's folder, or nothing is said when it is missing", st.Expect.Path)
	}
	return ""
}

// CheckPath refuses a name that cannot be a relative path inside a folder of the core's.
func CheckPath(p string) error { return validPath(p) }
