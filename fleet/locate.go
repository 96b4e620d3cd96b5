package fleet

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"github.com/lecafe/lecafe/agent/settings"
)

// Where is where the agents of a fleet send their reports.
type Where struct {
	Reports string // s3://bucket/prefix
	Region  string // of the bucket, empty for the fleet's own
	Queue   string // name or URL, empty for none
}

// Locate finds where the reports go: the agent's settings in the user data of
// the launch templates that the selection uses. ok is false where none names a
// bucket; what is baked into an image cannot be seen.
func (r *Region) Locate(ctx context.Context, sel Selection) (w Where, ok bool, err error) {
	inv, err := r.Instances(ctx, sel)
	if err != nil {
		return Where{}, false, err
	}
	var versions []templateVersion
	seen := map[templateVersion]bool{}
	add := func(id, number string) {
		v := templateVersion{r.Name, id, cmp.Or(number, "$Default")}
		if id != "" && !seen[v] && len(versions) < 10 {
			seen[v] = true
			versions = append(versions, v)
		}
	}
	for _, g := range inv.Groups {
		add(g.TemplateID, g.TemplateVersion)
	}
	for _, i := range inv.Instances {
		add(i.TemplateID, i.TemplateVersion)
	}
	for _, v := range versions {
		if w, ok, err := r.reportsOf(ctx, v.id, v.number); err == nil && ok {
			return w, true, nil // another version may tell
		}
	}
	return Where{}, false, nil
}

// templateVersion is one version of a launch template.
type templateVersion struct{ region, id, number string }

// reportsOf is where the agent's settings in the user data of a launch template
// version send reports to; ok is false where they do not say.
func (r *Region) reportsOf(ctx context.Context, id, number string) (w Where, ok bool, err error) {
	out, err := r.EC2.DescribeLaunchTemplateVersions(ctx, &ec2.DescribeLaunchTemplateVersionsInput{LaunchTemplateId: &id, Versions: []string{number}})
	if err != nil {
		return Where{}, false, fmt.Errorf("describe version %s of launch template %s: %w", number, id, err)
	}
	if len(out.LaunchTemplateVersions) == 0 || out.LaunchTemplateVersions[0].LaunchTemplateData == nil {
		return Where{}, false, nil
	}
	// What is no user data of lecafe's says nothing.
	payload, err := base64.StdEncoding.DecodeString(aws.ToString(out.LaunchTemplateVersions[0].LaunchTemplateData.UserData))
	if err != nil {
		return Where{}, false, nil
	}
	src, found, err := settings.SourceFromUserData(payload)
	if err != nil || !found {
		return Where{}, false, nil
	}
	s, err := settings.Decode(src)
	if err != nil || s.Report.S3.Bucket == "" {
		return Where{}, false, nil
	}
	return Where{
		Reports: "s3://" + s.Report.S3.Bucket + "/" + cmp.Or(strings.Trim(s.Report.S3.Prefix, "/"), settings.DefaultReportPrefix),
		Region:  s.Report.S3.Region, Queue: s.Report.SQS.Queue,
	}, true, nil
}
