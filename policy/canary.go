package policy

import (
	"slices"
	"strings"

	"github.com/lecafe/lecafe/bake/recipe"
)

// temporary is what a bake, and a canary of an image made elsewhere, need for
// their journal and for what they make and remove: they look for it by tag.
func (w Where) temporary(r *recipe.Recipe) []Statement {
	prefix := strings.Trim(r.Staging.Prefix, "/")
	return []Statement{
		{Sid: "Look", Action: []string{"ec2:DescribeImages", "ec2:DescribeInstances", "ec2:DescribeLaunchTemplates", "ec2:DescribeSecurityGroups", "ec2:DescribeSnapshots", "ec2:DescribeVolumes"}, Resource: []string{"*"}},
		{Sid: "Staging", Action: []string{"s3:DeleteObject", "s3:GetObject", "s3:PutObject"}, Resource: []string{w.s3(r.Staging.Bucket + "/" + prefix + "/*")}},
		{Sid: "ListStaging", Action: []string{"s3:ListBucket"}, Resource: []string{w.s3(r.Staging.Bucket)}, Condition: map[string]Condition{"StringLike": {"s3:prefix": {prefix + "/*"}}}},
		{Sid: "ReadOwnConsole", Action: []string{"ec2:GetConsoleOutput"}, Resource: []string{w.ec2("instance/*")}, Condition: tagged()},
		{Sid: "RemoveOwnVolumes", Action: []string{"ec2:DeleteVolume"}, Resource: []string{w.ec2("volume/*")}, Condition: tagged()},
	}
}

// group is for the temporary security group, in the VPC of subnets where some
// are named.
func (w Where) group(subnets bool) []Statement {
	var out []Statement
	if subnets {
		out = append(out, Statement{Sid: "FindVPC", Action: []string{"ec2:DescribeSubnets"}, Resource: []string{"*"}})
	}
	return append(out,
		Statement{Sid: "MakeSecurityGroup", Action: []string{"ec2:CreateSecurityGroup"}, Resource: []string{w.ec2("security-group/*"), w.ec2("vpc/*")}},
		Statement{Sid: "RemoveOwnSecurityGroup", Action: []string{"ec2:DeleteSecurityGroup"}, Resource: []string{w.ec2("security-group/*")}, Condition: tagged()})
}

// canary is what a canary needs besides an instance's launch; passed is the
// profile that may be passed already.
func (w Where) canary(k *recipe.Canary, passed string) []Statement {
	out := []Statement{{Sid: "LaunchCanary", Action: []string{"ec2:RunInstances"}, Resource: []string{w.ec2("launch-template/*")}}}
	if k.InstanceProfile != "" && k.InstanceProfile != passed {
		out = append(out, passRole(w, k.InstanceProfile))
	}
	if k.LaunchTemplate == "" {
		return append(out,
			Statement{Sid: "MakeCanarysTemplate", Action: []string{"ec2:CreateLaunchTemplate"}, Resource: []string{w.ec2("launch-template/*")}},
			Statement{Sid: "TagCanarysTemplate", Action: []string{"ec2:CreateTags"}, Resource: []string{w.ec2("launch-template/*")}, Condition: creates("CreateLaunchTemplate")},
			Statement{Sid: "RemoveCanarysTemplate", Action: []string{"ec2:DeleteLaunchTemplate"}, Resource: []string{w.ec2("launch-template/*")}, Condition: tagged()})
	}
	out = append(out, Statement{Sid: "ReadLaunchTemplate", Action: []string{"ec2:DescribeLaunchTemplateVersions"}, Resource: []string{"*"}})
	if k.InstanceProfile == "" { // the launch template's own is passed
		out = append(out, passRole(w, "template"))
	}
	return out
}

// Proving says what Packer's post-processor lecafe-publish is to do.
type Proving struct {
	// Recipe says, as a recipe has it, what the block does: staging, canary,
	// and of builder the security groups and subnets of the canary.
	Recipe     *recipe.Recipe
	Promote    *Promoting // nil: the image is proved alone
	KeepFailed bool
}

// Packer is what the post-processor lecafe-publish needs, gc of what it leaves
// when Packer is killed included. What Packer itself needs is not in it.
func Packer(w Where, o Proving) Document {
	r, k := o.Recipe, o.Recipe.Canary
	out := append(w.temporary(r), []Statement{
		{Sid: "LaunchInstance", Action: []string{"ec2:RunInstances"}, Resource: []string{
			w.ec2("image/*"), w.ec2("instance/*"), w.ec2("network-interface/*"), w.ec2("security-group/*"), w.ec2("subnet/*"), w.ec2("volume/*"),
		}},
		{Sid: "EndOwnInstances", Action: []string{"ec2:TerminateInstances"}, Resource: []string{w.ec2("instance/*")}, Condition: tagged()},
		// Packer made the image and its copies: they have no tag of lecafe's yet.
		{Sid: "MarkImages", Action: []string{"ec2:CreateTags"}, Resource: w.everywhere("image", "snapshot")},
	}...)
	kinds := []string{w.ec2("instance/*"), w.ec2("network-interface/*"), w.ec2("volume/*")}
	by := []string{"RunInstances"}
	if k.LaunchTemplate == "" && len(r.Builder.SecurityGroups) == 0 {
		out = append(out, w.group(k.Subnet != "" || len(r.Builder.Subnets) > 0)...)
		kinds, by = append(kinds, w.ec2("security-group/*")), append(by, "CreateSecurityGroup")
	}
	out = append(out, Statement{Sid: "TagAtCreation", Action: []string{"ec2:CreateTags"}, Resource: kinds, Condition: creates(by...)})
	out = append(out, w.canary(k, "")...)
	if o.Promote != nil {
		out = merged(out, Promote(w, *o.Promote).Statement)
	}
	if o.KeepFailed || o.Promote != nil {
		keep := []string{"ec2:EnableImageDeregistrationProtection"}
		if o.Promote != nil { // while it goes on
			keep = append(keep, "ec2:DisableImageDeregistrationProtection")
		}
		out = append(out, Statement{Sid: "KeepFromPacker", Action: keep, Resource: w.everywhere("image")})
	}
	return document(out...)
}

// merged adds statements; those that are there by their Sid get the actions
// that they lack.
func merged(out, more []Statement) []Statement {
	for _, s := range more {
		at := slices.IndexFunc(out, func(o Statement) bool { return o.Sid == s.Sid })
		if at < 0 {
			out = append(out, s)
			continue
		}
		actions := slices.Concat(out[at].Action, s.Action)
		slices.Sort(actions)
		out[at].Action = slices.Compact(actions)
	}
	return out
}

// everywhere are the ARNs of what Packer may have copied to any region.
func (w Where) everywhere(kinds ...string) []string {
	w.Region = ""
	var out []string
	for _, kind := range kinds {
		out = append(out, w.ec2(kind+"/*"))
	}
	return out
}
