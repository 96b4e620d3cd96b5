package userdata

import (
	"path"
	"slices"
	"strings"

	"mvdan.cc/sh/v3/syntax"

	"github.com/lecafe/lecafe/internal/lazyregexp"
)

// endOfBoot is asked by who waits for cloud-init's end.
var endOfBoot = lazyregexp.New(`/boot-finished\b|\bcloud-init\s+status\b|\bis-active\b[^\n]*\b(?:cloud-final|cloud-init\.target|multi-user\.target)\b|\bis-system-running\b`)

// loops finds those that end only when cloud-init has.
func (s *shellLint) loops(file *syntax.File, src []byte) {
	syntax.Walk(file, func(n syntax.Node) bool {
		st, ok := n.(*syntax.Stmt)
		if !ok {
			return true
		}
		if st.Background {
			return false
		}
		loop, ok := st.Cmd.(*syntax.WhileClause)
		if !ok || len(loop.Cond) == 0 {
			return true
		}
		from, to := int(loop.Cond[0].Pos().Offset()), int(loop.Cond[len(loop.Cond)-1].End().Offset())
		if from > to || to > len(src) || !endOfBoot().Match(src[from:to]) {
			return true
		}
		severity := Severity("")
		syntax.Walk(loop, func(n syntax.Node) bool {
			if in, ok := n.(*syntax.Stmt); ok && leaves(in) {
				severity = Warning // it gives up some time
			}
			return true
		})
		s.report("deadlock", severity, loop.Pos(), "waits until cloud-init has ended, and cloud-init waits for this script", "take what comes after it into a unit that is ordered after cloud-init.target")
		return true
	})
}

// calls looks at each command by itself.
func (s *shellLint) calls(file *syntax.File, src []byte) {
	used := make(map[*syntax.CallExpr]bool) // its output becomes a file or another's input
	yes := make(map[*syntax.CallExpr]bool)  // somebody answers its questions
	syntax.Walk(file, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.Stmt:
			c, ok := n.Cmd.(*syntax.CallExpr)
			if !ok {
				break
			}
			for _, r := range n.Redirs {
				switch r.Op {
				case syntax.RdrOut, syntax.AppOut, syntax.RdrAll, syntax.AppAll:
					used[c] = used[c] || (r.N == nil || r.N.Value == "1") && r.Word != nil && s.text(r.Word) != "/dev/null"
				case syntax.Hdoc, syntax.DashHdoc, syntax.RdrIn, syntax.WordHdoc:
					yes[c] = true
				}
			}
		case *syntax.BinaryCmd:
			if n.Op == syntax.Pipe || n.Op == syntax.PipeAll {
				if c, ok := n.X.Cmd.(*syntax.CallExpr); ok {
					used[c] = true
				}
				if c, ok := n.Y.Cmd.(*syntax.CallExpr); ok {
					yes[c] = true
				}
			}
		case *syntax.CallExpr:
			if len(n.Args) > 0 {
				s.call(n, s.words(n), used[n], yes[n], src)
			}
		}
		return true
	})
}

func (s *shellLint) call(c *syntax.CallExpr, w []string, used, answered bool, src []byte) {
	if len(w) == 0 {
		return
	}
	switch w[0] {
	case "set":
		if on, ok := setOptions(w[1:])["xtrace"]; ok && on {
			s.xtrace(int(c.Pos().Line()), int(c.Pos().Col()), src)
		}
		if _, ok := setOptions(w[1:])["pipefail"]; ok && !s.bash {
			s.report("bashism", "", c.Pos(), "sh has no pipefail where it is dash (Debian, Ubuntu): the script ends at this line", s.useBash())
		}
	case "curl", "wget", "http":
		s.fetch(c, w, used)
	case "[":
		if !s.bash && slices.Contains(w, "==") {
			s.report("bashism", "", c.Pos(), "[ ... == ... ] fails where sh is dash (Debian, Ubuntu)", "write = instead of ==, or "+s.useBash())
		}
	case "[[", "source", "declare", "typeset", "let", "shopt", "pushd", "popd", "mapfile", "readarray", "function":
		if !s.bash {
			s.report("bashism", "", c.Pos(), w[0]+" is bash's, and not there where sh is dash (Debian, Ubuntu)", s.useBash())
		}
	case "apt", "apt-get", "aptitude", "yum", "dnf", "microdnf", "zypper", "add-apt-repository", "pacman":
		if !answered {
			s.asks(c, w)
		}
	case "cloud-init":
		if len(w) > 1 && w[1] == "status" && (slices.Contains(w, "--wait") || slices.Contains(w, "-w")) {
			s.report("deadlock", "", c.Pos(), "cloud-init status --wait waits for cloud-init to end, which waits for this command", "remove it, or run it from a unit that is ordered after cloud-init.target")
		}
	case "systemctl", "service":
		s.systemctl(c, w)
	case "reboot", "poweroff", "halt", "shutdown", "init", "telinit":
		s.down(c, w)
	}
}

var touchesSecrets = lazyregexp.New(`(?i)passw|secret|token|api_?key|with-decryption|private_key`)

func (s *shellLint) xtrace(line, col int, src []byte) {
	severity, why := Info, "set -x writes every command to the console log"
	if touchesSecrets().Match(src) {
		severity, why = Warning, "set -x writes every command to the console log, and this script handles secrets"
	}
	line, col = s.where(line, col)
	s.addAt(problem{rule: "xtrace", severity: severity, line: line, col: col, message: why, fix: "remove it, or turn it off around what must not be seen"})
}

var imdsHost = lazyregexp.New(`169\.254\.169\.254|\[fd00:ec2::254\]|//instance-data/`)

func (s *shellLint) fetch(c *syntax.CallExpr, w []string, used bool) {
	all := strings.Join(w, "\n")
	if imdsHost().MatchString(all) {
		lower := strings.ToLower(all)
		// A word that is nothing but an unknown variable may be the header.
		unknown := slices.ContainsFunc(w[1:], func(a string) bool { return a == "$" })
		if !strings.Contains(lower, "x-aws-ec2-metadata-token") && !strings.Contains(lower, "/api/token") && !unknown {
			s.report("imds-v1", "", c.Pos(), "instance metadata is read without a token, which fails where IMDSv2 is required", "PUT to /latest/api/token first and send the token as -H \"X-aws-ec2-metadata-token: $TOKEN\"")
		}
		return
	}
	if w[0] != "curl" || hasFlag(w[1:], 'f') {
		return
	}
	saved := hasFlag(w[1:], 'o') || hasFlag(w[1:], 'O')
	for _, a := range w[1:] {
		if strings.HasPrefix(a, "--fail") || a == "--head" || a == "$" || a == "--write-out" || strings.HasPrefix(a, "-w") {
			return
		}
		saved = saved || strings.HasPrefix(a, "--output") || strings.HasPrefix(a, "--remote-name")
	}
	if i := slices.Index(w, "-o"); i >= 0 && i+1 < len(w) && w[i+1] == "/dev/null" {
		return
	}
	if hasFlag(w[1:], 'I') || !saved && !used {
		return
	}
	s.report("http-error-ignored", "", c.Pos(), "without -f curl succeeds on 404 or 500 and hands on the error page", "write curl -f, or --fail-with-body")
}

// asks finds package managers that would stop to ask.
func (s *shellLint) asks(c *syntax.CallExpr, w []string) {
	verbs := []string{"install", "upgrade", "update", "dist-upgrade", "full-upgrade", "remove", "purge", "autoremove", "reinstall", "localinstall", "groupinstall", "erase", "-S", "-Syu"}
	verb := ""
	for _, a := range w[1:] {
		if slices.Contains(verbs, a) {
			verb = a
			break
		}
		if a == "$" {
			return
		}
	}
	consent := hasFlag(w[1:], 'y')
	for _, a := range w[1:] {
		switch a {
		case "--yes", "--assume-yes", "--assumeyes", "-qq", "--non-interactive", "--noconfirm", "-n", "$", "--download-only", "--assumeno", "--dry-run", "-s":
			consent = true
		}
	}
	switch w[0] {
	case "apt", "apt-get", "aptitude":
		if verb == "update" {
			return
		}
	case "add-apt-repository":
		verb = "run"
	case "zypper":
		if verb == "" && (slices.Contains(w, "in") || slices.Contains(w, "up")) {
			verb = "install"
		}
	}
	if verb == "" || consent {
		return
	}
	s.report("interactive", "", c.Pos(), w[0]+" asks before it goes on, nobody answers, and nothing is installed", "write "+w[0]+" -y")
}

// cloudTargets are what ends only when cloud-init has ended, or what
// cloud-init's last stage is part of.
var cloudTargets = []string{"cloud-init.target", "cloud-final.service", "cloud-final", "cloud-config.service", "cloud-config", "cloud-init.service", "cloud-init-main.service", "multi-user.target", "graphical.target", "default.target"}

func (s *shellLint) systemctl(c *syntax.CallExpr, w []string) {
	if w[0] == "service" {
		if len(w) > 2 && (w[2] == "start" || w[2] == "restart") {
			w = []string{"systemctl", w[2], w[1]}
		} else {
			return
		}
	}
	if slices.Contains(w, "--no-block") {
		return
	}
	var words []string
	for _, a := range w[1:] {
		if !strings.HasPrefix(a, "-") {
			words = append(words, a)
		}
	}
	if len(words) == 0 {
		return
	}
	switch words[0] {
	case "is-system-running":
		if slices.Contains(w, "--wait") {
			s.report("deadlock", "", c.Pos(), "waits until the boot has ended, and the boot waits for this script", "remove it, or ask from a unit of its own")
		}
		return
	case "reboot", "poweroff", "halt":
		s.down(c, words)
		return
	case "start", "restart", "reload-or-restart", "isolate", "default":
	case "enable", "reenable":
		if !slices.Contains(w, "--now") {
			return
		}
	default:
		return
	}
	for _, unit := range words[1:] {
		name := unit
		if path.Ext(name) == "" {
			name += ".service"
		}
		switch {
		case slices.Contains(cloudTargets, unit), slices.Contains(cloudTargets, name):
			s.report("deadlock", "", c.Pos(), "starts "+unit+" and waits for it, and it waits for cloud-init, which waits for this script", "add --no-block")
		case s.units[name]:
			s.report("deadlock", "", c.Pos(), "starts "+unit+", which this payload orders after cloud-init's last stage, and waits for it from inside that stage", "add --no-block, or take After=cloud-final.service out of the unit")
		case s.boothook:
			s.report("deadlock", Warning, c.Pos(), "starts "+unit+" and waits for it before the boot has got to where most units can start", "add --no-block, or do it in a script or runcmd")
		}
	}
}

var afterCloud = lazyregexp.New(`(?m)^\s*(?:After|Requires|BindsTo|Requisite)\s*=.*\b(?:cloud-final\.service|cloud-init\.target)\b`)
var unitFile = lazyregexp.New(`/systemd/system/([A-Za-z0-9@._:-]+\.[a-z]+)`)

// waitingUnits finds unit files that the payload writes and that are ordered
// after cloud-init's end: the next line that names a path of a unit says which.
func waitingUnits(p *Payload) map[string]bool {
	out := make(map[string]bool)
	for _, part := range p.Parts {
		if !afterCloud().Match(part.Body) {
			continue
		}
		places := unitFile().FindAllSubmatchIndex(part.Body, -1)
		for _, m := range afterCloud().FindAllIndex(part.Body, -1) {
			name := ""
			for _, u := range places {
				if u[0] > m[0] {
					break
				}
				name = string(part.Body[u[2]:u[3]])
			}
			if name == "" && len(places) > 0 {
				name = string(part.Body[places[0][2]:places[0][3]])
			}
			if name != "" {
				out[name] = true
			}
		}
	}
	return out
}

func (s *shellLint) down(c *syntax.CallExpr, w []string) {
	switch w[0] {
	case "init", "telinit":
		if len(w) < 2 || w[1] != "0" && w[1] != "6" {
			return
		}
	case "shutdown":
		for _, a := range w[1:] {
			if a == "-c" || strings.HasPrefix(a, "+") && a != "+0" || strings.Contains(a, ":") || a == "$" {
				return
			}
		}
	}
	s.report("reboot", "", c.Pos(), w[0]+" takes the machine down while its bootstrap runs: what is left of it does not happen, or happens twice", "use cloud-config's power_state, which waits for cloud-init to end")
}

// setOptions reads the arguments of set.
func setOptions(args []string) map[string]bool {
	long := map[byte]string{'e': "errexit", 'x': "xtrace", 'u': "nounset", 'E': "errtrace", 'v': "verbose", 'T': "functrace", 'm': "monitor"}
	out := make(map[string]bool)
	for i := 0; i < len(args); i++ {
		a := args[i]
		if len(a) < 2 || a[0] != '-' && a[0] != '+' || a == "--" {
			break
		}
		on := a[0] == '-'
		for j := 1; j < len(a); j++ {
			if a[j] == 'o' {
				if i+1 < len(args) {
					i++
					out[args[i]] = on
				}
				continue
			}
			if name, ok := long[a[j]]; ok {
				out[name] = on
			}
		}
	}
	return out
}
