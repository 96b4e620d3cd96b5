// Package audit looks for what makes an account's instances unsafe or leaves
// money lying about: ten read-only checks over one region's EC2, Auto Scaling
// and instance profiles. It changes nothing, and refuses to call a region
// clean that it could not read.
package audit

import (
	"cmp"
	"slices"
	"time"
)

// Finding is one thing to mend. Findings are compared, ignored and counted by
// Check and Resource.
type Finding struct {
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	Region   string   `json:"region"`
	Resource string   `json:"resource"` // ID or name
	Message  string   `json:"message"`  // what is the case
	Why      string   `json:"why"`
	Fix      string   `json:"fix"`
}

// Severity as SARIF has it.
type Severity string

const (
	Error   Severity = "error"
	Warning Severity = "warning"
	Note    Severity = "note"
)

// Check is one of the ten.
type Check struct {
	Name     string   `json:"name"`
	Severity Severity `json:"severity"`
	Why      string   `json:"why"`
	Fix      string   `json:"fix"`

	find func(*Region, func(resource, message string))
}

// Checks lists them in the order in which they run.
func Checks() []Check {
	return []Check{
		{"open-ports", Error, "ssh, remote desktop and database ports that the whole internet reaches are attacked within minutes",
			"take the rule away and use Session Manager, or allow another security group instead of 0.0.0.0/0", openPorts},
		{"unused-security-groups", Note, "a group that nothing uses is one that nobody reviews, until somebody attaches it",
			"delete it: aws ec2 delete-security-group --group-id ID", unusedGroups},
		{"imds-v1", Error, "IMDSv1 hands the role's credentials to whoever makes the application fetch a URL",
			"require tokens: modify-instance-metadata-options --http-tokens required; for templates and images publish and bake with lecafe", imdsV1},
		{"old-images", Warning, "an instance from a deprecated, deregistered or ageing image has missed the patches since",
			"bake and deploy a new image", oldImages},
		{"unpromoted-groups", Warning, "the next scale-out gets another image than the one that was proved",
			"lecafe deploy, or set the group to the promoted version's number", unpromoted},
		{"shared-images", Error, "everything in an image or snapshot is everybody's once it is shared",
			"take the permission away: modify-image-attribute or modify-snapshot-attribute; share through the recipe's share: list", shared},
		{"unencrypted-snapshots", Warning, "whoever gets a snapshot reads it",
			"copy it encrypted, switch on encryption by default, and set encryption: in the recipe", unencrypted},
		{"orphans", Note, "snapshots of images that are gone and volumes that nothing uses cost money and keep data",
			"delete them, after a look", orphans},
		{"wildcard-profiles", Error, "an instance whose role may do everything is the account's, once taken over",
			"lecafe policy agent prints what the agent needs; give the role that and what the application needs", wildcards},
		{"bad-user-data", Warning, "user data that fails silently, or that shows a secret to whoever may describe templates",
			"lecafe userdata lint FILE says what to change; fetch secrets at boot with the role", badUserData},
	}
}

// Options tune the checks. The zero value is fine.
type Options struct {
	Now         time.Time     // required
	MaxImageAge time.Duration // default 90 days
	Accounts    []string      // accounts that may be shared with
}

// Audit runs all checks on what Collect read, in order of check and resource.
func Audit(r *Region, o Options) []Finding {
	r.opts = o
	r.opts.MaxImageAge = cmp.Or(o.MaxImageAge, 90*24*time.Hour)
	var out []Finding
	for _, c := range Checks() {
		start := len(out)
		c.find(r, func(resource, message string) {
			out = append(out, Finding{c.Name, c.Severity, r.Name, resource, message, c.Why, c.Fix})
		})
		slices.SortFunc(out[start:], func(a, b Finding) int {
			return cmp.Or(cmp.Compare(a.Resource, b.Resource), cmp.Compare(a.Message, b.Message))
		})
	}
	return out
}
