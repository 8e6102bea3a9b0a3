package queen

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/registry"
	"github.com/apiary-dev/apiary/core/secret"
)

// peers names the hives from which a hive may fetch a model that it does not have, with tickets for it: the one that a plan chose first.
// A hive asks no other hive by its own right.
func (q *Queen) peers(modelID string, to registry.Hive, first string) []contract.Peer {
	scheme, _, _ := strings.Cut(modelID, ":")
	if scheme == "file" || scheme == "builtin" || scheme == "echo" { // bound to one hive, or in every one
		return nil
	}
	var holders []registry.Hive
	for _, h := range q.Snapshot().Hives {
		has := h.Inventory != nil && slices.ContainsFunc(h.Inventory.Models, func(m contract.Model) bool { return m.ID == modelID })
		switch {
		case has && h.Beat.ID == to.Beat.ID:
			return nil
		case has && h.Liveness != contract.LivenessDown && h.Liveness != contract.LivenessLost && reaches(to.Beat.Address, h.Beat.Address):
			holders = append(holders, h)
		}
	}
	// Several hives that fetch at once begin with different ones, and each with the same one when it goes on.
	rank := func(h registry.Hive) string {
		if h.Beat.ID == first {
			return ""
		}
		return secret.Derive(secret.Secret(to.Beat.ID), h.Beat.ID).Reveal()
	}
	slices.SortFunc(holders, func(a, b registry.Hive) int { return strings.Compare(rank(a), rank(b)) })
	until := time.Now().Add(secret.TicketLife)
	var out []contract.Peer
	for _, h := range holders[:min(len(holders), contract.MaxPeers)] {
		ticket := secret.NewTicket(secret.ForHive(q.o.ClusterKey, h.Beat.ID), contract.TicketForBlobs(modelID), until)
		out = append(out, contract.Peer{HiveID: h.Beat.ID, Name: h.Beat.Name, URL: h.Beat.Address, Model: modelID, Ticket: ticket.Reveal()})
	}
	return out
}

// reaches reports whether a hive may find another one at its address: not at one of the loopback of another machine.
func reaches(from, to string) bool {
	return !onLoopback(to) || onLoopback(from)
}

func onLoopback(base string) bool {
	u, err := url.Parse(base)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && ip.Unmap().IsLoopback()
}
