package gateway

import (
	"bytes"

	"github.com/apiary-dev/apiary/core/openai"
)

// events relays a piece of a stream: whole events as they are, once they have been looked at. What is left of an event waits
// for the next piece.
func (f *flight) events(a *answer, b []byte) error {
	if a.over {
		return nil
	}
	if len(a.part) > 0 {
		a.part = append(a.part, b...)
		b = a.part
	}
	start := 0         // of the event whose end is looked for
	from, upto := 0, 0 // events that are whole, go as they are and are not sent yet
	line, i := a.line, a.seen
	for !a.over {
		k := bytes.IndexByte(b[i:], '\n')
		if k < 0 {
			break
		}
		empty := k == 0 && i == line || i+k == line+1 && b[line] == '\r'
		i += k + 1
		line = i
		if !empty {
			continue
		}
		ev := b[start:i]
		start = i
		out, same, err := f.event(a, ev)
		if err != nil {
			return err
		}
		if same {
			upto = i
			continue
		}
		if err := f.pass(a, b[from:upto]); err != nil {
			return err
		}
		if err := f.pass(a, out); err != nil {
			return err
		}
		from, upto = i, i
	}
	if err := f.pass(a, b[from:upto]); err != nil {
		return err
	}
	rest := b[start:]
	if len(rest) > openai.MaxEvent {
		return openai.ErrEventTooLarge
	}
	if a.over || len(rest) == 0 {
		a.part, a.line, a.seen = nil, 0, 0
		return nil
	}
	a.part = append(a.part[:0], rest...)
	a.line, a.seen = line-start, len(rest)
	return nil
}

// pass sends b to the client with the next flush.
func (f *flight) pass(a *answer, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	f.commit()
	a.written = true
	return f.send(b)
}

// event checks one event with the blank line that ends it, and reports that the client gets it as it is, or returns what it
// gets in its place, which may be nothing.
func (f *flight) event(a *answer, ev []byte) (out []byte, same bool, err error) {
	n := len(ev)
	if n > openai.MaxEvent {
		return nil, false, openai.ErrEventTooLarge
	}
	cr := bytes.IndexByte(ev, '\r') >= 0
	if f.direct && !cr && n > 8 && string(ev[:6]) == "data: " && bytes.IndexByte(ev, '\n') == n-2 {
		return nil, true, f.data(a, ev[6:n-2]) // the usual case: one line of data
	}
	if cr {
		// A carriage return ends a line too. Written as line feeds, the piece may turn out to be several events.
		ev = bytes.ReplaceAll(ev, []byte("\r\n"), []byte("\n"))
		ev = bytes.ReplaceAll(ev, []byte("\r"), []byte("\n"))
	}
	for len(ev) > 0 && !a.over {
		var block []byte
		block, ev, _ = bytes.Cut(ev, []byte("\n\n"))
		if block = bytes.Trim(block, "\n"); len(block) == 0 {
			continue
		}
		kept, err := f.block(a, block)
		if err != nil {
			return nil, false, err
		}
		out = append(out, kept...)
	}
	return out, false, nil
}

// block checks the lines of one event and returns what the client gets.
func (f *flight) block(a *answer, block []byte) ([]byte, error) {
	var name string
	var data, comments []byte
	has := false
	for rest, more := block, true; more; {
		var line []byte
		line, rest, more = bytes.Cut(rest, []byte("\n"))
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "":
			comments = append(append(comments, line...), '\n')
		case "data":
			if has {
				data = append(data, '\n')
			}
			data = append(data, value...)
			has = true
		case "event":
			name = string(value)
		case "id", "retry":
		default:
			return nil, bad("a stream has a line that is no field of an event")
		}
	}
	if comments != nil {
		comments = append(comments, '\n')
	}
	switch {
	case !has:
		return comments, nil
	case !f.direct:
		f.begun()
		out, err := f.infer.event(a, name, data)
		return append(comments, out...), err
	}
	return append(block[:len(block):len(block)], "\n\n"...), f.data(a, data)
}

// data checks the data of an event of OpenAI's stream.
func (f *flight) data(a *answer, d []byte) error {
	f.begun()
	d = bytes.TrimLeft(d, " \t\n")
	switch {
	case string(d) == openai.Done:
		a.over = true
		return nil
	case len(d) == 0 || d[0] != '{' || !openai.Valid(d):
		return bad("the data of an event is not a JSON object")
	}
	// Both forms of errors in use: {"error":…} and {"object":"error",…}.
	if bytes.HasPrefix(d, []byte(`{"error"`)) || bytes.HasPrefix(d, []byte(`{"object":"error"`)) {
		a.over, a.failed = true, true
	}
	return nil
}

// begun notes that the answer itself has begun: from here on the request is not sent again, so its body is not needed.
func (f *flight) begun() {
	if !f.content.Load() {
		f.content.Store(true)
		f.freeBody()
	}
}
