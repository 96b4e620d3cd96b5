package main

import "github.com/urfave/cli/v2"

// commands lists lecafe's subcommands, one file each.
func commands() []*cli.Command {
	return []*cli.Command{
		auditCommand(),
		inspectCommand(),
		policyCommand(),
		userdataCommand(),
		drillCommand(),
		launchTemplateCommand(),
		withStack(watchCommand(), "group, reports and queue", fleetFromStack),
		withStack(deployCommand(), "group and reports", fleetFromStack),
		labCommand(),
		ordersCommand(),
		withStack(bakeCommand(), "staging bucket and report sinks", bakeFromStack),
		gcCommand(),
		imagesCommand(),
		recipeCommand(),
		validateCommand(),
		stackCommand(),
		connectCommand(),
		packerCommand(),
	}
}
