package userdata

import "strings"

// shape is what a value of cloud-config may be. The table below holds what the
// modules of cloud-init 22 to 25 read, and the keys that distributions add.
// https://docs.cloud-init.io/en/latest/reference/modules.html
type shape struct {
	types  string // str int bool list map null, separated by |; "" for any
	fields map[string]*shape
	open   bool   // other keys than fields are fine
	item   *shape // of a list
	enum   string // values of a string, separated by |
	need   string // keys that a map must have, separated by |
	works  string // types that are not asked for and work all the same
	note   string // deprecated: what to write instead
}

func anything() *shape { return &shape{} }
func str() *shape      { return &shape{types: "str", works: "int|float"} }
func num() *shape      { return &shape{types: "int", works: "str"} }
func truth() *shape    { return &shape{types: "bool", works: "str|int"} }
func open() *shape     { return &shape{types: "map"} }
func list(item *shape) *shape {
	return &shape{types: "list", item: item}
}
func oneOf(types string) *shape     { return &shape{types: types} }
func choice(values string) *shape   { return &shape{types: "str", enum: values} }
func closed(f fields) *shape        { return &shape{types: "map", fields: f} }
func loose(f fields) *shape         { return &shape{types: "map", fields: f, open: true} }
func (s *shape) or(t string) *shape { c := *s; c.types += "|" + t; return &c }
func (s *shape) takes(t string) *shape {
	c := *s
	c.works = strings.Trim(c.works+"|"+t, "|")
	return &c
}
func (s *shape) needs(keys string) *shape { c := *s; c.need = keys; return &c }
func (s *shape) old(instead string) *shape {
	c := *s
	c.note = instead
	return &c
}

type fields = map[string]*shape

// cloudConfigKeys returns the top-level keys.
func cloudConfigKeys() fields {
	commands := list(&shape{types: "str|list|null", item: &shape{types: "str|int|float|bool|null"}})
	user := closed(fields{
		"name": str(), "doas": list(str()), "expiredate": str().takes("date"), "gecos": str(), "groups": oneOf("str|list|map"),
		"homedir": str(), "inactive": str(), "lock_passwd": truth(), "no_create_home": truth(), "no_log_init": truth(),
		"no_user_group": truth(), "passwd": str(), "hashed_passwd": str(), "plain_text_passwd": str(), "create_groups": truth(),
		"primary_group": str(), "selinux_user": str(), "shell": str(), "snapuser": str(),
		"ssh_authorized_keys": list(str()), "ssh_import_id": list(str()), "ssh_redirect_user": truth(), "system": truth(),
		"sudo": oneOf("str|list|bool|null"), "uid": oneOf("int|str"), "default": anything(),
		"lock-passwd": truth().old("lock_passwd"), "no-create-home": truth().old("no_create_home"), "no-log-init": truth().old("no_log_init"),
		"no-user-group": truth().old("no_user_group"), "hashed-passwd": str().old("hashed_passwd"), "plain-text-passwd": str().old("plain_text_passwd"),
		"create-groups": truth().old("create_groups"), "primary-group": str().old("primary_group"), "selinux-user": str().old("selinux_user"),
		"ssh-authorized-keys": list(str()).old("ssh_authorized_keys"), "ssh-import-id": list(str()).old("ssh_import_id"), "ssh-redirect-user": truth().old("ssh_redirect_user"),
	})
	userEntry := *user
	userEntry.types = "map|str"
	file := closed(fields{
		"path": str(), "content": str(), "owner": str(), "permissions": oneOf("str|int"),
		"encoding": choice("gz|gzip|gz+base64|gzip+base64|gz+b64|gzip+b64|b64|base64|text/plain"),
		"append":   truth(), "defer": truth(), "source": closed(fields{"uri": str(), "headers": open()}),
	}).needs("path")
	mirror := list(loose(fields{"arches": list(str()), "uri": str(), "search": list(str()), "search_dns": truth(), "keyid": str(), "key": str(), "keyserver": str()}))
	packages := list(&shape{types: "str|list|map|int|float", item: &shape{types: "str|int|float"}})
	packages.works = "str|map"
	caCerts := closed(fields{"remove_defaults": truth(), "trusted": list(str()).takes("str"), "remove-defaults": truth().old("remove_defaults")})
	swapSize := oneOf("int|str")

	return fields{
		// Commands, files, packages.
		"runcmd": commands, "bootcmd": commands,
		"write_files": list(file), "packages": packages,
		"package_update": truth(), "package_upgrade": truth(), "package_reboot_if_required": truth(),
		"apt_update": truth().old("package_update"), "apt_upgrade": truth().old("package_upgrade"), "apt_reboot_if_required": truth().old("package_reboot_if_required"),
		"apt": loose(fields{
			"preserve_sources_list": truth(), "disable_suites": list(str()), "primary": mirror, "security": mirror, "add_apt_repo_match": str(),
			"debconf_selections": open(), "sources_list": str(), "conf": str(), "https_proxy": str(), "http_proxy": str(), "proxy": str(), "ftp_proxy": str(),
			"sources": &shape{types: "map|list"},
		}),
		"apt_pipelining": oneOf("int|bool|str"), "apt_get_command": anything(), "apt_get_wrapper": anything(),
		"apt_sources": anything().old("apt"), "apt_mirror": anything().old("apt"), "apt_proxy": anything().old("apt"), "apt_http_proxy": anything().old("apt"), "apt_https_proxy": anything().old("apt"),
		"apt_preserve_sources_list": anything().old("apt"), "apt_custom_sources_list": anything().old("apt"), "apt_mirror_search": anything().old("apt"), "debconf_selections": anything().old("apt"), "add_apt_repo_match": anything().old("apt"),
		"yum_repos": open(), "yum_repo_dir": str(), "zypper": open(), "apk_repos": open(),
		"snap": loose(fields{"assertions": oneOf("list|map"), "commands": oneOf("list|map")}),
		// Amazon Linux's own.
		"repo_update": truth(), "repo_upgrade": oneOf("str|bool"), "repo_upgrade_exclude": list(str()), "repo_releasever": anything(), "repo_additions": anything(),

		// Users, ssh.
		"users":    {types: "list|str|map", item: &userEntry},
		"user":     {types: "str|map", fields: user.fields},
		"groups":   {types: "list|map|str"},
		"password": str(), "ssh_pwauth": &shape{types: "bool|str"},
		"chpasswd": closed(fields{
			"expire": truth(), "list": oneOf("str|list").old("users"),
			"users": list(closed(fields{"name": str(), "password": str(), "type": choice("hash|text|RANDOM")}).needs("name")),
		}),
		"ssh_authorized_keys": list(str()), "ssh_import_id": list(str()), "ssh_keys": open(), "ssh_deletekeys": truth(), "ssh_genkeytypes": list(str()),
		"disable_root": truth(), "disable_root_opts": str(), "allow_public_ssh_keys": truth(), "ssh_quiet_keygen": truth(),
		"ssh_publish_hostkeys": closed(fields{"enabled": truth(), "blacklist": list(str())}),
		"ssh":                  anything(), "ssh_fp_console_blacklist": list(str()), "ssh_key_console_blacklist": list(str()), "no_ssh_fingerprints": truth(), "authkey_hash": str(),
		"ssh_svcname": str(),

		// The machine.
		"hostname": str(), "fqdn": str(), "preserve_hostname": truth(), "prefer_fqdn_over_hostname": truth(), "create_hostname_file": truth(),
		"manage_etc_hosts": oneOf("bool|str"), "manage_resolv_conf": truth(), "manage-resolv-conf": truth().old("manage_resolv_conf"), "resolv_conf": open(),
		"timezone": str(), "locale": oneOf("str|bool"), "locale_configfile": str(),
		"keyboard": loose(fields{"layout": str(), "model": str(), "variant": str(), "options": str()}),
		"ntp":      closed(fields{"pools": list(str()), "servers": list(str()), "peers": list(str()), "allow": list(str()), "ntp_client": str(), "enabled": truth(), "config": open()}).or("null"),
		"growpart": closed(fields{"mode": oneOf("str|bool"), "devices": list(str()), "ignore_growroot_disabled": truth()}), "resize_rootfs": oneOf("bool|str"),
		"mounts": list(&shape{types: "list", item: &shape{types: "str|int|null"}}), "mount_default_fields": list(nil),
		"swap":       closed(fields{"filename": str(), "size": swapSize, "maxsize": swapSize}),
		"disk_setup": open(), "device_aliases": open(),
		"fs_setup": list(loose(fields{"label": str(), "filesystem": str(), "device": str(), "partition": oneOf("str|int"), "overwrite": truth(), "replace_fs": str(), "extra_opts": oneOf("str|list"), "cmd": oneOf("str|list")})),
		"power_state": closed(fields{
			"delay": oneOf("str|int"), "mode": choice("poweroff|reboot|halt"), "message": str(), "timeout": num(), "condition": oneOf("str|bool|list|int"),
		}).needs("mode"),
		"random_seed": closed(fields{"file": str(), "data": str(), "encoding": choice("raw|base64|b64|gzip|gz"), "command": list(str()), "command_required": truth()}),
		"ca_certs":    caCerts, "ca-certs": caCerts.old("ca_certs"),
		"grub_dpkg": open(), "grub-dpkg": open().old("grub_dpkg"), "disable_ec2_metadata": truth(), "drivers": open(), "byobu_by_default": str(),
		"phone_home":    closed(fields{"url": str(), "post": oneOf("str|list"), "tries": num()}).needs("url"),
		"final_message": str(), "fan": open(), "wireguard": open(), "rpi": open(), "migrate": truth(),
		"rsyslog": {types: "map|list"}, "rsyslog_filename": anything(), "rsyslog_dir": anything(), "reporting": open(),
		"output": open(), "updates": open(), "autoinstall": open(), "vendor_data": open(), "vendor_data2": open(),

		// Configuration management.
		"ansible": open(), "chef": open(), "puppet": open(), "salt_minion": open(), "mcollective": open(), "landscape": open(), "lxd": open(),
		"rh_subscription": open(), "spacewalk": open(), "ubuntu_advantage": open(), "ubuntu_pro": open(), "juju": anything(),

		// cloud-init itself.
		"cloud_init_modules": list(nil), "cloud_config_modules": list(nil), "cloud_final_modules": list(nil), "unverified_modules": list(nil),
		"merge_how": oneOf("str|list"), "merge_type": oneOf("str|list"), "launch-index": num(), "system_info": open(), "version": anything(),
		"datasource": open(), "datasource_list": list(nil), "network": open(), "debug": anything(), "log_cfgs": list(nil), "logcfg": anything(), "log_basic": anything(),
		"def_log_file": anything(), "def_log_file_mode": anything(), "syslog_fix_perms": anything(), "manual_cache_clean": truth(), "allow_userdata": truth(), "cloud_dir": anything(), "warnings": anything(),
		"disable_network_activation": anything(), "features": anything(), "ds_config": anything(),
	}
}
