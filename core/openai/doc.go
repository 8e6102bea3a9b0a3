// Package openai holds what Apiary needs of OpenAI's HTTP API: the wire types of chat, completions, embeddings and models,
// a codec for server-sent events with bounds, and a scan of request bodies that finds what a router needs without
// unmarshalling. It does no I/O of its own, checks no parameter limits (workers/sdk does) and never fetches a reference.
//
// Shapes follow https://platform.openai.com/docs/api-reference; fields that Apiary does not use are ignored.
package openai
