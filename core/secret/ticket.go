package secret

import (
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"
)

// Bounds of tickets. The clocks of two machines may differ by TicketLeeway.
const (
	TicketLife   = time.Hour
	TicketLeeway = 5 * time.Minute
)

// Errors of OpenTicket.
var (
	ErrNoTicket      = errors.New("the ticket is not one of this node")
	ErrTicketExpired = errors.New("the ticket has expired")
)

const ticketVersion = "t1"

// NewTicket permits its bearer what at the node whose secret key is, until a time that is at most TicketLife away. It is
// "t1.<until, Unix seconds>.<what, base64url>.<HMAC-SHA256 of what comes before, hex>".
func NewTicket(key Secret, what string, until time.Time) Secret {
	head := strings.Join([]string{ticketVersion, strconv.FormatInt(until.Unix(), 10), base64.RawURLEncoding.EncodeToString([]byte(what))}, ".")
	return Secret(head + "." + Derive(key, "ticket:"+head).Reveal())
}

// OpenTicket returns what a ticket permits at the node with the secret key. Errors are ErrTicketExpired for one whose time has passed by
// more than TicketLeeway, and ErrNoTicket for all else.
func OpenTicket(key Secret, ticket string, now time.Time) (what string, err error) {
	head, mac, ok := cutLast(ticket, ".")
	if !ok || len(ticket) > maxTicket || !Derive(key, "ticket:"+head).Equal(mac) {
		return "", ErrNoTicket
	}
	parts := strings.Split(head, ".")
	if len(parts) != 3 || parts[0] != ticketVersion {
		return "", ErrNoTicket
	}
	seconds, err1 := strconv.ParseInt(parts[1], 10, 64)
	text, err2 := base64.RawURLEncoding.DecodeString(parts[2])
	if err1 != nil || err2 != nil {
		return "", ErrNoTicket
	}
	switch left := time.Unix(seconds, 0).Sub(now); {
	case left < -TicketLeeway:
		return "", ErrTicketExpired
	case left > TicketLife+TicketLeeway: // nobody makes such a one
		return "", ErrNoTicket
	}
	return string(text), nil
}

const maxTicket = 4096

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
