package url

import (
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// archives are the ends of the names of archives, of which models are taken out.
var archives = []string{".zip", ".tar.gz", ".tgz"}

// model is what is taken out of an archive where the reference names no file: the one that there is.
const model = "*.gguf"

// unpack reads what the reference says of an archive: kind is the value of archive=, "" when it is not there. A file of an archive is
// named behind its address, as go-getter has it: https://HOST/models.tar.gz//folder/model.gguf.
func (r *reference) unpack(kind string) error {
	base, member, split := strings.Cut(r.target.Path, "//")
	switch kind {
	case "false":
		return nil
	case "":
		if r.archive = isArchive(base); !r.archive {
			return nil // two slashes like any others
		}
	case "zip", "tar.gz", "tgz":
		r.archive = true
	default:
		return invalid("Models are taken out of archives of the kinds zip and tar.gz, and not out of what archive=" + kind + " says; give the address of such a one, or of the model file itself.")
	}
	if split {
		if r.member = strings.Trim(member, "/"); r.member == "" {
			return invalid("The reference names no file of the archive; write https://HOST/models.zip//folder/model.gguf, or leave the two slashes out.")
		}
		r.target.Path, r.target.RawPath = base, ""
	}
	if r.checksum == "" {
		return invalid("A model in an archive needs the checksum of the archive; write " + show(r.target) + "?checksum=sha256:HEX.")
	}
	return nil
}

func isArchive(path string) bool {
	path = strings.ToLower(path)
	for _, end := range archives {
		if strings.HasSuffix(path, end) {
			return true
		}
	}
	return false
}

// pack makes of the description of an archive that of the model inside it.
func (r reference) pack(f *vendor.File, archive vendor.Digests) {
	m := &vendor.ArchiveMember{Path: r.member, Archive: archive, Size: f.Size}
	f.Path, f.Size = r.member[strings.LastIndexByte(r.member, '/')+1:], -1
	if r.member == "" {
		m.Match, f.Path = model, "model.gguf"
	}
	f.Member = m
}
