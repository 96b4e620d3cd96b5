package cloudformation

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

type properties = map[string]any

// made is what a resource gives to others.
type made struct {
	id         string            // what Ref returns
	attributes map[string]string // what Fn::GetAtt returns
}

// kind is how resources of one type are handled. Properties reach it evaluated;
// name is the resource's own where the template gives none.
type kind struct {
	named   string // the property that is the name of what may be taken over
	create  func(w *world, name string, p properties) (made, error)
	update  func(w *world, id string, old, p properties) (made, error)
	remove  func(w *world, id string, p properties) error
	observe func(w *world, id string) (map[string]string, error) // by property path; an error: it is gone
	fixed   []string                                             // properties whose change replaces the resource; "*" is any
}

// https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-template-resource-type-ref.html
var kinds = map[string]kind{
	"AWS::IAM::Role":                     {"RoleName", createRole, updateRole, removeRole, observeRole, []string{"RoleName"}},
	"AWS::IAM::InstanceProfile":          {"InstanceProfileName", createProfile, nil, removeProfile, observeProfile, []string{"*"}},
	"AWS::S3::Bucket":                    {"BucketName", createBucket, updateBucket, removeBucket, observeBucket, []string{"BucketName"}},
	"AWS::S3::BucketPolicy":              {"", createBucketPolicy, updateBucketPolicy, removeBucketPolicy, observeBucketPolicy, []string{"Bucket"}},
	"AWS::SQS::Queue":                    {"QueueName", createQueue, updateQueue, removeQueue, observeQueue, []string{"QueueName"}},
	"AWS::SQS::QueuePolicy":              {"", createQueuePolicy, nil, removeQueuePolicy, nil, []string{"*"}},
	"AWS::EC2::SecurityGroup":            {"", createGroup, updateGroup, removeGroup, observeGroup, []string{"GroupName", "GroupDescription", "VpcId", "SecurityGroupIngress"}},
	"AWS::EC2::SecurityGroupIngress":     {"", createIngress, nil, removeIngress, observeIngress, []string{"*"}},
	"AWS::EC2::LaunchTemplate":           {"", createTemplate, updateTemplate, removeTemplate, observeTemplate, []string{"LaunchTemplateName"}},
	"AWS::AutoScaling::AutoScalingGroup": {"", createScaling, updateScaling, removeScaling, observeScaling, []string{"AutoScalingGroupName"}},
}

func list(v any) []any { l, _ := v.([]any); return l }

func sub(v any) properties { m, _ := v.(map[string]any); return m }

func named(p properties, property, name string) string {
	if v := text(p[property]); v != "" {
		return v
	}
	return name
}

func jsonOf(v any) string {
	b, _ := json.Marshal(v) // made of strings, numbers, lists and maps
	return string(b)
}

// --- IAM

func createRole(w *world, name string, p properties) (made, error) {
	name = named(p, "RoleName", name)
	if _, err := w.query("iam", "CreateRole", url.Values{"RoleName": {name}, "AssumeRolePolicyDocument": {jsonOf(p["AssumeRolePolicyDocument"])}, "Description": {text(p["Description"])}}); err != nil {
		return made{}, err
	}
	return updateRole(w, name, properties{}, p)
}

func updateRole(w *world, id string, old, p properties) (made, error) {
	m := made{id, map[string]string{"Arn": "arn:aws:iam::" + wire.Account + ":role/" + id}}
	if _, err := w.query("iam", "UpdateAssumeRolePolicy", url.Values{"RoleName": {id}, "PolicyDocument": {jsonOf(p["AssumeRolePolicyDocument"])}}); err != nil {
		return m, err
	}
	var keep []string
	for _, x := range list(p["Policies"]) {
		name := text(sub(x)["PolicyName"])
		keep = append(keep, name)
		if _, err := w.query("iam", "PutRolePolicy", url.Values{"RoleName": {id}, "PolicyName": {name}, "PolicyDocument": {jsonOf(sub(x)["PolicyDocument"])}}); err != nil {
			return m, err
		}
	}
	for _, x := range list(old["Policies"]) {
		if name := text(sub(x)["PolicyName"]); !slices.Contains(keep, name) {
			if _, err := w.query("iam", "DeleteRolePolicy", url.Values{"RoleName": {id}, "PolicyName": {name}}); err != nil {
				return m, err
			}
		}
	}
	for _, arn := range list(p["ManagedPolicyArns"]) {
		if _, err := w.query("iam", "AttachRolePolicy", url.Values{"RoleName": {id}, "PolicyArn": {text(arn)}}); err != nil {
			return m, err
		}
	}
	for _, arn := range list(old["ManagedPolicyArns"]) {
		if !slices.Contains(list(p["ManagedPolicyArns"]), arn) {
			if _, err := w.query("iam", "DetachRolePolicy", url.Values{"RoleName": {id}, "PolicyArn": {text(arn)}}); err != nil {
				return m, err
			}
		}
	}
	return m, nil
}

func removeRole(w *world, id string, p properties) error {
	for _, x := range list(p["Policies"]) {
		if _, err := w.query("iam", "DeleteRolePolicy", url.Values{"RoleName": {id}, "PolicyName": {text(sub(x)["PolicyName"])}}); err != nil && !hasCode(err, "NoSuchEntity") {
			return err
		}
	}
	for _, arn := range list(p["ManagedPolicyArns"]) {
		if _, err := w.query("iam", "DetachRolePolicy", url.Values{"RoleName": {id}, "PolicyArn": {text(arn)}}); err != nil && !hasCode(err, "NoSuchEntity") {
			return err
		}
	}
	return gone(w.query("iam", "DeleteRole", url.Values{"RoleName": {id}}))
}

// gone takes what is not there for removed.
func gone(_ string, err error) error {
	if hasCode(err, "NoSuchEntity", "NoSuchBucket", "QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue", "InvalidGroup.NotFound",
		"InvalidPermission.NotFound", "InvalidSecurityGroupRuleId.NotFound", "InvalidLaunchTemplateId.NotFound") {
		return nil
	}
	return err
}

// unquote decodes a policy as IAM's answers have it.
func unquote(s string) string {
	if text, err := url.PathUnescape(s); err == nil {
		return text
	}
	return s
}

func observeRole(w *world, id string) (map[string]string, error) {
	out, err := w.query("iam", "GetRole", url.Values{"RoleName": {id}})
	if err != nil {
		return nil, err
	}
	seen := map[string]string{"/AssumeRolePolicyDocument": unquote(element(out, "AssumeRolePolicyDocument"))}
	if out, err = w.query("iam", "ListRolePolicies", url.Values{"RoleName": {id}}); err != nil {
		return nil, err
	}
	for _, name := range elements(out, "member") {
		doc, err := w.query("iam", "GetRolePolicy", url.Values{"RoleName": {id}, "PolicyName": {name}})
		if err != nil {
			return nil, err
		}
		seen["/Policies/"+name] = unquote(element(doc, "PolicyDocument"))
	}
	if out, err = w.query("iam", "ListAttachedRolePolicies", url.Values{"RoleName": {id}}); err != nil {
		return nil, err
	}
	seen["/ManagedPolicyArns"] = strings.Join(elements(out, "PolicyArn"), ",")
	return seen, nil
}

func createProfile(w *world, name string, p properties) (made, error) {
	name = named(p, "InstanceProfileName", name)
	m := made{name, map[string]string{"Arn": "arn:aws:iam::" + wire.Account + ":instance-profile/" + name}}
	if _, err := w.query("iam", "CreateInstanceProfile", url.Values{"InstanceProfileName": {name}}); err != nil {
		return made{}, err
	}
	for _, role := range list(p["Roles"]) {
		if _, err := w.query("iam", "AddRoleToInstanceProfile", url.Values{"InstanceProfileName": {name}, "RoleName": {text(role)}}); err != nil {
			return m, err
		}
	}
	return m, nil
}

func removeProfile(w *world, id string, p properties) error {
	for _, role := range list(p["Roles"]) {
		if err := gone(w.query("iam", "RemoveRoleFromInstanceProfile", url.Values{"InstanceProfileName": {id}, "RoleName": {text(role)}})); err != nil {
			return err
		}
	}
	return gone(w.query("iam", "DeleteInstanceProfile", url.Values{"InstanceProfileName": {id}}))
}

func observeProfile(w *world, id string) (map[string]string, error) {
	out, err := w.query("iam", "GetInstanceProfile", url.Values{"InstanceProfileName": {id}})
	return map[string]string{"/Roles": element(out, "RoleName")}, err
}

// --- S3

// buckets' configurations by property, as the API has them.
var bucketConfig = []struct{ property, subresource string }{
	{"VersioningConfiguration", "versioning"}, {"BucketEncryption", "encryption"}, {"PublicAccessBlockConfiguration", "publicAccessBlock"},
	{"OwnershipControls", "ownershipControls"}, {"LifecycleConfiguration", "lifecycle"},
}

func createBucket(w *world, name string, p properties) (made, error) {
	name = named(p, "BucketName", name)
	// Unlike the API in us-east-1, CloudFormation takes no bucket that is there.
	if _, err := w.s3(http.MethodHead, name, "", ""); err == nil {
		return made{}, &query.Error{Status: http.StatusConflict, Code: "AlreadyExists", Message: name + " already exists"}
	}
	body := ""
	if w.region != "us-east-1" {
		body = "<CreateBucketConfiguration><LocationConstraint>" + w.region + "</LocationConstraint></CreateBucketConfiguration>"
	}
	if _, err := w.s3(http.MethodPut, name, "", body); err != nil {
		return made{}, err
	}
	return updateBucket(w, name, properties{}, p)
}

func updateBucket(w *world, id string, old, p properties) (made, error) {
	m := made{id, map[string]string{"Arn": "arn:aws:s3:::" + id}}
	for _, c := range bucketConfig {
		if p[c.property] == nil {
			if old[c.property] != nil && c.property != "VersioningConfiguration" {
				if _, err := w.s3(http.MethodDelete, id, c.subresource, ""); err != nil {
					return m, err
				}
			}
			continue
		}
		if _, err := w.s3(http.MethodPut, id, c.subresource, bucketXML(c.property, p[c.property])); err != nil {
			return m, err
		}
	}
	return m, nil
}

// bucketXML writes a property as S3's own document of the same thing. Where
// the two differ in more than the names of lists, it does as S3.
func bucketXML(property string, v any) string {
	var b strings.Builder
	put := func(name, value string) {
		fmt.Fprintf(&b, "<%s>", name)
		_ = xml.EscapeText(&b, []byte(value)) // a strings.Builder takes everything
		fmt.Fprintf(&b, "</%s>", name)
	}
	p := sub(v)
	switch property {
	case "VersioningConfiguration":
		put("Status", text(p["Status"]))
	case "BucketEncryption":
		property = "ServerSideEncryptionConfiguration"
		for _, r := range list(p["ServerSideEncryptionConfiguration"]) {
			by := sub(sub(r)["ServerSideEncryptionByDefault"])
			b.WriteString("<Rule><ApplyServerSideEncryptionByDefault>")
			put("SSEAlgorithm", text(by["SSEAlgorithm"]))
			b.WriteString("</ApplyServerSideEncryptionByDefault></Rule>")
		}
	case "PublicAccessBlockConfiguration":
		for _, k := range []string{"BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"} {
			put(k, text(p[k]))
		}
	case "OwnershipControls":
		for _, r := range list(p["Rules"]) {
			b.WriteString("<Rule>")
			put("ObjectOwnership", text(sub(r)["ObjectOwnership"]))
			b.WriteString("</Rule>")
		}
	case "LifecycleConfiguration":
		for _, x := range list(p["Rules"]) {
			r := sub(x)
			b.WriteString("<Rule>")
			put("ID", text(r["Id"]))
			b.WriteString("<Filter><Prefix></Prefix></Filter>")
			put("Status", text(r["Status"]))
			if days := text(r["ExpirationInDays"]); days != "" {
				b.WriteString("<Expiration>")
				put("Days", days)
				b.WriteString("</Expiration>")
			}
			if a := sub(r["AbortIncompleteMultipartUpload"]); a != nil {
				b.WriteString("<AbortIncompleteMultipartUpload>")
				put("DaysAfterInitiation", text(a["DaysAfterInitiation"]))
				b.WriteString("</AbortIncompleteMultipartUpload>")
			}
			b.WriteString("</Rule>")
		}
	}
	return "<" + property + ` xmlns="http://s3.amazonaws.com/doc/2006-03-01/">` + b.String() + "</" + property + ">"
}

func removeBucket(w *world, id string, _ properties) error {
	return gone(w.s3(http.MethodDelete, id, "", ""))
}

func observeBucket(w *world, id string) (map[string]string, error) {
	if _, err := w.s3(http.MethodHead, id, "", ""); err != nil {
		return nil, err
	}
	seen := map[string]string{}
	for _, c := range bucketConfig {
		out, err := w.s3(http.MethodGet, id, c.subresource, "")
		if err != nil {
			out = "" // there is none
		}
		seen["/"+c.property] = out
	}
	return seen, nil
}

func createBucketPolicy(w *world, _ string, p properties) (made, error) {
	id := text(p["Bucket"])
	_, err := w.s3(http.MethodPut, id, "policy", jsonOf(p["PolicyDocument"]))
	return made{id: id}, err
}

func updateBucketPolicy(w *world, _ string, _, p properties) (made, error) {
	return createBucketPolicy(w, "", p)
}

func removeBucketPolicy(w *world, id string, _ properties) error {
	return gone(w.s3(http.MethodDelete, id, "policy", ""))
}

func observeBucketPolicy(w *world, id string) (map[string]string, error) {
	out, err := w.s3(http.MethodGet, id, "policy", "")
	return map[string]string{"/PolicyDocument": out}, err
}

// --- SQS

func queueAttributes(p properties) map[string]string {
	out := map[string]string{}
	for key, v := range p {
		switch key {
		case "QueueName", "Tags":
		case "RedrivePolicy", "RedriveAllowPolicy":
			out[key] = jsonOf(v)
		default:
			out[key] = text(v)
		}
	}
	return out
}

func createQueue(w *world, name string, p properties) (made, error) {
	name = named(p, "QueueName", name)
	if _, err := w.sqs("GetQueueUrl", map[string]any{"QueueName": name}); err == nil {
		return made{}, &query.Error{Status: http.StatusConflict, Code: "AlreadyExists", Message: name + " already exists"}
	}
	out, err := w.sqs("CreateQueue", map[string]any{"QueueName": name, "Attributes": queueAttributes(p)})
	if err != nil {
		return made{}, err
	}
	return queueOf(w, text(out["QueueUrl"])), nil
}

func queueOf(w *world, id string) made {
	name := id[strings.LastIndexByte(id, '/')+1:]
	return made{id, map[string]string{"Arn": "arn:aws:sqs:" + w.region + ":" + wire.Account + ":" + name, "QueueName": name, "QueueUrl": id}}
}

func updateQueue(w *world, id string, _, p properties) (made, error) {
	_, err := w.sqs("SetQueueAttributes", map[string]any{"QueueUrl": id, "Attributes": queueAttributes(p)})
	return queueOf(w, id), err
}

func removeQueue(w *world, id string, _ properties) error {
	_, err := w.sqs("DeleteQueue", map[string]any{"QueueUrl": id})
	return gone("", err)
}

func observeQueue(w *world, id string) (map[string]string, error) {
	out, err := w.sqs("GetQueueAttributes", map[string]any{"QueueUrl": id, "AttributeNames": []string{"All"}})
	if err != nil {
		return nil, err
	}
	seen := map[string]string{}
	for key, v := range sub(out["Attributes"]) {
		switch {
		case strings.HasPrefix(key, "Approximate"), strings.HasSuffix(key, "Timestamp"), key == "Policy":
		default:
			seen["/"+key] = text(v)
		}
	}
	return seen, nil
}

func createQueuePolicy(w *world, name string, p properties) (made, error) {
	for _, q := range list(p["Queues"]) {
		if _, err := w.sqs("SetQueueAttributes", map[string]any{"QueueUrl": q, "Attributes": map[string]string{"Policy": jsonOf(p["PolicyDocument"])}}); err != nil {
			return made{id: name}, err
		}
	}
	return made{id: name}, nil
}

func removeQueuePolicy(w *world, _ string, p properties) error {
	for _, q := range list(p["Queues"]) {
		_, err := w.sqs("SetQueueAttributes", map[string]any{"QueueUrl": q, "Attributes": map[string]string{"Policy": ""}})
		if err := gone("", err); err != nil {
			return err
		}
	}
	return nil
}

// until tries again while one resource waits for another's end.
func (w *world) until(f func() (done bool, err error)) error {
	deadline := time.Now().Add(10 * time.Minute)
	for {
		done, err := f()
		if done {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within 10 minutes: %w", err)
		}
		select {
		case <-w.ctx.Done():
			return w.ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}
