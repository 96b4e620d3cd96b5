package bootstrap

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/userdata"
)

// readers are the modules of cloud-init that read a key of cloud-config, for
// the keys whose modules distributions leave out of their images: Debian's run
// nothing that reads yum_repos, Amazon Linux's nothing that reads apt. A key
// that only cloud-init itself reads, that every image's modules do, or that
// mostly turns something off, is not here. Names as in /etc/cloud/cloud.cfg, with underscores; any one will do.
// https://cloudinit.readthedocs.io/en/latest/reference/modules.html
var readers = map[string][]string{
	"ansible":          {"ansible"},
	"apk_repos":        {"apk_configure"},
	"apt":              {"apt_configure"},
	"bootcmd":          {"bootcmd"},
	"ca_certs":         {"ca_certs"},
	"chef":             {"chef"},
	"disk_setup":       {"disk_setup"},
	"drivers":          {"ubuntu_drivers"},
	"fan":              {"fan"},
	"fs_setup":         {"disk_setup"},
	"keyboard":         {"keyboard"},
	"landscape":        {"landscape"},
	"locale":           {"locale"},
	"lxd":              {"lxd"},
	"mcollective":      {"mcollective"},
	"mounts":           {"mounts"},
	"ntp":              {"ntp"},
	"package_update":   {"package_update_upgrade_install"},
	"package_upgrade":  {"package_update_upgrade_install"},
	"packages":         {"package_update_upgrade_install"},
	"phone_home":       {"phone_home"},
	"power_state":      {"power_state_change"},
	"puppet":           {"puppet"},
	"random_seed":      {"seed_random"},
	"resolv_conf":      {"resolv_conf"},
	"rh_subscription":  {"rh_subscription"},
	"rpi":              {"raspberry_pi"},
	"rsyslog":          {"rsyslog"},
	"runcmd":           {"runcmd"},
	"salt_minion":      {"salt_minion"},
	"snap":             {"snap"},
	"spacewalk":        {"spacewalk"},
	"ssh_import_id":    {"ssh_import_id"},
	"swap":             {"mounts"},
	"timezone":         {"timezone"},
	"ubuntu_advantage": {"ubuntu_advantage", "ubuntu_pro"},
	"ubuntu_pro":       {"ubuntu_pro", "ubuntu_advantage"},
	"users":            {"users_groups"},
	"wireguard":        {"wireguard"},
	"write_files":      {"write_files", "write_files_deferred"},
	"yum_repo_dir":     {"yum_add_repo"},
	"yum_repos":        {"yum_add_repo"},
	"zypper":           {"zypper_add_repo"},
}

// Key is a key at the top of a cloud-config.
type Key struct {
	File   string // the part, "" where the payload is one cloud-config
	Line   int    // in the part
	Column int
	Name   string // with underscores
}

// topKeys finds the keys of the cloud-configs in a payload. A cloud-config
// that does not parse has none: lint says so.
func topKeys(p *userdata.Payload) []Key {
	var out []Key
	for _, part := range p.Parts {
		if part.Kind != userdata.KindCloudConfig || part.Jinja || len(part.Body) > 1<<20 {
			continue
		}
		var doc yaml.Node
		if yaml.Unmarshal(part.Body, &doc) != nil || len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
			continue
		}
		file := ""
		if len(p.Parts) > 1 {
			file = part.Name
		}
		for pair := range slices.Chunk(doc.Content[0].Content, 2) {
			k := pair[0]
			// Whatever is turned off, its module may be missing.
			if v := pair[1]; v.Tag == "!!null" || v.Tag == "!!bool" && !slices.Contains([]string{"true", "yes", "on"}, strings.ToLower(v.Value)) {
				continue
			}
			out = append(out, Key{File: file, Line: k.Line, Column: k.Column, Name: underscored(k.Value)})
		}
	}
	return out
}

func underscored(name string) string { return strings.ReplaceAll(name, "-", "_") }

// readModules reads which modules this image's cloud-init runs, in all stages.
// Files in cloud.cfg.d go before cloud.cfg, the last one first; a list of theirs
// replaces the whole list. nil where none can be read.
func readModules(root string) map[string]bool {
	files, err := filepath.Glob(filepath.Join(root, "etc/cloud/cloud.cfg.d/*.cfg"))
	if err != nil {
		return nil
	}
	slices.Sort(files)
	lists := map[string][]any{}
	for _, name := range append([]string{filepath.Join(root, "etc/cloud/cloud.cfg")}, files...) {
		b, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(b, []byte("_modules")) {
			continue
		}
		var doc map[string]any
		if yaml.Unmarshal(b, &doc) != nil {
			continue
		}
		for _, stage := range []string{"cloud_init_modules", "cloud_config_modules", "cloud_final_modules"} {
			if l, ok := doc[stage].([]any); ok {
				lists[stage] = l
			}
		}
	}
	var out map[string]bool
	for _, l := range lists {
		for _, m := range l {
			// A module, or a list of module and frequency.
			if pair, ok := m.([]any); ok && len(pair) > 0 {
				m = pair[0]
			}
			if name, ok := m.(string); ok {
				if out == nil {
					out = map[string]bool{}
				}
				out[underscored(name)] = true
			}
		}
	}
	return out
}

// unread reports keys that no module of this image reads: cloud-init passes
// over them without a word.
func (j *judge) unread() {
	c := &j.ev.CloudInit
	// Cloud-config may say itself which modules run.
	own := slices.ContainsFunc(j.ev.Payload.Keys, func(k Key) bool { return strings.HasSuffix(k.Name, "_modules") })
	if c.Modules == nil || own || !c.Ended() || strings.Contains(c.Datasource, "DataSourceNone") {
		return
	}
	seen := map[string]bool{}
	for _, k := range j.ev.Payload.Keys {
		modules := readers[k.Name]
		if len(modules) == 0 || seen[k.Name] || slices.ContainsFunc(modules, func(m string) bool { return c.Modules[m] }) {
			continue
		}
		seen[k.Name] = true
		j.add(report.Cause{
			Stage: report.StageUserData, Code: report.CodeUserDataUnknownKey, File: k.File, Line: k.Line, Column: k.Column,
			Message: fmt.Sprintf("%s: this image's cloud-init does not run the module %s, and nothing else reads %s.", sentenceCase(of(Finding{File: k.File, Line: k.Line})), modules[0], k.Name),
			Fix:     fmt.Sprintf("Take an image whose cloud-init has the module, add it to cloud_config_modules in /etc/cloud/cloud.cfg.d, or do without %s.", k.Name),
		})
	}
}

func sentenceCase(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
