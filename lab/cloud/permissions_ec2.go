package cloud

import (
	"maps"
	"slices"
	"strings"

	"github.com/lecafe/lecafe/lab/cloud/policy"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// ec2Kinds are the kinds of resources by the prefix of their IDs. Images and
// snapshots have no account in their ARN.
// https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html
var ec2Kinds = map[string]string{
	"i": "instance", "ami": "image", "snap": "snapshot", "vol": "volume", "lt": "launch-template", "sg": "security-group",
	"subnet": "subnet", "vpc": "vpc", "eni": "network-interface", "key": "key-pair",
}

// ec2Creates are the kinds of resources that an action makes.
var ec2Creates = map[string][]string{
	"RunInstances": {"instance", "volume", "network-interface"}, "CreateImage": {"image", "snapshot"}, "CopyImage": {"image"},
	"RegisterImage": {"image"}, "CreateSnapshot": {"snapshot"}, "CreateLaunchTemplate": {"launch-template"},
	"CreateSecurityGroup": {"security-group"}, "CreateKeyPair": {"key-pair"}, "ImportKeyPair": {"key-pair"},
}

func (q *request) ec2ARN(kind, id string) string {
	account := wire.Account
	if kind == "image" || kind == "snapshot" {
		account = ""
	}
	return "arn:aws:ec2:" + q.region + ":" + account + ":" + kind + "/" + id
}

// needsEC2 names the action with each resource it touches and, where the
// request carries tags or an instance profile, what else IAM asks for: API
// names are not IAM actions. Tags of resources (ec2:ResourceTag) are not
// modelled: a policy that rests on them allows nothing here.
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/supported-iam-actions-tagging.html
// https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_use_passrole.html
func needsEC2(q *request) []policy.Request {
	names := slices.Sorted(maps.Keys(q.form))
	context := requestTags(q, names)
	tagged := map[string]bool{}
	var arns []string
	profile := ""
	for _, name := range names {
		value := q.form.Get(name)
		switch {
		case strings.HasPrefix(name, "IamInstanceProfile."):
			profile = value[strings.LastIndexByte(value, '/')+1:]
		case strings.HasPrefix(name, "TagSpecification.") && strings.HasSuffix(name, ".ResourceType"):
			tagged[value] = true
		case name == "LaunchTemplateName", name == "LaunchTemplate.LaunchTemplateName":
			arns = append(arns, q.ec2ARN("launch-template", "*"))
		case name == "KeyName":
			arns = append(arns, q.ec2ARN("key-pair", value))
		// What a launch template names is asked for when it is launched from.
		case strings.Contains(name, "Id") && !strings.HasPrefix(name, "Filter.") && !strings.HasPrefix(name, "LaunchTemplateData."):
			prefix, _, _ := strings.Cut(value, "-")
			if kind := ec2Kinds[prefix]; kind != "" {
				arns = append(arns, q.ec2ARN(kind, value))
			}
		}
	}
	for _, kind := range ec2Creates[q.action] {
		arns = append(arns, q.ec2ARN(kind, "*"))
	}
	// What only describes knows no resources.
	if len(arns) == 0 || strings.HasPrefix(q.action, "Describe") {
		arns = []string{"*"}
	}
	var out []policy.Request
	for _, arn := range arns {
		out = append(out, policy.Request{Action: "ec2:" + q.action, Resource: arn, Context: context})
	}
	for _, kind := range slices.Sorted(maps.Keys(tagged)) {
		with := maps.Clone(context)
		with["ec2:createaction"] = q.action
		out = append(out, policy.Request{Action: "ec2:CreateTags", Resource: q.ec2ARN(kind, "*"), Context: with})
	}
	if profile != "" {
		out = append(out, policy.Request{
			Action: "iam:PassRole", Resource: "arn:aws:iam::" + wire.Account + ":role/" + profile,
			Context: map[string]string{"iam:passedtoservice": "ec2.amazonaws.com"},
		})
	}
	return out
}

// requestTags are the condition keys aws:RequestTag/KEY of the tags that a
// request carries.
func requestTags(q *request, names []string) map[string]string {
	out := map[string]string{}
	for _, name := range names {
		if at, ok := strings.CutSuffix(name, ".Key"); ok && strings.Contains(at, "Tag.") {
			out["aws:requesttag/"+strings.ToLower(q.form.Get(name))] = q.form.Get(at + ".Value")
		}
	}
	return out
}
