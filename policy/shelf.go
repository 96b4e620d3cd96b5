package policy

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/lecafe/lecafe/bake/recipe"
)

// Promoting says where an image is taken into use. Empty fields are left out.
type Promoting struct {
	LaunchTemplate string // name or ID
	Group          string // Auto Scaling group
	SSMParameter   string
	Pin            bool // a group on $Default or $Latest is converted
}

// PromotingOf is what a recipe's promote section says.
func PromotingOf(r *recipe.Recipe) Promoting {
	if r.Promote == nil {
		return Promoting{}
	}
	return Promoting{LaunchTemplate: r.Promote.LaunchTemplate, Group: r.Promote.AutoScalingGroup, SSMParameter: r.Promote.SSMParameter, Pin: r.Promote.Pin}
}

// Promote is what `lecafe images promote`, `lecafe images rollback` and
// `lecafe bake --promote` need.
func Promote(w Where, o Promoting) Document {
	look := []string{"ec2:DescribeImages"}
	if o.LaunchTemplate != "" {
		look = append(look, "ec2:DescribeLaunchTemplateVersions")
	}
	if o.Group != "" {
		look = append(look, "autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeInstanceRefreshes")
	}
	out := []Statement{{Sid: "Look", Action: look, Resource: []string{"*"}}}
	if o.LaunchTemplate != "" {
		id := o.LaunchTemplate
		if !strings.HasPrefix(id, "lt-") {
			id = "*" // IAM knows launch templates by their ID alone
		}
		out = append(out, Statement{Sid: "NewVersion", Action: []string{"ec2:CreateLaunchTemplateVersion", "ec2:ModifyLaunchTemplate"}, Resource: []string{w.ec2("launch-template/" + id)}})
	}
	if o.Group != "" {
		refresh := []string{"autoscaling:RollbackInstanceRefresh", "autoscaling:StartInstanceRefresh"}
		if o.Pin {
			refresh = append(refresh, "autoscaling:UpdateAutoScalingGroup")
		}
		out = append(out,
			Statement{Sid: "RefreshGroup", Action: refresh, Resource: []string{w.arn("autoscaling", "autoScalingGroup:*:autoScalingGroupName/"+o.Group)}},
			// Auto Scaling asks whether the caller might have launched from the
			// template himself.
			// https://docs.aws.amazon.com/autoscaling/ec2/userguide/ec2-auto-scaling-launch-template-permissions.html
			Statement{Sid: "LaunchFromTemplate", Action: []string{"ec2:RunInstances"}, Resource: []string{
				w.ec2("image/*"), w.ec2("instance/*"), w.ec2("key-pair/*"), w.ec2("launch-template/*"), w.ec2("network-interface/*"), w.ec2("security-group/*"), w.ec2("snapshot/*"), w.ec2("subnet/*"), w.ec2("volume/*"),
			}},
			Statement{Sid: "TagAtLaunch", Action: []string{"ec2:CreateTags"}, Resource: []string{w.ec2("instance/*"), w.ec2("network-interface/*"), w.ec2("volume/*")}, Condition: creates("RunInstances")},
			passRole(w, "template"))
	}
	if o.SSMParameter != "" {
		out = append(out, Statement{Sid: "WriteParameter", Action: []string{"ssm:GetParameter", "ssm:PutParameter"}, Resource: []string{w.arn("ssm", "parameter/"+strings.TrimPrefix(o.SSMParameter, "/"))}})
	}
	return document(out...)
}

// Images is what `lecafe images list` needs; parameters are those of its
// --parameter.
func Images(w Where, parameters []string) Document { return document(looking(w, parameters)...) }

func looking(w Where, parameters []string) []Statement {
	out := []Statement{{Sid: "Look", Action: []string{
		"autoscaling:DescribeAutoScalingGroups", "ec2:DescribeImageAttribute", "ec2:DescribeImages", "ec2:DescribeInstances", "ec2:DescribeLaunchTemplateVersions", "ec2:DescribeLaunchTemplates",
	}, Resource: []string{"*"}}}
	var arns []string
	for _, p := range parameters {
		arns = append(arns, w.arn("ssm", "parameter/"+strings.TrimPrefix(p, "/")))
	}
	return append(out, Statement{Sid: "ReadParameters", Action: []string{"ssm:GetParameter"}, Resource: arns})
}

// Prune is what `lecafe images prune --yes` needs. What lecafe did not bake it
// can neither disable nor delete.
func Prune(w Where, parameters []string) Document {
	return document(append(looking(w, parameters),
		Statement{Sid: "DisableBakedImages", Action: []string{"ec2:CreateTags", "ec2:DeregisterImage", "ec2:DisableImage"}, Resource: []string{w.ec2("image/*")}, Condition: tagged()},
		Statement{Sid: "LookForSnapshots", Action: []string{"ec2:DescribeSnapshots"}, Resource: []string{"*"}},
		Statement{Sid: "DeleteBakedSnapshots", Action: []string{"ec2:CreateTags", "ec2:DeleteSnapshot"}, Resource: []string{w.ec2("snapshot/*")}, Condition: tagged()})...)
}

// Collecting says where `lecafe gc` looks.
type Collecting struct {
	Staging    []string // s3://BUCKET/PREFIX
	Protects   bool     // recipes set deregistration protection, which gc may have to finish
	AllRegions bool
}

// GC is what `lecafe gc --yes` needs, in every region: a bake that copied its
// image has left something in several.
func GC(w Where, o Collecting) Document {
	look := []string{"ec2:DescribeImages", "ec2:DescribeInstances", "ec2:DescribeLaunchTemplates", "ec2:DescribeSecurityGroups", "ec2:DescribeSnapshots", "ec2:DescribeVolumes"}
	if o.AllRegions {
		look = append(look, "ec2:DescribeRegions")
	}
	w.Region = ""
	remove := func(sid, action, kind string) Statement {
		return Statement{Sid: sid, Action: []string{action}, Resource: []string{w.ec2(kind + "/*")}, Condition: tagged()}
	}
	out := []Statement{{Sid: "Look", Action: look, Resource: []string{"*"}}}
	for n, s := range o.Staging {
		bucket, prefix, _ := strings.Cut(strings.Trim(strings.TrimPrefix(s, "s3://"), "/"), "/")
		number := ""
		if n > 0 {
			number = strconv.Itoa(n + 1)
		}
		prefix = cmp.Or(prefix, "lecafe-bakes")
		out = append(out,
			Statement{Sid: "Staging" + number, Action: []string{"s3:DeleteObject", "s3:GetObject", "s3:PutObject"}, Resource: []string{w.s3(bucket + "/" + prefix + "/*")}},
			Statement{Sid: "ListStaging" + number, Action: []string{"s3:ListBucket"}, Resource: []string{w.s3(bucket)}, Condition: map[string]Condition{"StringLike": {"s3:prefix": {prefix + "/*"}}}})
	}
	finish := []string{"ec2:CreateTags"}
	if o.Protects {
		finish = append(finish, "ec2:EnableImageDeregistrationProtection")
	}
	out = append(out,
		remove("TerminateBuilders", "ec2:TerminateInstances", "instance"), remove("DeleteVolumes", "ec2:DeleteVolume", "volume"),
		remove("DeleteGroups", "ec2:DeleteSecurityGroup", "security-group"), remove("DeleteTemplates", "ec2:DeleteLaunchTemplate", "launch-template"),
		remove("DeregisterImages", "ec2:DeregisterImage", "image"), remove("DeleteSnapshots", "ec2:DeleteSnapshot", "snapshot"),
		// An image that its bake had declared done is finished, not removed.
		Statement{Sid: "FinishImages", Action: finish, Resource: []string{w.ec2("image/*"), w.ec2("snapshot/*")}, Condition: tagged()})
	return document(out...)
}

// imagesOf are the ARNs of resources in each region that a recipe's image gets
// to: the bake's own, and those of its copies.
func (w Where) imagesOf(r *recipe.Recipe, kinds ...string) []string {
	regions := []string{w.Region}
	for _, c := range r.Image.Copies {
		if w.Region != "" && !slices.Contains(regions, c.Region) {
			regions = append(regions, c.Region)
		}
	}
	var out []string
	for _, region := range regions {
		for _, kind := range kinds {
			out = append(out, Where{w.Partition, region, w.Account}.ec2(kind+"/*"))
		}
	}
	return out
}
