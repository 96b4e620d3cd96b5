package orders

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/internal/awsconf/instance"
)

// A sealed object is newline-delimited JSON, one order a line in the order of
// acceptance, as Order.MarshalJSON writes it. Its key is
//
//	PREFIX/ROLEID:instance-id/TIME-NONCE.orders.ndjson
const (
	SealSuffix  = ".orders.ndjson"
	sealedBytes = 4 << 20 // an object's size, about
)

// uploadAPI is what sealing calls.
type uploadAPI interface {
	PutObject(context.Context, *s3.PutObjectInput, ...func(*s3.Options)) (*s3.PutObjectOutput, error)
}

// seal writes every order in the spool to S3. With ack, what an object holds is
// acknowledged once S3 has it. The forwarder must not run.
func (s *Service) seal(ctx context.Context, ack bool) (int, error) {
	bucket, prefix, err := settings.SplitS3(strings.TrimSuffix(s.target.SealTo, "/") + "/x")
	if err != nil {
		return 0, fmt.Errorf("seal orders: %w", err)
	}
	prefix = strings.Trim(strings.TrimSuffix(prefix, "x"), "/")
	sender, err := s.target.Sender(ctx)
	if err != nil {
		return 0, fmt.Errorf("seal orders: %w", err)
	}
	var api uploadAPI
	if s.Uploader != nil {
		api = s.Uploader(s.target.AWS)
	} else {
		api = instance.S3(s.target.AWS, "")
	}
	s.spool.Rewind()
	sealed := 0
	for {
		var body bytes.Buffer
		var seqs []uint64
		for body.Len() < sealedBytes {
			recs, err := s.spool.TryRead(256, 1<<20)
			if err != nil {
				return sealed, fmt.Errorf("seal orders: %w", err)
			}
			if len(recs) == 0 {
				break
			}
			for _, r := range recs {
				o, err := DecodeRecord(r.Data)
				if err != nil {
					continue // stays in the spool
				}
				line, err := json.Marshal(o)
				if err != nil {
					return sealed, fmt.Errorf("seal orders: %w", err)
				}
				body.Write(append(line, '\n'))
				seqs = append(seqs, r.Seq)
			}
		}
		if len(seqs) == 0 {
			return sealed, nil
		}
		now := time.Now()
		id := NewID(now)
		key := fmt.Sprintf("%s/%s-%s%s", sender, now.UTC().Format("20060102T150405.000Z"), hex.EncodeToString(id[12:]), SealSuffix)
		if prefix != "" {
			key = prefix + "/" + key
		}
		_, err := api.PutObject(ctx, &s3.PutObjectInput{
			Bucket: &bucket, Key: &key, Body: bytes.NewReader(body.Bytes()),
			ContentType: aws.String("application/x-ndjson"), ChecksumAlgorithm: types.ChecksumAlgorithmSha256,
		})
		if err != nil {
			return sealed, fmt.Errorf("seal orders to s3://%s/%s: %w", bucket, key, err)
		}
		sealed += len(seqs)
		if ack {
			s.spool.Ack(seqs...)
		}
	}
}

// ReadSealed reads a sealed object. Each line must be whole: a cut object is
// an error, not fewer orders.
func ReadSealed(r io.Reader) ([]*Order, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read sealed orders: %w", err)
	}
	if len(b) > 0 && b[len(b)-1] != '\n' {
		return nil, fmt.Errorf("read sealed orders: the last line is cut")
	}
	var out []*Order
	for n := 1; len(b) > 0; n++ {
		line, rest, _ := bytes.Cut(b, []byte("\n"))
		b = rest
		o := new(Order)
		if err := json.Unmarshal(line, o); err != nil {
			return nil, fmt.Errorf("read sealed orders: line %d: %w", n, err)
		}
		out = append(out, o)
	}
	return out, nil
}
