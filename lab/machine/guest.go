package machine

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
)

// A container differs from an EC2 instance in what it sees of the hardware.
// These files make up for it. They are bound into /run of the running machine,
// so that nothing of them is ever on its disk or in an image captured from it.
var guestFiles = map[string]string{
	"/run/systemd/system/cloud-init-local.service.d/lecafe-lab.conf": "cloud-init-local.conf",
	"/run/systemd/system/cloud-init-main.service.d/lecafe-lab.conf":  "cloud-init-main.conf",
	"/run/lecafe-lab/sys.sh": "sys.sh",
}

//go:embed guest/sys.sh
var sysScript []byte

// cloud-init-main exists from 24.3 on and runs before cloud-init-local there.
const (
	cloudInitDropIn = "[Service]\nExecStartPre=/bin/sh /run/lecafe-lab/sys.sh\n"
)

func (d *Driver) writeGuestFiles() error {
	dir := filepath.Join(d.dir, "guest")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"cloud-init-local.conf": []byte(cloudInitDropIn), "cloud-init-main.conf": []byte(cloudInitDropIn), "sys.sh": sysScript,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return fmt.Errorf("write guest file: %w", err)
		}
	}
	return nil
}
