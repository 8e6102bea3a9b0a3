package echo

import (
	"fmt"
	"net"
	"net/http"
	"strings"
)

// garbage is one thing that a broken upstream may send (T34).
type garbage struct {
	kind string
	send func(net.Conn)
}

// garbageTable lists every kind. Each is a whole answer, written past net/http, which would not send most of them.
func garbageTable() []garbage {
	const ok = "HTTP/1.1 200 OK\r\n"
	const stream = ok + "Content-Type: text/event-stream\r\nConnection: close\r\n\r\n"
	text := func(parts ...string) func(net.Conn) {
		return func(c net.Conn) {
			for _, p := range parts {
				if _, err := c.Write([]byte(p)); err != nil {
					return
				}
			}
		}
	}
	repeat := func(head, part string, n int, tail string) func(net.Conn) {
		return func(c net.Conn) {
			parts := []string{head}
			if len(part)*n > 0 {
				parts = append(parts, strings.Repeat(part, n))
			}
			text(append(parts, tail)...)(c)
		}
	}
	const event = `data: {"id":"g","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":"a","logprobs":null,"finish_reason":null}]}`
	return []garbage{
		{"json", text(stream, "data: {\"id\":\n\n", "data: [DONE]\n\n")},
		{"line", repeat(stream+"data: ", "x", 5<<20, "")},
		{"binary", text(stream, "\x00\xff\xfe\x01\x80\n\n\x00\x00")},
		{"content-type", text(ok, "Content-Type: image/png\r\nContent-Length: 4\r\n\r\n\x89PNG")},
		{"html", text(ok, "Content-Type: text/html\r\nContent-Length: 19\r\n\r\n<html>busy?</html>\n")},
		{"done", text(stream, event, "\n\n", "data: [DONE]\n\n", "data: [DONE]\n\n", event, "\n\n")},
		{"crlf", text(stream, event, "\r\n\r\n", event, "\n\r\n", event, "\r\r", "data: [DONE]\r\n\r\n")},
		{"headers", repeat(ok, "X-Garbage: "+strings.Repeat("y", 1000)+"\r\n", 10_000, "\r\n")},
		{"chunks", text(ok, "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}\r\n0\r\n\r\n")},
		{"informational", repeat("", "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n", 100_000, ok+"Content-Length: 2\r\n\r\n{}")},
		{"length", text(ok, "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"id\":1}")},
		{"status", text("HTTP/1.1 banana\r\n\r\n")},
	}
}

func garbageKinds() string {
	var names []string
	for _, g := range garbageTable() {
		names = append(names, g.kind)
	}
	return strings.Join(names, ", ")
}

func isGarbage(kind string) bool {
	for _, g := range garbageTable() {
		if g.kind == kind {
			return true
		}
	}
	return false
}

// garbage answers with the kind that was asked for, or with each in turn, and closes the connection.
func (f *Faults) garbage(w http.ResponseWriter) {
	table := garbageTable()
	f.mu.Lock()
	g := table[f.nextGarbage%len(table)]
	f.nextGarbage++
	f.mu.Unlock()
	for _, t := range table {
		if t.kind == f.Garbage {
			g = t
		}
	}
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, fmt.Sprint(err), http.StatusInternalServerError)
		return
	}
	defer func() { _ = c.Close() }()
	g.send(c)
}
