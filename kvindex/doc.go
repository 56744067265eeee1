// Package kvindex is the prefix index: it tells, for a chain of block hashes,
// which publishers hold how long a prefix of it.
package kvindex
