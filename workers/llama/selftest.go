package llama

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/workers/sdk"
)

// Report is the result of a self-test, in the JSON form that the artifact store reads.
type Report struct {
	Build   string            `json:"build"`
	Devices []contract.Device `json:"devices"`
	Model   *ModelReport      `json:"model,omitempty"`
}

// ModelReport says how a model did in a self-test.
type ModelReport struct {
	ContextLength int      `json:"context_length"`
	Capabilities  []string `json:"capabilities"`
	Tokens        int      `json:"tokens"` // generated
}

// SelfTest loads the engine in dir and lists its devices. With a model path it also loads the model on devices, and generates
// a few tokens where the model can. An error says in a sentence what is missing.
func SelfTest(ctx context.Context, dir, modelPath string, devices []string, log *slog.Logger) (Report, error) {
	lib, err := OpenLibrary(dir, log)
	if err != nil {
		return Report{}, err
	}
	r := Report{Build: "llama.cpp " + lib.build, Devices: lib.Devices()}
	if why := lib.backendProblem(); why != "" {
		// Not a failure: the engine serves without that part. Who wants the device is told then, and here.
		log.Warn("a part of the engine cannot be used", "why", why)
	}
	if modelPath == "" {
		return r, nil
	}
	e := New(Options{Library: lib, ModelPath: modelPath, Devices: devices, Context: 512, Slots: 1, Log: log})
	m, err := e.Load(ctx, func(float64) {})
	if err != nil {
		return Report{}, err
	}
	defer e.Close()
	r.Model = &ModelReport{ContextLength: m.ContextLength, Capabilities: m.Capabilities}
	if e.m.embeds() {
		_, _, err = e.Embed(ctx, []string{"Once upon a time"})
	} else {
		var res sdk.Result
		res, err = e.Generate(ctx, &sdk.Request{Prompt: "Once upon a time", MaxTokens: 8, TopP: 1, RepeatPenalty: 1, IgnoreEOS: true}, func(sdk.Token) error { return nil })
		r.Model.Tokens = res.Usage.CompletionTokens
	}
	if err != nil {
		return Report{}, fmt.Errorf("try the model: %w", err)
	}
	return r, nil
}
