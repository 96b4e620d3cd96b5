package ec2

import (
	"slices"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

type value struct {
	Value string `out:"value"`
}

type modifyImageIn struct {
	dry
	ImageID          string `q:"ImageId"`
	Attribute        string
	OperationType    string
	Value            string
	Description      *value
	ImdsSupport      *value
	LaunchPermission *struct{ Add, Remove []launchPermission }
	UserIDs          []string `q:"UserId"`
	UserGroups       []string `q:"UserGroup"`
	OrganizationArns []string `q:"OrganizationArn"`
	UnitArns         []string `q:"OrganizationalUnitArn"`
}

// modifyImageAttribute changes one attribute a call, in the form
// LaunchPermission.Add or in the older form Attribute, OperationType.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ModifyImageAttribute.html
func (c *call) modifyImageAttribute(in *modifyImageIn) (any, error) {
	img, err := c.r.ownImage(in.ImageID)
	if err != nil {
		return nil, err
	}
	if img.state != "available" && img.state != "disabled" {
		return nil, query.Errorf("InvalidAMIID.Unavailable", "The image ID '%s' is not available: its state is %s", img.id, img.state)
	}
	switch in.Attribute {
	case "", "launchPermission":
	case "description":
		in.Description = &value{in.Value}
	case "imdsSupport":
		in.ImdsSupport = &value{in.Value}
	default:
		return nil, query.Unsupported("changing the image attribute %s", in.Attribute)
	}
	given := 0
	for _, g := range []bool{in.Description != nil, in.ImdsSupport != nil, in.LaunchPermission != nil || in.OperationType != ""} {
		if g {
			given++
		}
	}
	if given != 1 {
		return nil, query.Errorf("InvalidParameterCombination", "Exactly one attribute must be given; got %d", given)
	}
	switch {
	case in.Description != nil:
		if len(in.Description.Value) > 255 {
			return nil, query.Errorf("InvalidParameterValue", "A description has at most 255 characters")
		}
		img.description = in.Description.Value
	case in.ImdsSupport != nil:
		// v2.0 is the only value, and it cannot be taken back:
		// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-IMDS-new-instances.html
		if in.ImdsSupport.Value != "v2.0" {
			return nil, query.Errorf("InvalidParameterValue", "Invalid value '%s' for ImdsSupport. Valid value: v2.0", in.ImdsSupport.Value)
		}
		img.imdsSupport = "v2.0"
	default:
		return nil, in.share(img)
	}
	return nil, nil
}

// share changes the launch permissions. An image with an encrypted snapshot
// cannot be public, and one under the account's default key cannot be shared.
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/sharingamis-explicit.html
func (in *modifyImageIn) share(img *image) error {
	var add, remove []launchPermission
	if in.LaunchPermission != nil {
		add, remove = in.LaunchPermission.Add, in.LaunchPermission.Remove
	}
	var named []launchPermission
	for _, v := range in.UserIDs {
		named = append(named, launchPermission{UserID: v})
	}
	for _, v := range in.UserGroups {
		named = append(named, launchPermission{Group: v})
	}
	for _, v := range in.OrganizationArns {
		named = append(named, launchPermission{OrganizationArn: v})
	}
	for _, v := range in.UnitArns {
		named = append(named, launchPermission{OrganizationalUnitArn: v})
	}
	switch in.OperationType {
	case "":
		// LaunchPermission says what changes. Who is named beside it, as Packer
		// does, is named twice.
	case "add":
		add = append(add, named...)
	case "remove":
		remove = append(remove, named...)
	default:
		return query.Errorf("InvalidParameterValue", "Invalid value '%s' for operationType. Valid values: add, remove", in.OperationType)
	}
	next := slices.Clone(img.permissions)
	for _, p := range add {
		switch {
		case p.Group != "" && p.Group != "all":
			return query.Errorf("InvalidParameterValue", "Invalid value '%s' for group. Valid value: all", p.Group)
		case p.UserID != "" && !isAccount(p.UserID):
			return query.Errorf("InvalidAMIAttributeItemValue", "Invalid attribute item value \"%s\" for userId item type.", p.UserID)
		case p == launchPermission{}:
			return query.Errorf("InvalidParameterValue", "A launch permission names a group, an account, an organization or an organizational unit")
		}
		for _, d := range img.devices {
			if d.Ebs == nil || !isTrue(d.Ebs.Encrypted) {
				continue
			}
			if p.Group == "all" {
				return query.Errorf("InvalidParameter", "Snapshots encrypted cannot be shared publicly: %s", d.Ebs.SnapshotID)
			}
			if d.Ebs.KmsKeyID == "" || d.Ebs.KmsKeyID == defaultKey(img.region.name) {
				return query.Errorf("InvalidParameter", "Snapshots encrypted with the AWS Managed CMK can't be shared. Specify another snapshot: %s", d.Ebs.SnapshotID)
			}
		}
		if !slices.Contains(next, p) {
			next = append(next, p)
		}
	}
	img.permissions = slices.DeleteFunc(next, func(p launchPermission) bool { return slices.Contains(remove, p) })
	return nil
}

type imageAttributeIn struct {
	dry
	ImageID   string `q:"ImageId"`
	Attribute string
}

type imageAttributeOut struct {
	ImageID     string             `out:"imageId"`
	Description *value             `out:"description"`
	ImdsSupport *value             `out:"imdsSupport"`
	BootMode    *value             `out:"bootMode"`
	Protection  *value             `out:"deregistrationProtection"`
	Permissions []launchPermission `out:"launchPermission>item"`
	Devices     []blockDevice      `out:"blockDeviceMapping>item"`
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeImageAttribute.html
func (c *call) describeImageAttribute(in *imageAttributeIn) (any, error) {
	img, err := c.r.ownImage(in.ImageID)
	if err != nil {
		return nil, err
	}
	out := &imageAttributeOut{ImageID: img.id}
	switch in.Attribute {
	case "description":
		out.Description = &value{img.description}
	case "imdsSupport":
		out.ImdsSupport = &value{img.imdsSupport}
	case "bootMode":
		out.BootMode = &value{img.bootMode}
	case "deregistrationProtection":
		out.Protection = &value{img.protection}
	case "launchPermission":
		out.Permissions = img.permissions
	case "blockDeviceMapping":
		out.Devices = img.devices
	default:
		return nil, query.Unsupported("the image attribute %q", in.Attribute)
	}
	return out, nil
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ResetImageAttribute.html
func (c *call) resetImageAttribute(in *imageAttributeIn) (any, error) {
	img, err := c.r.ownImage(in.ImageID)
	if err != nil {
		return nil, err
	}
	if in.Attribute != "launchPermission" {
		return nil, query.Errorf("InvalidParameterValue", "Only launchPermission can be reset, not %q", in.Attribute)
	}
	img.permissions = nil
	return nil, nil
}

type deregisterIn struct {
	dry
	ImageID         string `q:"ImageId"`
	DeleteSnapshots bool   `q:"DeleteAssociatedSnapshots"`
}

type deregisterOut struct {
	Return  bool              `out:"return"`
	Results []deletedSnapshot `out:"deleteSnapshotResultSet>item"`
}

type deletedSnapshot struct {
	ID   string `out:"snapshotId"`
	Code string `out:"returnCode"`
}

// deregisterImage leaves the snapshots, unless they are to go too, and no
// other image uses them.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeregisterImage.html
func (c *call) deregisterImage(in *deregisterIn) (any, error) {
	img, err := c.r.ownImage(in.ImageID)
	if err != nil {
		if query.As(err).Code == "InvalidAMIID.NotFound" {
			err = query.Errorf("InvalidAMIID.Unavailable", "The image ID '%s' is no longer available", in.ImageID)
			if !c.r.deregistered[in.ImageID] {
				err = imageNotFound(in.ImageID)
			}
		}
		return nil, err
	}
	if img.protection != "" && img.protection != "disabled" {
		return nil, query.Errorf("OperationNotPermitted", "The image '%s' is protected against deregistration (%s). Disable its deregistration protection first", img.id, img.protection)
	}
	img.state = "deregistered"
	c.r.images.remove(img)
	delete(c.r.imageNames, img.name)
	c.r.deregistered[img.id] = true
	out := &deregisterOut{Return: true}
	if in.DeleteSnapshots {
		for _, id := range img.snapshotIDs() {
			out.Results = append(out.Results, deletedSnapshot{id, c.deleteWith(id)})
		}
	}
	c.s.forget(img.layer)
	return out, nil
}

func (c *call) deleteWith(id string) string {
	snap, ok := c.r.snapshots.byID[id]
	if !ok {
		return "missing-permissions"
	}
	for other := range c.r.images.every() {
		if slices.Contains(other.snapshotIDs(), id) {
			return "skipped"
		}
	}
	c.s.dropSnapshot(snap)
	return "success"
}

type imageIn struct {
	dry
	ImageID      string `q:"ImageId"`
	WithCooldown bool
	DeprecateAt  time.Time
}

// enableImageDeprecation takes a date up to ten years ahead, to the minute.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_EnableImageDeprecation.html
func (c *call) enableImageDeprecation(in *imageIn) (any, error) {
	img, err := c.r.ownImage(in.ImageID)
	if err != nil {
		return nil, err
	}
	now := c.s.opts.Clock.Now()
	switch {
	case in.DeprecateAt.IsZero():
		return nil, query.Errorf("MissingParameter", "The request must contain the parameter DeprecateAt")
	case in.DeprecateAt.Before(now):
		return nil, query.Errorf("InvalidParameterValue", "The deprecation date %s is in the past", in.DeprecateAt.Format(time.RFC3339))
	case in.DeprecateAt.After(now.AddDate(10, 0, 0)):
		return nil, query.Errorf("InvalidParameterValue", "The deprecation date %s is more than 10 years ahead", in.DeprecateAt.Format(time.RFC3339))
	}
	img.deprecation = in.DeprecateAt.Round(time.Minute)
	return nil, nil
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DisableImageDeprecation.html
func (c *call) disableImageDeprecation(in *imageIn) (any, error) {
	img, err := c.r.ownImage(in.ImageID)
	if err != nil {
		return nil, err
	}
	img.deprecation = time.Time{}
	return nil, nil
}

// disableImage makes the image private; it can no longer be launched.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DisableImage.html
func (c *call) disableImage(in *imageIn) (any, error) {
	img, err := c.r.ownImage(in.ImageID)
	if err != nil {
		return nil, err
	}
	if img.state != "available" && img.state != "disabled" {
		return nil, query.Errorf("InvalidAMIID.Unavailable", "The image ID '%s' is not available: its state is %s", img.id, img.state)
	}
	img.state, img.permissions = "disabled", nil
	return nil, nil
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_EnableImage.html
func (c *call) enableImage(in *imageIn) (any, error) {
	img, err := c.r.ownImage(in.ImageID)
	if err != nil {
		return nil, err
	}
	if img.state == "disabled" {
		img.state = "available"
	}
	return nil, nil
}

type protectionOut struct {
	Return string `out:"return"`
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_EnableImageDeregistrationProtection.html
func (c *call) enableImageProtection(in *imageIn) (any, error) {
	img, err := c.r.ownImage(in.ImageID)
	if err != nil {
		return nil, err
	}
	img.protection = "enabled-without-cooldown"
	if in.WithCooldown {
		img.protection = "enabled-with-cooldown"
	}
	return &protectionOut{img.protection}, nil
}

// disableImageProtection takes effect after 24 hours where the protection has
// a cooldown.
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ami-deregistration-protection.html
func (c *call) disableImageProtection(in *imageIn) (any, error) {
	img, err := c.r.ownImage(in.ImageID)
	if err != nil {
		return nil, err
	}
	if img.protection != "enabled-with-cooldown" {
		img.protection = "disabled"
		return &protectionOut{img.protection}, nil
	}
	img.protection = "disabled-after-cooldown"
	c.s.later(24*time.Hour, func() {
		if img.protection == "disabled-after-cooldown" {
			img.protection = "disabled"
		}
	})
	return &protectionOut{img.protection}, nil
}
