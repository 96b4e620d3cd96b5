package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/systemd"
)

// groupPatience is how long a group may take to be made by the boot.
const groupPatience = 2 * time.Minute

// ordersGroup lets the settings' group post orders where the image was
// installed with another: orders.group in user data, or in a file that was
// changed since. The group may be made by the same user data, so it is waited
// for.
func (a *Agent) ordersGroup(ctx context.Context, group string) {
	if group == systemd.SocketGroup(a.o.Root) {
		return
	}
	var b backoff
	began := time.Now()
	for {
		err := a.setOrdersGroup(ctx, group)
		if err == nil {
			a.log.Info("orders' socket has its group", "group", group)
			a.trouble("orders group", nil, false)
			return
		}
		if time.Since(began) > groupPatience {
			a.trouble("orders group", &report.Cause{
				Stage: report.StageOrders, Code: report.CodeSettings, Severity: report.SeverityDegraded,
				Message: "The group " + group + " may not post orders: " + plain(err) + ".",
				Fix:     "Make the group in the image or in user data, or correct orders.group.",
			}, true)
		}
		if !b.next(ctx, 5*time.Second) {
			return
		}
	}
}

func (a *Agent) setOrdersGroup(ctx context.Context, group string) error {
	gid, err := strconv.Atoi(group)
	if err != nil {
		g, err := user.LookupGroup(group)
		if err != nil {
			return fmt.Errorf("look up group: %w", err)
		}
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return fmt.Errorf("look up group: %w", err)
		}
	}
	// First what the socket's next start takes, then the socket that is there:
	// one that comes up in between has the group from either.
	if err := systemd.SetSocketGroup(a.o.Root, group); err != nil {
		return err
	}
	if m, ok := a.systemd.(interface{ Reread(context.Context) error }); ok {
		if err := m.Reread(ctx); err != nil {
			return err
		}
	}
	err = os.Chown(filepath.Join(a.o.Root, settings.RuntimeDir, "orders.sock"), -1, gid)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it is not up yet, or not installed
	}
	return err
}
