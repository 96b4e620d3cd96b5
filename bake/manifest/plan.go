package manifest

import (
	"time"

	"github.com/lecafe/lecafe/bake/recipe"
)

// PlanName is the bundle's first file; the others stand below files/.
const PlanName = "plan.json"

// Plan is what the builder does, in the bundle as PlanName. File names of its
// steps (File.Source, Step.Script, Packages.Files) are names in the bundle.
type Plan struct {
	BakeID   string            `json:"bake_id"`
	Recipe   string            `json:"recipe"`
	Steps    []recipe.Step     `json:"steps"`
	Names    map[string]string `json:"names"`    // name in the bundle → name in the recipe, for messages
	Settings string            `json:"settings"` // content of /etc/lecafe/agent.yaml
	Clean    recipe.Clean      `json:"clean"`
	Canary   *Canary           `json:"canary,omitempty"` // the instance is no builder
}

// Canary is what an instance of the new image does instead of being built:
// wait for its agent's verdict, then run the tests.
type Canary struct {
	Deadline time.Duration `json:"deadline"` // for the verdict, from the program's start
	Tests    []recipe.Test `json:"tests"`
}

// Paths on a builder. None of them is in an image.
const (
	Dir      = "/var/lib/lecafe-builder"
	Unit     = "lecafe-builder.service"
	Deadline = "lecafe-builder-deadline" // .timer and .service
	LastHook = "/usr/lib/systemd/system-shutdown/lecafe-builder-last"
)

// StepName returns what a step is called.
func StepName(s recipe.Step) string {
	switch {
	case s.Name != "":
		return s.Name
	case s.Packages != nil:
		return "packages"
	case len(s.Files) > 0:
		return "files"
	case s.Script != "":
		return s.Script
	case s.Units != nil:
		return "units"
	case s.Reboot:
		return "reboot"
	}
	return "run"
}

// RenewEvery is how often the builder reads the manifest again at least, so
// that its Self is never older. The CLI's URLs live much longer.
const RenewEvery = 30 * time.Second
