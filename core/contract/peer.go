package contract

import "strings"

// Peer is another hive that has the files of a model, with a ticket that opens them there. A hive asks no other hive without one.
type Peer struct {
	HiveID string `json:"hive_id"`
	Name   string `json:"name,omitempty"` // of the hive, for people
	URL    string `json:"url"`            // base URL of its API
	Model  string `json:"model"`          // pinned id
	Ticket string `json:"ticket"`         // bearer token of GET /v1/blobs there; it ends by itself within an hour
}

// MaxPeers is how many hives are named to one that is to fetch a model.
const MaxPeers = 4

// TicketForBlobs is what a ticket permits that opens the files of a model.
func TicketForBlobs(modelID string) string { return ticketBlobs + modelID }

// BlobsOfTicket is the model whose files a ticket opens, by what it permits.
func BlobsOfTicket(permits string) (modelID string, ok bool) {
	return strings.CutPrefix(permits, ticketBlobs)
}

const ticketBlobs = "blobs:"
