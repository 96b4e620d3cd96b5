package packertemplate

import (
	"cmp"
	"fmt"
	"time"

	"github.com/lecafe/lecafe/bake/recipe"
)

// publish is what comes after the build: the canary and the promotion, and the
// image's ID in a file.
func (w *writer) publish() error {
	manifest := []attribute{{"output", `"${path.root}/packer-manifest.json"`}, {"strip_path", "true"}}
	if w.r.Canary == nil && w.r.Promote == nil {
		w.line(1, "# The image's ID, for what comes after the build.")
		w.block(1, `post-processor "manifest"`, manifest...)
		return nil
	}
	if w.r.Canary == nil {
		w.note("canary: the recipe has none; here one boots all the same before anything is promoted")
	}
	w.line(1, "# One after the other: an image whose canary fails gets no further, and Packer")
	w.line(1, "# removes it.")
	w.line(1, "post-processors {")
	w.line(2, `post-processor "lecafe-publish" {`)
	w.attributes(3, attribute{"recipe_name", quote(w.r.Name)}, attribute{"region", "var.region"}, attribute{"programs", "var.lecafe_programs"})
	if len(w.r.Tags) > 0 {
		w.line(3, "tags = %s", w.object(3, w.r.Tags, quote))
	}
	w.line(0, "")
	w.line(3, "# Where the canary fetches its tests and puts its result.")
	staging := []attribute{{"bucket", quote(w.r.Staging.Bucket)}}
	if p := w.r.Staging.Prefix; p != "" && p != "lecafe-bakes" {
		staging = append(staging, attribute{"prefix", quote(p)})
	}
	w.block(3, "staging", staging...)
	if err := w.canary(); err != nil {
		return err
	}
	if p := w.r.Promote; p != nil {
		w.line(0, "")
		w.line(3, "# A new version; the group refreshed to it; only then default version and")
		w.line(3, "# parameter.")
		list := given(attribute{"launch_template", p.LaunchTemplate}, attribute{"auto_scaling_group", p.AutoScalingGroup}, attribute{"ssm_parameter", p.SSMParameter})
		if p.Pin {
			list = append(list, attribute{"pin", "true"})
		}
		w.block(3, "promote", list...)
	}
	w.line(2, "}")
	w.line(0, "")
	w.line(2, "# The image's ID, for what comes after the build.")
	w.block(2, `post-processor "manifest"`, manifest...)
	w.line(1, "}")
	return nil
}

func (w *writer) canary() error {
	k, b := w.r.Canary, w.r.Builder
	if k == nil {
		k = &recipe.Canary{}
		if w.r.Promote != nil {
			k.LaunchTemplate = w.r.Promote.LaunchTemplate
		}
	}
	list := given(attribute{"launch_template", k.LaunchTemplate}, attribute{"instance_profile", k.InstanceProfile})
	if k.LaunchTemplate == "" {
		list = append(list, given(attribute{"instance_type", cmp.Or(k.InstanceType, first(b.InstanceTypes))}, attribute{"subnet", cmp.Or(k.Subnet, first(b.Subnets))})...)
		if len(b.SecurityGroups) > 0 {
			list = append(list, attribute{"security_groups", quoteList(b.SecurityGroups)})
		}
		if b.AssociatePublicIP != nil {
			list = append(list, attribute{"associate_public_ip", fmt.Sprint(*b.AssociatePublicIP)})
		}
	} else {
		list = append(list, given(attribute{"instance_type", k.InstanceType}, attribute{"subnet", k.Subnet})...)
	}
	list = append(list, given(attribute{"proxy", b.Proxy}, attribute{"no_proxy", b.NoProxy})...)
	for _, f := range []attribute{{"ca_bundle", b.CABundle}, {"user_data", k.UserData}} {
		if f.value != "" {
			name, err := w.local(f.value)
			if err != nil {
				return err
			}
			list = append(list, attribute{f.name, name})
		}
	}
	if k.Deadline > 0 {
		list = append(list, attribute{"deadline", quote(duration(k.Deadline))})
	}
	if len(list)+len(k.Test) == 0 {
		return nil
	}
	w.line(0, "")
	w.line(3, "# One instance of the image, in no group. Its agent must say success.")
	w.line(3, "canary {")
	w.attributes(4, list...)
	for _, t := range k.Test {
		w.line(0, "")
		list := given(attribute{"name", t.Name}, attribute{"run", t.Run})
		if t.Script != "" {
			name, err := w.local(t.Script)
			if err != nil {
				return err
			}
			list = append(list, attribute{"script", name})
		}
		if t.Timeout > 0 {
			list = append(list, attribute{"timeout", quote(duration(t.Timeout))})
		}
		w.block(4, "test", list...)
	}
	w.line(3, "}")
	return nil
}

// given are the attributes that have a value, quoted.
func given(list ...attribute) []attribute {
	var out []attribute
	for _, a := range list {
		if a.value != "" {
			out = append(out, attribute{a.name, quote(a.value)})
		}
	}
	return out
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

func duration(d time.Duration) string {
	switch {
	case d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return d.String()
}
