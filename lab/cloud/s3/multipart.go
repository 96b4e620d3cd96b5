package s3

import (
	"encoding/xml"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/johannesboyne/gofakes3"
)

const (
	minPart  = 5 << 20 // https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
	maxParts = 10000
)

// upload is one multipart upload.
type upload struct {
	id, key string
	started time.Time
	header  http.Header
	sums    string // the checksum algorithm asked for at creation
	sumType string // FULL_OBJECT or COMPOSITE; empty without an algorithm
	parts   map[int]part
}

type part struct {
	body     []byte
	etag     string
	sum      string // by the upload's algorithm, or else CRC64NVME
	modified time.Time
}

// delegate lets gofakes3 serve the request in the style it knows: bucket in the
// path, whatever the host.
func (s *Server) delegate(q request) error {
	r := q.Clone(q.Context())
	r.URL.Path, r.URL.RawPath = "/"+q.Bucket, ""
	if q.Key != "" {
		r.URL.Path += "/" + q.Key
	}
	if q.Name == "CreateMultipartUpload" {
		if err := checkACL(r.Header); err != nil {
			return err
		}
		if _, err := metadata(r.Header); err != nil {
			return err
		}
		if err := announce(r.Header, q.w.Header()); err != nil {
			return err
		}
	}
	s.fake.ServeHTTP(q.w, r)
	return nil
}

// versioning reads or sets a bucket's versioning; it cannot be unset again.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutBucketVersioning.html
func (s *Server) versioning(q request) error {
	type configuration struct {
		XMLName xml.Name `xml:"VersioningConfiguration"`
		Xmlns   string   `xml:"xmlns,attr,omitempty"`
		Status  string   `xml:",omitempty"`
	}
	var in configuration
	if q.Method == http.MethodPut {
		body, err := q.body()
		if err != nil {
			return err
		}
		if xml.Unmarshal(body, &in) != nil || in.Status != "Enabled" && in.Status != "Suspended" {
			return errMalformedXML
		}
	}
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	b, err := s.store.bucket(q.Bucket)
	if err != nil {
		return err
	}
	if q.Method == http.MethodPut {
		b.versioning = in.Status
		return nil
	}
	q.xml(configuration{Xmlns: namespace, Status: b.versioning})
	return nil
}

// uploadPart serves UploadPart.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPart.html
func (s *Server) uploadPart(q request) error {
	n, err := strconv.Atoi(q.query.Get("partNumber"))
	if err != nil || n < 1 || n > maxParts {
		return errInvalidArgument.because("Part number must be an integer between 1 and 10000, inclusive")
	}
	body, err := q.body()
	if err != nil {
		return err
	}
	sums, err := verifyBody(q.Header, q.Trailer, body)
	if err != nil {
		return err
	}
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	u, err := s.store.upload(q.Bucket, q.Key, q.query.Get("uploadId"))
	if err != nil {
		return err
	}
	alg, err := u.partAlgorithm(sums)
	if err != nil {
		return err
	}
	p := part{body: body, etag: etagOf(body), sum: checksum(alg, body), modified: s.opts.Clock.Now().Truncate(time.Second)}
	u.parts[n] = p
	q.w.Header().Set("ETag", `"`+p.etag+`"`)
	if len(sums) == 0 {
		sums = map[string]string{alg: p.sum}
	}
	for alg, sum := range sums {
		q.w.Header().Set("x-amz-checksum-"+alg, sum)
	}
	return nil
}

func (s *store) upload(bucket, key, id string) (*upload, error) {
	b, err := s.bucket(bucket)
	if err != nil {
		return nil, err
	}
	u := b.uploads[id]
	if u == nil || u.key != key {
		return nil, errNoSuchUpload.with("UploadId", id)
	}
	return u, nil
}

// completeUpload serves CompleteMultipartUpload.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html
func (s *Server) completeUpload(q request) error {
	body, err := q.body()
	if err != nil {
		return err
	}
	var in struct {
		XMLName xml.Name        `xml:"CompleteMultipartUpload"`
		Parts   []completedPart `xml:"Part"`
	}
	if xml.Unmarshal(body, &in) != nil || len(in.Parts) == 0 {
		return errMalformedXML
	}
	s.store.mu.RLock()
	u, err := s.store.upload(q.Bucket, q.Key, q.query.Get("uploadId"))
	if err != nil {
		s.store.mu.RUnlock()
		return err
	}
	uploaded := maps.Clone(u.parts)
	s.store.mu.RUnlock()

	v, err := u.assemble(in.Parts, uploaded)
	if err != nil {
		return err
	}
	if kind := q.Header.Get("x-amz-checksum-type"); kind != "" && kind != v.sumType {
		return errInvalidRequest.because("The upload was created using the " + v.sumType + " checksum mode. The complete request must use the same checksum mode.")
	}
	for alg, sum := range v.sums {
		whole, _, _ := strings.Cut(sum, "-") // clients do not know the suffix of a composite one
		if want := q.Header.Get("x-amz-checksum-" + alg); want != "" && want != sum && want != whole {
			return errBadDigest.because("The " + alg + " you specified did not match the calculated checksum.")
		}
	}
	if err := s.write(q, v); err != nil {
		return err
	}
	s.store.mu.Lock()
	if b := s.store.buckets[q.Bucket]; b != nil {
		delete(b.uploads, u.id)
	}
	s.store.mu.Unlock()
	out := struct {
		XMLName      xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ CompleteMultipartUploadResult"`
		Location     string
		Bucket       string
		Key          string
		ETag         string
		Sums         []element
		ChecksumType string
	}{Location: "http://" + q.Host + "/" + q.Bucket + "/" + q.Key, Bucket: q.Bucket, Key: q.Key, ETag: `"` + v.etag + `"`, ChecksumType: v.sumType}
	for alg, sum := range v.sums {
		out.Sums = append(out.Sums, element{XMLName: xml.Name{Local: "Checksum" + strings.ToUpper(alg)}, Value: sum})
	}
	q.xml(out)
	return nil
}

// backend is the part of gofakes3's Backend and MultipartBackend that its
// handlers for the delegated operations reach.
type backend struct{ store *store }

var (
	_ gofakes3.Backend          = (*backend)(nil)
	_ gofakes3.MultipartBackend = (*backend)(nil)
)

// ListBuckets implements gofakes3.Backend.
func (b *backend) ListBuckets() ([]gofakes3.BucketInfo, error) {
	b.store.mu.RLock()
	defer b.store.mu.RUnlock()
	var out []gofakes3.BucketInfo
	for _, name := range slices.Sorted(maps.Keys(b.store.buckets)) {
		out = append(out, gofakes3.BucketInfo{Name: name, CreationDate: gofakes3.NewContentTime(b.store.buckets[name].created)})
	}
	return out, nil
}

// BucketExists implements gofakes3.Backend.
func (b *backend) BucketExists(name string) (bool, error) {
	b.store.mu.RLock()
	defer b.store.mu.RUnlock()
	return b.store.buckets[name] != nil, nil
}

// CreateMultipartUpload implements gofakes3.MultipartBackend.
func (b *backend) CreateMultipartUpload(bucket, key string, meta map[string]string) (gofakes3.UploadID, error) {
	h := http.Header{}
	for name, value := range meta {
		h.Set(name, value)
	}
	kept, err := metadata(h)
	if err != nil {
		return "", err
	}
	b.store.mu.Lock()
	defer b.store.mu.Unlock()
	at, err := b.store.bucket(bucket)
	if err != nil {
		return "", err
	}
	u := &upload{
		id: randomID(24), key: key, started: b.store.clock.Now(), header: kept, parts: map[int]part{},
		sums: strings.ToLower(h.Get("x-amz-checksum-algorithm")), sumType: h.Get("x-amz-checksum-type"),
	}
	at.uploads[u.id] = u
	return gofakes3.UploadID(u.id), nil
}

// ListMultipartUploads implements gofakes3.MultipartBackend.
func (b *backend) ListMultipartUploads(bucket string, _ *gofakes3.UploadListMarker, prefix gofakes3.Prefix, limit int64) (*gofakes3.ListMultipartUploadsResult, error) {
	b.store.mu.RLock()
	defer b.store.mu.RUnlock()
	at, err := b.store.bucket(bucket)
	if err != nil {
		return nil, gofakes3.BucketNotFound(bucket)
	}
	out := &gofakes3.ListMultipartUploadsResult{Bucket: bucket, Prefix: prefix.Prefix, MaxUploads: limit}
	for _, u := range at.uploads {
		if strings.HasPrefix(u.key, prefix.Prefix) {
			out.Uploads = append(out.Uploads, gofakes3.ListMultipartUploadItem{
				Key: u.key, UploadID: gofakes3.UploadID(u.id), StorageClass: standard, Initiated: gofakes3.NewContentTime(u.started),
			})
		}
	}
	slices.SortFunc(out.Uploads, func(x, y gofakes3.ListMultipartUploadItem) int {
		return strings.Compare(x.Key+"\x00"+string(x.UploadID), y.Key+"\x00"+string(y.UploadID))
	})
	if int64(len(out.Uploads)) > limit {
		return nil, gofakes3.ErrNotImplemented // paging of uploads is not modelled
	}
	return out, nil
}

// ListParts implements gofakes3.MultipartBackend.
func (b *backend) ListParts(bucket, key string, id gofakes3.UploadID, marker int, limit int64) (*gofakes3.ListMultipartUploadPartsResult, error) {
	b.store.mu.RLock()
	defer b.store.mu.RUnlock()
	u, err := b.store.upload(bucket, key, string(id))
	if err != nil {
		return nil, gofakes3.ErrNoSuchUpload
	}
	out := &gofakes3.ListMultipartUploadPartsResult{Bucket: bucket, Key: key, UploadID: id, MaxParts: limit, PartNumberMarker: marker, StorageClass: standard}
	for _, n := range slices.Sorted(maps.Keys(u.parts)) {
		if n <= marker {
			continue
		}
		if int64(len(out.Parts)) == limit {
			out.IsTruncated = true
			break
		}
		p := u.parts[n]
		out.Parts = append(out.Parts, gofakes3.ListMultipartUploadPartItem{
			PartNumber: n, ETag: `"` + p.etag + `"`, Size: int64(len(p.body)), LastModified: gofakes3.NewContentTime(p.modified),
		})
		out.NextPartNumberMarker = n
	}
	return out, nil
}

// AbortMultipartUpload implements gofakes3.MultipartBackend.
func (b *backend) AbortMultipartUpload(bucket, key string, id gofakes3.UploadID) error {
	b.store.mu.Lock()
	defer b.store.mu.Unlock()
	if _, err := b.store.upload(bucket, key, string(id)); err != nil {
		return gofakes3.ErrNoSuchUpload
	}
	delete(b.store.buckets[bucket].uploads, string(id))
	return nil
}

// The rest of the interfaces is never delegated; ServeHTTP serves it itself.

// UploadPart implements gofakes3.MultipartBackend.
func (*backend) UploadPart(string, string, gofakes3.UploadID, int, int64, io.Reader) (string, error) {
	return "", gofakes3.ErrNotImplemented
}

// CompleteMultipartUpload implements gofakes3.MultipartBackend.
func (*backend) CompleteMultipartUpload(string, string, gofakes3.UploadID, *gofakes3.CompleteMultipartUploadRequest) (gofakes3.VersionID, string, error) {
	return "", "", gofakes3.ErrNotImplemented
}

// ListBucket implements gofakes3.Backend.
func (*backend) ListBucket(string, *gofakes3.Prefix, gofakes3.ListBucketPage) (*gofakes3.ObjectList, error) {
	return nil, gofakes3.ErrNotImplemented
}

// CreateBucket implements gofakes3.Backend.
func (*backend) CreateBucket(string) error { return gofakes3.ErrNotImplemented }

// DeleteBucket implements gofakes3.Backend.
func (*backend) DeleteBucket(string) error { return gofakes3.ErrNotImplemented }

// ForceDeleteBucket implements gofakes3.Backend.
func (*backend) ForceDeleteBucket(string) error { return gofakes3.ErrNotImplemented }

// GetObject implements gofakes3.Backend.
func (*backend) GetObject(string, string, *gofakes3.ObjectRangeRequest) (*gofakes3.Object, error) {
	return nil, gofakes3.ErrNotImplemented
}

// HeadObject implements gofakes3.Backend.
func (*backend) HeadObject(string, string) (*gofakes3.Object, error) {
	return nil, gofakes3.ErrNotImplemented
}

// DeleteObject implements gofakes3.Backend.
func (*backend) DeleteObject(string, string) (gofakes3.ObjectDeleteResult, error) {
	return gofakes3.ObjectDeleteResult{}, gofakes3.ErrNotImplemented
}

// PutObject implements gofakes3.Backend.
func (*backend) PutObject(string, string, map[string]string, io.Reader, int64, *gofakes3.PutConditions) (gofakes3.PutObjectResult, error) {
	return gofakes3.PutObjectResult{}, gofakes3.ErrNotImplemented
}

// DeleteMulti implements gofakes3.Backend.
func (*backend) DeleteMulti(string, ...string) (gofakes3.MultiDeleteResult, error) {
	return gofakes3.MultiDeleteResult{}, gofakes3.ErrNotImplemented
}

// CopyObject implements gofakes3.Backend.
func (*backend) CopyObject(string, string, string, string, map[string]string) (gofakes3.CopyObjectResult, error) {
	return gofakes3.CopyObjectResult{}, gofakes3.ErrNotImplemented
}
