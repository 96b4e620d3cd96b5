// Package spool owns a durable log on disk that many producers append to and
// one consumer reads: what Append has returned without an error survives a
// kill, a power cut and a full disk, and is read until it is acknowledged.
//
// The log is a directory of segments of equal size. One writer goroutine
// commits whatever has queued up with one write and one fdatasync, so that the
// cost of a sync is shared by all who wait for it. Segments are allocated and
// zeroed ahead, or taken over from acknowledged ones, because a sync that must
// also write the file's metadata costs several times one that must not.
// Acknowledgements may come in any order; they are kept as bits in memory and
// written down lazily, so that a crash leads to records being read twice, never
// to a record being missed.
//
// The package keeps no record in memory, knows nothing about what is in a
// record, and refuses a second process in the same directory. The format is
// described in docs/spool.md.
package spool
