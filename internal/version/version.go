// Package version says which build this is.
package version

import "runtime/debug"

// Version is set by the Makefile with -ldflags -X; it is "dev" otherwise.
var Version = "dev"

// String returns the version; for a build that was given none, with the VCS
// revision where Go recorded it.
func String() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || Version != "dev" {
		return Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return Version + "+" + s.Value[:12]
		}
	}
	return Version
}
