// Package clients tests with the clients that people use: the agent with the npm package and the PyPI package openai, against real
// workers, and the hub of core/testutil/fakehub with those of Hugging Face, so that what Apiary is tested with is what they take for
// the real one. Scripts in testdata drive them. It has no code of its own outside its tests.
package clients
