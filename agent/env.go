package agent

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"

	"github.com/lecafe/lecafe/agent/config"
	"github.com/lecafe/lecafe/agent/identity"
	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
)

// envFiles writes the files that tell the application what the instance is.
// They take no credentials and come first.
func (a *Agent) envFiles(ctx context.Context, meta *imds.Client, inst report.Instance, files []settings.EnvFile) {
	known := map[string]string{
		"region": inst.Region, "availability_zone": inst.AvailabilityZone, "instance_id": inst.ID, "instance_type": inst.Type,
		"image_id": inst.ImageID, "account_id": inst.AccountID, "architecture": inst.Architecture,
	}
	fact := func(name string) (string, error) {
		tag, ok := strings.CutPrefix(name, "tag:")
		if !ok {
			return known[name], nil
		}
		c, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		v, err := identity.Metadata(c, meta, "tags/instance/"+tag)
		if errors.Is(err, identity.ErrAbsent) {
			return "", errors.New("the instance has no tag " + tag + " in its metadata; set the tag and turn instance tags in metadata on")
		}
		return v, err
	}
	for _, e := range files {
		content, err := config.Env(e, fact)
		if err == nil {
			err = config.PutEnv(a.o.Root, e, content)
		}
		if err != nil {
			a.trouble("env "+e.Path, &report.Cause{
				Stage: report.StageConfig, Code: report.CodeConfigInvalid, File: e.Path,
				Message: "The file " + e.Path + " could not be written: " + plain(err) + ".",
				Fix:     "Correct env in the agent's settings, or the instance's tags.",
			}, true)
		}
	}
}
