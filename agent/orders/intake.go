package orders

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lecafe/lecafe/agent/spool"
)

// Limits of one request and of all at once.
const (
	maxBatchBody   = 4 << 20
	maxBatchOrders = 1000
	// largeMemory bounds the bodies that wait for the disk. The small ones, of
	// which most orders are, have smallMemory of their own, so that they do not
	// queue behind the large ones.
	largeMemory = 8 << 20
	smallMemory = 4 << 20
	smallBody   = 64 << 10
	// retryAfter is what a full spool asks for.
	retryAfter = time.Second
	// drained is how much of a refused body is read so that the answer is seen.
	drained  = 16 << 20
	keysKept = 16384
)

// Intake answers posts on the socket. Its fields are set before Serve.
type Intake struct {
	Spool *spool.Spool
	Log   *slog.Logger
	// Limits returns the largest message of the queue in bytes, and whether
	// the queue is FIFO, as far as is known.
	Limits func() (bytes int64, fifo bool)
	Status func() Status

	keys         *keyCache
	small, large *room
	counts       counts
}

// counts are totals since start.
type counts struct {
	accepted, replayed, invalid, tooLarge, full, failed atomic.Uint64
}

// Handler returns the API of docs/orders.md.
func (in *Intake) Handler() http.Handler {
	if in.Log == nil {
		in.Log = slog.New(slog.DiscardHandler)
	}
	in.keys, in.small, in.large = newKeyCache(keysKept), newRoom(smallMemory), newRoom(largeMemory)
	mux := http.NewServeMux()
	for _, r := range []struct {
		method, path string
		serve        http.HandlerFunc
	}{
		{"POST", "/v1/orders", withoutBody(in.post)},
		{"POST", "/v1/orders/batch", withoutBody(in.postBatch)},
		{"GET", "/v1/status", in.status},
		{"GET", "/metrics", in.metrics},
	} {
		mux.HandleFunc(r.method+" "+r.path, r.serve)
		mux.HandleFunc(r.path, func(w http.ResponseWriter, q *http.Request) {
			w.Header().Set("Allow", r.method)
			refuse(w, http.StatusMethodNotAllowed, "method_not_allowed", r.path+" takes "+r.method+" and not "+q.Method)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, q *http.Request) {
		refuse(w, http.StatusNotFound, "not_found", "there is no "+q.URL.Path+": orders are posted to /v1/orders")
	})
	return mux
}

// reply keeps an answer until its request's memory is given back: whoever does
// not read what it is answered must not hold that.
type reply struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (r *reply) WriteHeader(status int)      { r.status = status }
func (r *reply) Write(b []byte) (int, error) { return r.body.Write(b) }
func (r *reply) Unwrap() http.ResponseWriter { return r.ResponseWriter }
func withoutBody(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, q *http.Request) {
		r := reply{ResponseWriter: w}
		h(&r, q)
		if r.status == 0 {
			// The client is gone; one that has only ended its own side of the
			// connection must not take silence for 200.
			w.Header().Set("Connection", "close")
			r.status = http.StatusServiceUnavailable
		}
		w.WriteHeader(r.status)
		_, _ = w.Write(r.body.Bytes()) // as is one that is gone by now
	}
}

// Server returns an HTTP server for Handler that knows its peers.
func (in *Intake) Server() *http.Server {
	h := in.Handler()
	p := &peers{log: in.Log, seen: map[int32]uint32{}}
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       60 * time.Second,
		WriteTimeout:      2 * time.Minute, // from the header on; a client that reads no answer is let go
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ConnContext:       p.connContext,
		ErrorLog:          slog.NewLogLogger(in.Log.Handler(), slog.LevelWarn),
	}
}

// read takes the body within limit, after room for it in memory.
func (in *Intake) read(w http.ResponseWriter, r *http.Request, limit int64) (body []byte, release func(), ok bool) {
	need := limit
	if r.ContentLength >= 0 {
		need = r.ContentLength
	}
	if need > limit {
		in.counts.tooLarge.Add(1)
		// Most clients see no answer before they have written everything.
		_, _ = io.CopyN(io.Discard, r.Body, min(need, drained))
		w.Header().Set("Connection", "close")
		refuse(w, http.StatusRequestEntityTooLarge, "too_large", "the request has "+strconv.FormatInt(need, 10)+" bytes: at most "+strconv.FormatInt(limit, 10)+" are taken")
		return nil, nil, false
	}
	memory := in.large
	if need <= smallBody {
		memory = in.small
	}
	if err := memory.acquire(r.Context(), need); err != nil {
		return nil, nil, false
	}
	release = func() { memory.release(need) }
	end := memory.begin(func() { _ = http.NewResponseController(w).SetReadDeadline(time.Now()) }) // the read fails then
	var err error
	if r.ContentLength >= 0 {
		body = make([]byte, need)
		_, err = io.ReadFull(r.Body, body)
	} else {
		body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	}
	end()
	if err != nil {
		release()
		w.Header().Set("Connection", "close")
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			in.counts.tooLarge.Add(1)
			refuse(w, http.StatusRequestEntityTooLarge, "too_large", "the request has more than "+strconv.FormatInt(limit, 10)+" bytes")
		} else if errors.Is(err, os.ErrDeadlineExceeded) {
			in.counts.invalid.Add(1)
			refuse(w, http.StatusRequestTimeout, "too_slow", "the body did not arrive in time and was not taken: try again")
		} else {
			in.counts.invalid.Add(1)
			refuse(w, http.StatusBadRequest, "bad_request", "the body did not arrive whole")
		}
		return nil, nil, false
	}
	return body, release, true
}

func (in *Intake) post(w http.ResponseWriter, r *http.Request) {
	limit, fifo := in.Limits()
	body, release, ok := in.read(w, r, limit)
	if !ok {
		return
	}
	defer release()
	o := &Order{Body: string(body), Accepted: time.Now()}
	key, p := fromHeaders(o, r.Header)
	if p == nil {
		p = o.Check(limit, fifo)
	}
	if p != nil {
		in.refuseProblem(w, p)
		return
	}
	if key != "" {
		o.ID = IDOfKey(key)
		e, replay, conflict, err := in.keys.claim(r.Context(), o)
		switch {
		case err != nil:
			return
		case conflict:
			in.counts.invalid.Add(1)
			refuse(w, http.StatusConflict, "key_conflict", "this Idempotency-Key was posted with another order")
			return
		case replay:
			in.counts.replayed.Add(1)
			w.Header().Set("Idempotent-Replayed", "true")
			accept(w, o.ID)
			return
		}
		defer func() { in.keys.end(e, ok) }()
	} else {
		o.ID = NewID(o.Accepted)
	}
	ok = false
	if _, err := in.Spool.Append(r.Context(), o.appendRecord(make([]byte, 0, len(o.Body)+128))); err != nil {
		in.refuseSpool(w, err)
		return
	}
	ok = true
	in.counts.accepted.Add(1)
	accept(w, o.ID)
}

// fromHeaders reads what an order carries besides its body.
func fromHeaders(o *Order, h http.Header) (key string, p *Problem) {
	for name, values := range h {
		known := name == "Idempotency-Key" || name == "Message-Group-Id" || name == "Delay-Seconds"
		attribute, isAttribute := strings.CutPrefix(name, "Attribute-")
		if !known && !isAttribute {
			continue
		}
		if len(values) != 1 {
			return "", problem("bad_header", "%s is given %d times", name, len(values))
		}
		v := values[0]
		switch name {
		case "Idempotency-Key":
			if v == "" {
				return "", problem("bad_key", "Idempotency-Key is empty")
			}
			if p := checkKey(v); p != nil {
				return "", p
			}
			key = v
		case "Message-Group-Id":
			if v == "" {
				return "", problem("bad_group", "Message-Group-Id is empty")
			}
			o.Group = v
		case "Delay-Seconds":
			n, err := strconv.Atoi(v)
			if err != nil {
				return "", problem("bad_delay", "Delay-Seconds %q is not a number", v)
			}
			o.Delay = time.Duration(min(max(n, -1), 1<<20)) * time.Second
		default:
			if o.Attributes == nil {
				o.Attributes = map[string]string{}
			}
			// HTTP has no case in names: in a header they are lower case.
			o.Attributes[strings.ToLower(attribute)] = v
		}
	}
	return key, nil
}

func (in *Intake) postBatch(w http.ResponseWriter, r *http.Request) {
	limit, fifo := in.Limits()
	body, release, ok := in.read(w, r, maxBatchBody)
	if !ok {
		return
	}
	defer release()
	now := time.Now()
	orders, keys, problems := parseBatch(body, limit, fifo, now)
	if len(problems) == 0 && len(orders) == 0 {
		problems = append(problems, lineProblem{1, "empty_batch", "the batch has no order"})
	}
	if len(orders) > maxBatchOrders {
		in.counts.tooLarge.Add(1)
		refuse(w, http.StatusRequestEntityTooLarge, "too_large", "the batch has "+strconv.Itoa(len(orders))+" orders: at most "+strconv.Itoa(maxBatchOrders)+" are taken")
		return
	}
	if len(problems) > 0 {
		in.counts.invalid.Add(1)
		answer(w, http.StatusBadRequest, map[string]any{"code": problems[0].Code, "error": "no order of the batch was taken: correct the lines", "lines": problems})
		return
	}
	claims, replayed, ok := in.claimBatch(w, r, orders, keys)
	done := false
	defer func() {
		for _, e := range claims {
			in.keys.end(e, done)
		}
	}()
	if !ok {
		return
	}
	ids := append(make([]byte, 0, 40*len(orders)+16), `{"ids":[`...)
	recs := make([][]byte, 0, len(orders))
	for i, o := range orders {
		if i > 0 {
			ids = append(ids, ',')
		}
		ids = append(append(append(ids, '"'), o.ID.String()...), '"')
		if !replayed[o.ID] {
			recs = append(recs, o.appendRecord(make([]byte, 0, len(o.Body)+128)))
		}
	}
	if len(recs) > 0 {
		if _, err := in.Spool.Append(r.Context(), recs...); err != nil {
			in.refuseSpool(w, err)
			return
		}
	}
	done = true
	in.counts.accepted.Add(uint64(len(recs)))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	w.Write(append(ids, "]}\n"...))
}

// claimBatch claims the idempotency keys of a batch, in order of ID, so that
// two batches with the same keys never wait for each other in a circle. What is
// claimed must be ended even where ok is false.
func (in *Intake) claimBatch(w http.ResponseWriter, r *http.Request, orders []*Order, keys []string) (claims []*keyEntry, replayed map[ID]bool, ok bool) {
	var keyed []int
	for i, key := range keys {
		if key != "" {
			keyed = append(keyed, i)
		}
	}
	slices.SortFunc(keyed, func(a, b int) int { return bytes.Compare(orders[a].ID[:], orders[b].ID[:]) })
	replayed = map[ID]bool{}
	for n, i := range keyed {
		if n > 0 && orders[i].ID == orders[keyed[n-1]].ID {
			in.counts.invalid.Add(1)
			refuse(w, http.StatusBadRequest, "bad_key", "two orders of the batch have the idempotency key of order "+strconv.Itoa(i+1))
			return claims, nil, false
		}
		e, replay, conflict, err := in.keys.claim(r.Context(), orders[i])
		switch {
		case err != nil:
			return claims, nil, false
		case conflict:
			in.counts.invalid.Add(1)
			refuse(w, http.StatusConflict, "key_conflict", "order "+strconv.Itoa(i+1)+": its idempotency key was posted with another order")
			return claims, nil, false
		case replay:
			in.counts.replayed.Add(1)
			replayed[orders[i].ID] = true
		default:
			claims = append(claims, e)
		}
	}
	return claims, replayed, true
}

func accept(w http.ResponseWriter, id ID) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	b := append(make([]byte, 0, 64), `{"id":"`...)
	w.Write(append(append(b, id.String()...), "\"}\n"...))
}

func (in *Intake) refuseProblem(w http.ResponseWriter, p *Problem) {
	if p.Code == "too_large" {
		in.counts.tooLarge.Add(1)
		refuse(w, http.StatusRequestEntityTooLarge, p.Code, p.Message)
		return
	}
	in.counts.invalid.Add(1)
	refuse(w, http.StatusBadRequest, p.Code, p.Message)
}

func (in *Intake) refuseSpool(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, context.Canceled): // the client is gone
	case errors.Is(err, spool.ErrFull):
		in.counts.full.Add(1)
		w.Header().Set("Retry-After", strconv.Itoa(int(retryAfter.Seconds())))
		refuse(w, http.StatusTooManyRequests, "spool_full", "the spool is full: the order was not taken, try again later")
	case errors.Is(err, spool.ErrTooLarge):
		in.refuseProblem(w, problem("too_large", "the order does not fit into the spool"))
	default:
		in.counts.failed.Add(1)
		in.Log.Error("orders: not made durable", "error", err)
		w.Header().Set("Retry-After", "1")
		refuse(w, http.StatusServiceUnavailable, "not_durable", "the order could not be made durable and was not taken: try again")
	}
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	answer(w, status, map[string]any{"code": code, "error": message})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a client that is gone needs no answer
}

func (in *Intake) status(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, in.Snapshot())
}
