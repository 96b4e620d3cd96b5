package s3

import (
	"encoding/xml"
	"errors"
	"io"
	"net/http"

	"github.com/johannesboyne/gofakes3"

	"github.com/lecafe/lecafe/lab/cloud/sigv4"
)

// Error is an S3 error with its HTTP status.
// https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
type Error struct {
	Status  int
	Code    string
	Message string
	Fields  [][2]string // further elements: Key, BucketName, ...
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// with returns a copy of e with one more element in its body.
func (e *Error) with(name, value string) *Error {
	c := *e
	c.Fields = append(c.Fields[:len(c.Fields):len(c.Fields)], [2]string{name, value})
	return &c
}

func (e *Error) because(message string) *Error {
	c := *e
	c.Message = message
	return &c
}

var (
	errAccessDenied       = &Error{403, "AccessDenied", "Access Denied", nil}
	errNoSuchBucket       = &Error{404, "NoSuchBucket", "The specified bucket does not exist", nil}
	errNoSuchKey          = &Error{404, "NoSuchKey", "The specified key does not exist.", nil}
	errNoSuchVersion      = &Error{404, "NoSuchVersion", "The specified version does not exist.", nil}
	errNoSuchUpload       = &Error{404, "NoSuchUpload", "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed.", nil}
	errMethodNotAllowed   = &Error{405, "MethodNotAllowed", "The specified method is not allowed against this resource.", nil}
	errPrecondition       = &Error{412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold", nil}
	errNotModified        = &Error{304, "NotModified", "Not Modified", nil}
	errInvalidRange       = &Error{416, "InvalidRange", "The requested range is not satisfiable", nil}
	errNotImplemented     = &Error{501, "NotImplemented", "A header or query you provided requests a function that is not implemented", nil}
	errInvalidArgument    = &Error{400, "InvalidArgument", "Invalid Argument", nil}
	errInvalidRequest     = &Error{400, "InvalidRequest", "Invalid Request", nil}
	errMalformedXML       = &Error{400, "MalformedXML", "The XML you provided was not well-formed or did not validate against our published schema", nil}
	errBadDigest          = &Error{400, "BadDigest", "The Content-MD5 or checksum value that you specified did not match what the server received.", nil}
	errInvalidDigest      = &Error{400, "InvalidDigest", "The Content-MD5 or checksum value that you specified is not valid.", nil}
	errIncompleteBody     = &Error{400, "IncompleteBody", "You did not provide the number of bytes specified by the Content-Length HTTP header.", nil}
	errMissingLength      = &Error{411, "MissingContentLength", "You must provide the Content-Length HTTP header.", nil}
	errKeyTooLong         = &Error{400, "KeyTooLongError", "Your key is too long", nil}
	errMetadataTooLarge   = &Error{400, "MetadataTooLarge", "Your metadata headers exceed the maximum allowed metadata size", nil}
	errTooLarge           = &Error{400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed object size.", nil}
	errTooSmall           = &Error{400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size", nil}
	errInvalidPart        = &Error{400, "InvalidPart", "One or more of the specified parts could not be found. The part may not have been uploaded, or the specified entity tag may not match the part's entity tag.", nil}
	errInvalidPartNumber  = &Error{416, "InvalidPartNumber", "The requested partnumber is not satisfiable", nil}
	errInvalidPartOrder   = &Error{400, "InvalidPartOrder", "The list of parts was not in ascending order. The parts list must be specified in order by part number.", nil}
	errBucketNotEmpty     = &Error{409, "BucketNotEmpty", "The bucket you tried to delete is not empty", nil}
	errOwnedByYou         = &Error{409, "BucketAlreadyOwnedByYou", "Your previous request to create the named bucket succeeded and you already own it.", nil}
	errInvalidBucketName  = &Error{400, "InvalidBucketName", "The specified bucket is not valid.", nil}
	errLocation           = &Error{400, "IllegalLocationConstraintException", "The location constraint is incompatible for the region specific endpoint this request was sent to.", nil}
	errWrongRegion        = &Error{400, "AuthorizationHeaderMalformed", "The authorization header is malformed; the region is wrong", nil}
	errACLNotSupported    = &Error{400, "AccessControlListNotSupported", "The bucket does not allow ACLs", nil}
	errPayloadHash        = &Error{400, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed.", nil}
	errSignatureMismatch  = &Error{403, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. Check your key and signing method.", nil}
	errInternal           = &Error{500, "InternalError", "We encountered an internal error. Please try again.", nil}
	errMalformedChunkBody = &Error{400, "InvalidChunkSizeError", "The aws-chunked body is not well formed", nil}
)

// ErrPayloadHash is what reading a request's body ends with when the body is
// not what x-amz-content-sha256 says.
var ErrPayloadHash error = errPayloadHash

// asError maps what went wrong to what S3 answers.
func asError(err error) *Error {
	var e *Error
	var fake interface{ ErrorCode() gofakes3.ErrorCode }
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, sigv4.ErrMismatch):
		return errSignatureMismatch
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errIncompleteBody
	case errors.Is(err, sigv4.ErrChunk):
		return errMalformedChunkBody
	case errors.As(err, &fake):
		return &Error{fake.ErrorCode().Status(), string(fake.ErrorCode()), fake.ErrorCode().Message(), nil}
	}
	return errInternal.because(err.Error())
}

// WriteError answers a request with an S3 error. HEAD and 304 carry no body.
func WriteError(w http.ResponseWriter, r *http.Request, e *Error) {
	h := w.Header()
	if h.Get("x-amz-request-id") == "" {
		h.Set("x-amz-request-id", randomID(8))
	}
	h.Del("ETag")
	if e.Status == http.StatusNotModified {
		w.WriteHeader(e.Status)
		return
	}
	h.Set("Content-Type", "application/xml")
	h.Del("Content-Length")
	w.WriteHeader(e.Status)
	if r.Method == http.MethodHead {
		return
	}
	body := struct {
		XMLName   xml.Name `xml:"Error"`
		Code      string
		Message   string
		Fields    []element
		Resource  string
		RequestID string `xml:"RequestId"`
		HostID    string `xml:"HostId"`
	}{Code: e.Code, Message: e.Message, Resource: r.URL.Path, RequestID: h.Get("x-amz-request-id"), HostID: randomID(16)}
	for _, f := range e.Fields {
		body.Fields = append(body.Fields, element{XMLName: xml.Name{Local: f[0]}, Value: f[1]})
	}
	writeXML(w, body)
}

// element is one of a name that is not known before.
type element struct {
	XMLName xml.Name
	Value   string `xml:",chardata"`
}

func writeXML(w io.Writer, v any) {
	// The status is sent already: a client that is gone is not told of it.
	_, _ = io.WriteString(w, xml.Header)
	_ = xml.NewEncoder(w).Encode(v)
}
