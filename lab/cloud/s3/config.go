package s3

import (
	"encoding/json"
	"encoding/xml"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/lecafe/lecafe/lab/cloud/policy"
)

// configuration is a document that a bucket keeps and gives back. The policy is
// in force, and what public access block says of policies; the others are not
// acted on: objects do not expire, nothing is encrypted.
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
	var parsed *policy.Resource
	if q.Method == http.MethodPut {
		var err error
		if doc, err = io.ReadAll(io.LimitReader(q.Body, maxConfig)); err != nil {
			return err
		}
		var any struct{}
		if c.subresource == "policy" {
			if parsed, err = parsePolicy(q.Bucket, doc); err != nil {
				return err
			}
		} else if xml.Unmarshal(doc, &any) != nil {
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
		if parsed != nil && parsed.Public() && b.blocks("BlockPublicPolicy") {
			return errAccessDenied.because("public policies are blocked by the BlockPublicPolicy block public access setting")
		}
		b.config[c.subresource] = doc
		s.inForce(b, c.subresource, parsed)
	case http.MethodDelete:
		delete(b.config, c.subresource)
		s.inForce(b, c.subresource, nil)
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

// parsePolicy reads a bucket's policy as S3 does: it is about this bucket and
// its objects. What S3 takes and this fake does not model is refused by name.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutBucketPolicy.html
func parsePolicy(bucket string, doc []byte) (*policy.Resource, error) {
	malformed := func(why string) error { return &Error{400, "MalformedPolicy", why, nil} }
	if !json.Valid(doc) || doc[0] != '{' {
		return nil, malformed("Policies must be valid JSON and the first byte must be '{'")
	}
	p, err := policy.ParseResource(string(doc))
	if err != nil {
		return nil, malformed(err.Error())
	}
	own := arn(bucket, "")
	if slices.ContainsFunc(p.Resources(), func(r string) bool {
		return r != own && !strings.HasPrefix(r, own+"/") && !strings.HasPrefix(r, own+"*")
	}) {
		return nil, malformed("Policy has invalid resource")
	}
	if slices.ContainsFunc(p.Actions(), func(a string) bool { return a != "*" && !strings.HasPrefix(strings.ToLower(a), "s3:") }) {
		return nil, malformed("Policy has invalid action")
	}
	return p, nil
}

// blocks says whether a public access block has a setting.
func (b *bucket) blocks(setting string) bool {
	var block struct {
		Settings []element `xml:",any"`
	}
	_ = xml.Unmarshal(b.config["publicAccessBlock"], &block) // checked when it was put; there may be none
	return slices.ContainsFunc(block.Settings, func(e element) bool {
		return e.XMLName.Local == setting && strings.EqualFold(strings.TrimSpace(e.Value), "true")
	})
}

// access is what a bucket says of who may do what.
type access struct {
	policy     *policy.Resource // nil for none
	restricted bool             // a public policy holds within the account only
}

// inForce takes a changed policy, or public access block, into account.
func (s *Server) inForce(b *bucket, subresource string, p *policy.Resource) {
	s.accessMu.Lock()
	defer s.accessMu.Unlock()
	a := s.access[b.name]
	switch subresource {
	case "policy":
		a.policy = p
	case "publicAccessBlock":
		a.restricted = b.blocks("RestrictPublicBuckets")
	}
	s.access[b.name] = a
}

// Decide says what the policy of the bucket says of a request for it or for an
// object in it. It may be asked while a request is served.
func (s *Server) Decide(r policy.Request, by policy.Caller, owner string) policy.Decision {
	name, _, _ := strings.Cut(strings.TrimPrefix(r.Resource, arn("", "")), "/")
	s.accessMu.RLock()
	a := s.access[name]
	s.accessMu.RUnlock()
	if a.policy == nil {
		return policy.Silent
	}
	d := a.policy.Evaluate(r, by, owner)
	if d == policy.Allowed && a.restricted && by.Service == "" && by.Account != owner && a.policy.Public() {
		return policy.Silent
	}
	return d
}
