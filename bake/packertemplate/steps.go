package packertemplate

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/lecafe/lecafe/bake/recipe"
)

func (w *writer) build() error {
	w.line(0, "build {")
	w.attributes(1, attribute{"name", quote(w.r.Name)}, attribute{"sources", `["source.amazon-ebs.image"]`})
	for i, s := range w.r.Provision {
		w.line(0, "")
		if err := w.step(i+1, s); err != nil {
			return err
		}
	}
	w.line(0, "")
	if err := w.last(); err != nil {
		return err
	}
	w.line(0, "")
	if err := w.publish(); err != nil {
		return err
	}
	w.line(0, "}")
	return nil
}

// last is lecafe's own provisioner. Nothing may come after it: it takes the
// user away that Packer came in with.
func (w *writer) last() error {
	w.line(1, "# Last: installs lecafe-agent, cleans, and fails the build on what must not be")
	w.line(1, "# in an image. It removes the builder's user and keys, so nothing can follow.")
	w.line(1, `provisioner "lecafe" {`)
	list := []attribute{{"programs", "var.lecafe_programs"}}
	if keep := w.r.Clean.Keep; len(keep) > 0 {
		list = append(list, attribute{"keep", quoteList(keep)})
	}
	if w.r.Clean.ZeroFreeSpace {
		list = append(list, attribute{"zero_free_space", "true"})
	}
	w.attributes(2, list...)
	text, err := w.settings()
	if err != nil {
		return err
	}
	if text != "" {
		w.line(2, "# Becomes /etc/lecafe/agent.yaml.")
		w.line(2, "settings_content = <<-YAML")
		for l := range strings.Lines(text) {
			w.line(3, "%s", strings.NewReplacer("${", "$${", "%{", "%%{").Replace(verbatim(strings.TrimRight(l, "\n"))))
		}
		w.line(2, "YAML")
	}
	w.line(1, "}")
	return nil
}

func (w *writer) step(number int, s recipe.Step) error {
	w.line(1, "# Step %d%s", number, func() string {
		if s.Name == "" {
			return ""
		}
		return ": " + strings.Join(strings.Fields(s.Name), " ")
	}())
	switch {
	case s.Packages != nil:
		return w.packages(s)
	case len(s.Files) > 0:
		return w.putFiles(s)
	case s.Script != "":
		data, err := w.read(s.Script)
		if err != nil {
			return err
		}
		name, err := w.local(s.Script)
		if err != nil {
			return err
		}
		w.shell(s, interpreter(string(data)), []attribute{{"script", name}}, nil)
	case s.Run != "":
		text := s.Run
		how := interpreter(text)
		if strings.HasPrefix(text, "#!") {
			_, text, _ = strings.Cut(text, "\n")
		}
		lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
		if strings.Contains(text, "{{") {
			w.line(1, "# Packer takes {{ in inline lines for a template of its own, more than once. In")
			w.line(1, "# base64:")
			for _, l := range lines {
				w.line(1, "#%s", strings.TrimRight(" "+l, " \t"))
			}
			w.files++
			to := fmt.Sprintf("/tmp/lecafe-%d-run", w.files)
			lines = []string{"echo " + base64.StdEncoding.EncodeToString([]byte(text)) + " | base64 -d >" + to, how + " " + to, "rm " + to}
			how = bash
		}
		w.shell(s, how, nil, lines)
	case s.Units != nil:
		lines := []string{"systemctl daemon-reload"}
		for _, v := range []struct {
			verb  string
			units []string
		}{{"enable", s.Units.Enable}, {"disable --now", s.Units.Disable}, {"mask --now", s.Units.Mask}} {
			if len(v.units) > 0 {
				lines = append(lines, "systemctl "+v.verb+" -- "+words(v.units))
			}
		}
		w.shell(s, bash, nil, lines)
	case s.Reboot:
		w.shell(s, bash, []attribute{{"expect_disconnect", "true"}, {"pause_after", `"15s"`}}, []string{"systemctl --no-block reboot"})
	}
	return nil
}

// bash stands for local.run.
const bash = "bash -e"

// interpreter is how lecafe runs a script: bash and sh stop at the first
// failure, others are called as they are.
func interpreter(text string) string {
	first, _, _ := strings.Cut(text, "\n")
	if !strings.HasPrefix(first, "#!") {
		return bash
	}
	f := strings.Fields(first[2:])
	switch {
	case len(f) == 0 || strings.HasSuffix(f[len(f)-1], "bash") || len(f) > 1 && strings.HasSuffix(f[0], "bash"):
		return bash
	case len(f) == 1 && path.Base(f[0]) == "sh":
		return f[0] + " -e"
	}
	return strings.Join(f, " ")
}

// shell writes a shell provisioner with inline lines, or with what list names.
func (w *writer) shell(s recipe.Step, how string, list []attribute, inline []string) {
	command := "local.run"
	if how != bash {
		command = `"sudo -n env ${local.env} {{ .Vars }} ` + strings.Trim(quote(how), `"`) + ` {{ .Path }}"`
	}
	list = append([]attribute{{"execute_command", command}}, list...)
	if len(s.Env) > 0 {
		var env []string
		for _, k := range slices.Sorted(maps.Keys(s.Env)) {
			env = append(env, k+"="+s.Env[k])
		}
		list = append(list, attribute{"environment_vars", quoteList(env)})
	}
	if s.Timeout > 0 {
		list = append(list, attribute{"timeout", quote(s.Timeout.String())})
	}
	w.line(1, `provisioner "shell" {`)
	w.attributes(2, list...)
	if inline != nil {
		w.line(2, "inline = [")
		for _, l := range inline {
			w.line(3, "%s,", quote(l))
		}
		w.line(2, "]")
	}
	w.line(1, "}")
}

// upload puts a file into the machine's /tmp and returns its place there.
func (w *writer) upload(f recipe.File, name string) (string, error) {
	w.files++
	to := fmt.Sprintf("/tmp/lecafe-%d-%s", w.files, base(name))
	from := attribute{"content", quote(f.Content)}
	if f.Source != "" {
		path, err := w.local(f.Source)
		if err != nil {
			return "", err
		}
		from = attribute{"source", path}
	}
	w.block(1, `provisioner "file"`, from, attribute{"destination", quote(to)})
	return to, nil
}

func (w *writer) putFiles(s recipe.Step) error {
	var lines []string
	for _, f := range s.Files {
		to, err := w.upload(f, f.Path)
		if err != nil {
			return err
		}
		lines = append(lines,
			fmt.Sprintf("install -D -m %s -o %s -g %s %s %s", cmp.Or(f.Mode, "0644"), word(cmp.Or(f.Owner, "root")), word(cmp.Or(f.Group, "root")), word(to), word(f.Path)),
			"rm "+word(to))
	}
	w.shell(recipe.Step{Timeout: s.Timeout}, bash, nil, lines)
	return nil
}

func (w *writer) packages(s recipe.Step) error {
	p := s.Packages
	var files []string
	for _, f := range p.Files {
		to, err := w.upload(recipe.File{Source: f}, f)
		if err != nil {
			return err
		}
		files = append(files, to)
	}
	install := append(slices.Clone(p.Install), files...)
	lines := []string{
		"if command -v apt-get >/dev/null; then",
		"  apt() { apt-get -y -q -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \"$@\"; }",
		// Its own apt runs at boot would have the lists locked.
		"  cloud-init status --wait >/dev/null || true",
	}
	if len(p.Install) > 0 || p.Upgrade {
		lines = append(lines, "  apt update")
	}
	if p.Upgrade {
		lines = append(lines, "  apt dist-upgrade")
	}
	if len(p.Remove) > 0 {
		lines = append(lines, "  apt purge -- "+words(p.Remove))
	}
	if len(install) > 0 {
		lines = append(lines, "  apt install -- "+words(install))
	}
	lines = append(lines, "else", "  dnf=$(command -v dnf || command -v yum)")
	if p.Upgrade {
		lines = append(lines, `  "$dnf" -y upgrade`)
	}
	if len(p.Remove) > 0 {
		lines = append(lines, `  "$dnf" -y remove `+words(p.Remove))
	}
	if len(install) > 0 {
		lines = append(lines, `  "$dnf" -y install `+words(install))
	}
	lines = append(lines, "fi")
	if len(files) > 0 {
		lines = append(lines, "rm "+words(files))
	}
	w.shell(recipe.Step{Timeout: s.Timeout}, bash, nil, lines)
	return nil
}

// word quotes one word for the shell, where it has to be.
func word(s string) string {
	safe := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:=@%,", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !safe(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func words(all []string) string {
	out := make([]string, len(all))
	for i, s := range all {
		out[i] = word(s)
	}
	return strings.Join(out, " ")
}
