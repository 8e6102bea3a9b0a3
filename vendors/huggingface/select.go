package huggingface

import (
	"slices"
	"strconv"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// entry is a file or folder as the hub lists it.
type entry struct {
	Type string `json:"type"` // "file" or "directory"
	OID  string `json:"oid"`  // git blob SHA-1; of the pointer where LFS is set
	Size int64  `json:"size"`
	Path string `json:"path"`
	LFS  *struct {
		OID  string `json:"oid"` // SHA-256 of the content; asterisks where it is withheld
		Size int64  `json:"size"`
	} `json:"lfs"`

	role string
}

func (e entry) size() int64 {
	if e.LFS != nil {
		return e.LFS.Size
	}
	return e.Size
}

// digests are those that are well-formed. A hub may withhold them, and a mirror may not know them.
func (e entry) digests() vendor.Digests {
	switch {
	case e.LFS == nil && isHex(e.OID, 40):
		return vendor.Digests{GitBlobSHA1: e.OID}
	case e.LFS != nil && isHex(e.LFS.OID, 64):
		return vendor.Digests{SHA256: e.LFS.OID}
	}
	return vendor.Digests{}
}

func (e entry) lower() string { return strings.ToLower(e.Path) }

func (e entry) base() string { return e.Path[strings.LastIndexByte(e.Path, '/')+1:] }

func (e entry) dir() string { return e.Path[:strings.LastIndexByte(e.Path, '/')+1] }

// choice is what a reference stands for.
type choice struct {
	format      string
	files       []entry // with their roles, weights first
	quant, path string  // of the canonical reference
	index       string  // safetensors: the file that lists the shards
	side        []entry // safetensors: all shards that the index may name
}

const (
	suffixGGUF        = ".gguf"
	suffixSafetensors = ".safetensors"
)

// choose picks the files that r means. The tree holds files only.
func choose(tree []entry, r reference) (choice, error) {
	slices.SortFunc(tree, func(a, b entry) int { return strings.Compare(a.Path, b.Path) })
	scope := tree
	if r.path != "" {
		if f, ok := byPath(tree, r.path); ok {
			return chooseFile(tree, f, r)
		}
		if scope = below(tree, r.path); len(scope) == 0 {
			return choice{}, nothing(r, "has no file or folder "+quote(r.path), candidates(tree))
		}
	}
	all := candidates(scope)
	if len(all) == 0 {
		return chooseSafetensors(scope, r)
	}
	picked, ok := pick(all, r.quant)
	if !ok {
		return choice{}, nothing(r, "has no GGUF file for "+quote(r.quant), all)
	}
	c, err := withShards(tree, picked, r)
	if err != nil {
		return choice{}, err
	}
	// The canonical form names the quantisation where that alone leads to the same file, the file otherwise.
	for _, quant := range []string{r.quant, quantOf(picked.Path)} {
		quant = strings.ToUpper(quant)
		if again, ok := pick(candidates(tree), quant); ok && quant != "" && !strings.HasSuffix(quant, strings.ToUpper(suffixGGUF)) && again.Path == picked.Path {
			c.quant = quant
			return c, nil
		}
	}
	c.path = picked.Path
	return c, nil
}

// byPath finds a file by its path; upper and lower case count only where they make the difference.
func byPath(tree []entry, path string) (entry, bool) {
	for _, same := range []func(string) bool{func(p string) bool { return p == path }, func(p string) bool { return strings.EqualFold(p, path) }} {
		if i := slices.IndexFunc(tree, func(e entry) bool { return same(e.Path) }); i >= 0 {
			return tree[i], true
		}
	}
	return entry{}, false
}

// below returns the files in a folder.
func below(tree []entry, folder string) []entry {
	var out []entry
	for _, e := range tree {
		if len(e.Path) > len(folder) && strings.EqualFold(e.Path[:len(folder)+1], folder+"/") {
			out = append(out, e)
		}
	}
	return out
}

// chooseFile is the choice where the reference names a file.
func chooseFile(tree []entry, f entry, r reference) (choice, error) {
	switch name := f.lower(); {
	case strings.HasSuffix(name, suffixGGUF):
		if s, ok := parseShard(f.Path, suffixGGUF); ok {
			f.Path = s.name(1)
		}
		c, err := withShards(tree, f, r)
		c.path = f.Path
		return c, err
	case strings.HasSuffix(name, suffixSafetensors):
		weights := []entry{f}
		if s, ok := parseShard(f.Path, suffixSafetensors); ok {
			f.Path = s.name(1)
			var err error
			if weights, err = parts(tree, s, r); err != nil {
				return choice{}, err
			}
		}
		return choice{format: "safetensors", path: f.Path, files: append(withRole(weights, vendor.RoleWeights), sideFiles(tree, f.dir())...)}, nil
	case isPickle(name):
		return choice{}, pickle(r, quote(f.Path)+" is a pickle")
	}
	return choice{}, nothing(r, "has "+quote(f.Path)+", which is no model", candidates(tree))
}

// sidecars are parts of names of GGUF files that are no models of their own.
var sidecars = [...]string{"mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-"}

// candidates are the GGUF files that may be meant, a split model as its first file.
func candidates(tree []entry) []entry {
	var out []entry
	seen := map[string]bool{}
	for _, e := range tree {
		base := strings.ToLower(e.base())
		if !strings.HasSuffix(base, suffixGGUF) || slices.ContainsFunc(sidecars[:], func(s string) bool { return strings.Contains(base, s) }) {
			continue
		}
		if s, ok := parseShard(e.Path, suffixGGUF); ok {
			e.Path = s.name(1)
		}
		if !seen[e.Path] {
			seen[e.Path] = true
			out = append(out, e)
		}
	}
	return out
}

// pick finds the candidate for a quantisation: as llama.cpp does, by what the path says right before a dot or a dash (here also
// the name of a folder), in any case; but a whole word is better than the end of one, so that F16 is not BF16. Without one it is Q4_K_M, Q8_0 or the first.
func pick(all []entry, quant string) (entry, bool) {
	if len(all) == 0 {
		return entry{}, false
	}
	if quant == "" {
		for _, usual := range []string{"Q4_K_M", "Q8_0"} {
			if e, ok := pick(all, usual); ok {
				return e, true
			}
		}
		return all[0], true
	}
	if strings.HasSuffix(strings.ToLower(quant), suffixGGUF) { // a whole name
		for _, e := range all {
			if strings.EqualFold(e.base(), quant) || strings.EqualFold(e.Path, quant) {
				return e, true
			}
		}
	}
	for _, whole := range []bool{true, false} {
		for _, e := range all {
			if mentions(e.lower(), strings.ToLower(quant), whole) {
				return e, true
			}
		}
	}
	return entry{}, false
}

// mentions reports whether path has tag before a dot, a dash or the end of a folder's name, and, if whole, not in the middle of a word.
func mentions(path, tag string, whole bool) bool {
	for at := 0; ; {
		i := strings.Index(path[at:], tag)
		if i < 0 {
			return false
		}
		i += at
		end := i + len(tag)
		if end < len(path) && strings.IndexByte(".-/", path[end]) >= 0 && (!whole || i == 0 || strings.IndexByte("-._/ ", path[i-1]) >= 0) {
			return true
		}
		at = i + 1
	}
}

// quantOf reads the quantisation from a path, "" where none is written as its own word.
func quantOf(path string) string {
	words := strings.FieldsFunc(strings.ToUpper(path), func(r rune) bool { return r == '-' || r == '.' || r == '/' || r == ' ' })
	for i := len(words) - 1; i >= 0; i-- {
		if bits(words[i]) > 0 {
			if i > 0 && words[i-1] == "UD" {
				return "UD-" + words[i]
			}
			return words[i]
		}
	}
	return ""
}

// bits is how many bits a weight has in a quantisation, by its name; 0: that is no name of one.
func bits(word string) int {
	word = strings.ToUpper(word)
	for name, n := range map[string]int{"F32": 32, "FP32": 32, "F16": 16, "FP16": 16, "BF16": 16, "MXFP4": 4} {
		if word == name || strings.HasPrefix(word, name+"_") {
			return n
		}
	}
	rest, ok := strings.CutPrefix(strings.TrimLeft(word, "IT"), "Q")
	if !ok || rest == "" || rest[0] < '1' || rest[0] > '8' || len(rest) > 1 && rest[1] != '_' {
		return 0
	}
	return int(rest[0] - '0')
}

// withShards adds to the first file of a model the others that it needs, and its projector.
func withShards(tree []entry, first entry, r reference) (choice, error) {
	weights := []entry{first}
	if s, ok := parseShard(first.Path, suffixGGUF); ok {
		var err error
		if weights, err = parts(tree, s, r); err != nil {
			return choice{}, err
		}
	}
	c := choice{format: "gguf", files: withRole(weights, vendor.RoleWeights)}
	if p, ok := projector(tree, first); ok {
		c.files = append(c.files, withRole([]entry{p}, vendor.RoleProjector)...)
	}
	return c, nil
}

func withRole(files []entry, role string) []entry {
	for i := range files {
		files[i].role = role
	}
	return files
}

// projector finds the file that lets a model see: the one in the deepest folder that the model is in or below, of the same
// quantisation or the closest one.
func projector(tree []entry, model entry) (entry, bool) {
	if strings.Contains(strings.ToLower(model.base()), "mmproj") {
		return entry{}, false
	}
	wanted := quantOf(model.Path)
	var best entry
	bestDistance := -1
	for _, e := range tree {
		base := strings.ToLower(e.base())
		if !strings.HasSuffix(base, suffixGGUF) || !strings.Contains(base, "mmproj") || !strings.HasPrefix(model.Path, e.dir()) {
			continue
		}
		distance := bits(quantOf(e.base())) - bits(strings.TrimPrefix(wanted, "UD-"))
		if distance = max(distance, -distance); wanted != "" && mentions(base, "-"+strings.ToLower(wanted), false) {
			distance = 0
		} else {
			distance++
		}
		if bestDistance < 0 || len(e.dir()) > len(best.dir()) || len(e.dir()) == len(best.dir()) && distance < bestDistance {
			best, bestDistance = e, distance
		}
	}
	return best, bestDistance >= 0
}

// shard is the name of one file of several: stem-00001-of-00003.gguf.
type shard struct {
	stem, suffix string
	index, count int
}

func (s shard) name(i int) string { return s.stem + "-" + five(i) + "-of-" + five(s.count) + s.suffix }

func five(n int) string {
	text := strconv.Itoa(n)
	return strings.Repeat("0", max(0, 5-len(text))) + text
}

func parseShard(path, suffix string) (shard, bool) {
	const tail = len("-00001-of-00003")
	if len(path) <= tail+len(suffix) || !strings.EqualFold(path[len(path)-len(suffix):], suffix) {
		return shard{}, false
	}
	s := shard{stem: path[:len(path)-tail-len(suffix)], suffix: path[len(path)-len(suffix):]}
	t := path[len(s.stem) : len(path)-len(suffix)]
	var err1, err2 error
	s.index, err1 = strconv.Atoi(t[1:6])
	s.count, err2 = strconv.Atoi(t[10:])
	return s, err1 == nil && err2 == nil && s.index >= 1 && s.index <= s.count && s.name(s.index) == path
}

// parts returns all files of a split model, in order; one that is missing is an error.
func parts(tree []entry, s shard, r reference) ([]entry, error) {
	have := map[string]entry{}
	for _, e := range tree {
		have[e.Path] = e
	}
	var out []entry
	for i := 1; i <= s.count; i++ {
		e, ok := have[s.name(i)]
		if !ok {
			return nil, &vendor.Error{
				Kind: vendor.KindNotFound, Code: "shard_missing",
				Message: r.repo + " is incomplete on the hub: " + quote(s.stem) + " has " + strconv.Itoa(s.count) + " files, and " + quote(s.name(i)) + " is not there; its publisher may still be uploading, try again later or choose another file.",
			}
		}
		out = append(out, e)
	}
	return out, nil
}

// maxNamed bounds how many choices a message names.
const maxNamed = 12

// nothing says that a repository lacks what was asked for, and what it has.
func nothing(r reference, has string, all []entry) error {
	e := &vendor.Error{Kind: vendor.KindNotFound, Code: "model_not_found", Param: "reference", Message: r.repo + " " + has + "; check the repository's page for what it has."}
	example := ""
	var named, paths []string // quantisations first
	for _, c := range all {
		ref := reference{repo: r.repo, revision: r.revision, path: c.Path}
		if q := quantOf(c.Path); q != "" {
			if again, ok := pick(all, q); ok && again.Path == c.Path {
				ref.path, ref.quant = "", q
			}
		}
		if usual, _ := pick(all, ""); usual.Path == c.Path {
			example = ref.String()
		}
		if len(e.Candidates) < 100 {
			e.Candidates = append(e.Candidates, ref.String())
		}
		if ref.quant != "" {
			named = append(named, ":"+safeName(ref.quant))
		} else {
			paths = append(paths, "/"+safeName(ref.path))
		}
	}
	names := append(named, paths...)
	if n := len(names); n > 0 {
		more := ""
		if n > maxNamed {
			names, more = names[:maxNamed], " and "+strconv.Itoa(n-maxNamed)+" more"
		}
		e.Message = r.repo + " " + has + "; it has " + strings.Join(names, ", ") + more + ", ask for example for " + example + "."
	}
	return e
}
