package openai_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/core/openai"
)

type event struct{ Name, ID, Data string }

func readAll(r io.Reader) (events []event, comments []string, err error) {
	sr := openai.NewReader(r)
	sr.OnComment = func(c []byte) { comments = append(comments, string(c)) }
	for {
		e, err := sr.Next()
		if err != nil {
			return events, comments, err
		}
		events = append(events, event{e.Name, e.ID, string(e.Data)})
	}
}

func TestReader(t *testing.T) {
	const in = "\xef\xbb\xbfdata: a\n\n: hello\nevent: done\r\nid: 7\r\ndata: one\r\ndata:two\r\n\r\nretry: 5\n\ndata: x\r\rdata\n\n"
	want := []event{{"", "", "a"}, {"done", "7", "one\ntwo"}, {"", "", "x"}, {"", "", ""}}
	for name, r := range map[string]io.Reader{"whole": strings.NewReader(in), "bytewise": iotest.OneByteReader(strings.NewReader(in))} {
		got, comments, err := readAll(r)
		if d := cmp.Diff(want, got); d != "" || err != io.EOF || !cmp.Equal(comments, []string{"hello"}) {
			t.Errorf("%s: %v %q %s", name, err, comments, d)
		}
	}
	for in, want := range map[string]error{
		"data: a\n":    io.ErrUnexpectedEOF,
		"data: a":      io.ErrUnexpectedEOF,
		"data: a\n\n:": io.ErrUnexpectedEOF,
		"data: " + strings.Repeat("x", openai.MaxEvent):              openai.ErrEventTooLarge,
		strings.Repeat("data: "+strings.Repeat("x", 1000)+"\n", 300): openai.ErrEventTooLarge,
		strings.Repeat("x", openai.MaxEvent+1):                       openai.ErrEventTooLarge,
	} {
		if _, _, err := readAll(strings.NewReader(in)); !errors.Is(err, want) {
			t.Errorf("%.20q…: %v, want %v", in, err, want)
		}
	}
}

func TestWriterRoundTrip(t *testing.T) {
	var b bytes.Buffer
	w := openai.NewWriter(&b)
	for _, err := range []error{w.Event("done", "3", []byte("a\nb\n")), w.Data(map[string]int{"n": 1}), w.Event("", "", []byte(openai.Done))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got, _, _ := readAll(&b)
	if d := cmp.Diff([]event{{"done", "3", "a\nb\n"}, {"", "", `{"n":1}`}, {"", "", openai.Done}}, got); d != "" {
		t.Error(d)
	}
	if err := w.Event("", "", make([]byte, openai.MaxEvent)); !errors.Is(err, openai.ErrEventTooLarge) || b.Len() != 0 {
		t.Errorf("oversized event: %v, %d bytes written", err, b.Len())
	}
}

func FuzzReader(f *testing.F) {
	f.Add("data: a\r\n\r\n: c\n\nevent: x\ndata\n\n")
	f.Add("\r\r\n\n\xef\xbb\xbfid:1")
	f.Fuzz(func(t *testing.T, in string) {
		a, ac, aerr := readAll(strings.NewReader(in))
		b, bc, berr := readAll(iotest.OneByteReader(strings.NewReader(in)))
		if !cmp.Equal(a, b) || !cmp.Equal(ac, bc) || !errors.Is(aerr, berr) {
			t.Fatalf("%q depends on how it is cut:\n%v %v %v\n%v %v %v", in, a, ac, aerr, b, bc, berr)
		}
	})
}

func TestFlexibleFields(t *testing.T) {
	for in, want := range map[string]string{
		`{"content":"x"}`: "x", `{"content":null}`: "", `{}`: "",
		`{"content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}`: "ab",
	} {
		var m openai.Message
		if err := json.Unmarshal([]byte(in), &m); err != nil || string(m.Content) != want {
			t.Errorf("%s: %q %v", in, m.Content, err)
		}
	}
	var m openai.Message
	err := json.Unmarshal([]byte(`{"content":[{"type":"image_url","image_url":{"url":"http://127.0.0.1/x"}}]}`), &m)
	if !errors.Is(err, openai.ErrUnsupported) {
		t.Errorf("image: %v", err)
	}
	for _, in := range []string{`{"content":5}`, `{"content":[{"type":"text"}]}`, `{"content":["a"]}`} {
		if err := json.Unmarshal([]byte(in), &m); err == nil {
			t.Errorf("%s passed", in)
		}
	}
	var e openai.EmbeddingRequest
	if err := json.Unmarshal([]byte(`{"input":"x"}`), &e); err != nil || !cmp.Equal(e.Input, openai.Strings{"x"}) {
		t.Error(e.Input, err)
	}
	if err := json.Unmarshal([]byte(`{"input":[1,2]}`), &e); !errors.Is(err, openai.ErrUnsupported) {
		t.Errorf("token ids: %v", err)
	}
}
