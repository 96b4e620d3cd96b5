package cloud

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/lecafe/lecafe/lab/cloud/policy"
	"github.com/lecafe/lecafe/lab/cloud/s3"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// adminRole is that of the operator's sessions. They and the key test/test may
// do everything that no Deny forbids.
const adminRole = "admin"

// PutRolePolicy attaches an IAM policy document to a role, under a name. A
// role without a policy may do nothing but ask who it is.
func (c *Cloud) PutRolePolicy(role, name, document string) error {
	return c.IAM.PutRolePolicy(role, name, document)
}

// DeleteRolePolicy detaches a policy.
func (c *Cloud) DeleteRolePolicy(role, name string) {
	c.IAM.DeleteRolePolicy(role, name)
}

// denial is an explicit deny, as an organisation's policy makes it.
type denial struct{ action, caller, resource string }

// Deny forbids what matches the patterns, to operators too, until lifted. An
// empty caller or resource matches any; caller is matched against ARN, user ID
// and role.
func (c *Cloud) Deny(action, caller, resource string) (lift func()) {
	d := &denial{action, caller, resource}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.denials = append(c.denials, d)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.denials = slices.DeleteFunc(c.denials, func(o *denial) bool { return o == d })
	}
}

func (d *denial) matches(caller wire.Caller, need policy.Request) bool {
	who := d.caller == "" || policy.Match(d.caller, caller.ARN) || policy.Match(d.caller, caller.UserID) || caller.Role != "" && policy.Match(d.caller, caller.Role)
	return who && policy.Match(strings.ToLower(d.action), strings.ToLower(need.Action)) && (d.resource == "" || policy.Match(d.resource, need.Resource))
}

// allowed decides as IAM does: an explicit deny wins, silence denies.
func (c *Cloud) allowed(ctx context.Context, need policy.Request) bool {
	caller := wire.CallerFrom(ctx)
	why := c.decide(caller, wire.RegionFrom(ctx), c.secure(ctx), need)
	ok := why == ""
	code, status := "", http.StatusOK
	if !ok {
		code, status = "AccessDenied", http.StatusForbidden
	}
	service, _, _ := strings.Cut(need.Action, ":")
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.implied) < keptCalls {
		c.implied = append(c.implied, Call{Time: c.clock.Now(), Service: service, Caller: caller, Resources: []string{need.Resource}, Permissions: []string{need.Action}, Status: status, Code: code})
	}
	return ok
}

// Implied returns the permissions that services asked for beside those of the
// calls themselves: to list the bucket of a key that is missing, to delete each
// key of many. A refused one is no refused call: the answer was another.
func (c *Cloud) Implied() []Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.implied)
}

// secureKey is the key of whether a request came by TLS in its context.
type secureKey struct{}

func (c *Cloud) secure(ctx context.Context) bool {
	tls, _ := ctx.Value(secureKey{}).(bool)
	return tls || !c.strictTransport
}

// identity are a caller's condition keys, and how a policy may name it.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-keys.html
func identity(caller wire.Caller) (map[string]string, policy.Caller) {
	by := policy.Caller{Account: cmp.Or(caller.Account, wire.Account), ARNs: []string{caller.ARN}, Service: caller.Service}
	values := map[string]string{"aws:userid": caller.UserID, "aws:principalisawsservice": "false"}
	switch {
	case caller.Service != "":
		by.Account, by.ARNs = "", nil
		values["aws:principalisawsservice"], values["aws:principalservicename"] = "true", caller.Service
		values["aws:sourcearn"], values["aws:sourceaccount"] = caller.SourceARN, wire.Account
		return values, by
	case caller.Role != "":
		role := "arn:aws:iam::" + by.Account + ":role/" + caller.Role
		by.ARNs = append(by.ARNs, role)
		values["aws:principaltype"], values["aws:principalarn"] = "AssumedRole", role // the role's, not the session's
	default:
		values["aws:principaltype"], values["aws:principalarn"] = "User", caller.ARN
		values["aws:username"] = caller.ARN[strings.LastIndexByte(caller.ARN, '/')+1:]
	}
	values["aws:principalaccount"] = by.Account
	return values, by
}

// decide says why a request is refused, in IAM's words, or nothing.
//
// Within the account the caller's policies and the resource's are one: either
// may allow, each may deny. Another account's caller needs the resource's, and
// is taken to have its own account's leave. The account is in no organization.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html
func (c *Cloud) decide(caller wire.Caller, region string, secure bool, need policy.Request) string {
	// No permissions are required, not even where a policy denies it:
	// https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html
	if need.Action == "sts:GetCallerIdentity" {
		return ""
	}
	c.mu.Lock()
	forbidden := slices.ContainsFunc(c.denials, func(d *denial) bool { return d.matches(caller, need) })
	c.mu.Unlock()
	if forbidden {
		return "with an explicit deny in a service control policy"
	}
	values, by := identity(caller)
	values["aws:requestedregion"], values["aws:securetransport"] = region, strconv.FormatBool(secure)
	if caller.InstanceID != "" {
		values["ec2:sourceinstancearn"] = "arn:aws:ec2:" + region + ":" + wire.Account + ":instance/" + caller.InstanceID
	}
	maps.Copy(values, need.Context)
	need.Context = values
	byResource := c.resourceDecision(need, by)
	switch {
	case byResource == policy.Denied:
		return "with an explicit deny in a resource-based policy"
	case by.Account != wire.Account:
		if byResource != policy.Allowed {
			return "because no resource-based policy allows the " + need.Action + " action"
		}
		return ""
	case caller.Role == "" || caller.Role == adminRole:
		return ""
	}
	switch c.IAM.Evaluate(caller.Role, need) {
	case policy.Denied:
		return "with an explicit deny in an identity-based policy"
	case policy.Silent:
		if byResource != policy.Allowed {
			return "because no identity-based policy allows the " + need.Action + " action"
		}
	}
	return ""
}

// resourceDecision is what the policy of the resource says, where it has one.
func (c *Cloud) resourceDecision(need policy.Request, by policy.Caller) policy.Decision {
	switch {
	case strings.HasPrefix(need.Resource, "arn:aws:s3:::"):
		return c.S3.Decide(need, by, wire.Account)
	case strings.HasPrefix(need.Resource, "arn:aws:sqs:"):
		return c.SQS.Decide(need, by, wire.Account)
	}
	return policy.Silent
}

// denial is the message of a refusal, in IAM's words; empty where there is none.
func (c *Cloud) denial(q *request) string {
	for _, n := range q.needs {
		if why := c.decide(q.caller, q.region, c.secure(q.r.Context()), n); why != "" {
			return fmt.Sprintf("User: %s is not authorized to perform: %s on resource: %s %s", q.caller.ARN, n.Action, n.Resource, why)
		}
	}
	return ""
}

func needsS3(q *request) []policy.Request { return s3.OperationOf(q.r).Needs(q.r) }

func needsSTS(q *request) []policy.Request {
	resource := "*"
	if arn := q.form.Get("RoleArn"); arn != "" {
		resource = arn
	}
	return []policy.Request{{Action: "sts:" + q.action, Resource: resource}}
}

// The batch actions are covered by the single ones' permissions:
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-api-permissions-reference.html
func needsSQS(q *request) []policy.Request {
	var in struct{ QueueUrl, QueueName string }
	_ = json.Unmarshal(q.body, &in) // the service refuses what is not JSON
	name := in.QueueName
	if name == "" {
		name = in.QueueUrl[strings.LastIndexByte(in.QueueUrl, '/')+1:]
	}
	resource := "*"
	if name != "" {
		resource = "arn:aws:sqs:" + q.region + ":" + wire.Account + ":" + name
	}
	return []policy.Request{{Action: "sqs:" + strings.TrimSuffix(q.action, "Batch"), Resource: resource}}
}

func needsSSM(q *request) []policy.Request {
	var in struct {
		Name, Path string
		Names      []string
	}
	_ = json.Unmarshal(q.body, &in) // the service refuses what is not JSON
	names := in.Names
	if in.Name != "" {
		names = append(names, in.Name)
	}
	if in.Path != "" {
		names = append(names, in.Path)
	}
	var out []policy.Request
	for _, name := range names {
		name, _, _ = strings.Cut(name, ":")
		account := wire.Account
		if strings.HasPrefix(name, "/aws/") {
			account = "" // public parameters
		}
		out = append(out, policy.Request{
			Action:   "ssm:" + q.action,
			Resource: "arn:aws:ssm:" + q.region + ":" + account + ":parameter/" + strings.TrimPrefix(name, "/"),
		})
	}
	if len(out) == 0 {
		out = append(out, policy.Request{Action: "ssm:" + q.action, Resource: "*"})
	}
	return out
}

func needsIAM(q *request) []policy.Request {
	resource := "*"
	for _, kind := range []struct{ field, path string }{{"InstanceProfileName", "instance-profile/"}, {"RoleName", "role/"}, {"PolicyArn", ""}} {
		value := q.form.Get(kind.field)
		switch {
		case value == "":
			continue
		case kind.path == "":
			resource = value
		default:
			resource = "arn:aws:iam::" + wire.Account + ":" + kind.path + value
		}
		break
	}
	return []policy.Request{{Action: "iam:" + q.action, Resource: resource}}
}

// needsAutoScaling names the group, of a member's too where the request names
// the member alone. What describes knows no resources.
// https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2autoscaling.html
func (c *Cloud) needsAutoScaling(q *request) []policy.Request {
	resource := "*"
	name := cmp.Or(q.form.Get("AutoScalingGroupName"), c.Auto.GroupOf(q.form.Get("InstanceId")))
	if name != "" && !strings.HasPrefix(q.action, "Describe") {
		resource = "arn:aws:autoscaling:" + q.region + ":" + wire.Account + ":autoScalingGroup:*:autoScalingGroupName/" + name
	}
	return []policy.Request{{Action: "autoscaling:" + q.action, Resource: resource}}
}

// needsCloudFormation names the action alone. What a stack makes is made
// without asking IAM again, as with a service role that may do it.
// https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/using-iam-servicerole.html
func needsCloudFormation(q *request) []policy.Request {
	return []policy.Request{{Action: "cloudformation:" + q.action, Resource: "*"}}
}
