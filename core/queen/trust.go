package queen

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/trust"
)

// Trust is what a queen lets machines in with. All but Authority are needed.
type Trust struct {
	Authority *trust.Authority // nil: this queen issues no certificates
	Clock     *trust.Clock
	Roster    *trust.Roster
	Verifier  *trust.Verifier
	NodeID    string
	Own       func() contract.NodeRecord // of a node that issued its own certificate; without a name: it was let in by another queen
	// Welcome gives what a node gets that is let in with these roles.
	Welcome func(roles []string) (trust.Welcome, error)
	// Addresses are where those who join reach queens, host:port; an error says why nobody could.
	Addresses func() ([]string, error)
}

// trusting is the part of a queen that lets machines in.
type trusting struct {
	Trust
	q      *Queen
	ledger *trust.Ledger
	issuer *trust.Issuer // nil without an authority
}

const (
	tokenBody = 4 * contract.KiB
	joinBody  = 64 * contract.KiB
)

func newTrusting(q *Queen, o Trust) *trusting {
	t := &trusting{Trust: o, q: q, ledger: trust.NewLedger(o.Clock)}
	if o.Authority != nil {
		t.issuer = trust.NewIssuer(trust.IssuerOptions{
			Authority: o.Authority, Ledger: t.ledger, Roster: o.Roster, Clock: o.Clock, Welcome: o.Welcome, Publish: t.publish,
		})
	}
	return t
}

// routes are those of tokens and certificates. They are no jobs, because what a job says is kept.
func (t *trusting) routes() []httpd.Route {
	return []httpd.Route{
		{Pattern: "POST /admin/tokens", Class: httpd.ClassAdmin, BodyLimit: tokenBody, Timeout: callTimeout, Handler: http.HandlerFunc(t.createToken)},
		// Who joins has a token, and who renews a certificate that may have expired: the handlers look at them.
		{Pattern: "POST /v1/join", Class: httpd.ClassOpen, BodyLimit: joinBody, Timeout: callTimeout, Handler: http.HandlerFunc(t.join)},
		{Pattern: "POST /v1/renew", Class: httpd.ClassOpen, BodyLimit: joinBody, Timeout: callTimeout, Handler: http.HandlerFunc(t.renew)},
	}
}

// read takes over what the shared records say: tokens, nodes and keys that were shut out.
func (t *trusting) read() {
	list := t.q.book.about(contract.RecordToken, contract.RecordNode, contract.RecordRevocation)
	t.Roster.Take(list...)
	var shut []contract.Record
	for _, c := range t.ledger.Take(list...) {
		// Two queens that did not hear each other have each let a machine in with one token: the later one goes.
		t.q.log.Warn("a token was used twice, and the machine that used it later is shut out", "token", c.TokenID, "node", c.NodeID)
		shut = append(shut, t.Roster.RevokeKey(c.Key, c.NodeID, t.Clock.Now()))
	}
	if len(shut) > 0 {
		if err := t.q.book.keep(shut...); err != nil {
			t.q.log.Error("that a machine is shut out could not be stored", "error", err.Error())
		}
	}
}

// enter writes this node, which issued its own certificate, into the records that others check it against.
func (t *trusting) enter() error {
	own := t.Own()
	if own.Name == "" {
		return nil
	}
	if old, ok := t.Roster.Nodes()[t.NodeID]; ok && old.Name == own.Name && old.Key == own.Key && old.IssuerKey == own.IssuerKey && slices.Equal(old.Roles, own.Roles) {
		return nil
	}
	rec, undo, err := t.Roster.Admit(t.NodeID, own)
	if err != nil {
		return err
	}
	if err := t.q.book.keep(rec); err != nil {
		undo()
		return err
	}
	return nil
}

// run forgets old tokens until ctx ends.
func (t *trusting) run(ctx context.Context) {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		if old := t.ledger.Sweep(); len(old) > 0 {
			if err := t.q.book.keep(old...); err != nil {
				t.q.log.Warn("old tokens are not forgotten", "error", err.Error())
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// publish keeps records and tells the other queens, which may take a moment; those that do not hear it now do later.
func (t *trusting) publish(ctx context.Context, records ...contract.Record) error {
	if err := t.q.book.keep(records...); err != nil {
		return err
	}
	t.q.company.touch()
	var kept []contract.Record
	for _, r := range records {
		kept = append(kept, t.q.book.record(r.Kind, r.Key)...)
	}
	t.q.company.announce(ctx, kept...)
	return nil
}

func (t *trusting) createToken(w http.ResponseWriter, r *http.Request) {
	var n contract.NewToken
	if err := httpd.ReadJSON(r, &n); err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	made, err := t.makeToken(r.Context(), n)
	if err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	t.q.log.Info("join token made", "token", made.ID, "role", made.Role, "name", made.Name, "expires", made.Expires)
	w.Header().Set("Cache-Control", "no-store")
	httpd.WriteJSON(w, http.StatusCreated, made)
}

func (t *trusting) makeToken(ctx context.Context, n contract.NewToken) (contract.MadeToken, error) {
	none := contract.MadeToken{}
	if t.issuer == nil {
		return none, fault.New(fault.Conflict, "no_authority", "This queen cannot issue certificates, because it joined without an issuing key; make the token at another queen.")
	}
	if n.Role == "" {
		n.Role = trust.RoleHive
	}
	if n.Role == trust.RoleQueen && !t.Authority.IsRoot() {
		return none, fault.New(fault.Conflict, trust.CodeRootElsewhere, "This queen cannot let other queens in, because the key of the cluster's CA stays with the agent that made the cluster; make the token there.")
	}
	if n.TTLSeconds < 0 || n.TTLSeconds > int64(24*time.Hour/time.Second) {
		return none, fault.New(fault.Invalid, "bad_ttl", "A token lives from a minute to a day.").WithParam("ttl_seconds")
	}
	at, err := t.Addresses()
	if err != nil {
		return none, err
	}
	token, rec, err := t.ledger.Make(trust.TokenOrder{Role: n.Role, Name: n.Name, TTL: time.Duration(n.TTLSeconds) * time.Second, Addresses: at, Fingerprint: trust.Fingerprint(t.Authority.Root())})
	if err != nil {
		return none, err
	}
	if err := t.publish(ctx, rec); err != nil {
		return none, err
	}
	text, err := token.Encode()
	if err != nil {
		return none, err
	}
	return contract.MadeToken{Token: text.Reveal(), ID: token.ID, Role: token.Role, Name: token.Name, Expires: token.Expires, Addresses: at, Cluster: trust.ClusterID(t.Authority.Root())}, nil
}

func (t *trusting) join(w http.ResponseWriter, r *http.Request) {
	if httpd.TLS(r) == nil { // the answer holds the cluster's secrets
		httpd.WriteError(w, r, fault.New(fault.Invalid, "https_required", "A machine joins over https alone; `apiary join` does."))
		return
	}
	if t.issuer == nil {
		httpd.WriteError(w, r, fault.New(fault.Conflict, "no_authority", "This queen cannot issue certificates; join at another one."))
		return
	}
	var req contract.JoinRequest
	if err := httpd.ReadJSON(r, &req); err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	reply, err := t.issuer.Join(r.Context(), req, remoteIP(r))
	if err != nil {
		t.q.log.Warn("a machine was not let in", "from", r.RemoteAddr, "code", fault.As(err).Code)
		httpd.WriteError(w, r, err)
		return
	}
	t.q.log.Info("a machine was let in", "node", req.NodeID, "name", req.Name, "roles", req.Roles, "token", req.TokenID, "from", r.RemoteAddr)
	w.Header().Set("Cache-Control", "no-store")
	httpd.WriteJSON(w, http.StatusOK, reply)
}

func (t *trusting) renew(w http.ResponseWriter, r *http.Request) {
	p, err := t.Verifier.Renewing(httpd.TLS(r))
	if err == nil && t.issuer == nil {
		err = fault.New(fault.Conflict, "no_authority", "This queen cannot issue certificates; ask another one.")
	}
	var req contract.RenewRequest
	if err == nil {
		err = httpd.ReadJSON(r, &req)
	}
	var reply contract.RenewReply
	if err == nil {
		reply, err = t.issuer.Renew(p, req, remoteIP(r))
	}
	if err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	t.q.log.Debug("certificate renewed", "node", p.NodeID, "name", p.Name)
	httpd.WriteJSON(w, http.StatusOK, reply)
}

func remoteIP(r *http.Request) netip.Addr {
	at, _ := netip.ParseAddrPort(r.RemoteAddr)
	return at.Addr().Unmap()
}

// about lists the records of some kinds.
func (b *book) about(kinds ...string) []contract.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []contract.Record
	for _, k := range b.sorted() {
		if slices.Contains(kinds, k.kind) {
			out = append(out, b.records[k])
		}
	}
	return out
}

// record is the record of a kind and key, where there is one.
func (b *book) record(kind, key string) []contract.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r, ok := b.records[recordKey{kind, key}]; ok {
		return []contract.Record{r}
	}
	return nil
}

// keep makes records of this queen, whose kind, key and value are given.
func (b *book) keep(records ...contract.Record) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range records {
		var value any
		if !r.Deleted {
			value = json.RawMessage(r.Value)
		}
		if err := b.put(r.Kind, r.Key, value); err != nil {
			return err
		}
	}
	return b.save()
}
