package s3

import (
	"encoding/xml"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/policy"
)

// deleteObject serves DeleteObject: a key that is not there is deleted too.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObject.html
func (s *Server) deleteObject(q request) error {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	b, err := s.store.bucket(q.Bucket)
	if err != nil {
		return err
	}
	if cond := q.Header.Get("If-Match"); cond != "" {
		switch v := b.current(q.Key); {
		case v == nil:
			return errNoSuchKey.with("Key", q.Key)
		case !matches(cond, v.etag):
			return errPrecondition.with("Condition", "If-Match")
		}
	}
	id, marker := s.delete(b, q.Key, q.query.Get("versionId"))
	if marker {
		q.w.Header().Set("x-amz-delete-marker", "true")
	}
	if id != "" {
		q.w.Header().Set("x-amz-version-id", id)
	}
	q.w.WriteHeader(http.StatusNoContent)
	return nil
}

// delete removes the version, or with an empty ID the object, which on a
// versioned bucket puts a delete marker on top.
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/DeletingObjectVersions.html
func (s *Server) delete(b *bucket, key, id string) (versionID string, marker bool) {
	if id != "" {
		if v := b.remove(key, id); v != nil {
			return id, v.marker
		}
		return id, false
	}
	if b.versioning == "" {
		b.remove(key, nullVersion)
		return "", false
	}
	v := &version{key: key, marker: true, modified: s.opts.Clock.Now().Truncate(time.Second)}
	b.put(v)
	return v.id, true
}

type deleteRequest struct {
	XMLName xml.Name `xml:"Delete"`
	Quiet   bool
	Objects []struct {
		Key       string
		VersionID string `xml:"VersionId"`
	} `xml:"Object"`
}

type deletedObject struct {
	Key                   string
	VersionID             string `xml:"VersionId,omitempty"`
	DeleteMarker          bool   `xml:",omitempty"`
	DeleteMarkerVersionID string `xml:"DeleteMarkerVersionId,omitempty"`
}

type deleteError struct {
	Key, Code, Message string
	VersionID          string `xml:"VersionId,omitempty"`
}

// deleteObjects serves DeleteObjects: at most 1000 keys, and a digest of the
// body is required.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
func (s *Server) deleteObjects(q request) error {
	body, err := q.body()
	if err != nil {
		return err
	}
	if q.Header.Get("Content-Md5") == "" && len(given(q.Header)) == 0 && q.Header.Get("x-amz-trailer") == "" {
		return errInvalidRequest.because("Missing required header for this request: Content-MD5 OR x-amz-checksum-*")
	}
	if _, err := verifyBody(q.Header, q.Trailer, body); err != nil {
		return err
	}
	var in deleteRequest
	if xml.Unmarshal(body, &in) != nil || len(in.Objects) == 0 || len(in.Objects) > 1000 {
		return errMalformedXML
	}
	var out struct {
		XMLName xml.Name        `xml:"http://s3.amazonaws.com/doc/2006-03-01/ DeleteResult"`
		Deleted []deletedObject `xml:"Deleted"`
		Errors  []deleteError   `xml:"Error"`
	}
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	b, err := s.store.bucket(q.Bucket)
	if err != nil {
		return err
	}
	for _, o := range in.Objects {
		action := "s3:DeleteObject"
		if o.VersionID != "" {
			action = "s3:DeleteObjectVersion"
		}
		if !s.opts.Allowed(q.Context(), policy.Request{Action: action, Resource: arn(q.Bucket, o.Key)}) {
			out.Errors = append(out.Errors, deleteError{Key: o.Key, VersionID: o.VersionID, Code: errAccessDenied.Code, Message: errAccessDenied.Message})
			continue
		}
		id, marker := s.delete(b, o.Key, o.VersionID)
		if in.Quiet {
			continue
		}
		d := deletedObject{Key: o.Key, VersionID: o.VersionID, DeleteMarker: marker}
		if marker {
			d.DeleteMarkerVersionID = id
		}
		out.Deleted = append(out.Deleted, d)
	}
	q.xml(out)
	return nil
}

// copySource parses x-amz-copy-source: bucket/key, percent-encoded, with an
// optional versionId.
func copySource(h http.Header) (bucket, key, versionID string, err error) {
	source, query, _ := strings.Cut(h.Get("x-amz-copy-source"), "?")
	versionID = strings.TrimPrefix(query, "versionId=")
	source, err = url.PathUnescape(source)
	if err != nil {
		return "", "", "", errInvalidArgument.because("Invalid copy source encoding.")
	}
	bucket, key, _ = strings.Cut(strings.TrimPrefix(source, "/"), "/")
	if bucket == "" || key == "" {
		return "", "", "", errInvalidArgument.because("Copy Source must mention the source bucket and key: sourcebucket/sourcekey")
	}
	return bucket, key, versionID, nil
}

// copyObject serves CopyObject.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html
func (s *Server) copyObject(q request) error {
	if err := checkACL(q.Header); err != nil {
		return err
	}
	from, key, id, err := copySource(q.Header)
	if err != nil {
		return err
	}
	s.store.mu.RLock()
	var source *version
	b, err := s.store.bucket(from)
	if err == nil {
		source, err = b.get(key, id)
	}
	s.store.mu.RUnlock()
	if err != nil {
		return s.missing(request{Operation: Operation{Bucket: from, Key: key}, Request: q.Request, w: q.w}, err)
	}
	if err := readable(q.Header, source, "X-Amz-Copy-Source-"); err != nil {
		return err
	}
	replace := q.Header.Get("x-amz-metadata-directive") == "REPLACE"
	if !replace && from == q.Bucket && key == q.Key && id == "" &&
		!slices.ContainsFunc([]string{"x-amz-storage-class", "x-amz-server-side-encryption", "x-amz-website-redirect-location"}, func(n string) bool { return q.Header.Get(n) != "" }) {
		return errInvalidRequest.because("This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes.")
	}
	// The copy of a multipart object is an object in one part: its ETag is
	// computed anew, its full-object checksums stay.
	v := &version{key: q.Key, body: source.body, etag: etagOf(source.body), header: source.header.Clone(), sums: source.sums, sumType: fullObject}
	if source.sumType != fullObject {
		v.sums = map[string]string{"crc64nvme": checksum("crc64nvme", v.body)}
	}
	if alg := strings.ToLower(q.Header.Get("x-amz-checksum-algorithm")); alg != "" {
		if !slices.Contains(algorithms, alg) {
			return errInvalidRequest.because("Checksum algorithm provided is unsupported.")
		}
		v.sums = map[string]string{alg: checksum(alg, v.body)}
	}
	if replace {
		if v.header, err = metadata(q.Header); err != nil {
			return err
		}
	}
	if err := s.write(q, v); err != nil {
		return err
	}
	if id != "" {
		q.w.Header().Set("x-amz-copy-source-version-id", id)
	}
	q.xml(struct {
		XMLName      xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ CopyObjectResult"`
		LastModified string
		ETag         string
	}{LastModified: v.modified.UTC().Format(xmlTime), ETag: `"` + v.etag + `"`})
	return nil
}
