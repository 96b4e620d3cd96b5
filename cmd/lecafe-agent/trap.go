package main

import (
	"github.com/lecafe/lecafe/internal/cli"
	"github.com/lecafe/lecafe/systemd"
	"github.com/lecafe/lecafe/userdata/trap"
)

const runcmdDropIn = "/usr/lib/systemd/system/cloud-final.service.d/51-lecafe-runcmd.conf"

// runcmdUnit instruments what cloud-init made of runcmd in the stage before,
// on the image's own behalf: cloud-init-main.service of 24.3 and later waits
// for this unit too before it executes scripts. Its failure must not keep them
// from running, hence the dash.
var runcmdUnit = systemd.File{Path: runcmdDropIn, Mode: 0o644, Data: []byte(`# cloud-init executes runcmd as one sh script, which notices the failure of its
# last command alone. Each statement is checked by itself, and nothing else
# about the script changes.
[Service]
ExecStartPre=-/usr/bin/lecafe-agent instrument-runcmd
`)}

func instrumentRuncmdCommand() *cli.Command {
	return &cli.Command{
		Name:   "instrument-runcmd",
		Usage:  "have each statement of cloud-config's runcmd checked by itself",
		Hidden: true,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "script", Value: trap.Runcmd, Usage: "the `FILE` that cloud-init made of runcmd"},
			&cli.StringFlag{Name: "records", Value: trap.RecordsDir, Usage: "`DIR` of the records"},
		},
		Action: func(c *cli.Context) error {
			_, err := trap.InstrumentFile(c.String("script"), c.String("records"))
			return err
		},
	}
}
