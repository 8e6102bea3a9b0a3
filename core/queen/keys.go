package queen

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/keys"
)

const keyBody = 64 * contract.KiB

// keyRoutes are those of API keys. They are no jobs, because what a job says is kept and a key is shown once.
func (q *Queen) keyRoutes() []httpd.Route {
	return []httpd.Route{
		{Pattern: "POST /admin/keys", Class: httpd.ClassAdmin, BodyLimit: keyBody, Timeout: callTimeout, Handler: http.HandlerFunc(q.createKey)},
		{Pattern: "GET /admin/keys", Class: httpd.ClassAdmin, BodyLimit: noBody, Timeout: callTimeout, Handler: http.HandlerFunc(q.listKeys)},
		{Pattern: "DELETE /admin/keys/{id}", Class: httpd.ClassAdmin, BodyLimit: noBody, Timeout: callTimeout, Handler: http.HandlerFunc(q.revokeKey)},
	}
}

// readKeys has the keys among the shared records checked from now on.
func (q *Queen) readKeys() {
	list, ever := q.book.keys()
	q.o.Keys.Set(list)
	q.keyed.Store(ever)
}

// KeysRequired reports whether a key was ever made in this cluster. From then on calls need one, also once it is revoked.
func (q *Queen) KeysRequired() bool { return q.keyed.Load() }

func (q *Queen) createKey(w http.ResponseWriter, r *http.Request) {
	var n contract.NewKey
	if err := httpd.ReadJSON(r, &n); err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	key, made, err := keys.Make(n, time.Now())
	if err == nil {
		err = q.book.addKey(made)
	}
	if err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	q.readKeys()
	q.company.touch()
	q.log.Info("API key made", "key", made.ID, "name", made.Name, "class", made.Class)
	made.Hash = ""
	w.Header().Set("Cache-Control", "no-store")
	httpd.WriteJSON(w, http.StatusCreated, contract.MadeKey{Key: key.Reveal(), APIKey: made})
}

func (q *Queen) listKeys(w http.ResponseWriter, _ *http.Request) {
	list, _ := q.book.keys()
	for i := range list {
		list[i].Hash = ""
	}
	httpd.WriteJSON(w, http.StatusOK, list)
}

// revokeKey revokes the key that has an id, or the only one that has a name.
func (q *Queen) revokeKey(w http.ResponseWriter, r *http.Request) {
	k, err := q.book.removeKey(r.PathValue("id"))
	if err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	q.readKeys()
	q.company.touch()
	q.log.Info("API key revoked", "key", k.ID, "name", k.Name)
	k.Hash = ""
	httpd.WriteJSON(w, http.StatusOK, k)
}

// keys lists the keys that exist, oldest first. ever says whether there was one at any time.
func (b *book) keys() (list []contract.APIKey, ever bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.listKeys()
}

func (b *book) listKeys() (list []contract.APIKey, ever bool) {
	list = []contract.APIKey{}
	for k, r := range b.records {
		ever = ever || k.kind == contract.RecordKeys
		var v contract.APIKey
		if k.kind == contract.RecordKey && !r.Deleted && json.Unmarshal(r.Value, &v) == nil && v.ID == k.key {
			list = append(list, v)
		}
	}
	slices.SortFunc(list, func(x, y contract.APIKey) int {
		if c := x.Created.Compare(y.Created); c != 0 {
			return c
		}
		return strings.Compare(x.ID, y.ID)
	})
	return list, ever
}

func (b *book) addKey(k contract.APIKey) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	list, _ := b.listKeys()
	if len(list) >= keys.MaxKeys {
		return fault.New(fault.Exhausted, "too_many_keys", "There are %d API keys, and there can be no more; `apiary key revoke` ends some.", len(list))
	}
	for _, o := range list {
		if o.Name == k.Name {
			return fault.New(fault.Conflict, "key_name_taken", "There is an API key named %q, %s; revoke it with `apiary key revoke %s`, or choose another name.", o.Name, o.ID, o.ID).WithParam("name")
		}
	}
	return b.change(func() error {
		if err := b.put(contract.RecordKeys, "required", true); err != nil {
			return err
		}
		return b.put(contract.RecordKey, k.ID, k)
	})
}

func (b *book) removeKey(idOrName string) (contract.APIKey, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	list, _ := b.listKeys()
	var found []contract.APIKey
	for _, k := range list {
		if k.ID == idOrName {
			found = []contract.APIKey{k}
			break
		}
		if k.Name == idOrName {
			found = append(found, k)
		}
	}
	switch len(found) {
	case 0:
		return contract.APIKey{}, fault.New(fault.NotFound, "key_not_found", "There is no API key %s; `apiary key list` shows those that exist.", quoted(idOrName))
	case 1:
		return found[0], b.change(func() error { return b.put(contract.RecordKey, found[0].ID, nil) })
	}
	return contract.APIKey{}, fault.New(fault.Conflict, "ambiguous_key", "%d API keys are named %s, made where queens could not hear each other; name one by its id, which `apiary key list` shows.", len(found), quoted(idOrName))
}
