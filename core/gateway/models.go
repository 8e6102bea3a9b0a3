package gateway

import (
	"net/http"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/openai"
)

// listModels answers GET /v1/models: every name that a request may use, once.
func (g *Gateway) listModels(w http.ResponseWriter, _ *http.Request) {
	list := openai.ModelList{Object: openai.ObjectList, Data: []openai.Model{}}
	seen := map[string]bool{}
	for _, v := range g.dir.Models() {
		names := v.Names
		if len(names) == 0 {
			names = []string{v.ID}
		}
		for _, n := range names {
			if n != "" && !seen[n] {
				seen[n] = true
				list.Data = append(list.Data, g.model(n, v))
			}
		}
	}
	httpd.WriteJSON(w, http.StatusOK, list)
}

// getModel answers GET /v1/models/{model}, for names and for pinned ids.
func (g *Gateway) getModel(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("model")
	for _, v := range g.dir.Models() {
		if v.ID == name && name != "" || contains(v.Names, name) {
			httpd.WriteJSON(w, http.StatusOK, g.model(name, v))
			return
		}
	}
	_, err := g.dir.Resolve(name)
	if err == nil { // it came between the two looks
		httpd.WriteJSON(w, http.StatusOK, g.model(name, contract.ModelView{}))
		return
	}
	if fault.KindOf(err) == fault.Internal {
		g.log.Error("resolve model", "error", err)
	}
	httpd.WriteError(w, r, err)
}

func (g *Gateway) model(name string, v contract.ModelView) openai.Model {
	m := openai.Model{ID: name, Object: openai.ObjectModel, Created: g.created, OwnedBy: "apiary"}
	if v.Model != nil {
		if !v.Model.AddedAt.IsZero() {
			m.Created = v.Model.AddedAt.Unix()
		}
		if v.Model.Vendor != "" {
			m.OwnedBy = v.Model.Vendor
		}
	}
	return m
}
