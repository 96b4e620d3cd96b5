package s3

import (
	"encoding/json"
	"encoding/xml"
	"io"
	"net/http"
	"strings"
)

// configuration is a document that a bucket keeps and gives back. None is
// acted on: objects do not expire, nothing is encrypted, and who may do what is
// decided by roles alone. A bucket policy that refuses requests without TLS
// would otherwise refuse every request to a lab, which speaks plain HTTP.
type configuration struct {
	subresource string
	absent      *Error
}

var configurations = map[string]configuration{
	"Encryption":        {"encryption", &Error{404, "ServerSideEncryptionConfigurationNotFoundError", "The server side encryption configuration was not found", nil}},
	"Lifecycle":         {"lifecycle", &Error{404, "NoSuchLifecycleConfiguration", "The lifecycle configuration does not exist", nil}},
	"OwnershipControls": {"ownershipControls", &Error{404, "OwnershipControlsNotFoundError", "The bucket ownership controls were not found", nil}},
	"Policy":            {"policy", &Error{404, "NoSuchBucketPolicy", "The bucket policy does not exist", nil}},
	"PublicAccessBlock": {"publicAccessBlock", &Error{404, "NoSuchPublicAccessBlockConfiguration", "The public access block configuration was not found", nil}},
}

// configOf finds the configuration of an operation's name, GetBucketPolicy.
func configOf(name string) (configuration, bool) {
	for _, verb := range []string{"Get", "Put", "Delete"} {
		if rest, ok := strings.CutPrefix(name, verb+"Bucket"); ok {
			c, ok := configurations[rest]
			return c, ok
		}
	}
	return configuration{}, false
}

const maxConfig = 1 << 20

func (s *Server) configure(q request, c configuration) error {
	var doc []byte
	if q.Method == http.MethodPut {
		var err error
		if doc, err = io.ReadAll(io.LimitReader(q.Body, maxConfig)); err != nil {
			return err
		}
		var any struct{}
		if c.subresource == "policy" && !json.Valid(doc) {
			return &Error{400, "MalformedPolicy", "Policies must be valid JSON and the first byte must be '{'", nil}
		} else if c.subresource != "policy" && xml.Unmarshal(doc, &any) != nil {
			return errMalformedXML
		}
	}
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	b, err := s.store.bucket(q.Bucket)
	if err != nil {
		return err
	}
	switch q.Method {
	case http.MethodPut:
		b.config[c.subresource] = doc
	case http.MethodDelete:
		delete(b.config, c.subresource)
		q.w.WriteHeader(http.StatusNoContent)
	default:
		have := b.config[c.subresource]
		if have == nil {
			return c.absent.with("BucketName", q.Bucket)
		}
		q.w.Header().Set("Content-Type", "application/xml")
		if c.subresource == "policy" {
			q.w.Header().Set("Content-Type", "application/json")
		}
		_, _ = q.w.Write(have) // a client that is gone has no use for an error
	}
	return nil
}
