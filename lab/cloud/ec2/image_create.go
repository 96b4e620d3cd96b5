package ec2

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

type createImageIn struct {
	dry
	InstanceID   string `q:"InstanceId"`
	Name         string
	Description  string
	NoReboot     bool
	BlockDevices []blockDevice `q:"BlockDeviceMapping"`
	TagSpecs     []tagSpec     `q:"TagSpecification"`
}

type imageIDOut struct {
	ImageID string `out:"imageId"`
}

// createImage is CreateImage: the image and its snapshots are pending when it
// returns. A running instance is shut down for it, unless NoReboot, and is
// still shown as running.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateImage.html
func (c *call) createImage(in *createImageIn) (any, error) {
	i, err := c.instance(in.InstanceID)
	if err != nil {
		return nil, err
	}
	if err := c.r.checkImageName(in.Name); err != nil {
		return nil, err
	}
	if len(in.Description) > 255 {
		return nil, query.Errorf("InvalidParameterValue", "Character sets beyond ASCII or descriptions of more than 255 characters are not supported.")
	}
	if i.state != running && i.state != stopped {
		return nil, query.Errorf("IncorrectInstanceState", "The instance '%s' is not in a state from which an image can be created: it is %s", i.id, i.state.Name)
	}
	tags, err := specified(in.TagSpecs, "image", "snapshot")
	if err != nil {
		return nil, err
	}
	snapTags, err := specified(in.TagSpecs, "snapshot", "image")
	if err != nil {
		return nil, err
	}
	devices, err := c.imageDevices(i, in.BlockDevices)
	if err != nil {
		return nil, err
	}

	img := c.s.newImage(c.r, in.Name, in.Description, tags)
	img.arch, img.rootDevice, img.bootMode, img.imdsSupport = i.image.arch, i.image.rootDevice, i.image.bootMode, i.image.imdsSupport
	img.source = imageSource{image: i.image.id, region: c.r.name, instance: i.id}
	var snaps []*snapshot
	for n := range devices {
		e := devices[n].Ebs
		if e == nil || e.SnapshotID != "" {
			continue
		}
		vol := i.volumeAt(devices[n].DeviceName)
		snap := c.s.newSnapshot(c.r, "Created by CreateImage("+i.id+") for "+img.id, snapTags)
		snap.volume, snap.size, snap.encrypted, snap.kmsKey = vol.id, vol.size, vol.encrypted, vol.kmsKey
		if devices[n].DeviceName == img.rootDevice {
			snap.layer = img.layer
		}
		e.SnapshotID, e.KmsKeyID = snap.id, snap.kmsKey
		snaps = append(snaps, snap)
	}
	img.devices = devices
	c.s.capture(i, img, snaps, in.NoReboot)
	return &imageIDOut{img.id}, nil
}

// imageDevices are the instance's volumes with the request's changes: a device
// may be left out, added, or changed in size, type or deletion, but not in
// encryption, which a CreateImage cannot change.
func (c *call) imageDevices(i *instance, over []blockDevice) ([]blockDevice, error) {
	byName := map[string]blockDevice{}
	for _, a := range i.devices {
		v := a.volume
		byName[a.device] = blockDevice{DeviceName: a.device, Ebs: &ebs{
			DeleteOnTermination: new(a.deleteOnTermination), Encrypted: new(v.encrypted), VolumeSize: new(v.size), VolumeType: v.kind,
			Iops: v.iops, Throughput: v.throughput,
		}}
	}
	for _, o := range over {
		if err := o.check(); err != nil {
			return nil, err
		}
		if o.NoDevice != nil {
			if o.DeviceName == i.image.rootDevice {
				return nil, query.Errorf("InvalidBlockDeviceMapping", "The root device %s cannot be left out of an image", o.DeviceName)
			}
			delete(byName, o.DeviceName)
			continue
		}
		have, ok := byName[o.DeviceName]
		if !ok {
			if o.Ebs == nil || o.Ebs.SnapshotID == "" && o.Ebs.VolumeSize == nil {
				if o.VirtualName == "" {
					return nil, query.Errorf("InvalidBlockDeviceMapping", "The device %s has neither snapshot nor size", o.DeviceName)
				}
			}
			if o.Ebs != nil && o.Ebs.SnapshotID == "" {
				return nil, query.Unsupported("an empty volume in CreateImage")
			}
			byName[o.DeviceName] = o
			continue
		}
		if o.Ebs == nil {
			continue
		}
		if o.Ebs.Encrypted != nil && *o.Ebs.Encrypted != *have.Ebs.Encrypted {
			return nil, query.Errorf("InvalidBlockDeviceMapping", "Encryption of %s cannot be changed by CreateImage; copy the image instead", o.DeviceName)
		}
		if o.Ebs.VolumeSize != nil && *o.Ebs.VolumeSize < *have.Ebs.VolumeSize {
			return nil, query.Errorf("InvalidBlockDeviceMapping", "Volume of size %dGB is smaller than volume '%s', expect size >= %dGB", *o.Ebs.VolumeSize, o.DeviceName, *have.Ebs.VolumeSize)
		}
		merged := o.Ebs.over(*have.Ebs)
		have.Ebs = &merged
		byName[o.DeviceName] = have
	}
	out := make([]blockDevice, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		out = append(out, byName[name])
	}
	return out, nil
}

// over returns base with the fields that e has in place of its own.
func (e ebs) over(base ebs) ebs {
	if e.DeleteOnTermination != nil {
		base.DeleteOnTermination = e.DeleteOnTermination
	}
	if e.Encrypted != nil {
		base.Encrypted = e.Encrypted
	}
	if e.VolumeSize != nil {
		base.VolumeSize = e.VolumeSize
	}
	if e.VolumeType != "" && e.VolumeType != base.VolumeType {
		base.VolumeType, base.Iops, base.Throughput = e.VolumeType, nil, nil
	}
	if e.Iops != nil {
		base.Iops = e.Iops
	}
	if e.Throughput != nil {
		base.Throughput = e.Throughput
	}
	if e.KmsKeyID != "" {
		base.KmsKeyID = e.KmsKeyID
	}
	if e.SnapshotID != "" {
		base.SnapshotID = e.SnapshotID
	}
	return base
}

// capture freezes the instance's disk as the image's. Without machines the
// image and its snapshots are done after their time.
func (s *Server) capture(i *instance, img *image, snaps []*snapshot, noReboot bool) {
	failure := s.faults.takeImageFailure()
	if s.opts.Machines == nil || failure != "" {
		s.finishImage(img, snaps, s.opts.Times.Image, failure)
		return
	}
	off := i.state == stopped
	i.capturing = !off && !noReboot
	s.job(i, func(ctx context.Context) {
		size, err := s.captureMachine(ctx, i.id, img.layer, off, noReboot)
		s.lock()
		defer s.unlock()
		i.capturing = false
		if err != nil {
			s.log.Error("image is not captured", "image", img.id, "instance", i.id, "err", err)
			s.failImage(img, snaps, "Client.InternalError: "+err.Error())
			return
		}
		for _, snap := range snaps {
			if snap.layer == img.layer {
				snap.bytes = size
			}
		}
		d := time.Second
		if s.opts.Hold {
			d = s.opts.Times.Image
		}
		s.finishImage(img, snaps, d, "")
	})
}

func (s *Server) captureMachine(ctx context.Context, instanceID, layer string, off, noReboot bool) (int64, error) {
	m := s.opts.Machines
	if off || noReboot {
		return m.Capture(ctx, instanceID, layer)
	}
	if err := m.Stop(ctx, instanceID, false); err != nil {
		return 0, err
	}
	size, err := m.Capture(ctx, instanceID, layer)
	if serr := m.Start(ctx, instanceID); err == nil {
		err = serr
	}
	return size, err
}

// finishImage makes an image available, or failed, in d, the progress of its
// snapshots going up in tenths meanwhile.
func (s *Server) finishImage(img *image, snaps []*snapshot, d time.Duration, failure string) {
	s.progress(snaps, d*8/10, "")
	s.later(d, func() {
		if img.state != "pending" {
			return // deregistered meanwhile
		}
		if failure != "" {
			s.failImage(img, snaps, failure)
			return
		}
		img.state = "available"
	})
}

func (s *Server) failImage(img *image, snaps []*snapshot, why string) {
	if img.state == "pending" {
		img.state = "failed"
		img.reason = &reason{"Client.InternalError", why}
	}
	for _, snap := range snaps {
		if snap.state == "pending" {
			snap.state, snap.message = "error", why
		}
	}
}
