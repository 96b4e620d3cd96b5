// Package s3 is a fake of Amazon S3's REST API as far as lecafe, the AWS CLI
// and Packer use it. It owns buckets, objects, versions, listings, conditions,
// ranges, parts, checksums, what a bucket's policy says of a request and what an
// absent permission does to an answer; it refuses what it does not model with
// NotImplemented, naming the operation.
// Signatures are verified before a request gets here.
//
// github.com/johannesboyne/gofakes3 validates bucket names and serves
// ListBuckets and the life of multipart uploads, on this package's store. It is
// not used for objects, parts and listings: it ignores If-Match on GET, accepts
// wrong checksums and short parts, keeps an overwritten object's metadata, and
// looks through the whole bucket for a page with a prefix or a delimiter.
package s3

import (
	"context"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/johannesboyne/gofakes3"

	"github.com/lecafe/lecafe/lab/cloud/policy"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// Options configure a Server.
type Options struct {
	Clock  wire.Clock
	Region string // of buckets made by unsigned set-up; default us-east-1
	// Allowed says whether the request's caller may do more than the request
	// itself: list the bucket of a missing key, delete one key of many. Nil
	// allows.
	Allowed func(ctx context.Context, need policy.Request) bool
}

// Server is the fake. It is an http.Handler of authenticated requests.
type Server struct {
	opts  Options
	store *store
	fake  http.Handler

	// A lock of its own: permissions are asked for while the store is locked.
	accessMu sync.RWMutex
	access   map[string]access // by bucket
}

// New returns a Server without buckets.
func New(o Options) *Server {
	if o.Clock == nil {
		o.Clock = wire.Scaled(1)
	}
	if o.Region == "" {
		o.Region = defaultRegion
	}
	if o.Allowed == nil {
		o.Allowed = func(context.Context, policy.Request) bool { return true }
	}
	s := &Server{opts: o, store: newStore(o.Clock), access: map[string]access{}}
	// No skew check: the router has checked the signature's time.
	s.fake = gofakes3.New(&backend{s.store}, gofakes3.WithTimeSkewLimit(0), gofakes3.WithoutVersioning()).Server()
	return s
}

const (
	defaultRegion = "us-east-1"
	namespace     = "http://s3.amazonaws.com/doc/2006-03-01/"
	keyLimit      = 1024
	metadataLimit = 2 << 10
	objectLimit   = 5 << 30
)

// request is one request on its way through the server.
type request struct {
	Operation
	*http.Request
	w     http.ResponseWriter
	query url.Values
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("x-amz-request-id", randomID(8))
	w.Header().Set("x-amz-id-2", randomID(16))
	w.Header().Set("Server", "AmazonS3")
	q := request{Operation: OperationOf(r), Request: r, w: w, query: r.URL.Query()}
	hoist(r.Header, q.query)
	if err := s.serve(q); err != nil {
		WriteError(w, r, asError(err))
	}
}

// hoist makes headers of the x-amz-* names in a presigned URL, as S3 does.
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
func hoist(h http.Header, q url.Values) {
	for name, values := range q {
		lower := strings.ToLower(name)
		if !strings.HasPrefix(lower, "x-amz-") || h.Get(name) != "" {
			continue
		}
		switch lower {
		case "x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-expires", "x-amz-signature", "x-amz-signedheaders", "x-amz-security-token":
		default:
			h.Set(name, values[0])
		}
	}
}

func (s *Server) serve(q request) error {
	if owner := q.Header.Get("x-amz-expected-bucket-owner"); owner != "" && owner != wire.Account {
		return errAccessDenied
	}
	if len(q.Key) > keyLimit {
		return errKeyTooLong
	}
	if q.Bucket != "" && q.Name != "CreateBucket" {
		if err := s.sameRegion(q); err != nil {
			return err
		}
	}
	switch q.Name {
	case "ListBuckets", "ListMultipartUploads", "CreateMultipartUpload", "AbortMultipartUpload", "ListParts":
		return s.delegate(q)
	case "GetBucketVersioning", "PutBucketVersioning":
		return s.versioning(q)
	case "UploadPart":
		return s.uploadPart(q)
	case "CompleteMultipartUpload":
		return s.completeUpload(q)
	case "CreateBucket":
		return s.createBucket(q)
	case "HeadBucket":
		return nil
	case "DeleteBucket":
		return s.deleteBucket(q)
	case "GetBucketLocation":
		return s.bucketLocation(q)
	case "ListObjects", "ListObjectsV2":
		return s.listObjects(q)
	case "ListObjectVersions":
		return s.listVersions(q)
	case "GetObject", "HeadObject":
		return s.getObject(q)
	case "PutObject":
		return s.putObject(q)
	case "CopyObject":
		return s.copyObject(q)
	case "DeleteObject":
		return s.deleteObject(q)
	case "DeleteObjects":
		return s.deleteObjects(q)
	}
	if c, ok := configOf(q.Name); ok {
		return s.configure(q, c)
	}
	return errNotImplemented.because(q.Name + " is not implemented by this fake")
}

// sameRegion refuses a request signed for another region than the bucket's.
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html
func (s *Server) sameRegion(q request) error {
	s.store.mu.RLock()
	defer s.store.mu.RUnlock()
	b, err := s.store.bucket(q.Bucket)
	if err != nil {
		return err
	}
	q.w.Header().Set("x-amz-bucket-region", b.region)
	if have := s.region(q.Context()); have != b.region {
		return errWrongRegion.because("The authorization header is malformed; the region '"+have+"' is wrong; expecting '"+b.region+"'").with("Region", b.region)
	}
	return nil
}

func (s *Server) region(ctx context.Context) string {
	if r := wire.RegionFrom(ctx); r != "" {
		return r
	}
	return s.opts.Region
}

func (s *Server) createBucket(q request) error {
	if gofakes3.ValidateBucketName(q.Bucket) != nil {
		return errInvalidBucketName.with("BucketName", q.Bucket)
	}
	body, err := io.ReadAll(io.LimitReader(q.Body, 1<<20))
	if err != nil {
		return err
	}
	var in struct {
		XMLName            xml.Name `xml:"CreateBucketConfiguration"`
		LocationConstraint string
	}
	if len(body) > 0 && xml.Unmarshal(body, &in) != nil {
		return errMalformedXML
	}
	// https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateBucket.html:
	// elsewhere than in us-east-1 the constraint must name the region.
	region := s.region(q.Context())
	want := in.LocationConstraint
	switch {
	case want == defaultRegion:
		return errInvalidArgument.because("The specified location-constraint is not valid")
	case region == defaultRegion && want != "":
		region = want
	case region != defaultRegion && want == "":
		return errLocation.because("The unspecified location constraint is incompatible for the region specific endpoint this request was sent to.")
	case region != defaultRegion && want != region:
		return errLocation
	}
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	if old := s.store.buckets[q.Bucket]; old != nil {
		if old.region == defaultRegion && region == defaultRegion {
			return nil // the one region where making one's own bucket again succeeds
		}
		return errOwnedByYou.with("BucketName", q.Bucket)
	}
	s.store.add(q.Bucket, region)
	q.w.Header().Set("Location", "/"+q.Bucket)
	return nil
}

func (s *store) add(name, region string) {
	s.buckets[name] = &bucket{name: name, region: region, created: s.clock.Now(), config: map[string][]byte{}, objects: map[string][]*version{}, uploads: map[string]*upload{}}
}

func (s *Server) deleteBucket(q request) error {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	b, err := s.store.bucket(q.Bucket)
	if err != nil {
		return err
	}
	if !b.empty() {
		return errBucketNotEmpty.with("BucketName", q.Bucket)
	}
	delete(s.store.buckets, q.Bucket)
	s.accessMu.Lock()
	delete(s.access, q.Bucket)
	s.accessMu.Unlock()
	q.w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) bucketLocation(q request) error {
	s.store.mu.RLock()
	defer s.store.mu.RUnlock()
	b, err := s.store.bucket(q.Bucket)
	if err != nil {
		return err
	}
	out := struct {
		XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ LocationConstraint"`
		Region  string   `xml:",chardata"`
	}{}
	if b.region != defaultRegion { // us-east-1 is null, for history's sake
		out.Region = b.region
	}
	q.xml(out)
	return nil
}

func (q request) xml(v any) {
	q.w.Header().Set("Content-Type", "application/xml")
	writeXML(q.w, v)
}

// missing turns a missing key into AccessDenied for a caller who may not list
// the bucket.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html#API_GetObject_RequestSyntax
func (s *Server) missing(q request, err error) error {
	var e *Error
	if errors.As(err, &e) && e.Code == errNoSuchKey.Code &&
		!s.opts.Allowed(q.Context(), policy.Request{Action: "s3:ListBucket", Resource: arn(q.Bucket, "")}) {
		return errAccessDenied
	}
	return err
}

func intQuery(q url.Values, name string, fallback, limit int) (int, error) {
	if !q.Has(name) || q.Get(name) == "" {
		return fallback, nil
	}
	n, err := strconv.Atoi(q.Get(name))
	if err != nil || n < 0 {
		return 0, errInvalidArgument.because("Provided "+name+" not an integer or within integer range").with("ArgumentName", name)
	}
	return min(n, limit), nil
}
