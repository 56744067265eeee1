// Package micro plays an index-ops stream against the prefix index and an
// honest naive one, checks every answer in the process that takes the time,
// and reports absolute figures beside their ratios.
//
//	go run ./benchmarks ops --out ops.bin
//	go run ./benchmarks micro --ops ops.bin --passes 5 --scale
//	go run ./benchmarks micro --events
//
// Figures are minima over passes, those of p99 medians. Write sections are
// timed in processor time of the whole process on one processor, the
// collector's included; matches by the wall clock, one by one. Memory is the
// growth of anonymous resident memory after debug.FreeOSMemory, at the default
// GOGC. The reader beside a writer asks for conversations that the writer never
// touches, behind prompts that it does: so its answers are checked as well.
package micro
