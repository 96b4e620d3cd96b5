package sinks

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/lecafe/lecafe/agent/report"
)

// Names of the sinks, as the outbox remembers them.
const (
	NameS3      = "s3"
	NameSQS     = "sqs"
	NameHook    = "lifecycle_hook"
	NameWebhook = "webhook"
)

type putObject func(context.Context, *s3.PutObjectInput, ...func(*s3.Options)) (*s3.PutObjectOutput, error)

// S3 puts reports under their keys.
type S3 struct {
	Put            putObject
	Bucket, Prefix string
	Arrived        func(*report.Report) // told of each that is there; may be nil
	Denied         func()               // told that the role may not put there; may be nil
}

// Name is NameS3.
func (S3) Name() string { return NameS3 }

// Send puts the report at report.KeyOf. If-None-Match makes a resend a no-op,
// so that nobody can replace what an instance has said once.
func (s S3) Send(ctx context.Context, r *report.Report) error {
	doc, err := report.Encode(r)
	if err != nil {
		return err
	}
	key := report.KeyOf(s.Prefix, r).String()
	_, err = s.Put(ctx, &s3.PutObjectInput{
		Bucket: &s.Bucket, Key: &key, Body: bytes.NewReader(doc), ContentLength: aws.Int64(int64(len(doc))),
		ContentType: aws.String("application/json"), IfNoneMatch: aws.String("*"),
	})
	switch {
	case err == nil, httpStatus(err) == http.StatusPreconditionFailed:
		if s.Arrived != nil {
			s.Arrived(r)
		}
		return nil
	case code(err) == "NoSuchBucket":
		return describe("s3://"+s.Bucket, err, "create the bucket or correct report.s3.bucket")
	case httpStatus(err) == http.StatusForbidden:
		if s.Denied != nil {
			s.Denied()
		}
		return describe("s3://"+s.Bucket, err, "allow the role s3:PutObject on "+s.Bucket+"/"+s.Prefix+"/${aws:userid}/*")
	}
	return describe("s3://"+s.Bucket, err, "the agent tries again")
}

// Attribute is the SQS message attribute that carries the report's key, so
// that a consumer knows sender and verdict without parsing.
const Attribute = "lecafe-report-key"

type (
	getQueueURL func(context.Context, *sqs.GetQueueUrlInput, ...func(*sqs.Options)) (*sqs.GetQueueUrlOutput, error)
	sendMessage func(context.Context, *sqs.SendMessageInput, ...func(*sqs.Options)) (*sqs.SendMessageOutput, error)
)

// SQS sends reports as messages whose body is the report.
type SQS struct {
	URL     getQueueURL
	Message sendMessage
	Queue   string // name or URL
	Prefix  string // of the key in Attribute

	mu  sync.Mutex
	url string
}

// Name is NameSQS.
func (*SQS) Name() string { return NameSQS }

func (s *SQS) queueURL(ctx context.Context) (string, error) {
	if strings.Contains(s.Queue, "://") {
		return s.Queue, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.url != "" {
		return s.url, nil
	}
	out, err := s.URL(ctx, &sqs.GetQueueUrlInput{QueueName: &s.Queue})
	if err != nil {
		return "", err
	}
	s.url = aws.ToString(out.QueueUrl)
	return s.url, nil
}

// Send sends the report. On a FIFO queue its ID makes resends one message.
func (s *SQS) Send(ctx context.Context, r *report.Report) error {
	doc, err := report.Encode(r)
	if err != nil {
		return err
	}
	url, err := s.queueURL(ctx)
	if err != nil {
		return describe("queue "+s.Queue, err, "create the queue, correct report.sqs.queue, or allow the role sqs:GetQueueUrl and sqs:SendMessage")
	}
	in := &sqs.SendMessageInput{
		QueueUrl: &url, MessageBody: aws.String(strings.Map(allowed, string(doc))),
		MessageAttributes: map[string]types.MessageAttributeValue{
			Attribute: {DataType: aws.String("String"), StringValue: aws.String(report.KeyOf(s.Prefix, r).String())},
		},
	}
	if strings.HasSuffix(url, ".fifo") {
		group := r.Instance.ID
		if group == "" {
			group = "unknown"
		}
		in.MessageGroupId, in.MessageDeduplicationId = &group, &r.ID
	}
	if _, err = s.Message(ctx, in); err != nil {
		return describe("queue "+s.Queue, err, "correct report.sqs.queue, or allow the role sqs:SendMessage")
	}
	return nil
}

// allowed maps what SQS refuses to the replacement character. JSON escapes
// control characters already.
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html
func allowed(r rune) rune {
	if r == 0xFFFE || r == 0xFFFF {
		return 0xFFFD
	}
	return r
}

func (s S3) String() string { return fmt.Sprintf("s3://%s/%s", s.Bucket, s.Prefix) }
