package fakehub

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// serveHub answers for the hub itself.
func (h *Hub) serveHub(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	faults := h.faults
	limited := h.faults.Limited > 0
	if limited {
		h.faults.Limited--
	}
	h.mu.Unlock()
	w.Header().Set("X-Request-Id", "Root=1-fake")
	w.Header().Set("RateLimit", `"api";r=499;t=172`)
	w.Header().Set("RateLimit-Policy", `"fixed window";"api";q=500;w=300`)
	if limited {
		w.Header().Set("RateLimit", `"api";r=0;t=55`)
		for name, value := range faults.LimitHead {
			w.Header().Set(name, value)
		}
		refuse(w, http.StatusTooManyRequests, "", "We had to rate limit your IP.")
		return
	}
	path := strings.TrimPrefix(r.URL.EscapedPath(), "/")
	switch {
	case path == "api/whoami-v2":
		reply(w, map[string]any{"name": "somebody", "type": "user"})
	case path == "api/models":
		h.search(w, r)
	case strings.HasPrefix(path, "api/resolve-cache/models/"):
		h.cached(w, r, strings.TrimPrefix(path, "api/resolve-cache/models/"))
	case strings.HasPrefix(path, "api/models/"):
		h.api(w, r, faults, strings.TrimPrefix(path, "api/models/"))
	default:
		h.file(w, r, path)
	}
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_ = json.NewEncoder(w).Encode(v)
}

// refuse answers with an error in the hub's form.
func refuse(w http.ResponseWriter, status int, code, text string) {
	if code != "" {
		w.Header().Set("X-Error-Code", code)
	}
	w.Header().Set("X-Error-Message", text)
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": text})
}

// find looks a repository up and says why it may not be seen. verb is the path element that ends its name, which has one or
// two parts.
func (h *Hub) find(w http.ResponseWriter, r *http.Request, path string, verbs ...string) (repo Repo, verb, rest string, ok bool) {
	parts := strings.Split(path, "/")
	at := len(parts)
	for i := 1; i < min(len(parts), 3); i++ {
		if slices.Contains(verbs, parts[i]) {
			at = i
			break
		}
	}
	id, err := url.PathUnescape(strings.Join(parts[:at], "/"))
	if at < len(parts) {
		verb, rest = parts[at], strings.Join(parts[at+1:], "/")
	}
	h.mu.Lock()
	repo, known := h.repos[id]
	faults := h.faults
	h.mu.Unlock()
	token, anonymous := token(r)
	if !anonymous && faults.Token != "" && token != faults.Token && !slices.Contains(repo.Tokens, token) {
		refuse(w, http.StatusUnauthorized, "", "Invalid credentials in Authorization header")
		return repo, "", "", false
	}
	switch {
	case err != nil || !known || repo.Private && !slices.Contains(repo.Tokens, token):
		status := http.StatusNotFound
		if anonymous {
			status = http.StatusUnauthorized
		}
		refuse(w, status, "RepoNotFound", "Repository not found")
		return repo, "", "", false
	case repo.Disabled:
		refuse(w, http.StatusForbidden, "", "Access to this resource is disabled.")
		return repo, "", "", false
	case repo.MovedTo != "":
		to := strings.Replace(r.URL.RequestURI(), "/"+repo.ID, "/"+repo.MovedTo, 1)
		w.Header().Set("Location", to) // relative
		w.WriteHeader(http.StatusTemporaryRedirect)
		return repo, "", "", false
	}
	return repo, verb, rest, true
}

func token(r *http.Request) (token string, anonymous bool) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return token, !ok
}

// mayRead refuses the content of a gated repository.
func mayRead(w http.ResponseWriter, r *http.Request, repo Repo) bool {
	token, anonymous := token(r)
	switch {
	case repo.Gated == "" || slices.Contains(repo.Tokens, token):
		return true
	case anonymous:
		refuse(w, http.StatusUnauthorized, "GatedRepo", "Access to model "+repo.ID+" is restricted. You must have access to it and be authenticated to access it. Please log in.")
	default:
		refuse(w, http.StatusForbidden, "GatedRepo", "Access to model "+repo.ID+" is restricted and you are not in the authorized list. Visit its page to ask for access.")
	}
	return false
}

// api answers questions about a repository.
func (h *Hub) api(w http.ResponseWriter, r *http.Request, faults Faults, path string) {
	if faults.Garbage != "" {
		w.Header().Set("Content-Type", faults.GarbageTyp)
		_, _ = io.WriteString(w, faults.Garbage)
		return
	}
	repo, verb, rest, ok := h.find(w, r, path, "revision", "tree", "paths-info", "refs")
	if !ok {
		return
	}
	if verb == "refs" {
		h.refs(w, repo)
		return
	}
	revision, dir := "main", ""
	if verb != "" {
		revision, dir = cutRevision(rest)
	}
	commit, files, ok := repo.at(revision)
	if !ok {
		refuse(w, http.StatusNotFound, "RevisionNotFound", "Invalid rev id: "+revision)
		return
	}
	switch verb {
	case "tree":
		h.tree(w, r, faults, repo, commit, files, dir)
	case "paths-info":
		h.pathsInfo(w, r, repo, files)
	default:
		h.info(w, r, repo, commit, files)
	}
}

// cutRevision splits revision/path. A slash in a revision is escaped, but for those of refs/pr/N and refs/convert/NAME.
func cutRevision(s string) (revision, path string) {
	n := 0
	if strings.HasPrefix(s, "refs/pr/") || strings.HasPrefix(s, "refs/convert/") {
		n = len("refs/") + strings.IndexByte(s[len("refs/"):], '/') + 1
	}
	revision, path, _ = strings.Cut(s[n:], "/")
	revision, _ = url.PathUnescape(s[:n] + revision)
	path, _ = url.PathUnescape(path)
	return revision, path
}

func (h *Hub) refs(w http.ResponseWriter, repo Repo) {
	type ref struct {
		Name         string `json:"name"`
		Ref          string `json:"ref"`
		TargetCommit string `json:"targetCommit"`
	}
	branches := []ref{{"main", "refs/heads/main", repo.commit(repo.Files)}}
	for name, files := range repo.Refs {
		if !strings.HasPrefix(name, "refs/") {
			branches = append(branches, ref{name, "refs/heads/" + name, repo.commit(files)})
		}
	}
	reply(w, map[string]any{"branches": branches, "tags": []ref{}, "converts": []ref{}})
}

func (h *Hub) info(w http.ResponseWriter, r *http.Request, repo Repo, commit string, files []File) {
	siblings := []map[string]any{}
	for _, f := range files {
		s := map[string]any{"rfilename": f.Path}
		if r.URL.Query().Get("blobs") != "" {
			e := repo.entry(f)
			s["size"], s["blobId"] = len(f.Body), e["oid"]
			if lfs, ok := e["lfs"].(map[string]any); ok {
				s["lfs"] = map[string]any{"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
			}
		}
		siblings = append(siblings, s)
	}
	var gated any = false
	if repo.Gated != "" {
		gated = repo.Gated
	}
	author, _, _ := strings.Cut(repo.ID, "/")
	reply(w, map[string]any{
		"_id": GitBlob([]byte(repo.ID))[:24], "id": repo.ID, "modelId": repo.ID, "author": author, "sha": commit, "private": repo.Private, "gated": gated, "disabled": false,
		"downloads": 7, "likes": 1, "tags": []string{"gguf", "license:mit"}, "lastModified": "2026-01-02T03:04:05.000Z", "createdAt": "2026-01-02T03:04:05.000Z",
		"pipeline_tag": "text-generation", "siblings": siblings,
	})
}

// entry is a file as trees and paths-info show it.
func (repo Repo) entry(f File) map[string]any {
	if !f.LFS {
		return map[string]any{"type": "file", "oid": GitBlob(f.Body), "size": len(f.Body), "path": f.Path}
	}
	oid := SHA256(f.Body)
	if repo.Redacted {
		oid = strings.Repeat("*", 64)
	}
	return map[string]any{
		"type": "file", "oid": GitBlob(f.pointer()), "size": len(f.Body), "path": f.Path,
		"lfs": map[string]any{"oid": oid, "size": len(f.Body), "pointerSize": len(f.pointer())},
	}
}

func (h *Hub) tree(w http.ResponseWriter, r *http.Request, faults Faults, repo Repo, commit string, files []File, dir string) {
	recursive := r.URL.Query().Get("recursive") == "true" || r.URL.Query().Get("recursive") == "1"
	var all []map[string]any
	folders := map[string]bool{}
	for _, f := range files {
		rest := f.Path
		if dir != "" {
			var ok bool
			if rest, ok = strings.CutPrefix(f.Path, dir+"/"); !ok {
				continue
			}
		}
		parts := strings.Split(rest, "/")
		for i := 1; i < len(parts); i++ {
			folder := strings.TrimPrefix(dir+"/"+strings.Join(parts[:i], "/"), "/")
			if !folders[folder] && (recursive || i == 1) {
				folders[folder] = true
				all = append(all, map[string]any{"type": "directory", "oid": GitBlob([]byte(folder)), "size": 0, "path": folder})
			}
		}
		if recursive || len(parts) == 1 {
			all = append(all, repo.entry(f))
		}
	}
	if dir != "" && len(all) == 0 {
		refuse(w, http.StatusNotFound, "EntryNotFound", dir+" does not exist on \"main\"")
		return
	}
	size := faults.PageSize
	if size == 0 {
		size = 1000
	}
	from, _ := strconv.Atoi(r.URL.Query().Get("cursor"))
	to := min(from+size, len(all))
	if to < len(all) {
		q := r.URL.Query()
		q.Set("cursor", strconv.Itoa(to))
		host := faults.LinkHost
		if host == "" {
			host = h.URL
		}
		w.Header().Set("Link", "<"+host+r.URL.EscapedPath()+"?"+q.Encode()+`>; rel="next"`)
	}
	w.Header().Set("X-Repo-Commit", commit)
	reply(w, append([]map[string]any{}, all[min(from, to):to]...))
}

func (h *Hub) pathsInfo(w http.ResponseWriter, r *http.Request, repo Repo, files []File) {
	var paths []string
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		var body struct {
			Paths []string `json:"paths"`
		}
		_ = json.NewDecoder(r.Body).Decode(&body)
		paths = body.Paths
	} else {
		_ = r.ParseForm()
		paths = r.PostForm["paths"]
	}
	out := []map[string]any{}
	for _, f := range files {
		if slices.Contains(paths, f.Path) {
			out = append(out, repo.entry(f))
		}
	}
	reply(w, out)
}

func (h *Hub) search(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	out := []map[string]any{}
	for id, repo := range h.repos {
		if strings.Contains(strings.ToLower(id), strings.ToLower(r.URL.Query().Get("search"))) && !repo.Private {
			out = append(out, map[string]any{"id": id, "modelId": id, "downloads": len(repo.Files), "likes": 3, "pipeline_tag": "text-generation", "gated": repo.Gated != ""})
		}
	}
	h.mu.Unlock()
	slices.SortFunc(out, func(a, b map[string]any) int { return strings.Compare(fmt.Sprint(a["id"]), fmt.Sprint(b["id"])) })
	if n, err := strconv.Atoi(r.URL.Query().Get("limit")); err == nil && n < len(out) {
		out = out[:n]
	}
	reply(w, out)
}

// file answers /{id}/resolve/{revision}/{path} and raw.
func (h *Hub) file(w http.ResponseWriter, r *http.Request, path string) {
	repo, verb, rest, ok := h.find(w, r, path, "resolve", "raw")
	if !ok {
		return
	}
	revision, name := cutRevision(rest)
	commit, files, ok := repo.at(revision)
	if verb == "" || !ok {
		refuse(w, http.StatusNotFound, "RevisionNotFound", "Invalid rev id: "+revision)
		return
	}
	w.Header().Set("X-Repo-Commit", commit)
	i := slices.IndexFunc(files, func(f File) bool { return f.Path == name })
	if i < 0 {
		refuse(w, http.StatusNotFound, "EntryNotFound", "Entry not found")
		return
	}
	if !mayRead(w, r, repo) {
		return
	}
	f := files[i]
	w.Header().Set("Accept-Ranges", "bytes")
	switch {
	case verb == "raw":
		body := f.Body
		if f.LFS {
			body = f.pointer()
		}
		h.send(w, r, body)
	case r.Header.Get("If-None-Match") == `"`+f.etag()+`"`:
		w.Header().Set("ETag", `"`+f.etag()+`"`)
		w.WriteHeader(http.StatusNotModified)
	case f.LFS:
		w.Header().Set("X-Linked-Size", strconv.Itoa(len(f.Body)))
		w.Header().Set("X-Linked-Etag", `"`+f.etag()+`"`)
		w.Header().Set("Location", h.sign(SHA256(f.Body), url.QueryEscape("inline; filename*=UTF-8''"+name[strings.LastIndexByte(name, '/')+1:])))
		w.WriteHeader(http.StatusFound)
		_, _ = io.WriteString(w, "Found. Redirecting to elsewhere")
	default:
		to := "/api/resolve-cache/models/" + repo.ID + "/" + commit + "/" + (&url.URL{Path: name}).EscapedPath() + "?" + url.QueryEscape(r.URL.Path) + "=&etag=%22" + f.etag() + "%22"
		w.Header().Set("X-Linked-Size", strconv.Itoa(len(f.Body)))
		w.Header().Set("X-Linked-Etag", `"`+f.etag()+`"`)
		w.Header().Set("Location", to)
		w.WriteHeader(http.StatusTemporaryRedirect)
	}
}

// cached answers for small files, {id}/{commit}/{path}.
func (h *Hub) cached(w http.ResponseWriter, r *http.Request, path string) {
	f, commit, ok := h.small(path)
	if !ok {
		refuse(w, http.StatusNotFound, "EntryNotFound", "Entry not found")
		return
	}
	w.Header().Set("X-Repo-Commit", commit)
	w.Header().Set("ETag", `"`+f.etag()+`"`)
	h.send(w, r, f.Body)
}

func (h *Hub) small(path string) (f File, commit string, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, repo := range h.repos {
		rest, ok := strings.CutPrefix(path, id+"/")
		if !ok {
			continue
		}
		commit, name, _ := strings.Cut(rest, "/")
		name, _ = url.PathUnescape(name)
		_, files, _ := repo.at(commit)
		if i := slices.IndexFunc(files, func(f File) bool { return f.Path == name }); i >= 0 {
			return files[i], commit, true
		}
	}
	return File{}, "", false
}

func (h *Hub) send(w http.ResponseWriter, r *http.Request, body []byte) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}
