package boots

import (
	"encoding/base64"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	s3api "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/lab/image"
)

// Lab starts a lab whose instances boot, with Le Café's seed and the base
// images of releases. It ends with the test and must leave nothing on the host.
// change may be nil.
func Lab(t *testing.T, releases []string, change func(*lab.Options)) *lab.Lab {
	t.Helper()
	Require(t)
	var images []*image.Image
	for _, r := range releases {
		images = append(images, BaseImage(t, r))
	}
	o := lab.Options{
		Driver: lab.DriverNspawn, StateDir: StateDir(), Images: images, Seed: lab.LeCafe(),
		// The cloud's own delays add nothing to what is tested here.
		TimeScale: 100, Log: slog.New(slog.NewTextHandler(Writer(t), &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	if change != nil {
		change(&o)
	}
	l, err := lab.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if got := Leftovers(l.Machines.Name()); len(got) > 0 {
			t.Errorf("the lab left behind:\n%s", strings.Join(got, "\n"))
		}
	})
	return l
}

// Leftovers lists what the lab of that name has on the host.
func Leftovers(name string) []string {
	var all []string
	for _, glob := range []string{
		"/run/netns/" + name + "*", "/sys/fs/cgroup/" + name, "/sys/fs/cgroup/*/" + name,
		"/run/systemd/nspawn/propagate/" + name + "*", "/run/systemd/nspawn/unix-export/" + name + "*",
	} {
		found, _ := filepath.Glob(glob)
		all = append(all, found...)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, name) {
			all = append(all, "mount "+line)
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		cmdline, _ := os.ReadFile(p)
		if strings.Contains(string(cmdline), name) {
			all = append(all, p+" "+strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return all
}

// Config is the operator's.
func Config(l *lab.Lab) aws.Config {
	return aws.Config{Region: lab.Region, BaseEndpoint: aws.String(l.URL), Credentials: credentials.NewStaticCredentialsProvider("test", "test", "")}
}

// RunInstance launches one instance as an operator does, with the application's
// role, and returns its ID; change may be nil.
func RunInstance(t *testing.T, l *lab.Lab, imageID, userData string, change func(*ec2.RunInstancesInput)) string {
	t.Helper()
	in := &ec2.RunInstancesInput{
		ImageId: &imageID, InstanceType: types.InstanceTypeT3Micro, MinCount: aws.Int32(1), MaxCount: aws.Int32(1),
		UserData:           aws.String(base64.StdEncoding.EncodeToString([]byte(userData))),
		IamInstanceProfile: &types.IamInstanceProfileSpecification{Name: aws.String("lecafe-app-profile")},
		MetadataOptions:    &types.InstanceMetadataOptionsRequest{HttpTokens: types.HttpTokensStateRequired, HttpPutResponseHopLimit: aws.Int32(1)},
	}
	if change != nil {
		change(in)
	}
	out, err := ec2.NewFromConfig(Config(l)).RunInstances(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return aws.ToString(out.Instances[0].InstanceId)
}

// WaitState waits for an instance to be in a state of the EC2 API.
func WaitState(t *testing.T, l *lab.Lab, id, state string) {
	t.Helper()
	got := ""
	Eventually(t, state+" instance "+id, func() bool {
		info, ok := l.EC2.Instance(id)
		if got = info.State; !ok {
			got = "gone"
		}
		return got == state
	}, func() string { return "it is " + got + "\n" + Console(l, id) })
}

// Capture stops an instance, makes an image of it and waits until that is
// available.
func Capture(t *testing.T, l *lab.Lab, id, name string) string {
	t.Helper()
	api := ec2.NewFromConfig(Config(l))
	if _, err := api.StopInstances(t.Context(), &ec2.StopInstancesInput{InstanceIds: []string{id}}); err != nil {
		t.Fatal(err)
	}
	WaitState(t, l, id, "stopped")
	made, err := api.CreateImage(t.Context(), &ec2.CreateImageInput{InstanceId: &id, Name: &name})
	if err != nil {
		t.Fatal(err)
	}
	WaitImage(t, l, *made.ImageId)
	return *made.ImageId
}

// WaitImage waits until an image is available.
func WaitImage(t *testing.T, l *lab.Lab, imageID string) {
	t.Helper()
	Eventually(t, "available image "+imageID, func() bool {
		out, err := ec2.NewFromConfig(Config(l)).DescribeImages(t.Context(), &ec2.DescribeImagesInput{ImageIds: []string{imageID}})
		return err == nil && len(out.Images) == 1 && out.Images[0].State == types.ImageStateAvailable
	}, Nothing)
}

// Console is the end of an instance's console.
func Console(l *lab.Lab, id string) string {
	out, _ := l.Machines.Console(id)
	return string(out[max(0, len(out)-4000):])
}

// WaitConsole waits for a text on an instance's console.
func WaitConsole(t *testing.T, l *lab.Lab, id, text string) {
	t.Helper()
	Eventually(t, "console line "+text, func() bool {
		out, err := l.Machines.Console(id)
		return err == nil && strings.Contains(string(out), text)
	}, func() string { return Console(l, id) })
}

// S3 is a client for a cloud of the lab's kind, which has no host names for
// buckets.
func S3(cfg aws.Config) *s3api.Client {
	return s3api.NewFromConfig(cfg, func(o *s3api.Options) { o.UsePathStyle = true })
}

// ReadReport gets and decodes one report.
func ReadReport(t *testing.T, cfg aws.Config, bucket, key string) *report.Report {
	t.Helper()
	out, err := S3(cfg).GetObject(t.Context(), &s3api.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	body, err := io.ReadAll(out.Body)
	if err != nil {
		t.Fatal(err)
	}
	r, err := report.Decode(body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// ReportOf waits for the report of an instance's bootstrap in Le Café's bucket.
func ReportOf(t *testing.T, l *lab.Lab, id string) *report.Report {
	t.Helper()
	var r *report.Report
	Eventually(t, "report of "+id, func() bool {
		for _, key := range l.S3.Objects("lecafe-reports", "lecafe-reports/") {
			if k, err := report.ParseKey(key); err == nil && k.InstanceID() == id && k.Kind == report.KindBootstrap {
				r = ReadReport(t, Config(l), "lecafe-reports", key)
				return true
			}
		}
		return false
	}, func() string { return Console(l, id) })
	return r
}
