package e2e

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/test/boots"
)

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
	l := boots.Lab(t, []string{"debian-12"}, nil)
	api := ec2.NewFromConfig(boots.Config(l))
	start := time.Now()
	id := boots.RunInstance(t, l, l.AMIs["debian-12"], "#!/bin/bash\nset -e\necho latte > /opt/baked\n: > /etc/machine-id\n"+
		// Who signs nothing is told so: the cloud is reached, and is no kinder inside.
		"echo \"config: $(curl -sS -o /dev/null -w '%{http_code}' "+l.URL+"/lecafe-assets/app/config.txt)\"\npoweroff\n", nil)
	boots.WaitConsole(t, l, id, "config: 403")
	t.Logf("from RunInstances to user data running: %.1f s", time.Since(start).Seconds())
	// The default shutdown behaviour is stop.
	boots.WaitState(t, l, id, "stopped")

	img := boots.Capture(t, l, id, "latte")

	second := boots.RunInstance(t, l, img, "#!/bin/bash\necho \"served: $(cat /opt/baked)\"\nurl="+l.URL+"\n"+asRole, func(in *ec2.RunInstancesInput) {
		in.InstanceInitiatedShutdownBehavior = types.ShutdownBehaviorTerminate
	})
	boots.WaitConsole(t, l, second, "served: latte")
	boots.WaitConsole(t, l, second, "greeting=Bonjour") // of the config
	boots.WaitConsole(t, l, second, "reports: 403")
	boots.WaitConsole(t, l, second, ":assumed-role/lecafe-app-role/"+second)
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
	boots.WaitState(t, l, second, "terminated")

	if _, err := api.RebootInstances(t.Context(), &ec2.RebootInstancesInput{InstanceIds: []string{id}}); err == nil {
		t.Error("a stopped instance was rebooted")
	}
	if _, err := api.TerminateInstances(t.Context(), &ec2.TerminateInstancesInput{InstanceIds: []string{id}}); err != nil {
		t.Fatal(err)
	}
	boots.WaitState(t, l, id, "terminated")
}
