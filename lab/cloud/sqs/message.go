package sqs

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lecafe/lecafe/lab/cloud/jsonrpc"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

type attribute struct {
	DataType    string
	StringValue *string `json:",omitempty"`
	BinaryValue *string `json:",omitempty"` // base64
}

type entry struct {
	ID                      string `json:"Id"`
	MessageBody             string
	DelaySeconds            *int
	MessageAttributes       map[string]attribute
	MessageSystemAttributes map[string]attribute
	MessageDeduplicationId  string
	MessageGroupId          string
}

func (e entry) size() int {
	n := len(e.MessageBody)
	for name, a := range e.MessageAttributes {
		n += len(name) + len(a.DataType)
		if a.StringValue != nil {
			n += len(*a.StringValue)
		}
		if a.BinaryValue != nil {
			n += base64.StdEncoding.DecodedLen(len(*a.BinaryValue))
		}
	}
	return n
}

// valid says whether SQS takes every character:
// #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html
func valid(s string) bool {
	for _, r := range s {
		switch {
		case r == '\t', r == '\n', r == '\r':
		case r < 0x20, r == 0xFFFE, r == 0xFFFF:
			return false
		}
	}
	return utf8.ValidString(s)
}

var (
	attributeName = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,255}$`)
	dataType      = regexp.MustCompile(`^(String|Number|Binary)(\..{1,249})?$`)
	token         = regexp.MustCompile("^[A-Za-z0-9!\"#$%&'()*+,./:;<=>?@\\[\\\\\\]^_`{|}~-]{1,128}$")
)

// check validates one message for the queue.
func (q *queue) check(e entry) error {
	if e.MessageBody == "" {
		return missingParameter("MessageBody")
	}
	if !valid(e.MessageBody) {
		return failure("InvalidMessageContents", "InvalidMessageContents", "Message body contains characters outside the allowed set: #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF")
	}
	if limit := q.number("MaximumMessageSize"); e.size() > limit {
		return invalidParameter("One or more parameters are invalid. Reason: Message must be shorter than %d bytes.", limit)
	}
	if err := checkAttributes(e.MessageAttributes); err != nil {
		return err
	}
	for name := range e.MessageSystemAttributes {
		if name != "AWSTraceHeader" {
			return invalidParameter("Message system attribute name '%s' is invalid.", name)
		}
	}
	if d := e.DelaySeconds; d != nil {
		if *d < 0 || *d > 900 {
			return invalidParameter("Value %d for parameter DelaySeconds is invalid. Reason: DelaySeconds must be >= 0 and <= 900.", *d)
		}
		if q.fifo && *d > 0 {
			return invalidParameter("Value %d for parameter DelaySeconds is invalid. Reason: The request include parameter that is not valid for this queue type.", *d)
		}
	}
	for name, value := range map[string]string{"MessageGroupId": e.MessageGroupId, "MessageDeduplicationId": e.MessageDeduplicationId} {
		if value != "" && !token.MatchString(value) {
			return invalidParameter("Value %s for parameter %s is invalid. Reason: %s can only include alphanumeric and punctuation characters. 1 to 128 in length.", value, name, name)
		}
	}
	if !q.fifo {
		// A group ID makes a fair queue of a standard one since July 2025.
		if e.MessageDeduplicationId != "" {
			return invalidParameter("Value %s for parameter MessageDeduplicationId is invalid. Reason: The request includes a parameter that is not valid for this queue type.", e.MessageDeduplicationId)
		}
		return nil
	}
	if e.MessageGroupId == "" {
		return missingParameter("MessageGroupId")
	}
	if e.MessageDeduplicationId == "" && q.attributes["ContentBasedDeduplication"] != "true" {
		return invalidParameter("The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided explicitly")
	}
	return nil
}

// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-metadata.html
func checkAttributes(attributes map[string]attribute) error {
	if len(attributes) > 10 {
		return invalidParameter("Number of message attributes [%d] exceeds the allowed maximum [10].", len(attributes))
	}
	for name, a := range attributes {
		lower := strings.ToLower(name)
		if !attributeName.MatchString(name) || strings.HasPrefix(lower, "aws.") || strings.HasPrefix(lower, "amazon.") || strings.Contains(name, "..") || strings.HasSuffix(name, ".") {
			return invalidParameter("Message attribute name '%s' is invalid.", name)
		}
		if !dataType.MatchString(a.DataType) {
			return invalidParameter("The message attribute '%s' has an invalid message attribute type, the set of supported type prefixes is Binary, Number, and String.", name)
		}
		value := a.StringValue
		if strings.HasPrefix(a.DataType, "Binary") {
			value = a.BinaryValue
		}
		if value == nil || *value == "" {
			return invalidParameter("The message attribute '%s' must contain a non-empty message attribute value for message attribute type '%s'.", name, a.DataType)
		}
		if strings.HasPrefix(a.DataType, "Number") {
			if _, err := strconv.ParseFloat(*value, 64); err != nil {
				return invalidParameter("Can't cast the value of message (user) attribute '%s' to a number.", name)
			}
		}
		if a.StringValue != nil && !valid(*a.StringValue) {
			return failure("InvalidMessageContents", "InvalidMessageContents", "The message attribute '%s' contains characters outside the allowed set.", name)
		}
	}
	return nil
}

// send enqueues a checked message and returns the answer's fields.
func (q *queue) send(e entry, caller wire.Caller) map[string]string {
	m := &message{
		body: e.MessageBody, attributes: e.MessageAttributes, system: e.MessageSystemAttributes, sender: caller.UserID,
		group: e.MessageGroupId, dedup: e.MessageDeduplicationId, md5: md5Hex([]byte(e.MessageBody)), md5a: attributesMD5(e.MessageAttributes),
	}
	if q.fifo && m.dedup == "" {
		sum := sha256.Sum256([]byte(e.MessageBody))
		m.dedup = hex.EncodeToString(sum[:])
	}
	delay := q.seconds("DelaySeconds")
	if e.DelaySeconds != nil && !q.fifo {
		delay = time.Duration(*e.DelaySeconds) * time.Second
	}
	// A duplicate is answered with the digests of what was sent now and the ID
	// of what was sent first.
	sent := q.add(m, delay)
	out := map[string]string{"MessageId": sent.id, "MD5OfMessageBody": m.md5}
	if m.md5a != "" {
		out["MD5OfMessageAttributes"] = m.md5a
	}
	if sent.sequence != "" {
		out["SequenceNumber"] = sent.sequence
	}
	return out
}

func md5Hex(b []byte) string {
	sum := md5.Sum(b) // SQS's digest; not a protection
	return hex.EncodeToString(sum[:])
}

// attributesMD5 is the digest of message attributes:
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-metadata.html#sqs-attributes-md5-message-digest-calculation
func attributesMD5(attributes map[string]attribute) string {
	if len(attributes) == 0 {
		return ""
	}
	var b []byte
	put := func(s []byte) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		a := attributes[name]
		put([]byte(name))
		put([]byte(a.DataType))
		if a.BinaryValue != nil {
			raw, _ := base64.StdEncoding.DecodeString(*a.BinaryValue)
			b = append(b, 2)
			put(raw)
		} else {
			b = append(b, 1)
			put([]byte(*a.StringValue))
		}
	}
	return md5Hex(b)
}

func (s *Server) sendMessage(ctx context.Context, _ *http.Request, in *struct {
	QueueUrl string
	entry
}) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queue(ctx, in.QueueUrl)
	if err != nil {
		return nil, err
	}
	if err := q.check(in.entry); err != nil {
		return nil, err
	}
	return q.send(in.entry, wire.CallerFrom(ctx)), nil
}

type batchFailure struct {
	ID          string `json:"Id"`
	SenderFault bool
	Code        string
	Message     string
}

func failed(id string, err error) batchFailure {
	f := batchFailure{ID: id, SenderFault: true, Code: "InternalError", Message: err.Error()}
	if e, ok := errors.AsType[*jsonrpc.Error](err); ok {
		f.Code, f.Message = e.Code, e.Message
		if e.Query != "" {
			f.Code = e.Query
		}
	}
	return f
}

const batchLimit = 10

var batchID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,80}$`)

// checkBatch validates what makes a whole batch fail.
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessageBatch.html
func checkBatch(ids []string) error {
	if len(ids) == 0 {
		return failure("EmptyBatchRequest", "AWS.SimpleQueueService.EmptyBatchRequest", "There should be at least one SendMessageBatchRequestEntry in the request.")
	}
	if len(ids) > batchLimit {
		return failure("TooManyEntriesInBatchRequest", "AWS.SimpleQueueService.TooManyEntriesInBatchRequest", "Maximum number of entries per request are 10. You have sent %d.", len(ids))
	}
	seen := map[string]bool{}
	for _, id := range ids {
		if !batchID.MatchString(id) {
			return failure("InvalidBatchEntryId", "AWS.SimpleQueueService.InvalidBatchEntryId", "A batch entry id can only contain alphanumeric characters, hyphens and underscores. It can be at most 80 letters long.")
		}
		if seen[id] {
			return failure("BatchEntryIdsNotDistinct", "AWS.SimpleQueueService.BatchEntryIdsNotDistinct", "Id %s repeated.", id)
		}
		seen[id] = true
	}
	return nil
}

// sendBatch answers 200 with Failed entries when single messages are refused.
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessageBatch.html
func (s *Server) sendBatch(ctx context.Context, _ *http.Request, in *struct {
	QueueUrl string
	Entries  []entry
}) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queue(ctx, in.QueueUrl)
	if err != nil {
		return nil, err
	}
	ids, total := make([]string, len(in.Entries)), 0
	for i, e := range in.Entries {
		ids[i] = e.ID
		total += e.size()
	}
	if err := checkBatch(ids); err != nil {
		return nil, err
	}
	if total > maxBytes {
		return nil, failure("BatchRequestTooLong", "AWS.SimpleQueueService.BatchRequestTooLong", "Batch requests cannot be longer than %d bytes. You have sent %d bytes.", maxBytes, total)
	}
	sent, refused := []map[string]string{}, []batchFailure{}
	for _, e := range in.Entries {
		if err := q.check(e); err != nil {
			refused = append(refused, failed(e.ID, err))
			continue
		}
		ok := q.send(e, wire.CallerFrom(ctx))
		ok["Id"] = e.ID
		sent = append(sent, ok)
	}
	return map[string]any{"Successful": sent, "Failed": refused}, nil
}

type receive struct {
	QueueUrl                    string
	AttributeNames              []string
	MessageSystemAttributeNames []string
	MessageAttributeNames       []string
	MaxNumberOfMessages         *int
	VisibilityTimeout           *int
	WaitTimeSeconds             *int
	ReceiveRequestAttemptId     string
}

func bounded(name string, value *int, fallback, low, high int) (int, error) {
	if value == nil {
		return fallback, nil
	}
	if *value < low || *value > high {
		return 0, invalidParameter("Value %d for parameter %s is invalid. Reason: Must be between %d and %d, if provided.", *value, name, low, high)
	}
	return *value, nil
}

// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html
func (s *Server) receiveMessage(ctx context.Context, _ *http.Request, in *receive) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queue(ctx, in.QueueUrl)
	if err != nil {
		return nil, err
	}
	n, err := bounded("MaxNumberOfMessages", in.MaxNumberOfMessages, 1, 1, 10)
	if err != nil {
		return nil, err
	}
	visibility, err := bounded("VisibilityTimeout", in.VisibilityTimeout, q.number("VisibilityTimeout"), 0, 43200)
	if err != nil {
		return nil, err
	}
	wait, err := bounded("WaitTimeSeconds", in.WaitTimeSeconds, q.number("ReceiveMessageWaitTimeSeconds"), 0, 20)
	if err != nil {
		return nil, err
	}
	names := append(slices.Clone(in.AttributeNames), in.MessageSystemAttributeNames...)
	expired := make(chan struct{})
	if wait > 0 {
		defer s.clock.AfterFunc(time.Duration(wait)*time.Second, func() { close(expired) })()
	}
	for {
		messages, err := q.receive(n, time.Duration(visibility)*time.Second)
		if err != nil {
			return nil, err
		}
		if len(messages) > 0 {
			out := make([]map[string]any, len(messages))
			for i, m := range messages {
				out[i] = m.view(names, in.MessageAttributeNames)
			}
			return map[string]any{"Messages": out}, nil
		}
		if wait == 0 {
			return struct{}{}, nil
		}
		changed := q.changed
		s.mu.Unlock()
		done := false
		select {
		case <-changed:
		case <-expired:
			done = true
		case <-ctx.Done():
			done = true
		}
		s.mu.Lock()
		if s.queues[q.region+"/"+q.name] != q {
			return nil, noQueue()
		}
		if done {
			return struct{}{}, nil
		}
	}
}

// view is a message as ReceiveMessage returns it.
func (m *message) view(system, user []string) map[string]any {
	out := map[string]any{"MessageId": m.id, "ReceiptHandle": m.handles[len(m.handles)-1], "Body": m.body, "MD5OfBody": m.md5}
	all := map[string]string{
		"SenderId": m.sender, "SentTimestamp": strconv.FormatInt(m.sent.UnixMilli(), 10),
		"ApproximateReceiveCount":          strconv.Itoa(m.receives),
		"ApproximateFirstReceiveTimestamp": strconv.FormatInt(m.first.UnixMilli(), 10),
	}
	for name, value := range map[string]string{
		"MessageGroupId": m.group, "MessageDeduplicationId": m.dedup, "SequenceNumber": m.sequence, "DeadLetterQueueSourceArn": m.source,
	} {
		if value != "" {
			all[name] = value
		}
	}
	if trace, ok := m.system["AWSTraceHeader"]; ok && trace.StringValue != nil {
		all["AWSTraceHeader"] = *trace.StringValue
	}
	if !slices.Contains(system, "All") {
		maps.DeleteFunc(all, func(name, _ string) bool { return !slices.Contains(system, name) })
	}
	if len(all) > 0 {
		out["Attributes"] = all
	}
	wanted := map[string]attribute{}
	for name, a := range m.attributes {
		for _, want := range user {
			prefix, wild := strings.CutSuffix(want, ".*")
			if want == "All" || want == name || wild && strings.HasPrefix(name, prefix) {
				wanted[name] = a
			}
		}
	}
	if len(wanted) > 0 {
		out["MessageAttributes"] = wanted
		out["MD5OfMessageAttributes"] = attributesMD5(wanted)
	}
	return out
}

func (s *Server) deleteMessage(ctx context.Context, _ *http.Request, in *struct{ QueueUrl, ReceiptHandle string }) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queue(ctx, in.QueueUrl)
	if err != nil {
		return nil, err
	}
	return nil, q.deleteBy(in.ReceiptHandle)
}

func (s *Server) changeVisibility(ctx context.Context, _ *http.Request, in *struct {
	QueueUrl, ReceiptHandle string
	VisibilityTimeout       *int
}) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queue(ctx, in.QueueUrl)
	if err != nil {
		return nil, err
	}
	return nil, q.changeBy(in.ReceiptHandle, in.VisibilityTimeout)
}

type handleBatch struct {
	QueueUrl string
	Entries  []struct {
		ID                string `json:"Id"`
		ReceiptHandle     string
		VisibilityTimeout *int
	}
}

func (s *Server) deleteBatch(ctx context.Context, _ *http.Request, in *handleBatch) (any, error) {
	return s.handleBatch(ctx, in, func(q *queue, handle string, _ *int) error { return q.deleteBy(handle) })
}

func (s *Server) changeVisibilityBatch(ctx context.Context, _ *http.Request, in *handleBatch) (any, error) {
	return s.handleBatch(ctx, in, (*queue).changeBy)
}

func (s *Server) handleBatch(ctx context.Context, in *handleBatch, do func(*queue, string, *int) error) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queue(ctx, in.QueueUrl)
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(in.Entries))
	for i, e := range in.Entries {
		ids[i] = e.ID
	}
	if err := checkBatch(ids); err != nil {
		return nil, err
	}
	done, refused := []map[string]string{}, []batchFailure{}
	for _, e := range in.Entries {
		if err := do(q, e.ReceiptHandle, e.VisibilityTimeout); err != nil {
			refused = append(refused, failed(e.ID, err))
		} else {
			done = append(done, map[string]string{"Id": e.ID})
		}
	}
	return map[string]any{"Successful": done, "Failed": refused}, nil
}
