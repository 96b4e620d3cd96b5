package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	labec2 "github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// TestConnectInTheLab runs testdata/connect-lab against the lab's cloud: the
// role's policies are IAM's own, and the managed instance has registered with
// the credentials of its role.
func TestConnectInTheLab(t *testing.T) {
	c := cloudtest.New(t, cloud.Options{Clock: wire.Scaled(1000)})
	api, roles := ec2.NewFromConfig(c.Config()), iam.NewFromConfig(c.Config())
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	image, err := c.EC2.AddImage("us-east-1", labec2.ImageSeed{Name: "debian-12"})
	must(err)
	const core = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"
	c.EC2.PutInstanceProfile("empty", "")
	for _, role := range []string{"bare", "managed", "wrong-policy"} {
		c.EC2.PutInstanceProfile(role, role)
	}
	must(c.PutRolePolicy("wrong-policy", "read", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"*"}]}`))
	_, err = roles.AttachRolePolicy(t.Context(), &iam.AttachRolePolicyInput{RoleName: aws.String("managed"), PolicyArn: aws.String(core)})
	must(err)
	run := func(profile string) string {
		in := &ec2.RunInstancesInput{ImageId: &image, InstanceType: "t3.micro", MinCount: aws.Int32(1), MaxCount: aws.Int32(1)}
		if profile != "" {
			in.IamInstanceProfile = &ec2types.IamInstanceProfileSpecification{Name: &profile}
		}
		out, err := api.RunInstances(t.Context(), in)
		must(err)
		id := *out.Instances[0].InstanceId
		c.Until(t, id, func() bool {
			info, _ := c.EC2.Instance(id)
			return info.State == "running"
		})
		return id
	}
	env := []string{}
	for _, profile := range []string{"", "empty", "bare", "wrong-policy", "managed"} {
		env = append(env, "I_"+strings.ToUpper(strings.ReplaceAll(profile, "-", "_"))+"="+run(profile))
	}
	online := run("managed")
	env = append(env, "I_ONLINE="+online)
	if code := register(t, c, online, c.Vault.Vend("managed", online, time.Hour)); code != http.StatusOK {
		t.Errorf("an instance with Session Manager's policy registers: status %d", code)
	}
	// No other instance's name, and not without the policy.
	if code := register(t, c, online, c.Vault.Vend("managed", "i-0123456789abcdef0", time.Hour)); code != http.StatusBadRequest {
		t.Errorf("another instance's registration: status %d", code)
	}
	if code := register(t, c, online, c.Vault.Vend("bare", online, time.Hour)); code != http.StatusBadRequest {
		t.Errorf("registration without the policy: status %d", code)
	}
	runConnect(t, "testdata/connect-lab", c.URL, env)
}

// register calls as amazon-ssm-agent does; the SDKs have no such call.
func register(t *testing.T, c *cloudtest.Cloud, id string, creds wire.Credentials) int {
	t.Helper()
	body := fmt.Sprintf(`{"InstanceId":%q,"AgentVersion":"3.3.0.0","PlatformType":"Linux","ComputerName":"cafe"}`, id)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.URL+"/", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Amz-Target", "AmazonSSM.UpdateInstanceInformation")
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	sum := sha256.Sum256([]byte(body))
	err = v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: creds.AccessKeyID, SecretAccessKey: creds.SecretAccessKey, SessionToken: creds.SessionToken}, r, hex.EncodeToString(sum[:]), "ssm", "us-east-1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	out, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Body.Close() }()
	answer, err := io.ReadAll(out.Body)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("register %s: %s %s", id, out.Status, answer)
	return out.StatusCode
}

// runConnect runs scripts with lecafe alone in the PATH.
func runConnect(t *testing.T, dir, url string, env []string) {
	t.Helper()
	testscript.Run(t, testscript.Params{Dir: dir, RequireExplicitExec: true, Setup: func(e *testscript.Env) error {
		e.Vars = append(append(e.Vars, awsEnv(url)...), env...)
		lecafe, err := exec.LookPath("lecafe")
		if err != nil {
			return err
		}
		e.Setenv("PATH", filepath.Dir(lecafe))
		return nil
	}})
}

// TestConnectTellsAgentFromRoute runs the command against an account whose
// instance has the right role and does not register, with each way out.
func TestConnectTellsAgentFromRoute(t *testing.T) {
	const id = "i-0123456789abcdef0"
	table := func(route string) string {
		return `<routeTableSet><item><routeTableId>rtb-1</routeTableId><routeSet><item><destinationCidrBlock>10.0.0.0/16</destinationCidrBlock><gatewayId>local</gatewayId><state>active</state></item>` + route + `</routeSet></item></routeTableSet>`
	}
	route := func(target string) string {
		return `<item><destinationCidrBlock>0.0.0.0/0</destinationCidrBlock>` + target + `<state>active</state></item>`
	}
	for _, c := range []struct{ name, endpoints, own, main, public, want string }{
		{"endpoint", `<vpcEndpointSet><item><vpcEndpointId>vpce-1</vpcEndpointId></item></vpcEndpointSet>`, "", "", "", "has a route (VPC endpoint vpce-1), so amazon-ssm-agent is not installed or not running"},
		{"no route", "", table(""), "", "", "no route to ssm.us-east-1.amazonaws.com: the route table rtb-1 of its subnet has no default route"},
		{"private behind an internet gateway", "", table(route("<gatewayId>igw-1</gatewayId>")), "", "", "leads to an internet gateway, and it has no public address"},
		{"public", "", table(route("<gatewayId>igw-1</gatewayId>")), "", "<ipAddress>203.0.113.7</ipAddress>", "has a route (the default route of rtb-1), so amazon-ssm-agent"},
		{"NAT, by the main table", "", "", table(route("<natGatewayId>nat-1</natGatewayId>")), "", "has a route (the default route of rtb-1)"},
		{"black hole", "", table(`<item><destinationCidrBlock>0.0.0.0/0</destinationCidrBlock><natGatewayId>nat-1</natGatewayId><state>blackhole</state></item>`), "", "", "has no default route"},
		{"not to be read", "denied", "", "", "", "or there is no route to ssm.us-east-1.amazonaws.com"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					t.Error(err)
				}
				is := func(s string) bool { return strings.Contains(string(body), s) }
				switch {
				case strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".DescribeInstanceInformation"):
					_, _ = io.WriteString(w, `{"InstanceInformationList":[]}`)
				case is("GetInstanceProfile"):
					_, _ = io.WriteString(w, `<GetInstanceProfileResponse><GetInstanceProfileResult><InstanceProfile><Roles><member><RoleName>app</RoleName></member></Roles></InstanceProfile></GetInstanceProfileResult></GetInstanceProfileResponse>`)
				case is("ListAttachedRolePolicies"):
					_, _ = io.WriteString(w, `<ListAttachedRolePoliciesResponse><ListAttachedRolePoliciesResult><AttachedPolicies><member><PolicyName>AmazonSSMManagedInstanceCore</PolicyName></member></AttachedPolicies></ListAttachedRolePoliciesResult></ListAttachedRolePoliciesResponse>`)
				case is("DescribeVpcEndpoints") && c.endpoints == "denied":
					w.WriteHeader(http.StatusForbidden)
					_, _ = io.WriteString(w, `<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>no</Message></Error></Errors></Response>`)
				case is("DescribeVpcEndpoints"):
					_, _ = io.WriteString(w, `<DescribeVpcEndpointsResponse>`+c.endpoints+`</DescribeVpcEndpointsResponse>`)
				case is("DescribeRouteTables") && is("association.main"):
					_, _ = io.WriteString(w, `<DescribeRouteTablesResponse>`+c.main+`</DescribeRouteTablesResponse>`)
				case is("DescribeRouteTables"):
					_, _ = io.WriteString(w, `<DescribeRouteTablesResponse>`+c.own+`</DescribeRouteTablesResponse>`)
				default:
					_, _ = io.WriteString(w, `<DescribeInstancesResponse><reservationSet><item><instancesSet><item><instanceId>`+id+`</instanceId><subnetId>subnet-1</subnetId><vpcId>vpc-1</vpcId>`+c.public+
						`<instanceState><name>running</name></instanceState><iamInstanceProfile><arn>arn:aws:iam::123456789012:instance-profile/app</arn></iamInstanceProfile></item></instancesSet></item></reservationSet></DescribeInstancesResponse>`)
				}
			}))
			defer server.Close()
			for _, v := range awsEnv(server.URL) {
				name, value, _ := strings.Cut(v, "=")
				t.Setenv(name, value)
			}
			var stdout, stderr bytes.Buffer
			if code := run([]string{"lecafe", "connect", id}, strings.NewReader(""), &stdout, &stderr); code != 1 {
				t.Errorf("exit code %d", code)
			}
			if !strings.Contains(stderr.String(), c.want) {
				t.Errorf("the answer does not say %q:\n%s", c.want, stderr.String())
			}
		})
	}
}
