// Package packertemplate writes a Packer template that does what a recipe says:
// amazon-ebs with a builder as closed as Packer can have it, a provisioner for
// each step, and lecafe's own provisioner last. It owns the translation alone:
// it reads a checked recipe, runs nothing, and says what has no equivalent.
package packertemplate

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/lecafe/lecafe/bake/recipe"
)

// Template is the outcome.
type Template struct {
	HCL   []byte
	Notes []string // what of the recipe Packer has no equivalent for
}

// Options say where the template will stand.
type Options struct {
	// Dir is the directory that the template is written into; the paths of the
	// recipe's files are relative to it. Default: the recipe's.
	Dir    string
	Recipe string // file name of the recipe, for comments
}

// Render translates r, which must have come from recipe.Load.
func Render(r *recipe.Recipe, o Options) (*Template, error) {
	w := &writer{r: r, dir: cmp.Or(o.Dir, r.Dir), recipe: filepath.ToSlash(o.Recipe)}
	w.header()
	if err := w.variables(); err != nil {
		return nil, err
	}
	if err := w.source(); err != nil {
		return nil, err
	}
	if err := w.build(); err != nil {
		return nil, err
	}
	return &Template{HCL: w.b.Bytes(), Notes: w.notes}, nil
}

type writer struct {
	b      bytes.Buffer
	r      *recipe.Recipe
	dir    string
	recipe string
	notes  []string
	files  int // uploaded so far
}

// line writes one line, two spaces of indent a level.
func (w *writer) line(level int, format string, args ...any) {
	if format == "" {
		w.b.WriteByte('\n')
		return
	}
	fmt.Fprintf(&w.b, strings.Repeat("  ", level)+format+"\n", args...)
}

func (w *writer) note(format string, args ...any) {
	w.notes = append(w.notes, fmt.Sprintf(format, args...))
}

// attribute is one line of a block.
type attribute struct{ name, value string }

// attributes writes lines aligned at the equals sign, as `packer fmt` does.
func (w *writer) attributes(level int, list ...attribute) {
	width := 0
	for _, a := range list {
		width = max(width, len(a.name))
	}
	for _, a := range list {
		w.line(level, "%-*s = %s", width, a.name, a.value)
	}
}

// block writes a block of attributes.
func (w *writer) block(level int, head string, list ...attribute) {
	w.line(level, "%s {", head)
	w.attributes(level+1, list...)
	w.line(level, "}")
}

func (w *writer) header() {
	w.line(0, "# Made from %s by `lecafe packer template`: the same steps, cleaning and", cmp.Or(w.recipe, w.r.Name))
	w.line(0, "# inspection as `lecafe bake`, in a build that Packer is in charge of.")
	w.line(0, "")
	w.line(0, "packer {")
	w.line(1, "required_plugins {")
	w.block(2, "amazon =", attribute{"source", `"github.com/hashicorp/amazon"`}, attribute{"version", `">= 1.3.4"`})
	w.block(2, "lecafe =", attribute{"source", `"github.com/lecafe/lecafe"`}, attribute{"version", `">= 0.1.0"`})
	w.line(1, "}")
	w.line(0, "}")
	w.line(0, "")
}

func (w *writer) variable(name, kind, value, description string) {
	w.block(0, "variable "+quote(name), attribute{"type", kind}, attribute{"default", value}, attribute{"description", quote(description)})
	w.line(0, "")
}

// Placeholders of what is known only when Packer runs; quote cannot touch them.
const (
	timeMark   = "LECAFE-TIME-MARK"
	commitMark = "LECAFE-COMMIT-MARK"
	hashMark   = "LECAFE-HASH-MARK"
)

func naming(name string) recipe.Naming {
	return recipe.Naming{Name: name, Time: timeMark, GitCommit: commitMark, Hash: hashMark}
}

// named quotes a rendered name and puts Packer's expressions into it.
func named(s string) string {
	return strings.NewReplacer(timeMark, "${local.time}", commitMark, "${var.git_commit}", hashMark, "${var.content_hash}").Replace(quote(s))
}

func (w *writer) variables() error {
	name, err := w.r.Image.RenderName(naming(w.r.Name))
	if err != nil {
		return fmt.Errorf("name of the image: %w", err)
	}
	description, err := w.r.Image.RenderDescription(naming(w.r.Name))
	if err != nil {
		return fmt.Errorf("description of the image: %w", err)
	}
	tags, err := w.r.Image.RenderTags(naming(w.r.Name))
	if err != nil {
		return fmt.Errorf("tags of the image: %w", err)
	}
	text := name + description + strings.Join(slices.Collect(maps.Values(tags)), "")
	w.variable("region", "string", `"us-east-1"`, "Where the image is made.")
	w.variable("ssh_username", "string", quote(w.user()), "The source image's user; it may use sudo without a password.")
	w.variable("lecafe_programs", "string", "null", "Directory of lecafe-agent and lecafe-builder, where they are neither beside the plugin nor in PATH.")
	if strings.Contains(text, commitMark) {
		w.variable("git_commit", "string", `"none"`, `Pass -var "git_commit=$(git rev-parse --short=12 HEAD)".`)
	}
	if strings.Contains(text, hashMark) {
		w.variable("content_hash", "string", `"none"`, "lecafe bake derives it from the content; pass what identifies yours.")
	}
	if !zero(w.r.Image.Volume) {
		w.variable("root_device", "string", quote(w.rootDevice()), "Device name of the source image's root volume.")
	}
	w.line(0, "locals {")
	w.attributes(1, attribute{"time", `formatdate("YYYYMMDD-hhmmss", timestamp())`},
		attribute{"env", `"HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive"`})
	w.line(1, "# Steps run as root and stop at the first command that fails.")
	w.attributes(1, attribute{"run", `"sudo -n env ${local.env} {{ .Vars }} bash -e {{ .Path }}"`})
	w.line(0, "}")
	w.line(0, "")
	return nil
}

func zero(v recipe.Volume) bool {
	return v.Type == "" && v.Size == 0 && v.IOPS == 0 && v.Throughput == 0
}

// origin is what the recipe says of the source image, to guess from.
func (w *writer) origin() string {
	s := w.r.Source
	words := s.SSMParameter
	if s.Filter != nil {
		words += " " + s.Filter.Name + " " + strings.Join(s.Filter.Owners, " ")
	}
	return strings.ToLower(words)
}

// user is the default user of the distribution's official images.
func (w *writer) user() string {
	switch o := w.origin(); {
	case strings.Contains(o, "debian") || strings.Contains(o, "136693071363"):
		return "admin"
	case strings.Contains(o, "ubuntu") || strings.Contains(o, "canonical") || strings.Contains(o, "099720109477"):
		return "ubuntu"
	}
	return "ec2-user"
}

func (w *writer) rootDevice() string {
	if w.user() == "ubuntu" {
		return "/dev/sda1"
	}
	return "/dev/xvda"
}

func (w *writer) source() error {
	r := w.r
	ami := ""
	switch s := r.Source; {
	case s.SSMParameter != "":
		w.line(0, "# Asked anew at each build.")
		w.block(0, `data "amazon-parameterstore" "source"`, attribute{"name", quote(s.SSMParameter)}, attribute{"region", "var.region"})
		w.line(0, "")
		ami = "data.amazon-parameterstore.source.value"
	case s.ImageID != "":
		ami = quote(s.ImageID)
	}
	name, err := r.Image.RenderName(naming(r.Name))
	if err != nil {
		return err
	}
	description, err := r.Image.RenderDescription(naming(r.Name))
	if err != nil {
		return err
	}
	w.line(0, `source "amazon-ebs" "image" {`)
	head := []attribute{{"region", "var.region"}, {"ami_name", named(name)}}
	if description != "" {
		head = append(head, attribute{"ami_description", named(description)})
	}
	if ami != "" {
		head = append(head, attribute{"source_ami", ami})
	}
	if len(r.Builder.InstanceTypes) > 0 {
		head = append(head, attribute{"instance_type", quote(r.Builder.InstanceTypes[0])})
		if rest := r.Builder.InstanceTypes[1:]; len(rest) > 0 {
			w.note("builder.instance_types: Packer tries the first one only, not %s", strings.Join(rest, ", "))
		}
	}
	w.attributes(1, head...)
	if f := r.Source.Filter; f != nil {
		w.filter(f)
	}
	w.line(0, "")
	w.network()
	w.line(0, "")
	w.line(1, "# Builder and image answer to IMDSv2 alone, and not to containers.")
	w.attributes(1, attribute{"imds_support", `"v2.0"`})
	w.block(1, "metadata_options", attribute{"http_endpoint", `"enabled"`}, attribute{"http_tokens", `"required"`}, attribute{"http_put_response_hop_limit", "1"})
	w.line(0, "")
	w.line(1, "# Packer's own polls are 15 seconds and more apart.")
	w.block(1, "aws_polling", attribute{"delay_seconds", "2"}, attribute{"max_attempts", "1800"})
	w.volumes()
	w.publication()
	if err := w.tags(); err != nil {
		return err
	}
	w.line(0, "}")
	w.line(0, "")
	return nil
}

func (w *writer) filter(f *recipe.Filter) {
	w.line(1, "source_ami_filter {")
	w.attributes(2, attribute{"owners", quoteList(f.Owners)}, attribute{"most_recent", "true"})
	filters := []attribute{{"architecture", quote(w.r.Architecture)}, {"state", `"available"`}}
	if f.Name != "" {
		filters = append(filters, attribute{"name", quote(f.Name)})
	}
	for _, k := range slices.Sorted(maps.Keys(f.Filter)) {
		filters = append(filters, attribute{quote(k), quote(f.Filter[k][0])})
		if len(f.Filter[k]) > 1 {
			w.note("source.filter.filters.%s: Packer takes one value, the first one here", k)
		}
	}
	w.block(2, "filters =", filters...)
	w.line(1, "}")
}

// network is how Packer reaches the builder: with a port open to it.
func (w *writer) network() {
	b := w.r.Builder
	list := []attribute{{"ssh_username", "var.ssh_username"}, {"temporary_key_pair_type", `"ed25519"`}}
	if len(b.SecurityGroups) == 0 {
		w.line(1, "# Packer needs ssh to the builder, which lecafe bake does not: the temporary")
		w.line(1, "# security group lets in this machine's public address alone.")
		list = append(list, attribute{"temporary_security_group_source_public_ip", "true"})
	} else {
		list = append(list, attribute{"security_group_ids", quoteList(b.SecurityGroups)})
	}
	if len(b.Subnets) > 0 {
		list = append(list, attribute{"subnet_id", quote(b.Subnets[0])})
		if len(b.Subnets) > 1 {
			w.note("builder.subnets: Packer tries the first one only")
		}
	}
	if b.InstanceProfile != "" {
		list = append(list, attribute{"iam_instance_profile", quote(b.InstanceProfile)})
	}
	if b.AssociatePublicIP != nil {
		list = append(list, attribute{"associate_public_ip_address", fmt.Sprint(*b.AssociatePublicIP)})
	}
	w.attributes(1, list...)
	if b.Proxy != "" || b.CABundle != "" {
		w.note("builder.proxy, no_proxy and ca_bundle: set them in the source image or in steps of your own")
	}
	if len(b.Tags) > 0 {
		w.line(0, "")
		w.line(1, "run_tags = %s", w.object(1, merged(w.r.Tags, b.Tags), quote))
	} else if len(w.r.Tags) > 0 {
		w.line(0, "")
		w.line(1, "run_tags = %s", w.object(1, w.r.Tags, quote))
	}
}

func (w *writer) volumes() {
	v := w.r.Image.Volume
	if !zero(v) {
		w.volume("var.root_device", v)
	}
	for _, v := range w.r.Image.Volumes {
		w.volume(quote(v.Device), v)
	}
}

func (w *writer) volume(device string, v recipe.Volume) {
	list := []attribute{{"device_name", device}, {"delete_on_termination", "true"}}
	if v.Type != "" {
		list = append(list, attribute{"volume_type", quote(v.Type)})
	}
	for _, n := range []struct {
		name  string
		value int32
	}{{"volume_size", v.Size}, {"iops", v.IOPS}, {"throughput", v.Throughput}} {
		if n.value != 0 {
			list = append(list, attribute{n.name, fmt.Sprint(n.value)})
		}
	}
	w.line(0, "")
	w.block(1, "launch_block_device_mappings", list...)
}

// publication is what happens to the image once it is there.
func (w *writer) publication() {
	im := w.r.Image
	var list []attribute
	regionKeys := ""
	if e := im.Encryption; e != nil {
		list = append(list, attribute{"encrypt_boot", "true"})
		if e.KMSKey != "" {
			list = append(list, attribute{"kms_key_id", quote(e.KMSKey)})
		}
	}
	if len(im.Copies) > 0 {
		var regions []string
		keys := map[string]string{}
		for _, c := range im.Copies {
			regions = append(regions, c.Region)
			keys[c.Region] = ""
			if c.Encryption != nil {
				keys[c.Region] = c.Encryption.KMSKey
				if im.Encryption == nil {
					w.note("image.copies: Packer encrypts all images or none; the copy in %s is not encrypted here", c.Region)
				}
			}
		}
		list = append(list, attribute{"ami_regions", quoteList(regions)})
		if im.Encryption != nil {
			regionKeys = w.object(1, keys, quote)
		}
	}
	for _, s := range []struct {
		name string
		who  []string
	}{{"ami_users", im.Share.Accounts}, {"ami_org_arns", im.Share.Organizations}, {"ami_ou_arns", im.Share.OrganizationalUnits}} {
		if len(s.who) > 0 {
			list = append(list, attribute{s.name, quoteList(s.who)})
		}
	}
	if im.Public {
		list = append(list, attribute{"ami_groups", `["all"]`})
	}
	if im.DeprecateAfter > 0 {
		list = append(list, attribute{"deprecate_at", fmt.Sprintf("timeadd(timestamp(), %q)", fmt.Sprintf("%dh", im.DeprecateAfter/time.Hour))})
	}
	if len(list) > 0 {
		w.line(0, "")
		w.attributes(1, list...)
	}
	if regionKeys != "" {
		w.line(1, "region_kms_key_ids = %s", regionKeys)
	}
	if im.DeregistrationProtection {
		w.line(0, "")
		w.block(1, "deregistration_protection", attribute{"enabled", "true"})
	}
}

func (w *writer) tags() error {
	own, err := w.r.Image.RenderTags(naming(w.r.Name))
	if err != nil {
		return err
	}
	name, err := w.r.Image.RenderName(naming(w.r.Name))
	if err != nil {
		return err
	}
	all := merged(map[string]string{"Name": name}, w.r.Tags, own)
	w.line(0, "")
	w.line(1, "tags = %s", w.object(1, all, named))
	w.line(1, "snapshot_tags = %s", w.object(1, all, named))
	return nil
}

func merged(all ...map[string]string) map[string]string {
	out := map[string]string{}
	for _, m := range all {
		maps.Copy(out, m)
	}
	return out
}

// settings is the recipe's agent section, empty where there is none.
func (w *writer) settings() (string, error) {
	text, err := yaml.Marshal(w.r.Agent)
	if err != nil {
		return "", fmt.Errorf("settings of the agent: %w", err)
	}
	if s := strings.TrimSpace(string(text)); s != "{}" && s != "" {
		return string(text), nil
	}
	return "", nil
}

// local is a file of the recipe, as the template names it.
func (w *writer) local(name string) (string, error) {
	from, err := filepath.Abs(w.dir)
	if err != nil {
		return "", err
	}
	to, err := filepath.Abs(w.r.Resolve(name))
	if err != nil {
		return "", err
	}
	rel, err := filepath.Rel(from, to)
	if err != nil {
		return "", fmt.Errorf("path of %s: %w", name, err)
	}
	return `"${path.root}/` + strings.TrimPrefix(quote(filepath.ToSlash(rel)), `"`), nil
}

func (w *writer) read(name string) ([]byte, error) {
	data, err := os.ReadFile(w.r.Resolve(name))
	if err != nil {
		return nil, fmt.Errorf("read a file of the recipe: %w", err)
	}
	return data, nil
}

// object writes a map, one key a line.
func (w *writer) object(level int, m map[string]string, value func(string) string) string {
	pad := strings.Repeat("  ", level)
	keys := slices.Sorted(maps.Keys(m))
	width := 0
	for _, k := range keys {
		width = max(width, len(quote(k)))
	}
	var b strings.Builder
	b.WriteString("{\n")
	for _, k := range keys {
		fmt.Fprintf(&b, "%s  %-*s = %s\n", pad, width, quote(k), value(m[k]))
	}
	b.WriteString(pad + "}")
	return b.String()
}

func quoteList(s []string) string {
	out := make([]string, len(s))
	for i, x := range s {
		out[i] = quote(x)
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// quote writes an HCL string,
// https://github.com/hashicorp/hcl/blob/main/hclsyntax/spec.md#template-expressions
// Packer's plugins take {{ in any attribute for a template of their own, so
// that it is written as one that gives {{.
func quote(s string) string {
	s = verbatim(s)
	var b strings.Builder
	b.WriteByte('"')
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\r':
			b.WriteString(`\r`)
		case c == '\t':
			b.WriteString(`\t`)
		case (c == '$' || c == '%') && i+1 < len(s) && s[i+1] == '{':
			b.WriteByte(c)
			b.WriteByte(c)
		case c < ' ' || c == 0x7f:
			fmt.Fprintf(&b, `\u%04x`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func verbatim(s string) string { return strings.ReplaceAll(s, "{{", "{{`{{`}}") }

// base is the last element of an uploaded file's path.
func base(p string) string { return path.Base(filepath.ToSlash(p)) }
