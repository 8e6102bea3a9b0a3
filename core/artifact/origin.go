package artifact

import (
	"context"
	"net/http"
	"net/url"
	"reflect"
	"slices"

	"github.com/apiary-dev/apiary/core/fault"
	pluginhost "github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// guarded is a plugin from elsewhere. Its client goes where the plugin was granted to go and nowhere else, also where a redirect
// leads; nil: the plugin has none. What a plugin of this build names is fetched with the client of the store.
type guarded interface{ FileClient() *http.Client }

// origin is how the files of one artifact are fetched.
type origin struct {
	client *http.Client
	// refresh asks for other sources of the file with that path. Nil: the sources are all that there are.
	refresh func(ctx context.Context, path string) (*vendor.File, error)
	sha512  bool // is to be known of files for which it was not promised
	// name says for people whose an address is, where it is one of another hive; nil: they are of servers, known by their hosts.
	name func(u *url.URL) string
	// failed hears of each source that was given up. Nil: nobody wants to know.
	failed func(src vendor.Source, err error)
	tries  int // in a row without progress; 0: the usual number
}

// place names who has an address.
func (o origin) place(u *url.URL) string {
	if o.name != nil {
		return o.name(u)
	}
	return u.Host
}

// originOf is how what plugin has resolved is fetched. man is nil for an engine.
func (s *Store) originOf(plugin any, man *vendor.Manifest) origin {
	from := origin{client: s.client, sha512: man == nil}
	if g, ok := plugin.(guarded); ok {
		if c := g.FileClient(); c != nil {
			from.client = withTokens(c)
		}
	}
	r, ok := plugin.(vendor.Refresher)
	if !ok || man == nil {
		return from
	}
	from.refresh = func(ctx context.Context, path string) (*vendor.File, error) {
		files, err := r.RefreshSources(ctx, vendor.RefreshRequest{Reference: man.Reference, Paths: []string{path}})
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(files, func(f vendor.File) bool { return f.Path == path })
		j := slices.IndexFunc(man.Files, func(f vendor.File) bool { return f.Path == path })
		if i < 0 || j < 0 || len(files[i].Sources) == 0 {
			return nil, fault.New(fault.Unavailable, "no_new_source", "No other address of %s was found after the one from before had expired; try again later.", path)
		}
		f, was := files[i], man.Files[j]
		if f.Size != was.Size || f.Digests != was.Digests || !reflect.DeepEqual(f.Member, was.Member) {
			return nil, fault.New(fault.Conflict, "source_changed", "%s is another file now than when its download began; pull the model again.", path)
		}
		return &f, nil
	}
	return from
}

// maxRefreshes is how often the vendor of a file is asked for other sources of it.
const maxRefreshes = 3

// expiredError is a refusal that another source may mend.
type expiredError struct{ err error }

func (e *expiredError) Error() string { return e.err.Error() }
func (e *expiredError) Unwrap() error { return e.err }

// mayRefresh reports whether other sources may be asked for.
func (t *transfer) mayRefresh() bool { return t.from.refresh != nil && t.refreshed < maxRefreshes }

// refresh asks for other sources.
func (t *transfer) refresh(ctx context.Context) error {
	t.refreshed++
	t.report("retry", t.what+": its address has expired; asking for another", nil)
	f, err := t.from.refresh(ctx, t.file.Path)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return pluginhost.Fault(err)
	}
	t.file.Sources = f.Sources
	return nil
}
