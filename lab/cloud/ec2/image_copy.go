package ec2

import (
	"slices"
	"strings"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

type copyImageIn struct {
	dry
	Name          string
	Description   *string
	SourceImageID string `q:"SourceImageId"`
	SourceRegion  string
	ClientToken   string
	Encrypted     *bool
	KmsKeyID      string `q:"KmsKeyId"`
	CopyImageTags bool
	TagSpecs      []tagSpec `q:"TagSpecification"`
}

// copyImage runs in the destination's region. Launch permissions and
// deprecation are not copied, tags only where asked; an encrypted source stays
// encrypted.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CopyImage.html
func (c *call) copyImage(in *copyImageIn) (any, error) {
	made, key, err := c.r.token("CopyImage", in.ClientToken, in)
	if err != nil {
		return nil, err
	}
	if made.id != "" {
		return &imageIDOut{made.id}, nil
	}
	if in.SourceRegion == "" {
		return nil, query.Errorf("MissingParameter", "The request must contain the parameter SourceRegion")
	}
	from, err := c.s.region(in.SourceRegion)
	if err != nil {
		return nil, err
	}
	source, err := from.imageOf(in.SourceImageID)
	if err != nil {
		return nil, err
	}
	if source.state != "available" {
		return nil, query.Errorf("InvalidAMIID.Unavailable", "The source image %s is not available: its state is %s", source.id, source.state)
	}
	if err := c.r.checkImageName(in.Name); err != nil {
		return nil, err
	}
	encrypt := isTrue(in.Encrypted)
	if in.KmsKeyID != "" && !encrypt {
		return nil, query.Errorf("InvalidParameterDependency", "The parameter KmsKeyId requires the parameter Encrypted to be set.")
	}
	if err := c.checkKey(in.KmsKeyID); err != nil {
		return nil, err
	}
	tags, err := specified(in.TagSpecs, "image", "snapshot")
	if err != nil {
		return nil, err
	}
	snapTags, err := specified(in.TagSpecs, "snapshot", "image")
	if err != nil {
		return nil, err
	}
	if in.CopyImageTags {
		tags = mergeTags(slices.DeleteFunc(slices.Clone(source.tags), func(t tag) bool { return strings.HasPrefix(t.Key, "aws:") }), tags)
	}
	description := source.description
	if in.Description != nil {
		description = *in.Description
	}
	img := c.s.newImage(c.r, in.Name, description, tags)
	img.arch, img.rootDevice, img.bootMode, img.imdsSupport, img.ena = source.arch, source.rootDevice, source.bootMode, source.imdsSupport, source.ena
	img.source = imageSource{image: source.id, region: from.name}
	img.layer = source.layer // the same disk
	var snaps []*snapshot
	img.devices = slices.Clone(source.devices)
	for n, d := range img.devices {
		if d.Ebs == nil {
			continue
		}
		e := *d.Ebs
		snap := c.s.newSnapshot(c.r, "Copied for DestinationAmi "+img.id+" from SourceAmi "+source.id+" for SourceSnapshot "+e.SnapshotID, snapTags)
		if e.VolumeSize != nil {
			snap.size = *e.VolumeSize
		}
		if old, ok := from.snapshots.byID[e.SnapshotID]; ok {
			snap.layer, snap.bytes = old.layer, old.bytes
		}
		if snap.encrypted = encrypt || isTrue(e.Encrypted); snap.encrypted {
			snap.kmsKey = in.KmsKeyID
			if snap.kmsKey == "" {
				snap.kmsKey = defaultKey(c.r.name)
			}
		}
		e.SnapshotID, e.Encrypted, e.KmsKeyID = snap.id, new(snap.encrypted), ""
		if snap.encrypted {
			e.KmsKeyID = snap.kmsKey
		}
		img.devices[n].Ebs = &e
		snaps = append(snaps, snap)
	}
	if key != "" {
		made.id = img.id
		c.r.otherTokens[key] = made
	}
	c.s.finishImage(img, snaps, c.s.opts.Times.Image, c.s.faults.takeImageFailure())
	return &imageIDOut{img.id}, nil
}

// checkKey refuses a KMS key of another region; which keys exist is not
// modelled.
func (c *call) checkKey(key string) error {
	if rest, ok := strings.CutPrefix(key, "arn:aws:kms:"); ok && !strings.HasPrefix(rest, c.r.name+":") {
		return query.Errorf("InvalidParameterValue", "The KMS key %s is not of the region %s", key, c.r.name)
	}
	return nil
}

type registerIn struct {
	dry
	Name               string
	Description        string
	Architecture       string
	RootDeviceName     string
	BootMode           string
	EnaSupport         bool
	SriovNetSupport    string
	ImdsSupport        string
	TpmSupport         string
	VirtualizationType string
	BlockDevices       []blockDevice `q:"BlockDeviceMapping"`
	TagSpecs           []tagSpec     `q:"TagSpecification"`
}

// registerImage makes an image of snapshots, available at once.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RegisterImage.html
func (c *call) registerImage(in *registerIn) (any, error) {
	if err := c.r.checkImageName(in.Name); err != nil {
		return nil, err
	}
	switch in.Architecture {
	case "x86_64", "arm64":
	default: // the default, i386, has no instance type left
		return nil, query.Errorf("InvalidParameterValue", "Architecture '%s' is not supported: x86_64 or arm64", in.Architecture)
	}
	if in.VirtualizationType != "hvm" {
		return nil, query.Errorf("InvalidParameterValue", "The virtualization type '%s' is not supported: hvm", in.VirtualizationType)
	}
	if in.ImdsSupport != "" && in.ImdsSupport != "v2.0" {
		return nil, query.Errorf("InvalidParameterValue", "Invalid value '%s' for ImdsSupport. Valid value: v2.0", in.ImdsSupport)
	}
	tags, err := specified(in.TagSpecs, "image")
	if err != nil {
		return nil, err
	}
	if in.RootDeviceName == "" {
		in.RootDeviceName = "/dev/sda1"
	}
	var root *snapshot
	devices := slices.Clone(in.BlockDevices)
	for n, d := range devices {
		if err := d.check(); err != nil {
			return nil, err
		}
		if d.Ebs == nil || d.Ebs.SnapshotID == "" {
			continue
		}
		snap, err := c.r.snapshotOf(d.Ebs.SnapshotID)
		if err != nil {
			return nil, err
		}
		if snap.state != "completed" {
			return nil, query.Errorf("IncorrectState", "Snapshot is in invalid state - %s", snap.state)
		}
		e := *d.Ebs
		if e.VolumeSize == nil {
			e.VolumeSize = new(snap.size)
		}
		if *e.VolumeSize < snap.size {
			return nil, query.Errorf("InvalidBlockDeviceMapping", "Volume of size %dGB is smaller than snapshot '%s', expect size >= %dGB", *e.VolumeSize, snap.id, snap.size)
		}
		if e.Encrypted != nil && *e.Encrypted != snap.encrypted {
			return nil, query.Errorf("InvalidBlockDeviceMapping", "the encrypted flag cannot be specified since device %s has a snapshot specified", d.DeviceName)
		}
		e.Encrypted = new(snap.encrypted)
		e.KmsKeyID = snap.kmsKey
		if e.VolumeType == "" {
			e.VolumeType = "gp2"
		}
		if e.DeleteOnTermination == nil {
			e.DeleteOnTermination = new(true)
		}
		devices[n].Ebs = &e
		if d.DeviceName == in.RootDeviceName {
			root = snap
		}
	}
	if root == nil {
		return nil, query.Errorf("InvalidBlockDeviceMapping", "The root device '%s' has no snapshot", in.RootDeviceName)
	}
	img := c.s.newImage(c.r, in.Name, in.Description, tags)
	img.arch, img.rootDevice, img.bootMode, img.imdsSupport, img.ena = in.Architecture, in.RootDeviceName, in.BootMode, in.ImdsSupport, in.EnaSupport
	img.devices, img.layer, img.state = devices, root.layer, "available"
	return &imageIDOut{img.id}, nil
}
