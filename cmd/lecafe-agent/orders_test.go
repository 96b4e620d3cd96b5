package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/lecafe/lecafe/agent/orders"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
)

// command runs the program's command line.
func command(stdin string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(append([]string{"lecafe-agent"}, args...), strings.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

// nowhere starts a service that takes orders and knows no queue.
func nowhere(t *testing.T, dir string) (socket string, stop func()) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "o.sock")
	l, err := orders.ListenUnix(socket, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done, ready := make(chan error, 1), make(chan struct{})
	s := &orders.Service{Dir: dir, Listen: []net.Listener{l}, Ready: func() { close(ready) }, Resolve: func(ctx context.Context) (orders.Target, error) {
		<-ctx.Done()
		return orders.Target{}, ctx.Err()
	}}
	go func() { done <- s.Run(ctx) }()
	<-ready
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return socket, stop
}

func TestSendSpoolAndReplay(t *testing.T) {
	dir := t.TempDir()
	socket, stop := nowhere(t, dir)
	code, id, stderr := command("", "send", "--socket", socket, "--group", "bar", "--attribute", "Table=7", "--delay", "3", "2 × espresso")
	if code != 0 || len(strings.TrimSpace(id)) != 36 {
		t.Fatalf("send: %d %q %s", code, id, stderr)
	}
	code, again, _ := command("flat white\n", "send", "--socket", socket, "--idempotency-key", "k", "-")
	if _, third, _ := command("flat white\n", "send", "--socket", socket, "--idempotency-key", "k", "-"); code != 0 || third != again {
		t.Errorf("one key, two orders: %q, %q", again, third)
	}
	code, out, stderr := command("", "spool", "cat", "--state-dir", dir)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if code != 0 || len(lines) != 2 {
		t.Fatalf("cat: %d %q %s", code, out, stderr)
	}
	var o orders.Order
	if err := json.Unmarshal([]byte(lines[0]), &o); err != nil || o.ID.String() != strings.TrimSpace(id) || o.Body != "2 × espresso" || o.Group != "bar" || o.Attributes["Table"] != "7" {
		t.Errorf("cat: %+v, %v", o, err)
	}
	if code, out, _ := command("", "spool", "verify", "--state-dir", dir); code != 0 || !strings.Contains(out, "2 orders, 0 of them sent, 0 damaged ranges") {
		t.Errorf("verify: %d %s", code, out)
	}

	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q", nil)
	t.Setenv("AWS_ACCESS_KEY_ID", "test")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "test")
	replay := []string{"spool", "replay", "--state-dir", dir, "--no-imds", "--queue", "q", "--region", "us-east-1", "--endpoint-url", c.URL}
	if code, _, stderr := command("", replay...); code != 3 || !strings.Contains(stderr, "stop the process") {
		t.Errorf("replay beside the service: %d %s", code, stderr)
	}
	stop()
	if code, out, stderr := command("", replay...); code != 0 || !strings.Contains(out, "2 sent, 0 refused for good, 0 left") {
		t.Fatalf("replay: %d %s %s", code, out, stderr)
	}
	if code, out, _ := command("", "spool", "cat", "--state-dir", dir); code != 0 || out != "" {
		t.Errorf("cat after the replay: %d %q", code, out)
	}
	api := sqs.NewFromConfig(c.Config())
	u, err := api.GetQueueUrl(t.Context(), &sqs.GetQueueUrlInput{QueueName: aws.String("q")})
	if err != nil {
		t.Fatal(err)
	}
	at, err := api.GetQueueAttributes(t.Context(), &sqs.GetQueueAttributesInput{QueueUrl: u.QueueUrl, AttributeNames: []types.QueueAttributeName{"All"}})
	if err != nil {
		t.Fatal(err)
	}
	// The first one waits for its delay still, or not any more.
	if got := at.Attributes["ApproximateNumberOfMessages"] + at.Attributes["ApproximateNumberOfMessagesDelayed"]; got != "11" && got != "20" {
		t.Errorf("on the queue: %v", at.Attributes)
	}
}

func TestDamageIsNamedAndFailsVerify(t *testing.T) {
	dir := t.TempDir()
	socket, stop := nowhere(t, dir)
	for _, body := range []string{"one", "two", "three"} {
		if code, _, stderr := command("", "send", "--socket", socket, body); code != 0 {
			t.Fatal(stderr)
		}
	}
	stop()
	segs, err := filepath.Glob(filepath.Join(dir, "spool", "*.seg"))
	if err != nil || len(segs) == 0 {
		t.Fatal(segs, err)
	}
	b, err := os.ReadFile(segs[0])
	if err != nil {
		t.Fatal(err)
	}
	b[4096+30] ^= 1
	if err := os.WriteFile(segs[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, stderr := command("", "spool", "verify", "--state-dir", dir)
	if code != 1 || !strings.Contains(out, "bytes 4096 to ") || !strings.Contains(out, "2 orders") || stderr == "" {
		t.Errorf("verify: %d %s %s", code, out, stderr)
	}
	if code, out, _ := command("", "spool", "ls", "--state-dir", dir); code != 0 || !strings.Contains(out, "damaged") {
		t.Errorf("ls: %d %s", code, out)
	}
}

func TestWrongSendsSayWhatToDo(t *testing.T) {
	socket, _ := nowhere(t, t.TempDir())
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"no service":     {[]string{"--socket", socket + "x", "--timeout", "10ms", "x"}, 3, "lecafe-orders.socket"},
		"bad character":  {[]string{"--socket", socket, "a\x01"}, 2, "byte 1"},
		"empty":          {[]string{"--socket", socket, ""}, 2, "empty"},
		"two bodies":     {[]string{"--socket", socket, "a", "b"}, 2, "one body"},
		"bad attribute":  {[]string{"--socket", socket, "--attribute", "x", "a"}, 2, "NAME=VALUE"},
		"delay too long": {[]string{"--socket", socket, "--delay", "901", "a"}, 2, "900"},
	} {
		args := append([]string{"send"}, c.args...)
		if code, out, stderr := command("", args...); code != c.code || out != "" || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: %d %q %q, want %d and %q", name, code, out, stderr, c.code, c.want)
		}
	}
}

// A command line that is wrong is refused before anything is opened, made or
// installed: an argument behind install must not change this very machine.
func TestWrongCommandLinesChangeNothing(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	orders := []string{"orders", "--no-imds", "--state-dir", state, "--listen", filepath.Join(dir, "o.sock")}
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(filepath.Join(root, "usr"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{append(orders, "--queue", "my queue"), "command line: orders.queue: \"my queue\": is no queue name"},
		{append(orders, "--seal-to", "bucket"), "orders.seal_to"},
		{append(orders, "--max-bytes", "-1"), "orders.max_bytes: \"-1\": is too small"},
		{append(orders, "--drain", "1h"), "orders.drain: \"1h0m0s\": is out of bounds"},
		{append(orders, "--region", "here"), "aws.region"},
		{append(orders, "--endpoint-url", "localhost"), "aws.endpoint_url"},
		{append(orders, "--concurrency", "0"), "--concurrency 0: want at least 1"},
		{append(orders, "more"), `unexpected argument "more"; see lecafe-agent orders --help`},
		{[]string{"install", "--root", root, "more"}, `unexpected argument "more"`},
		{[]string{"install", "--root", filepath.Join(dir, "nowhere")}, "no such file"},
		{[]string{"install", "--root", root, "--now"}, "cannot stand beside --root"},
		{[]string{"spool", "ls", "--state-dir", state}, "no spool in"},
		{[]string{"run", "--root", root, "more"}, `unexpected argument "more"`},
		{[]string{"status", "more"}, `unexpected argument "more"`},
	} {
		if code, out, stderr := command("", c.args...); code != 2 || out != "" || !strings.Contains(stderr, c.want) {
			t.Errorf("%q: exit code %d, %q, %q; want 2 and %q", c.args, code, out, stderr, c.want)
		}
	}
	for _, path := range []string{state, filepath.Join(dir, "o.sock"), filepath.Join(root, "usr/bin"), filepath.Join(root, "etc")} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s was made (%v)", path, err)
		}
	}
}
