package bootstrap_test

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent/bootstrap"
	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/internal/strictyaml"
)

// boot is one boot as it leaves its traces in files and elsewhere.
type boot struct {
	t       *testing.T
	root    string
	version string
	payload []byte
	known   bool
	stages  [4]stage
	result  bool
	source  string
	log     strings.Builder
	late    bool
	ev      bootstrap.Evidence // what is not in files
	units   []bootstrap.Unit
	opts    bootstrap.Options
}

type stage struct {
	begun, ended bool
	errors       []string
	recoverable  map[string][]string
}

var modes = [4]string{"init-local", "init", "modules-config", "modules-final"}

const (
	local, network, modulesConfig, modulesFinal = 0, 1, 2, 3
	t0                                          = 1795313221.5 // a time of the log below
)

func newBoot(t *testing.T, version, payload string) *boot {
	b := &boot{t: t, root: t.TempDir(), version: version, payload: []byte(payload), known: true, result: true, source: "DataSourceEc2Local"}
	for i := range b.stages {
		b.stages[i] = stage{begun: true, ended: true}
	}
	b.opts.Deadline = 10 * time.Minute
	b.write("usr/bin/cloud-init", "")
	for _, m := range modes {
		if m == "init-local" {
			fmt.Fprintf(&b.log, "2026-11-22 01:00:00,000 - util.py[DEBUG]: Cloud-init v. 1.0 running 'init-local' at an earlier boot. Up 1 seconds.\n"+
				"2026-11-22 01:00:00,100 - x.py[WARNING]: of an earlier boot\n")
		}
		b.line("util.py", "DEBUG", fmt.Sprintf("Cloud-init v. %s running '%s' at Sun, 22 Nov 2026 02:07:01 +0000. Up 3.21 seconds.", version, strings.Replace(m, "-config", ":config", 1)))
	}
	name := "cloud-init.service"
	if b.since(24, 3) {
		name = "cloud-init-network.service"
		b.unit("cloud-init-main.service", "active")
	}
	for _, u := range []string{"cloud-init-local.service", name, "cloud-config.service", "cloud-final.service"} {
		b.unit(u, "active")
	}
	return b
}

func (b *boot) since(major, minor int) bool {
	f := strings.Split(b.version, ".")
	x, _ := strconv.Atoi(f[0])
	y, _ := strconv.Atoi(f[1])
	return x > major || x == major && y >= minor
}

func (b *boot) write(path, text string) {
	b.t.Helper()
	path = filepath.Join(b.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *boot) line(module, level, text string) {
	fmt.Fprintf(&b.log, "2026-11-22 02:07:01,500 - %s[%s]: %s\n", module, level, text)
}

func (b *boot) unit(name, active string) *bootstrap.Unit {
	for i := range b.units {
		if b.units[i].Name == name {
			b.units[i].Active = active
			return &b.units[i]
		}
	}
	b.units = append(b.units, bootstrap.Unit{Name: name, Load: "loaded", Active: active})
	return &b.units[len(b.units)-1]
}

// run logs that cloud-init executed a script.
func (b *boot) run(name string) *boot {
	b.line("subp.py", "DEBUG", "Running command ['/var/lib/cloud/instance/scripts/"+name+"'] with allowed return codes [0] (shell=False, capture=False)")
	return b
}

// failed logs that a script ended badly; exit is "-" where it did not start.
func (b *boot) failed(name, exit, reason string) *boot {
	b.run(name)
	b.line("subp.py", "DEBUG", "Unexpected error while running command.\nCommand: ['/var/lib/cloud/instance/scripts/"+name+"']\nExit code: "+exit+"\nReason: "+reason+"\nStdout: -\nStderr: -")
	text := fmt.Sprintf("('scripts_user', RuntimeError('Runparts: 1 failures (%s) in 1 attempted commands'))", name)
	b.stages[modulesFinal].errors = append(b.stages[modulesFinal].errors, text)
	b.line("cc_scripts_user.py", "WARNING", "Failed to run module scripts_user (scripts in /var/lib/cloud/instance/scripts)")
	b.unit("cloud-final.service", "failed").Result = "exit-code"
	return b
}

// trap records a failure as the library of the image does.
func (b *boot) trap(file string, line, exit int, command string, errexit, background bool) *boot {
	enc := base64.StdEncoding.EncodeToString
	bit := map[bool]int{true: 1}
	rec := fmt.Sprintf("1b\t1795313221\t812\t%d\t%d\t0\t%d\t%d\t%s\t%s\n", exit, line, bit[errexit], bit[background],
		enc([]byte("/var/lib/cloud/instance/scripts/"+file)), enc([]byte(command)))
	path := filepath.Join(b.root, "run/lecafe/trap", file+".812")
	old, _ := os.ReadFile(path)
	b.write("run/lecafe/trap/"+file+".812", string(old)+rec)
	return b
}

func (b *boot) output(text string) *boot {
	b.write("var/log/cloud-init-output.log", "Cloud-init v. "+b.version+" running\n"+text)
	return b
}

// hangs stops the boot in a stage, and puts the clock behind the deadline.
func (b *boot) hangs(in int) *boot {
	for i := in; i < len(b.stages); i++ {
		b.stages[i] = stage{begun: i == in}
	}
	b.result, b.late = false, true
	return b
}

func (b *boot) process(unit string, pid, parent int, argv ...string) *boot {
	procs := filepath.Join("sys/fs/cgroup/system.slice", unit, "cgroup.procs")
	old, _ := os.ReadFile(filepath.Join(b.root, procs))
	b.write(procs, string(old)+strconv.Itoa(pid)+"\n")
	b.write(fmt.Sprintf("proc/%d/stat", pid), fmt.Sprintf("%d (a (b) c) S %d 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 %d 0 0\n", pid, parent, 1000+pid))
	b.write(fmt.Sprintf("proc/%d/cmdline", pid), strings.Join(argv, "\x00")+"\x00")
	return b
}

func (b *boot) trouble(stage report.StageName, code report.Code, settled bool, severity report.Severity) *boot {
	b.ev.Troubles = append(b.ev.Troubles, bootstrap.Trouble{Settled: settled, Cause: report.Cause{Stage: stage, Code: code, Severity: severity, Message: "M."}})
	return b
}

func (b *boot) judge() bootstrap.Judgement {
	v1 := map[string]any{"datasource": b.source, "stage": nil}
	for i, m := range modes {
		s := map[string]any{"errors": b.stages[i].errors, "start": nil, "finished": nil}
		if b.stages[i].errors == nil {
			s["errors"] = []string{}
		}
		start := t0 + float64(i)
		if b.since(24, 4) {
			start = 3.5 + float64(i) // seconds of uptime
		}
		if b.stages[i].begun {
			s["start"] = start
		}
		if b.stages[i].ended {
			s["finished"] = start + 0.5
		}
		if b.since(23, 4) {
			s["recoverable_errors"] = b.stages[i].recoverable
		}
		v1[m] = s
	}
	doc, err := json.Marshal(map[string]any{"v1": v1})
	if err != nil {
		b.t.Fatal(err)
	}
	b.write("run/cloud-init/status.json", string(doc))
	if b.result {
		b.write("run/cloud-init/result.json", `{"v1":{"datasource":"`+b.source+`","errors":[]}}`)
	}
	log := b.log.String()
	if b.version == "22.2.2" {
		// Amazon Linux 2023 logs no DEBUG.
		var kept []string
		for _, l := range strings.Split(log, "\n") {
			if !strings.Contains(l, "[DEBUG]") || strings.Contains(l, "Cloud-init v.") {
				kept = append(kept, strings.Replace(l, "[DEBUG]", "[INFO]", 1))
			}
		}
		log = strings.Join(kept, "\n")
	}
	b.write("var/log/cloud-init.log", log)
	clock := bootstrap.Clock{At: time.Unix(1795313251, 0), Uptime: time.Minute, Kernel: time.Minute}
	if b.late {
		clock.Uptime = b.opts.Deadline + time.Second
		clock.Kernel = clock.Uptime
	}
	ev := bootstrap.Collect(b.root, clock, b.units)
	if b.known {
		ev.Payload = bootstrap.ReadPayload(b.payload)
	}
	ev.Troubles, ev.Checks, ev.Disks, ev.Previous, ev.Settings = b.ev.Troubles, b.ev.Checks, b.ev.Disks, b.ev.Previous, b.ev.Settings
	return bootstrap.Judge(ev, b.opts)
}

const good = "#!/bin/bash\nset -e\necho espresso > /var/lib/cup\n"

func multi(parts ...string) string {
	var b strings.Builder
	b.WriteString("Content-Type: multipart/mixed; boundary=\"XX\"\nMIME-Version: 1.0\n\n")
	for i, p := range parts {
		fmt.Fprintf(&b, "--XX\nContent-Type: text/x-shellscript; charset=\"utf-8\"\nContent-Disposition: attachment; filename=\"part-%c.sh\"\n\n%s\n", 'a'+i, p)
	}
	b.WriteString("--XX--\n")
	return b.String()
}

// cases play what happened. What must be said of each is in verdicts.tsv.
var cases = map[string]func(t *testing.T) *boot{
	"healthy-script-22.4":   func(t *testing.T) *boot { return newBoot(t, "22.4.2", good).run("part-001") },
	"healthy-script-25.1":   func(t *testing.T) *boot { return newBoot(t, "25.1.4", good).run("part-001") },
	"healthy-script-al2023": func(t *testing.T) *boot { return newBoot(t, "22.2.2", good) },
	"healthy-cloud-config": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#cloud-config\npackages: [jq]\nwrite_files:\n  - {path: /x, content: y}\nruncmd:\n  - [ls, /]\n").run("runcmd")
	},
	"healthy-no-user-data": func(t *testing.T) *boot { return newBoot(t, "22.4.2", "") },
	"healthy-deprecation": func(t *testing.T) *boot {
		b := newBoot(t, "23.4.4", "#cloud-config\nruncmd:\n  - [ls, /]\n").run("runcmd")
		b.stages[network].recoverable = map[string][]string{"DEPRECATED": {"The key x is deprecated in 22.2"}, "WARNING": {"something"}}
		b.line("schema.py", "WARNING", "Deprecated cloud-config provided: x is deprecated")
		return b
	},
	"healthy-handled": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#!/bin/bash\nls /nonexistent || true\nif ! curl -f http://x; then :; fi\n").run("part-001").output("ls: cannot access\n")
	},
	"script-exit": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#!/bin/bash\nset -e\ncurl -f http://x/\necho never\n").failed("part-001", "22", "-").
			trap("part-001", 3, 22, "curl -f http://x/", true, false).output("curl: (22) The requested URL returned error: 404\n")
	},
	"script-exit-no-trap": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#!/usr/bin/python3\nraise SystemExit(3)\n").failed("part-001", "3", "-")
	},
	"script-exit-1-midway": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#!/bin/bash\necho a\n# stop here\nexit 1\necho never\n").failed("part-001", "1", "-")
	},
	"script-exit-25.1": func(t *testing.T) *boot {
		return newBoot(t, "25.1.4", "#!/bin/bash\nset -e\ncurl -f http://x/\n").failed("part-001", "22", "-").trap("part-001", 3, 22, "curl -f http://x/", true, false)
	},
	"script-exit-24.1-ubuntu": func(t *testing.T) *boot {
		b := newBoot(t, "24.1.3", "#!/bin/bash\nset -e\ncurl -f http://x/\n").failed("part-001", "22", "-").trap("part-001", 3, 22, "curl -f http://x/", true, false)
		b.stages[modulesFinal].recoverable = map[string][]string{"WARNING": {"Failed to run module scripts_user", "Running module scripts_user failed"}}
		b.unit("cloud-final.service", "active")
		return b
	},
	"script-unbound": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#!/bin/bash\nset -eu\necho $missing\n").failed("part-001", "1", "-").
			output("/var/lib/cloud/instance/scripts/part-001: line 3: missing: unbound variable\n")
	},
	"script-unbound-25.1": func(t *testing.T) *boot {
		return newBoot(t, "25.1.4", "#!/bin/bash\nset -eu\necho $missing\n").failed("part-001", "1", "-").
			output("/var/lib/cloud/instance/scripts/part-001: line 3: missing: unbound variable\n" + strings.Repeat("Generating public/private key pair.\n", 60))
	},
	"boothook-fails": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "#cloud-boothook\n#!/bin/sh\nls /nonexistent\n")
		b.line("util.py", "WARNING", "Boothooks script /var/lib/cloud/instance/boothooks/part-001 execution error")
		return b
	},
	"placeholder-fails": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#!/bin/bash\nset -e\necho ${var.environment}\n").failed("part-001", "1", "-")
	},
	"script-syntax": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#!/bin/bash\necho a\nif true; then\n  echo b\n").failed("part-001", "2", "-").
			output("a\n/var/lib/cloud/instance/scripts/part-001: line 5: syntax error: unexpected end of file\n")
	},
	"script-interpreter": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#!/usr/bin/fish\necho a\n").failed("part-001", "-", "[Errno 2] No such file or directory: b'/var/lib/cloud/instance/scripts/part-001'")
	},
	"script-killed": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#!/bin/bash\nset -e\ntail /dev/zero\n").failed("part-001", "-9", "-")
	},
	"script-mid-failure": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#!/bin/bash\necho a\nls /nonexistent\necho b\n").run("part-001").trap("part-001", 3, 2, "ls /nonexistent", false, false)
	},
	"script-background": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#!/bin/bash\nset -e\necho a\n(sleep 1; ls /nonexistent; echo b) &\necho c\n").run("part-001").trap("part-001", 4, 2, "ls /nonexistent", false, true)
	},
	"second-part-fails": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", multi("#!/bin/bash\nset -e\necho a", "#!/bin/bash\nfalse")).run("part-a.sh").failed("part-b.sh", "1", "-").trap("part-b.sh", 2, 1, "false", false, false)
	},
	"leading-blank": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "\n#!/bin/bash\necho a\n").failed("part-001", "-", "[Errno 8] Exec format error: b'/var/lib/cloud/instance/scripts/part-001'")
	},
	"no-header": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "echo a\nls /\n")
		b.line("__init__.py", "WARNING", "Unhandled non-multipart (text/x-not-multipart) userdata: 'b'echo a'...'")
		return b
	},
	"no-header-25.1": func(t *testing.T) *boot {
		b := newBoot(t, "25.1.4", "echo a\nls /\n")
		b.stages[network].recoverable = map[string][]string{"WARNING": {"Unhandled non-multipart (text/x-not-multipart) userdata: 'echo a...'"}}
		return b
	},
	"double-base64": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", base64.StdEncoding.EncodeToString([]byte(good+strings.Repeat("echo more\n", 10))))
	},
	"invalid-yaml": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "#cloud-config\npackages:\n  - jq\n runcmd: [ls]\n")
		b.line("util.py", "WARNING", "Failed loading yaml blob. Invalid format at line 4 column 2")
		return b
	},
	"invalid-mime": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "Content-Type: multipart/mixed; boundary=\"XX\"\nMIME-Version: 1.0\n\n--YY\nContent-Type: text/x-shellscript\n\n#!/bin/sh\n--YY--\n")
	},
	"unknown-key": func(t *testing.T) *boot { return newBoot(t, "22.4.2", "#cloud-config\nruncmds:\n  - [ls, /]\n") },
	"wrong-type": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "#cloud-config\nruncmd: ls /\n")
		b.stages[modulesConfig].errors = []string{"('runcmd', TypeError('Input to shellify was type \\'str\\'. Expected list or tuple.'))"}
		b.unit("cloud-config.service", "failed").Result = "exit-code"
		return b
	},
	"placeholder": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#!/bin/bash\nset -e\ninstall-app {{ app_version }}\n").failed("part-001", "127", "-").trap("part-001", 3, 127, "install-app {{ app_version }}", true, false)
	},
	"runcmd-last-fails": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#cloud-config\nruncmd:\n  - [ls, /]\n  - [ls, /nonexistent]\n").failed("runcmd", "2", "-").trap("runcmd", 3, 2, "'ls' '/nonexistent'", false, false)
	},
	"runcmd-middle-fails": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#cloud-config\nruncmd:\n  - [ls, /]\n  - [ls, /nonexistent]\n  - [ls, /]\n").run("runcmd").trap("runcmd", 3, 2, "'ls' '/nonexistent'", false, false)
	},
	"package-missing": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "#cloud-config\npackages: [nginxx]\n")
		b.stages[modulesConfig].errors = []string{"('package_update_upgrade_install', ProcessExecutionError(\"Unexpected error while running command.\\nCommand: ['eatmydata', 'apt-get', 'install', 'nginxx']\\nExit code: 100\"))"}
		return b.output("E: Unable to locate package nginxx\n")
	},
	"write-files-bad-base64": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "#cloud-config\nwrite_files:\n  - {path: /x, encoding: b64, content: \"@@@\"}\n")
		b.stages[network].errors = []string{"('write-files', ValueError('bad base64'))"}
		b.unit("cloud-init.service", "failed").Result = "exit-code"
		return b
	},
	"module-error-exit": func(t *testing.T) *boot {
		b := newBoot(t, "24.1.3", "#cloud-config\nntp: {enabled: true}\n")
		b.stages[modulesConfig].errors = []string{"('ntp', RuntimeError('no client'))"}
		return b
	},
	"warning-alone": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", good).run("part-001")
		b.line("cc_x.py", "WARNING", "something odd")
		return b
	},
	"warning-strict": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", good).run("part-001")
		b.line("cc_x.py", "WARNING", "something odd")
		b.opts.Severity = map[string]string{"cloud_init_warning": "degraded"}
		return b
	},
	"datasource-none": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", good)
		b.source = "DataSourceNone"
		return b
	},
	"cloud-init-disabled": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", good)
		b.stages, b.result = [4]stage{}, false
		b.write("etc/cloud/cloud-init.disabled", "")
		return b
	},
	"part-not-run": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", good)
		b.line("helpers.py", "DEBUG", "config-scripts-user already ran (freq=once-per-instance)")
		return b
	},
	"hang": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "#!/bin/bash\nsleep infinity\n").run("part-001").hangs(modulesFinal)
		b.unit("cloud-final.service", "activating")
		return b.process("cloud-final.service", 100, 1, "/usr/bin/python3", "/usr/bin/cloud-init", "modules", "--mode=final").
			process("cloud-final.service", 101, 100, "/bin/sh", "-c", "tee -a /var/log/cloud-init-output.log").
			process("cloud-final.service", 102, 101, "tee", "-a", "/var/log/cloud-init-output.log").
			process("cloud-final.service", 103, 100, "/bin/bash", "/var/lib/cloud/instance/scripts/part-001").
			process("cloud-final.service", 104, 103, "sleep", "infinity")
	},
	"hang-25.1": func(t *testing.T) *boot {
		b := newBoot(t, "25.1.4", "#!/bin/bash\nsleep infinity\n").run("part-001").hangs(modulesFinal)
		b.unit("cloud-final.service", "activating")
		return b.process("cloud-init-main.service", 100, 1, "/usr/bin/python3", "/usr/bin/cloud-init", "--all-stages").
			process("cloud-init-main.service", 103, 100, "/bin/bash", "/var/lib/cloud/instance/scripts/part-001").
			process("cloud-init-main.service", 104, 103, "sleep", "infinity").
			process("cloud-final.service", 200, 1, "sh", "-c", "echo \"start\" | nc -U /run/cloud-init/share/final.sock | sh").
			process("cloud-final.service", 201, 200, "nc", "-U", "/run/cloud-init/share/final.sock")
	},
	"hang-boothook": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "#cloud-boothook\n#!/bin/sh\nsleep infinity\n").hangs(network)
		b.unit("cloud-init.service", "activating")
		return b.process("cloud-init.service", 103, 1, "/bin/sh", "/var/lib/cloud/instance/boothooks/part-001").process("cloud-init.service", 104, 103, "sleep", "infinity")
	},
	"imds-unreachable": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "")
		b.known, b.source, b.late = false, "DataSourceNone", true
		return b.trouble(report.StageIdentity, report.CodeIMDSUnreachable, false, "")
	},
	"role-missing": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", good).run("part-001").trouble(report.StageIdentity, report.CodeRoleMissing, true, "")
	},
	"role-missing-not-needed": func(t *testing.T) *boot { return newBoot(t, "22.4.2", good).run("part-001") },
	"credentials-missing": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", good).run("part-001").trouble(report.StageIdentity, report.CodeCredentialsMissing, false, "")
		b.late = true
		return b
	},
	"credentials-rejected": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", good).run("part-001").trouble(report.StageIdentity, report.CodeCredentialsRejected, true, "")
	},
	"clock-skew": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", good).run("part-001").trouble(report.StageIdentity, report.CodeClockSkew, true, "")
	},
	"network-unreachable": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", good).run("part-001").trouble(report.StageIdentity, report.CodeNetworkUnreachable, false, "").trouble(report.StageConfig, report.CodeConfigUnreachable, false, "")
		b.late = true
		return b
	},
	"config-missing": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", good).run("part-001").trouble(report.StageConfig, report.CodeConfigMissing, true, "")
	},
	"config-denied": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", good).run("part-001").trouble(report.StageConfig, report.CodeConfigDenied, true, "")
	},
	"config-optional": func(t *testing.T) *boot { return newBoot(t, "22.4.2", good).run("part-001") },
	"config-unreachable": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", good).run("part-001").trouble(report.StageConfig, report.CodeConfigUnreachable, false, "")
		b.late = true
		return b
	},
	"config-cached": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", good).run("part-001").trouble(report.StageConfig, report.CodeConfigUnreachable, true, report.SeverityDegraded)
	},
	"config-invalid": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", good).run("part-001").trouble(report.StageConfig, report.CodeConfigInvalid, true, "")
	},
	"queue-missing": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", good).run("part-001").trouble(report.StageOrders, report.CodeQueueMissing, true, "")
	},
	"queue-denied": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", good).run("part-001").trouble(report.StageOrders, report.CodeQueueDenied, true, "")
	},
	"unit-failed": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", good).run("part-001")
		u := b.unit("other.service", "failed")
		u.Result, u.Code = "exit-code", 1
		return b
	},
	"app-unit-failed": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", good).run("part-001")
		b.unit("app.service", "failed").Result = "exit-code"
		b.ev.Checks = []bootstrap.Check{{Name: "unit app.service", Unit: "app.service", Final: true, Why: "it failed (exit-code 1)"}}
		return b
	},
	"app-not-ready": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", good).run("part-001")
		b.ev.Checks = []bootstrap.Check{{Name: "GET http://127.0.0.1:8080/", Why: "connection refused"}}
		b.late = true
		return b
	},
	"disk-full": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "#!/bin/bash\nset -e\ncp /big /var/lib/\n").failed("part-001", "1", "-").trap("part-001", 3, 1, "cp /big /var/lib/", true, false).
			output("cp: error writing '/var/lib/big': No space left on device\n")
		b.ev.Disks = []bootstrap.Disk{{Path: "/", Size: 1 << 30, Free: 0}}
		return b
	},
	"disk-full-alone": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", good).run("part-001")
		b.ev.Disks = []bootstrap.Disk{{Path: "/", Size: 1 << 30, Free: 1 << 29}, {Path: "/opt", Size: 1 << 30, Free: 1 << 29, Inodes: 1000}}
		return b
	},
	"interrupted": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", good)
		b.line("helpers.py", "DEBUG", "config-scripts-user already ran (freq=once-per-instance)")
		b.ev.Previous = &bootstrap.Memory{InstanceID: "i-1", BootID: "a", Stage: report.StageCloudFinal}
		return b
	},
	"interrupted-config": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", good)
		b.line("helpers.py", "DEBUG", "config-scripts-user already ran (freq=once-per-instance)")
		b.ev.Previous = &bootstrap.Memory{InstanceID: "i-1", BootID: "a", Stage: report.StageConfig}
		return b
	},
	"severity-raised": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "#!/bin/bash\necho a\nls /nonexistent\necho b\n").run("part-001").trap("part-001", 3, 2, "ls /nonexistent", false, false)
		b.opts.Severity = map[string]string{"script_command_failed": "failure"}
		return b
	},
	"severity-ignored": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "#!/bin/bash\necho a\nls /nonexistent\necho b\n").run("part-001").trap("part-001", 3, 2, "ls /nonexistent", false, false)
		b.opts.Severity = map[string]string{"script_command_failed": "ignore"}
		return b
	},
	"severity-script-exit": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "#!/bin/sh\nexit 4\n").failed("part-001", "4", "-")
		b.opts.Severity = map[string]string{"script_exit": "degraded"}
		return b
	},
	"severity-script-exit-25.1": func(t *testing.T) *boot {
		b := newBoot(t, "25.1.4", "#!/bin/sh\nexit 4\n").failed("part-001", "4", "-")
		b.unit("cloud-init-main.service", "failed").Result = "exit-code"
		b.opts.Severity = map[string]string{"script_exit": "degraded"}
		return b
	},
	"severity-script-exit-ignored": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "#!/bin/sh\nexit 4\n").failed("part-001", "4", "-")
		b.opts.Severity = map[string]string{"script_exit": "ignore"}
		return b
	},
	"severity-module": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "#cloud-config\nntp: {enabled: true}\n")
		b.stages[modulesConfig].errors = []string{"('ntp', RuntimeError('no client'))"}
		b.unit("cloud-config.service", "failed").Result = "exit-code"
		b.opts.Severity = map[string]string{"cloud_init_module_failed": "degraded"}
		return b
	},
	"severity-script-exit-and-killed": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "#!/bin/sh\nexit 4\n").failed("part-001", "4", "-")
		b.unit("cloud-final.service", "failed").Result = "oom-kill"
		b.opts.Severity = map[string]string{"script_exit": "degraded"}
		return b
	},
	"unit-failed-unexplained": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", good).run("part-001")
		b.unit("cloud-config.service", "failed").Result = "exit-code"
		return b
	},
	"key-unread": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "#cloud-config\nruncmd:\n  - [ls, /]\nyum_repos:\n  extras: {baseurl: http://x/}\n").run("runcmd")
		b.write("etc/cloud/cloud.cfg", "cloud_config_modules:\n - runcmd\n - [yum-add-repo, always]\ncloud_final_modules:\n - scripts-user\n")
		b.write("etc/cloud/cloud.cfg.d/20_ours.cfg", "cloud_config_modules: [runcmd]\n")
		return b
	},
	"key-read": func(t *testing.T) *boot {
		b := newBoot(t, "25.1.4", "#cloud-config\nruncmd:\n  - [ls, /]\nubuntu_advantage: {}\nca-certs: {}\nlandscape:\npackage_upgrade: false\nyum_repos:\n  extras: {baseurl: http://x/}\n").run("runcmd")
		b.write("etc/cloud/cloud.cfg", "cloud_config_modules:\n - runcmd\n - ca_certs\n - ubuntu_pro\n - [yum-add-repo, always]\n")
		return b
	},
	"key-read-modules-of-its-own": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "#cloud-config\ncloud_config_modules: [yum-add-repo]\nyum_repos:\n  extras: {baseurl: http://x/}\n")
		b.write("etc/cloud/cloud.cfg", "cloud_config_modules:\n - runcmd\n")
		return b
	},
	"key-twice": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#cloud-config\npackages: [jq]\nruncmd:\n  - [ls, /]\npackages: [curl]\n").run("runcmd")
	},
	"module-command": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "#cloud-config\nbootcmd:\n  - mkfs /dev/vdb\n")
		b.stages[network].errors = []string{`('bootcmd', ProcessExecutionError("Unexpected error while running command.\nCommand: ['/bin/sh', '/run/x.sh']\nExit code: 8\nReason: -\nStdout: -\nStderr: -"))`}
		b.unit("cloud-init.service", "failed").Result = "exit-code"
		return b
	},
	"sh-source-missing": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#!/bin/sh\n\n. /etc/no/such\necho $A\n").failed("part-001", "2", "-").
			output("/var/lib/cloud/instance/scripts/part-001: 3: .: cannot open /etc/no/such: No such file\n")
	},
	"sh-command-missing": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#!/bin/sh\nyum -y install x\nexpr 1\nsetenforce 0\n").failed("part-001", "127", "-").
			output("/var/lib/cloud/instance/scripts/part-001: 2: yum: not found\n/var/lib/cloud/instance/scripts/part-001: 4: setenforce: not found\n")
	},
	"sh-last": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#!/bin/sh\nyum -y install x\nls /\ngrep x /y\n").failed("part-001", "1", "-").
			output("/var/lib/cloud/instance/scripts/part-001: 2: yum: not found\n")
	},
	"sh-errexit": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#!/bin/sh\nset -e\ngrep x /y\ngrep x /z\n").failed("part-001", "1", "-")
	},
	"sh-variable-exit": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#!/bin/sh\ngrep x /y || exit $?\ngrep x /z\n").failed("part-001", "1", "-")
	},
	"bash-last-list": func(t *testing.T) *boot {
		return newBoot(t, "22.4.2", "#!/bin/bash\nservice docker stop\n[ -f /etc/init/docker.conf ] && echo manual\n").failed("part-001", "1", "-").
			trap("part-001", 2, 5, "service docker stop", false, false)
	},
	"settings-invalid": func(t *testing.T) *boot {
		b := newBoot(t, "22.4.2", "#!/bin/bash\nset -e\necho a\n"+settings.UserDataBegin+"\nreprot: {}\n"+settings.UserDataEnd+"\n").run("part-001")
		src, ok, err := settings.SourceFromUserData(b.payload)
		if !ok || err != nil {
			t.Fatal(ok, err)
		}
		_, err = settings.Decode(src)
		b.ev.Settings, _ = err.(strictyaml.Problems)
		return b
	},
}

func TestVerdicts(t *testing.T) {
	table, err := os.ReadFile("testdata/verdicts.tsv")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(table)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 6 {
			t.Fatalf("bad row %q", line)
		}
		name := f[0]
		seen[name] = true
		play, ok := cases[name]
		if !ok {
			t.Errorf("%s is not played", name)
			continue
		}
		t.Run(name, func(t *testing.T) {
			j := play(t).judge()
			got := []string{string(j.Verdict), "-", "-", "-"}
			if len(j.Causes) > 0 {
				c := j.Causes[0]
				got[1], got[2] = string(c.Stage), string(c.Code)
				if c.Line > 0 {
					got[3] = strconv.Itoa(c.Line)
				}
			}
			if strings.Join(got, " ") != strings.Join(f[1:5], " ") {
				t.Errorf("got %v, want %v\n%s\n%+v", got, f[1:5], j.Summary, j.Causes)
			}
			if !j.Done {
				t.Error("not done")
			}
			if j.Summary == "" {
				t.Error("no summary")
			}
		})
	}
	for name := range cases {
		if !seen[name] {
			t.Errorf("%s is not in the table", name)
		}
	}
}

func TestBesideTheFirstCause(t *testing.T) {
	j := cases["disk-full"](t).judge()
	if len(j.Causes) != 2 || j.Causes[1].Code != report.CodeDiskFull {
		t.Errorf("disk-full: %+v", j.Causes)
	}
	c := cases["script-exit"](t).judge().Causes
	if len(c) != 1 || *c[0].ExitCode != 22 || c[0].Command != "curl -f http://x/" || c[0].File != "part-001" || len(c[0].Output) == 0 {
		t.Errorf("script-exit: %+v", c)
	}
	c = cases["hang"](t).judge().Causes
	if c[0].Command != "sleep infinity" || c[0].File != "part-001" {
		t.Errorf("hang: %+v", c[0])
	}
	c = cases["hang-25.1"](t).judge().Causes
	if c[0].Command != "sleep infinity" || c[0].Unit != "cloud-init-main.service" {
		t.Errorf("hang-25.1: %+v", c[0])
	}
	c = cases["hang-boothook"](t).judge().Causes
	if c[0].Command != "sleep infinity" || c[0].File != "part-001" {
		t.Errorf("hang-boothook: %+v", c[0])
	}
	c = cases["module-command"](t).judge().Causes
	if len(c) != 1 || c[0].ExitCode == nil || *c[0].ExitCode != 8 || c[0].Command != "['/bin/sh', '/run/x.sh']" {
		t.Errorf("module-command: %+v", c)
	}
	c = cases["script-killed"](t).judge().Causes
	if c[0].Signal != "SIGKILL" || c[0].ExitCode != nil {
		t.Errorf("script-killed: %+v", c[0])
	}
}

// TestNotBeforeTheEnd pins that nothing is judged while something is open.
func TestNotBeforeTheEnd(t *testing.T) {
	for name, change := range map[string]func(*boot){
		"a stage runs":             func(b *boot) { b.hangs(modulesFinal); b.late = false },
		"the last unit still is":   func(b *boot) { b.unit("cloud-final.service", "activating") },
		"user data is not read":    func(b *boot) { b.known = false },
		"a trouble is open":        func(b *boot) { b.trouble(report.StageConfig, report.CodeConfigUnreachable, false, "") },
		"a check does not hold":    func(b *boot) { b.ev.Checks = []bootstrap.Check{{Name: "x"}} },
		"cloud-init has not begun": func(b *boot) { b.stages, b.result = [4]stage{}, false },
	} {
		b := newBoot(t, "22.4.2", good).run("part-001")
		change(b)
		if j := b.judge(); j.Done {
			t.Errorf("%s, and it is judged %s: %s", name, j.Verdict, j.Summary)
		}
	}
}

func TestCloudInitConfirmsThatThereIsNoMetadata(t *testing.T) {
	b := newBoot(t, "22.4.2", "").trouble(report.StageIdentity, report.CodeIMDSUnreachable, false, "")
	b.known, b.source = false, "DataSourceNone"
	j := b.judge()
	if !j.Done || j.Verdict != report.Failure || len(j.Causes) != 2 || j.Causes[0].Code != report.CodeIMDSUnreachable || j.Causes[1].Code != report.CodeDatasourceNone {
		t.Errorf("%t %s %+v", j.Done, j.Verdict, j.Causes)
	}
}

func TestTimeline(t *testing.T) {
	for _, version := range []string{"22.4.2", "25.1.4"} {
		j := newBoot(t, version, good).run("part-001").judge()
		if len(j.Stages) != 4 {
			t.Fatalf("%s: %+v", version, j.Stages)
		}
		for i, s := range j.Stages {
			if s.Status != "success" || s.StartedAt == nil || s.FinishedAt == nil || s.FinishedAt.Sub(*s.StartedAt) != 500*time.Millisecond {
				t.Errorf("%s: stage %d: %+v", version, i, s)
			}
		}
		if y := j.Stages[0].StartedAt.Year(); y != 2026 {
			t.Errorf("%s: the first stage started in %d", version, y)
		}
	}
}

// versions of cloud-init that distributions ship or shipped, over every change
// of what it leaves behind: recoverable_errors from 23.4, one process for all
// stages from 24.3, times since boot from 24.4, no DEBUG in Amazon Linux 2023's
// log.
var versions = []string{"22.2.2", "22.3.4", "22.4.2", "23.1.2", "23.2.2", "23.3.3", "23.4.4", "24.1.3", "24.2", "24.3.1", "24.4.1", "25.1.4", "25.2", "25.3"}

// TestEveryVersion pins that the verdict does not depend on the version.
func TestEveryVersion(t *testing.T) {
	for _, v := range versions {
		recoverable := func(b *boot, level, text string) {
			if b.since(23, 4) {
				b.stages[network].recoverable = map[string][]string{level: {text}}
			}
		}
		for name, c := range map[string]struct {
			play    func() *boot
			verdict report.Verdict
			code    report.Code
			line    int
		}{
			"healthy": {func() *boot { return newBoot(t, v, good).run("part-001") }, report.Success, "", 0},
			"script": {func() *boot {
				return newBoot(t, v, "#!/bin/bash\nset -e\ncurl -f http://x/\n").failed("part-001", "22", "-").trap("part-001", 3, 22, "curl -f http://x/", true, false)
			}, report.Failure, report.CodeScriptExit, 3},
			"mid-script": {func() *boot {
				return newBoot(t, v, "#!/bin/bash\nfalse\ntrue\n").run("part-001").trap("part-001", 2, 1, "false", false, false)
			}, report.Degraded, report.CodeCommandFailed, 2},
			"module": {func() *boot {
				b := newBoot(t, v, "#cloud-config\nntp: {enabled: true}\n")
				b.stages[modulesConfig].errors = []string{"('ntp', RuntimeError('no client'))"}
				b.unit("cloud-config.service", "failed").Result = "exit-code"
				return b
			}, report.Failure, report.CodeModuleFailed, 0},
			"no header": {func() *boot {
				b := newBoot(t, v, "echo a\n")
				b.line("__init__.py", "WARNING", "Unhandled non-multipart (text/x-not-multipart) userdata: 'b'echo a'...'")
				recoverable(b, "WARNING", "Unhandled non-multipart (text/x-not-multipart) userdata: 'echo a...'")
				return b
			}, report.Failure, report.CodeUserDataNoHeader, 1},
			"deprecated": {func() *boot {
				b := newBoot(t, v, "#cloud-config\nruncmd:\n  - [ls, /]\n").run("runcmd")
				recoverable(b, "DEPRECATED", "x is deprecated")
				return b
			}, report.Success, "", 0},
			"no metadata": {func() *boot {
				b := newBoot(t, v, good)
				b.source = "DataSourceNone"
				return b
			}, report.Failure, report.CodeDatasourceNone, 0},
			"hang": {func() *boot {
				b := newBoot(t, v, "#!/bin/bash\nsleep infinity\n").run("part-001").hangs(modulesFinal)
				b.unit("cloud-final.service", "activating")
				unit := "cloud-final.service"
				if b.since(24, 3) {
					unit = "cloud-init-main.service"
				}
				return b.process(unit, 103, 1, "/bin/bash", "/var/lib/cloud/instance/scripts/part-001").process(unit, 104, 103, "sleep", "infinity")
			}, report.Failure, report.CodeDeadline, 0},
		} {
			t.Run(v+" "+name, func(t *testing.T) {
				j := c.play().judge()
				if j.Verdict != c.verdict || !j.Done {
					t.Fatalf("%s, done %t: %+v", j.Verdict, j.Done, j.Causes)
				}
				if c.code == "" {
					if len(j.Causes) > 0 {
						t.Errorf("causes %+v", j.Causes)
					}
					return
				}
				if got := j.Causes[0]; got.Code != c.code || got.Line != c.line || name == "hang" && got.Command != "sleep infinity" {
					t.Errorf("cause %+v, want %s on line %d", got, c.code, c.line)
				}
			})
		}
	}
}

func TestReadPayload(t *testing.T) {
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, _ = w.Write([]byte(good))
	_ = w.Close()
	for in, want := range map[string]string{"": "none", good: "shell-script", "#cloud-config\n{}\n": "cloud-config", multi(good): "multipart", zipped.String(): "gzip shell-script", "\x1f\x8bbroken": "unknown"} {
		p := bootstrap.ReadPayload([]byte(in))
		if p.Format != want || !p.Known || p.Size != len(in) || (p.SHA256 == "") != (in == "") {
			t.Errorf("%.20q: %+v", in, p)
		}
	}
}

// FuzzReadPayload reads what IMDS may give: anything.
func FuzzReadPayload(f *testing.F) {
	f.Add([]byte("#cloud-config\nruncmd: [ls]\nyum_repos: &a {x: *a}\n"))
	f.Add([]byte("#!/bin/bash -e\nset -o pipefail\n[ -f x ] && exit $?\nexec y\n"))
	f.Add([]byte(multi(good, "#cloud-config\n? [a]\n: b\n")))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := bootstrap.ReadPayload(data)
		if !p.Known || p.Size != len(data) {
			t.Errorf("%+v", p)
		}
		for _, k := range p.Keys {
			if k.Line < 1 || k.Name == "" && len(data) == 0 {
				t.Errorf("%+v", k)
			}
		}
	})
}

func FuzzCollect(f *testing.F) {
	f.Add([]byte(`{"v1":{"init":{"start":1,"errors":[1,"x"]}}}`), []byte("2026-11-22 02:07:01,123 - subp.py[DEBUG]: x\nCommand: ['/a']\nExit code: 1\n"), []byte("1\t1\t1\t1\t1\t0\t0\t0\ta\tb\n"))
	f.Fuzz(func(t *testing.T, status, log, record []byte) {
		root := t.TempDir()
		for path, data := range map[string][]byte{"run/cloud-init/status.json": status, "run/cloud-init/result.json": status, "var/log/cloud-init.log": log, "var/log/cloud-init-output.log": log, "run/lecafe/trap/x": record} {
			path = filepath.Join(root, path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		ev := bootstrap.Collect(root, bootstrap.Clock{At: time.Unix(1795313221, 0), Uptime: time.Hour, Kernel: time.Hour}, nil)
		bootstrap.Judge(ev, bootstrap.Options{Deadline: time.Minute})
	})
}
