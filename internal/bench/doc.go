// Package bench measures whole paths, each beside the least that could do the
// same work, so that what counts is the ratio of one run. It has benchmarks
// only; docs/benchmarks.md has their figures and how they were taken.
//
//	go test -run '^$' -bench . ./internal/bench
//
// Processor time is that of the process under test alone: load, broker and Redis
// run in others.
package bench
