// Package xxh3 computes XXH3, the checksums that S3 calls XXHASH3 and
// XXHASH128, of bytes that are there as a whole, without a seed. It owns nothing
// else: no streams, no assembly, and no look at the processor when a program
// starts, which in a virtual machine takes longer than all that the agent ever
// hashes by it.
//
// https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
package xxh3

import (
	"encoding/binary"
	"math/bits"
)

// The primes of the specification.
const (
	prime32a = 0x9E3779B1
	prime32b = 0x85EBCA77
	prime32c = 0xC2B2AE3D
	prime64a = 0x9E3779B185EBCA87
	prime64b = 0xC2B2AE3D27D4EB4F
	prime64c = 0x165667B19E3779F9
	prime64d = 0x85EBCA77C2B2AE63
	prime64e = 0x27D4EB2F165667C5
	mixA     = 0x165667919E3779F9
	mixB     = 0x9FB21C651E98DF25
)

// secret is the specification's default one.
const secret = "" +
	"\xb8\xfe\x6c\x39\x23\xa4\x4b\xbe\x7c\x01\x81\x2c\xf7\x21\xad\x1c\xde\xd4\x6d\xe9\x83\x90\x97\xdb\x72\x40\xa4\xa4\xb7\xb3\x67\x1f" +
	"\xcb\x79\xe6\x4e\xcc\xc0\xe5\x78\x82\x5a\xd0\x7d\xcc\xff\x72\x21\xb8\x08\x46\x74\xf7\x43\x24\x8e\xe0\x35\x90\xe6\x81\x3a\x26\x4c" +
	"\x3c\x28\x52\xbb\x91\xc3\x00\xcb\x88\xd0\x65\x8b\x1b\x53\x2e\xa3\x71\x64\x48\x97\xa2\x0d\xf9\x4e\x38\x19\xef\x46\xa9\xde\xac\xd8" +
	"\xa8\xfa\x76\x3f\xe3\x9c\x34\x3f\xf9\xdc\xbb\xc7\xc7\x0b\x4f\x1d\x8a\x51\xe0\x4b\xcd\xb4\x59\x31\xc8\x9f\x7e\xc9\xd9\x78\x73\x64" +
	"\xea\xc5\xac\x83\x34\xd3\xeb\xc3\xc5\x81\xa0\xff\xfa\x13\x63\xeb\x17\x0d\xdd\x51\xb7\xf0\xda\x49\xd3\x16\x55\x26\x29\xd4\x68\x9e" +
	"\x2b\x16\xbe\x58\x7d\x47\xa1\xfc\x8f\xf8\xb8\xd1\x7a\xd0\x31\xce\x45\xcb\x3a\x8f\x95\x16\x04\x28\xaf\xd7\xfb\xca\xbb\x4b\x40\x7e"

// Offsets into the secret, and sizes, in bytes.
const (
	lane       = 8
	stripe     = 64
	stripes    = (len(secret) - stripe) / lane // of a block
	minSecret  = 136
	mergeAt    = 11
	lastAt     = len(secret) - stripe - 7
	midLastAt  = minSecret - 17
	midStartAt = 3
)

func key64(at int) uint64 {
	k := secret[at : at+8]
	return uint64(k[0]) | uint64(k[1])<<8 | uint64(k[2])<<16 | uint64(k[3])<<24 | uint64(k[4])<<32 | uint64(k[5])<<40 | uint64(k[6])<<48 | uint64(k[7])<<56
}

func key32(at int) uint32 { return uint32(key64(at)) }

func u32(b []byte, at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
func u64(b []byte, at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }

// fold is a 128-bit product folded to 64.
func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

func avalanche(h uint64) uint64 {
	h ^= h >> 37
	h *= mixA
	return h ^ h>>32
}

// avalanche64 is XXH64's.
func avalanche64(h uint64) uint64 {
	h ^= h >> 33
	h *= prime64b
	h ^= h >> 29
	h *= prime64c
	return h ^ h>>32
}

// mix16 mixes 16 bytes with as many of the secret.
func mix16(b []byte, at, key int) uint64 {
	return fold(u64(b, at)^key64(key), u64(b, at+8)^key64(key+8))
}

// Sum64 returns the 8 bytes of XXH3-64, the most significant first.
func Sum64(b []byte) []byte { return binary.BigEndian.AppendUint64(nil, sum64(b)) }

// Sum128 returns the 16 bytes of XXH3-128, the most significant first.
func Sum128(b []byte) []byte {
	hi, lo := sum128(b)
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, hi), lo)
}

func sum64(b []byte) uint64 {
	n := len(b)
	switch {
	case n == 0:
		return avalanche64(key64(56) ^ key64(64))
	case n <= 3:
		return avalanche64(uint64(few(b)) ^ uint64(key32(0)^key32(4)))
	case n <= 8:
		h := uint64(u32(b, n-4)) + uint64(u32(b, 0))<<32
		h ^= key64(8) ^ key64(16)
		h ^= bits.RotateLeft64(h, 49) ^ bits.RotateLeft64(h, 24)
		h *= mixB
		h ^= h>>35 + uint64(n)
		h *= mixB
		return h ^ h>>28
	case n <= 16:
		lo := u64(b, 0) ^ key64(24) ^ key64(32)
		hi := u64(b, n-8) ^ key64(40) ^ key64(48)
		return avalanche(uint64(n) + bits.ReverseBytes64(lo) + hi + fold(lo, hi))
	case n <= 128:
		h := uint64(n) * prime64a
		for i := (n - 1) / 32; i >= 0; i-- { // from the middle outwards
			h += mix16(b, 16*i, 32*i) + mix16(b, n-16*(i+1), 32*i+16)
		}
		return avalanche(h)
	case n <= 240:
		h := uint64(n) * prime64a
		for i := range 8 {
			h += mix16(b, 16*i, 16*i)
		}
		h = avalanche(h)
		for i := 8; i < n/16; i++ {
			h += mix16(b, 16*i, 16*(i-8)+midStartAt)
		}
		return avalanche(h + mix16(b, n-16, midLastAt))
	}
	acc := accumulate(b)
	return merge(&acc, mergeAt, uint64(n)*prime64a)
}

// few packs one to three bytes and their number.
func few(b []byte) uint32 {
	n := len(b)
	return uint32(b[0])<<16 | uint32(b[n>>1])<<24 | uint32(b[n-1]) | uint32(n)<<8
}

func sum128(b []byte) (hi, lo uint64) {
	n := len(b)
	switch {
	case n == 0:
		return avalanche64(key64(80) ^ key64(88)), avalanche64(key64(64) ^ key64(72))
	case n <= 3:
		l := few(b)
		h := bits.RotateLeft32(bits.ReverseBytes32(l), 13)
		return avalanche64(uint64(h) ^ uint64(key32(8)^key32(12))), avalanche64(uint64(l) ^ uint64(key32(0)^key32(4)))
	case n <= 8:
		in := uint64(u32(b, 0)) + uint64(u32(b, n-4))<<32
		hi, lo = bits.Mul64(in^key64(16)^key64(24), prime64a+uint64(n)<<2)
		hi += lo << 1
		lo ^= hi >> 3
		lo ^= lo >> 35
		lo *= mixB
		return avalanche(hi), lo ^ lo>>28
	case n <= 16:
		first, last := u64(b, 0), u64(b, n-8)
		hi, lo = bits.Mul64(first^last^key64(32)^key64(40), prime64a)
		lo += uint64(n-1) << 54
		last ^= key64(48) ^ key64(56)
		hi += last + uint64(uint32(last))*(prime32b-1)
		lo ^= bits.ReverseBytes64(hi)
		h, l := bits.Mul64(lo, prime64b)
		return avalanche(h + hi*prime64b), avalanche(l)
	case n <= 128:
		lo = uint64(n) * prime64a
		for i := (n - 1) / 32; i >= 0; i-- {
			hi, lo = mix32(hi, lo, b, 16*i, n-16*(i+1), 32*i)
		}
		return join(hi, lo, n)
	case n <= 240:
		lo = uint64(n) * prime64a
		for i := 0; i < 128; i += 32 {
			hi, lo = mix32(hi, lo, b, i, i+16, i)
		}
		hi, lo = avalanche(hi), avalanche(lo)
		for i := 128; i+32 <= n; i += 32 {
			hi, lo = mix32(hi, lo, b, i, i+16, i-128+midStartAt)
		}
		hi, lo = mix32(hi, lo, b, n-16, n-32, midLastAt-16)
		return join(hi, lo, n)
	}
	acc := accumulate(b)
	return merge(&acc, len(secret)-stripe-mergeAt, ^(uint64(n) * prime64b)), merge(&acc, mergeAt, uint64(n)*prime64a)
}

// mix32 mixes twice 16 bytes with 32 of the secret.
func mix32(hi, lo uint64, b []byte, one, two, key int) (uint64, uint64) {
	lo += mix16(b, one, key)
	lo ^= u64(b, two) + u64(b, two+8)
	hi += mix16(b, two, key+16)
	hi ^= u64(b, one) + u64(b, one+8)
	return hi, lo
}

func join(hi, lo uint64, n int) (uint64, uint64) {
	return -avalanche(lo*prime64a + hi*prime64d + uint64(n)*prime64b), avalanche(lo + hi)
}

// accumulate takes more than 240 bytes in stripes, in blocks of stripes.
func accumulate(b []byte) [8]uint64 {
	acc := [8]uint64{prime32c, prime64a, prime64b, prime64c, prime64d, prime32b, prime64e, prime32a}
	last := b[len(b)-stripe:]
	for n := 0; len(b) > stripe; b = b[stripe:] {
		add(&acc, b, lane*n)
		if n++; n < stripes {
			continue
		}
		for i, a := range acc {
			acc[i] = (a ^ a>>47 ^ key64(len(secret)-stripe+lane*i)) * prime32a
		}
		n = 0
	}
	add(&acc, last, lastAt)
	return acc
}

func add(acc *[8]uint64, b []byte, key int) {
	for i := range acc {
		v := u64(b, lane*i)
		k := v ^ key64(key+lane*i)
		acc[i^1] += v
		acc[i] += (k & 0xFFFFFFFF) * (k >> 32)
	}
}

func merge(acc *[8]uint64, key int, start uint64) uint64 {
	for i := 0; i < len(acc); i += 2 {
		start += fold(acc[i]^key64(key+lane*i), acc[i+1]^key64(key+lane*(i+1)))
	}
	return avalanche(start)
}
