package s3

import (
	"encoding/base64"
	"encoding/xml"
	"iter"
	"net/http"
	"strings"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/sigv4"
)

const (
	maxKeys  = 1000
	xmlTime  = "2006-01-02T15:04:05.000Z"
	ownerID  = "75aa57f09aa0c8caeab4f8c24e99d10f8e7faeebf76c078efc7c6caea54ba06a"
	standard = "STANDARD"
)

type contents struct {
	Key               string
	LastModified      string
	ETag              string
	ChecksumAlgorithm []string `xml:",omitempty"`
	ChecksumType      string   `xml:",omitempty"`
	Size              int
	Owner             *owner `xml:",omitempty"`
	StorageClass      string
}

type owner struct {
	ID string
}

type commonPrefix struct{ Prefix string }

type listResult struct {
	XMLName               xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListBucketResult"`
	Name                  string
	Prefix                string
	Marker                *string `xml:",omitempty"`
	StartAfter            string  `xml:",omitempty"`
	ContinuationToken     string  `xml:",omitempty"`
	NextMarker            string  `xml:",omitempty"`
	NextContinuationToken string  `xml:",omitempty"`
	KeyCount              *int    `xml:",omitempty"`
	MaxKeys               int
	Delimiter             string `xml:",omitempty"`
	EncodingType          string `xml:",omitempty"`
	IsTruncated           bool
	Contents              []contents
	CommonPrefixes        []commonPrefix
}

// encoder returns how keys are written: with encoding-type=url percent-encoded.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
func (q request) encoder() (func(string) string, error) {
	switch q.query.Get("encoding-type") {
	case "":
		return func(s string) string { return s }, nil
	case "url":
		return func(s string) string { return strings.ReplaceAll(sigv4.Escape(s), "%2F", "/") }, nil
	}
	return nil, errInvalidArgument.because("Invalid Encoding Method specified in Request").with("ArgumentName", "encoding-type")
}

// listObjects serves ListObjects and ListObjectsV2.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjects.html
func (s *Server) listObjects(q request) error {
	encode, err := q.encoder()
	if err != nil {
		return err
	}
	l := listing{prefix: q.query.Get("prefix"), delimiter: q.query.Get("delimiter")}
	if l.max, err = intQuery(q.query, "max-keys", maxKeys, maxKeys); err != nil {
		return err
	}
	v2 := q.Name == "ListObjectsV2"
	if v2 {
		l.after = q.query.Get("start-after")
		if q.query.Has("continuation-token") {
			if l.after, l.afterPrefix, err = parseToken(q.query.Get("continuation-token")); err != nil {
				return err
			}
		}
	} else {
		l.after = q.query.Get("marker")
		l.afterPrefix = l.delimiter != "" && strings.HasSuffix(l.after, l.delimiter)
	}

	s.store.mu.Lock() // a listing may merge keys
	defer s.store.mu.Unlock()
	b, err := s.store.bucket(q.Bucket)
	if err != nil {
		return err
	}
	p := page{}
	if l.max > 0 {
		p = b.list(l)
	}
	out := listResult{
		Name: b.name, Prefix: encode(l.prefix), Delimiter: encode(l.delimiter), MaxKeys: l.max, IsTruncated: p.truncated,
		EncodingType: q.query.Get("encoding-type"),
	}
	for _, v := range p.versions {
		c := contents{
			Key: encode(v.key), LastModified: v.modified.Format(xmlTime), ETag: `"` + v.etag + `"`, Size: len(v.body),
			StorageClass: standard, ChecksumType: v.sumType,
		}
		for alg := range v.sums {
			c.ChecksumAlgorithm = append(c.ChecksumAlgorithm, strings.ToUpper(alg))
		}
		if !v2 || q.query.Get("fetch-owner") == "true" {
			c.Owner = &owner{ID: ownerID}
		}
		out.Contents = append(out.Contents, c)
	}
	for _, prefix := range p.prefixes {
		out.CommonPrefixes = append(out.CommonPrefixes, commonPrefix{encode(prefix)})
	}
	isPrefix := len(p.prefixes) > 0 && p.prefixes[len(p.prefixes)-1] == p.last
	if v2 {
		n := len(p.versions) + len(p.prefixes)
		out.KeyCount = &n
		out.StartAfter = encode(q.query.Get("start-after"))
		out.ContinuationToken = q.query.Get("continuation-token")
		if p.truncated {
			out.NextContinuationToken = token(p.last, isPrefix)
		}
	} else {
		marker := encode(q.query.Get("marker"))
		out.Marker = &marker
		if p.truncated && l.delimiter != "" {
			out.NextMarker = encode(p.last)
		}
	}
	q.xml(out)
	return nil
}

func token(last string, isPrefix bool) string {
	kind := "k"
	if isPrefix {
		kind = "p"
	}
	return base64.StdEncoding.EncodeToString([]byte(kind + last))
}

func parseToken(t string) (after string, isPrefix bool, err error) {
	b, err := base64.StdEncoding.DecodeString(t)
	if err != nil || len(b) < 1 || b[0] != 'k' && b[0] != 'p' {
		return "", false, errInvalidArgument.because("The continuation token provided is incorrect").with("ArgumentName", "continuation-token")
	}
	return string(b[1:]), b[0] == 'p', nil
}

type listedVersion struct {
	XMLName      xml.Name
	Key          string
	VersionID    string `xml:"VersionId"`
	IsLatest     bool
	LastModified string
	ETag         string `xml:",omitempty"`
	Size         *int   `xml:",omitempty"`
	StorageClass string `xml:",omitempty"`
	Owner        owner
}

// listVersions serves ListObjectVersions.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html
func (s *Server) listVersions(q request) error {
	encode, err := q.encoder()
	if err != nil {
		return err
	}
	l := listing{
		prefix: q.query.Get("prefix"), delimiter: q.query.Get("delimiter"), all: true,
		after: q.query.Get("key-marker"), afterVersion: q.query.Get("version-id-marker"),
	}
	if l.afterVersion != "" && l.after == "" {
		return errInvalidArgument.because("A version-id marker cannot be specified without a key marker.")
	}
	l.afterPrefix = l.delimiter != "" && strings.HasSuffix(l.after, l.delimiter) && l.afterVersion == ""
	if l.max, err = intQuery(q.query, "max-keys", maxKeys, maxKeys); err != nil {
		return err
	}
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	b, err := s.store.bucket(q.Bucket)
	if err != nil {
		return err
	}
	p := page{}
	if l.max > 0 {
		p = b.list(l)
	}
	out := struct {
		XMLName             xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListVersionsResult"`
		Name                string
		Prefix              string
		KeyMarker           string
		VersionIDMarker     string `xml:"VersionIdMarker"`
		NextKeyMarker       string `xml:",omitempty"`
		NextVersionIDMarker string `xml:"NextVersionIdMarker,omitempty"`
		MaxKeys             int
		Delimiter           string `xml:",omitempty"`
		EncodingType        string `xml:",omitempty"`
		IsTruncated         bool
		Versions            []listedVersion
		CommonPrefixes      []commonPrefix
	}{
		Name: b.name, Prefix: encode(l.prefix), KeyMarker: encode(l.after), VersionIDMarker: l.afterVersion, MaxKeys: l.max,
		Delimiter: encode(l.delimiter), EncodingType: q.query.Get("encoding-type"), IsTruncated: p.truncated,
	}
	if p.truncated {
		out.NextKeyMarker, out.NextVersionIDMarker = encode(p.last), p.lastID
	}
	for _, v := range p.versions {
		o := listedVersion{
			XMLName: xml.Name{Local: "Version"}, Key: encode(v.key), VersionID: v.id, IsLatest: b.objects[v.key][0] == v,
			LastModified: v.modified.Format(xmlTime), Owner: owner{ID: ownerID},
		}
		if v.marker {
			o.XMLName.Local = "DeleteMarker"
		} else {
			size := len(v.body)
			o.ETag, o.Size, o.StorageClass = `"`+v.etag+`"`, &size, standard
		}
		out.Versions = append(out.Versions, o)
	}
	for _, prefix := range p.prefixes {
		out.CommonPrefixes = append(out.CommonPrefixes, commonPrefix{encode(prefix)})
	}
	q.xml(out)
	return nil
}

// Objects returns the keys of a bucket under a prefix, for tests that look
// behind the API.
func (s *Server) Objects(bucket, prefix string) []string {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	b := s.store.buckets[bucket]
	if b == nil {
		return nil
	}
	var keys []string
	for _, v := range b.list(listing{prefix: prefix, max: int(^uint(0) >> 1)}).versions {
		keys = append(keys, v.key)
	}
	return keys
}

// CreateBucket makes a bucket in the server's region, or in the one named.
func (s *Server) CreateBucket(name, region string) {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	if region == "" {
		region = s.opts.Region
	}
	if s.store.buckets[name] == nil {
		s.store.add(name, region)
	}
}

// Fill puts objects into a bucket behind the API: what a test of a large fleet
// needs before it begins.
func (s *Server) Fill(bucket string, objects iter.Seq2[string, []byte]) {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	b := s.store.buckets[bucket]
	now := s.opts.Clock.Now().Truncate(time.Second)
	header, _ := metadata(http.Header{}) // no headers, no error
	for key, body := range objects {
		b.put(&version{
			key: key, body: body, etag: etagOf(body), modified: now, header: header, sumType: "FULL_OBJECT",
			sums: map[string]string{"crc64nvme": checksum("crc64nvme", body)},
		})
	}
}
