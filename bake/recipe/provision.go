package recipe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"mvdan.cc/sh/v3/syntax"

	"github.com/lecafe/lecafe/agent/settings"
)

// maxFile bounds each file that goes into the bundle.
const maxFile = 512 << 20

// Resolve returns the path of a file the recipe names.
func (r *Recipe) Resolve(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(r.Dir, name)
}

func (c *checker) provision() {
	for i, s := range c.r.Provision {
		field := fmt.Sprintf("provision[%d]", i)
		actions := 0
		for _, set := range []bool{s.Packages != nil, len(s.Files) > 0, s.Script != "", s.Run != "", s.Units != nil, s.Reboot} {
			if set {
				actions++
			}
		}
		if actions != 1 && !c.failed(field) {
			what := "does nothing"
			if actions > 1 {
				what = "does more than one thing"
			}
			c.bad(field, what, "give each step exactly one of packages, files, script, run, units and reboot")
		}
		c.between(field+".timeout", s.Timeout, time.Second, 24*time.Hour)
		for k := range s.Env {
			if !variableName.MatchString(k) {
				c.bad(join(field+".env", k), "is not a variable's name", "use letters, digits and _")
			}
		}
		if len(s.Env) > 0 && s.Script == "" && s.Run == "" {
			c.bad(field+".env", "goes with script and run only", "leave it out")
		}
		if p := s.Packages; p != nil {
			c.packages(field+".packages", p)
		}
		for j, f := range s.Files {
			c.provisionFile(fmt.Sprintf("%s.files[%d]", field, j), f)
		}
		if s.Script != "" {
			c.script(field+".script", s.Script)
		}
		if s.Run != "" {
			c.shell(field+".run", "", []byte(s.Run))
		}
		if u := s.Units; u != nil {
			if len(u.Enable)+len(u.Disable)+len(u.Mask) == 0 && !c.failed(field) {
				c.bad(field+".units", "names no unit", "set enable, disable or mask")
			}
			for key, units := range map[string][]string{"enable": u.Enable, "disable": u.Disable, "mask": u.Mask} {
				c.each(field+".units."+key, units, unitName, "is not a unit's name", "write it with its suffix, as nginx.service")
			}
		}
	}
}

func (c *checker) packages(field string, p *Packages) {
	if len(p.Install)+len(p.Remove)+len(p.Files) == 0 && !p.Upgrade && !c.failed(field) {
		c.bad(field, "names no package", "set install, remove, files or upgrade")
	}
	c.each(field+".install", p.Install, packageName, "is not a package's name", "give one name an item, without options or spaces")
	c.each(field+".remove", p.Remove, packageName, "is not a package's name", "give one name an item, without options or spaces")
	for i, f := range p.Files {
		at := fmt.Sprintf("%s.files[%d]", field, i)
		if !strings.HasSuffix(f, ".deb") && !strings.HasSuffix(f, ".rpm") {
			c.bad(at, "is neither a .deb nor a .rpm", "use the package's own file name")
			continue
		}
		c.file(at, f, maxFile)
	}
}

func (c *checker) provisionFile(field string, f File) {
	switch {
	case f.Path == "":
		c.bad(field+".path", "is missing", "give the absolute path in the image")
	case !filepath.IsAbs(f.Path) || filepath.Clean(f.Path) != f.Path || f.Path == "/":
		c.bad(field+".path", "is not a plain absolute path", "write it from / on, without .. and trailing slash")
	}
	if f.Source != "" && f.Content != "" {
		c.bad(field, "has both source and content", "keep one of them")
	}
	if f.Source != "" {
		c.file(field+".source", f.Source, maxFile)
	} else if _, there := c.d.places[field+".content"]; !there {
		c.bad(field, "has neither source nor content", "set one of them")
	}
	c.form(field+".mode", f.Mode, fileMode, "is not a file mode", `write it in octal and in quotes, as "0644"`)
	c.form(field+".owner", f.Owner, unixName, "is not a user's name", "use a name, not a number")
	c.form(field+".group", f.Group, unixName, "is not a group's name", "use a name, not a number")
}

func (c *checker) scriptOrRun(field, script, run string) {
	if (script == "") == (run == "") && !c.failed(field) {
		c.bad(field, "needs either script or run", "set exactly one of them")
	}
	if script != "" {
		c.script(field+".script", script)
	}
	if run != "" {
		c.shell(field+".run", "", []byte(run))
	}
}

// file checks that a file of the recipe is there.
func (c *checker) file(field, name string, limit int64) bool {
	info, err := os.Stat(c.r.Resolve(name))
	switch {
	case errors.Is(err, os.ErrNotExist):
		c.bad(field, "there is no such file", "paths are relative to the recipe's directory")
	case err != nil:
		c.bad(field, "cannot be read: "+errors.Unwrap(err).Error(), "check the path and its permissions")
	case !info.Mode().IsRegular():
		c.bad(field, "is not a regular file", "name the files one by one")
	case info.Size() > limit:
		c.bad(field, fmt.Sprintf("is larger than %d bytes", limit), "fetch it in a script instead")
	default:
		return true
	}
	return false
}

func (c *checker) script(field, name string) {
	if !c.file(field, name, 1<<20) {
		return
	}
	data, err := os.ReadFile(c.r.Resolve(name))
	if err != nil {
		c.bad(field, "cannot be read: "+err.Error(), "check its permissions")
		return
	}
	c.shell(field, name, data)
}

// shell parses a script that a shell will run; others are left alone.
func (c *checker) shell(field, name string, data []byte) {
	variant := syntax.LangBash
	first, _, _ := strings.Cut(string(data), "\n")
	if strings.HasPrefix(first, "#!") {
		if strings.HasSuffix(first, "\r") {
			c.bad(field, "has Windows line ends", "save it with Unix line ends: the kernel would look for an interpreter named with a carriage return")
			return
		}
		switch interpreter(first) {
		case "bash":
		case "sh", "dash", "ash":
			variant = syntax.LangPOSIX
		default:
			return
		}
	} else if name != "" {
		c.bad(field, "does not begin with #!", "make #!/bin/bash, or another interpreter, its first line")
		return
	}
	_, err := syntax.NewParser(syntax.Variant(variant)).Parse(strings.NewReader(string(data)), name)
	var pe syntax.ParseError
	if errors.As(err, &pe) {
		where := fmt.Sprintf("line %d", pe.Pos.Line())
		if name != "" {
			where = fmt.Sprintf("%s:%d:%d", name, pe.Pos.Line(), pe.Pos.Col())
		}
		c.bad(field, fmt.Sprintf("does not parse at %s: %s", where, pe.Text), "correct the script")
		return
	}
	var le syntax.LangError
	if errors.As(err, &le) {
		c.bad(field, fmt.Sprintf("does not parse at %s:%d:%d: %s", name, le.Pos.Line(), le.Pos.Col(), le.Feature), "use #!/bin/bash, or only what sh has")
		return
	}
	if err != nil {
		c.bad(field, "does not parse: "+err.Error(), "correct the script")
	}
}

// interpreter returns the program's base name of a #! line.
func interpreter(line string) string {
	words := strings.Fields(strings.TrimPrefix(line, "#!"))
	if len(words) > 1 && filepath.Base(words[0]) == "env" {
		words = words[1:]
		for len(words) > 1 && strings.HasPrefix(words[0], "-") {
			words = words[1:]
		}
	}
	if len(words) == 0 {
		return ""
	}
	return filepath.Base(words[0])
}

// agent has the agent's own package check its settings.
func (c *checker) agent() {
	for _, p := range settings.Validate(c.r.Agent) {
		c.bad(join("agent", p.Field), p.Message, p.Hint)
	}
	if c.r.Agent.Canary {
		c.bad("agent.canary", "is set for every instance of the image", "leave it out: the bake sets it on its canary alone")
	}
}
