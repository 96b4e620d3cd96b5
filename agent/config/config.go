// Package config keeps the application's config files, and whole directories of
// them, as S3 has them. It owns generations: a new one is verified, checked by a command, put in place
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
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/internal/awsconf/instance"
)

// getObject is a function and not an interface: in a program that links
// text/template the linker keeps every method of a client held in one.
type (
	getObject   func(context.Context, *s3.GetObjectInput, ...func(*s3.Options)) (*s3.GetObjectOutput, error)
	listObjects func(context.Context, *s3.ListObjectsV2Input, ...func(*s3.Options)) (*s3.ListObjectsV2Output, error)
)

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

// Object keeps one object, or all below a prefix, at its path. Make it with New.
type Object struct {
	s     settings.Object
	get   getObject
	list  listObjects
	units units // nil: no systemd, units are not told
	// ready is asked after the unit was told: nil once the application works.
	ready func(ctx context.Context, unit string) error
	store store
	log   *slog.Logger

	refused string // ETag of what Sync said ErrInvalid of last

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
	Files      int        `json:"files,omitempty"`    // of a directory
	Checksum   string     `json:"checksum,omitempty"` // what was verified of it beside SHA-256
	AppliedAt  *time.Time `json:"applied_at,omitempty"`
	Fresh      bool       `json:"fresh"` // S3 has confirmed it since the agent started
	Error      string     `json:"error,omitempty"`
}

// Options are what an Object needs besides its settings.
type Options struct {
	Get   getObject
	List  listObjects // for directories alone
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
	if s.Tree() && o.List == nil {
		return nil, fmt.Errorf("keep %s: there is nothing to list it with", s.Source)
	}
	c := &Object{s: s, get: o.Get, list: o.List, units: o.Units, ready: o.Ready, store: st, log: o.Log}
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
		VersionID: r.VersionID, Files: len(r.Files), Checksum: r.Checksum, Fresh: fresh || c.status.Fresh && err != nil,
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
// generation went live, or came and was refused or rolled back. Where S3 does
// not answer and a generation is cached, that one is put in place and the error
// wraps ErrUnreachable.
func (c *Object) Sync(ctx context.Context) (changed bool, err error) {
	var etag string
	if c.s.Tree() {
		changed, etag, err = c.syncTree(ctx)
	} else {
		changed, etag, err = c.syncObject(ctx)
	}
	if errors.Is(err, ErrInvalid) && etag != "" && etag != c.refused {
		// Something came, and it is told once.
		c.refused, changed = etag, true
	}
	c.show(err, err == nil)
	return changed, err
}

func (c *Object) syncObject(ctx context.Context) (changed bool, etag string, err error) {
	bucket, key, err := settings.SplitS3(c.s.Source)
	if err != nil {
		return false, "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	in := &s3.GetObjectInput{Bucket: &bucket, Key: &key}
	if c.s.VersionID != "" {
		in.VersionId = &c.s.VersionID
	}
	intact := c.store.intact()
	if intact && c.meetsPins(c.store.record) {
		in.IfNoneMatch = aws.String(c.store.record.ETag)
	}
	out, err := c.get(ctx, in, askChecksums)
	if status(err) == http.StatusNotModified {
		return false, "", nil
	}
	if err != nil {
		return false, "", c.unreachable(c.classify(err, bucket, c.s.Source), intact)
	}
	defer out.Body.Close()
	etag = aws.ToString(out.ETag)
	if err := c.triedBefore(etag, "ETag "+etag); err != nil {
		return false, etag, err
	}
	if c.s.VersionID != "" && aws.ToString(out.VersionId) != c.s.VersionID {
		return false, etag, fmt.Errorf("%w: %s was asked for in version %s and came in version %q; correct version_id, or turn the bucket's versioning on", ErrInvalid, c.s.Source, c.s.VersionID, aws.ToString(out.VersionId))
	}
	data, err := c.read(out, c.s.Source, c.s.MaxBytes)
	if err != nil {
		return false, etag, err
	}
	sum := sha256.Sum256(data)
	next := record{
		Generation: c.store.record.Generation + 1, SHA256: hex.EncodeToString(sum[:]), ETag: etag,
		VersionID: aws.ToString(out.VersionId), Pin: c.s.Checksum,
	}
	if c.s.SHA256 != "" && c.s.SHA256 != next.SHA256 {
		return false, etag, fmt.Errorf("%w: %s has SHA-256 %s and not the pinned %s; upload the right object or correct sha256", ErrInvalid, c.s.Source, next.SHA256, c.s.SHA256)
	}
	if next.Checksum, err = verify(data, held(out), c.s.Checksum, partSize(ctx, c.get, in, etag)); err != nil {
		return false, etag, c.notVerified(c.s.Source, err)
	}
	if intact && next.SHA256 == c.store.record.SHA256 {
		// Uploaded again unchanged.
		next.Generation, next.AppliedAt = c.store.record.Generation, c.store.record.AppliedAt
		return false, etag, c.store.commit(next)
	}
	changed, err = c.apply(ctx, fileGeneration{&c.store, data}, next)
	return changed, etag, err
}

// meetsPins says whether a generation is what the settings pin.
func (c *Object) meetsPins(r record) bool {
	return (c.s.SHA256 == "" || c.s.SHA256 == r.SHA256) && c.s.Checksum == r.Pin && (c.s.VersionID == "" || c.s.VersionID == r.VersionID)
}

// triedBefore refuses a generation that failed and has not changed.
func (c *Object) triedBefore(etag, name string) error {
	if etag == "" || etag != c.store.record.BadETag {
		return nil
	}
	return fmt.Errorf("%w: %s with %s failed before and has not changed; %s", ErrRolledBack, c.s.Source, name, c.store.record.BadReason)
}

// unreachable puts the cached generation in place where S3 does not answer and
// the path has something else.
func (c *Object) unreachable(err error, intact bool) error {
	if errors.Is(err, ErrUnreachable) && !intact && c.store.record.Generation > 0 {
		return errors.Join(err, c.store.restore())
	}
	return err
}

// notVerified tells bytes that were damaged on the way, which are worth another
// try, from a pin that is not met.
func (c *Object) notVerified(source string, err error) error {
	if errors.Is(err, errDamaged) {
		return fmt.Errorf("%w: what came of %s does not have the checksum that S3 holds: %w; the agent tries again", ErrInvalid, source, err)
	}
	return fmt.Errorf("%w: %s: %w", ErrInvalid, source, err)
}

// read reads the body of an answer.
func (c *Object) read(out *s3.GetObjectOutput, source string, limit int64) ([]byte, error) {
	tooLarge := fmt.Errorf("%w: %s is larger than %d bytes; raise max_bytes if that is right", ErrInvalid, source, limit)
	if aws.ToInt64(out.ContentLength) > limit {
		return nil, tooLarge
	}
	data, err := io.ReadAll(io.LimitReader(out.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%w: read %s: %w; the agent tries again", ErrUnreachable, source, err)
	}
	if int64(len(data)) > limit {
		return nil, tooLarge
	}
	return data, nil
}

// generation is what came from S3 on its way to the path.
type generation interface {
	// stage writes it beside the path, with the owner, mode and SELinux
	// contexts that it will have, and returns where.
	stage() (*staged, error)
	// put switches the path to it and keeps its content for a restore. What was
	// good before stays in the store until the store's commit.
	put(*staged, record) error
}

// apply puts a new generation in place, or the old one back.
func (c *Object) apply(ctx context.Context, g generation, next record) (bool, error) {
	staged, err := g.stage()
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
	if err := g.put(staged, next); err != nil {
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
	c.log.Info("config generation is live", "source", c.s.Source, "path", c.s.Path, "generation", next.Generation, "sha256", next.SHA256, "verified", next.Checksum)
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

// classify turns an answer of S3's to a request for source into one of the
// package's errors.
func (c *Object) classify(err error, bucket, source string) error {
	switch code, s := codeOf(err), status(err); {
	case code == "NoSuchBucket":
		return fmt.Errorf("%w: bucket %s does not exist: %w; create it or correct the config's source", ErrMissing, bucket, err)
	case s == http.StatusNotFound:
		return fmt.Errorf("%w: %s does not exist: %w; upload it or correct the config's source", ErrMissing, source, err)
	case s == http.StatusForbidden && Skewed(code):
		return fmt.Errorf("%w: the instance's clock is off: %w; set the clock", ErrUnreachable, err)
	case s == http.StatusForbidden && !stale(code):
		return fmt.Errorf("%w: the role may not read %s, or it does not exist and the role may not list %s: %w; allow s3:GetObject on it (and s3:ListBucket to tell the two apart), or upload it", ErrDenied, source, bucket, err)
	case s == http.StatusPreconditionFailed || s == http.StatusMovedPermanently || s == http.StatusBadRequest && code != "ExpiredToken":
		return fmt.Errorf("%w: %s: %w", ErrUnreachable, source, err)
	}
	return fmt.Errorf("%w: %s: %w; the agent tries again", ErrUnreachable, source, err)
}

// classifyList is classify for a listing.
func (c *Object) classifyList(err error, bucket string) error {
	if code := codeOf(err); status(err) == http.StatusForbidden && !Skewed(code) && !stale(code) {
		return fmt.Errorf("%w: the role may not list %s: %w; allow s3:ListBucket on the bucket and s3:GetObject on %s*", ErrDenied, c.s.Source, err, c.s.Source)
	}
	return c.classify(err, bucket, c.s.Source)
}

func codeOf(err error) string {
	var ae smithy.APIError
	if errors.As(err, &ae) {
		return ae.ErrorCode()
	}
	return ""
}

// stale says that other credentials may be let in.
func stale(code string) bool {
	return code == "InvalidAccessKeyId" || code == "ExpiredToken" || code == "InvalidToken"
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
	cause := report.Cause{Stage: report.StageConfig, File: c.s.Path, Message: "The config " + c.s.Source + " could not be put in place: " + report.Redact(instance.Plain(err)) + "."}
	var ae smithy.APIError
	if errors.As(err, &ae) {
		// What is wrapped around it is said by the code.
		cause.Message = "The config " + c.s.Source + " could not be fetched: " + report.Redact(instance.Plain(ae)) + "."
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
