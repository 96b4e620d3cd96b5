package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	sqstypes "github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	ssmtypes "github.com/aws/aws-sdk-go-v2/service/ssm/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/internal/awsconf"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
)

// run is one row on one target: it notes what it saw.
type run struct {
	context.Context
	target
	t    *testing.T
	seen []string
}

func (r *run) note(format string, args ...any) { r.seen = append(r.seen, fmt.Sprintf(format, args...)) }

// code notes the error code of a call that must fail.
func (r *run) code(err error) {
	var e smithy.APIError
	switch {
	case err == nil:
		r.note("no error")
	case errors.As(err, &e):
		r.note("%s", e.ErrorCode())
	default:
		r.note("%v", err)
	}
}

// ok ends the row on an error.
func ok[T any](v T, err error) func(*run) T {
	return func(r *run) T {
		r.t.Helper()
		if err != nil {
			r.t.Fatalf("%s: %v", r.name, err)
		}
		return v
	}
}

// until polls a state that takes its time; the deadline is generous.
func (r *run) until(what string, done func() bool) {
	r.t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline.C:
			r.t.Fatalf("%s: no %s", r.name, what)
		case <-r.Done():
			r.t.Fatal(r.Err())
		}
	}
}

// rows are calls and what both targets must answer.
var rows = []struct {
	name string
	do   func(*run)
	want string
}{
	{"sts identity", identity, "arn:aws:iam"},
	{"ssm parameters", parameters, "1 ParameterAlreadyExists 2 two one ParameterNotFound [/conf/a /conf/b] invalid=[/nosuch] ParameterNotFound"},
	{"s3 objects", objects, "hello text/plain dark 206:ell 404:NoSuchKey InvalidRange NoSuchBucket deleted"},
	{"s3 composite checksums", composites, "DlO92UzOqkPsj6BFEq2Iwb682+o= xiYtHgAzdfvXcr5VSjBUL06UmE66g34EUf1qZzi3Cm4= 8xAQJw=="},
	{"s3 conditions", conditions, "PreconditionFailed PreconditionFailed NotModified PreconditionFailed ok"},
	{"s3 versions", versions, "one NoSuchKey one 2+1 back"},
	{"s3 listing", listing, "[a b/1 b/2 c]in2 [a c]+[b/] [b/1 b/2] [c]"},
	{"sqs standard", standardQueue, "x attr=1 hidden 1 ReceiptHandleIsInvalid InvalidParameterValue AWS.SimpleQueueService.NonExistentQueue"},
	{"sqs batches", batches, "3+0 AWS.SimpleQueueService.TooManyEntriesInBatchRequest AWS.SimpleQueueService.BatchEntryIdsNotDistinct AWS.SimpleQueueService.EmptyBatchRequest InvalidParameterValue"},
	{"sqs fifo", fifoQueue, "[1a] [2a] [1b]"},
	{"sqs dead letters", deadLetters, "poison then dead=poison"},
	{"ec2 images", images, "1 137112412989 InvalidAMIID.NotFound"},
	{"ec2 instances", instances, "DryRunOperation pending running required 1 worker #!/bin/true stopped running terminated InvalidInstanceID.NotFound"},
	{"ec2 images of instances", ownImages, "available cafe=yes self 1 gone"},
	{"ec2 launch templates", launchTemplates, "1 2 default=2 t3.small InvalidLaunchTemplateName.AlreadyExistsException InvalidLaunchTemplateName.NotFoundException"},
	{"ec2 security groups and keys", groupsAndKeys, "InvalidGroup.Duplicate InvalidKeyPair.Duplicate 0 InvalidGroup.NotFound"},
	{"autoscaling groups", scaling, "2 InService:2 3 launchtemplate=yes gone"},
}

func TestConformance(t *testing.T) {
	all := targets(t)
	for _, row := range rows {
		for _, g := range all {
			t.Run(row.name+"/"+g.name, func(t *testing.T) {
				r := &run{Context: t.Context(), target: g, t: t}
				if strings.HasPrefix(row.name, "ec2") || strings.HasPrefix(row.name, "autoscaling") {
					r.cfg = g.fast
				}
				r.cfg.RetryMaxAttempts = 1
				row.do(r)
				if got := strings.Join(r.seen, " "); got != row.want {
					t.Errorf("\n got %s\nwant %s", got, row.want)
				}
			})
		}
	}
}

func identity(r *run) {
	id := ok(sts.NewFromConfig(r.cfg).GetCallerIdentity(r, nil))(r)
	r.note("%s", strings.Join(strings.Split(strings.Replace(*id.Arn, "arn:aws:sts", "arn:aws:iam", 1), ":")[:3], ":"))
}

func parameters(r *run) {
	c := ssm.NewFromConfig(r.cfg)
	put := func(name, value string, overwrite bool) (*ssm.PutParameterOutput, error) {
		return c.PutParameter(r, &ssm.PutParameterInput{Name: &name, Value: &value, Type: ssmtypes.ParameterTypeString, Overwrite: &overwrite})
	}
	r.note("%d", ok(put("/conf/a", "one", false))(r).Version)
	_, err := put("/conf/a", "two", false)
	r.code(err)
	r.note("%d", ok(put("/conf/a", "two", true))(r).Version)
	for _, name := range []string{"/conf/a", "/conf/a:1"} {
		r.note("%s", *ok(c.GetParameter(r, &ssm.GetParameterInput{Name: &name}))(r).Parameter.Value)
	}
	_, err = c.GetParameter(r, &ssm.GetParameterInput{Name: aws.String("/nosuch")})
	r.code(err)
	ok(put("/conf/b", "x", false))(r)
	var names []string
	for _, p := range ok(c.GetParametersByPath(r, &ssm.GetParametersByPathInput{Path: aws.String("/conf")}))(r).Parameters {
		names = append(names, *p.Name)
	}
	slices.Sort(names)
	r.note("%v", names)
	r.note("invalid=%v", ok(c.GetParameters(r, &ssm.GetParametersInput{Names: []string{"/conf/a", "/nosuch"}}))(r).InvalidParameters)
	_, err = c.DeleteParameter(r, &ssm.DeleteParameterInput{Name: aws.String("/nosuch")})
	r.code(err)
}

func (r *run) bucket(name string) *s3.Client {
	c := awsconf.S3(r.cfg)
	ok(c.CreateBucket(r, &s3.CreateBucketInput{Bucket: &name}))(r)
	return c
}

func objects(r *run) {
	bucket, key := aws.String("conf-objects"), aws.String("dir/a b+c")
	c := r.bucket(*bucket)
	ok(c.PutObject(r, &s3.PutObjectInput{Bucket: bucket, Key: key, Body: strings.NewReader("hello"), ContentType: aws.String("text/plain"), Metadata: map[string]string{"roast": "dark"}}))(r)
	get := func(in *s3.GetObjectInput) (string, *s3.GetObjectOutput, error) {
		in.Bucket = bucket
		out, err := c.GetObject(r, in)
		if err != nil {
			return "", nil, err
		}
		b, err := io.ReadAll(out.Body)
		return string(b), out, err
	}
	body, out, err := get(&s3.GetObjectInput{Key: key})
	ok(0, err)(r)
	r.note("%s %s %s", body, *out.ContentType, out.Metadata["roast"])
	body, _, err = get(&s3.GetObjectInput{Key: key, Range: aws.String("bytes=1-3")})
	ok(0, err)(r)
	r.note("206:%s", body)
	_, _, err = get(&s3.GetObjectInput{Key: aws.String("nosuch")})
	r.note("404:%s", apiCode(err))
	_, _, err = get(&s3.GetObjectInput{Key: key, Range: aws.String("bytes=50-")})
	r.code(err)
	_, err = c.ListObjectsV2(r, &s3.ListObjectsV2Input{Bucket: aws.String("conf-nosuch")})
	r.code(err)
	ok(c.DeleteObjects(r, &s3.DeleteObjectsInput{Bucket: bucket, Delete: &s3types.Delete{Objects: []s3types.ObjectIdentifier{{Key: key}, {Key: aws.String("nosuch")}}}}))(r)
	ok(c.DeleteBucket(r, &s3.DeleteBucketInput{Bucket: bucket}))(r)
	r.note("deleted")
}

func apiCode(err error) string {
	var e smithy.APIError
	if errors.As(err, &e) {
		return e.ErrorCode()
	}
	return fmt.Sprint(err)
}

// composites are checksums of parts' checksums. moto computes them and leaves
// the number of parts and the type out; of part numbers in a GET it knows
// nothing.
func composites(r *run) {
	c := r.bucket("conf-composite")
	for _, alg := range []s3types.ChecksumAlgorithm{s3types.ChecksumAlgorithmSha1, s3types.ChecksumAlgorithmSha256, s3types.ChecksumAlgorithmCrc32} {
		ok(cloudtest.Upload(r, c, "conf-composite", "two", alg, "", make([]byte, 5<<20), []byte("end")))(r)
		out := ok(c.HeadObject(r, &s3.HeadObjectInput{Bucket: aws.String("conf-composite"), Key: aws.String("two"), ChecksumMode: s3types.ChecksumModeEnabled}))(r)
		sum, _, _ := strings.Cut(aws.ToString(*cloudtest.Checksum(out, alg)), "-")
		r.note("%s", sum)
	}
}

func conditions(r *run) {
	bucket, key := aws.String("conf-conditions"), aws.String("k")
	c := r.bucket(*bucket)
	put := func(match, none *string) (*s3.PutObjectOutput, error) {
		return c.PutObject(r, &s3.PutObjectInput{Bucket: bucket, Key: key, Body: strings.NewReader("x"), IfMatch: match, IfNoneMatch: none})
	}
	etag := ok(put(nil, aws.String("*")))(r).ETag
	_, err := put(nil, aws.String("*"))
	r.code(err)
	_, err = put(aws.String(`"00"`), nil)
	r.code(err)
	_, err = c.GetObject(r, &s3.GetObjectInput{Bucket: bucket, Key: key, IfNoneMatch: etag})
	r.code(err)
	_, err = c.GetObject(r, &s3.GetObjectInput{Bucket: bucket, Key: key, IfMatch: aws.String(`"00"`)})
	r.code(err)
	ok(put(etag, nil))(r)
	r.note("ok")
}

func versions(r *run) {
	bucket, key := aws.String("conf-versions"), aws.String("k")
	c := r.bucket(*bucket)
	ok(c.PutBucketVersioning(r, &s3.PutBucketVersioningInput{Bucket: bucket, VersioningConfiguration: &s3types.VersioningConfiguration{Status: "Enabled"}}))(r)
	put := func(body string) *string {
		return ok(c.PutObject(r, &s3.PutObjectInput{Bucket: bucket, Key: key, Body: strings.NewReader(body)}))(r).VersionId
	}
	one := put("one")
	put("two")
	read := func(id *string) (string, error) {
		out, err := c.GetObject(r, &s3.GetObjectInput{Bucket: bucket, Key: key, VersionId: id})
		if err != nil {
			return "", err
		}
		b, err := io.ReadAll(out.Body)
		return string(b), err
	}
	r.note("%s", ok(read(one))(r))
	marker := ok(c.DeleteObject(r, &s3.DeleteObjectInput{Bucket: bucket, Key: key}))(r)
	_, err := read(nil)
	r.code(err)
	r.note("%s", ok(read(one))(r))
	list := ok(c.ListObjectVersions(r, &s3.ListObjectVersionsInput{Bucket: bucket}))(r)
	r.note("%d+%d", len(list.Versions), len(list.DeleteMarkers))
	ok(c.DeleteObject(r, &s3.DeleteObjectInput{Bucket: bucket, Key: key, VersionId: marker.VersionId}))(r)
	if ok(read(nil))(r) == "two" {
		r.note("back")
	}
}

func listing(r *run) {
	bucket := aws.String("conf-listing")
	c := r.bucket(*bucket)
	for _, key := range []string{"c", "b/2", "a", "b/1"} {
		ok(c.PutObject(r, &s3.PutObjectInput{Bucket: bucket, Key: &key, Body: strings.NewReader(key)}))(r)
	}
	keys := func(in s3.ListObjectsV2Input) (names, prefixes []string, pages int) {
		in.Bucket = bucket
		p := s3.NewListObjectsV2Paginator(c, &in)
		for p.HasMorePages() {
			out := ok(p.NextPage(r))(r)
			for _, o := range out.Contents {
				names = append(names, *o.Key)
			}
			for _, o := range out.CommonPrefixes {
				prefixes = append(prefixes, *o.Prefix)
			}
			pages++
		}
		return names, prefixes, pages
	}
	names, _, pages := keys(s3.ListObjectsV2Input{MaxKeys: aws.Int32(3)})
	r.note("%vin%d", names, pages)
	names, prefixes, _ := keys(s3.ListObjectsV2Input{Delimiter: aws.String("/")})
	r.note("%v+%v", names, prefixes)
	names, _, _ = keys(s3.ListObjectsV2Input{Prefix: aws.String("b/")})
	r.note("%v", names)
	names, _, _ = keys(s3.ListObjectsV2Input{StartAfter: aws.String("b/2")})
	r.note("%v", names)
}

func (r *run) queue(name string, attributes map[string]string) (*sqs.Client, *string) {
	c := sqs.NewFromConfig(r.cfg)
	return c, ok(c.CreateQueue(r, &sqs.CreateQueueInput{QueueName: &name, Attributes: attributes}))(r).QueueUrl
}

func received(r *run, c *sqs.Client, q *string, n int32) []sqstypes.Message {
	return ok(c.ReceiveMessage(r, &sqs.ReceiveMessageInput{QueueUrl: q, MaxNumberOfMessages: n, MessageAttributeNames: []string{"All"}, MessageSystemAttributeNames: []sqstypes.MessageSystemAttributeName{"All"}}))(r).Messages
}

func bodies(messages []sqstypes.Message) (out []string) {
	for _, m := range messages {
		out = append(out, *m.Body)
	}
	return out
}

func standardQueue(r *run) {
	c, q := r.queue("conf", map[string]string{"MaximumMessageSize": "1024"})
	ok(c.SendMessage(r, &sqs.SendMessageInput{QueueUrl: q, MessageBody: aws.String("x"), MessageAttributes: map[string]sqstypes.MessageAttributeValue{"n": {DataType: aws.String("Number"), StringValue: aws.String("1")}}}))(r)
	got := received(r, c, q, 1)
	r.note("%s attr=%s", *got[0].Body, *got[0].MessageAttributes["n"].StringValue)
	if len(received(r, c, q, 1)) == 0 {
		r.note("hidden")
	}
	ok(c.ChangeMessageVisibility(r, &sqs.ChangeMessageVisibilityInput{QueueUrl: q, ReceiptHandle: got[0].ReceiptHandle, VisibilityTimeout: 0}))(r)
	r.note("%d", len(received(r, c, q, 1)))
	_, err := c.DeleteMessage(r, &sqs.DeleteMessageInput{QueueUrl: q, ReceiptHandle: aws.String("nonsense")})
	r.code(err)
	_, err = c.SendMessage(r, &sqs.SendMessageInput{QueueUrl: q, MessageBody: aws.String(strings.Repeat("x", 1025))})
	r.code(err)
	_, err = c.GetQueueUrl(r, &sqs.GetQueueUrlInput{QueueName: aws.String("conf-nosuch")})
	r.code(err)
}

func batches(r *run) {
	c, q := r.queue("conf-batches", nil)
	send := func(bodies ...string) (*sqs.SendMessageBatchOutput, error) {
		in := &sqs.SendMessageBatchInput{QueueUrl: q, Entries: []sqstypes.SendMessageBatchRequestEntry{}}
		for i, b := range bodies {
			id := fmt.Sprint("m", i)
			if b == "dup" {
				id = "dup"
			}
			in.Entries = append(in.Entries, sqstypes.SendMessageBatchRequestEntry{Id: &id, MessageBody: &b})
		}
		return c.SendMessageBatch(r, in)
	}
	out := ok(send("1", "2", "3"))(r)
	r.note("%d+%d", len(out.Successful), len(out.Failed))
	_, err := send(strings.Split("12345678901", "")...)
	r.code(err)
	_, err = send("dup", "dup")
	r.code(err)
	_, err = send()
	r.code(err)
	_, err = c.ReceiveMessage(r, &sqs.ReceiveMessageInput{QueueUrl: q, MaxNumberOfMessages: 11})
	r.code(err)
}

func fifoQueue(r *run) {
	c, q := r.queue("conf.fifo", map[string]string{"FifoQueue": "true"})
	send := func(group, dedup, body string) {
		ok(c.SendMessage(r, &sqs.SendMessageInput{QueueUrl: q, MessageBody: &body, MessageGroupId: &group, MessageDeduplicationId: &dedup}))(r)
	}
	send("1", "a", "1a")
	send("1", "b", "1b")
	send("2", "c", "2a")
	send("1", "a", "1a") // a duplicate; moto gives it an ID of its own
	one := received(r, c, q, 1)
	r.note("%v", bodies(one))
	r.note("%v", bodies(received(r, c, q, 10)))
	ok(c.DeleteMessage(r, &sqs.DeleteMessageInput{QueueUrl: q, ReceiptHandle: one[0].ReceiptHandle}))(r)
	r.note("%v", bodies(received(r, c, q, 10)))
}

func deadLetters(r *run) {
	c, dead := r.queue("conf-dead", nil)
	arn := ok(c.GetQueueAttributes(r, &sqs.GetQueueAttributesInput{QueueUrl: dead, AttributeNames: []sqstypes.QueueAttributeName{"QueueArn"}}))(r).Attributes["QueueArn"]
	_, q := r.queue("conf-alive", map[string]string{"RedrivePolicy": `{"deadLetterTargetArn":"` + arn + `","maxReceiveCount":1}`})
	ok(c.SendMessage(r, &sqs.SendMessageInput{QueueUrl: q, MessageBody: aws.String("poison")}))(r)
	got := received(r, c, q, 1)
	r.note("%s then", *got[0].Body)
	ok(c.ChangeMessageVisibility(r, &sqs.ChangeMessageVisibilityInput{QueueUrl: q, ReceiptHandle: got[0].ReceiptHandle, VisibilityTimeout: 0}))(r)
	received(r, c, q, 1)
	r.note("dead=%s", strings.Join(bodies(received(r, c, dead, 1)), ""))
}
