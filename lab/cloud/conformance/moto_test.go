// Package conformance holds one suite of calls that is run against the fakes
// of lab/cloud and against moto_server: where both answer the same, the fake
// has a second opinion. It covers what moto is known to get right; where moto
// is wrong, the fakes' own tests and their citations stand alone.
package conformance

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ssm"

	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// motoVersion is the one that the suite was written against.
const motoVersion = "5.2.1"

const (
	region       = "us-east-1"
	imageOwner   = "137112412989"
	al2023       = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
	startTimeout = time.Minute
)

// fast runs the states that take time a thousand times as fast, but keeps
// terminated instances in sight however slow the machine is.
var fast = cloud.Options{Clock: wire.Scaled(1000), Times: ec2.Times{Forgotten: 1000 * time.Hour}}

// target is one implementation under test.
type target struct {
	name  string
	cfg   aws.Config
	fast  aws.Config // where states of instances and images take no time to speak of
	image string     // a public AMI that is there
}

// targets starts the fake and moto. Without moto the suite still runs on the
// fake, and says so; with CI=true it fails.
func targets(t *testing.T) []target {
	t.Helper()
	c := cloudtest.New(t, fast)
	id, err := c.EC2.AddImage(region, ec2.ImageSeed{Name: "al2023-ami-2023.5.20240805.0-kernel-6.1-x86_64", Owner: imageOwner, OwnerAlias: "amazon"})
	if err != nil {
		t.Fatal(err)
	}
	// Queues keep the real clock: at a thousandth, a message is visible again
	// before a busy machine has looked.
	out := []target{{name: "lecafe", cfg: cloudtest.New(t, cloud.Options{}).Config(), fast: c.Config(), image: id}}

	url := startMoto(t)
	if url == "" {
		return out
	}
	m := target{name: "moto", cfg: aws.Config{
		Region: region, BaseEndpoint: aws.String(url), Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
	}}
	m.fast = m.cfg
	p, err := ssm.NewFromConfig(m.cfg).GetParameter(t.Context(), &ssm.GetParameterInput{Name: aws.String(al2023)})
	if err != nil {
		t.Fatalf("moto: %v", err)
	}
	m.image = *p.Parameter.Value
	return append(out, m)
}

// startMoto runs moto_server for the test and returns its URL, or nothing if
// it is not installed.
func startMoto(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("moto_server")
	if err == nil {
		var version []byte
		version, err = exec.CommandContext(t.Context(), path, "--version").CombinedOutput()
		if err == nil && !strings.Contains(string(version), motoVersion) {
			t.Logf("moto_server is %q; this suite was written against %s", strings.TrimSpace(string(version)), motoVersion)
		}
		err = nil
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("moto_server is not installed: pip install 'moto[server]==%s'", motoVersion)
		}
		t.Logf("SKIPPED: no second opinion, moto_server is not installed: pip install 'moto[server]==%s'", motoVersion)
		return ""
	}
	// moto exits with the test, by its own process ID.
	cmd := exec.Command(path, "-H", "127.0.0.1", "-p", "0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), "MOTO_ACCOUNT_ID="+wire.Account)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan string, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var log strings.Builder
		lines := bufio.NewScanner(stderr)
		found := false
		for lines.Scan() { // drained to the end, or moto would block on it
			if _, url, ok := strings.Cut(lines.Text(), "Running on "); ok && !found {
				found = true
				ready <- strings.TrimSpace(url)
			}
			if !found {
				fmt.Fprintln(&log, lines.Text())
			}
		}
		if !found {
			ready <- "failed: " + log.String()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		_ = cmd.Wait() // killed: nothing to learn from it
	})
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	select {
	case url := <-ready:
		if !strings.HasPrefix(url, "http") {
			t.Fatalf("moto_server: %s", url)
		}
		return url
	case <-ctx.Done():
		t.Fatalf("moto_server did not start within %v", startTimeout)
	}
	return ""
}
