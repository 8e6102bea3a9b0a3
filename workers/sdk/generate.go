package sdk

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/openai"
)

// maxPiece bounds the text of one event, so that with every character escaped it stays far below openai.MaxEvent.
const maxPiece = 32 << 10

// errStopped is what the sink returns to the engine when the answer has met a stop sequence.
var errStopped = errors.New("a stop sequence was met")

// errDraining ends the requests that outlive the drain.
var errDraining = fault.New(fault.Unavailable, codeDraining, "The worker is stopping and the request did not end in time; send it again.")

func (s *Server) inferHandler(w http.ResponseWriter, r *http.Request) {
	var b contract.InferRequest
	if err := decode(r, &b); err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	j, err := inferJob(&b)
	s.answer(w, r, j, err, func() encoder { return inferEncoder{} })
}

func (s *Server) chatHandler(w http.ResponseWriter, r *http.Request) {
	var b chatBody
	if err := decode(r, &b); err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	j, err := chatJob(&b)
	s.answer(w, r, j, err, func() encoder { return newOpenAIEncoder(true, j) })
}

func (s *Server) completionHandler(w http.ResponseWriter, r *http.Request) {
	var b completionBody
	if err := decode(r, &b); err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	j, err := completionJob(&b)
	s.answer(w, r, j, err, func() encoder { return newOpenAIEncoder(false, j) })
}

// answer runs a checked request, or refuses it with err.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, j *job, err error, form func() encoder) {
	if err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	needs := contract.CapabilityCompletion
	if j.promptParam == "messages" {
		needs = contract.CapabilityChat
	}
	ctx, release, err := s.admit(r.Context(), needs, j.promptParam)
	if err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	defer release()
	if j.ID = httpd.RequestID(r.Context()); j.model == "" {
		j.model = s.o.Model
	}
	g := &generation{s: s, job: j, enc: form(), r: r, w: w, stop: newStopper(j.stops)}
	if j.stream {
		g.streamed(ctx)
		return
	}
	g.whole(ctx)
}

// generation is one request on its way through the engine.
type generation struct {
	s    *Server
	job  *job
	enc  encoder
	w    http.ResponseWriter
	r    *http.Request
	join runeJoiner
	stop *stopper
	met  bool // a stop sequence
}

// run generates and passes text on, piece by piece; emit's id is negative for text without a token of its own. The text that
// was held back comes last.
func (g *generation) run(ctx context.Context, emit func(text string, id int) error) (Result, error) {
	res, err := g.s.o.Engine.Generate(ctx, &g.job.Request, func(t Token) error {
		text, met := g.stop.push(g.join.push(t.Bytes))
		g.met = met
		if err := split(text, t.ID, emit); err != nil {
			return err
		}
		if met {
			return errStopped
		}
		return nil
	})
	switch {
	case g.met:
		res.FinishReason = contract.FinishStop
		return res, nil
	case err != nil && g.r.Context().Err() != nil:
		return res, g.r.Context().Err() // the caller is gone
	case err != nil:
		// The engine reports that its context ended; the cause says why.
		if cause := context.Cause(ctx); ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			err = cause
		}
		return res, g.s.engineFault(err, g.job.promptParam, g.job.ID)
	}
	text, met := g.stop.push(g.join.flush())
	if !met {
		text += g.stop.flush()
	} else {
		res.FinishReason = contract.FinishStop
	}
	if res.FinishReason == "" {
		res.FinishReason = contract.FinishStop
	}
	if text != "" {
		err = split(text, -1, emit)
	}
	return res, err
}

// split gives emit text in pieces of at most maxPiece bytes, cut between runes.
func split(text string, id int, emit func(string, int) error) error {
	for len(text) > maxPiece {
		n := maxPiece
		for !utf8.RuneStart(text[n]) {
			n--
		}
		if err := emit(text[:n], id); err != nil {
			return err
		}
		text, id = text[n:], -1
	}
	return emit(text, id)
}

func (g *generation) streamed(ctx context.Context) {
	st := newStream(g.w)
	g.job.Prefill = func(done, total int) {
		st.prefilled.Store(int64(done))
		st.prefillTotal.Store(int64(total))
	}
	st.watch(func() uint64 { return g.s.o.Engine.Stats().Progress })
	defer st.end()
	first := true
	begin := func(b []byte) []byte {
		if first {
			first = false
			b = g.enc.begin(b)
		}
		return b
	}
	res, err := g.run(ctx, func(text string, id int) error {
		if id >= 0 {
			st.tokens.Add(1)
		}
		return st.write(func(b []byte) []byte {
			if n := len(b); text == "" && len(g.enc.token(b, text, id)) == n {
				return b // nothing to show yet
			}
			return g.enc.token(begin(b), text, id)
		})
	})
	begun := st.end()
	switch {
	case g.r.Context().Err() != nil:
		return // nobody reads
	case err == nil:
		err = st.write(func(b []byte) []byte { return g.enc.done(begin(b), res) })
		setUsage(g.w, res.Usage)
	case !begun:
		httpd.WriteError(g.w, g.r, err)
		return
	default:
		err = st.write(func(b []byte) []byte { return g.enc.failed(b, err, g.job.ID) })
		setUsage(g.w, res.Usage)
	}
	if err != nil {
		g.s.o.Log.Debug("the caller did not take the end of a stream", "request_id", g.job.ID, "cause", err)
	}
}

func (g *generation) whole(ctx context.Context) {
	var text strings.Builder
	res, err := g.run(ctx, func(piece string, _ int) error {
		text.WriteString(piece)
		return nil
	})
	if err != nil {
		if g.r.Context().Err() == nil {
			httpd.WriteError(g.w, g.r, err)
		}
		return
	}
	writeAnswer(g.w, g.enc.whole(text.String(), res), res.Usage)
}

// writeAnswer answers with v as JSON and with the usage in a trailer. A trailer needs a chunked body, so there is no
// Content-Length.
func writeAnswer(w http.ResponseWriter, v any, u contract.Usage) {
	h := w.Header()
	h["Content-Type"] = []string{"application/json"}
	h["Trailer"] = []string{contract.UsageTrailer}
	w.WriteHeader(http.StatusOK)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		return // the caller is gone: the answers' types can be encoded
	}
	setUsage(w, u)
}

func setUsage(w http.ResponseWriter, u contract.Usage) {
	if b, err := json.Marshal(u); err == nil {
		w.Header()[contract.UsageTrailer] = []string{string(b)}
	}
}

// engineFault turns an engine's error into what a caller may see. Text of an engine is logged, never shown (S21).
func (s *Server) engineFault(err error, param, id string) error {
	if e, ok := errors.AsType[*PromptTooLongError](err); ok {
		return fault.New(fault.Invalid, codeTooLong,
			"The prompt has %d tokens and the context length of the model is %d tokens, of which one must be left for the answer; shorten the prompt.",
			e.PromptTokens, e.ContextLength).WithParam(param)
	}
	if errors.Is(err, ErrUnsupported) {
		return unsupported(param, "The model that this worker serves does not support this request.")
	}
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return f
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	s.o.Log.Error("the engine failed a request", "request_id", id, "cause", err)
	return &fault.Error{Kind: fault.Internal, Code: codeEngine, Err: err,
		Message: "The engine failed while it worked on the request; the worker's log has the cause under this request id."}
}

func (s *Server) embeddingHandler(w http.ResponseWriter, r *http.Request) {
	var b embeddingBody
	err := decode(r, &b)
	var inputs []string
	if err == nil {
		inputs, err = embeddingInputs(&b)
	}
	if err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	ctx, release, err := s.admit(r.Context(), contract.CapabilityEmbedding, "model")
	if err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	defer release()
	vectors, tokens, err := s.o.Engine.Embed(ctx, inputs)
	if err == nil && len(vectors) != len(inputs) {
		err = errors.New("the engine gave another number of vectors than it got inputs")
	}
	if err != nil {
		if cause := context.Cause(ctx); ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			err = cause
		}
		if r.Context().Err() == nil {
			httpd.WriteError(w, r, s.engineFault(err, "input", httpd.RequestID(r.Context())))
		}
		return
	}
	out := openai.EmbeddingResponse{Object: openai.ObjectList, Model: b.Model, Data: make([]openai.Embedding, len(vectors)), Usage: openai.NewUsage(tokens, 0, 0)}
	if out.Model == "" {
		out.Model = s.o.Model
	}
	for i, v := range vectors {
		out.Data[i] = openai.Embedding{Object: openai.ObjectEmbedding, Index: i, Embedding: v}
		if b.EncodingFormat == "base64" {
			out.Data[i].Embedding = base64Vector(v)
		}
	}
	writeAnswer(w, out, contract.Usage{PromptTokens: tokens})
}

// base64Vector is the form in which OpenAI's Python client asks for vectors: little-endian 32-bit floats.
func base64Vector(v []float32) string {
	b := make([]byte, 0, 4*len(v))
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return base64.StdEncoding.EncodeToString(b)
}
