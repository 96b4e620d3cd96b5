package main

import (
	"fmt"
	"os"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/internal/cli"
	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/systemd"
	"github.com/lecafe/lecafe/userdata/trap"
)

func installCommand() *cli.Command {
	return &cli.Command{
		Name:  "install",
		Usage: "put this program into a system: program, units, trap, user; enabled, not started",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "root", Usage: "root `DIR` of the system", Value: "/"},
			&cli.BoolFlag{Name: "now", Usage: "start the units too; with root / alone"},
			&cli.StringFlag{Name: "bake-id", Usage: "`ID` of the bake, for reports to name"},
		},
		Action: func(c *cli.Context) error {
			root := c.String("root")
			if c.Bool("now") && root != "/" {
				return exitcode.With(exitcode.BadRequest, fmt.Errorf("--now starts units of this system and cannot stand beside --root %s", root))
			}
			if _, err := os.Stat(root); err != nil {
				return exitcode.With(exitcode.BadRequest, fmt.Errorf("--root: %w", err))
			}
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			baked, err := settings.Files(root)
			if err != nil {
				return err
			}
			// What is wrong with them is the bake's to refuse, and the boot's to report.
			s, _ := settings.Decode(baked...)
			i := systemd.Installation{Root: root, Binary: self, Trap: trap.Library, Group: s.Orders.Group, Extra: []systemd.File{runcmdUnit}}
			if id := c.String("bake-id"); id != "" {
				i.Extra = append(i.Extra, systemd.File{Path: "/etc/lecafe/bake-id", Data: []byte(id + "\n"), Mode: 0o644})
			}
			if err := systemd.Install(i); err != nil {
				return err
			}
			if !c.Bool("now") {
				return nil
			}
			m, err := systemd.Connect(c.Context)
			if err != nil {
				return exitcode.With(exitcode.NotReady, err)
			}
			defer m.Close()
			if err := m.Reread(c.Context); err != nil {
				return err
			}
			for _, u := range []string{systemd.OrdersSocket, systemd.AgentUnit} {
				if err := m.Start(c.Context, u); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
