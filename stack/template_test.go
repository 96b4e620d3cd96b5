package stack_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/bake/recipe"
	"github.com/lecafe/lecafe/policy"
	"github.com/lecafe/lecafe/stack"
)

// pseudo are the parameters that CloudFormation itself gives.
var pseudo = map[string]string{"AWS::Partition": "aws", "AWS::Region": "us-east-1", "AWS::AccountId": "123456789012", "AWS::NoValue": ""}

type resource struct {
	Type       string    `yaml:"Type"`
	Condition  string    `yaml:"Condition"`
	Properties yaml.Node `yaml:"Properties"`
}

type document struct {
	Parameters map[string]stack.Parameter `yaml:"Parameters"`
	Conditions map[string]yaml.Node       `yaml:"Conditions"`
	Resources  map[string]resource        `yaml:"Resources"`
	Outputs    yaml.Node                  `yaml:"Outputs"`
}

func load(t *testing.T) (*yaml.Node, document) {
	t.Helper()
	var root yaml.Node
	if err := yaml.Unmarshal(stack.Template(), &root); err != nil {
		t.Fatal(err)
	}
	var d document
	if err := root.Decode(&d); err != nil {
		t.Fatal(err)
	}
	return &root, d
}

func each(n *yaml.Node, f func(*yaml.Node)) {
	f(n)
	for _, c := range n.Content {
		each(c, f)
	}
}

// field follows keys of mappings; nil where there is none.
func field(n *yaml.Node, keys ...string) *yaml.Node {
	for _, k := range keys {
		i := -1
		for j := 0; n != nil && n.Kind == yaml.MappingNode && j < len(n.Content); j += 2 {
			if n.Content[j].Value == k {
				i = j + 1
			}
		}
		if i < 0 {
			return nil
		}
		n = n.Content[i]
	}
	return n
}

var variable = regexp.MustCompile(`\$\{([^!}][^}]*)\}`)

// sub does Fn::Sub with the parameters' defaults.
func (d document) sub(text string) string {
	out := variable.ReplaceAllStringFunc(text, func(m string) string {
		name := m[2 : len(m)-1]
		if v, ok := pseudo[name]; ok {
			return v
		}
		return fmt.Sprint(d.Parameters[name].Default)
	})
	return strings.ReplaceAll(out, "${!", "${")
}

func TestEveryReferenceResolves(t *testing.T) {
	root, d := load(t)
	known := func(name string) bool {
		_, p := d.Parameters[name]
		_, r := d.Resources[name]
		_, a := pseudo[name]
		return p || r || a
	}
	attributes := map[string][]string{
		"AWS::IAM::Role": {"Arn"}, "AWS::IAM::InstanceProfile": {"Arn"}, "AWS::S3::Bucket": {"Arn"}, "AWS::SQS::Queue": {"Arn"},
		"AWS::EC2::SecurityGroup": {"GroupId"}, "AWS::EC2::LaunchTemplate": {"LatestVersionNumber"},
	}
	getAtt := func(n *yaml.Node, value string) {
		name, attribute, _ := strings.Cut(value, ".")
		if !slices.Contains(attributes[d.Resources[name].Type], attribute) {
			t.Errorf("line %d: %s is no attribute of a resource", n.Line, value)
		}
	}
	count := 0
	each(root, func(n *yaml.Node) {
		if n.Kind == yaml.AliasNode || n.Anchor != "" {
			t.Errorf("line %d: CloudFormation takes no YAML aliases", n.Line)
		}
		switch n.Tag {
		case "!Ref":
			count++
			if !known(n.Value) {
				t.Errorf("line %d: !Ref %s leads nowhere", n.Line, n.Value)
			}
		case "!GetAtt":
			count++
			getAtt(n, n.Value)
		case "!Sub":
			for _, m := range variable.FindAllStringSubmatch(n.Value, -1) {
				count++
				if strings.Contains(m[1], ".") {
					getAtt(n, m[1])
				} else if !known(m[1]) {
					t.Errorf("line %d: !Sub ${%s} leads nowhere", n.Line, m[1])
				}
			}
		case "!If":
			if _, ok := d.Conditions[n.Content[0].Value]; !ok {
				t.Errorf("line %d: no condition %s", n.Line, n.Content[0].Value)
			}
		}
	})
	for name, r := range d.Resources {
		if _, ok := d.Conditions[r.Condition]; r.Condition != "" && !ok {
			t.Errorf("%s: no condition %s", name, r.Condition)
		}
	}
	if count < 50 {
		t.Errorf("only %d references were looked at", count)
	}
	for name, p := range d.Parameters {
		if len(p.Description) < 20 {
			t.Errorf("parameter %s is not described", name)
		}
	}
}

func TestPort22IsClosedWithoutTheParameter(t *testing.T) {
	_, d := load(t)
	var open []string
	for name, r := range d.Resources {
		if !strings.HasPrefix(r.Type, "AWS::EC2::SecurityGroup") {
			continue
		}
		each(&r.Properties, func(n *yaml.Node) {
			from, to := field(n, "FromPort"), field(n, "ToPort")
			if from == nil || to == nil {
				if p := field(n, "IpProtocol"); p != nil && field(n, "CidrIp").Value != "127.0.0.1/32" {
					t.Errorf("%s line %d: all ports", name, n.Line)
				}
				return
			}
			if from.Value != to.Value || from.Tag != to.Tag {
				t.Errorf("%s line %d: a range of ports", name, n.Line)
			}
			if from.Value == "22" {
				open = append(open, name+" if "+r.Condition)
			}
		})
	}
	slices.Sort(open)
	if diff := cmp.Diff([]string{"AppFromSsh if HasSsh", "AppFromSshIpv6 if HasSshIpv6"}, open); diff != "" {
		t.Error(diff)
	}
	// What the tool refuses, the template refuses too.
	for name, bad := range map[string]string{"SshFrom": "0.0.0.0/0", "SshFromIpv6": "::/0"} {
		if d.Parameters[name].Default != "" {
			t.Errorf("%s is %q unless it is set", name, d.Parameters[name].Default)
		}
		var pattern string
		for _, line := range strings.Split(string(stack.Template())[strings.Index(string(stack.Template()), "\n  "+name+":"):], "\n") {
			if _, p, ok := strings.Cut(line, "AllowedPattern: "); ok {
				pattern = strings.Trim(p, `"`)
				break
			}
		}
		re := regexp.MustCompile("^(?:" + pattern + ")$")
		if re.MatchString(bad) || !re.MatchString("") || !re.MatchString(strings.TrimSuffix(bad, "0")+"10") {
			t.Errorf("%s: pattern %s", name, pattern)
		}
	}
}

func TestNothingIsAllowedByWildcard(t *testing.T) {
	root, _ := load(t)
	allowed := 0
	each(root, func(n *yaml.Node) {
		effect, actions := field(n, "Effect"), field(n, "Action")
		if effect == nil || effect.Value != "Allow" {
			return
		}
		each(actions, func(a *yaml.Node) {
			if a.Kind != yaml.ScalarNode {
				return
			}
			allowed++
			if strings.Contains(a.Value, "*") {
				t.Errorf("line %d: allows %s", a.Line, a.Value)
			}
		})
	})
	if allowed == 0 {
		t.Error("no statement was looked at")
	}
}

func TestIMDSv2IsRequired(t *testing.T) {
	_, d := load(t)
	templates := 0
	for name, r := range d.Resources {
		if r.Type != "AWS::EC2::LaunchTemplate" {
			continue
		}
		templates++
		for key, want := range map[string]string{"HttpTokens": "required", "HttpPutResponseHopLimit": "1"} {
			if n := field(&r.Properties, "LaunchTemplateData", "MetadataOptions", key); n == nil || n.Value != want {
				t.Errorf("%s: %s is not %s", name, key, want)
			}
		}
	}
	if templates != 1 {
		t.Errorf("%d launch templates", templates)
	}
}

// rolePolicy is the inline policy of the role, with the parameters' defaults.
func rolePolicy(t *testing.T, d document) policy.Document {
	t.Helper()
	r := d.Resources["AppRole"]
	each(&r.Properties, func(n *yaml.Node) {
		if n.Tag == "!Sub" {
			n.Tag, n.Value = "!!str", d.sub(n.Value)
		}
	})
	var plain any
	if err := field(&r.Properties, "Policies").Content[0].Content[3].Decode(&plain); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(plain)
	if err != nil {
		t.Fatal(err)
	}
	var out policy.Document
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// The role allows what the agent needs for the settings that the template
// gives it, over those that the example bakes in, and nothing else.
func TestRoleIsTheAgentsPolicy(t *testing.T) {
	_, d := load(t)
	lt := d.Resources["LaunchTemplate"]
	userData := field(&lt.Properties, "LaunchTemplateData", "UserData", "Fn::Base64")
	sent, ok, err := settings.SourceFromUserData([]byte(d.sub(userData.Value)))
	if err != nil || !ok {
		t.Fatalf("no settings in the user data: %v", err)
	}
	where := policy.Where{Partition: "aws", Region: "us-east-1", Account: "123456789012"}
	got := rolePolicy(t, d)
	own, err := settings.Decode(sent)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(policy.Agent(where, own, ""), got); diff != "" {
		t.Errorf("settings of the template's user data (-agent +role):\n%s", diff)
	}

	r, err := recipe.Load("../examples/lecafe-app/recipe.yaml")
	if err != nil {
		t.Fatal(err)
	}
	baked, err := yaml.Marshal(r.Agent)
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("../examples/lecafe-app/agent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	hook := settings.Source{Name: "hook", Data: []byte("report: {lifecycle_hook: {name: lecafe-launch, group: lecafe-app}}\n")}
	both, err := settings.Decode(settings.Source{Name: "recipe", Data: baked}, settings.Source{Name: "agent.yaml", Data: example}, hook)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(policy.Agent(where, both, ""), got); diff != "" {
		t.Errorf("the example's settings (-agent +role):\n%s", diff)
	}
}

func TestTemplatePassesTheValidator(t *testing.T) {
	path, err := exec.LookPath("cfn-lint")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("cfn-lint is not installed: pip install cfn-lint")
		}
		t.Skip("SKIPPED: cfn-lint is not installed: pip install cfn-lint")
	}
	if out, err := exec.CommandContext(t.Context(), path, "template.yaml").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestSSHFrom(t *testing.T) {
	for _, bad := range []string{"0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/1", "10.0.0.0/7", "2000::/3", "::ffff:0.0.0.0/96", "203.0.113.7", "", "any"} {
		if set, err := stack.SSHFrom(bad); err == nil {
			t.Errorf("%s gives %v", bad, set)
		}
	}
	for good, want := range map[string]map[string]string{
		"203.0.113.7/24": {"SshFrom": "203.0.113.0/24", "SshFromIpv6": ""},
		"2001:db8::1/64": {"SshFrom": "", "SshFromIpv6": "2001:db8::/64"},
	} {
		set, err := stack.SSHFrom(good)
		if err != nil || !maps.Equal(set, want) {
			t.Errorf("%s gives %v, %v", good, set, err)
		}
	}
}
