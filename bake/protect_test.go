package bake_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"github.com/lecafe/lecafe/bake"
	cloudec2 "github.com/lecafe/lecafe/lab/cloud/ec2"
)

// Images are protected in each of their regions. Lifted is only what was
// turned on: an image's maker may have protected it.
func TestProtect(t *testing.T) {
	w := newWorld(t)
	ids := map[string]string{}
	for _, region := range []string{"us-east-1", "us-west-2"} {
		var err error
		if ids[region], err = w.EC2.AddImage(region, cloudec2.ImageSeed{Name: "made", Owner: "000000000000"}); err != nil {
			t.Fatal(err)
		}
	}
	in := func(region string) *ec2.Client {
		cfg := w.Config()
		cfg.Region = region
		return ec2.NewFromConfig(cfg)
	}
	if _, err := in("us-west-2").EnableImageDeregistrationProtection(t.Context(), &ec2.EnableImageDeregistrationProtectionInput{ImageId: aws.String(ids["us-west-2"])}); err != nil {
		t.Fatal(err)
	}
	check := func(when string, want map[string]bool) {
		t.Helper()
		for region, id := range ids {
			out, err := in(region).DescribeImages(t.Context(), &ec2.DescribeImagesInput{ImageIds: []string{id}})
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.HasPrefix(aws.ToString(out.Images[0].DeregistrationProtection), "enabled"); got != want[region] {
				t.Errorf("%s: the image in %s is protected: %v", when, region, got)
			}
		}
	}
	p, err := bake.Protect(t.Context(), w.Config(), ids)
	if err != nil {
		t.Fatal(err)
	}
	check("protected", map[string]bool{"us-east-1": true, "us-west-2": true})
	if err := p.Lift(t.Context()); err != nil {
		t.Error(err)
	}
	check("lifted", map[string]bool{"us-east-1": false, "us-west-2": true})

	lift := w.Deny("ec2:EnableImageDeregistrationProtection", "*", "*")
	if _, err := bake.Protect(t.Context(), w.Config(), ids); err == nil || errors.Is(err, bake.ErrNoProtection) || !strings.Contains(err.Error(), ids["us-east-1"]+" in us-east-1") {
		t.Errorf("without permission: %v", err)
	}
	lift()
}
