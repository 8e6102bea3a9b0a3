package huggingface

import (
	"bytes"
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Bounds of a listing.
const (
	maxPages   = 200
	maxEntries = 100_000
)

// question is what one resolution asks the hub about.
type question struct {
	v                      *Vendor
	repo, revision, commit string
}

// escape writes a path for a URL: each part by itself, so that a plus stays one.
func escape(path string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		parts[i] = strings.ReplaceAll(pathEscape(p), "+", "%2B")
	}
	return strings.Join(parts, "/")
}

func (q question) fileURL(path string) string {
	return q.v.endpoint + "/" + q.repo + "/resolve/" + q.commit + "/" + escape(path)
}

// page is where a person reads about the repository.
func (q question) page() string { return q.v.endpoint + "/" + q.repo }

func (v *Vendor) request(method, target string) vendor.HTTPRequest {
	return vendor.HTTPRequest{Method: method, URL: target, Credential: Credential, Header: map[string]string{"Accept": "application/json"}}
}

// info asks for a repository at a revision.
func (v *Vendor) info(ctx context.Context, repo, revision string) (repoInfo, error) {
	q := question{v: v, repo: repo, revision: revision}
	var info repoInfo
	if _, err := q.json(ctx, v.endpoint+"/api/models/"+repo+"/revision/"+pathEscape(revision), &info); err != nil {
		return info, err
	}
	if !isCommit(info.SHA) {
		return info, q.broken("it names no commit")
	}
	if info.Disabled {
		return info, q.disabled("")
	}
	return info, nil
}

// tree lists all files of the commit.
func (q question) tree(ctx context.Context) ([]entry, error) {
	target := q.v.endpoint + "/api/models/" + q.repo + "/tree/" + q.commit + "?recursive=true&expand=false"
	var all []entry
	asked := map[string]bool{}
	for target != "" {
		if asked[target] || len(asked) == maxPages || len(all) > maxEntries {
			return nil, q.broken("its list of files does not end")
		}
		asked[target] = true
		var page []entry
		res, err := q.json(ctx, target, &page)
		if err != nil {
			return nil, err
		}
		for _, e := range page {
			if e.Type == "file" && goodPath(e.Path) && e.size() >= 0 {
				all = append(all, e)
			}
		}
		if target, err = q.next(res.Header["Link"]); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// next reads where the list goes on. A mirror may pass on the address of the hub that it mirrors: what is asked is the
// endpoint, always.
func (q question) next(link string) (string, error) {
	for part := range strings.SplitSeq(link, ",") {
		target, params, ok := strings.Cut(strings.TrimSpace(part), ">")
		if !ok || !strings.HasPrefix(target, "<") || !strings.Contains(strings.ReplaceAll(params, " ", ""), `rel="next"`) {
			continue
		}
		if !printable(target) {
			return "", q.broken("its list of files goes on at an address that is none")
		}
		target, _, _ = strings.Cut(target[1:], "#")
		address, query, _ := strings.Cut(target, "?")
		_, path, ok := strings.Cut(address, "/api/models/")
		if !ok || !strings.HasPrefix(path, q.repo+"/tree/") {
			return "", q.broken("its list of files goes on somewhere else")
		}
		return q.v.endpoint + "/api/models/" + path + "?" + query, nil
	}
	return "", nil
}

// json asks for a JSON document.
func (q question) json(ctx context.Context, target string, into any) (*vendor.HTTPResponse, error) {
	res, err := q.v.host.HTTP(ctx, q.v.request("GET", target))
	if err != nil {
		return nil, err
	}
	if res.Status != 200 {
		return nil, q.refused(res, "")
	}
	body := bytes.TrimSpace(res.Body)
	if len(body) > 0 && body[0] == '<' || strings.HasPrefix(res.Header["Content-Type"], "text/html") {
		return nil, q.broken("it sent a web page instead of JSON, as a login page or an address that is no hub does")
	}
	if err := json.Unmarshal(body, into); err != nil {
		return nil, q.broken("its answer is cut or damaged")
	}
	return res, nil
}

// read fetches a small file.
func (q question) read(ctx context.Context, path string) ([]byte, error) {
	res, err := q.v.host.HTTP(ctx, q.v.request("GET", q.fileURL(path)))
	if err != nil {
		return nil, err
	}
	if res.Status != 200 {
		return nil, q.refused(res, path)
	}
	return res.Body, nil
}

// complete asks about files one by one: whether they may be had, where the repository is gated, and for digests that the list
// does not give.
func (q question) complete(ctx context.Context, c *choice, gated bool) error {
	asked := 0
	for i := range c.files {
		f := &c.files[i]
		unknown := f.digests() == vendor.Digests{}
		if !(unknown && asked < maxAsked) && !(gated && i == 0) {
			continue
		}
		asked++
		req := q.v.request("HEAD", q.fileURL(f.Path))
		req.Manual, req.Header = true, map[string]string{"Accept-Encoding": "identity"}
		res, err := q.v.host.HTTP(ctx, req)
		if err != nil {
			return err
		}
		switch {
		case res.Status == 200 || res.Status >= 300 && res.Status < 400:
		case gated && (res.Status == 401 || res.Status == 403) && res.Header["X-Error-Code"] == "":
			return q.gated(res, "")
		default:
			return q.refused(res, f.Path)
		}
		etag := strings.Trim(strings.TrimPrefix(res.Header["X-Linked-Etag"], "W/"), `"`)
		if unknown && f.LFS != nil && isHex(etag, 64) {
			f.LFS.OID = etag
			if n, err := strconv.ParseInt(res.Header["X-Linked-Size"], 10, 64); err == nil && n >= 0 {
				f.LFS.Size = n
			}
		}
	}
	return nil
}

// broken says that the hub, or what answers in its place, does not keep to the protocol.
func (q question) broken(how string) error {
	return &vendor.Error{
		Kind: vendor.KindUnavailable, Code: "hub_broken",
		Message: q.v.endpoint + " cannot be used for " + q.repo + ": " + how + "; check the endpoint of the vendor huggingface and the network, and try again.",
	}
}

func (q question) disabled(text string) error {
	if text == "" {
		text = "Access to this resource is disabled."
	}
	return &vendor.Error{
		Kind: vendor.KindDenied, Code: "repo_disabled", HelpURL: q.page(),
		Message: "Hugging Face has closed " + q.repo + ", and says: " + text + " Choose another repository.",
	}
}

// gated says that somebody has to accept something first.
func (q question) gated(res *vendor.HTTPResponse, text string) error {
	message := "Hugging Face wants you to accept the licence of " + q.repo + " first: open the model's page, accept, and set a token with `apiary credential set huggingface`. (" + strconv.Itoa(res.Status) + " GatedRepo)"
	// The usual two texts say what the sentence says already; others say what is left to do.
	if text != "" && !strings.Contains(text, "authorized list") && !strings.Contains(text, "log in") {
		message += " The hub says: " + text
	}
	return &vendor.Error{Kind: vendor.KindDenied, Code: "gated", HelpURL: q.page(), Message: message}
}

// refused turns an answer that is no success into an error for people. path is the file that was asked for, if one was.
func (q question) refused(res *vendor.HTTPResponse, path string) error {
	code, text := res.Header["X-Error-Code"], serverText(res)
	help := q.page()
	status := strconv.Itoa(res.Status)
	if id := res.Header["X-Request-Id"]; id != "" && len(id) < 100 {
		status += ", request " + safeName(id)
	}
	missing := &vendor.Error{
		Kind: vendor.KindNotFound, Code: "repo_not_found", HelpURL: help,
		Message: "Hugging Face has no repository " + q.repo + " for you: it does not exist, or it is private; check the name, or set a token that may see it with `apiary credential set huggingface`. (" + status + ")",
	}
	switch {
	case code == "GatedRepo":
		return q.gated(res, text)
	case res.Status == 429:
		return q.limited(res)
	case res.Status == 401 && strings.Contains(strings.ToLower(text), "credentials in authorization"), res.Status == 401 && strings.Contains(strings.ToLower(text), "token is expired"):
		return &vendor.Error{
			Kind: vendor.KindDenied, Code: "bad_token",
			Message: "Hugging Face does not accept the token that is set for it; set a valid one with `apiary credential set huggingface`, or correct HF_TOKEN. (" + status + ")",
		}
	case code == "RepoNotFound", code == "" && res.Status == 401:
		return missing // the hub does not say which it is, so that private names stay private
	case code == "RevisionNotFound":
		return &vendor.Error{
			Kind: vendor.KindNotFound, Code: "revision_not_found", HelpURL: help, Param: "reference", Candidates: []string{Scheme + ":" + q.repo},
			Message: q.repo + " has no revision " + quote(q.revision) + "; leave it out to have the newest, or see the branches, tags and commits on the repository's page. (" + status + ")",
		}
	case code == "EntryNotFound":
		return &vendor.Error{
			Kind: vendor.KindNotFound, Code: "file_not_found", HelpURL: help, Param: "reference",
			Message: q.repo + " has no file " + quote(path) + " at " + quote(q.revision) + "; check the name on the repository's page. (" + status + ")",
		}
	case res.Status == 404 && isJSON(res):
		return missing
	case res.Status == 404:
		return q.broken("it does not know the addresses of a hub (404)")
	case res.Status == 403 && strings.Contains(strings.ToLower(text), "disabled"):
		return q.disabled(text)
	case res.Status == 401 || res.Status == 403 || res.Status == 451:
		if text == "" {
			text = "nothing more."
		}
		return &vendor.Error{
			Kind: vendor.KindDenied, Code: "repo_denied", HelpURL: help,
			Message: "Hugging Face refuses access to " + q.repo + " (" + status + "), and says: " + text + " Set a token that may read it with `apiary credential set huggingface`.",
		}
	case res.Status >= 500:
		return &vendor.Error{Kind: vendor.KindUnavailable, Code: "hub_unavailable", Message: q.v.endpoint + " is in trouble and did not say what " + q.repo + " holds (" + status + "); try again later."}
	}
	return q.broken("it answered with the status " + status)
}

// limited says how long to wait.
func (q question) limited(res *vendor.HTTPResponse) error {
	wait := waitFor(res.Header, time.Now())
	e := &vendor.Error{Kind: vendor.KindExhausted, Code: "rate_limited", RetryAfterMS: wait.Milliseconds()}
	when := "a few minutes"
	if wait > 0 {
		when = wait.Round(time.Second).String()
	}
	e.Message = "Hugging Face answers no more questions from here for now; try again in " + when + ". With a token, set by `apiary credential set huggingface`, it allows more. (429)"
	return e
}

// waitFor reads how long the hub wants to be left alone: RateLimit, where nothing is left of the window, or Retry-After as
// seconds or as a date. 0: it does not say.
func waitFor(header map[string]string, now time.Time) time.Duration {
	var wait time.Duration
	for policy := range strings.SplitSeq(header["Ratelimit"], ",") {
		left, seconds := -1, -1
		for param := range strings.SplitSeq(policy, ";") {
			name, value, _ := strings.Cut(strings.TrimSpace(param), "=")
			n, err := strconv.Atoi(value)
			switch {
			case err != nil:
			case name == "r":
				left = n
			case name == "t":
				seconds = n
			}
		}
		if left == 0 && seconds >= 0 {
			wait = max(wait, time.Duration(min(seconds, 86_399)+1)*time.Second) // the window ends within that second
		}
	}
	after := header["Retry-After"]
	if n, err := strconv.Atoi(after); err == nil && n >= 0 {
		wait = max(wait, time.Duration(min(n, 86_400))*time.Second)
	} else if at, err := time.Parse("Mon, 02 Jan 2006 15:04:05 GMT", after); err == nil {
		wait = max(wait, min(at.Sub(now), 24*time.Hour))
	}
	return wait
}

// serverText is what the hub says about a refusal, bounded, on one line.
func serverText(res *vendor.HTTPResponse) string {
	text := res.Header["X-Error-Message"]
	if text == "" && isJSON(res) {
		var body struct {
			Error string `json:"error"`
		}
		if json.Unmarshal(res.Body, &body) == nil {
			text = body.Error
		}
	}
	text = strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text))
	if len(text) > 500 {
		text = strings.ToValidUTF8(text[:500], "") + "…"
	}
	if text != "" && !strings.HasSuffix(text, ".") && !strings.HasSuffix(text, "…") {
		text += "."
	}
	return text
}

func isJSON(res *vendor.HTTPResponse) bool {
	return strings.HasPrefix(res.Header["Content-Type"], "application/json") || bytes.HasPrefix(bytes.TrimSpace(res.Body), []byte("{"))
}

// Search implements vendor.Searcher: models with GGUF files, the most fetched first.
func (v *Vendor) Search(ctx context.Context, req vendor.SearchRequest) ([]vendor.SearchResult, error) {
	if err := v.ready(quote(req.Query)); err != nil {
		return nil, err
	}
	limit := req.Limit
	if limit <= 0 || limit > 100 {
		limit = 20
	}
	query := "direction=-1&filter=gguf&limit=" + strconv.Itoa(int(limit)) + "&search=" + queryEscape(req.Query) + "&sort=downloads"
	var found []struct {
		ID          string          `json:"id"`
		Downloads   int64           `json:"downloads"`
		Likes       int64           `json:"likes"`
		Gated       json.RawMessage `json:"gated"`
		PipelineTag string          `json:"pipeline_tag"`
	}
	q := question{v: v, repo: "a search"}
	if _, err := q.json(ctx, v.endpoint+"/api/models?"+query, &found); err != nil {
		return nil, err
	}
	var out []vendor.SearchResult
	for _, m := range found {
		if checkRepo(m.ID) != "" || len(out) == int(limit) {
			continue
		}
		parts := []string{strconv.FormatInt(m.Downloads, 10) + " downloads", strconv.FormatInt(m.Likes, 10) + " likes"}
		if m.PipelineTag != "" {
			parts = append([]string{safeName(m.PipelineTag)}, parts...)
		}
		if (repoInfo{Gated: m.Gated}).isGated() {
			parts = append(parts, "licence to accept")
		}
		out = append(out, vendor.SearchResult{Reference: Scheme + ":" + m.ID, Description: strings.Join(parts, ", ")})
	}
	return out, nil
}
