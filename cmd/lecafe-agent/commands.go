package main

import "github.com/urfave/cli/v2"

// commands lists lecafe-agent's subcommands, one file each.
func commands() []*cli.Command {
	return []*cli.Command{
		runCommand(),
		installCommand(),
		instrumentRuncmdCommand(),
		statusCommand(),
		versionCommand(),
		ordersCommand(),
		sendCommand(),
		spoolCommand(),
	}
}
