package s3

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// stored are the request headers that PUT keeps and GET returns, beside
// x-amz-meta-*.
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html
var stored = []string{
	"Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Type", "Expires",
	"X-Amz-Storage-Class", "X-Amz-Server-Side-Encryption", "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id", "X-Amz-Website-Redirect-Location",
}

// metadata returns what to keep of a request's headers.
func metadata(h http.Header) (http.Header, error) {
	out := http.Header{}
	size := 0
	for name, values := range h {
		if meta, ok := strings.CutPrefix(name, "X-Amz-Meta-"); ok {
			out.Set(name, strings.Join(values, ","))
			size += len(meta) + len(values[0])
		}
	}
	if size > metadataLimit {
		return nil, errMetadataTooLarge
	}
	for _, name := range stored {
		if v := h.Get(name); v != "" {
			out.Set(name, v)
		}
	}
	// aws-chunked says how the body travelled, not what the object is.
	var encodings []string
	for e := range strings.SplitSeq(out.Get("Content-Encoding"), ",") {
		if e = strings.TrimSpace(e); e != "" && e != "aws-chunked" {
			encodings = append(encodings, e)
		}
	}
	out.Del("Content-Encoding")
	if len(encodings) > 0 {
		out.Set("Content-Encoding", strings.Join(encodings, ","))
	}
	if out.Get("Content-Type") == "" {
		out.Set("Content-Type", "binary/octet-stream")
	}
	// https://docs.aws.amazon.com/AmazonS3/latest/userguide/default-encryption-faq.html
	if out.Get("X-Amz-Server-Side-Encryption") == "" {
		out.Set("X-Amz-Server-Side-Encryption", "AES256")
	}
	if t := h.Get("X-Amz-Tagging"); t != "" {
		tags, err := url.ParseQuery(t)
		if err != nil || len(tags) > 10 {
			return nil, errInvalidArgument.because("The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters without tag name duplicates.")
		}
		out.Set("X-Amz-Tagging-Count", strconv.Itoa(len(tags)))
	}
	return out, nil
}

// checkACL refuses ACLs as buckets do that enforce the owner, which is the
// default since April 2023.
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/about-object-ownership.html
func checkACL(h http.Header) error {
	if acl := h.Get("x-amz-acl"); acl != "" && acl != "bucket-owner-full-control" {
		return errACLNotSupported
	}
	for name := range h {
		if strings.HasPrefix(name, "X-Amz-Grant-") {
			return errACLNotSupported
		}
	}
	return nil
}

// body reads a request's body and checks its length.
func (q request) body() ([]byte, error) {
	if q.ContentLength < 0 {
		return nil, errMissingLength
	}
	if q.ContentLength > objectLimit {
		return nil, errTooLarge
	}
	var b bytes.Buffer
	b.Grow(int(min(q.ContentLength, 64<<20)))
	if _, err := io.Copy(&b, q.Body); err != nil {
		return nil, err
	}
	if int64(b.Len()) != q.ContentLength {
		return nil, errIncompleteBody
	}
	return b.Bytes(), nil
}

// putObject serves PutObject, conditional writes included.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
func (s *Server) putObject(q request) error {
	if err := checkACL(q.Header); err != nil {
		return err
	}
	v := &version{key: q.Key, sumType: fullObject}
	var err error
	if v.header, err = metadata(q.Header); err != nil {
		return err
	}
	if v.body, err = q.body(); err != nil {
		return err
	}
	if v.sums, err = verifyBody(q.Header, q.Trailer, v.body); err != nil {
		return err
	}
	if len(v.sums) == 0 { // without one, S3 makes one
		v.sums["crc64nvme"] = checksum("crc64nvme", v.body)
	}
	v.etag = etagOf(v.body)
	if err := s.write(q, v); err != nil {
		return err
	}
	h := q.w.Header()
	h.Set("ETag", `"`+v.etag+`"`)
	setSums(h, v.sums, v.sumType)
	return nil
}

// write stores a new version if the request's conditions hold, atomically.
func (s *Server) write(q request, v *version) error {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	b, err := s.store.bucket(q.Bucket)
	if err != nil {
		return err
	}
	if err := writable(q.Header, b.current(q.Key), q.Key); err != nil {
		return err
	}
	v.modified = s.opts.Clock.Now().Truncate(time.Second)
	b.put(v)
	if v.id != nullVersion {
		q.w.Header().Set("x-amz-version-id", v.id)
	}
	q.w.Header().Set("x-amz-server-side-encryption", v.header.Get("x-amz-server-side-encryption"))
	return nil
}

func writable(h http.Header, current *version, key string) error {
	if cond := h.Get("If-None-Match"); cond != "" {
		if cond != "*" {
			return errNotImplemented.with("Header", "If-None-Match")
		}
		if current != nil {
			return errPrecondition.with("Condition", "If-None-Match")
		}
	}
	if cond := h.Get("If-Match"); cond != "" {
		if current == nil {
			return errNoSuchKey.with("Key", key)
		}
		if !matches(cond, current.etag) {
			return errPrecondition.with("Condition", "If-Match")
		}
	}
	return nil
}

func matches(condition, etag string) bool {
	condition = strings.TrimSpace(condition)
	return condition == "*" || strings.Trim(strings.TrimPrefix(condition, "W/"), `"`) == etag
}

// readable evaluates the conditions of GET and HEAD in RFC 9110's order.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html
func readable(h http.Header, v *version, prefix string) error {
	since := func(name string) (time.Time, bool) {
		t, err := http.ParseTime(h.Get(prefix + name))
		return t, err == nil
	}
	if cond := h.Get(prefix + "If-Match"); cond != "" {
		if !matches(cond, v.etag) {
			return errPrecondition.with("Condition", "If-Match")
		}
	} else if t, ok := since("If-Unmodified-Since"); ok && v.modified.After(t) {
		return errPrecondition.with("Condition", "If-Unmodified-Since")
	}
	failed := errNotModified
	if prefix != "" { // of a copy: https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html
		failed = errPrecondition
	}
	if cond := h.Get(prefix + "If-None-Match"); cond != "" {
		if matches(cond, v.etag) {
			return failed
		}
	} else if t, ok := since("If-Modified-Since"); ok && !v.modified.After(t) {
		return failed
	}
	return nil
}

// overrides are the query parameters that replace a signed GET's headers.
var overrides = map[string]string{
	"response-content-type": "Content-Type", "response-content-language": "Content-Language", "response-expires": "Expires",
	"response-cache-control": "Cache-Control", "response-content-disposition": "Content-Disposition", "response-content-encoding": "Content-Encoding",
}

// getObject serves GetObject and HeadObject.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html
func (s *Server) getObject(q request) error {
	number, err := q.partNumber()
	if err != nil {
		return err
	}
	h := q.w.Header()
	s.store.mu.RLock()
	b, err := s.store.bucket(q.Bucket)
	if err != nil {
		s.store.mu.RUnlock()
		return err
	}
	v, err := b.get(q.Key, q.query.Get("versionId"))
	versioned := b.versioning != ""
	s.store.mu.RUnlock()
	if v != nil && v.marker {
		h.Set("x-amz-delete-marker", "true")
		h.Set("x-amz-version-id", v.id)
	}
	if err != nil {
		return s.missing(q, err)
	}
	// A stored version never changes: it is read without the lock.
	h.Set("ETag", `"`+v.etag+`"`)
	h.Set("Last-Modified", v.modified.UTC().Format(http.TimeFormat))
	if versioned {
		h.Set("x-amz-version-id", v.id)
	}
	if err := readable(q.Header, v, ""); err != nil {
		if err != errNotModified {
			return err
		}
		q.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	sums := v.sums
	from, to, partial, err := byteRange(q.Header.Get("Range"), len(v.body))
	switch {
	case err != nil:
		return err
	case partial:
		sums = nil
	case number > 0:
		p, err := v.part(number)
		if err != nil {
			return err
		}
		from, to, sums = p.from, p.to, p.sums
		partial = to > from // an empty part has no range of bytes
		if len(v.parts) > 0 {
			h.Set("x-amz-mp-parts-count", strconv.Itoa(len(v.parts)))
		}
	}
	for name, values := range v.header {
		h[name] = values
	}
	for param, name := range overrides {
		if q.query.Has(param) {
			h.Set(name, q.query.Get(param))
		}
	}
	h.Set("Accept-Ranges", "bytes")
	h.Set("Content-Length", strconv.Itoa(to-from))
	if strings.EqualFold(q.Header.Get("x-amz-checksum-mode"), "ENABLED") {
		setSums(h, sums, v.sumType)
	}
	status := http.StatusOK
	if partial {
		status = http.StatusPartialContent
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(v.body)))
	}
	q.w.WriteHeader(status)
	if q.Method != http.MethodHead {
		_, _ = q.w.Write(v.body[from:to]) // a client that hung up has no use for an error
	}
	return nil
}

// byteRange resolves a Range header; what is not one range of bytes is
// ignored, as RFC 9110 has it.
func byteRange(header string, size int) (from, to int, partial bool, err error) {
	spec, ok := strings.CutPrefix(header, "bytes=")
	first, last, dash := strings.Cut(spec, "-")
	if !ok || !dash || strings.Contains(spec, ",") {
		return 0, size, false, nil
	}
	if first == "" {
		n, err := strconv.Atoi(last)
		if err != nil {
			return 0, size, false, nil
		}
		if n == 0 || size == 0 {
			return 0, 0, false, errInvalidRange
		}
		return max(0, size-n), size, true, nil
	}
	from, err = strconv.Atoi(first)
	if err != nil || from < 0 {
		return 0, size, false, nil
	}
	to = size
	if last != "" {
		n, err := strconv.Atoi(last)
		if err != nil || n < from {
			return 0, size, false, nil
		}
		to = min(n+1, size)
	}
	if from >= size {
		return 0, 0, false, errInvalidRange.with("ActualObjectSize", strconv.Itoa(size))
	}
	return from, to, true, nil
}
