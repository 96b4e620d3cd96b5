package cloudformation

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

func createGroup(w *world, name string, p properties) (made, error) {
	form := url.Values{"GroupName": {named(p, "GroupName", name)}, "GroupDescription": {text(p["GroupDescription"])}}
	if v := text(p["VpcId"]); v != "" {
		form.Set("VpcId", v)
	}
	if tags := list(p["Tags"]); len(tags) > 0 {
		form.Set("TagSpecification.1.ResourceType", "security-group")
		flatten(form, "TagSpecification.1.Tag", tags, false)
	}
	out, err := w.query("ec2", "CreateSecurityGroup", form)
	if err != nil {
		return made{}, err
	}
	m := groupOf(element(out, "groupId"), p)
	if err := authorize(w, "AuthorizeSecurityGroupIngress", m.id, list(p["SecurityGroupIngress"]), false); err != nil {
		return m, err
	}
	return m, egress(w, m.id, anywhere, list(p["SecurityGroupEgress"]))
}

func groupOf(id string, p properties) made {
	return made{id, map[string]string{"GroupId": id, "VpcId": text(p["VpcId"])}}
}

// anywhere is the egress rule that EC2 gives a new group.
var anywhere = []any{properties{"IpProtocol": "-1", "CidrIp": "0.0.0.0/0"}}

// egress replaces rules; a template that names none leaves EC2's own.
func egress(w *world, id string, old, rules []any) error {
	if len(rules) == 0 {
		return nil
	}
	if err := gone("", authorize(w, "RevokeSecurityGroupEgress", id, old, true)); err != nil {
		return err
	}
	return authorize(w, "AuthorizeSecurityGroupEgress", id, rules, false)
}

// authorize sends rules of a template as the API has them.
func authorize(w *world, action, group string, rules []any, bare bool) error {
	if len(rules) == 0 {
		return nil
	}
	form := url.Values{"GroupId": {group}}
	for i, x := range rules {
		if err := permission(form, fmt.Sprintf("IpPermissions.%d", i+1), sub(x), bare); err != nil {
			return err
		}
	}
	_, err := w.query("ec2", action, form)
	return err
}

func permission(form url.Values, at string, r properties, bare bool) error {
	for key, v := range r {
		var path string
		switch key {
		case "IpProtocol", "FromPort", "ToPort":
			form.Set(at+"."+key, text(v))
			continue
		case "CidrIp":
			path = ".IpRanges.1"
			form.Set(at+path+".CidrIp", text(v))
		case "CidrIpv6":
			path = ".Ipv6Ranges.1"
			form.Set(at+path+".CidrIpv6", text(v))
		case "SourceSecurityGroupId", "DestinationSecurityGroupId":
			path = ".Groups.1"
			form.Set(at+path+".GroupId", text(v))
		case "GroupId", "Description":
			continue
		default:
			return query.Unsupported("the security group rule's property %s", key)
		}
		if d := text(r["Description"]); d != "" && !bare {
			form.Set(at+path+".Description", d)
		}
	}
	return nil
}

func updateGroup(w *world, id string, old, p properties) (made, error) {
	before := list(old["SecurityGroupEgress"])
	if len(before) == 0 {
		before = anywhere
	}
	return groupOf(id, p), egress(w, id, before, list(p["SecurityGroupEgress"]))
}

// removeGroup waits until nothing refers to the group, as instances do until
// they are gone. Groups that refer to each other let go of their rules first.
func removeGroup(w *world, id string, p properties) error {
	if rules := list(p["SecurityGroupEgress"]); len(rules) > 0 {
		_ = authorize(w, "RevokeSecurityGroupEgress", id, rules, true) // it may be gone
	}
	return w.until(func() (bool, error) {
		err := gone(w.query("ec2", "DeleteSecurityGroup", url.Values{"GroupId": {id}}))
		return !hasCode(err, "DependencyViolation"), err
	})
}

func observeGroup(w *world, id string) (map[string]string, error) {
	out, err := w.query("ec2", "DescribeSecurityGroupRules", url.Values{"Filter.1.Name": {"group-id"}, "Filter.1.Value.1": {id}})
	if err != nil {
		return nil, err
	}
	if _, err := w.query("ec2", "DescribeSecurityGroups", url.Values{"GroupId.1": {id}}); err != nil {
		return nil, err
	}
	var rules []string
	for _, r := range elements(out, "item") {
		if element(r, "isEgress") == "false" {
			continue // ingress may be a resource of its own
		}
		rules = append(rules, strings.Join([]string{element(r, "ipProtocol"), element(r, "fromPort"), element(r, "toPort"), element(r, "cidrIpv4"), element(r, "cidrIpv6"), element(element(r, "referencedGroupInfo"), "groupId")}, " "))
	}
	slices.Sort(rules)
	return map[string]string{"/SecurityGroupEgress": strings.Join(rules, "; ")}, nil
}

func createIngress(w *world, _ string, p properties) (made, error) {
	form := url.Values{"GroupId": {text(p["GroupId"])}}
	if err := permission(form, "IpPermissions.1", p, false); err != nil {
		return made{}, err
	}
	out, err := w.query("ec2", "AuthorizeSecurityGroupIngress", form)
	if err != nil {
		return made{}, err
	}
	id := element(out, "securityGroupRuleId")
	return made{id, map[string]string{"Id": id}}, nil
}

func removeIngress(w *world, _ string, p properties) error {
	form := url.Values{"GroupId": {text(p["GroupId"])}}
	if err := permission(form, "IpPermissions.1", p, true); err != nil {
		return err
	}
	return gone(w.query("ec2", "RevokeSecurityGroupIngress", form))
}

func observeIngress(w *world, id string) (map[string]string, error) {
	out, err := w.query("ec2", "DescribeSecurityGroupRules", url.Values{"SecurityGroupRuleId.1": {id}})
	if err == nil && element(out, "securityGroupRuleId") == "" {
		err = query.Errorf("InvalidSecurityGroupRuleId.NotFound", "%s", id)
	}
	return map[string]string{"/FromPort": element(out, "fromPort"), "/ToPort": element(out, "toPort"), "/CidrIp": element(out, "cidrIpv4")}, err
}

func createTemplate(w *world, name string, p properties) (made, error) {
	form := url.Values{"LaunchTemplateName": {named(p, "LaunchTemplateName", name)}, "VersionDescription": {text(p["VersionDescription"])}}
	flatten(form, "LaunchTemplateData", p["LaunchTemplateData"], false)
	out, err := w.query("ec2", "CreateLaunchTemplate", form)
	if err != nil {
		return made{}, err
	}
	return templateOf(element(out, "launchTemplateId"), "1"), nil
}

func templateOf(id, version string) made {
	return made{id, map[string]string{"LaunchTemplateId": id, "LatestVersionNumber": version, "DefaultVersionNumber": "1"}}
}

func updateTemplate(w *world, id string, _, p properties) (made, error) {
	form := url.Values{"LaunchTemplateId": {id}, "VersionDescription": {text(p["VersionDescription"])}}
	flatten(form, "LaunchTemplateData", p["LaunchTemplateData"], false)
	out, err := w.query("ec2", "CreateLaunchTemplateVersion", form)
	return templateOf(id, element(out, "versionNumber")), err
}

func removeTemplate(w *world, id string, _ properties) error {
	return gone(w.query("ec2", "DeleteLaunchTemplate", url.Values{"LaunchTemplateId": {id}}))
}

// observeTemplate looks whether it is there: its versions are never changed,
// and new ones are a deploy's.
func observeTemplate(w *world, id string) (map[string]string, error) {
	_, err := w.query("ec2", "DescribeLaunchTemplates", url.Values{"LaunchTemplateId.1": {id}})
	return map[string]string{}, err
}

// scalingForm is what creating and updating a group have in common.
func scalingForm(name string, p properties, without ...string) url.Values {
	form := url.Values{"AutoScalingGroupName": {name}}
	for key, v := range p {
		switch {
		case slices.Contains(without, key), key == "AutoScalingGroupName":
		case key == "VPCZoneIdentifier":
			var ids []string
			for _, id := range list(v) {
				ids = append(ids, text(id))
			}
			form.Set(key, strings.Join(ids, ","))
		default:
			flatten(form, key, v, true)
		}
	}
	return form
}

func createScaling(w *world, name string, p properties) (made, error) {
	name = named(p, "AutoScalingGroupName", name)
	_, err := w.query("autoscaling", "CreateAutoScalingGroup", scalingForm(name, p))
	return made{id: name}, err
}

func updateScaling(w *world, id string, old, p properties) (made, error) {
	m := made{id: id}
	if _, err := w.query("autoscaling", "UpdateAutoScalingGroup", scalingForm(id, p, "Tags", "LifecycleHookSpecificationList")); err != nil {
		return m, err
	}
	var keep []string
	for _, x := range list(p["LifecycleHookSpecificationList"]) {
		form := url.Values{"AutoScalingGroupName": {id}}
		for key, v := range sub(x) {
			form.Set(key, text(v))
		}
		keep = append(keep, form.Get("LifecycleHookName"))
		if _, err := w.query("autoscaling", "PutLifecycleHook", form); err != nil {
			return m, err
		}
	}
	for _, x := range list(old["LifecycleHookSpecificationList"]) {
		if name := text(sub(x)["LifecycleHookName"]); !slices.Contains(keep, name) {
			if _, err := w.query("autoscaling", "DeleteLifecycleHook", url.Values{"AutoScalingGroupName": {id}, "LifecycleHookName": {name}}); err != nil {
				return m, err
			}
		}
	}
	if tags := list(p["Tags"]); len(tags) > 0 {
		form := url.Values{}
		for i, x := range tags {
			at := fmt.Sprintf("Tags.member.%d.", i+1)
			form.Set(at+"ResourceId", id)
			form.Set(at+"ResourceType", "auto-scaling-group")
			for key, v := range sub(x) {
				form.Set(at+key, text(v))
			}
		}
		if _, err := w.query("autoscaling", "CreateOrUpdateTags", form); err != nil {
			return m, err
		}
	}
	return m, nil
}

// removeScaling waits for the end of the group's instances.
func removeScaling(w *world, id string, _ properties) error {
	if _, err := w.query("autoscaling", "DeleteAutoScalingGroup", url.Values{"AutoScalingGroupName": {id}, "ForceDelete": {"true"}}); err != nil {
		if hasCode(err, "ValidationError") { // there is none
			return nil
		}
		return err
	}
	return w.until(func() (bool, error) {
		out, err := w.query("autoscaling", "DescribeAutoScalingGroups", url.Values{"AutoScalingGroupNames.member.1": {id}})
		return err != nil || element(out, "AutoScalingGroupName") == "", err
	})
}

func observeScaling(w *world, id string) (map[string]string, error) {
	out, err := w.query("autoscaling", "DescribeAutoScalingGroups", url.Values{"AutoScalingGroupNames.member.1": {id}})
	if err == nil && element(out, "AutoScalingGroupName") == "" {
		err = invalid("no group %s", id)
	}
	seen := map[string]string{}
	for _, name := range []string{"MinSize", "MaxSize", "VPCZoneIdentifier", "HealthCheckType", "HealthCheckGracePeriod"} {
		seen["/"+name] = element(out, name)
	}
	seen["/LaunchTemplate/Version"] = element(element(out, "LaunchTemplate"), "Version")
	hooks, herr := w.query("autoscaling", "DescribeLifecycleHooks", url.Values{"AutoScalingGroupName": {id}})
	if err == nil {
		err = herr
	}
	seen["/LifecycleHookSpecificationList"] = strings.Join(elements(hooks, "LifecycleHookName"), ",")
	return seen, err
}
