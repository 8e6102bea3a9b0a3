package gateway

import (
	"bytes"
	"errors"
	"strconv"
	"strings"

	"github.com/apiary-dev/apiary/core/contract"
)

// Bounds of a worker's answer, beside those of its body.
const (
	maxReplyHead    = 32 << 10 // the head, and the trailers, each
	maxReplyFields  = 128
	maxInformation  = 8 // answers of status 1xx before the real one
	maxChunkSizeLen = 256
)

// errReply is wrapped by every error about an answer that breaks HTTP/1.1.
var errReply = errors.New("the answer is not valid HTTP")

// reply parses one HTTP/1.1 answer from pieces of any size. It is stricter than RFC 9112 asks of a client: lines end in CRLF,
// and a length beside a transfer coding, two lengths, folded lines and unknown codings are errors.
type reply struct {
	// Known once the head is complete.
	status      int
	contentType string // without parameters, in lower case
	retryAfter  string
	chunked     bool
	length      int64 // -1: chunked, or until the connection ends
	reusable    bool  // the connection can carry another request afterwards
	usage       []byte

	phase  phase
	acc    []byte // a head, size line or trailer that has not arrived completely
	remain int64  // of the body or of the chunk
	infos  int
	fields int
}

type phase uint8

const (
	inHead phase = iota
	inLength
	inClose
	inChunkSize
	inChunkData
	inChunkEnd
	inTrailer
	complete
)

// feed reads b and calls body for each piece of the body in it; an error of body is returned as it is. It returns what of b
// lies behind the end of the answer.
func (p *reply) feed(b []byte, body func([]byte) error) (rest []byte, err error) {
	for len(b) > 0 || p.phase == inLength && p.remain == 0 {
		switch p.phase {
		case complete:
			return b, nil
		case inHead:
			head, left, err := p.collect(b, "\r\n\r\n", maxReplyHead)
			if err != nil || head == nil {
				return nil, err
			}
			b = left
			if err := p.parseHead(head); err != nil {
				return nil, err
			}
			p.acc = nil
		case inLength:
			n := min(p.remain, int64(len(b)))
			if p.remain -= n; p.remain == 0 {
				p.phase = complete
			}
			if n > 0 {
				if err := body(b[:n]); err != nil {
					return nil, err
				}
			}
			b = b[n:]
		case inClose:
			return nil, body(b)
		case inChunkSize:
			line, left, err := p.collect(b, "\r\n", maxChunkSizeLen)
			if err != nil || line == nil {
				return nil, err
			}
			b = left
			if err := p.parseChunkSize(line); err != nil {
				return nil, err
			}
			p.acc = p.acc[:0]
		case inChunkData:
			n := min(p.remain, int64(len(b)))
			if p.remain -= n; p.remain == 0 {
				p.phase, p.remain = inChunkEnd, 2
			}
			if err := body(b[:n]); err != nil {
				return nil, err
			}
			b = b[n:]
		case inChunkEnd:
			if b[0] != "\r\n"[2-p.remain] {
				return nil, bad("a chunk is longer than its size")
			}
			b = b[1:]
			if p.remain--; p.remain == 0 {
				p.phase = inChunkSize
			}
		case inTrailer:
			line, left, err := p.collect(b, "\r\n", maxReplyHead)
			if err != nil || line == nil {
				return nil, err
			}
			b = left
			if err := p.parseTrailer(line); err != nil {
				return nil, err
			}
			p.acc = p.acc[:0]
		}
	}
	return b, nil
}

// end is called when the connection ended. It reports whether the answer is complete.
func (p *reply) end() bool {
	if p.phase == inClose {
		p.phase = complete
	}
	return p.phase == complete
}

// collect returns what comes before sep, or nil while sep has not arrived.
func (p *reply) collect(b []byte, sep string, limit int) (part, rest []byte, err error) {
	if len(p.acc) == 0 {
		if i := bytes.Index(b, []byte(sep)); i >= 0 && i <= limit {
			return b[:i:i], b[i+len(sep):], nil
		}
	}
	// The separator may lie across the border of two pieces.
	from := max(0, len(p.acc)-len(sep)+1)
	had := len(p.acc)
	p.acc = append(p.acc, b[:min(len(b), limit+len(sep)-min(had, limit))]...)
	i := bytes.Index(p.acc[from:], []byte(sep))
	switch {
	case i >= 0 && from+i <= limit:
		return p.acc[: from+i : from+i], b[from+i+len(sep)-had:], nil
	case len(p.acc) > limit:
		return nil, nil, bad("a head, a trailer or a chunk size is too long")
	}
	return nil, nil, nil
}

type badReply string

func bad(why string) error           { return badReply(why) }
func (e badReply) Error() string     { return errReply.Error() + ": " + string(e) }
func (e badReply) Is(err error) bool { return err == errReply }

func (p *reply) parseHead(head []byte) error {
	line, fields, _ := bytes.Cut(head, []byte("\r\n"))
	if len(line) < 12 || string(line[:7]) != "HTTP/1." || line[7] != '0' && line[7] != '1' || line[8] != ' ' ||
		len(line) > 12 && line[12] != ' ' || bytes.IndexByte(line, '\n') >= 0 {
		return bad("the status line is malformed")
	}
	status, err := strconv.ParseUint(string(line[9:12]), 10, 16)
	if err != nil || status < 100 || status > 599 {
		return bad("the status is not a number from 100 to 599")
	}
	if status < 200 {
		if p.infos++; status == 101 || p.infos > maxInformation {
			return bad("too many answers of status 1xx")
		}
		return nil // the real one follows
	}
	oldest := line[7] == '0'
	p.status, p.length, p.reusable = int(status), -1, !oldest
	for len(fields) > 0 {
		line, fields, _ = bytes.Cut(fields, []byte("\r\n"))
		name, value, err := p.field(line)
		if err != nil {
			return err
		}
		switch len(name) { // of the names that matter
		case 10:
			if equalFold(name, "connection") {
				if c := strings.ToLower(string(value)); strings.Contains(c, "close") {
					p.reusable = false
				}
			}
		case 11:
			if equalFold(name, "retry-after") {
				p.retryAfter = string(value)
			}
		case 12:
			if equalFold(name, "content-type") {
				p.contentType = mediaType(value)
			}
		case 14:
			if equalFold(name, "content-length") {
				n, err := strconv.ParseUint(string(value), 10, 62)
				if err != nil || value[0] == '+' || p.length >= 0 && p.length != int64(n) {
					return bad("the length of the body is malformed")
				}
				p.length = int64(n)
			}
		case 16:
			if equalFold(name, "content-encoding") && !equalFold(value, "identity") {
				return bad("the body is compressed, which was not asked for")
			}
		case 17:
			if equalFold(name, "transfer-encoding") {
				if p.chunked || !equalFold(value, "chunked") {
					return bad("the transfer coding is not chunked")
				}
				p.chunked = true
			}
		}
	}
	switch {
	case p.chunked && oldest:
		return bad("HTTP/1.0 has no transfer coding")
	case p.chunked && p.length >= 0:
		return bad("it has both a length and a transfer coding")
	case status == 204 || status == 304:
		p.phase, p.length = complete, 0
	case p.chunked:
		p.phase = inChunkSize
	case p.length >= 0:
		p.phase, p.remain = inLength, p.length
	default:
		p.phase, p.reusable = inClose, false
	}
	return nil
}

// field splits a header field, whose value loses the blanks around it.
func (p *reply) field(line []byte) (name, value []byte, err error) {
	if p.fields++; p.fields > maxReplyFields {
		return nil, nil, bad("it has too many header fields")
	}
	i := bytes.IndexByte(line, ':')
	if i <= 0 {
		return nil, nil, bad("a header field is malformed")
	}
	for _, c := range line[:i] {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return nil, nil, bad("the name of a header field is malformed")
		}
	}
	value = bytes.Trim(line[i+1:], " \t")
	for _, c := range value {
		if c < ' ' && c != '\t' || c == 0x7f {
			return nil, nil, bad("the value of a header field is malformed")
		}
	}
	return line[:i], value, nil
}

func (p *reply) parseChunkSize(line []byte) error {
	size, _, _ := bytes.Cut(line, []byte(";"))
	size = bytes.TrimRight(size, " \t")
	if len(size) == 0 || len(size) > 15 {
		return bad("a chunk size is malformed")
	}
	var n int64
	for _, c := range size {
		switch {
		case c >= '0' && c <= '9':
			n = n<<4 | int64(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			n = n<<4 | int64(c|0x20-'a'+10)
		default:
			return bad("a chunk size is malformed")
		}
	}
	if p.phase, p.remain = inChunkData, n; n == 0 {
		p.phase, p.fields = inTrailer, 0
	}
	return nil
}

func (p *reply) parseTrailer(line []byte) error {
	if len(line) == 0 {
		p.phase = complete
		return nil
	}
	name, value, err := p.field(line)
	if err == nil && len(name) == len(contract.UsageTrailer) && equalFold(name, contract.UsageTrailer) {
		p.usage = bytes.Clone(value)
	}
	return err
}

// equalFold compares in ASCII, ignoring case.
func equalFold[T string | []byte](a T, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(b) {
		x, y := a[i], b[i]
		if x != y && (x|0x20 != y|0x20 || x|0x20 < 'a' || x|0x20 > 'z') {
			return false
		}
	}
	return true
}

// mediaType returns a Content-Type without its parameters. The two types of this protocol need no allocation.
func mediaType(v []byte) string {
	v, _, _ = bytes.Cut(v, []byte(";"))
	v = bytes.TrimRight(v, " \t")
	switch {
	case equalFold(v, typeJSON):
		return typeJSON
	case equalFold(v, typeStream):
		return typeStream
	}
	return string(v)
}

const (
	typeJSON   = "application/json"
	typeStream = "text/event-stream"
)
