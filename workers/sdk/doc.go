// Package sdk serves the worker contract over an Engine: arguments, authentication, the HTTP surfaces, parameter checks, stop
// sequences, whole UTF-8, usage, progress, beats, the orphan lease, the drain and the rotation of the log. It does no arithmetic
// of its own and knows no engine.
package sdk
