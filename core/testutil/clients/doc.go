// Package clients tests the agent with the OpenAI clients that people use: the npm package and the PyPI package openai, driven
// by the scripts in testdata against a real agent with real workers. It has no code of its own outside its tests.
package clients
