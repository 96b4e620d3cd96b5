package orders

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// lookUp finds the queue's URL and reads its limits, again from time to time.
func (l *loop) lookUp(ctx context.Context, now time.Time) {
	l.f.mu.Lock()
	known := l.f.url != ""
	l.f.mu.Unlock()
	if now.Before(l.until) || known && now.Sub(l.looked) < attributesEvery {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if !known {
		url, err := queueURL(ctx, l.f.API, l.f.Queue)
		if err != nil {
			kind := kindOf(err)
			if kind == KindCredentials && l.f.Invalidate != nil {
				l.f.Invalidate()
			}
			l.failed(kind, err, time.Now())
			return
		}
		l.f.mu.Lock()
		l.f.url = url
		l.f.mu.Unlock()
	}
	l.looked = now
	out, err := l.f.API.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{
		QueueUrl:       aws.String(l.f.url),
		AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameMaximumMessageSize},
	})
	if err != nil {
		// Sending needs no such permission: without it SQS's own limit holds,
		// and what is too large for the queue is parked.
		l.f.Log.Warn("orders: the queue's MaximumMessageSize is not known", "queue", l.f.Queue, "error", err)
		return
	}
	if n, err := strconv.ParseInt(out.Attributes[string(types.QueueAttributeNameMaximumMessageSize)], 10, 64); err == nil && n > 0 {
		l.f.mu.Lock()
		l.f.limit = min(n, MaxMessage)
		l.f.mu.Unlock()
	}
}

// queueURL returns a queue's URL; a URL is its own.
func queueURL(ctx context.Context, api queueAPI, queue string) (string, error) {
	if strings.Contains(queue, "://") {
		return queue, nil
	}
	out, err := api.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &queue})
	if err != nil {
		return "", fmt.Errorf("get URL of queue %s: %w", queue, err)
	}
	return aws.ToString(out.QueueUrl), nil
}
