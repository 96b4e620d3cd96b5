package e2e

import (
	"encoding/base64"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/lab/image"
)

// startLab starts a lab whose instances boot, with Le Café's seed and the base
// images named. It ends with the test. change may be nil.
func startLab(t *testing.T, distros []string, change func(*lab.Options)) *lab.Lab {
	t.Helper()
	requireBoot(t)
	var images []*image.Image
	for _, d := range distros {
		images = append(images, baseImage(t, d))
	}
	o := lab.Options{
		Driver: lab.DriverNspawn, StateDir: stateDir(), Images: images, Seed: lab.LeCafe(),
		// The cloud's own delays add nothing to what is tested here.
		TimeScale: 100, Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
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
		if got := leftovers(l.Machines.Name()); len(got) > 0 {
			t.Errorf("the lab left behind:\n%s", strings.Join(got, "\n"))
		}
	})
	return l
}

// config is the operator's.
func config(l *lab.Lab) aws.Config {
	return aws.Config{Region: lab.Region, BaseEndpoint: aws.String(l.URL), Credentials: credentials.NewStaticCredentialsProvider("test", "test", "")}
}

// runInstance launches one instance as an operator does; change may be nil.
func runInstance(t *testing.T, l *lab.Lab, imageID, userData string, change func(*ec2.RunInstancesInput)) string {
	t.Helper()
	in := &ec2.RunInstancesInput{
		ImageId: aws.String(imageID), InstanceType: types.InstanceTypeT3Micro, MinCount: aws.Int32(1), MaxCount: aws.Int32(1),
		UserData:           aws.String(base64.StdEncoding.EncodeToString([]byte(userData))),
		IamInstanceProfile: &types.IamInstanceProfileSpecification{Name: aws.String("lecafe-app-profile")},
		MetadataOptions:    &types.InstanceMetadataOptionsRequest{HttpTokens: types.HttpTokensStateRequired, HttpPutResponseHopLimit: aws.Int32(1)},
	}
	if change != nil {
		change(in)
	}
	out, err := ec2.NewFromConfig(config(l)).RunInstances(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return aws.ToString(out.Instances[0].InstanceId)
}

// waitState waits for an instance to be in a state of the EC2 API.
func waitState(t *testing.T, l *lab.Lab, id, state string) {
	t.Helper()
	got := ""
	eventually(t, state+" instance "+id, func() bool {
		info, ok := l.EC2.Instance(id)
		if got = info.State; !ok {
			got = "gone"
		}
		return got == state
	}, func() string { return "it is " + got + "\n" + console(l, id) })
}

func console(l *lab.Lab, id string) string {
	out, _ := l.Machines.Console(id)
	return string(out[max(0, len(out)-4000):])
}

// waitConsole waits for a text on an instance's console.
func waitConsole(t *testing.T, l *lab.Lab, id, text string) {
	t.Helper()
	eventually(t, "console line "+text, func() bool {
		out, err := l.Machines.Console(id)
		return err == nil && strings.Contains(string(out), text)
	}, func() string { return console(l, id) })
}

// asRole uses the instance's role with nothing but what Debian has: what its
// policy allows is served, and all else refused.
const asRole = `
token=$(curl -sS -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token)
get() { curl -sSf -H "X-aws-ec2-metadata-token: $token" http://169.254.169.254/latest/meta-data/iam/security-credentials/$1; }
get "$(get)" > /run/creds
of() { sed -n 's/.*"'$1'": "\(.*\)".*/\1/p' /run/creds; }
aws() { curl -sS --aws-sigv4 aws:amz:us-east-1:$1 --user "$(of AccessKeyId):$(of SecretAccessKey)" -H "x-amz-security-token: $(of Token)" "${@:2}"; }
s3() { aws s3 -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' "$@"; }
s3 $url/lecafe-assets/app/config.txt
echo "reports: $(s3 -o /dev/null -w '%{http_code}' "$url/lecafe-reports?list-type=2")"
aws sts -d 'Action=GetCallerIdentity&Version=2011-06-15' $url/
`

// TestLab drives the lab through EC2's API alone: an instance bakes itself,
// is captured, and the image boots as another instance.
func TestLab(t *testing.T) {
	l := startLab(t, []string{"debian-12"}, nil)
	api := ec2.NewFromConfig(config(l))
	start := time.Now()
	id := runInstance(t, l, l.AMIs["debian-12"], "#!/bin/bash\nset -e\necho latte > /opt/baked\n: > /etc/machine-id\n"+
		// Who signs nothing is told so: the cloud is reached, and is no kinder inside.
		"echo \"config: $(curl -sS -o /dev/null -w '%{http_code}' "+l.URL+"/lecafe-assets/app/config.txt)\"\npoweroff\n", nil)
	waitConsole(t, l, id, "config: 403")
	t.Logf("from RunInstances to user data running: %.1f s", time.Since(start).Seconds())
	// The default shutdown behaviour is stop.
	waitState(t, l, id, "stopped")

	img, err := api.CreateImage(t.Context(), &ec2.CreateImageInput{InstanceId: aws.String(id), Name: aws.String("latte")})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "available image", func() bool {
		out, err := api.DescribeImages(t.Context(), &ec2.DescribeImagesInput{ImageIds: []string{aws.ToString(img.ImageId)}})
		return err == nil && len(out.Images) == 1 && out.Images[0].State == types.ImageStateAvailable
	}, func() string { return "" })

	second := runInstance(t, l, aws.ToString(img.ImageId), "#!/bin/bash\necho \"served: $(cat /opt/baked)\"\nurl="+l.URL+"\n"+asRole, func(in *ec2.RunInstancesInput) {
		in.InstanceInitiatedShutdownBehavior = types.ShutdownBehaviorTerminate
	})
	waitConsole(t, l, second, "served: latte")
	waitConsole(t, l, second, "greeting=Bonjour") // of the config
	waitConsole(t, l, second, "reports: 403")
	waitConsole(t, l, second, ":assumed-role/lecafe-app-role/"+second)
	out, err := api.GetConsoleOutput(t.Context(), &ec2.GetConsoleOutputInput{InstanceId: aws.String(second), Latest: aws.Bool(true)})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := base64.StdEncoding.DecodeString(aws.ToString(out.Output)); err != nil || !strings.Contains(string(text), "served: latte") {
		t.Errorf("console output by the API lacks the user data's: %v\n%s", err, text)
	}
	// A poweroff inside follows the shutdown behaviour: this one ends.
	if _, err := l.Machines.Exec(t.Context(), second, "systemctl", "poweroff"); err != nil {
		t.Log("poweroff:", err) // the command may die with the machine
	}
	waitState(t, l, second, "terminated")

	if _, err := api.RebootInstances(t.Context(), &ec2.RebootInstancesInput{InstanceIds: []string{id}}); err == nil {
		t.Error("a stopped instance was rebooted")
	}
	if _, err := api.TerminateInstances(t.Context(), &ec2.TerminateInstancesInput{InstanceIds: []string{id}}); err != nil {
		t.Fatal(err)
	}
	waitState(t, l, id, "terminated")
}
