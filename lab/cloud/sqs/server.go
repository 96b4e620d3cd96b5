// Package sqs is a fake of Amazon SQS in its JSON protocol, as current SDKs
// and the AWS CLI speak it. It owns standard and FIFO queues: visibility, long
// polls, delays, batches with partial failures, redrive to a dead-letter
// queue, deduplication, who sent what and what a queue's policy says of a
// request. It refuses the query protocol and
// what it does not model by name. Attributes take effect at once, where SQS may
// take a minute; order and single delivery on a standard queue are better here
// than SQS promises, so nothing may rest on them.
//
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/Welcome.html
package sqs

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/jsonrpc"
	"github.com/lecafe/lecafe/lab/cloud/policy"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// Options configure a Server.
type Options struct {
	Clock  wire.Clock
	Region string // of requests that carry none; default us-east-1
}

// Server is the SQS of every region.
type Server struct {
	clock  wire.Clock
	region string
	rpc    jsonrpc.Service

	mu      sync.Mutex
	queues  map[string]*queue // region/name
	deleted map[string]bool   // deleted less than a minute ago
}

// New returns a Server without queues.
func New(o Options) *Server {
	if o.Clock == nil {
		o.Clock = wire.Scaled(1)
	}
	if o.Region == "" {
		o.Region = "us-east-1"
	}
	s := &Server{clock: o.Clock, region: o.Region, queues: map[string]*queue{}, deleted: map[string]bool{}}
	s.rpc = jsonrpc.Service{Version: "1.0", Prefix: "com.amazonaws.sqs", Query: true, Actions: map[string]jsonrpc.Action{
		"CreateQueue":                  jsonrpc.Act(s.createQueue),
		"DeleteQueue":                  jsonrpc.Act(s.deleteQueue),
		"GetQueueUrl":                  jsonrpc.Act(s.getQueueURL),
		"GetQueueAttributes":           jsonrpc.Act(s.getAttributes),
		"SetQueueAttributes":           jsonrpc.Act(s.setAttributes),
		"ListQueues":                   jsonrpc.Act(s.listQueues),
		"ListDeadLetterSourceQueues":   jsonrpc.Act(s.deadLetterSources),
		"ListQueueTags":                jsonrpc.Act(s.listTags),
		"TagQueue":                     jsonrpc.Act(s.tagQueue),
		"PurgeQueue":                   jsonrpc.Act(s.purgeQueue),
		"SendMessage":                  jsonrpc.Act(s.sendMessage),
		"SendMessageBatch":             jsonrpc.Act(s.sendBatch),
		"ReceiveMessage":               jsonrpc.Act(s.receiveMessage),
		"DeleteMessage":                jsonrpc.Act(s.deleteMessage),
		"DeleteMessageBatch":           jsonrpc.Act(s.deleteBatch),
		"ChangeMessageVisibility":      jsonrpc.Act(s.changeVisibility),
		"ChangeMessageVisibilityBatch": jsonrpc.Act(s.changeVisibilityBatch),
	}}
	return s
}

// ServeHTTP implements http.Handler of authenticated requests.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.rpc.ServeHTTP(w, r) }

func failure(shape, query, format string, args ...any) *jsonrpc.Error {
	e := jsonrpc.Errorf(shape, format, args...)
	e.Query = query
	return e
}

func invalidParameter(format string, args ...any) *jsonrpc.Error {
	return failure("InvalidParameterValueException", "InvalidParameterValue", format, args...)
}

func missingParameter(name string) *jsonrpc.Error {
	return failure("MissingRequiredParameterException", "MissingParameter", "The request must contain the parameter %s.", name)
}

func noQueue() *jsonrpc.Error {
	return failure("QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue", "The specified queue does not exist.")
}

func (s *Server) regionOf(ctx context.Context) string {
	if r := wire.RegionFrom(ctx); r != "" {
		return r
	}
	return s.region
}

// queue finds the queue of a URL: any host, its account and name.
func (s *Server) queue(ctx context.Context, url string) (*queue, error) {
	if url == "" {
		return nil, missingParameter("QueueUrl")
	}
	parts := strings.Split(url, "/")
	if len(parts) < 2 || parts[len(parts)-2] != wire.Account {
		return nil, failure("InvalidAddress", "InvalidAddress", "The address %s is not valid for this endpoint.", url)
	}
	q := s.queues[s.regionOf(ctx)+"/"+parts[len(parts)-1]]
	if q == nil {
		return nil, noQueue()
	}
	return q, nil
}

func queueURL(r *http.Request, name string) string {
	return "http://" + r.Host + "/" + wire.Account + "/" + name
}

// settable are the attributes a queue can be given, with their bounds; a zero
// max means free text.
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SetQueueAttributes.html
var settable = map[string]struct{ min, max int }{
	"DelaySeconds": {0, 900}, "MaximumMessageSize": {1024, maxBytes}, "MessageRetentionPeriod": {60, 1209600},
	"ReceiveMessageWaitTimeSeconds": {0, 20}, "VisibilityTimeout": {0, 43200}, "KmsDataKeyReusePeriodSeconds": {60, 86400},
	"Policy": {}, "RedrivePolicy": {}, "RedriveAllowPolicy": {}, "KmsMasterKeyId": {}, "SqsManagedSseEnabled": {},
	"FifoQueue": {}, "ContentBasedDeduplication": {}, "DeduplicationScope": {}, "FifoThroughputLimit": {},
}

const maxBytes = 1 << 20 // since August 2025, of a message and of a batch

func defaults() map[string]string {
	return map[string]string{
		"DelaySeconds": "0", "MaximumMessageSize": strconv.Itoa(maxBytes), "MessageRetentionPeriod": "345600",
		"ReceiveMessageWaitTimeSeconds": "0", "VisibilityTimeout": "30", "SqsManagedSseEnabled": "true",
	}
}

// checkAttributes validates what a queue is given, the dead-letter queue of its
// redrive policy included.
func (s *Server) checkAttributes(region string, fifo bool, given map[string]string) error {
	for name, value := range given {
		bounds, ok := settable[name]
		if !ok {
			return failure("InvalidAttributeName", "InvalidAttributeName", "Unknown Attribute %s.", name)
		}
		invalid := failure("InvalidAttributeValue", "InvalidAttributeValue", "Invalid value for the parameter %s.", name)
		if bounds.max > 0 {
			if n, err := strconv.Atoi(value); err != nil || n < bounds.min || n > bounds.max {
				return invalid
			}
		}
		switch name {
		case "Policy":
			if _, err := parsePolicy(value); err != nil {
				return failure("InvalidAttributeValue", "InvalidAttributeValue", "Invalid value for the parameter Policy. Reason: %v", err)
			}
		case "FifoQueue":
			if value != "true" || !fifo {
				return invalid
			}
		case "ContentBasedDeduplication":
			if value != "true" && value != "false" {
				return invalid
			}
			if !fifo {
				return failure("InvalidAttributeName", "InvalidAttributeName", "Unknown Attribute %s.", name)
			}
		case "DeduplicationScope", "FifoThroughputLimit":
			if !fifo {
				return failure("InvalidAttributeName", "InvalidAttributeName", "You can specify the %s only when FifoQueue is set to true", name)
			}
		case "RedrivePolicy":
			if value == "" {
				continue
			}
			p, err := parseRedrive(value)
			if err != nil {
				return invalid
			}
			dlq := s.queues[region+"/"+p.name()]
			if dlq == nil || p.region() != region {
				return invalidParameter("Value %s for parameter RedrivePolicy is invalid. Reason: Dead letter target does not exist.", value)
			}
			if dlq.fifo != fifo {
				return invalidParameter("Value %s for parameter RedrivePolicy is invalid. Reason: Dead-letter queue must be of the same type as the source.", value)
			}
		}
	}
	return nil
}

type redrive struct {
	Target string      `json:"deadLetterTargetArn"`
	Max    json.Number `json:"maxReceiveCount"`
}

func parseRedrive(value string) (redrive, error) {
	var p redrive
	// maxReceiveCount comes as a number and, from consoles, as a string.
	if err := json.Unmarshal([]byte(value), &p); err != nil {
		return p, err
	}
	if n, err := p.Max.Int64(); err != nil || n < 1 || n > 1000 {
		return p, invalidParameter("maxReceiveCount")
	}
	return p, nil
}

func (p redrive) name() string { return p.Target[strings.LastIndexByte(p.Target, ':')+1:] }

func (p redrive) region() string {
	if parts := strings.Split(p.Target, ":"); len(parts) == 6 && parts[2] == "sqs" {
		return parts[3]
	}
	return ""
}

var queueName = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.fifo)?$`)

type createQueue struct {
	QueueName  string
	Attributes map[string]string
	Tags       map[string]string `json:"tags"`
}

// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_CreateQueue.html
func (s *Server) createQueue(ctx context.Context, r *http.Request, in *createQueue) (any, error) {
	fifo := in.Attributes["FifoQueue"] == "true"
	if !queueName.MatchString(in.QueueName) || len(in.QueueName) > 80 || fifo != strings.HasSuffix(in.QueueName, ".fifo") {
		if fifo {
			return nil, invalidParameter("The name of a FIFO queue can only include alphanumeric characters, hyphens, or underscores, must end with .fifo suffix and be 1 to 80 in length.")
		}
		return nil, invalidParameter("Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	region := s.regionOf(ctx)
	if err := s.checkAttributes(region, fifo, in.Attributes); err != nil {
		return nil, err
	}
	key := region + "/" + in.QueueName
	if old := s.queues[key]; old != nil {
		for name, value := range in.Attributes {
			if old.attributes[name] != value {
				return nil, failure("QueueNameExists", "QueueAlreadyExists", "A queue already exists with the same name and a different value for attribute %s", name)
			}
		}
		return map[string]string{"QueueUrl": queueURL(r, in.QueueName)}, nil
	}
	if s.deleted[key] {
		return nil, failure("QueueDeletedRecently", "AWS.SimpleQueueService.QueueDeletedRecently", "You must wait 60 seconds after deleting a queue before you can create another with the same name.")
	}
	q := newQueue(s, region, in.QueueName, fifo)
	q.set(in.Attributes)
	maps.Copy(q.tags, in.Tags)
	s.queues[key] = q
	return map[string]string{"QueueUrl": queueURL(r, in.QueueName)}, nil
}

// set takes attributes that checkAttributes has passed; an empty one goes.
func (q *queue) set(attributes map[string]string) {
	for name, value := range attributes {
		if value == "" {
			delete(q.attributes, name)
		} else {
			q.attributes[name] = value
		}
	}
	q.policy, _ = parsePolicy(q.attributes["Policy"]) // checked
}

// parsePolicy reads a queue's policy; an empty one is none.
func parsePolicy(doc string) (*policy.Resource, error) {
	if doc == "" {
		return nil, nil
	}
	return policy.ParseResource(doc)
}

// Decide says what the policy of the queue says of a request for it.
func (s *Server) Decide(r policy.Request, by policy.Caller, owner string) policy.Decision {
	parts := strings.Split(r.Resource, ":")
	if len(parts) != 6 {
		return policy.Silent
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[parts[3]+"/"+parts[5]]
	if q == nil || q.policy == nil {
		return policy.Silent
	}
	return q.policy.Evaluate(r, by, owner)
}

// CreateQueue makes a queue of the server's region behind the API; attributes
// may be nil. FIFO follows from the name.
func (s *Server) CreateQueue(name string, attributes map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := newQueue(s, s.region, name, strings.HasSuffix(name, ".fifo"))
	q.set(attributes)
	s.queues[s.region+"/"+name] = q
}

type withQueue struct{ QueueUrl string }

// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteQueue.html
func (s *Server) deleteQueue(ctx context.Context, _ *http.Request, in *withQueue) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queue(ctx, in.QueueUrl)
	if err != nil {
		return nil, err
	}
	key := q.region + "/" + q.name
	delete(s.queues, key)
	q.purge()
	q.wake()
	s.deleted[key] = true
	s.after(time.Minute, func() { delete(s.deleted, key) })
	return nil, nil
}

// after runs f under the lock once d has passed.
func (s *Server) after(d time.Duration, f func()) (stop func() bool) {
	return s.clock.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		f()
	})
}

func (s *Server) getQueueURL(ctx context.Context, r *http.Request, in *struct{ QueueName, QueueOwnerAWSAccountId string }) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if in.QueueOwnerAWSAccountId != "" && in.QueueOwnerAWSAccountId != wire.Account || s.queues[s.regionOf(ctx)+"/"+in.QueueName] == nil {
		return nil, noQueue()
	}
	return map[string]string{"QueueUrl": queueURL(r, in.QueueName)}, nil
}

type getAttributes struct {
	QueueUrl       string
	AttributeNames []string
}

// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_GetQueueAttributes.html
func (s *Server) getAttributes(ctx context.Context, _ *http.Request, in *getAttributes) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queue(ctx, in.QueueUrl)
	if err != nil {
		return nil, err
	}
	all := q.described()
	if slices.Contains(in.AttributeNames, "All") {
		return map[string]any{"Attributes": all}, nil
	}
	out := map[string]string{}
	for _, name := range in.AttributeNames {
		value, ok := all[name]
		if _, known := settable[name]; !ok && !known {
			return nil, failure("InvalidAttributeName", "InvalidAttributeName", "Unknown Attribute %s.", name)
		}
		if ok {
			out[name] = value
		}
	}
	if len(out) == 0 {
		return struct{}{}, nil
	}
	return map[string]any{"Attributes": out}, nil
}

func (s *Server) setAttributes(ctx context.Context, _ *http.Request, in *struct {
	QueueUrl   string
	Attributes map[string]string
}) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queue(ctx, in.QueueUrl)
	if err != nil {
		return nil, err
	}
	if v, ok := in.Attributes["FifoQueue"]; ok && (v == "true") != q.fifo {
		return nil, failure("InvalidAttributeValue", "InvalidAttributeValue", "Invalid value for the parameter FifoQueue. Reason: Modifying queue type is not supported.")
	}
	if err := s.checkAttributes(q.region, q.fifo, in.Attributes); err != nil {
		return nil, err
	}
	q.set(in.Attributes)
	q.modified = s.clock.Now()
	return nil, nil
}

type listQueues struct {
	QueueNamePrefix string
	MaxResults      *int
	NextToken       string
}

// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ListQueues.html
func (s *Server) listQueues(ctx context.Context, r *http.Request, in *listQueues) (any, error) {
	limit := 1000
	if in.MaxResults != nil {
		if limit = *in.MaxResults; limit < 1 || limit > 1000 {
			return nil, invalidParameter("Value for parameter MaxResults is invalid. Reason: Must be between 1 and 1000, if provided.")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	prefix := s.regionOf(ctx) + "/"
	urls := []string{}
	last := ""
	for _, key := range slices.Sorted(maps.Keys(s.queues)) {
		name, ok := strings.CutPrefix(key, prefix)
		if !ok || !strings.HasPrefix(name, in.QueueNamePrefix) || name <= in.NextToken {
			continue
		}
		if len(urls) == limit {
			if in.MaxResults == nil { // without MaxResults the first 1000 are all there is
				break
			}
			return map[string]any{"QueueUrls": urls, "NextToken": last}, nil
		}
		urls, last = append(urls, queueURL(r, name)), name
	}
	if len(urls) == 0 {
		return struct{}{}, nil
	}
	return map[string]any{"QueueUrls": urls}, nil
}

func (s *Server) deadLetterSources(ctx context.Context, r *http.Request, in *withQueue) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queue(ctx, in.QueueUrl)
	if err != nil {
		return nil, err
	}
	urls := []string{}
	for _, key := range slices.Sorted(maps.Keys(s.queues)) {
		if source := s.queues[key]; source.deadLetter() == q {
			urls = append(urls, queueURL(r, source.name))
		}
	}
	return map[string]any{"queueUrls": urls}, nil
}

func (s *Server) listTags(ctx context.Context, _ *http.Request, in *withQueue) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queue(ctx, in.QueueUrl)
	if err != nil {
		return nil, err
	}
	return map[string]any{"Tags": maps.Clone(q.tags)}, nil
}

func (s *Server) tagQueue(ctx context.Context, _ *http.Request, in *struct {
	QueueUrl string
	Tags     map[string]string
}) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queue(ctx, in.QueueUrl)
	if err != nil {
		return nil, err
	}
	maps.Copy(q.tags, in.Tags)
	return nil, nil
}

// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_PurgeQueue.html
func (s *Server) purgeQueue(ctx context.Context, _ *http.Request, in *withQueue) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queue(ctx, in.QueueUrl)
	if err != nil {
		return nil, err
	}
	if q.purging {
		return nil, &jsonrpc.Error{Status: http.StatusForbidden, Code: "PurgeQueueInProgress", Query: "AWS.SimpleQueueService.PurgeQueueInProgress", Message: "Only one PurgeQueue operation on " + q.name + " is allowed every 60 seconds."}
	}
	q.purge()
	q.purging = true
	s.after(time.Minute, func() { q.purging = false })
	return nil, nil
}
