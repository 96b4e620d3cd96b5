package main

import "github.com/lecafe/lecafe/internal/cli"

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
