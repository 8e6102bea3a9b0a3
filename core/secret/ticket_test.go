package secret_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/secret"
)

func TestTickets(t *testing.T) {
	const key, what = secret.Secret("0123456789abcdef0123456789abcdef"), "blobs:hf:org/repo@0123:Q4.0"
	now := time.Unix(1_800_000_000, 0)
	good := secret.NewTicket(key, what, now.Add(time.Hour)).Reveal()
	changed := []byte(good)
	changed[5] ^= 1
	for name, c := range map[string]struct {
		ticket string
		key    secret.Secret
		at     time.Time
		want   error
	}{
		"new":                  {good, key, now, nil},
		"about to end":         {good, key, now.Add(time.Hour), nil},
		"by a clock behind":    {good, key, now.Add(-4 * time.Minute), nil},
		"by a clock ahead":     {good, key, now.Add(time.Hour + 5*time.Minute), nil},
		"over":                 {good, key, now.Add(time.Hour + 5*time.Minute + time.Second), secret.ErrTicketExpired},
		"for too long":         {good, key, now.Add(-10 * time.Minute), secret.ErrNoTicket},
		"of another node":      {good, "another", now, secret.ErrNoTicket},
		"changed":              {string(changed), key, now, secret.ErrNoTicket},
		"cut":                  {good[:len(good)-1], key, now, secret.ErrNoTicket},
		"longer":               {good + "0", key, now, secret.ErrNoTicket},
		"empty":                {"", key, now, secret.ErrNoTicket},
		"the node's secret":    {key.Reveal(), key, now, secret.ErrNoTicket},
		"a derived secret":     {"hive:x." + secret.Derive(key, "hive:x").Reveal(), key, now, secret.ErrNoTicket},
		"too long":             {strings.Repeat("x", 10_000), key, now, secret.ErrNoTicket},
		"without parts":        {"t1." + secret.Derive(key, "ticket:t1").Reveal(), key, now, secret.ErrNoTicket},
		"of a later version":   {"t2.1800000000.eA." + secret.Derive(key, "ticket:t2.1800000000.eA").Reveal(), key, now, secret.ErrNoTicket},
		"with a broken number": {"t1.x.eA." + secret.Derive(key, "ticket:t1.x.eA").Reveal(), key, now, secret.ErrNoTicket},
	} {
		got, err := secret.OpenTicket(c.key, c.ticket, c.at)
		if !errors.Is(err, c.want) || err == nil && got != what || err != nil && got != "" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
