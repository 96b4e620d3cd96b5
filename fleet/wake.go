package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

type sqsAPI interface {
	GetQueueUrl(context.Context, *sqs.GetQueueUrlInput, ...func(*sqs.Options)) (*sqs.GetQueueUrlOutput, error)
	GetQueueAttributes(context.Context, *sqs.GetQueueAttributesInput, ...func(*sqs.Options)) (*sqs.GetQueueAttributesOutput, error)
	ReceiveMessage(context.Context, *sqs.ReceiveMessageInput, ...func(*sqs.Options)) (*sqs.ReceiveMessageOutput, error)
	DeleteMessageBatch(context.Context, *sqs.DeleteMessageBatchInput, ...func(*sqs.Options)) (*sqs.DeleteMessageBatchOutput, error)
}

// Waker reads the queue that agents send their reports to. A message only
// wakes: what it says is believed from S3 alone. It is looked at without being
// taken (it is visible again a second later), so that several watchers see it, and deleted
// once it is older than Keep, when every watcher has had its chance or has
// found the report by its own interval.
type Waker struct {
	API      sqsAPI
	Queue    string        // name or URL
	Keep     time.Duration // default 10m
	NoVerify bool          // take a message of any sender, for emulators
	Idle     time.Duration // pause after a receive that brought nothing new, default 2s

	// Refused is told of each message that is not believed, once; may be nil.
	Refused func(Refusal)
	// Notice is told what stands in the way; may be nil.
	Notice func(string)

	seen map[string]time.Time // message ID → sent
	ids  map[string]string    // report ID → sender
	told map[string]bool
}

var sessionForm = regexp.MustCompile(`^[A-Z0-9]{4,128}:i-[0-9a-f]{8,17}$`)

// Run sends the senders of new reports on wake until ctx ends. Errors of SQS
// are told through Notice and outlasted: the interval stands in.
func (k *Waker) Run(ctx context.Context, wake chan<- []string) error {
	k.seen, k.ids, k.told = map[string]time.Time{}, map[string]string{}, map[string]bool{}
	pause := time.Second
	var url string
	for {
		err := func() (err error) {
			if url == "" {
				if url, err = k.open(ctx); err != nil {
					return err
				}
			}
			fresh, senders, err := k.look(ctx, url)
			if err != nil {
				return err
			}
			if len(senders) > 0 {
				select {
				case wake <- senders:
				case <-ctx.Done():
				}
			}
			pause = cmp.Or(k.Idle, 2*time.Second)
			if fresh {
				pause = 0
			}
			return nil
		}()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errRedrive):
			k.notice(err.Error())
			return err
		case err != nil:
			k.notice(fmt.Sprintf("no wake-ups from queue %s: %v", k.Queue, err))
			pause = min(max(2*pause, time.Second), time.Minute)
		}
		if pause > 0 {
			t := time.NewTimer(pause)
			select {
			case <-ctx.Done():
				t.Stop()
				return ctx.Err()
			case <-t.C:
			}
		}
	}
}

func (k *Waker) notice(s string) {
	if k.Notice != nil && !k.told[s] {
		k.Notice(s)
	}
	k.told[s] = true
}

// errRedrive says that looking at messages would move them away.
var errRedrive = errors.New("the queue has a redrive policy, and looking at its messages would move them to the dead-letter queue: reports are found by the interval alone")

func (k *Waker) open(ctx context.Context) (string, error) {
	url := k.Queue
	if !strings.Contains(url, "://") {
		out, err := k.API.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &k.Queue})
		if err != nil {
			return "", fmt.Errorf("find the queue: %w", err)
		}
		url = aws.ToString(out.QueueUrl)
	}
	attr, err := k.API.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &url, AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameRedrivePolicy}})
	switch {
	case denied(err): // then it cannot be known; Deletes below need a permission anyway
	case err != nil:
		return "", fmt.Errorf("read the queue's attributes: %w", err)
	case attr.Attributes[string(types.QueueAttributeNameRedrivePolicy)] != "":
		return "", errRedrive
	}
	return url, nil
}

// look receives once. fresh says that there was something not seen before.
func (k *Waker) look(ctx context.Context, url string) (fresh bool, senders []string, err error) {
	out, err := k.API.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
		// One second: the SDK does not send a zero.
		QueueUrl: &url, MaxNumberOfMessages: 10, VisibilityTimeout: 1, WaitTimeSeconds: 20,
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameSenderId, types.MessageSystemAttributeNameSentTimestamp},
	})
	if err != nil {
		return false, nil, fmt.Errorf("receive: %w", err)
	}
	now := time.Now()
	keep := cmp.Or(k.Keep, 10*time.Minute)
	var stale []types.DeleteMessageBatchRequestEntry
	for _, m := range out.Messages {
		id := aws.ToString(m.MessageId)
		sent := now
		if ms, err := strconv.ParseInt(m.Attributes[string(types.MessageSystemAttributeNameSentTimestamp)], 10, 64); err == nil {
			sent = time.UnixMilli(ms)
		}
		if now.Sub(sent) > keep {
			stale = append(stale, types.DeleteMessageBatchRequestEntry{Id: aws.String(fmt.Sprintf("m%d", len(stale))), ReceiptHandle: m.ReceiptHandle})
		}
		if _, ok := k.seen[id]; ok {
			continue
		}
		k.seen[id] = sent
		fresh = true
		sender, no := k.sender(m)
		if no != nil {
			if k.Refused != nil {
				k.Refused(*no)
			}
			continue
		}
		senders = append(senders, sender)
	}
	for id, sent := range k.seen {
		if now.Sub(sent) > 2*keep {
			delete(k.seen, id)
		}
	}
	if len(k.ids) > 100_000 {
		clear(k.ids) // a replay of older ones only wakes
	}
	if len(stale) > 0 {
		if _, err := k.API.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: &url, Entries: stale}); err != nil {
			k.notice(fmt.Sprintf("old messages stay in queue %s: %v", k.Queue, err))
		}
	}
	return fresh, senders, nil
}

// sender returns who sent a report, or why the message is not believed.
func (k *Waker) sender(m types.Message) (string, *Refusal) {
	name := aws.ToString(m.MessageId)
	by := m.Attributes[string(types.MessageSystemAttributeNameSenderId)]
	if k.NoVerify {
		by = ""
	} else if !sessionForm.MatchString(by) {
		k.notice(fmt.Sprintf("a message's SenderId %q is not an instance's role session; an emulator may give all messages one: --no-verify-sender takes them", clip(by)))
		return "", &Refusal{Name: name, Reason: Forged, Detail: "its sender is no instance"}
	}
	rep, err := decodeMessage(aws.ToString(m.Body), by)
	if no, ok := asRefused(err); ok {
		_, instance, _ := strings.Cut(by, ":")
		return "", &Refusal{Name: name, InstanceID: instance, Reason: no.reason, Detail: no.detail}
	}
	if !sessionForm.MatchString(rep.Sender) {
		return "", &Refusal{Name: name, Reason: Malformed, Detail: "it names no sender"}
	}
	if _, instance, _ := strings.Cut(rep.Sender, ":"); rep.Instance.ID != instance {
		return "", &Refusal{Name: name, InstanceID: instance, Reason: Forged, Detail: fmt.Sprintf("it speaks of %q", clip(rep.Instance.ID))}
	}
	if first, ok := k.ids[rep.ID]; ok && first != rep.Sender {
		return "", &Refusal{Name: name, InstanceID: rep.Instance.ID, Reason: Replayed, Detail: "a report of this ID came from another sender"}
	}
	k.ids[rep.ID] = rep.Sender
	return rep.Sender, nil
}
