package orders

import (
	"fmt"
	"net/http"
	"time"

	"github.com/lecafe/lecafe/agent/spool"
)

// Status is the answer to GET /v1/status.
type Status struct {
	State       string       `json:"state"` // starting, waiting_for_queue, forwarding, failing, draining
	Spooled     uint64       `json:"spooled"`
	SpoolBytes  int64        `json:"spool_bytes"`
	SpoolLimit  int64        `json:"spool_limit_bytes"`
	OldestAt    time.Time    `json:"oldest_at,omitzero"`
	Parked      int          `json:"parked"` // on disk
	Accepted    uint64       `json:"accepted"`
	Forward     ForwardState `json:"forward"`
	Spool       spool.Stats  `json:"spool"`
	Credentials time.Time    `json:"credentials_expire_at,omitzero"`
	Notice      string       `json:"notice,omitempty"` // why the instance is about to end
}

// Snapshot completes the service's status with the intake's own figures.
func (in *Intake) Snapshot() Status {
	var s Status
	if in.Status != nil {
		s = in.Status()
	}
	st := in.Spool.Stats()
	s.Spool, s.Spooled, s.SpoolBytes, s.SpoolLimit = st, st.Records, st.Bytes, in.Spool.MaxBytes()
	s.Accepted = in.counts.accepted.Load()
	s.OldestAt = s.Forward.Oldest
	return s
}

// metrics answers in Prometheus' text format.
func (in *Intake) metrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	s := in.Snapshot()
	one := func(name, kind, help string, v any) {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s %v\n", name, help, name, kind, name, v)
	}
	oldest := 0.0
	if !s.OldestAt.IsZero() {
		oldest = max(0, time.Since(s.OldestAt).Seconds())
	}
	one("lecafe_orders_accepted_total", "counter", "Orders made durable.", s.Accepted)
	one("lecafe_orders_replayed_total", "counter", "Posts answered from their idempotency key.", in.counts.replayed.Load())
	fmt.Fprint(w, "# HELP lecafe_orders_refused_total Posts that were not taken.\n# TYPE lecafe_orders_refused_total counter\n")
	for _, r := range []struct {
		reason string
		n      uint64
	}{{"invalid", in.counts.invalid.Load()}, {"too_large", in.counts.tooLarge.Load()}, {"spool_full", in.counts.full.Load()}, {"not_durable", in.counts.failed.Load()}} {
		fmt.Fprintf(w, "lecafe_orders_refused_total{reason=%q} %d\n", r.reason, r.n)
	}
	one("lecafe_orders_sent_total", "counter", "Orders that SQS took.", s.Forward.Sent)
	one("lecafe_orders_send_calls_total", "counter", "SendMessageBatch calls that were answered.", s.Forward.Batches)
	one("lecafe_orders_retried_total", "counter", "Entries of a batch that SQS asked to send again.", s.Forward.Retried)
	fmt.Fprint(w, "# HELP lecafe_orders_errors_total Failed calls and entries by kind.\n# TYPE lecafe_orders_errors_total counter\n")
	for _, kind := range []string{KindThrottled, KindCredentials, KindDenied, KindGone, KindRefused, KindServer, KindNetwork, KindOther} {
		fmt.Fprintf(w, "lecafe_orders_errors_total{kind=%q} %d\n", kind, s.Forward.Errors[kind])
	}
	one("lecafe_orders_parked", "gauge", "Orders that SQS refused for good, on disk.", s.Parked)
	one("lecafe_orders_oldest_seconds", "gauge", "Age of the oldest order not sent.", oldest)
	one("lecafe_orders_in_flight", "gauge", "Calls under way.", s.Forward.InFlight)
	one("lecafe_spool_records", "gauge", "Orders in the spool.", s.Spooled)
	one("lecafe_spool_bytes", "gauge", "Bytes of the spool's segments.", s.SpoolBytes)
	one("lecafe_spool_limit_bytes", "gauge", "Limit of the spool.", s.SpoolLimit)
	one("lecafe_spool_commits_total", "counter", "Syncs that made orders durable.", s.Spool.Commits)
	one("lecafe_spool_full_total", "counter", "Appends refused for want of room.", s.Spool.Full)
	one("lecafe_spool_lost_total", "counter", "Records whose bytes were damaged on disk.", s.Spool.Lost)
	one("lecafe_spool_poisoned_total", "counter", "Segments abandoned after a failed write or sync.", s.Spool.Poisoned)
}
