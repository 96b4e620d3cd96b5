package xxh3_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/zeebo/xxh3"

	own "github.com/lecafe/lecafe/agent/config/xxh3"
)

// compare holds both sums against another implementation's.
func compare(t *testing.T, b []byte) {
	t.Helper()
	if got, want := own.Sum64(b), binary.BigEndian.AppendUint64(nil, xxh3.Hash(b)); !bytes.Equal(got, want) {
		t.Errorf("64 bits of %d bytes: %x, want %x", len(b), got, want)
	}
	want := xxh3.Hash128(b).Bytes()
	if got := own.Sum128(b); !bytes.Equal(got, want[:]) {
		t.Errorf("128 bits of %d bytes: %x, want %x", len(b), got, want)
	}
}

// Every length up to some blocks of stripes, and lengths about the blocks' ends.
func TestSums(t *testing.T) {
	data := make([]byte, 70_000)
	x := uint64(1)
	for i := range data {
		x = x*6364136223846793005 + 1442695040888963407
		data[i] = byte(x >> 56)
	}
	for n := range 5000 {
		compare(t, data[:n])
	}
	for block := 1024; block < len(data); block += 1024 {
		for n := block - 65; n <= min(block+65, len(data)); n++ {
			compare(t, data[:n])
		}
	}
	compare(t, make([]byte, 1<<20))
}

func FuzzSums(f *testing.F) {
	f.Add([]byte("Memento Mori"))
	f.Add(make([]byte, 241))
	f.Add(make([]byte, 1025))
	f.Fuzz(compare)
}
