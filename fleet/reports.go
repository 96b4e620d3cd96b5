package fleet

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
)

// MaxReport is the largest report that is read, in bytes.
const MaxReport = 1 << 20

// Store is S3 as reports are read from it and a Remedy writes to it;
// *s3.Client has it.
type Store interface {
	ListObjectsV2(context.Context, *s3.ListObjectsV2Input, ...func(*s3.Options)) (*s3.ListObjectsV2Output, error)
	GetObject(context.Context, *s3.GetObjectInput, ...func(*s3.Options)) (*s3.GetObjectOutput, error)
	PutObject(context.Context, *s3.PutObjectInput, ...func(*s3.Options)) (*s3.PutObjectOutput, error)
}

// Reports reads the reports of a bucket and prefix.
type Reports struct {
	Bucket, Prefix string
	api            Store
	skew           time.Duration // that S3's clock is ahead of this machine's
}

// NewReports returns the reports at uri, s3://bucket/prefix. Without a prefix it
// is the agents' own default: they never write to the top of a bucket.
func NewReports(api Store, uri string) (*Reports, error) {
	rest, ok := strings.CutPrefix(uri, "s3://")
	bucket, prefix, _ := strings.Cut(rest, "/")
	if !ok || bucket == "" {
		return nil, fmt.Errorf("reports %q: want s3://bucket/prefix", uri)
	}
	return &Reports{Bucket: bucket, Prefix: cmp.Or(strings.Trim(prefix, "/"), settings.DefaultReportPrefix), api: api}, nil
}

// Store is where the reports are.
func (r *Reports) Store() Store { return r.api }

// URI is the address of an S3 key in the bucket.
func (r *Reports) URI(name string) string { return "s3://" + r.Bucket + "/" + name }

// List yields the reports of all senders, or of one (ROLEID:i-...), in pages
// of up to 1,000 for each call. Keys that are no report's are yielded with an
// empty Key.
func (r *Reports) List(ctx context.Context, sender string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		prefix := r.Prefix
		if prefix != "" {
			prefix += "/"
		}
		if sender != "" {
			prefix += sender + "/"
		}
		in := &s3.ListObjectsV2Input{Bucket: &r.Bucket, Prefix: aws.String(prefix)}
		for {
			out, err := r.api.ListObjectsV2(ctx, in)
			if err != nil {
				yield(Object{}, fmt.Errorf("list reports in %s: %w", r.URI(r.Prefix), err))
				return
			}
			if skew, ok := awsmiddleware.GetAttemptSkew(out.ResultMetadata); ok {
				r.skew = skew
			}
			for _, o := range out.Contents {
				obj := Object{Name: aws.ToString(o.Key), ModifiedAt: aws.ToTime(o.LastModified), Size: aws.ToInt64(o.Size)}
				if k, err := report.ParseKey(obj.Name); err == nil && k.Prefix == r.Prefix {
					obj.Key = k
				}
				if !yield(obj, nil) {
					return
				}
			}
			if !aws.ToBool(out.IsTruncated) || out.NextContinuationToken == nil {
				return
			}
			in.ContinuationToken = out.NextContinuationToken
		}
	}
}

// refusedError is a report that was read and is not believed.
type refusedError struct {
	reason Reason
	detail string
}

// ErrRefused says that a report was read and is not believed.
var ErrRefused = errors.New("report refused")

func (e *refusedError) Is(target error) bool { return target == ErrRefused }

func (e *refusedError) Error() string { return string(e.reason) + ": " + e.detail }

// Get reads one report and checks that it is what its key says. A report that
// is not believed is a *refusedError.
func (r *Reports) Get(ctx context.Context, o Object) (*report.Report, error) {
	if o.Size > MaxReport {
		return nil, &refusedError{Oversized, fmt.Sprintf("%d bytes, at most %d are read", o.Size, MaxReport)}
	}
	out, err := r.api.GetObject(ctx, &s3.GetObjectInput{Bucket: &r.Bucket, Key: &o.Name})
	if err != nil {
		return nil, fmt.Errorf("get report %s: %w", r.URI(o.Name), err)
	}
	defer out.Body.Close()
	b, err := io.ReadAll(io.LimitReader(out.Body, MaxReport+1))
	if err != nil {
		return nil, fmt.Errorf("get report %s: %w", r.URI(o.Name), err)
	}
	return check(b, o.Key)
}

// check decodes a report and compares it with the key it was found at, whose
// sender is to be trusted (IAM confines a sender to its own keys).
func check(b []byte, k report.Key) (*report.Report, error) {
	if len(b) > MaxReport {
		return nil, &refusedError{Oversized, fmt.Sprintf("over %d bytes", MaxReport)}
	}
	rep, err := report.Decode(b)
	if err != nil {
		var head struct{ Schema string }
		if json.Unmarshal(b, &head) == nil && strings.HasPrefix(head.Schema, "lecafe.report/") && head.Schema != report.Schema {
			return nil, &refusedError{Schema, fmt.Sprintf("schema %q, this program reads %s", head.Schema, report.Schema)}
		}
		return nil, &refusedError{Malformed, "not JSON of " + report.Schema}
	}
	switch {
	case rep.Sender != k.Sender:
		return nil, &refusedError{Forged, fmt.Sprintf("it says it is from %q and was written by %q", clip(rep.Sender), k.Sender)}
	case rep.Instance.ID != k.InstanceID():
		return nil, &refusedError{Forged, fmt.Sprintf("it speaks of %q and was written by %q", clip(rep.Instance.ID), k.Sender)}
	case report.KeyOf(k.Prefix, rep).String() != k.String():
		return nil, &refusedError{Malformed, "its verdict, cause, time or ID is not what its key says"}
	}
	return rep, nil
}

// clip keeps text of strangers short.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// causeOf is the report's first cause; nil without one.
func causeOf(rep *report.Report) *Cause {
	if len(rep.Causes) == 0 {
		return nil
	}
	c := rep.Causes[0]
	return &Cause{Code: c.Code, Stage: c.Stage, Message: c.Message, Fix: c.Fix, Source: "report",
		ExitCode: c.ExitCode, Signal: c.Signal, File: c.File, Line: c.Line, Command: c.Command, Unit: c.Unit}
}

// shelf holds the listing between passes, by sender.
type shelf struct {
	bySender map[string][]Object
	strange  []Object // keys that are no report's
	marks    map[string]progress
	pages    int
}

// fill replaces everything with a full listing.
func (s *shelf) fill(ctx context.Context, r *Reports) error {
	fresh := shelf{bySender: make(map[string][]Object, len(s.bySender))}
	n := 0
	for o, err := range r.List(ctx, "") {
		if err != nil {
			return err
		}
		n++
		if o.Key.Sender == "" {
			if strings.HasSuffix(o.Name, "/") || strings.Contains("/"+o.Name, "/"+fleetDir) {
				continue // a console's folder marker, a watcher's own
			}
			if m, err := report.ParseMark(o.Name); err == nil && m.Prefix == r.Prefix {
				fresh.mark(m, o.ModifiedAt)
				continue
			}
			if len(fresh.strange) < 1000 {
				fresh.strange = append(fresh.strange, o)
			}
			continue
		}
		fresh.bySender[o.Key.Sender] = append(fresh.bySender[o.Key.Sender], o)
	}
	fresh.pages = 1 + n/1000
	*s = fresh
	return nil
}

// refill reads one sender's reports anew.
func (s *shelf) refill(ctx context.Context, r *Reports, sender string) error {
	if s.bySender == nil {
		s.bySender = map[string][]Object{}
	}
	var fresh shelf
	var list []Object
	for o, err := range r.List(ctx, sender) {
		if err != nil {
			return err
		}
		if o.Key.Sender == sender {
			list = append(list, o)
		} else if m, err := report.ParseMark(o.Name); err == nil && m.Prefix == r.Prefix {
			fresh.mark(m, o.ModifiedAt)
		}
	}
	s.bySender[sender] = list
	delete(s.marks, sender)
	if p, ok := fresh.marks[sender]; ok && len(list) == 0 {
		s.mark(report.Mark{Sender: sender, Stage: p.stage}, p.at)
	}
	return nil
}

func (s *shelf) all() []Object {
	n := 0
	for _, l := range s.bySender {
		n += len(l)
	}
	list := make([]Object, 0, n)
	for _, l := range s.bySender {
		list = append(list, l...)
	}
	return list
}

// refusals of strange keys: those below a sender's directory of the prefix,
// where only reports belong.
func (s *shelf) refusals() []Refusal {
	var list []Refusal
	for _, o := range s.strange {
		list = append(list, Refusal{Name: o.Name, Reason: Malformed, Detail: "its key is not a report's"})
	}
	slices.SortFunc(list, func(a, b Refusal) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// asRefused returns the refusal in err.
func asRefused(err error) (*refusedError, bool) {
	var r *refusedError
	return r, errors.As(err, &r)
}

// decodeMessage reads a report as SQS carries it: the JSON itself.
func decodeMessage(body string, sender string) (*report.Report, error) {
	if len(body) > MaxReport {
		return nil, &refusedError{Oversized, fmt.Sprintf("over %d bytes", MaxReport)}
	}
	rep, err := report.Decode(bytes.TrimSpace([]byte(body)))
	if err != nil {
		return nil, &refusedError{Malformed, "not a report of " + report.Schema}
	}
	if sender != "" && rep.Sender != sender {
		return nil, &refusedError{Forged, fmt.Sprintf("it says it is from %q and was sent by %q", clip(rep.Sender), clip(sender))}
	}
	return rep, nil
}
