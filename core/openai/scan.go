package openai

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// MaxDepth bounds the nesting of a JSON text that Scan and Valid accept.
const MaxDepth = 64

// Body is what Scan finds in the body of an inference request.
type Body struct {
	Model      string // decoded value of the top-level "model"; empty where there is none
	ModelStart int    // byte range of that value, with its quotes
	ModelEnd   int
	Stream     bool // top-level "stream" is true
	PromptFrom int  // byte range of the value of "messages", "prompt" or "input"; 0, 0 where there is none
	PromptTo   int
}

// BodyError says why Scan refused a body. Message is the second half of a sentence about the body.
type BodyError struct {
	Param   string // the field at fault, or ""
	Message string
}

func (e *BodyError) Error() string { return "the request body " + e.Message }

func syntaxAt(i int) error {
	return &BodyError{Message: fmt.Sprintf("is not valid JSON at byte %d", i)}
}

// Scan checks in one pass that body is one JSON object, nested at most MaxDepth deep, and finds what a router needs. It
// copies nothing but the model's name. Two fields called "model" or "stream", also in another case of letters, are an error,
// because router and worker could then disagree on which one counts. Every error is a *BodyError.
func Scan(body []byte) (Body, error) {
	var s Body
	i := space(body, 0)
	if i == len(body) || body[i] != '{' {
		return s, &BodyError{Message: "must be a JSON object"}
	}
	i = space(body, i+1)
	if i < len(body) && body[i] == '}' {
		return s, trailing(body, i+1)
	}
	var models, streams int
	for {
		from := i
		end, ok := str(body, i)
		if !ok {
			return s, syntaxAt(end)
		}
		key := body[from+1 : end-1]
		if bytes.IndexByte(key, '\\') >= 0 {
			var k string
			if json.Unmarshal(body[from:end], &k) != nil {
				return s, syntaxAt(from)
			}
			key = []byte(k)
		}
		if i = space(body, end); i == len(body) || body[i] != ':' {
			return s, syntaxAt(i)
		}
		i = space(body, i+1)
		if end, ok = value(body, i, 1); !ok {
			return s, failed(body, end)
		}
		v := body[i:end]
		switch len(key) {
		case 5: // model, input
			if string(key) == "model" {
				models++
				if v[0] != '"' {
					return s, &BodyError{Param: "model", Message: `must give "model" as a string`}
				}
				s.ModelStart, s.ModelEnd = i, end
				if bytes.IndexByte(v, '\\') < 0 {
					s.Model = string(v[1 : len(v)-1])
				} else {
					var name string
					if json.Unmarshal(v, &name) != nil {
						return s, syntaxAt(i)
					}
					s.Model = name
				}
			} else if string(key) == "input" {
				s.PromptFrom, s.PromptTo = i, end
			} else if bytes.EqualFold(key, []byte("model")) {
				models++
			}
		case 6, 7: // stream, prompt; with a long s the fold of stream has 7 bytes
			if string(key) == "prompt" {
				s.PromptFrom, s.PromptTo = i, end
			} else if bytes.EqualFold(key, []byte("stream")) {
				streams++
				if string(key) == "stream" {
					switch s.Stream = string(v) == "true"; {
					case s.Stream, string(v) == "false", string(v) == "null":
					default:
						return s, &BodyError{Param: "stream", Message: `must give "stream" as true or false`}
					}
				}
			}
		case 8:
			if string(key) == "messages" {
				s.PromptFrom, s.PromptTo = i, end
			}
		}
		if models > 1 || streams > 1 {
			p := "model"
			if streams > 1 {
				p = "stream"
			}
			return s, &BodyError{Param: p, Message: fmt.Sprintf("must give %q only once", p)}
		}
		i = space(body, end)
		if i == len(body) {
			return s, syntaxAt(i)
		}
		switch body[i] {
		case ',':
			i = space(body, i+1)
		case '}':
			return s, trailing(body, i+1)
		default:
			return s, syntaxAt(i)
		}
	}
}

func trailing(b []byte, i int) error {
	if i = space(b, i); i != len(b) {
		return syntaxAt(i)
	}
	return nil
}

func failed(b []byte, i int) error {
	if i < 0 {
		return &BodyError{Message: fmt.Sprintf("is nested more than %d levels deep", MaxDepth)}
	}
	return syntaxAt(min(i, len(b)))
}

// SpliceModel appends body to dst with name in the place of the model's name. s is the result of Scan on body.
func SpliceModel(dst, body []byte, s Body, name string) []byte {
	quoted, _ := json.Marshal(name) // of a string: cannot fail
	dst = append(dst, body[:s.ModelStart]...)
	dst = append(dst, quoted...)
	return append(dst, body[s.ModelEnd:]...)
}

// Valid reports whether b is one JSON text of any type, nested at most MaxDepth deep. Like encoding/json it lets bytes pass
// that are not UTF-8.
func Valid(b []byte) bool {
	end, ok := value(b, space(b, 0), 0)
	return ok && space(b, end) == len(b)
}
