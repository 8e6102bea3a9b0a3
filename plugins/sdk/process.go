//go:build !wasip1

package sdk

// Main does nothing yet but hold the place.
func Main() {}
