package gossip

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// A user message is a kind byte, a version byte and JSON. Kinds and versions that are not known here are counted and dropped: a newer
// agent may send them.
const (
	kindBeat byte = 1
	kindKey  byte = 2

	messageVersion byte = 1
	maxMessage          = contract.MaxHiveBeat // of a whole message, so that it fits in a packet
)

var errUnknownMessage = errors.New("a kind or version of message that is not known here")

// beat is the message of kind kindBeat.
type beat struct {
	From string            `json:"from"` // name of the member
	Beat contract.HiveBeat `json:"beat"`
}

// encodeMessage frames v.
func encodeMessage(kind byte, v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode a message: %w", err)
	}
	if len(b)+2 > maxMessage {
		return nil, fmt.Errorf("a message has %d bytes and may have %d", len(b)+2, maxMessage)
	}
	return append([]byte{kind, messageVersion}, b...), nil
}

// decodeMessage reads a message of another agent: a beat or a keyOrder, whose senders' names have the right form.
func decodeMessage(b []byte) (any, error) {
	if len(b) < 2 || len(b) > maxMessage {
		return nil, fmt.Errorf("a message has %d bytes and may have 2 to %d", len(b), maxMessage)
	}
	if b[1] != messageVersion || b[0] != kindBeat && b[0] != kindKey {
		return nil, errUnknownMessage
	}
	d := json.NewDecoder(bytes.NewReader(b[2:]))
	if b[0] == kindKey {
		var k keyOrder
		if err := d.Decode(&k); err != nil {
			return nil, errors.New("an order about keys is not JSON of the form that is known here")
		}
		if _, _, err := splitName(k.From); err != nil {
			return nil, err
		}
		return k, k.check()
	}
	var m beat
	if err := d.Decode(&m); err != nil {
		return nil, errors.New("a beat is not JSON of the form that is known here")
	}
	id, _, err := splitName(m.From)
	if err == nil && m.Beat.ID != id {
		err = errors.New("a beat speaks for another node than the one that sent it")
	}
	return m, err
}

// NewStart names a start of an agent that begins now. Names of later times are greater texts.
func NewStart(now time.Time) string {
	s := strconv.FormatInt(now.UnixNano(), 32)
	return strings.Repeat("0", max(0, 13-len(s))) + s
}
