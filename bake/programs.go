package bake

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/lecafe/lecafe/bake/recipe"
)

// Programs are the files of the programs that go to the builder.
type Programs struct {
	Agent   string // lecafe-agent, stays in the image
	Builder string // lecafe-builder, does not
}

// FindPrograms looks for the programs of an architecture beside the CLI:
// lecafe-agent-linux-arm64, or lecafe-agent where that is for it. Paths in
// given are checked and kept.
func FindPrograms(given Programs, architecture string) (Programs, error) {
	self, err := os.Executable()
	if err != nil {
		return Programs{}, fmt.Errorf("find programs: %w", err)
	}
	if real, err := filepath.EvalSymlinks(self); err == nil {
		self = real
	}
	goarch, machine := "amd64", elf.EM_X86_64
	if architecture == recipe.ARM64 {
		goarch, machine = "arm64", elf.EM_AARCH64
	}
	for _, p := range []struct {
		name string
		path *string
	}{{"lecafe-agent", &given.Agent}, {"lecafe-builder", &given.Builder}} {
		if *p.path == "" {
			candidates := []string{p.name + "-linux-" + goarch}
			if runtime.GOARCH == goarch && runtime.GOOS == "linux" {
				candidates = append(candidates, p.name)
			}
			for _, c := range candidates {
				if at := filepath.Join(filepath.Dir(self), c); fileExists(at) {
					*p.path = at
					break
				}
			}
			if *p.path == "" {
				return Programs{}, fmt.Errorf("there is no %s-linux-%s beside %s; build it (make build) or name it with --%s", p.name, goarch, self, p.name[len("lecafe-"):])
			}
		}
		f, err := elf.Open(*p.path)
		if err != nil {
			return Programs{}, fmt.Errorf("%s is no Linux program: %w; name another with --%s", *p.path, err, p.name[len("lecafe-"):])
		}
		m := f.Machine
		if err := f.Close(); err != nil {
			return Programs{}, fmt.Errorf("read %s: %w", *p.path, err)
		}
		if m != machine {
			return Programs{}, fmt.Errorf("%s is for %s, the recipe's architecture is %s; name another with --%s", *p.path, m, architecture, p.name[len("lecafe-"):])
		}
	}
	return given, nil
}

func fileExists(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
