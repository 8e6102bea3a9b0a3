package hive

import (
	"net/http"
	"slices"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/secret"
)

// Other hives fetch the files of models here with a ticket that a queen gave them. A ticket names one model, so whoever has one reads
// what anybody may fetch who may use that model, and nothing else of this machine.

const (
	maxSending  = 4               // files that are sent at once
	busyBackoff = 5 * time.Second // before another one is asked for
)

// opened returns the model whose files the ticket of a request opens.
func (h *Hive) opened(r *http.Request) (contract.Model, error) {
	permits, err := secret.OpenTicket(secret.ForHive(h.opts.ClusterKey, h.opts.NodeID), httpd.Bearer(r), time.Now())
	if err != nil {
		return contract.Model{}, fault.New(fault.Denied, "invalid_ticket", "The request carries no valid ticket of a queen for this hive: %w.", err).WithStatus(http.StatusUnauthorized)
	}
	id, ok := contract.BlobsOfTicket(permits)
	if !ok {
		return contract.Model{}, fault.New(fault.Denied, "wrong_ticket", "The ticket of the request is for something else than the files of a model.")
	}
	m, err := h.opts.Artifacts.Model(id)
	if fault.KindOf(err) == fault.NotFound || err == nil && (m.ID != id || !shared(m)) {
		return contract.Model{}, fault.New(fault.NotFound, "model_not_found", "This hive does not have the model of the ticket any more, or only where its owner put it; fetch it from where it is published.")
	}
	return m, err
}

// shared reports whether other hives may have the files of a model: not those that are only referred to and lie anywhere on this machine.
func shared(m contract.Model) bool {
	return !slices.ContainsFunc(m.Files, func(f contract.File) bool { return f.InPlace != nil })
}

// others are the hives that were named, without this one.
func (h *Hive) others(peers []contract.Peer) []contract.Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(p contract.Peer) bool { return p.HiveID == h.opts.NodeID })
}

// serveBlobs answers with the catalog entry of the model that a ticket opens.
func (h *Hive) serveBlobs(w http.ResponseWriter, r *http.Request) {
	m, err := h.opened(r)
	if err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	httpd.WriteJSON(w, http.StatusOK, m)
}

// serveBlob sends a file, or ranges of it.
func (h *Hive) serveBlob(w http.ResponseWriter, r *http.Request) {
	m, err := h.opened(r)
	if err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	sha := r.PathValue("sha256")
	if !slices.ContainsFunc(m.Files, func(f contract.File) bool { return f.SHA256 == sha }) {
		httpd.WriteError(w, r, fault.New(fault.Denied, "not_in_ticket", "The ticket of the request opens the files of one model, and this is none of them."))
		return
	}
	select {
	case h.sending <- struct{}{}:
		defer func() { <-h.sending }()
	default:
		httpd.WriteError(w, r, fault.New(fault.Unavailable, "hive_busy", "This hive sends %d files to other hives already; try again in a moment, or elsewhere.", maxSending).WithRetryAfter(busyBackoff))
		return
	}
	f, err := h.opts.Artifacts.OpenBlob(sha)
	if err != nil {
		if fault.KindOf(err) != fault.NotFound {
			h.log.Warn("cannot open a file that another hive asks for", "model", m.ID, "error", err.Error())
			err = fault.New(fault.Unavailable, "blob_unreadable", "This hive cannot read the file; its log says why. Fetch it from elsewhere.")
		}
		httpd.WriteError(w, r, err)
		return
	}
	defer func() { _ = f.Close() }()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("ETag", `"`+sha+`"`)
	http.ServeContent(w, r, "", time.Time{}, f)
}
