// Package netlab tests real agents on several machines: each is a process in a network namespace of its own, on one bridge. It has
// tests alone, which need root; `make test-net` runs them, and without APIARY_TEST_NET they are skipped. They start and end what they
// need themselves, and make namespaces in a mount namespace that ends with them.
package netlab
