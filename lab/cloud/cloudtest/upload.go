package cloudtest

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"hash"
	"reflect"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/cespare/xxhash/v2"
	"github.com/zeebo/xxh3"
)

// unknownToSDK are the checksums that the SDK sends and does not compute.
// https://github.com/aws/aws-sdk-go-v2/issues/3404
var unknownToSDK = map[types.ChecksumAlgorithm]func() hash.Hash{
	types.ChecksumAlgorithmMd5:       md5.New,
	types.ChecksumAlgorithmXxhash64:  func() hash.Hash { return xxhash.New() },
	types.ChecksumAlgorithmXxhash3:   func() hash.Hash { return xxh3.New() },
	types.ChecksumAlgorithmXxhash128: func() hash.Hash { return xxh3.New128() },
}

// Checksum is the field of an input or output of the SDK that holds the
// checksum of an algorithm.
func Checksum(of any, alg types.ChecksumAlgorithm) **string {
	return reflect.ValueOf(of).Elem().FieldByName("Checksum" + string(alg)).Addr().Interface().(**string)
}

// Sum sets the checksum of an upload's body where the SDK does not compute it.
func Sum(of any, alg types.ChecksumAlgorithm, body []byte) {
	if fresh, ok := unknownToSDK[alg]; ok {
		h := fresh()
		h.Write(body)
		*Checksum(of, alg) = aws.String(base64.StdEncoding.EncodeToString(h.Sum(nil)))
	}
}

// Upload puts an object in parts. An empty algorithm leaves the checksum to S3.
func Upload(ctx context.Context, api *s3.Client, bucket, key string, alg types.ChecksumAlgorithm, kind types.ChecksumType, parts ...[]byte) (*s3.CompleteMultipartUploadOutput, error) {
	up, err := api.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &bucket, Key: &key, ChecksumAlgorithm: alg, ChecksumType: kind})
	if err != nil {
		return nil, fmt.Errorf("create multipart upload: %w", err)
	}
	var done []types.CompletedPart
	for i, body := range parts {
		n := int32(i + 1)
		in := &s3.UploadPartInput{Bucket: &bucket, Key: &key, UploadId: up.UploadId, PartNumber: &n, Body: bytes.NewReader(body)}
		if _, ok := unknownToSDK[alg]; ok {
			Sum(in, alg, body)
		} else {
			in.ChecksumAlgorithm = alg
		}
		out, err := api.UploadPart(ctx, in)
		if err != nil {
			return nil, fmt.Errorf("upload part %d: %w", n, err)
		}
		p := types.CompletedPart{PartNumber: &n, ETag: out.ETag}
		if alg != "" {
			*Checksum(&p, alg) = *Checksum(out, alg)
		}
		done = append(done, p)
	}
	return api.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &bucket, Key: &key, UploadId: up.UploadId, ChecksumType: kind, MultipartUpload: &types.CompletedMultipartUpload{Parts: done},
	})
}
