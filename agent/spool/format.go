package spool

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"sync"
)

// A segment is a header block and frames. All numbers are little endian.
//
//	header block (4096 bytes)
//	   0  magic "lecafe spool 1\n\x00"
//	  16  segment ID, 8 bytes
//	  24  first sequence number, 8 bytes
//	  32  CRC-32C of bytes 0..32
//	 512  seal: magic "sealed\n\x00", end offset 8, records 8, CRC-32C of the segment ID (8 bytes) and these 24
//	frame (multiple of 8 bytes)
//	   0  marker, 4 bytes
//	   4  CRC-32C of the segment ID (8 bytes), bytes 8..24 and the payload
//	   8  length of the payload, 4 bytes
//	  12  low half of the segment ID, 4 bytes
//	  16  sequence number, 8 bytes
//	  24  payload, zero padded to a multiple of 8
//
// The segment's ID takes part in every checksum, so that frames that an earlier
// life of a recycled file left behind are never taken for this one's.
const (
	headerSize  = 4096
	sealOffset  = 512
	sealSize    = 28
	frameHeader = 24
	marker      = 0x5ca7fe1e

	// MaxRecord is the largest record in bytes: an SQS message of 1 MiB and
	// ample room for what is kept beside it.
	MaxRecord = 2 << 20
)

var (
	magicHeader = [16]byte([]byte("lecafe spool 1\n\x00"))
	magicSeal   = [8]byte([]byte("sealed\n\x00"))
	castagnoli  = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }) // takes a while
	le          = binary.LittleEndian
)

func frameSize(payload int) int64 { return int64(frameHeader+payload+7) &^ 7 }

func seed(id uint64) uint32 {
	var b [8]byte
	le.PutUint64(b[:], id)
	return crc32.Checksum(b[:], castagnoli())
}

// appendFrame appends the frame of one record.
func appendFrame(buf []byte, id, seq uint64, payload []byte) []byte {
	at := len(buf)
	var h [frameHeader]byte
	le.PutUint32(h[0:], marker)
	le.PutUint32(h[8:], uint32(len(payload)))
	le.PutUint32(h[12:], uint32(id))
	le.PutUint64(h[16:], seq)
	buf = append(buf, h[:]...)
	buf = append(buf, payload...)
	sum := crc32.Update(seed(id), castagnoli(), buf[at+8:])
	le.PutUint32(buf[at+4:], sum)
	var zero [8]byte
	return append(buf, zero[:frameSize(len(payload))-frameHeader-int64(len(payload))]...)
}

func headerBlock(id, first uint64) []byte {
	b := make([]byte, headerSize)
	copy(b, magicHeader[:])
	le.PutUint64(b[16:], id)
	le.PutUint64(b[24:], first)
	le.PutUint32(b[32:], crc32.Checksum(b[:32], castagnoli()))
	return b
}

func parseHeader(b []byte) (id, first uint64, ok bool) {
	if len(b) < 36 || [16]byte(b[:16]) != magicHeader || crc32.Checksum(b[:32], castagnoli()) != le.Uint32(b[32:]) {
		return 0, 0, false
	}
	return le.Uint64(b[16:]), le.Uint64(b[24:]), true
}

func sealSlot(id uint64, end int64, count uint64) []byte {
	b := make([]byte, sealSize)
	copy(b, magicSeal[:])
	le.PutUint64(b[8:], uint64(end))
	le.PutUint64(b[16:], count)
	le.PutUint32(b[24:], crc32.Update(seed(id), castagnoli(), b[:24]))
	return b
}

func parseSeal(b []byte, id uint64) (end int64, count uint64, ok bool) {
	if len(b) < sealSize || [8]byte(b[:8]) != magicSeal || crc32.Update(seed(id), castagnoli(), b[:24]) != le.Uint32(b[24:]) {
		return 0, 0, false
	}
	return int64(le.Uint64(b[8:])), le.Uint64(b[16:]), true
}

// frames reads the frames of one segment through a window, so that memory does
// not grow with the segment.
type frames struct {
	r    io.ReaderAt
	id   uint64
	end  int64 // nothing is read at or behind it
	seed uint32

	buf []byte // bytes of the file at base
	cap int    // bytes to read at once
	at  int64
}

func newFrames(r io.ReaderAt, id uint64, end int64, window int) *frames {
	return &frames{r: r, id: id, end: end, seed: seed(id), cap: window}
}

// bytesAt returns n bytes at off, or fewer where the segment ends. The slice is
// valid until the next call. Pages that the disk refuses to give read as
// zeros, which no checksum accepts.
func (f *frames) bytesAt(off int64, n int) []byte {
	if off+int64(n) > f.end {
		n = int(max(0, f.end-off))
	}
	if off >= f.at && off+int64(n) <= f.at+int64(len(f.buf)) {
		return f.buf[off-f.at:][:n]
	}
	size := int(min(int64(max(n, f.cap)), f.end-off))
	if size <= 0 {
		return nil
	}
	if cap(f.buf) < size {
		f.buf = make([]byte, size)
	}
	f.buf, f.at = f.buf[:size], off
	got, err := f.r.ReadAt(f.buf, off)
	if err != nil && err != io.EOF {
		const page = 4096
		for got = 0; got < size; got += page {
			p := f.buf[got:min(got+page, size)]
			if _, err := f.r.ReadAt(p, off+int64(got)); err != nil && err != io.EOF {
				clear(p)
			}
		}
		got = size
	}
	f.buf = f.buf[:min(got, size)]
	return f.buf[:min(n, len(f.buf))]
}

// claims says whether what stands at off presents itself as a frame of this
// segment, whatever its checksum.
func (f *frames) claims(off int64) bool {
	h := f.bytesAt(off, frameHeader)
	return len(h) == frameHeader && le.Uint32(h) == marker && le.Uint32(h[12:]) == uint32(f.id)
}

// frame returns the record at off, its payload valid until the next call.
func (f *frames) frame(off int64) (seq uint64, payload []byte, size int64, ok bool) {
	if !f.claims(off) {
		return 0, nil, 0, false
	}
	n := le.Uint32(f.bytesAt(off, frameHeader)[8:])
	if n > MaxRecord {
		return 0, nil, 0, false
	}
	b := f.bytesAt(off, frameHeader+int(n))
	if len(b) < frameHeader+int(n) || crc32.Update(f.seed, castagnoli(), b[8:]) != le.Uint32(b[4:]) {
		return 0, nil, 0, false
	}
	return le.Uint64(b[16:]), b[frameHeader:], frameSize(int(n)), true
}

// resync returns the offset of the first valid frame at or behind off.
func (f *frames) resync(off int64) (int64, bool) {
	for off = (off + 7) &^ 7; off+frameHeader <= f.end; {
		w := f.bytesAt(off, max(f.cap, frameHeader))
		if len(w) < frameHeader {
			return 0, false
		}
		i := 0
		for ; i+frameHeader <= len(w); i += 8 {
			if le.Uint32(w[i:]) == marker && le.Uint32(w[i+12:]) == uint32(f.id) {
				break
			}
		}
		off += int64(i)
		if i+frameHeader > len(w) {
			continue
		}
		if _, _, _, ok := f.frame(off); ok {
			return off, true
		}
		off += 8
	}
	return 0, false
}
