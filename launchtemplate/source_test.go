package launchtemplate_test

import (
	"context"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"github.com/lecafe/lecafe/launchtemplate"
)

// based remembers what a version was based on.
type based struct {
	*fake
	on string
}

func (b *based) CreateLaunchTemplateVersion(ctx context.Context, in *ec2.CreateLaunchTemplateVersionInput, o ...func(*ec2.Options)) (*ec2.CreateLaunchTemplateVersionOutput, error) {
	b.on = aws.ToString(in.SourceVersion)
	return b.fake.CreateLaunchTemplateVersion(ctx, in, o...)
}

// Whoever moves the default between the reading of the source and the making of
// the version does not mix two versions into one.
func TestSourceIsTheVersionThatWasRead(t *testing.T) {
	b := &based{fake: newFake()}
	if _, err := launchtemplate.Publish(t.Context(), b, launchtemplate.Spec{Name: "shop", ImageID: "ami-1", InstanceType: "t3.small"}); err != nil {
		t.Fatal(err)
	}
	if _, err := launchtemplate.Publish(t.Context(), b, launchtemplate.Spec{Name: "shop", Source: "$Latest", ImageID: "ami-2"}); err != nil {
		t.Fatal(err)
	}
	if b.on != "1" {
		t.Errorf("based on %q, want 1", b.on)
	}
}
