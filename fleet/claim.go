package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
)

// What watchers tell each other of what they do: claims on instances and places
// in the brake's count, objects written with conditional PUTs.

// slot takes a place in the count of the fingerprint: 1 to After, or 0 where
// all are taken. It returns the instances counted so far.
func (r *Remedy) slot(ctx context.Context, fp Fingerprint, instance string) (int, []string, error) {
	type place struct {
		Instance    string      `json:"instance_id"`
		At          time.Time   `json:"at"`
		Fingerprint Fingerprint `json:"fingerprint"`
	}
	var failed []string
	for n := 1; n <= r.after(); n++ {
		key := r.key(fmt.Sprintf("brake/%s/%d.json", fp.hash(), n))
		mine := place{instance, r.now(), fp}
		_, err := r.put(ctx, key, mine, "")
		if errors.Is(err, errTaken) {
			var old place
			var etag string
			if etag, err = r.get(ctx, key, &old); err != nil {
				return 0, nil, err
			}
			if old.Instance == instance {
				return n, append(failed, instance), nil
			}
			if r.now().Sub(old.At) < r.window() {
				failed = append(failed, old.Instance)
				continue
			}
			// Too long ago to count. Of several watchers one gets it.
			if _, err = r.put(ctx, key, mine, etag); errors.Is(err, errTaken) {
				n--
				continue
			}
		}
		if err != nil {
			return 0, nil, err
		}
		return n, append(failed, instance), nil
	}
	return 0, failed, nil
}

// fleetDir holds what watchers write, beside the senders' directories. No
// instance's policy lets it write there.
const fleetDir = "_fleet/"

func (r *Remedy) key(name string) string {
	return strings.TrimPrefix(r.Prefix+"/"+fleetDir+name, "/")
}

// errTaken says that the object is there already, or is another than expected.
var errTaken = errors.New("taken")

// put writes v where nothing is, or over the object with etag.
func (r *Remedy) put(ctx context.Context, key string, v any, etag string) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("write %s: %w", key, err)
	}
	in := &s3.PutObjectInput{Bucket: &r.Bucket, Key: &key, Body: bytes.NewReader(b), ContentType: aws.String("application/json")}
	if etag == "" {
		in.IfNoneMatch = aws.String("*")
	} else {
		in.IfMatch = &etag
	}
	out, err := r.S3.PutObject(ctx, in)
	var ae smithy.APIError
	if errors.As(err, &ae) && (ae.ErrorCode() == "PreconditionFailed" || ae.ErrorCode() == "ConditionalRequestConflict") {
		return "", errTaken
	}
	if err != nil {
		return "", fmt.Errorf("write s3://%s/%s: %w", r.Bucket, key, err)
	}
	return aws.ToString(out.ETag), nil
}

func (r *Remedy) get(ctx context.Context, key string, v any) (etag string, err error) {
	out, err := r.S3.GetObject(ctx, &s3.GetObjectInput{Bucket: &r.Bucket, Key: &key})
	if err != nil {
		return "", fmt.Errorf("read s3://%s/%s: %w", r.Bucket, key, err)
	}
	defer out.Body.Close()
	b, err := io.ReadAll(io.LimitReader(out.Body, 64<<10))
	if err != nil {
		return "", fmt.Errorf("read s3://%s/%s: %w", r.Bucket, key, err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return "", fmt.Errorf("read s3://%s/%s: %w", r.Bucket, key, err)
	}
	return aws.ToString(out.ETag), nil
}
