package orders

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
	"unsafe"
)

// Limits of SQS.
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
const (
	// MaxMessage is the largest message, and the largest batch, in bytes of
	// body and attributes. A queue may be set lower.
	MaxMessage = 1 << 20
	// MaxAttributes counts the attributes an application may set. SQS takes
	// ten; one carries the order's ID.
	MaxAttributes = 9
	// MaxDelay is the longest delay.
	MaxDelay = 15 * time.Minute
	// IDAttribute is the message attribute that carries the order's ID.
	IDAttribute = "lecafe-order-id"

	maxGroup = 128
	maxName  = 256
	maxKey   = 256
)

// ID names an order, the same for each time it is sent. Its text is a UUID.
type ID [16]byte

// NewID returns a new ID that sorts by time (UUID version 7).
func NewID(now time.Time) ID {
	var id ID
	rand.Read(id[6:])
	ms := uint64(now.UnixMilli())
	id[0], id[1], id[2], id[3], id[4], id[5] = byte(ms>>40), byte(ms>>32), byte(ms>>24), byte(ms>>16), byte(ms>>8), byte(ms)
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

// IDOfKey returns the ID that an idempotency key stands for, on every instance
// and at every time (UUID version 8, from SHA-256).
func IDOfKey(key string) ID {
	sum := sha256.Sum256([]byte("lecafe order\x00" + key))
	id := ID(sum[:16])
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

func (id ID) String() string {
	var b [36]byte
	hex.Encode(b[:8], id[:4])
	hex.Encode(b[9:13], id[4:6])
	hex.Encode(b[14:18], id[6:8])
	hex.Encode(b[19:23], id[8:10])
	hex.Encode(b[24:], id[10:])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// ParseID reads what String wrote.
func ParseID(s string) (ID, error) {
	var id ID
	hexed := strings.ReplaceAll(s, "-", "")
	if n, err := hex.Decode(id[:], []byte(hexed[:min(len(hexed), 32)])); err != nil || n != 16 || id.String() != strings.ToLower(s) {
		return ID{}, fmt.Errorf("order ID %q is not a UUID", s)
	}
	return id, nil
}

// Order is one message for the queue.
type Order struct {
	ID         ID
	Accepted   time.Time // to the millisecond
	Body       string
	Group      string // MessageGroupId; needed on FIFO queues
	Delay      time.Duration
	Attributes map[string]string // string attributes
}

// Problem says what SQS would refuse about an order.
type Problem struct {
	Code    string // stable: invalid_character, empty_body, too_large, bad_group, bad_delay, bad_attribute, bad_key
	Message string
}

func (p *Problem) Error() string { return p.Message }

func problem(code, format string, args ...any) *Problem {
	return &Problem{code, fmt.Sprintf(format, args...)}
}

// Check says what is wrong with an order for a queue of at most limit bytes a
// message.
func (o *Order) Check(limit int64, fifo bool) *Problem {
	if o.Body == "" {
		return problem("empty_body", "the body is empty: SQS takes no empty message")
	}
	if i := badCharacter(o.Body); i >= 0 {
		return problem("invalid_character", "the body has a character at byte %d that SQS refuses: only tab, newline, carriage return and U+0020 to U+D7FF, U+E000 to U+FFFD, U+10000 to U+10FFFF in UTF-8 are taken", i)
	}
	if fifo && o.Group == "" {
		return problem("bad_group", "the queue is FIFO: set Message-Group-Id")
	}
	if len(o.Group) > maxGroup || strings.ContainsFunc(o.Group, func(r rune) bool { return r < '!' || r > '~' }) {
		return problem("bad_group", "Message-Group-Id must be 1 to %d letters, digits or punctuation in ASCII", maxGroup)
	}
	if o.Delay < 0 || o.Delay > MaxDelay {
		return problem("bad_delay", "Delay-Seconds must be 0 to %d", int(MaxDelay.Seconds()))
	}
	if fifo && o.Delay > 0 {
		return problem("bad_delay", "the queue is FIFO: Delay-Seconds can be set on the queue alone")
	}
	if len(o.Attributes) > MaxAttributes {
		return problem("bad_attribute", "%d attributes: at most %d are possible", len(o.Attributes), MaxAttributes)
	}
	for name, value := range o.Attributes {
		lower := strings.ToLower(name)
		switch {
		case name == "" || len(name) > maxName || strings.Trim(lower, "abcdefghijklmnopqrstuvwxyz0123456789_-.") != "" ||
			strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".") || strings.Contains(name, ".."):
			return problem("bad_attribute", "attribute name %q: letters, digits, _, - and single inner dots, at most %d", name, maxName)
		case strings.HasPrefix(lower, "aws.") || strings.HasPrefix(lower, "amazon.") || lower == IDAttribute:
			return problem("bad_attribute", "attribute name %q is reserved", name)
		case value == "":
			return problem("bad_attribute", "attribute %s is empty: SQS takes no empty value", name)
		case badCharacter(value) >= 0:
			return problem("invalid_character", "attribute %s has a character that SQS refuses", name)
		}
	}
	if size := o.Size(); size > limit {
		return problem("too_large", "the message has %d bytes with its attributes: the queue takes %d", size, limit)
	}
	return nil
}

// Size is what SQS counts: body, and attributes with names, types and values.
func (o *Order) Size() int64 {
	n := len(o.Body) + len(IDAttribute) + len("String") + 36
	for name, value := range o.Attributes {
		n += len(name) + len("String") + len(value)
	}
	return int64(n)
}

// badCharacter returns the offset of the first character outside what XML 1.0
// allows, which is what SQS takes, or -1.
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html
func badCharacter(s string) int {
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c < utf8.RuneSelf || c == '\t' || c == '\n' || c == '\r' {
			i++
			continue
		}
		if c < utf8.RuneSelf {
			return i
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 || r == 0xfffe || r == 0xffff {
			return i
		}
		i += n
	}
	return -1
}

// errRecord says that a spool record is no order.
var errRecord = errors.New("not an order's record")

const recordVersion = 1

// appendRecord appends the order as the spool keeps it: version (1 byte), ID
// (16), milliseconds since 1970 (8, little endian), then as varints delay in
// seconds, length and text of the group, number of attributes, length and text
// of each name and value; the rest is the body.
func (o *Order) appendRecord(b []byte) []byte {
	b = append(b, recordVersion)
	b = append(b, o.ID[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(o.Accepted.UnixMilli()))
	b = binary.AppendUvarint(b, uint64(o.Delay/time.Second))
	text := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	text(o.Group)
	b = binary.AppendUvarint(b, uint64(len(o.Attributes)))
	if len(o.Attributes) > 0 {
		for _, name := range slices.Sorted(maps.Keys(o.Attributes)) {
			text(name)
			text(o.Attributes[name])
		}
	}
	return append(b, o.Body...)
}

// DecodeRecord reads an order from a record of the spool. The order keeps b,
// which must not change any more.
func DecodeRecord(b []byte) (*Order, error) {
	if len(b) < 25 || b[0] != recordVersion {
		return nil, errRecord
	}
	o := &Order{ID: ID(b[1:17]), Accepted: time.UnixMilli(int64(binary.LittleEndian.Uint64(b[17:]))).UTC()}
	b = b[25:]
	bad := false
	number := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			bad = true
			return 0
		}
		b = b[n:]
		return v
	}
	text := func() string {
		n := number()
		if bad || n > uint64(len(b)) {
			bad = true
			return ""
		}
		s := string(b[:n])
		b = b[n:]
		return s
	}
	delay := number()
	o.Delay = time.Duration(min(delay, uint64(MaxDelay/time.Second))) * time.Second
	o.Group = text()
	if n := number(); n > 0 && n <= MaxAttributes && !bad {
		o.Attributes = make(map[string]string, n)
		for range n {
			name := text()
			o.Attributes[name] = text()
		}
	} else if n > MaxAttributes {
		bad = true
	}
	if bad {
		return nil, errRecord
	}
	// The body is most of the record; a copy of it would double the memory.
	o.Body = unsafe.String(unsafe.SliceData(b), len(b))
	return o, nil
}

// badUTF8 returns the offset of the first byte that is not UTF-8, or -1. JSON
// decoding would replace it in silence.
func badUTF8(b []byte) int {
	if utf8.Valid(b) {
		return -1
	}
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n <= 1 {
			return i
		}
		i += n
	}
	return -1
}
