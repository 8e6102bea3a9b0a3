package huggingface

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// chooseSafetensors is the choice in a repository, or a folder of one, without a GGUF file.
func chooseSafetensors(scope []entry, r reference) (choice, error) {
	dir := ""
	if r.path != "" {
		dir = r.path + "/"
	}
	var weights []entry
	pickles := false
	for _, e := range scope {
		name := strings.ToLower(e.base())
		pickles = pickles || isPickle(name)
		if strings.HasSuffix(name, suffixSafetensors) && strings.EqualFold(e.dir(), dir) && !strings.HasPrefix(name, "consolidated") {
			weights = append(weights, e)
		}
	}
	switch {
	case len(scope) == 0:
		return choice{}, nothing(r, "has no files", nil)
	case len(weights) == 0 && pickles:
		return choice{}, pickle(r, "it has its weights as pickles only")
	case len(weights) == 0:
		return choice{}, nothing(r, "has no GGUF or safetensors file", nil)
	case r.quant != "":
		return choice{}, &vendor.Error{
			Kind: vendor.KindNotFound, Code: "model_not_found", Param: "reference", Candidates: []string{reference{repo: r.repo, revision: r.revision, path: r.path}.String()},
			Message: r.repo + " has safetensors and no GGUF files, so there is no " + quote(r.quant) + " in it; look for a repository with GGUF files of the model.",
		}
	}
	c := choice{format: "safetensors", path: strings.TrimSuffix(weights[0].dir(), "/"), side: sideFiles(scope, weights[0].dir())}
	const single, index = "model.safetensors", "model.safetensors.index.json"
	in := func(name string) (entry, bool) { return byPath(scope, weights[0].dir()+name) }
	if e, ok := in(index); ok {
		c.index, c.files = e.Path, weights
		return c, nil
	}
	if e, ok := in(single); ok {
		weights = []entry{e}
	} else if s, ok := parseShard(weights[0].Path, suffixSafetensors); ok {
		var err error
		if weights, err = parts(scope, s, r); err != nil {
			return choice{}, err
		}
	}
	c.files = append(withRole(weights, vendor.RoleWeights), c.side...)
	return c, nil
}

// shards narrows the weights down to those that the index of the repository names. All of them must be there.
func (q question) shards(ctx context.Context, c *choice) error {
	body, err := q.read(ctx, c.index)
	if err != nil {
		return err
	}
	var index struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(body, &index); err != nil || len(index.WeightMap) == 0 {
		return q.broken("its list of weights " + quote(c.index) + " cannot be read")
	}
	dir := c.index[:strings.LastIndexByte(c.index, '/')+1]
	names := map[string]bool{}
	for _, file := range index.WeightMap {
		names[dir+file] = true
	}
	var weights []entry
	for _, e := range c.files {
		if names[e.Path] {
			weights = append(weights, e)
			delete(names, e.Path)
		}
	}
	if len(names) > 0 {
		var missing []string
		for name := range names {
			missing = append(missing, name)
		}
		slices.Sort(missing)
		return &vendor.Error{
			Kind: vendor.KindNotFound, Code: "shard_missing",
			Message: q.repo + " is incomplete on the hub: its list of weights names " + quote(missing[0]) + ", which is not there; its publisher may still be uploading, try again later.",
		}
	}
	c.files = append(withRole(weights, vendor.RoleWeights), c.side...)
	return nil
}

// sideFiles are the files beside safetensors that engines read. The list says what is taken, so that nothing is that runs code.
func sideFiles(tree []entry, dir string) []entry {
	var out []entry
	for _, e := range tree {
		name := strings.ToLower(e.base())
		if e.dir() != dir || isPickle(name) {
			continue
		}
		switch {
		case strings.HasPrefix(name, "tokenizer"), strings.HasSuffix(name, ".model"), name == "vocab.json", name == "merges.txt", name == "vocab.txt", name == "special_tokens_map.json", name == "added_tokens.json":
			e.role = vendor.RoleTokenizer
		case strings.HasSuffix(name, ".jinja"):
			e.role = vendor.RoleTemplate
		case strings.HasPrefix(name, "license") && strings.HasSuffix(name, ".txt"):
			e.role = vendor.RoleLicense
		case strings.HasSuffix(name, ".json"), strings.HasSuffix(name, ".txt"):
			e.role = vendor.RoleConfig
		default:
			continue
		}
		out = append(out, e)
	}
	return out
}

// isPickle reports whether a file, by its name in lower case, has a format whose reading can run code.
func isPickle(name string) bool {
	for _, suffix := range []string{".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

func pickle(r reference, what string) error {
	return &vendor.Error{
		Kind: vendor.KindInvalid, Code: "unsafe_format", Param: "reference",
		Message: r.repo + " cannot be used: " + what + ", a format that can run code when it is read, which Apiary never does; look for a repository with GGUF files of the model.",
	}
}
