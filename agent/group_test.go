package agent_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/systemd"
)

// TestOrdersGroupFromUserData lets another group post than the image was
// installed with.
func TestOrdersGroupFromUserData(t *testing.T) {
	gid := os.Getgid()
	if os.Getuid() == 0 {
		gid = 4711
	}
	b := newBox(t, "#!/bin/sh\n"+settings.UserDataBegin+fmt.Sprintf("\norders: {group: \"%d\"}\n", gid)+settings.UserDataEnd+"\n")
	l, err := net.Listen("unix", filepath.Join(b.root, "run/lecafe/orders.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b.start()
	b.eventually("the socket's group", func() bool {
		info, err := os.Stat(filepath.Join(b.root, "run/lecafe/orders.sock"))
		return err == nil && int(info.Sys().(*syscall.Stat_t).Gid) == gid && systemd.SocketGroup(b.root) == fmt.Sprint(gid)
	})
}
