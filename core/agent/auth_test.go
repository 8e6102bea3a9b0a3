package agent

import (
	"net/http/httptest"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/secret"
)

// TestTicketsOfPeers: the routes for other hives take tickets for this hive, and nothing that opens another class.
func TestTicketsOfPeers(t *testing.T) {
	cluster := secret.Secret("0123456789abcdef0123456789abcdef")
	g := guard{admin: "admin", hive: secret.ForHive(cluster, "me")}
	ticket := func(node string, life time.Duration) string {
		return secret.NewTicket(secret.ForHive(cluster, node), "blobs:x", time.Now().Add(life)).Reveal()
	}
	for name, c := range map[string]struct{ token, code string }{
		"a ticket":          {ticket("me", time.Hour), ""},
		"of another hive":   {ticket("other", time.Hour), "invalid_token"},
		"an expired one":    {ticket("me", -6*time.Minute), "ticket_expired"},
		"none":              {"", "missing_token"},
		"the hive's secret": {g.hive.Reveal(), "invalid_token"},
		"the admin key":     {"admin", "invalid_token"},
	} {
		r := httptest.NewRequest("GET", "/v1/blobs", nil)
		if c.token != "" {
			r.Header.Set("Authorization", "Bearer "+c.token)
		}
		err := g.hiveServer(httpd.ClassPeer, r)
		if (err == nil) != (c.code == "") || err != nil && (fault.As(err).Code != c.code || fault.HTTPStatus(err) != 401) {
			t.Errorf("%s: %v", name, err)
		}
		for _, class := range []httpd.Class{httpd.ClassHive, httpd.ClassAdmin} {
			if err := g.hiveServer(class, r); err == nil && c.code == "" {
				t.Errorf("a ticket opens %s", class)
			}
		}
		if g.queen(httpd.ClassPeer, r) == nil {
			t.Errorf("%s is taken by the queen", name)
		}
	}
}
