package bake

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/internal/atomicfile"
)

// journalSchema is the value of journal.Schema.
const journalSchema = "lecafe.journal/v1"

// Status is how far a bake is.
type Status string

// A bake that is neither done nor gone is running until its image is proved.
const (
	StatusRunning   Status = "running"
	StatusCommitted Status = "committed" // the image stands: from here on all goes forward
	StatusUndoing   Status = "undoing"   // from here on all goes back
)

// journal is one JSON object in S3, rewritten as a whole before every call
// that makes something. It is deleted last.
type journal struct {
	Schema  string    `json:"schema"`
	BakeID  string    `json:"bake_id"`
	Recipe  string    `json:"recipe"`
	Region  string    `json:"region"`
	Staging string    `json:"staging"` // s3://bucket/prefix
	Status  Status    `json:"status"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"` // gc may take what is left after that, whoever is alive
	Owner   owner     `json:"owner"`
	Beat    time.Time `json:"beat"` // the owner was alive
	Serial  int       `json:"serial"`
	Facts   facts     `json:"facts"`
	Calls   []callLog `json:"calls"` // the newest last, at most maxCalls

	age *time.Duration // since it was written, by S3's clock alone; nil: not known
}

// facts is what a bake knows about itself. Zero fields are not known yet.
type facts struct {
	SourceImage    string            `json:"source_image,omitempty"`
	RootDevice     string            `json:"root_device,omitempty"`
	Hash           string            `json:"hash,omitempty"`
	ImageName      string            `json:"image_name,omitempty"`
	Description    string            `json:"description,omitempty"`
	ImageTags      map[string]string `json:"image_tags,omitempty"`
	Files          map[string]file   `json:"files,omitempty"` // staged: builder, agent, bundle
	CA             string            `json:"ca,omitempty"`    // content of builder.ca_bundle
	Staged         bool              `json:"staged,omitempty"`
	Deadline       time.Time         `json:"deadline,omitzero"` // the builder's
	Group          string            `json:"group,omitempty"`   // temporary security group
	Attempt        int               `json:"attempt"`           // of RunInstances; with the bake ID it is the client token
	Instance       string            `json:"instance,omitempty"`
	Provisioned    bool              `json:"provisioned,omitempty"`
	Used           int64             `json:"used,omitempty"`
	Image          string            `json:"image,omitempty"`
	Given          bool              `json:"given,omitempty"` // the image is proved, not made: it is not ours to remove
	Snapshots      []string          `json:"snapshots,omitempty"`
	Copies         map[string]string `json:"copies,omitempty"`     // region → image
	Template       string            `json:"template,omitempty"`   // the canary's temporary launch template
	Canary         string            `json:"canary,omitempty"`     // instance
	CanaryTry      int               `json:"canary_try,omitempty"` // each has a client token of its own
	CanaryDeadline time.Time         `json:"canary_deadline,omitzero"`
	CanaryData     string            `json:"canary_user_data,omitempty"`
	CanaryPassed   bool              `json:"canary_passed,omitempty"`
	Phases         []Phase           `json:"phases,omitempty"`
}

type file struct {
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

// callLog is one call that changes something. One that makes something is
// written before it is made, others with the next writing.
type callLog struct {
	N      int       `json:"n"`
	Action string    `json:"action"`
	On     string    `json:"on,omitempty"`
	At     time.Time `json:"at"`
}

const maxCalls = 200

// owner is the process that drives a bake. On its own machine a dead process
// is seen at once, elsewhere by the beats that do not come.
type owner struct {
	ID    string `json:"id"`
	Host  string `json:"host"` // boot ID and PID namespace: one kernel's process numbers
	PID   int    `json:"pid"`
	Start string `json:"start"` // of the process, in clock ticks: PIDs are used again
}

// leaseTime is how long a bake without a beat counts as driven; the owner
// beats three times as often.
const leaseTime = 90 * time.Second

func newOwner() owner {
	pid := os.Getpid()
	return owner{ID: randomHex(8), Host: thisHost(), PID: pid, Start: startOf(pid)}
}

func thisHost() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // not Linux: only beats tell
	}
	ns, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(boot)) + " " + ns
}

// startOf is when a process began; empty when it is not there, or dead and only
// not waited for: what a container's first process adopts may stay so.
func startOf(pid int) string {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return ""
	}
	// The command in parentheses may hold spaces.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return ""
	}
	return fields[19]
}

// dead says that nobody drives the bake any more. The owner's clock and this
// machine's may differ by more than the lease: where now is this machine's (clock),
// S3's clock must agree.
func (j *journal) dead(now time.Time, clock bool) bool {
	o := j.Owner
	if o.Host != "" && o.Host == thisHost() {
		if err := syscall.Kill(o.PID, 0); errors.Is(err, syscall.ESRCH) || startOf(o.PID) != o.Start {
			return true
		}
	}
	if clock && j.age != nil && *j.age >= 0 && *j.age <= leaseTime {
		return false
	}
	return now.Sub(j.Beat) > leaseTime
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}

// ErrTakenOver says that another process drives the bake now.
var ErrTakenOver = errors.New("another process drives this bake")

// DefaultStateDir is where copies of journals are kept for gc on this machine,
// whoever began the bake; empty where there is no home.
func DefaultStateDir() string {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "lecafe", "bakes")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".local", "state", "lecafe", "bakes")
}

// store keeps one bake's journal in S3, and a copy on the local disk.
type store struct {
	s3     s3API
	bucket string
	base   string // PREFIX/BAKE-ID, without trailing slash
	local  string // file of the copy; empty: none
	now    func() time.Time
	warn   func(format string, args ...any)

	mu   sync.Mutex
	told bool // that there is no copy
	j    journal
	etag string // of the journal in S3
}

func (s *store) key(name string) string { return path.Join(s.base, name) }

const journalName = "journal.json"

// Location is where the journal is: the value of the tag lecafe:journal.
func (s *store) Location() string { return "s3://" + s.bucket + "/" + s.key(journalName) }

// update changes the journal and writes it. An error means that the journal in
// S3 does not say what f said, or may not: the call it was for is not made.
func (s *store) update(ctx context.Context, f func(*journal)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.j)
	s.j.Serial++
	s.j.Beat = s.now().UTC()
	data, err := json.Marshal(&s.j)
	if err != nil {
		return fmt.Errorf("encode journal: %w", err)
	}
	in := &s3.PutObjectInput{Bucket: &s.bucket, Key: aws.String(s.key(journalName)), Body: bytes.NewReader(data), ContentType: aws.String("application/json")}
	if s.etag == "" {
		in.IfNoneMatch = aws.String("*")
	} else {
		in.IfMatch = &s.etag
	}
	for wait := 100 * time.Millisecond; ; wait *= 2 {
		in.Body = bytes.NewReader(data)
		out, err := s.s3.PutObject(ctx, in)
		if err == nil {
			s.etag = aws.ToString(out.ETag)
			break
		}
		if !isCode(err, "PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey") {
			return fmt.Errorf("write journal %s: %w", s.Location(), err)
		}
		// The SDK repeats a call whose answer was lost: then it is our own
		// writing that is in the way.
		there, etag, readErr := readJournal(ctx, s.s3, s.bucket, s.key(journalName))
		if readErr == nil && there.Owner.ID == s.j.Owner.ID && there.Serial == s.j.Serial {
			s.etag = etag
			break
		}
		// A conflict is between two writings under way, and the other may be
		// our own again. As long as what is there is what was, nobody has won.
		// https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
		same := readErr == nil && etag == s.etag || s.etag == "" && isCode(readErr, "NoSuchKey")
		if !isCode(err, "ConditionalRequestConflict") || !same || wait > 3*time.Second {
			return fmt.Errorf("write journal %s: %w", s.Location(), ErrTakenOver)
		}
		if err := realSleep(ctx, wait); err != nil {
			return fmt.Errorf("write journal %s: %w", s.Location(), err)
		}
	}
	if s.local == "" {
		return nil
	}
	// The copy only helps gc to find the journal: a full disk ends no bake.
	err = os.MkdirAll(filepath.Dir(s.local), 0o700)
	if err == nil {
		err = atomicfile.WriteFile(s.local, data, 0o600)
	}
	if err != nil && !s.told && s.warn != nil {
		s.told = true
		s.warn("no copy of the journal is kept here: %v; lecafe gc finds the bake by its tags and its staging", err)
	}
	return nil
}

// intend writes down that a call is going to be made that makes something. It
// fails when another process drives the bake: then nothing is made beside it.
func (s *store) intend(ctx context.Context, action, on string) error {
	return s.update(ctx, func(j *journal) { j.log(action, on, s.now()) })
}

// note is for calls that change or remove what is there already: whoever goes
// on, or cleans up, finds the same things before and after them. It reaches S3
// with the next writing.
func (s *store) note(action, on string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.j.log(action, on, s.now())
}

func (j *journal) log(action, on string, at time.Time) {
	n := 1
	if len(j.Calls) > 0 {
		n = j.Calls[len(j.Calls)-1].N + 1
	}
	j.Calls = append(j.Calls, callLog{N: n, Action: action, On: on, At: at.UTC()})
	if extra := len(j.Calls) - maxCalls; extra > 0 {
		j.Calls = j.Calls[extra:]
	}
}

// quiet is how much of d is left since the journal was last written; at most
// d, and not negative.
func (s *store) quiet(d time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return min(max(d-s.now().Sub(s.j.Beat), 0), d)
}

// learn changes what is known; it reaches S3 with the next writing. What is
// lost with the process is found again by tag, token or name.
func (s *store) learn(f func(*facts)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.j.Facts)
}

// known returns a copy of the facts.
func (s *store) known() facts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.j.Facts
}

func (s *store) status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.j.Status
}

// remove deletes the journal: the bake has left nothing else.
func (s *store) remove(ctx context.Context) error {
	if _, err := s.s3.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: aws.String(s.key(journalName))}); err != nil && !isCode(err, "NoSuchKey") {
		return fmt.Errorf("delete journal %s: %w", s.Location(), err)
	}
	if s.local != "" {
		if err := os.Remove(s.local); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("delete journal's copy: %w", err)
		}
	}
	return nil
}

func readJournal(ctx context.Context, api s3API, bucket, key string) (*journal, string, error) {
	out, err := api.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return nil, "", fmt.Errorf("read journal s3://%s/%s: %w", bucket, key, err)
	}
	data, err := io.ReadAll(io.LimitReader(out.Body, 4<<20))
	if err = errors.Join(err, out.Body.Close()); err != nil {
		return nil, "", fmt.Errorf("read journal s3://%s/%s: %w", bucket, key, err)
	}
	var j journal
	if err := json.Unmarshal(data, &j); err != nil || j.Schema != journalSchema {
		return nil, "", fmt.Errorf("s3://%s/%s: %w", bucket, key, cmp.Or(err, errors.New("it is no journal of "+journalSchema)))
	}
	if served, ok := awsmiddleware.GetServerTime(out.ResultMetadata); ok && out.LastModified != nil {
		j.age = aws.Duration(served.Sub(*out.LastModified))
	}
	return &j, aws.ToString(out.ETag), nil
}
