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
		watchCommand(),
		deployCommand(),
		labCommand(),
		ordersCommand(),
		bakeCommand(),
		gcCommand(),
		imagesCommand(),
		recipeCommand(),
		validateCommand(),
		stackCommand(),
		connectCommand(),
		packerCommand(),
	}
}
