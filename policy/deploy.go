package policy

import (
	"slices"
	"strings"
)

// Deploying says what `lecafe deploy` is to do.
type Deploying struct {
	Promoting             // its launch template may stay empty: any
	Bucket, Prefix string // of the reports
	ImageParameter string // that --image ssm:PARAMETER reads
}

// Deploy is what `lecafe deploy` needs: a promotion, and watching the group.
func Deploy(w Where, o Deploying) Document {
	if o.LaunchTemplate == "" {
		o.LaunchTemplate = "*" // the group's own, which only the group knows
	}
	out := Promote(w, o.Promoting).Statement
	for _, s := range Watch(w, Watching{Bucket: o.Bucket, Prefix: o.Prefix}).Statement {
		if s.Sid != "Look" {
			out = append(out, s)
			continue
		}
		look := &out[slices.IndexFunc(out, func(s Statement) bool { return s.Sid == "Look" })]
		look.Action = append(look.Action, "autoscaling:DescribeLifecycleHooks")
		for _, a := range s.Action {
			// A deploy finds its instances by their group.
			if a != "ec2:DescribeLaunchTemplates" && !slices.Contains(look.Action, a) {
				look.Action = append(look.Action, a)
			}
		}
		slices.Sort(look.Action)
	}
	if o.ImageParameter != "" && o.ImageParameter != o.SSMParameter {
		out = append(out, Statement{Sid: "ReadImageParameter", Action: []string{"ssm:GetParameter"}, Resource: []string{w.arn("ssm", "parameter/"+strings.TrimPrefix(o.ImageParameter, "/"))}})
	}
	return document(out...)
}
