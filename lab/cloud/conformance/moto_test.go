// Package conformance holds one suite of calls that is run against the fakes
// of lab/cloud and against moto_server: where both answer the same, the fake
// has a second opinion. It covers what moto is known to get right; where moto
// is wrong, the fakes' own tests and their citations stand alone.
package conformance

import (
	"errors"
	"os/exec"
	"strings"
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

const (
	region     = "us-east-1"
	imageOwner = "137112412989"
	al2023     = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
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
	url, stop, err := cloudtest.StartMoto(t.Context(), wire.Account)
	if errors.Is(err, cloudtest.ErrNoMoto) {
		cloudtest.NoMoto(t)
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	version, err := exec.CommandContext(t.Context(), "moto_server", "--version").CombinedOutput()
	if err == nil && !strings.Contains(string(version), cloudtest.MotoVersion) {
		t.Logf("moto_server is %q; this suite was written against %s", strings.TrimSpace(string(version)), cloudtest.MotoVersion)
	}
	return url
}
