// Command packer-plugin-lecafe is lecafe inside Packer: a provisioner that
// installs the agent and proves the image clean, a data source that renders
// and lints user data, and a post-processor that boots a canary of the image
// and promotes it.
package main

import (
	"fmt"
	"os"

	"github.com/hashicorp/packer-plugin-sdk/plugin"

	"github.com/lecafe/lecafe/packer/datasource/userdata"
	"github.com/lecafe/lecafe/packer/post-processor/publish"
	"github.com/lecafe/lecafe/packer/provisioner/lecafe"
	"github.com/lecafe/lecafe/packer/version"
)

func main() {
	set := plugin.NewSet()
	// The default name makes the provisioner "lecafe", not "lecafe-lecafe".
	set.RegisterProvisioner(plugin.DEFAULT_NAME, new(lecafe.Provisioner))
	set.RegisterPostProcessor("publish", new(publish.PostProcessor))
	set.RegisterDatasource("userdata", new(userdata.Datasource))
	set.SetVersion(version.PluginVersion)
	if err := set.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
