// Package policy prints the least IAM policies that lecafe's parts need. It
// owns the mapping from API calls to IAM actions; it calls no AWS API and
// grants nothing.
package policy

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/bake/recipe"
)

// Document is an IAM policy.
type Document struct {
	Version   string      `json:"Version"`
	Statement []Statement `json:"Statement"`
}

// Statement is one permission. Resource is never empty.
type Statement struct {
	Sid       string               `json:"Sid"`
	Effect    string               `json:"Effect"`
	Action    []string             `json:"Action"`
	Resource  []string             `json:"Resource"`
	Condition map[string]Condition `json:"Condition,omitempty"`
}

// Condition maps a condition key to its values.
type Condition map[string][]string

// Where names the account that ARNs are of.
type Where struct {
	Partition string // aws, aws-cn, aws-us-gov; default aws
	Region    string // default *
	Account   string // default *
}

func (w Where) arn(service, resource string) string {
	return "arn:" + cmp.Or(w.Partition, "aws") + ":" + service + ":" + cmp.Or(w.Region, "*") + ":" + cmp.Or(w.Account, "*") + ":" + resource
}

// s3 and iam ARNs have no region; s3's no account either.
func (w Where) s3(path string) string { return "arn:" + cmp.Or(w.Partition, "aws") + ":s3:::" + path }
func (w Where) iam(resource string) string {
	return "arn:" + cmp.Or(w.Partition, "aws") + ":iam::" + cmp.Or(w.Account, "*") + ":" + resource
}

// ec2 image and snapshot ARNs have no account.
func (w Where) ec2(resource string) string {
	if strings.HasPrefix(resource, "image/") || strings.HasPrefix(resource, "snapshot/") {
		return "arn:" + cmp.Or(w.Partition, "aws") + ":ec2:" + cmp.Or(w.Region, "*") + "::" + resource
	}
	return w.arn("ec2", resource)
}

func document(statements ...Statement) Document {
	d := Document{Version: "2012-10-17"}
	for _, s := range statements {
		if len(s.Action) == 0 || len(s.Resource) == 0 {
			continue
		}
		s.Effect = "Allow"
		slices.Sort(s.Resource)
		s.Resource = slices.Compact(s.Resource)
		d.Statement = append(d.Statement, s)
	}
	return d
}

// JSON returns the document as IAM takes it, indented, with a final newline.
func (d Document) JSON() []byte {
	out, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		panic(err) // strings and slices of strings always encode
	}
	return append(out, '\n')
}

// queueName of a name or URL.
func queueName(queue string) string { return queue[strings.LastIndexByte(queue, '/')+1:] }

// Agent is what an instance's role needs for the settings s. It writes below
// its own prefix alone: ${aws:userid} is ROLEID:instance-id. group confines
// the lifecycle action; empty means any group of the account.
func Agent(w Where, s settings.Settings, group string) Document {
	var objects, buckets []string
	versions := false
	for _, o := range s.Config {
		path := strings.TrimPrefix(o.Source, "s3://")
		bucket, key, _ := strings.Cut(path, "/")
		if key == "" || strings.HasSuffix(key, "/") {
			key += "*"
		}
		objects = append(objects, w.s3(bucket+"/"+key))
		buckets = append(buckets, w.s3(bucket))
		versions = versions || o.VersionID != ""
	}
	read := []string{"s3:GetObject"}
	if versions {
		read = append(read, "s3:GetObjectVersion")
	}
	out := []Statement{
		{Sid: "ReadConfig", Action: read, Resource: objects},
		// With it a missing object is 404 and not 403, so that reports can
		// tell "missing" from "denied".
		{Sid: "TellMissingFromDenied", Action: []string{"s3:ListBucket"}, Resource: buckets},
	}
	if s.Report.S3.Bucket != "" {
		prefix := strings.Trim(cmp.Or(s.Report.S3.Prefix, "lecafe-reports"), "/")
		out = append(out, Statement{Sid: "WriteOwnReports", Action: []string{"s3:PutObject"}, Resource: []string{w.s3(s.Report.S3.Bucket + "/" + prefix + "/${aws:userid}/*")}},
			// How far a boot is goes once its report is there.
			Statement{Sid: "ClearOwnProgress", Action: []string{"s3:DeleteObject"}, Resource: []string{w.s3(s.Report.S3.Bucket + "/" + prefix + "/${aws:userid}/" + report.MarkDir + "/*")}})
	}
	if s.Report.SQS.Queue != "" {
		out = append(out, Statement{Sid: "SendReports", Action: []string{"sqs:GetQueueUrl", "sqs:SendMessage"}, Resource: []string{w.arn("sqs", queueName(s.Report.SQS.Queue))}})
	}
	if s.Orders.Queue != "" {
		out = append(out, Statement{Sid: "SendOrders", Action: []string{"sqs:GetQueueAttributes", "sqs:GetQueueUrl", "sqs:SendMessage"}, Resource: []string{w.arn("sqs", queueName(s.Orders.Queue))}})
	}
	if to, ok := strings.CutPrefix(s.Orders.SealTo, "s3://"); ok {
		out = append(out, Statement{Sid: "SealOrders", Action: []string{"s3:PutObject"}, Resource: []string{w.s3(strings.TrimSuffix(to, "/") + "/${aws:userid}/*")}})
	}
	if s.Report.LifecycleHook.Name != "" {
		group = cmp.Or(group, s.Report.LifecycleHook.Group, "*")
		out = append(out, Statement{Sid: "CompleteLifecycleAction", Action: []string{"autoscaling:CompleteLifecycleAction", "autoscaling:RecordLifecycleActionHeartbeat"},
			Resource: []string{w.arn("autoscaling", "autoScalingGroup:*:autoScalingGroupName/"+group)}})
	}
	return document(out...)
}

// tagged confines a statement to what a bake tagged at creation.
func tagged() map[string]Condition {
	return map[string]Condition{"StringLike": {"ec2:ResourceTag/" + manifest.TagBake: {"*"}}}
}

// creates confines CreateTags to the calls that create something.
func creates(actions ...string) map[string]Condition {
	return map[string]Condition{"StringEquals": {"ec2:CreateAction": actions}}
}

// Bake is what `lecafe bake` needs for the recipe r, gc included.
func Bake(w Where, r *recipe.Recipe) Document {
	out := append(w.temporary(r), []Statement{
		{Sid: "LaunchBuilder", Action: []string{"ec2:RunInstances"}, Resource: []string{
			w.ec2("image/*"), w.ec2("instance/*"), w.ec2("network-interface/*"), w.ec2("security-group/*"), w.ec2("subnet/*"), w.ec2("volume/*"),
		}},
		{Sid: "UseOwnInstances", Action: []string{"ec2:CreateImage", "ec2:StopInstances", "ec2:TerminateInstances"}, Resource: []string{w.ec2("instance/*")}, Condition: tagged()},
		{Sid: "MakeImage", Action: []string{"ec2:CreateImage"}, Resource: []string{w.ec2("image/*"), w.ec2("snapshot/*")}},
		{Sid: "FinishOwnImages", Action: []string{"ec2:DeleteSnapshot", "ec2:DeregisterImage", "ec2:ModifyImageAttribute"}, Resource: w.imagesOf(r, "image", "snapshot"), Condition: tagged()},
		// From "building" to "done" once an image has proved itself.
		{Sid: "MarkOwnImages", Action: []string{"ec2:CreateTags"}, Resource: w.imagesOf(r, "image", "snapshot"), Condition: tagged()},
		{Sid: "TagAtCreation", Action: []string{"ec2:CreateTags"}, Resource: append(w.imagesOf(r, "image", "snapshot"), w.ec2("instance/*"), w.ec2("network-interface/*"), w.ec2("security-group/*"), w.ec2("volume/*")),
			Condition: creates("CopyImage", "CreateImage", "CreateSecurityGroup", "RunInstances")},
	}...)
	if p := r.Source.SSMParameter; p != "" {
		name := strings.TrimPrefix(p, "/")
		resource := w.arn("ssm", "parameter/"+name)
		if strings.HasPrefix(name, "aws/service/") { // public parameters belong to no account
			resource = Where{w.Partition, w.Region, ""}.public("ssm", "parameter/"+name)
		}
		out = append(out, Statement{Sid: "ResolveSource", Action: []string{"ssm:GetParameter"}, Resource: []string{resource}})
	}
	if len(r.Builder.SecurityGroups) == 0 {
		out = append(out, w.group(len(r.Builder.Subnets) > 0)...)
	}
	if p := r.Builder.InstanceProfile; p != "" {
		out = append(out, passRole(w, p))
	}
	if k := r.Canary; k != nil {
		out = append(out, w.canary(k, r.Builder.InstanceProfile)...)
	}
	if len(r.Image.Copies) > 0 {
		out = append(out, Statement{Sid: "CopyImage", Action: []string{"ec2:CopyImage"}, Resource: []string{Where{w.Partition, "", w.Account}.ec2("image/*"), Where{w.Partition, "", w.Account}.ec2("snapshot/*")}})
	}
	if keys := kmsKeys(w, r); len(keys) > 0 {
		out = append(out,
			Statement{Sid: "Encrypt", Action: []string{"kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom", "kms:ReEncryptTo"}, Resource: keys},
			Statement{Sid: "LetEC2UseTheKey", Action: []string{"kms:CreateGrant"}, Resource: keys, Condition: map[string]Condition{"Bool": {"kms:GrantIsForAWSResource": {"true"}}}})
	}
	if r.Image.DeprecateAfter > 0 {
		out = append(out, Statement{Sid: "Deprecate", Action: []string{"ec2:EnableImageDeprecation"}, Resource: w.imagesOf(r, "image"), Condition: tagged()})
	}
	if r.Image.DeregistrationProtection {
		out = append(out, Statement{Sid: "Protect", Action: []string{"ec2:EnableImageDeregistrationProtection"}, Resource: w.imagesOf(r, "image"), Condition: tagged()})
	}
	return document(out...)
}

func (w Where) public(service, resource string) string {
	return "arn:" + cmp.Or(w.Partition, "aws") + ":" + service + ":" + cmp.Or(w.Region, "*") + "::" + resource
}

// passRole lets the caller hand an instance profile's role to EC2. A profile
// is named, its role is not: by custom they share the name's stem, so the
// statement is for any role, to EC2 alone.
func passRole(w Where, profile string) Statement {
	name := profile[strings.LastIndexByte(profile, '/')+1:]
	return Statement{Sid: "PassRoleOf" + sid(name), Action: []string{"iam:PassRole"}, Resource: []string{w.iam("role/*")},
		Condition: map[string]Condition{"StringEquals": {"iam:PassedToService": {"ec2.amazonaws.com"}}}}
}

func sid(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' {
			return r
		}
		return -1
	}, name)
}

func kmsKeys(w Where, r *recipe.Recipe) []string {
	var out []string
	add := func(w Where, e *recipe.Encryption) {
		switch {
		case e == nil || e.KMSKey == "": // the account's own key for EBS needs no statement
		case strings.HasPrefix(e.KMSKey, "arn:"):
			out = append(out, e.KMSKey)
		case strings.HasPrefix(e.KMSKey, "alias/"):
			out = append(out, w.arn("kms", "key/*")) // IAM cannot name a key by its alias
		default:
			out = append(out, w.arn("kms", "key/"+e.KMSKey))
		}
	}
	add(w, r.Image.Encryption)
	for _, c := range r.Image.Copies {
		add(Where{w.Partition, c.Region, w.Account}, c.Encryption)
	}
	return out
}

// Publish is what `lecafe launch-template publish` needs for a template.
func Publish(w Where) Document {
	return document(
		Statement{Sid: "Look", Action: []string{"ec2:DescribeLaunchTemplateVersions", "ec2:DescribeLaunchTemplates"}, Resource: []string{"*"}},
		Statement{Sid: "Publish", Action: []string{"ec2:CreateLaunchTemplate", "ec2:CreateLaunchTemplateVersion", "ec2:ModifyLaunchTemplate"}, Resource: []string{w.ec2("launch-template/*")}},
		Statement{Sid: "TagAtCreation", Action: []string{"ec2:CreateTags"}, Resource: []string{w.ec2("launch-template/*")}, Condition: creates("CreateLaunchTemplate")},
	)
}

// Watching says what `lecafe watch` is to do.
type Watching struct {
	Bucket, Prefix string // of the reports
	Queue          string // that wakes it; name or URL, may be empty
	OnFailure      string // as --on-failure: unhealthy, abandon or terminate; else nothing is done about failures
}

// Watch is what `lecafe watch` needs.
func Watch(w Where, o Watching) Document {
	prefix := strings.Trim(cmp.Or(o.Prefix, "lecafe-reports"), "/")
	out := []Statement{
		{Sid: "Look", Action: []string{"autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeScalingActivities", "ec2:DescribeImages", "ec2:DescribeInstanceStatus", "ec2:DescribeInstances", "ec2:DescribeLaunchTemplateVersions", "ec2:DescribeLaunchTemplates", "ec2:DescribeRouteTables", "ec2:GetConsoleOutput", "iam:GetInstanceProfile"}, Resource: []string{"*"}},
	}
	if o.Bucket != "" {
		out = append(out,
			Statement{Sid: "ListReports", Action: []string{"s3:ListBucket"}, Resource: []string{w.s3(o.Bucket)}, Condition: map[string]Condition{"StringLike": {"s3:prefix": {prefix + "/*"}}}},
			Statement{Sid: "ReadReports", Action: []string{"s3:GetObject"}, Resource: []string{w.s3(o.Bucket + "/" + prefix + "/*")}})
	}
	if o.Queue != "" {
		out = append(out, Statement{Sid: "WakeUp", Action: []string{"sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:GetQueueUrl", "sqs:ReceiveMessage"}, Resource: []string{w.arn("sqs", queueName(o.Queue))}})
	}
	// Whatever is done, an instance that waits at its hook is kept for study by
	// heartbeats, one in service in Standby. Abandoning is for the former alone.
	var remedy []string
	switch o.OnFailure {
	case "unhealthy":
		remedy = []string{"autoscaling:CompleteLifecycleAction", "autoscaling:EnterStandby", "autoscaling:RecordLifecycleActionHeartbeat", "autoscaling:SetInstanceHealth"}
	case "abandon":
		remedy = []string{"autoscaling:CompleteLifecycleAction", "autoscaling:RecordLifecycleActionHeartbeat"}
	case "terminate":
		remedy = []string{"autoscaling:EnterStandby", "autoscaling:RecordLifecycleActionHeartbeat"}
		out = append(out, Statement{Sid: "Terminate", Action: []string{"ec2:TerminateInstances"}, Resource: []string{w.ec2("instance/*")}})
	}
	if remedy != nil {
		out = append(out,
			Statement{Sid: "LookAtHooks", Action: []string{"autoscaling:DescribeLifecycleHooks"}, Resource: []string{"*"}},
			Statement{Sid: "Remedy", Action: remedy, Resource: []string{w.arn("autoscaling", "autoScalingGroup:*:autoScalingGroupName/*")}})
		if o.Bucket != "" {
			// What watchers tell each other, so that nothing is done twice.
			out = append(out, Statement{Sid: "ShareClaims", Action: []string{"s3:PutObject"}, Resource: []string{w.s3(o.Bucket + "/" + prefix + "/_fleet/*")}})
		}
	}
	return document(out...)
}
