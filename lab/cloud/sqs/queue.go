package sqs

import (
	"container/list"
	"encoding/base64"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/jsonrpc"
	"github.com/lecafe/lecafe/lab/cloud/policy"
	"github.com/lecafe/lecafe/lab/cloud/query"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// inFlightLimit is SQS's, of messages received and not deleted.
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-queues.html
const inFlightLimit = 120_000

// dedupWindow is how long a FIFO queue remembers a deduplication ID.
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/using-messagededuplicationid-property.html
const dedupWindow = 5 * time.Minute

// queue is one queue. The server's lock guards it.
type queue struct {
	server     *Server
	region     string
	name       string
	fifo       bool
	attributes map[string]string
	policy     *policy.Resource // the attribute Policy; nil for none
	tags       map[string]string
	created    time.Time
	modified   time.Time
	purging    bool

	messages *list.List               // *message, oldest first
	handles  map[string]*list.Element // receipt handle → message
	groups   map[string]int           // FIFO: messages in flight of a group
	recent   map[string]*message      // FIFO: deduplication ID → what it was
	inFlight int
	delayed  int
	sequence uint64
	changed  chan struct{} // closed when a message may have become visible
}

type state int

const (
	visible state = iota
	delayed
	inFlight
)

type message struct {
	id         string
	body       string
	attributes map[string]attribute
	system     map[string]attribute
	md5, md5a  string
	sender     string
	sent       time.Time
	group      string
	dedup      string
	sequence   string
	source     string // ARN of the queue it was dead-lettered from

	state    state
	receives int
	first    time.Time
	received time.Time // last, for the 12 hours' limit
	handles  []string
	stop     func() bool // of the timer that makes it visible
	keep     func() bool // of the timer of its retention
}

func newQueue(s *Server, region, name string, fifo bool) *queue {
	now := s.clock.Now()
	q := &queue{
		server: s, region: region, name: name, fifo: fifo, attributes: defaults(), tags: map[string]string{}, created: now, modified: now,
		messages: list.New(), handles: map[string]*list.Element{}, groups: map[string]int{}, recent: map[string]*message{},
		changed: make(chan struct{}), sequence: 18850000000000000000 >> 1,
	}
	if fifo {
		q.attributes["FifoQueue"] = "true"
		q.attributes["ContentBasedDeduplication"] = "false"
		q.attributes["DeduplicationScope"] = "queue"
		q.attributes["FifoThroughputLimit"] = "perQueue"
	}
	return q
}

func (q *queue) arn() string { return "arn:aws:sqs:" + q.region + ":" + wire.Account + ":" + q.name }

func (q *queue) number(name string) int {
	n, _ := strconv.Atoi(q.attributes[name]) // checked when it was set
	return n
}

func (q *queue) seconds(name string) time.Duration {
	return time.Duration(q.number(name)) * time.Second
}

// described returns every attribute, the computed ones included.
func (q *queue) described() map[string]string {
	out := maps.Clone(q.attributes)
	out["QueueArn"] = q.arn()
	out["CreatedTimestamp"] = strconv.FormatInt(q.created.Unix(), 10)
	out["LastModifiedTimestamp"] = strconv.FormatInt(q.modified.Unix(), 10)
	out["ApproximateNumberOfMessages"] = strconv.Itoa(q.messages.Len() - q.inFlight - q.delayed)
	out["ApproximateNumberOfMessagesNotVisible"] = strconv.Itoa(q.inFlight)
	out["ApproximateNumberOfMessagesDelayed"] = strconv.Itoa(q.delayed)
	return out
}

// wake lets waiting receivers look again.
func (q *queue) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// add puts a message into the queue after a delay, or returns the one it is a
// duplicate of.
func (q *queue) add(m *message, delay time.Duration) *message {
	if q.fifo {
		key := m.dedup
		if q.attributes["DeduplicationScope"] == "messageGroup" {
			key = m.group + "\x00" + key
		}
		if old := q.recent[key]; old != nil {
			return old
		}
		q.recent[key] = m
		q.server.after(dedupWindow, func() { delete(q.recent, key) })
		q.sequence += 256
		m.sequence = fmt.Sprintf("%020d", q.sequence)
	}
	m.id = query.RequestID()
	m.sent = q.server.clock.Now()
	q.push(m)
	if delay > 0 {
		m.state = delayed
		q.delayed++
		m.stop = q.server.after(delay, func() {
			if m.state == delayed {
				q.delayed--
				m.state = visible
				q.wake()
			}
		})
		return m
	}
	q.wake()
	return m
}

func (q *queue) push(m *message) {
	e := q.messages.PushBack(m)
	m.keep = q.server.after(q.seconds("MessageRetentionPeriod"), func() { q.remove(e) })
}

// remove deletes a message, in whatever state; removing it again is nothing.
func (q *queue) remove(e *list.Element) {
	m := e.Value.(*message)
	if e.Next() == nil && e.Prev() == nil && q.messages.Front() != e {
		return
	}
	switch m.state {
	case inFlight:
		q.inFlight--
		q.release(m)
	case delayed:
		q.delayed--
	}
	if m.stop != nil {
		m.stop()
	}
	m.keep()
	for _, h := range m.handles {
		delete(q.handles, h)
	}
	q.messages.Remove(e)
	q.wake() // a FIFO group may be free now
}

func (q *queue) release(m *message) {
	if !q.fifo {
		return
	}
	if q.groups[m.group]--; q.groups[m.group] <= 0 {
		delete(q.groups, m.group)
	}
}

func (q *queue) purge() {
	for e := q.messages.Front(); e != nil; {
		next := e.Next()
		q.remove(e)
		e = next
	}
}

// deadLetter returns the queue that messages received too often go to.
func (q *queue) deadLetter() *queue {
	p, err := parseRedrive(q.attributes["RedrivePolicy"])
	if err != nil {
		return nil
	}
	return q.server.queues[p.region()+"/"+p.name()]
}

// receive takes up to n visible messages in order and hides them for timeout.
// Of a FIFO group with a message in flight nothing is taken.
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/FIFO-queues-understanding-logic.html
func (q *queue) receive(n int, timeout time.Duration) ([]*message, error) {
	if q.inFlight >= inFlightLimit {
		return nil, failure("OverLimit", "OverLimit", "The maximum number of in flight messages is reached.")
	}
	busy := map[string]bool{}
	for g := range q.groups {
		busy[g] = true
	}
	var out []*message
	for e := q.messages.Front(); e != nil && len(out) < n; {
		next := e.Next()
		m := e.Value.(*message)
		switch {
		case m.state != visible:
			busy[m.group] = true // a delayed message holds its group back too
		case q.fifo && busy[m.group]:
		case q.exhausted(m):
			q.redrive(e)
		default:
			q.hide(e, timeout)
			out = append(out, m)
		}
		e = next
	}
	return out, nil
}

// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-dead-letter-queues.html
func (q *queue) exhausted(m *message) bool {
	p, err := parseRedrive(q.attributes["RedrivePolicy"])
	if err != nil || q.deadLetter() == nil {
		return false
	}
	limit, _ := p.Max.Int64() // checked by parseRedrive
	return int64(m.receives) >= limit
}

func (q *queue) redrive(e *list.Element) {
	m := *e.Value.(*message)
	to := q.deadLetter()
	q.remove(e)
	m.handles, m.stop, m.source, m.state = nil, nil, q.arn(), visible
	m.receives, m.first = 0, time.Time{}
	to.push(&m)
	to.wake()
}

func (q *queue) hide(e *list.Element, timeout time.Duration) {
	m := e.Value.(*message)
	now := q.server.clock.Now()
	m.receives++
	m.received = now
	if m.first.IsZero() {
		m.first = now
	}
	handle := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%s:%s:%016x", q.name, m.id, rand.Uint64()))
	m.handles = append(m.handles, handle)
	q.handles[handle] = e
	q.inFlight++
	if q.fifo {
		q.groups[m.group]++
	}
	m.state = inFlight
	q.hideFor(m, timeout)
}

func (q *queue) hideFor(m *message, timeout time.Duration) {
	if m.stop != nil {
		m.stop()
	}
	show := func() {
		if m.state != inFlight {
			return
		}
		m.state = visible
		q.inFlight--
		q.release(m)
		q.wake()
	}
	if timeout <= 0 {
		show()
		return
	}
	var stop func() bool
	stopped := false
	stop = q.server.after(timeout, func() {
		if !stopped {
			show()
		}
	})
	// A timer that has fired and waits for the lock must not end a visibility
	// given since.
	m.stop = func() bool { stopped = true; return stop() }
}

// byHandle finds the message of a receipt handle; nil, without an error, if it
// is deleted already.
func (q *queue) byHandle(handle string) (*list.Element, error) {
	if handle == "" {
		return nil, missingParameter("ReceiptHandle")
	}
	raw, err := base64.StdEncoding.DecodeString(handle)
	if err != nil || !strings.HasPrefix(string(raw), q.name+":") {
		return nil, failure("ReceiptHandleIsInvalid", "ReceiptHandleIsInvalid", "The input receipt handle is invalid.")
	}
	return q.handles[handle], nil
}

// deleteBy deletes by receipt handle. A FIFO queue takes only the handle of
// the last receipt, while it is in flight.
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessage.html
func (q *queue) deleteBy(handle string) error {
	e, err := q.byHandle(handle)
	if err != nil || e == nil {
		return err
	}
	m := e.Value.(*message)
	if q.fifo && (m.state != inFlight || m.handles[len(m.handles)-1] != handle) {
		return expiredHandle(handle)
	}
	q.remove(e)
	return nil
}

func expiredHandle(handle string) *jsonrpc.Error {
	return invalidParameter("Value %s for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired.", handle)
}

const visibilityLimit = 12 * time.Hour

// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html
func (q *queue) changeBy(handle string, timeout *int) error {
	if timeout == nil {
		return missingParameter("VisibilityTimeout")
	}
	if *timeout < 0 || *timeout > int(visibilityLimit/time.Second) {
		return invalidParameter("Value %d for parameter VisibilityTimeout is invalid. Reason: VisibilityTimeout must be an integer between 0 and 43200.", *timeout)
	}
	e, err := q.byHandle(handle)
	if err != nil {
		return err
	}
	if e == nil {
		return invalidParameter("Value %s for parameter ReceiptHandle is invalid. Reason: Message does not exist or is not available for visibility timeout change.", handle)
	}
	m := e.Value.(*message)
	if m.state != inFlight || m.handles[len(m.handles)-1] != handle {
		return failure("MessageNotInflight", "AWS.SimpleQueueService.MessageNotInflight", "The specified message isn't in flight.")
	}
	d := time.Duration(*timeout) * time.Second
	if q.server.clock.Now().Add(d).Sub(m.received) > visibilityLimit {
		return invalidParameter("Value %d for parameter VisibilityTimeout is invalid. Reason: Total VisibilityTimeout for the message is beyond the limit [43200 seconds].", *timeout)
	}
	q.hideFor(m, d)
	return nil
}
