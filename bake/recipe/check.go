package recipe

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/lecafe/lecafe/internal/strictyaml"
)

// checker finds what is wrong with decoded values.
type checker struct {
	d *decoder
	r *Recipe
}

// bad reports a problem of field at its place, or at the nearest parent's
// where the field is not in the file.
func (c *checker) bad(field, what, fix string) {
	p := strictyaml.Problem{Field: field, Message: what, Hint: fix}
	for at := field; ; {
		if pl, ok := c.d.places[at]; ok {
			p.File, p.Line, p.Column = pl.file, pl.line, pl.column
			if at == field && !strings.Contains(pl.value, "://") || at == field && !strings.Contains(pl.value, "@") {
				p.Value = pl.value // but no URL with a password
			}
			break
		}
		i := strings.LastIndexAny(at, ".[")
		if i < 0 {
			i = 0
		}
		if at == "" {
			break
		}
		at = at[:i]
	}
	// A value of the wrong kind was reported already; its zero is no news.
	for _, q := range c.d.problems {
		if q.Field == field && q.Line == p.Line {
			return
		}
	}
	c.d.add(p)
}

// failed says that field or something in it could not be decoded.
func (c *checker) failed(field string) bool {
	return slices.ContainsFunc(c.d.problems, func(p strictyaml.Problem) bool {
		return p.Field == field || strings.HasPrefix(p.Field, field+".") || strings.HasPrefix(p.Field, field+"[")
	})
}

func (c *checker) form(field, value string, re *regexp.Regexp, what, fix string) {
	if value != "" && !re.MatchString(value) {
		c.bad(field, what, fix)
	}
}

func (c *checker) oneOf(field, value string, allowed ...string) {
	if value == "" || slices.Contains(allowed, value) {
		return
	}
	fix := "use one of " + strings.Join(allowed, ", ")
	if near, ok := nearest(value, allowed); ok {
		fix = "did you mean " + near + "?"
	}
	c.bad(field, "is not known here", fix)
}

func (c *checker) between(field string, d, lo, hi time.Duration) {
	if d != 0 && (d < lo || d > hi) {
		c.bad(field, fmt.Sprintf("is outside %s to %s", plain(lo), plain(hi)), "choose a duration in between")
	}
}

func plain(d time.Duration) string {
	switch {
	case d >= 24*time.Hour && d%(24*time.Hour) == 0:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d >= time.Hour && d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= time.Minute && d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return d.String()
}

// Forms of AWS's names. EC2's and S3's documentation give them; where EC2
// takes several spellings (IDs of 8 or 17 digits) all are allowed.
var (
	recipeName    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	imageName     = regexp.MustCompile(`^[A-Za-z0-9()\[\] ./'@_-]{3,128}$`)
	imageID       = regexp.MustCompile(`^ami-[0-9a-f]{8,17}$`)
	subnetID      = regexp.MustCompile(`^subnet-[0-9a-f]{8,17}$`)
	groupID       = regexp.MustCompile(`^sg-[0-9a-f]{8,17}$`)
	instanceType  = regexp.MustCompile(`^[a-z][a-z0-9-]*\.[a-z0-9-]+$`)
	regionName    = regexp.MustCompile(`^[a-z]{2,4}(-[a-z]+){1,3}-[0-9]{1,2}$`)
	accountID     = regexp.MustCompile(`^[0-9]{12}$`)
	ownerName     = regexp.MustCompile(`^([0-9]{12}|self|amazon|aws-marketplace)$`)
	bucketName    = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	keyPrefix     = regexp.MustCompile(`^[A-Za-z0-9!_.*'()-]+(/[A-Za-z0-9!_.*'()-]+)*$`)
	ssmName       = regexp.MustCompile(`^[A-Za-z0-9_./-]+$`)
	organization  = regexp.MustCompile(`^arn:[a-z-]+:organizations::[0-9]{12}:organization/o-[a-z0-9]{10,32}$`)
	orgUnit       = regexp.MustCompile(`^arn:[a-z-]+:organizations::[0-9]{12}:ou/o-[a-z0-9]{10,32}/ou-[0-9a-z]{4,32}-[0-9a-z]{8,32}$`)
	kmsKey        = regexp.MustCompile(`^(arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:(key|alias)/\S+|alias/\S+|(mrk-)?[0-9a-f-]{32,36})$`)
	templateName  = regexp.MustCompile(`^(lt-[0-9a-f]{8,17}|[A-Za-z0-9().\-/_]{3,128})$`)
	groupName     = regexp.MustCompile(`^[^:\x00-\x1f]{1,255}$`)
	profileName   = regexp.MustCompile(`^(arn:[a-z-]+:iam::[0-9]{12}:instance-profile/\S+|[A-Za-z0-9+=,.@_-]{1,128})$`)
	deviceName    = regexp.MustCompile(`^(/dev/)?[a-z]+[0-9a-z/]*$`)
	fileMode      = regexp.MustCompile(`^[0-7]{3,4}$`)
	unixName      = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}\$?$`)
	unitName      = regexp.MustCompile(`^[A-Za-z0-9:_.\\@-]+\.(service|socket|timer|path|mount|target|swap|automount|slice)$`)
	packageName   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9+._-]*(:[a-z0-9]+)?(=[A-Za-z0-9.+:~*-]+)?$`)
	variableName  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	ruleName      = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)
	proxyRequired = "write http://host:port"
)

func (c *checker) all() {
	r := c.r
	if r.Name == "" {
		c.bad("name", "is missing", "name the recipe, for instance lecafe-app")
	}
	c.form("name", r.Name, recipeName, "is not a recipe's name", "use 1 to 63 lower-case letters, digits and hyphens, no hyphen at the ends")
	c.oneOf("architecture", r.Architecture, X8664, ARM64)
	c.tags("tags", r.Tags, false)
	c.between("max_age", r.MaxAge, time.Minute, 3650*24*time.Hour)
	c.image()
	c.source()
	c.builder()
	c.staging()
	c.provision()
	c.agent()
	for i, name := range r.Clean.Keep {
		c.form(fmt.Sprintf("clean.keep[%d]", i), name, ruleName, "is not the name of a cleaning rule", "lecafe inspect --rules lists them")
	}
	if r.Clean.MaxUsed < 0 {
		c.bad("clean.max_used", "is negative", "give GiB")
	}
	c.canary()
	c.promote()
}

func (c *checker) image() {
	im := c.r.Image
	sample := Naming{Name: c.r.Name, Time: "20260102-150405", GitCommit: strings.Repeat("a", 12), Hash: strings.Repeat("b", 12)}
	if name, err := im.RenderName(sample); err != nil {
		c.bad("image.name", "is not a template: "+templateError(err), "use {{.Name}}, {{.Time}}, {{.GitCommit}} and {{.Hash}}")
	} else if !imageName.MatchString(name) && (recipeName.MatchString(c.r.Name) || !strings.Contains(im.Name, ".Name")) {
		c.bad("image.name", fmt.Sprintf("gives %q, which EC2 refuses", shorten(name)), "use 3 to 128 letters, digits, spaces and ()[]./-'@_")
	}
	if text, err := im.RenderDescription(sample); err != nil {
		c.bad("image.description", "is not a template: "+templateError(err), "use {{.Name}}, {{.Time}}, {{.GitCommit}} and {{.Hash}}")
	} else if len(text) > 255 {
		c.bad("image.description", "is longer than 255 characters", "shorten it")
	}
	c.tags("image.tags", im.Tags, true)
	c.volume("image.volume", im.Volume)
	if im.Volume.Device != "" {
		c.bad("image.volume.device", "the root volume's device comes from the source image", "leave it out, or use image.volumes for further ones")
	}
	devices := map[string]bool{}
	for i, v := range im.Volumes {
		field := fmt.Sprintf("image.volumes[%d]", i)
		c.volume(field, v)
		switch {
		case v.Device == "":
			c.bad(field+".device", "is missing", "name a device, as /dev/sdf")
		case devices[v.Device]:
			c.bad(field+".device", "stands here twice", "give each volume a device of its own")
		}
		if v.Size == 0 {
			c.bad(field+".size", "is missing", "give the size in GiB")
		}
		devices[v.Device] = true
	}
	if im.Encryption != nil {
		c.form("image.encryption.kms_key", im.Encryption.KMSKey, kmsKey, "is not a KMS key", "give a key ID, an ARN or alias/name")
	}
	regions := map[string]bool{}
	for i, cp := range im.Copies {
		field := fmt.Sprintf("image.copies[%d]", i)
		if cp.Region == "" {
			c.bad(field+".region", "is missing", "name a region, as eu-west-1")
		}
		c.form(field+".region", cp.Region, regionName, "is not a region", "write it as eu-west-1")
		if regions[cp.Region] {
			c.bad(field+".region", "stands here twice", "keep one copy a region")
		}
		regions[cp.Region] = true
		if cp.Encryption != nil {
			c.form(field+".encryption.kms_key", cp.Encryption.KMSKey, kmsKey, "is not a KMS key", "give a key ID, an ARN or alias/name")
		}
		if encrypted := im.Encryption != nil || cp.Encryption != nil; encrypted && !im.Share.Empty() && (cp.Encryption == nil || cp.Encryption.KMSKey == "") {
			c.bad(field+".encryption", "a copy encrypted with that region's own EBS key cannot be shared", "set kms_key to a customer managed key of the region")
		}
	}
	c.each("image.share.accounts", im.Share.Accounts, accountID, "is not an account ID", "write its 12 digits in quotes")
	c.each("image.share.organizations", im.Share.Organizations, organization, "is not an organization's ARN", "copy it from AWS Organizations: arn:aws:organizations::123456789012:organization/o-…")
	c.each("image.share.organizational_units", im.Share.OrganizationalUnits, orgUnit, "is not an organizational unit's ARN", "copy it from AWS Organizations: arn:aws:organizations::123456789012:ou/o-…/ou-…")
	if im.Public && im.Encryption != nil {
		c.bad("image.public", "an encrypted image cannot be public", "drop one of image.public and image.encryption")
	}
	if im.Encryption != nil && im.Encryption.KMSKey == "" && !im.Share.Empty() {
		c.bad("image.share", "an image encrypted with the account's own EBS key cannot be shared", "set image.encryption.kms_key to a customer managed key")
	}
	c.between("image.deprecate_after", im.DeprecateAfter, time.Hour, 3650*24*time.Hour)
}

func (c *checker) volume(field string, v Volume) {
	c.form(field+".device", v.Device, deviceName, "is not a device name", "write it as /dev/sdf")
	c.oneOf(field+".type", v.Type, "gp2", "gp3", "io1", "io2", "st1", "sc1", "standard")
	if v.Size < 0 || v.Size > 65536 {
		c.bad(field+".size", "is outside 1 to 65536 GiB", "give GiB")
	}
	if v.IOPS != 0 && !slices.Contains([]string{"gp3", "io1", "io2"}, v.Type) {
		c.bad(field+".iops", "goes with type gp3, io1 and io2 only", "set the type, or leave iops out")
	}
	if v.IOPS < 0 || v.IOPS > 256000 {
		c.bad(field+".iops", "is outside 100 to 256000", "see the limits of the volume type")
	}
	if v.Throughput != 0 && v.Type != "gp3" {
		c.bad(field+".throughput", "goes with type gp3 only", "set type: gp3, or leave throughput out")
	}
	if v.Throughput < 0 || v.Throughput > 2000 {
		c.bad(field+".throughput", "is outside 125 to 2000 MiB/s", "see the limits of gp3")
	}
}

func (c *checker) each(field string, values []string, re *regexp.Regexp, what, fix string) {
	for i, v := range values {
		if !re.MatchString(v) {
			c.bad(fmt.Sprintf("%s[%d]", field, i), what, fix)
		}
	}
}

func (c *checker) source() {
	s := c.r.Source
	n := 0
	for _, set := range []bool{s.SSMParameter != "", s.ImageID != "", s.Filter != nil} {
		if set {
			n++
		}
	}
	if n != 1 && !c.failed("source") {
		what := "none of ssm_parameter, image_id and filter is set"
		if n > 1 {
			what = "more than one of ssm_parameter, image_id and filter is set"
		}
		c.bad("source", what, "set exactly one of them")
	}
	c.form("source.ssm_parameter", s.SSMParameter, ssmName, "is not an SSM parameter's name", "write it as /aws/service/…")
	c.form("source.image_id", s.ImageID, imageID, "is not an image ID", "write it as ami-0123456789abcdef0")
	if f := s.Filter; f != nil {
		if len(f.Owners) == 0 {
			c.bad("source.filter.owners", "is missing", "name who publishes the image (account ID, self or amazon): without it anyone could publish a matching one")
		}
		c.each("source.filter.owners", f.Owners, ownerName, "is not an owner", "use a 12-digit account ID in quotes, self, amazon or aws-marketplace")
		if f.Name == "" && len(f.Filter) == 0 {
			c.bad("source.filter", "has neither name nor filters", "say which image is meant, for instance name: debian-12-amd64-*")
		}
	}
}

func (c *checker) builder() {
	b := c.r.Builder
	c.each("builder.instance_types", b.InstanceTypes, instanceType, "is not an instance type", "write it as c7i.large")
	for i, t := range b.InstanceTypes {
		if a := architectureOf(t); a != "" && a != c.r.Architecture && !c.failed("architecture") {
			c.bad(fmt.Sprintf("builder.instance_types[%d]", i), fmt.Sprintf("is %s, the recipe's architecture is %s", a, c.r.Architecture), "change one of them")
		}
	}
	c.each("builder.subnets", b.Subnets, subnetID, "is not a subnet ID", "write it as subnet-0123456789abcdef0")
	c.each("builder.security_groups", b.SecurityGroups, groupID, "is not a security group ID", "write it as sg-0123456789abcdef0")
	c.form("builder.instance_profile", b.InstanceProfile, profileName, "is not an instance profile", "give its name or ARN")
	c.between("builder.timeout", b.Timeout, 5*time.Minute, 24*time.Hour)
	if b.Proxy != "" {
		u, err := url.Parse(b.Proxy)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			c.bad("builder.proxy", "is not a proxy's URL", proxyRequired)
		} else if u.User != nil {
			c.bad("builder.proxy", "carries a password, which everyone who may read the user data would see", proxyRequired)
		}
	}
	if b.CABundle != "" {
		c.file("builder.ca_bundle", b.CABundle, maxCA)
	}
	c.tags("builder.tags", b.Tags, false)
}

// maxCA keeps the builder's user data below EC2's 16 KB.
const maxCA = 8 << 10

// architectureOf returns the architecture of a well-known family; empty where
// the name alone does not tell.
func architectureOf(t string) string {
	family, _, _ := strings.Cut(t, ".")
	switch {
	case family == "a1" || regexp.MustCompile(`^[a-z]+[0-9]+g[a-z]*(-.*)?$`).MatchString(family):
		return ARM64
	case regexp.MustCompile(`^([a-z]+[0-9]+[ai][a-z]*|t[123]|t3a|m[1-5]|c[1345]|r[345])(-.*)?$`).MatchString(family):
		return X8664
	}
	return ""
}

func (c *checker) staging() {
	s := c.r.Staging
	if s.Bucket == "" {
		c.bad("staging.bucket", "is missing", "name an existing bucket that the bake may write to")
	}
	if s.Bucket != "" && (!bucketName.MatchString(s.Bucket) || strings.Contains(s.Bucket, "..")) {
		c.bad("staging.bucket", "is not a bucket's name", "use 3 to 63 lower-case letters, digits, hyphens and dots, without s3://")
	}
	c.form("staging.prefix", s.Prefix, keyPrefix, "is not a key prefix", "use letters, digits and !_.*'()-, parts separated by single slashes, none at the ends")
}

// tags checks EC2's rules: at most 50, key of 1 to 127 characters (128 less
// for S3's sake), value of at most 256, aws: reserved; lecafe: is lecafe's.
func (c *checker) tags(field string, tags map[string]string, templates bool) {
	if len(tags) > 40 {
		c.bad(field, "has more than 40 tags", "EC2 allows 50 a resource and lecafe adds its own")
	}
	for k, v := range tags {
		at := join(field, k)
		switch {
		case k == "" || len([]rune(k)) > 127:
			c.bad(at, "a tag's key has 1 to 127 characters", "shorten it")
		case strings.HasPrefix(strings.ToLower(k), "aws:"):
			c.bad(at, "keys that begin with aws: are reserved", "choose another")
		case strings.HasPrefix(k, "lecafe:"):
			c.bad(at, "keys that begin with lecafe: are lecafe's own", "choose another")
		case len([]rune(v)) > 256:
			c.bad(at, "a tag's value has at most 256 characters", "shorten it")
		case templates:
			if _, err := render(v, Naming{}); err != nil {
				c.bad(at, "is not a template: "+templateError(err), "use {{.Name}}, {{.Time}}, {{.GitCommit}} and {{.Hash}}")
			}
		}
	}
}

func (c *checker) canary() {
	k := c.r.Canary
	if k == nil {
		return
	}
	c.form("canary.launch_template", k.LaunchTemplate, templateName, "is not a launch template", "give its name or ID")
	c.form("canary.instance_type", k.InstanceType, instanceType, "is not an instance type", "write it as c7i.large")
	c.form("canary.instance_profile", k.InstanceProfile, profileName, "is not an instance profile", "give its name or ARN")
	c.form("canary.subnet", k.Subnet, subnetID, "is not a subnet ID", "write it as subnet-0123456789abcdef0")
	c.between("canary.deadline", k.Deadline, 10*time.Second, 4*time.Hour)
	if k.UserData != "" {
		c.file("canary.user_data", k.UserData, 16<<10)
	}
	for i, t := range k.Test {
		field := fmt.Sprintf("canary.test[%d]", i)
		c.between(field+".timeout", t.Timeout, time.Second, time.Hour)
		c.scriptOrRun(field, t.Script, t.Run)
	}
}

func (c *checker) promote() {
	p := c.r.Promote
	if p == nil {
		return
	}
	c.form("promote.launch_template", p.LaunchTemplate, templateName, "is not a launch template", "give its name or ID")
	c.form("promote.auto_scaling_group", p.AutoScalingGroup, groupName, "is not an Auto Scaling group's name", "give the name, not the ARN")
	c.form("promote.ssm_parameter", p.SSMParameter, ssmName, "is not an SSM parameter's name", "write it as /lecafe/app/image")
	switch {
	case p.LaunchTemplate == "" && p.AutoScalingGroup != "":
		c.bad("promote.launch_template", "is missing", "name the launch template of the group")
	case p.LaunchTemplate == "" && p.SSMParameter == "":
		c.bad("promote", "names nothing to promote to", "set launch_template or ssm_parameter")
	}
}
