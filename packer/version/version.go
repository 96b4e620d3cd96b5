// Package version says which version of the plugin this is: Packer's own form
// of it, without build metadata, so that `packer plugins install --path` takes
// it.
package version

import "github.com/hashicorp/packer-plugin-sdk/version"

var (
	// Version is set by the Makefile with -ldflags -X.
	Version = "0.1.0"
	// VersionPrerelease is "dev" for what is not a release.
	VersionPrerelease = "dev"

	// PluginVersion is what `describe` says.
	PluginVersion = version.NewPluginVersion(Version, VersionPrerelease, "")
)
