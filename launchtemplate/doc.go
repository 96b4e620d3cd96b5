// Package launchtemplate publishes launch template versions and compares them.
// It owns lecafe's defaults for what a template launches (IMDSv2 required, hop
// limit 1, no key pair) and the rule that publishing the same content twice
// makes one version. It refuses what AWS only refuses at launch: user data over
// 16 KB, and tag keys that instance metadata cannot carry. It rolls nothing
// out: see bake/promote.
package launchtemplate
