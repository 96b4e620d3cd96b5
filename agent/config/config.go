// Package config keeps the application's config files as S3 has them. It owns
// generations: a new one is verified, checked by a command, put in place
// atomically and made known to the application's unit, and if any of that
// fails the last good one comes back and the bad one is not tried again. It
// writes the paths the settings name and its own state directory, nothing else.
package config

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
)

// getObject is a function and not an interface: in a program that links
// text/template the linker keeps every method of a client held in one.
type getObject func(context.Context, *s3.GetObjectInput, ...func(*s3.Options)) (*s3.GetObjectOutput, error)

type units interface {
	Run(ctx context.Context, argv []string, timeout time.Duration) error
	Reload(ctx context.Context, unit string) error
	Restart(ctx context.Context, unit string) error
}

const (
	commandTimeout = time.Minute
	unitTimeout    = 2 * time.Minute
	readyTimeout   = time.Minute
)

// Object keeps one object at its path. Make it with New.
type Object struct {
	s     settings.Object
	get   getObject
	units units // nil: no systemd, units are not told
	// ready is asked after the unit was told: nil once the application works.
	ready func(ctx context.Context, unit string) error
	store store
	log   *slog.Logger

	mu     sync.Mutex
	status Status
}

// Status is what is known of an object.
type Status struct {
	Source     string     `json:"source"`
	Path       string     `json:"path"`
	Generation int        `json:"generation"` // counts from 1; 0: none yet
	SHA256     string     `json:"sha256,omitempty"`
	ETag       string     `json:"etag,omitempty"`
	VersionID  string     `json:"version_id,omitempty"`
	AppliedAt  *time.Time `json:"applied_at,omitempty"`
	Fresh      bool       `json:"fresh"` // S3 has confirmed it since the agent started
	Error      string     `json:"error,omitempty"`
}

// Options are what an Object needs besides its settings.
type Options struct {
	Get   getObject
	Units units
	Ready func(ctx context.Context, unit string) error
	Dir   string // state directory, /var/lib/lecafe/config
	Root  string // the path's root; "/" on an instance
	Log   *slog.Logger
}

// New returns the object that s describes; s has its defaults.
func New(s settings.Object, o Options) (*Object, error) {
	st, err := openStore(o.Dir, o.Root, s)
	if err != nil {
		return nil, err
	}
	c := &Object{s: s, get: o.Get, units: o.Units, ready: o.Ready, store: st, log: o.Log}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.show(nil, false)
	return c, nil
}

// Status returns what is known now.
func (c *Object) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

func (c *Object) show(err error, fresh bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.store.record
	c.status = Status{
		Source: c.s.Source, Path: c.s.Path, Generation: r.Generation, SHA256: r.SHA256, ETag: r.ETag,
		VersionID: r.VersionID, Fresh: fresh || c.status.Fresh && err != nil,
	}
	if !r.AppliedAt.IsZero() {
		c.status.AppliedAt = &r.AppliedAt
	}
	if err != nil {
		c.status.Error = report.Redact(err.Error())
	}
}

// Errors of Sync, for errors.Is. What none of them fits is ErrUnreachable.
var (
	ErrMissing     = errors.New("object missing")
	ErrDenied      = errors.New("object denied")
	ErrInvalid     = errors.New("object not valid")
	ErrUnreachable = errors.New("object unreachable")
	ErrRolledBack  = errors.New("rolled back")
)

// Sync asks S3 once and brings the path up to date. changed says that a new
// generation went live, or came and was rolled back. Where S3 does not answer
// and a generation is cached, that one is put in place and the error wraps
// ErrUnreachable.
func (c *Object) Sync(ctx context.Context) (changed bool, err error) {
	changed, err = c.sync(ctx)
	c.show(err, err == nil)
	return changed, err
}

func (c *Object) sync(ctx context.Context) (bool, error) {
	bucket, key, err := settings.SplitS3(c.s.Source)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	in := &s3.GetObjectInput{Bucket: &bucket, Key: &key, ChecksumMode: types.ChecksumModeEnabled}
	if c.s.VersionID != "" {
		in.VersionId = &c.s.VersionID
	}
	intact := c.store.intact()
	if intact && c.pinned(c.store.record.SHA256) {
		in.IfNoneMatch = aws.String(c.store.record.ETag)
	}
	out, err := c.get(ctx, in)
	if status(err) == http.StatusNotModified {
		return false, nil
	}
	if err != nil {
		err = c.classify(err, bucket, key)
		if errors.Is(err, ErrUnreachable) && !intact && c.store.record.Generation > 0 {
			if rerr := c.store.restore(); rerr != nil {
				return false, errors.Join(err, rerr)
			}
		}
		return false, err
	}
	defer out.Body.Close()
	etag := aws.ToString(out.ETag)
	if etag != "" && etag == c.store.record.BadETag {
		return false, fmt.Errorf("%w: %s with ETag %s failed before and has not changed; %s", ErrRolledBack, c.s.Source, etag, c.store.record.BadReason)
	}
	data, err := c.read(out)
	if err != nil {
		return false, err
	}
	sum := sha256.Sum256(data)
	next := record{
		Generation: c.store.record.Generation + 1, SHA256: hex.EncodeToString(sum[:]), ETag: etag,
		VersionID: aws.ToString(out.VersionId),
	}
	if !c.pinned(next.SHA256) {
		return false, fmt.Errorf("%w: %s has SHA-256 %s and not the pinned %s; upload the right object or correct sha256", ErrInvalid, c.s.Source, next.SHA256, c.s.SHA256)
	}
	if intact && next.SHA256 == c.store.record.SHA256 {
		// Uploaded again unchanged.
		next.Generation, next.AppliedAt = c.store.record.Generation, c.store.record.AppliedAt
		return false, c.store.commit(next)
	}
	return c.apply(ctx, data, next)
}

func (c *Object) pinned(sum string) bool { return c.s.SHA256 == "" || c.s.SHA256 == sum }

// read reads the body; the SDK checks it against the checksum S3 holds.
func (c *Object) read(out *s3.GetObjectOutput) ([]byte, error) {
	tooLarge := fmt.Errorf("%w: %s is larger than %d bytes; raise max_bytes if that is right", ErrInvalid, c.s.Source, c.s.MaxBytes)
	if aws.ToInt64(out.ContentLength) > c.s.MaxBytes {
		return nil, tooLarge
	}
	data, err := io.ReadAll(io.LimitReader(out.Body, c.s.MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("%w: read %s: %w; the agent tries again", ErrUnreachable, c.s.Source, err)
	}
	if int64(len(data)) > c.s.MaxBytes {
		return nil, tooLarge
	}
	return data, nil
}

// apply puts a new generation in place, or the old one back.
func (c *Object) apply(ctx context.Context, data []byte, next record) (bool, error) {
	staged, err := c.store.stage(data)
	if err != nil {
		return false, err
	}
	defer staged.discard()
	if len(c.s.Validate) > 0 {
		if err := c.validate(ctx, staged.path); err != nil {
			if ctx.Err() != nil {
				return false, err
			}
			// Nothing was switched: the old generation is in place.
			why := fmt.Sprintf("the validation command refused it: %v", err)
			return true, errors.Join(
				fmt.Errorf("%w: %s: %s; the generation before it stays", ErrInvalid, c.s.Source, why),
				c.store.condemn(next.ETag, why),
			)
		}
	}
	first := c.store.record.Generation == 0
	if err := c.store.put(staged, data, next); err != nil {
		return false, err
	}
	if err := c.tell(ctx); err != nil {
		if ctx.Err() != nil {
			return false, err
		}
		if first {
			// There is nothing to go back to.
			return true, fmt.Errorf("%w: %s: %w", ErrInvalid, c.s.Source, err)
		}
		return true, c.rollback(ctx, next.ETag, err)
	}
	next.AppliedAt = time.Now().UTC().Truncate(time.Millisecond)
	if err := c.store.commit(next); err != nil {
		return true, err
	}
	c.log.Info("config generation is live", "source", c.s.Source, "path", c.s.Path, "generation", next.Generation, "sha256", next.SHA256)
	return true, nil
}

// validate runs the validation command; an argument {} stands for the file to
// be checked.
func (c *Object) validate(ctx context.Context, path string) error {
	if c.units == nil {
		return errors.New("there is no systemd to run it")
	}
	argv := slices.Clone([]string(c.s.Validate))
	for i := range argv {
		argv[i] = strings.ReplaceAll(argv[i], "{}", path)
	}
	return c.units.Run(ctx, argv, commandTimeout)
}

// tell lets the application's unit take the file and waits until it works.
func (c *Object) tell(ctx context.Context) error {
	if c.units == nil {
		return nil
	}
	unit, f := c.s.ReloadUnit, c.units.Reload
	if c.s.RestartUnit != "" {
		unit, f = c.s.RestartUnit, c.units.Restart
	}
	if unit == "" {
		return nil
	}
	u, cancel := context.WithTimeout(ctx, unitTimeout)
	defer cancel()
	if err := f(u, unit); err != nil {
		return err
	}
	if c.ready == nil {
		return nil
	}
	r, cancelReady := context.WithTimeout(ctx, readyTimeout)
	defer cancelReady()
	if err := c.ready(r, unit); err != nil {
		return fmt.Errorf("%s is not ready with it: %w", unit, err)
	}
	return nil
}

func (c *Object) rollback(ctx context.Context, etag string, cause error) error {
	err := fmt.Errorf("%w: %s: %w; the generation before it is back", ErrRolledBack, c.s.Source, cause)
	errs := []error{err, c.store.condemn(etag, cause.Error()), c.store.restore()}
	if terr := c.tell(ctx); terr != nil {
		errs = append(errs, fmt.Errorf("after the rollback: %w", terr))
	}
	return errors.Join(errs...)
}

// classify turns an answer of S3's into one of the package's errors.
func (c *Object) classify(err error, bucket, key string) error {
	var ae smithy.APIError
	code := ""
	if errors.As(err, &ae) {
		code = ae.ErrorCode()
	}
	switch s := status(err); {
	case code == "NoSuchBucket":
		return fmt.Errorf("%w: bucket %s does not exist: %w; create it or correct the config's source", ErrMissing, bucket, err)
	case s == http.StatusNotFound:
		return fmt.Errorf("%w: %s does not exist: %w; upload it or correct the config's source", ErrMissing, c.s.Source, err)
	case s == http.StatusForbidden && Skewed(code):
		return fmt.Errorf("%w: the instance's clock is off: %w; set the clock", ErrUnreachable, err)
	case s == http.StatusForbidden && code != "InvalidAccessKeyId" && code != "ExpiredToken" && code != "InvalidToken":
		return fmt.Errorf("%w: the role may not read %s, or it does not exist and the role may not list %s: %w; allow s3:GetObject on it (and s3:ListBucket to tell the two apart), or upload it", ErrDenied, c.s.Source, bucket, err)
	case s == http.StatusPreconditionFailed || s == http.StatusMovedPermanently || s == http.StatusBadRequest && code != "ExpiredToken":
		return fmt.Errorf("%w: %s: %w", ErrUnreachable, c.s.Source, err)
	}
	return fmt.Errorf("%w: %s/%s: %w; the agent tries again", ErrUnreachable, bucket, key, err)
}

// Skewed says whether an API error code means that the caller's clock is off.
func Skewed(code string) bool {
	return code == "RequestTimeTooSkewed" || code == "RequestExpired" || code == "RequestInTheFuture"
}

func status(err error) int {
	var re *smithyhttp.ResponseError
	if errors.As(err, &re) {
		return re.HTTPStatusCode()
	}
	return 0
}

// Cause turns an error of Sync into a report's cause.
func (c *Object) Cause(err error) report.Cause {
	cause := report.Cause{Stage: report.StageConfig, File: c.s.Path, Message: "The config " + c.s.Source + " could not be put in place: " + report.Redact(err.Error()) + "."}
	var ae smithy.APIError
	if errors.As(err, &ae) {
		// Request IDs are of no use to who reads this.
		cause.Message = "The config " + c.s.Source + " could not be fetched: " + report.Redact(ae.ErrorCode()+": "+ae.ErrorMessage()) + "."
	}
	switch {
	case errors.Is(err, ErrRolledBack):
		cause.Code = report.CodeConfigRolledBack
	case errors.Is(err, ErrMissing):
		cause.Code = report.CodeConfigMissing
		cause.Fix = "Upload it, or correct the config's source."
	case errors.Is(err, ErrDenied):
		cause.Code = report.CodeConfigDenied
		cause.Fix = "Allow the role s3:GetObject on it, and s3:ListBucket on the bucket: without that a missing object is denied too."
	case errors.Is(err, ErrInvalid):
		cause.Code = report.CodeConfigInvalid
	case !errors.Is(err, ErrUnreachable):
		// It came, and cannot be written or told of.
		cause.Code = report.CodeConfigInvalid
	default:
		cause.Code = report.CodeConfigUnreachable
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			cause.Fix = "Look at the route to S3: a VPC endpoint, a NAT gateway or aws.proxy."
		}
	}
	// A generation that serves makes it a lesser evil.
	if c.store.record.Generation > 0 && cause.Code != report.CodeConfigRolledBack {
		cause.Severity = report.SeverityDegraded
		cause.Message += " The generation from before serves."
	}
	return cause
}

// NextPoll is when to ask S3 again: the settings' interval, give or take a
// fifth, so that a fleet does not ask at once.
func NextPoll(interval time.Duration) time.Duration {
	return interval*4/5 + rand.N(interval*2/5+1)
}
