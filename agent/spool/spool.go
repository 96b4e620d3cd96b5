package spool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"os"
	"slices"
	"sort"
	"sync"
	"time"
)

// What Append and Open refuse.
var (
	// ErrFull says that the limit is reached or the disk is full. Nothing of
	// the append was accepted; it may be tried again when records have been
	// acknowledged or room has been made.
	ErrFull = errors.New("spool is full")
	// ErrTooLarge says that a record does not fit, now or later.
	ErrTooLarge = errors.New("record is too large for the spool")
	// ErrClosed says that the spool was closed.
	ErrClosed = errors.New("spool is closed")
	// ErrLocked says that another process has the directory open.
	ErrLocked = errors.New("spool is in use")
)

// Options of Open. Zero values mean the defaults.
type Options struct {
	Dir          string        // made with mode 0700 if missing
	SegmentBytes int64         // default 16 MiB, less where MaxBytes is small
	MaxBytes     int64         // limit of all segments on disk, default 1 GiB, at least two segments
	CursorEvery  time.Duration // how often acknowledgements are written down, default 100ms
	Log          *slog.Logger

	fs fsys // tests
}

// Record is one appended record. Seq numbers ascend in the order of appending;
// they may have gaps.
type Record struct {
	Seq  uint64
	Data []byte
}

// Stats is a snapshot.
type Stats struct {
	Records  uint64 `json:"records"` // durable and not acknowledged
	Bytes    int64  `json:"bytes"`   // of all segments on disk, spare ones included
	Segments int    `json:"segments"`
	Appended uint64 `json:"appended"`             // records made durable since Open
	Commits  uint64 `json:"commits"`              // syncs that made them durable
	Acked    uint64 `json:"acked"`                // since Open
	Lost     uint64 `json:"lost"`                 // records whose bytes were damaged, since Open
	Aside    uint64 `json:"aside"`                // damaged ranges kept in the directory's files named *.bad
	TornTail uint64 `json:"torn_tail"`            // unfinished commits cut by Open
	Poisoned uint64 `json:"poisoned"`             // segments abandoned since Open because a write or sync failed
	Full     uint64 `json:"full"`                 // appends refused with ErrFull
	LastErr  string `json:"last_error,omitempty"` // of the latest failed write, sync or allocation
}

// Spool is an open log. Its methods are safe for concurrent use, but for Read,
// which belongs to one consumer.
type Spool struct {
	opt  Options
	fs   fsys
	lock *os.File
	log  *slog.Logger

	mu       sync.Mutex
	queue    *batch // what the next commit takes
	closed   bool
	work     *sync.Cond    // writer: queue or closed
	spareC   *sync.Cond    // writer: spare or spareErr
	readable chan struct{} // closed and replaced when records became readable
	segs     []*segment    // live, ascending; the last may be active
	active   *segment
	spare    *segment
	spareErr error
	wanted   bool // the writer waits for a spare
	free     []freeFile
	toSeal   []*segment
	toRetire []*segment
	nextID   uint64
	nextSeq  uint64
	dirty    bool
	stats    Stats

	keep    chan struct{} // wakes the keeper, capacity 1
	done    sync.WaitGroup
	stopped chan struct{}

	buf    []byte    // the writer's
	quiet  time.Time // until when a cursor that cannot be written is not told again; the keeper's
	reader reader
}

// freeFile is a whole segment file whose records are all acknowledged.
type freeFile struct {
	name string
	f    file
}

// segment is one file of the log. f is open while it is written.
type segment struct {
	id, first uint64
	count     uint64 // sequence numbers used
	end       int64  // behind the last durable frame
	size      int64  // of the file
	sealed    bool   // nothing more is appended
	cut       bool   // garbage may stand behind end: the keeper truncates
	acked     uint64
	bits      []uint64
	f         file
	fresh     bool // its header is not written yet
}

func (g *segment) name() string { return segmentName(g.id) }

func segmentName(id uint64) string { return fmt.Sprintf("%016x.seg", id) }

func (g *segment) isAcked(i uint64) bool {
	return i/64 < uint64(len(g.bits)) && g.bits[i/64]&(1<<(i%64)) != 0
}

// ack reports whether the record was not acknowledged before.
func (g *segment) ack(i uint64) bool {
	if i >= g.count || g.isAcked(i) {
		return false
	}
	if need := int(i/64) + 1; need > len(g.bits) {
		g.bits = slices.Grow(g.bits, need-len(g.bits))[:need]
	}
	g.bits[i/64] |= 1 << (i % 64)
	g.acked++
	return true
}

func (g *segment) setBits(b []uint64) {
	g.bits, g.acked = b, 0
	for i := range g.bits {
		if lo := uint64(i) * 64; lo+64 > g.count {
			if lo >= g.count {
				g.bits[i] = 0
			} else {
				g.bits[i] &= 1<<(g.count-lo) - 1
			}
		}
		g.acked += uint64(bits.OnesCount64(g.bits[i]))
	}
}

// Open opens the log in a directory and makes it ready: unfinished commits are
// cut, acknowledgements taken over. It reads only the segments that the last
// process was writing, so that it is as fast with a million records as with
// none.
func Open(o Options) (*Spool, error) {
	if o.MaxBytes <= 0 {
		o.MaxBytes = 1 << 30
	}
	if o.SegmentBytes <= 0 {
		o.SegmentBytes = 16 << 20
		if o.MaxBytes < 8*o.SegmentBytes {
			o.SegmentBytes = max(o.MaxBytes/8, MaxRecord+2*headerSize)
		}
	}
	o.MaxBytes = max(o.MaxBytes, 2*o.SegmentBytes) // as SetMaxBytes has it: with less nothing could be taken
	if o.CursorEvery <= 0 {
		o.CursorEvery = 100 * time.Millisecond
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Spool{opt: o, fs: o.fs, log: o.Log, readable: make(chan struct{}), keep: make(chan struct{}, 1), stopped: make(chan struct{}), queue: newBatch(0)}
	s.work, s.spareC = sync.NewCond(&s.mu), sync.NewCond(&s.mu)
	if s.fs == nil {
		if err := os.MkdirAll(o.Dir, 0o700); err != nil {
			return nil, fmt.Errorf("open spool: %w", err)
		}
		lock, err := lockDir(o.Dir)
		if err != nil {
			return nil, fmt.Errorf("open spool: %w", err)
		}
		s.lock, s.fs = lock, osDir(o.Dir)
	}
	if err := s.recover(); err != nil {
		if s.lock != nil {
			s.lock.Close()
		}
		return nil, fmt.Errorf("open spool %s: %w", o.Dir, err)
	}
	s.done.Go(s.write)
	go func() {
		defer close(s.stopped)
		s.keeper()
	}()
	return s, nil
}

// Close commits what is queued, writes the acknowledgements down and releases
// the directory. Later calls get ErrClosed.
func (s *Spool) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		<-s.stopped
		return nil
	}
	s.closed = true
	s.work.Broadcast()
	s.spareC.Broadcast()
	s.mu.Unlock()
	s.done.Wait()
	s.wakeKeeper()
	<-s.stopped
	s.reader.close()
	if s.lock != nil {
		s.lock.Close()
	}
	return nil
}

// Ack says that records need not be read again. Unknown numbers, and those
// acknowledged before, are ignored.
func (s *Spool) Ack(seqs ...uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, seq := range seqs {
		g := s.find(seq)
		if g == nil || !g.ack(seq-g.first) {
			continue
		}
		s.stats.Acked++
		s.dirty = true
		s.retireIfDone(g)
	}
}

func (s *Spool) find(seq uint64) *segment {
	i := sort.Search(len(s.segs), func(i int) bool { return s.segs[i].first > seq }) - 1
	if i < 0 || seq-s.segs[i].first >= s.segs[i].count {
		return nil
	}
	return s.segs[i]
}

// retireIfDone hands a segment to the keeper when nothing in it is needed.
func (s *Spool) retireIfDone(g *segment) {
	if !g.sealed || g.acked < g.count {
		return
	}
	if i := slices.Index(s.segs, g); i >= 0 {
		s.segs = slices.Delete(s.segs, i, i+1)
		s.toRetire = append(s.toRetire, g)
		s.wakeKeeper()
	}
}

// Stats returns a snapshot.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Segments = len(s.segs)
	for _, g := range s.segs {
		st.Records += g.count - g.acked
	}
	st.Bytes = s.diskBytes()
	return st
}

// MaxBytes is the limit in force.
func (s *Spool) MaxBytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opt.MaxBytes
}

// SetMaxBytes changes the limit. A lower one takes nothing away: appends are
// refused until enough is acknowledged. Segments keep the size that Open chose,
// so it is never below two of them.
func (s *Spool) SetMaxBytes(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n = max(n, 2*s.opt.SegmentBytes); n != s.opt.MaxBytes {
		s.opt.MaxBytes = n
		s.spareErr = nil
		s.wakeKeeper()
	}
}

// diskBytes counts every segment file there is.
func (s *Spool) diskBytes() int64 {
	var n int64
	for _, g := range s.segs {
		n += g.size
	}
	for _, g := range s.toRetire {
		n += g.size
	}
	n += int64(len(s.free)) * s.opt.SegmentBytes
	if s.spare != nil {
		n += s.spare.size
	}
	return n
}

// Ping returns when the writer has gone once through its loop: a watchdog's
// proof that appends are being committed.
func (s *Spool) Ping(ctx context.Context) error {
	_, err := s.Append(ctx)
	return err
}
