package orders

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"
)

// queueAPI is what forwarding calls.
type queueAPI interface {
	SendMessageBatch(context.Context, *sqs.SendMessageBatchInput, ...func(*sqs.Options)) (*sqs.SendMessageBatchOutput, error)
	GetQueueUrl(context.Context, *sqs.GetQueueUrlInput, ...func(*sqs.Options)) (*sqs.GetQueueUrlOutput, error)
	GetQueueAttributes(context.Context, *sqs.GetQueueAttributesInput, ...func(*sqs.Options)) (*sqs.GetQueueAttributesOutput, error)
}

// NewClient returns an SQS client fit for the forwarder: as many kept
// connections as there are sends at once, and no retries of its own, which the
// forwarder does better as it knows the other batches.
func NewClient(cfg aws.Config, concurrency int) *sqs.Client {
	httpClient := awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.MaxIdleConnsPerHost = max(concurrency, 2)
		t.MaxConnsPerHost = 0
		t.ResponseHeaderTimeout = 30 * time.Second
	})
	if b, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok { // keeps a private CA and a proxy
		httpClient = b.WithTransportOptions(func(t *http.Transport) {
			t.MaxIdleConnsPerHost = max(concurrency, 2)
			t.ResponseHeaderTimeout = 30 * time.Second
		})
	}
	return sqs.NewFromConfig(cfg, func(o *sqs.Options) {
		o.Retryer = aws.NopRetryer{}
		// The signature covers the SHA-256 of what is sent: what SQS took was
		// it. The MD5 sums that it answers could only say so again.
		o.DisableMessageChecksumValidation = true
		if _, own := cfg.HTTPClient.(*awshttp.BuildableClient); own || cfg.HTTPClient == nil {
			o.HTTPClient = httpClient
		}
	})
}

// Kinds of failure of a send, as they are counted and reported.
const (
	KindThrottled   = "throttled"
	KindCredentials = "credentials" // expired, missing or refused
	KindDenied      = "denied"
	KindGone        = "queue_missing"
	KindRefused     = "refused" // the content
	KindServer      = "server"
	KindNetwork     = "network"
	KindOther       = "other"
)

// kindOf sorts an error of a whole call. Only KindRefused may lead to parking:
// whatever is not known for sure to be the message's own fault is retried.
func kindOf(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		if k := kindOfCode(api.ErrorCode()); k != KindOther {
			return k
		}
		var resp *awshttp.ResponseError
		switch {
		case errors.As(err, &resp) && resp.HTTPStatusCode() == http.StatusTooManyRequests:
			return KindThrottled
		case errors.As(err, &resp) && resp.HTTPStatusCode() >= 500:
			return KindServer
		case errors.As(err, &resp) && resp.HTTPStatusCode() == http.StatusForbidden:
			return KindDenied
		}
		return KindOther
	}
	var resp *awshttp.ResponseError
	if errors.As(err, &resp) && resp.HTTPStatusCode() >= 500 {
		return KindServer
	}
	if text := err.Error(); strings.Contains(text, "get credentials") || strings.Contains(text, "refresh cached credentials") {
		// The SDK has no error type for this.
		return KindCredentials
	}
	return KindNetwork
}

// kindOfCode sorts an error code of a call or of one entry of a batch.
func kindOfCode(code string) string {
	// The query-compatible header brings legacy names.
	code = strings.TrimPrefix(code, "AWS.SimpleQueueService.")
	switch code {
	case "RequestThrottled", "ThrottlingException", "Throttling", "ThrottledException", "RequestLimitExceeded", "OverLimit", "TooManyRequestsException", "KmsThrottled", "SlowDown":
		return KindThrottled
	case "ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSignatureException", "MissingAuthenticationToken", "MissingAuthenticationTokenException", "RequestExpired", "IncompleteSignature", "AuthFailure":
		return KindCredentials
	case "AccessDenied", "AccessDeniedException", "NotAuthorized", "OptInRequired", "InvalidSecurity", "KmsAccessDenied", "KmsDisabled", "KmsInvalidKeyUsage", "KmsInvalidState", "KmsNotFound", "KmsOptInRequired":
		return KindDenied
	case "QueueDoesNotExist", "NonExistentQueue", "QueueDeletedRecently", "InvalidAddress":
		return KindGone
	case "InvalidMessageContents", "InvalidAttributeValue", "InvalidParameterValue", "InvalidParameterCombination", "MissingParameter", "MessageTooLong", "BatchRequestTooLong", "UnsupportedOperation", "InvalidParameterValueException", "ValidationException", "ValidationError":
		return KindRefused
	case "InternalError", "InternalFailure", "ServiceUnavailable", "InternalServerError", "ServiceUnavailableException":
		return KindServer
	}
	return KindOther
}

// item is one spooled order in the forwarder's hands.
type item struct {
	seq   uint64
	order *Order
	size  int64
	alone bool // a batch with it was refused as a whole
	tries int
	since time.Time // held since
	due   time.Time // of the retry
	done  bool
}

// outcome is what one send has led to.
type outcome struct {
	batch  []*item
	failed map[int]*types.BatchResultErrorEntry // by index in batch
	err    error                                // of the whole call
	took   time.Duration
}

var stringType = aws.String("String")

// entry builds what SQS gets. The delay counts from the moment of acceptance.
func entry(o *Order, index int, fifo bool, now time.Time) types.SendMessageBatchRequestEntry {
	e := types.SendMessageBatchRequestEntry{
		Id:          aws.String(strconv.Itoa(index)),
		MessageBody: &o.Body,
	}
	id := o.ID.String()
	e.MessageAttributes = make(map[string]types.MessageAttributeValue, 1+len(o.Attributes))
	e.MessageAttributes[IDAttribute] = types.MessageAttributeValue{DataType: stringType, StringValue: &id}
	for name, value := range o.Attributes {
		e.MessageAttributes[name] = types.MessageAttributeValue{DataType: stringType, StringValue: aws.String(value)}
	}
	if o.Group != "" {
		e.MessageGroupId = &o.Group
	}
	if fifo {
		e.MessageDeduplicationId = &id
	} else if left := min(o.Delay-now.Sub(o.Accepted), o.Delay, MaxDelay); left > 0 { // the clock may have been set back
		e.DelaySeconds = int32((left + time.Second - 1) / time.Second)
	}
	return e
}

// send makes one call.
func send(ctx context.Context, api queueAPI, url string, fifo bool, batch []*item) outcome {
	now := time.Now()
	in := &sqs.SendMessageBatchInput{QueueUrl: &url, Entries: make([]types.SendMessageBatchRequestEntry, len(batch))}
	for i, it := range batch {
		in.Entries[i] = entry(it.order, i, fifo, now)
	}
	out, err := api.SendMessageBatch(ctx, in)
	res := outcome{batch: batch, err: err, took: time.Since(now)}
	if err != nil {
		return res
	}
	// What the answer does not name as successful was not sent.
	ok := make([]bool, len(batch))
	for i := range out.Successful {
		if n, err := strconv.Atoi(aws.ToString(out.Successful[i].Id)); err == nil && n >= 0 && n < len(ok) {
			ok[n] = true
		}
	}
	for i := range out.Failed {
		if n, err := strconv.Atoi(aws.ToString(out.Failed[i].Id)); err == nil && n >= 0 && n < len(ok) {
			res.fail(n, &out.Failed[i])
		}
	}
	for n := range ok {
		if !ok[n] && res.failed[n] == nil {
			res.fail(n, &types.BatchResultErrorEntry{Code: aws.String("Unanswered"), Message: aws.String("the answer does not mention the entry")})
		}
	}
	return res
}

func (o *outcome) fail(n int, e *types.BatchResultErrorEntry) {
	if o.failed == nil {
		o.failed = map[int]*types.BatchResultErrorEntry{}
	}
	o.failed[n] = e
}
