package ec2

import (
	"slices"
	"strconv"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

type volume struct {
	meta
	az         string
	size       int
	kind       string
	iops       *int
	throughput *int
	encrypted  bool
	kmsKey     string
	snapshot   string
	attachedTo *instance
	device     string
	deletes    bool
}

var volumeNotFound = notFoundf("InvalidVolume.NotFound", "The volume '%s' does not exist.")

// devicesFor are an image's block devices with a launch's changes.
func devicesFor(img *image, over []blockDevice) ([]blockDevice, error) {
	out := slices.Clone(img.devices)
	for _, o := range over {
		i := slices.IndexFunc(out, func(b blockDevice) bool { return b.DeviceName == o.DeviceName })
		switch {
		case o.NoDevice != nil:
			if i >= 0 {
				out = slices.Delete(out, i, i+1)
			}
		case i < 0:
			if o.Ebs != nil && o.Ebs.SnapshotID == "" && o.Ebs.VolumeSize == nil {
				return nil, query.Errorf("InvalidBlockDeviceMapping", "The device '%s' has neither a snapshot nor a size. A device that is not the image's needs one", o.DeviceName)
			}
			out = append(out, o)
		case o.Ebs != nil && out[i].Ebs != nil:
			have := *out[i].Ebs
			if o.Ebs.VolumeSize != nil && have.VolumeSize != nil && *o.Ebs.VolumeSize < *have.VolumeSize {
				return nil, query.Errorf("InvalidBlockDeviceMapping", "Volume of size %dGB is smaller than snapshot '%s', expect size >= %dGB", *o.Ebs.VolumeSize, have.SnapshotID, *have.VolumeSize)
			}
			if o.Ebs.Encrypted != nil && !*o.Ebs.Encrypted && isTrue(have.Encrypted) {
				return nil, query.Errorf("InvalidBlockDeviceMapping", "The snapshot '%s' is encrypted; a volume of it cannot be unencrypted", have.SnapshotID)
			}
			merged := o.Ebs.over(have)
			out[i].Ebs = &merged
		default:
			out[i] = o
		}
	}
	return slices.DeleteFunc(out, func(b blockDevice) bool { return b.Ebs == nil }), nil
}

// attach makes an instance's volume. Deletion at termination is the default
// for every volume of a launch.
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configure-root-volume-delete-on-termination.html
func (s *Server) attach(i *instance, b blockDevice, tags []tag) attached {
	v := &volume{meta: s.stamp(i.region, newID("vol"), tags), az: i.subnet.az, size: 8, kind: "gp2", attachedTo: i, device: b.DeviceName}
	e := b.Ebs
	if e.VolumeSize != nil {
		v.size = *e.VolumeSize
	}
	if e.VolumeType != "" {
		v.kind = e.VolumeType
	}
	v.iops, v.throughput, v.encrypted, v.kmsKey, v.snapshot = e.Iops, e.Throughput, isTrue(e.Encrypted), e.KmsKeyID, e.SnapshotID
	if v.encrypted && v.kmsKey == "" {
		v.kmsKey = defaultKey(i.region.name)
	}
	v.deletes = e.DeleteOnTermination == nil || *e.DeleteOnTermination
	i.region.volumes.add(v)
	s.reveal(v)
	return attached{b.DeviceName, v, v.deletes}
}

// defaultKey is the account's aws/ebs key.
func defaultKey(region string) string {
	return "arn:aws:kms:" + region + ":" + account + ":key/00000000-1111-2222-3333-444444444444"
}

func (i *instance) volumeAt(device string) *volume {
	for _, a := range i.devices {
		if a.device == device {
			return a.volume
		}
	}
	return nil
}

func (r *region) volumeOf(id string) (*volume, error) {
	if err := checkID("vol", "InvalidVolumeID.Malformed", id); err != nil {
		return nil, err
	}
	v, ok := r.volumes.get(id)
	if !ok {
		return nil, volumeNotFound(id)
	}
	return v, nil
}

type attachmentOut struct {
	VolumeID   string    `out:"volumeId"`
	InstanceID string    `out:"instanceId"`
	Device     string    `out:"device"`
	Status     string    `out:"status"`
	AttachTime time.Time `out:"attachTime"`
	Deletes    bool      `out:"deleteOnTermination"`
}

type volumeOut struct {
	VolumeID    string          `out:"volumeId"`
	Size        int             `out:"size"`
	SnapshotID  string          `out:"snapshotId,keep"`
	AZ          string          `out:"availabilityZone"`
	Status      string          `out:"status"`
	Created     time.Time       `out:"createTime"`
	Attachments []attachmentOut `out:"attachmentSet>item"`
	Tags        []tag           `out:"tagSet>item"`
	Type        string          `out:"volumeType"`
	Iops        *int            `out:"iops"`
	Throughput  *int            `out:"throughput"`
	Encrypted   bool            `out:"encrypted"`
	KmsKeyID    string          `out:"kmsKeyId"`
	MultiAttach bool            `out:"multiAttachEnabled"`
}

func (v *volume) status() string {
	if v.attachedTo != nil {
		return "in-use"
	}
	return "available"
}

func (v *volume) out() volumeOut {
	out := volumeOut{
		VolumeID: v.id, Size: v.size, SnapshotID: v.snapshot, AZ: v.az, Status: v.status(), Created: v.created, Tags: v.tags,
		Type: v.kind, Iops: v.iops, Throughput: v.throughput, Encrypted: v.encrypted, KmsKeyID: v.kmsKey,
	}
	if v.attachedTo != nil {
		out.Attachments = []attachmentOut{{v.id, v.attachedTo.id, v.device, "attached", v.created, v.deletes}}
	}
	return out
}

type describeVolumesIn struct {
	dry
	paging
	VolumeIDs []string `q:"VolumeId"`
	Filters   []filter `q:"Filter"`
}

type describeVolumesOut struct {
	Volumes   []volumeOut `out:"volumeSet>item"`
	NextToken string      `out:"nextToken"`
}

var volumeFilters = filters[*volume]{
	"volume-id":         func(v *volume) []string { return one(v.id) },
	"status":            func(v *volume) []string { return one(v.status()) },
	"snapshot-id":       func(v *volume) []string { return one(v.snapshot) },
	"availability-zone": func(v *volume) []string { return one(v.az) },
	"encrypted":         func(v *volume) []string { return yes(v.encrypted) },
	"volume-type":       func(v *volume) []string { return one(v.kind) },
	"size":              func(v *volume) []string { return one(strconv.Itoa(v.size)) },
	"create-time":       func(v *volume) []string { return one(v.created.Format(query.TimeFormat)) },
	"attachment.instance-id": func(v *volume) []string {
		if v.attachedTo == nil {
			return nil
		}
		return one(v.attachedTo.id)
	},
	"attachment.device": func(v *volume) []string {
		if v.attachedTo == nil {
			return nil
		}
		return one(v.device)
	},
	"attachment.status": func(v *volume) []string {
		if v.attachedTo == nil {
			return nil
		}
		return one("attached")
	},
	"attachment.delete-on-termination": func(v *volume) []string {
		if v.attachedTo == nil {
			return nil
		}
		return yes(v.deletes)
	},
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeVolumes.html
func (c *call) describeVolumes(in *describeVolumesIn) (any, error) {
	match, err := volumeFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	page, next, err := list(&c.r.volumes, in.VolumeIDs, in.paging, 5, volumeNotFound, match)
	if err != nil {
		return nil, err
	}
	out := &describeVolumesOut{NextToken: next}
	for _, v := range page {
		out.Volumes = append(out.Volumes, v.out())
	}
	return out, nil
}

type deleteVolumeIn struct {
	dry
	VolumeID string `q:"VolumeId"`
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeleteVolume.html
func (c *call) deleteVolume(in *deleteVolumeIn) (any, error) {
	v, err := c.r.volumeOf(in.VolumeID)
	if err != nil {
		return nil, err
	}
	if v.attachedTo != nil {
		return nil, query.Errorf("VolumeInUse", "Volume %s is currently attached to %s", v.id, v.attachedTo.id)
	}
	c.r.volumes.remove(v)
	return nil, nil
}
