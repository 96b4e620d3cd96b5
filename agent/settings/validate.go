package settings

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/internal/lazyregexp"
	"github.com/lecafe/lecafe/internal/strictyaml"
)

// Bounds of settings.
const (
	MinDeadline  = 10 * time.Second
	MaxDeadline  = 24 * time.Hour
	MinPoll      = 5 * time.Second
	MaxObject    = 256 << 20
	MaxFiles     = 10_000
	MinSpool     = 1 << 20
	MinDrain     = time.Second
	MaxDrain     = 15 * time.Minute
	severityHint = "one of failure, degraded, ignore"
)

var (
	bucketForm   = lazyregexp.New(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	regionForm   = lazyregexp.New(`^[a-z]{2}(-[a-z]+)+-[0-9]{1,2}$`)
	roleForm     = lazyregexp.New(`^A[A-Z0-9]{3,127}$`)
	checksumForm = lazyregexp.New(`^(?i:CRC32|CRC32C|CRC64NVME|MD5|SHA1|SHA256|SHA512|XXHASH3|XXHASH64|XXHASH128):[A-Za-z0-9+/]{2,}={0,2}(-[0-9]{1,5})?$`)
	sha256Form   = lazyregexp.New(`^[0-9a-f]{64}$`)
	unitForm     = lazyregexp.New(`^[A-Za-z0-9:_.\\@-]{1,240}\.(service|socket|target|mount|timer|path|swap|slice|scope|device|automount)$`)
	queueForm    = lazyregexp.New(`^[A-Za-z0-9_-]{1,80}$|^[A-Za-z0-9_-]{1,75}\.fifo$`)
	nameForm     = lazyregexp.New(`^[a-z_][a-z0-9_-]{0,31}$|^[0-9]{1,10}$`)
	variableForm = lazyregexp.New(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
	codeForm     = lazyregexp.New(`^[a-z0-9_]{1,64}$`)
)

// Validate returns every problem of s. docs are the files that s was read
// from, the last word first asked; without them problems have no place.
func Validate(s Settings, docs ...*strictyaml.Document) strictyaml.Problems {
	c := checker{docs: docs}
	c.aws(s.AWS)
	c.bootstrap(s.Bootstrap)
	c.report(s.Report)
	paths := map[string]int{}
	for i, o := range s.Config {
		c.object(fmt.Sprintf("config[%d]", i), o)
		if first, ok := paths[o.Path]; ok && o.Path != "" {
			c.add(fmt.Sprintf("config[%d].path", i), o.Path, fmt.Sprintf("is the path of config[%d] too", first), "give each object a path of its own")
		} else {
			paths[o.Path] = i
		}
	}
	for i, e := range s.Env {
		field := fmt.Sprintf("env[%d]", i)
		c.env(field, e)
		if first, ok := paths[e.Path]; ok && e.Path != "" {
			c.add(field+".path", e.Path, fmt.Sprintf("is the path of entry %d too", first), "give each file a path of its own")
		} else {
			paths[e.Path] = i
		}
	}
	for i, o := range s.Config {
		for _, path := range slices.Sorted(maps.Keys(paths)) {
			if o.Tree() && o.Path != "" && strings.HasPrefix(path, o.Path+"/") {
				c.add(fmt.Sprintf("config[%d].path", i), o.Path, "is a directory that is replaced as a whole, and "+path+" is in it", "keep the two apart")
			}
		}
	}
	c.orders(s.Orders)
	return c.problems
}

type checker struct {
	docs     []*strictyaml.Document
	problems strictyaml.Problems
}

func (c *checker) add(field, value, message, hint string) {
	for _, d := range slices.Backward(c.docs) {
		if d.Has(field) {
			c.problems = append(c.problems, d.Problem(field, value, message, hint))
			return
		}
	}
	// Something required is missing: point at the structure it is missing from.
	for _, d := range slices.Backward(c.docs) {
		parent := field
		for i := strings.LastIndexAny(parent, ".["); i > 0; i = strings.LastIndexAny(parent, ".[") {
			parent = parent[:i]
			if d.Has(parent) {
				c.problems = append(c.problems, d.Problem(field, value, message, hint))
				return
			}
		}
	}
	name := "settings"
	if len(c.docs) > 0 {
		name = c.docs[len(c.docs)-1].File
	}
	c.problems = append(c.problems, strictyaml.Problem{File: name, Field: field, Value: value, Message: message, Hint: hint})
}

func (c *checker) match(field, value string, form func() *regexp.Regexp, message, hint string) {
	if value != "" && !form().MatchString(value) {
		c.add(field, value, message, hint)
	}
}

func (c *checker) url(field, value string) {
	if value == "" {
		return
	}
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		c.add(field, report.Redact(value), "is no http or https URL", "write it as https://host/path")
	}
}

func (c *checker) aws(a AWS) {
	c.match("aws.region", a.Region, regionForm, "is no AWS region", "write it as eu-west-1, or leave it out: IMDS knows it")
	c.match("aws.role_id", a.RoleID, roleForm, "is no role ID", "aws iam get-role shows it as RoleId, AROA...; or leave it out: STS knows it")
	c.url("aws.endpoint_url", a.EndpointURL)
	c.url("aws.proxy", a.Proxy)
	c.absolute("aws.ca_bundle", a.CABundle)
}

func (c *checker) absolute(field, path string) {
	if path == "" {
		return
	}
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
		c.add(field, path, "must be an absolute path of a file", "write it in full, without . or ..")
	}
}

func (c *checker) bootstrap(b Bootstrap) {
	if b.Deadline != 0 && (b.Deadline < MinDeadline || b.Deadline > MaxDeadline) {
		c.add("bootstrap.deadline", b.Deadline.String(), "is out of bounds", fmt.Sprintf("%s to %s", MinDeadline, MaxDeadline))
	}
	for _, code := range slices.Sorted(maps.Keys(b.Severity)) {
		field, severity := "bootstrap.severity."+code, b.Severity[code]
		if !slices.Contains(report.Codes(), report.Code(code)) {
			hint := "docs/report.schema.json lists the cause codes"
			if !codeForm().MatchString(code) {
				hint = "cause codes are lower case words joined by _; " + hint
			}
			c.add(field, "", "is no cause code", hint)
		}
		if severity != "failure" && severity != "degraded" && severity != "ignore" {
			c.add(field, severity, "is no severity", severityHint)
		}
	}
	for i, u := range b.Ready.Units {
		c.unit(fmt.Sprintf("bootstrap.ready.units[%d]", i), u)
	}
	for i, h := range b.Ready.HTTP {
		field := fmt.Sprintf("bootstrap.ready.http[%d]", i)
		if h.URL == "" {
			c.add(field+".url", "", "is missing", "write the URL to GET")
		}
		c.url(field+".url", h.URL)
		for j, code := range h.Status {
			if code < 100 || code > 599 {
				c.add(fmt.Sprintf("%s.status[%d]", field, j), strconv.Itoa(code), "is no HTTP status", "100 to 599")
			}
		}
	}
	for i, a := range b.Ready.TCP {
		host, port, err := net.SplitHostPort(a)
		if n, perr := strconv.Atoi(port); err != nil || perr != nil || host == "" || n < 1 || n > 65535 {
			c.add(fmt.Sprintf("bootstrap.ready.tcp[%d]", i), a, "is no host:port", "write it as 127.0.0.1:8080")
		}
	}
	for i, argv := range b.Ready.Command {
		c.command(fmt.Sprintf("bootstrap.ready.command[%d]", i), argv)
	}
}

func (c *checker) unit(field, name string) {
	if !unitForm().MatchString(name) {
		c.add(field, name, "is no unit name", "write it with its type, as app.service")
	}
}

func (c *checker) command(field string, argv Command) {
	if len(argv) == 0 {
		c.add(field, "", "is an empty command", "write the program and its arguments as a list")
		return
	}
	if !filepath.IsAbs(argv[0]) {
		c.add(field+"[0]", argv[0], "must be an absolute path", "commands run without a shell and without PATH")
	}
	for i, a := range argv {
		if strings.ContainsRune(a, 0) {
			c.add(fmt.Sprintf("%s[%d]", field, i), "", "has a NUL character", "take it out")
		}
	}
}

func (c *checker) report(r Report) {
	c.match("report.s3.bucket", r.S3.Bucket, bucketForm, "is no bucket name", "3 to 63 of a-z, 0-9, dot and hyphen, without s3://")
	c.match("report.s3.region", r.S3.Region, regionForm, "is no AWS region", "write it as eu-west-1")
	if r.S3.Bucket == "" && (r.S3.Prefix != "" || r.S3.Region != "") {
		c.add("report.s3.bucket", "", "is missing", "name the bucket, or leave report.s3 out")
	}
	if len(r.S3.Prefix) > 512 || strings.HasPrefix(r.S3.Prefix, "/") {
		c.add("report.s3.prefix", r.S3.Prefix, "is no key prefix", "up to 512 characters, not starting with a slash")
	}
	c.queue("report.sqs.queue", r.SQS.Queue)
	c.url("report.webhook.url", r.Webhook.URL)
	if r.LifecycleHook.Name == "" && r.LifecycleHook.Group != "" {
		c.add("report.lifecycle_hook.name", "", "is missing", "name the hook, or leave report.lifecycle_hook out")
	}
	if len(r.LifecycleHook.Name) > 255 || strings.ContainsAny(r.LifecycleHook.Name, " \t\n") {
		c.add("report.lifecycle_hook.name", r.LifecycleHook.Name, "is no hook name", "up to 255 characters without spaces")
	}
}

func (c *checker) queue(field, q string) {
	switch {
	case q == "":
	case strings.Contains(q, "://"):
		c.url(field, q)
	case !queueForm().MatchString(q):
		c.add(field, q, "is no queue name", "up to 80 of letters, digits, hyphen and underscore (FIFO: .fifo at the end), or the queue's URL")
	}
}

func (c *checker) object(field string, o Object) {
	if o.Source == "" {
		c.add(field+".source", "", "is missing", "write it as s3://bucket/key")
	} else if _, _, err := SplitS3(o.Source); err != nil {
		c.add(field+".source", o.Source, "is no S3 object", "write it as s3://bucket/key, or s3://bucket/prefix/ for all below a prefix")
	}
	c.match(field+".checksum", o.Checksum, checksumForm, "is no checksum", "write it as CRC64NVME:base64, as aws s3api head-object --checksum-mode ENABLED prints; or use sha256")
	if o.Tree() {
		for _, f := range []struct{ name, value string }{{"version_id", o.VersionID}, {"checksum", o.Checksum}} {
			if f.value != "" {
				c.add(field+"."+f.name, f.value, "is of one object, and "+o.Source+" is all below a prefix", "pin the directory with sha256, or name one object")
			}
		}
	}
	switch {
	case o.MaxFiles != 0 && !o.Tree():
		c.add(field+".max_files", strconv.Itoa(o.MaxFiles), "is of a directory, and "+o.Source+" is one object", "leave it out, or end source in a slash")
	case o.MaxFiles < 0 || o.MaxFiles > MaxFiles:
		c.add(field+".max_files", strconv.Itoa(o.MaxFiles), "is out of bounds", fmt.Sprintf("1 to %d", MaxFiles))
	}
	if o.Path == "" {
		c.add(field+".path", "", "is missing", "write where the object is kept, as /opt/app/config.txt")
	}
	c.absolute(field+".path", o.Path)
	c.match(field+".sha256", o.SHA256, sha256Form, "is no SHA-256", "64 hex digits in lower case, as sha256sum prints")
	if o.MaxBytes < 0 || o.MaxBytes > MaxObject {
		c.add(field+".max_bytes", strconv.FormatInt(o.MaxBytes, 10), "is out of bounds", fmt.Sprintf("1 to %d", MaxObject))
	}
	c.match(field+".owner", o.Owner, nameForm, "is no user", "a user name or ID")
	c.match(field+".group", o.Group, nameForm, "is no group", "a group name or ID")
	if o.Mode != "" {
		if _, err := FileMode(o.Mode); err != nil {
			c.add(field+".mode", o.Mode, "is no file mode", `three or four octal digits in quotes, as "0640"`)
		}
	}
	if o.Poll != 0 && o.Poll < MinPoll {
		c.add(field+".poll", o.Poll.String(), "is too short", "at least "+MinPoll.String())
	}
	if o.Validate != nil {
		c.command(field+".validate", o.Validate)
	}
	for _, u := range []struct{ name, unit string }{{"reload_unit", o.ReloadUnit}, {"restart_unit", o.RestartUnit}} {
		if u.unit != "" {
			c.unit(field+"."+u.name, u.unit)
		}
	}
	if o.ReloadUnit != "" && o.RestartUnit != "" {
		c.add(field+".restart_unit", o.RestartUnit, "stands beside reload_unit", "keep one of the two")
	}
}

func (c *checker) env(field string, e EnvFile) {
	if e.Path == "" {
		c.add(field+".path", "", "is missing", "write where the file is kept, as /opt/app/config.env")
	}
	c.absolute(field+".path", e.Path)
	c.match(field+".owner", e.Owner, nameForm, "is no user", "a user name or ID")
	c.match(field+".group", e.Group, nameForm, "is no group", "a group name or ID")
	if e.Mode != "" {
		if _, err := FileMode(e.Mode); err != nil {
			c.add(field+".mode", e.Mode, "is no file mode", `three or four octal digits in quotes, as "0644"`)
		}
	}
	if len(e.Set) == 0 {
		c.add(field+".set", "", "is missing", "write the variables as NAME: value")
	}
	for _, name := range slices.Sorted(maps.Keys(e.Set)) {
		if !variableForm().MatchString(name) {
			c.add(field+".set."+name, "", "is no name of a variable", "letters, digits and underscore, not starting with a digit")
		}
		if strings.ContainsFunc(e.Set[name], func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			c.add(field+".set."+name, "", "has a line break or another control character", "an environment file holds one line a variable")
		}
		for _, m := range FactForm().FindAllStringSubmatch(e.Set[name], -1) {
			if !slices.Contains(Facts, m[1]) && !strings.HasPrefix(m[1], "tag:") {
				c.add(field+".set."+name, m[0], "is nothing that the instance knows", "one of "+strings.Join(Facts, ", ")+", tag:NAME")
			}
		}
	}
}

// Facts are the names that may stand in ${} of EnvFile.Set, besides tag:NAME.
var Facts = []string{"region", "availability_zone", "instance_id", "instance_type", "image_id", "account_id", "architecture"}

// FactForm finds them.
var FactForm = lazyregexp.New(`\$\{([^{}]*)\}`)

func (c *checker) orders(o Orders) {
	c.queue("orders.queue", o.Queue)
	c.match("orders.group", o.Group, nameForm, "is no group", "a group name or ID")
	if o.MaxBytes != 0 && o.MaxBytes < MinSpool {
		c.add("orders.max_bytes", strconv.FormatInt(o.MaxBytes, 10), "is too small", fmt.Sprintf("at least %d", MinSpool))
	}
	if o.Drain != 0 && (o.Drain < MinDrain || o.Drain > MaxDrain) {
		c.add("orders.drain", o.Drain.String(), "is out of bounds", fmt.Sprintf("%s to %s", MinDrain, MaxDrain))
	}
	if o.SealTo != "" {
		if bucket, _, ok := cutS3(o.SealTo); !ok || !bucketForm().MatchString(bucket) {
			c.add("orders.seal_to", o.SealTo, "is no S3 prefix", "write it as s3://bucket/prefix")
		}
	}
}

func cutS3(uri string) (bucket, key string, ok bool) {
	rest, ok := strings.CutPrefix(uri, "s3://")
	if !ok {
		return "", "", false
	}
	bucket, key, _ = strings.Cut(rest, "/")
	return bucket, key, bucket != ""
}

// SplitS3 splits s3://bucket/key. The key is not empty.
func SplitS3(uri string) (bucket, key string, err error) {
	bucket, key, ok := cutS3(uri)
	if !ok || key == "" || !bucketForm().MatchString(bucket) || len(key) > 1024 {
		return "", "", fmt.Errorf("%q is not of the form s3://bucket/key", uri)
	}
	return bucket, key, nil
}

// FileMode reads octal digits, as "0640".
func FileMode(s string) (os.FileMode, error) {
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n > 0o7777 || len(s) < 3 {
		return 0, fmt.Errorf("%q is no file mode in octal digits", s)
	}
	return os.FileMode(n & 0o777), nil
}
