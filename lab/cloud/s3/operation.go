package s3

import (
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/lecafe/lecafe/lab/cloud/policy"
)

// Operation is what a request asks for, before anything is looked up.
type Operation struct {
	Name   string // GetObject, ListObjectsV2, ...
	Bucket string
	Key    string
}

// ARN returns the resource's ARN as policies name it.
func (o Operation) ARN() string {
	if o.Bucket == "" {
		return "*"
	}
	return arn(o.Bucket, o.Key)
}

func arn(bucket, key string) string {
	if key == "" {
		return "arn:aws:s3:::" + bucket
	}
	return "arn:aws:s3:::" + bucket + "/" + key
}

// Needs lists the permissions that the whole request needs. Per-object ones of
// DeleteObjects are checked by the server.
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html
func (o Operation) Needs(r *http.Request) []policy.Request {
	action := o.Name
	q := r.URL.Query()
	context := map[string]string{}
	versioned := q.Has("versionId")
	switch o.Name {
	case "GetObject", "HeadObject":
		action = "GetObject"
		if versioned {
			action = "GetObjectVersion"
		}
	case "DeleteObject":
		if versioned {
			action = "DeleteObjectVersion"
		}
	case "DeleteObjects":
		return nil
	case "ListObjects", "ListObjectsV2", "HeadBucket":
		action = "ListBucket"
		for _, key := range []string{"prefix", "delimiter", "max-keys"} {
			if q.Has(key) {
				context["s3:"+key] = q.Get(key)
			}
		}
	case "ListObjectVersions":
		action = "ListBucketVersions"
	case "ListBuckets":
		action = "ListAllMyBuckets"
	case "CopyObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload":
		action = "PutObject"
	case "ListParts":
		action = "ListMultipartUploadParts"
	case "ListMultipartUploads":
		action = "ListBucketMultipartUploads"
	}
	needs := []policy.Request{{Action: "s3:" + action, Resource: o.ARN(), Context: context}}
	if o.Name == "CopyObject" {
		if bucket, key, _, err := copySource(r.Header); err == nil {
			needs = append(needs, policy.Request{Action: "s3:GetObject", Resource: arn(bucket, key)})
		}
	}
	// https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
	if o.Name == "PutObject" && r.Header.Get("If-Match") != "" {
		needs = append(needs, policy.Request{Action: "s3:GetObject", Resource: o.ARN()})
	}
	return needs
}

// subresources are query names that make another operation of a request.
var subresources = []string{
	"accelerate", "acl", "analytics", "attributes", "cors", "encryption", "intelligent-tiering", "inventory", "legal-hold", "lifecycle",
	"logging", "metrics", "notification", "object-lock", "ownershipControls", "policy", "policyStatus", "publicAccessBlock", "replication",
	"requestPayment", "restore", "retention", "select", "tagging", "torrent", "website",
}

// OperationOf names a request's operation. Buckets are addressed by path, or by
// host under amazonaws.com and localhost.
func OperationOf(r *http.Request) Operation {
	var o Operation
	o.Bucket, o.Key = address(r)
	q := r.URL.Query()
	method := r.Method
	for _, name := range subresources {
		if q.Has(name) {
			verb := map[string]string{"GET": "Get", "HEAD": "Head", "PUT": "Put", "DELETE": "Delete", "POST": "Post"}[method]
			level := "Bucket"
			if o.Key != "" {
				level = "Object"
			}
			o.Name = verb + level + strings.ToUpper(name[:1]) + name[1:]
			return o
		}
	}
	switch {
	case o.Bucket == "":
		o.Name = map[string]string{"GET": "ListBuckets"}[method]
	case o.Key == "":
		o.Name = bucketOperation(method, q)
	default:
		o.Name = objectOperation(method, q, r.Header)
	}
	if o.Name == "" {
		o.Name = method
	}
	return o
}

func bucketOperation(method string, q url.Values) string {
	switch {
	case q.Has("versioning"):
		return map[string]string{"GET": "GetBucketVersioning", "PUT": "PutBucketVersioning"}[method]
	case q.Has("delete"):
		return map[string]string{"POST": "DeleteObjects"}[method]
	case method == "GET" && q.Has("location"):
		return "GetBucketLocation"
	case method == "GET" && q.Has("versions"):
		return "ListObjectVersions"
	case method == "GET" && q.Has("uploads"):
		return "ListMultipartUploads"
	case method == "GET" && q.Get("list-type") == "2":
		return "ListObjectsV2"
	}
	return map[string]string{"GET": "ListObjects", "PUT": "CreateBucket", "DELETE": "DeleteBucket", "HEAD": "HeadBucket"}[method]
}

func objectOperation(method string, q url.Values, h http.Header) string {
	upload := q.Has("uploadId")
	switch {
	case method == "POST" && q.Has("uploads"):
		return "CreateMultipartUpload"
	case method == "POST" && upload:
		return "CompleteMultipartUpload"
	case method == "PUT" && upload:
		if h.Get("x-amz-copy-source") != "" {
			return "UploadPartCopy"
		}
		return "UploadPart"
	case method == "DELETE" && upload:
		return "AbortMultipartUpload"
	case method == "GET" && upload:
		return "ListParts"
	case method == "PUT" && h.Get("x-amz-copy-source") != "":
		return "CopyObject"
	}
	return map[string]string{"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}[method]
}

func address(r *http.Request) (bucket, key string) {
	path := strings.TrimPrefix(r.URL.Path, "/")
	if bucket := bucketOfHost(r.Host); bucket != "" {
		return bucket, path
	}
	bucket, key, _ = strings.Cut(path, "/")
	return bucket, key
}

// https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html
func bucketOfHost(hostport string) string {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	if net.ParseIP(host) != nil {
		return ""
	}
	if rest, ok := strings.CutSuffix(host, ".localhost"); ok {
		bucket, _ := strings.CutSuffix(rest, ".s3")
		if bucket == "s3" {
			return ""
		}
		return bucket
	}
	if rest, ok := strings.CutSuffix(host, ".amazonaws.com"); ok {
		labels := strings.Split(rest, ".")
		if i := slices.Index(labels, "s3"); i > 0 {
			return strings.Join(labels[:i], ".")
		}
	}
	return ""
}
