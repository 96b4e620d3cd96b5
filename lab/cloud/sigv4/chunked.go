package sigv4

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// maxChunk bounds what one chunk may make the server hold.
const maxChunk = 128 << 20

// ErrChunk says that an aws-chunked body is not well formed.
var ErrChunk = errors.New("malformed aws-chunked body")

// Chunks decodes an aws-chunked body and verifies each chunk's signature where
// the payload hash says they are signed.
//
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html
type Chunks struct {
	Trailer http.Header // filled when Read has returned io.EOF

	auth     *Auth
	secret   string
	signed   bool
	trailers bool
	previous string
	in       *bufio.Reader
	chunk    []byte
	err      error
}

// NewChunks returns a reader of the decoded body. Secret signs the chunks; mode
// is the request's x-amz-content-sha256.
func (a *Auth) NewChunks(body io.Reader, secret, mode string) *Chunks {
	return &Chunks{
		Trailer: http.Header{}, auth: a, secret: secret, previous: a.Signature, in: bufio.NewReader(body),
		signed:   mode == Streaming || mode == StreamingTrailer,
		trailers: mode == StreamingTrailer || mode == StreamingUnsignedTrailer,
	}
}

// Read implements io.Reader.
func (c *Chunks) Read(p []byte) (int, error) {
	for len(c.chunk) == 0 {
		if c.err != nil {
			return 0, c.err
		}
		if err := c.next(); err != nil {
			c.err = err
			return 0, err
		}
	}
	n := copy(p, c.chunk)
	c.chunk = c.chunk[n:]
	return n, nil
}

func (c *Chunks) next() error {
	line, err := c.line()
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: no last chunk: %w", ErrChunk, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return err
	}
	size, extension, _ := strings.Cut(line, ";")
	n, err := strconv.ParseUint(strings.TrimSpace(size), 16, 32)
	if err != nil || n > maxChunk {
		return fmt.Errorf("%w: chunk size %q", ErrChunk, size)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(c.in, data); err != nil {
		return fmt.Errorf("%w: %w", ErrChunk, err)
	}
	if c.signed {
		if err := c.verify(data, strings.TrimPrefix(extension, "chunk-signature=")); err != nil {
			return err
		}
	}
	if n > 0 {
		if end, err := c.line(); err != nil || end != "" {
			return fmt.Errorf("%w: no line end after a chunk", ErrChunk)
		}
		c.chunk = data
		return nil
	}
	if err := c.readTrailer(); err != nil {
		return err
	}
	return io.EOF
}

func (c *Chunks) verify(data []byte, signature string) error {
	sum := sha256.Sum256(data)
	want := c.auth.sign(c.secret, strings.Join([]string{
		algorithm + "-PAYLOAD", c.auth.Time.Format(timeFormat), c.auth.scopeString(), c.previous, EmptyHash, hex.EncodeToString(sum[:]),
	}, "\n"))
	if !hmac.Equal([]byte(want), []byte(signature)) {
		return ErrMismatch
	}
	c.previous = want
	return nil
}

func (c *Chunks) readTrailer() error {
	var canonical strings.Builder
	var signature string
	for {
		line, err := c.line()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || !c.trailers {
			return fmt.Errorf("%w: trailer %q", ErrChunk, line)
		}
		name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
		if name == "x-amz-trailer-signature" {
			signature = value
			continue
		}
		c.Trailer.Set(name, value)
		canonical.WriteString(name + ":" + value + "\n")
	}
	if !c.signed || !c.trailers {
		return nil
	}
	sum := sha256.Sum256([]byte(canonical.String()))
	want := c.auth.sign(c.secret, strings.Join([]string{
		algorithm + "-TRAILER", c.auth.Time.Format(timeFormat), c.auth.scopeString(), c.previous, hex.EncodeToString(sum[:]),
	}, "\n"))
	if !hmac.Equal([]byte(want), []byte(signature)) {
		return ErrMismatch
	}
	return nil
}

// line reads up to CRLF; io.EOF only where nothing is left.
func (c *Chunks) line() (string, error) {
	s, err := c.in.ReadString('\n')
	if err != nil {
		if errors.Is(err, io.EOF) && s == "" {
			return "", io.EOF
		}
		return "", fmt.Errorf("%w: %w", ErrChunk, err)
	}
	return strings.TrimSuffix(strings.TrimSuffix(s, "\n"), "\r"), nil
}
