package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/lecafe/lecafe/lab/machine"
)

// file is one that Build writes into an image.
type file struct {
	path, content string
	mode          os.FileMode
}

// ArchivePath is the URL path under which an image's archive is served at
// machine.AptPort of its machines.
const ArchivePath = "/_lab/apt/"

// files are what differs from a plain Debian.
func files(r Release) []file {
	return []file{
		{"etc/cloud/cloud.cfg.d/90_ec2.cfg", "# As in Debian's EC2 images: no other data source is looked for.\ndatasource_list: [ Ec2 ]\n" +
			// The default, en_US.UTF-8, is not generated here, which makes every
			// boot an error.
			"locale: C.UTF-8\n", 0o644},
		{"etc/apt/sources.list", fmt.Sprintf("deb [trusted=yes] http://127.0.0.1:%d%s ./\n", machine.AptPort, ArchivePath), 0o644},
		// Name servers that nobody can reach cost a boot 40 s.
		{"etc/resolv.conf", "", 0o644},
		{"etc/hostname", "localhost\n", 0o644},
		{"etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n", 0o644},
		{"etc/fstab", "", 0o644},
		{"etc/network/interfaces", "source /etc/network/interfaces.d/*\n", 0o644},
		// Empty, not absent: absent is a systemd first boot, which presets all
		// units anew.
		{"etc/machine-id", "", 0o444},
		// apt caches would only grow the images captured.
		{"etc/apt/apt.conf.d/90lab", "APT::Install-Recommends \"false\";\nAcquire::Languages \"none\";\n", 0o644},
	}
}

// removed are paths that installing the packages made and no image may have,
// each a glob.
var removed = []string{
	"etc/ssh/ssh_host_*", "var/lib/dbus/machine-id", "var/log/*.log", "var/log/apt", "var/lib/systemd/random-seed",
	"etc/apt/sources.list.d/*", "var/lib/apt/lists/*", "root/.bash_history", "var/cache/apt/*.bin", "etc/apt/sources.list.d/0000*",
}

func customize(root string, r Release) error {
	for _, glob := range removed {
		paths, err := filepath.Glob(filepath.Join(root, glob))
		if err != nil {
			return err
		}
		for _, p := range paths {
			if err := os.RemoveAll(p); err != nil {
				return fmt.Errorf("customize: %w", err)
			}
		}
	}
	for _, f := range files(r) {
		p := filepath.Join(root, f.path)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return fmt.Errorf("customize: %w", err)
		}
		// A symlink (resolv.conf, in some images) would be written through.
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("customize: %w", err)
		}
		if err := os.WriteFile(p, []byte(f.content), f.mode); err != nil {
			return fmt.Errorf("customize: %w", err)
		}
	}
	return noHotplug(filepath.Join(root, "etc/cloud/cloud.cfg"))
}

// noHotplug takes cloud-init's hotplug module out of the final stage: no udevd
// runs in a container, and the module makes every boot an error.
func noHotplug(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("customize: %w", err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		if m := strings.TrimSpace(line); m != "- install-hotplug" && m != "- install_hotplug" {
			out.WriteString(line)
		}
	}
	if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
		return fmt.Errorf("customize: %w", err)
	}
	return nil
}
