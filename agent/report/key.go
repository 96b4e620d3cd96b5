package report

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lecafe/lecafe/internal/lazyregexp"
)

// Key is the S3 key of a report:
//
//	PREFIX/SENDER/TIME.KIND.VERDICT.CODE.ID.json
//	lecafe-reports/AROAEXAMPLE:i-0abc/20261122T021600Z.bootstrap.failure.script_exit.3f2a9c1d….json
//
// SENDER is the instance role's ${aws:userid} (ROLEID:instance-id), so that an
// IAM policy can confine each instance to its own reports. TIME is JudgedAt,
// so that a listing is in order of time. CODE is the first cause's, "none"
// where there is no cause. A watcher needs the listing alone to know verdicts.
type Key struct {
	Prefix  string // without trailing slash, may be empty or have slashes
	Sender  string // ROLEID:i-...
	Time    time.Time
	Kind    Kind
	Verdict Verdict
	Code    Code
	ID      string
}

const keyTime = "20060102T150405Z"

// ErrKey says that a key does not have the form of a report's.
var ErrKey = errors.New("not a report's key")

var (
	senderForm = lazyregexp.New(`^[A-Z0-9]{4,128}:i-[0-9a-f]{8,17}$`)
	wordForm   = lazyregexp.New(`^[a-z0-9_]{1,64}$`)
	idForm     = lazyregexp.New(`^[0-9a-f]{8,32}$`)
)

// KeyOf returns the key of r below prefix.
func KeyOf(prefix string, r *Report) Key {
	k := Key{Prefix: strings.Trim(prefix, "/"), Sender: r.Sender, Time: r.JudgedAt.UTC().Truncate(time.Second), Kind: r.Kind, Verdict: r.Verdict, Code: "none", ID: r.ID}
	if len(r.Causes) > 0 {
		k.Code = r.Causes[0].Code
	}
	return k
}

func (k Key) String() string {
	name := fmt.Sprintf("%s/%s.%s.%s.%s.%s.json", k.Sender, k.Time.UTC().Format(keyTime), k.Kind, k.Verdict, k.Code, k.ID)
	if k.Prefix == "" {
		return name
	}
	return k.Prefix + "/" + name
}

// InstanceID returns the part of the sender behind the colon.
func (k Key) InstanceID() string {
	_, id, _ := strings.Cut(k.Sender, ":")
	return id
}

// ParseKey reads a key that String wrote. Every other key is ErrKey.
func ParseKey(key string) (Key, error) {
	parts := strings.Split(key, "/")
	if len(parts) < 2 {
		return Key{}, fmt.Errorf("%w: %q", ErrKey, key)
	}
	name, ok := strings.CutSuffix(parts[len(parts)-1], ".json")
	fields := strings.Split(name, ".")
	if !ok || len(fields) != 5 {
		return Key{}, fmt.Errorf("%w: %q", ErrKey, key)
	}
	t, err := time.Parse(keyTime, fields[0])
	k := Key{
		Prefix: strings.Join(parts[:len(parts)-2], "/"), Sender: parts[len(parts)-2], Time: t,
		Kind: Kind(fields[1]), Verdict: Verdict(fields[2]), Code: Code(fields[3]), ID: fields[4],
	}
	if err != nil || !senderForm().MatchString(k.Sender) || !wordForm().MatchString(fields[1]) ||
		!wordForm().MatchString(fields[2]) || !wordForm().MatchString(fields[3]) || !idForm().MatchString(k.ID) {
		return Key{}, fmt.Errorf("%w: %q", ErrKey, key)
	}
	return k, nil
}
