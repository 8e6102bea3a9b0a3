package openai

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxEvent bounds one server-sent event, in bytes with its field names and line ends.
const MaxEvent = 256 << 10

// Done is the data of the event that ends an OpenAI stream.
const Done = "[DONE]"

// ErrEventTooLarge is returned for an event, or a line of one, of more than MaxEvent bytes.
var ErrEventTooLarge = errors.New("server-sent event is larger than 256 KiB")

// Event is one server-sent event. Name is "" for the default event. Data is valid until the next call of Next.
type Event struct {
	Name string
	ID   string
	Data []byte
}

// Reader reads server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) with LF, CRLF or CR
// line ends, in bounded memory.
type Reader struct {
	// OnComment, when set, is called for each comment line with its text, which is valid during the call.
	OnComment func(text []byte)

	r    *bufio.Reader
	line []byte
	data []byte
	cr   bool // the last line ended in CR: a LF that follows belongs to it
	bom  bool // the start of the stream was looked at
}

// NewReader returns a Reader of r.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, 4<<10)} }

// Next returns the next event that has data. It returns io.EOF at a clean end, io.ErrUnexpectedEOF when the stream ends
// inside an event, and ErrEventTooLarge.
func (r *Reader) Next() (Event, error) {
	var e Event
	var has, any bool
	size := 0
	r.data = r.data[:0]
	for {
		line, err := r.readLine()
		if err != nil {
			if err == io.EOF && (any || len(line) > 0) {
				err = io.ErrUnexpectedEOF
			}
			return Event{}, err
		}
		if len(line) == 0 {
			if has {
				e.Data = r.data
				return e, nil
			}
			e, any, size = Event{}, false, 0 // an event without data is not dispatched
			continue
		}
		if line[0] == ':' {
			if r.OnComment != nil {
				r.OnComment(bytes.TrimPrefix(line[1:], []byte(" ")))
			}
			continue
		}
		if size += len(line) + 1; size > MaxEvent {
			return Event{}, ErrEventTooLarge
		}
		any = true
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "event":
			e.Name = string(value)
		case "id":
			e.ID = string(value)
		case "data":
			if has {
				r.data = append(r.data, '\n')
			}
			r.data = append(r.data, value...)
			has = true
		}
	}
}

// readLine returns a line without its end. It is valid until the next call. At the end of the stream it returns what was
// read of an unfinished line, with io.EOF.
func (r *Reader) readLine() ([]byte, error) {
	r.line = r.line[:0]
	for {
		if _, err := r.r.Peek(1); err != nil {
			return r.line, err
		}
		buf, _ := r.r.Peek(r.r.Buffered())
		if r.cr {
			r.cr = false
			if buf[0] == '\n' {
				_, _ = r.r.Discard(1)
				continue
			}
		}
		i := bytes.IndexAny(buf, "\r\n")
		n := i
		if i < 0 {
			n = len(buf)
		}
		if len(r.line)+n > MaxEvent {
			return nil, ErrEventTooLarge
		}
		r.line = append(r.line, buf[:n]...)
		if i < 0 {
			_, _ = r.r.Discard(n)
			continue
		}
		r.cr = buf[i] == '\r'
		_, _ = r.r.Discard(n + 1)
		if !r.bom {
			r.bom = true
			r.line = bytes.TrimPrefix(r.line, []byte("\xef\xbb\xbf"))
		}
		return r.line, nil
	}
}

// Writer writes server-sent events, each with one Write, so that an event is never split by a flush. It does not flush.
type Writer struct {
	w   io.Writer
	buf []byte
}

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Event writes one event; an empty name or id is left out. Line breaks in data become several data lines. Data that would
// make the event larger than MaxEvent is ErrEventTooLarge and nothing is written.
func (w *Writer) Event(name, id string, data []byte) error {
	w.buf = w.buf[:0]
	if name != "" {
		w.buf = fmt.Appendf(w.buf, "event: %s\n", name)
	}
	if id != "" {
		w.buf = fmt.Appendf(w.buf, "id: %s\n", id)
	}
	for more := true; more; {
		var line []byte
		line, data, more = bytes.Cut(data, []byte("\n"))
		w.buf = append(w.buf, "data: "...)
		w.buf = append(w.buf, line...)
		w.buf = append(w.buf, '\n')
	}
	w.buf = append(w.buf, '\n')
	if len(w.buf) > MaxEvent {
		return ErrEventTooLarge
	}
	_, err := w.w.Write(w.buf)
	return err
}

// Data writes v as JSON in an event without a name.
func (w *Writer) Data(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode an event: %w", err)
	}
	return w.Event("", "", b)
}
