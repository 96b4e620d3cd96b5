package ec2

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

type snapshot struct {
	meta
	region      *region
	description string
	state       string // pending, completed, error
	message     string
	progress    int // percent
	completed   time.Time
	volume      string
	size        int // GiB
	bytes       int64
	encrypted   bool
	kmsKey      string
	layer       string
	permissions []volumePermission
}

type volumePermission struct {
	Group  string `out:"group"`
	UserID string `q:"UserId" out:"userId"`
}

var snapshotNotFound = notFoundf("InvalidSnapshot.NotFound", "The snapshot '%s' does not exist.")

func (s *Server) newSnapshot(r *region, description string, tags []tag) *snapshot {
	snap := &snapshot{meta: s.stamp(r, newID("snap"), tags), region: r, description: description, state: "pending", volume: "vol-ffffffff"}
	r.snapshots.add(snap)
	s.reveal(snap)
	return snap
}

// progress takes snapshots to completed in d, by tenths, or to error.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_Snapshot.html, Progress
func (s *Server) progress(snaps []*snapshot, d time.Duration, failure string) {
	if len(snaps) == 0 {
		return
	}
	s.later(d/10, func() {
		going := false
		for _, snap := range snaps {
			if snap.state != "pending" {
				continue
			}
			snap.progress += 10
			switch {
			case failure != "" && snap.progress >= 50:
				snap.state, snap.message = "error", failure
			case snap.progress >= 100:
				snap.state, snap.completed = "completed", s.opts.Clock.Now().Truncate(time.Millisecond)
			default:
				going = true
			}
		}
		if going {
			s.progress(snaps, d, failure)
		}
	})
}

func (r *region) snapshotOf(id string) (*snapshot, error) {
	if err := checkID("snap", "InvalidSnapshotID.Malformed", id); err != nil {
		return nil, err
	}
	snap, ok := r.snapshots.get(id)
	if !ok {
		return nil, snapshotNotFound(id)
	}
	return snap, nil
}

type snapshotOut struct {
	SnapshotID     string    `out:"snapshotId"`
	VolumeID       string    `out:"volumeId"`
	Status         string    `out:"status"`
	StatusMessage  string    `out:"statusMessage"`
	StartTime      time.Time `out:"startTime"`
	CompletionTime time.Time `out:"completionTime"`
	Progress       string    `out:"progress"`
	OwnerID        string    `out:"ownerId"`
	VolumeSize     int       `out:"volumeSize"`
	FullSize       *int64    `out:"fullSnapshotSizeInBytes"`
	Description    string    `out:"description"`
	Encrypted      bool      `out:"encrypted"`
	KmsKeyID       string    `out:"kmsKeyId"`
	StorageTier    string    `out:"storageTier"`
	Tags           []tag     `out:"tagSet>item"`
}

func (s *snapshot) out() snapshotOut {
	out := snapshotOut{
		SnapshotID: s.id, VolumeID: s.volume, Status: s.state, StatusMessage: s.message, StartTime: s.created, CompletionTime: s.completed,
		Progress: strconv.Itoa(s.progress) + "%", OwnerID: account, VolumeSize: s.size, Description: s.description,
		Encrypted: s.encrypted, KmsKeyID: s.kmsKey, StorageTier: "standard", Tags: s.tags,
	}
	if s.bytes > 0 {
		out.FullSize = &s.bytes
	}
	return out
}

type describeSnapshotsIn struct {
	dry
	paging
	SnapshotIDs  []string `q:"SnapshotId"`
	Owners       []string `q:"Owner"`
	RestorableBy []string `q:"RestorableBy"`
	Filters      []filter `q:"Filter"`
}

type describeSnapshotsOut struct {
	Snapshots []snapshotOut `out:"snapshotSet>item"`
	NextToken string        `out:"nextToken"`
}

var snapshotFilters = filters[*snapshot]{
	"snapshot-id":  func(s *snapshot) []string { return one(s.id) },
	"volume-id":    func(s *snapshot) []string { return one(s.volume) },
	"status":       func(s *snapshot) []string { return one(s.state) },
	"description":  func(s *snapshot) []string { return one(s.description) },
	"progress":     func(s *snapshot) []string { return one(strconv.Itoa(s.progress) + "%") },
	"owner-id":     func(s *snapshot) []string { return one(account) },
	"owner-alias":  func(s *snapshot) []string { return nil },
	"encrypted":    func(s *snapshot) []string { return yes(s.encrypted) },
	"volume-size":  func(s *snapshot) []string { return one(strconv.Itoa(s.size)) },
	"storage-tier": func(s *snapshot) []string { return one("standard") },
	"start-time":   func(s *snapshot) []string { return one(s.created.Format(query.TimeFormat)) },
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSnapshots.html
func (c *call) describeSnapshots(in *describeSnapshotsIn) (any, error) {
	match, err := snapshotFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	mine := len(in.Owners) == 0 || slices.ContainsFunc(in.Owners, func(o string) bool { return o == "self" || o == account })
	page, next, err := list(&c.r.snapshots, in.SnapshotIDs, in.paging, 5, snapshotNotFound, func(s *snapshot) bool { return mine && match(s) })
	if err != nil {
		return nil, err
	}
	out := &describeSnapshotsOut{NextToken: next}
	for _, s := range page {
		out.Snapshots = append(out.Snapshots, s.out())
	}
	return out, nil
}

type deleteSnapshotIn struct {
	dry
	SnapshotID string `q:"SnapshotId"`
}

// deleteSnapshot refuses while an image uses the snapshot.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeleteSnapshot.html
func (c *call) deleteSnapshot(in *deleteSnapshotIn) (any, error) {
	snap, err := c.r.snapshotOf(in.SnapshotID)
	if err != nil {
		return nil, err
	}
	for img := range c.r.images.every() {
		if img.owner == account && slices.Contains(img.snapshotIDs(), snap.id) {
			return nil, query.Errorf("InvalidSnapshot.InUse", "The snapshot %s is currently in use by %s", snap.id, img.id)
		}
	}
	c.s.dropSnapshot(snap)
	return nil, nil
}

func (s *Server) dropSnapshot(snap *snapshot) {
	snap.region.snapshots.remove(snap)
	s.forget(snap.layer)
}

func (i *image) snapshotIDs() []string {
	var ids []string
	for _, d := range i.devices {
		if d.Ebs != nil && d.Ebs.SnapshotID != "" {
			ids = append(ids, d.Ebs.SnapshotID)
		}
	}
	return ids
}

type createSnapshotIn struct {
	dry
	VolumeID    string `q:"VolumeId"`
	Description string
	TagSpecs    []tagSpec `q:"TagSpecification"`
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateSnapshot.html
func (c *call) createSnapshot(in *createSnapshotIn) (any, error) {
	if c.s.opts.Machines != nil {
		return nil, query.Unsupported("CreateSnapshot where instances run on machines; CreateImage captures their disks")
	}
	vol, err := c.r.volumeOf(in.VolumeID)
	if err != nil {
		return nil, err
	}
	tags, err := specified(in.TagSpecs, "snapshot")
	if err != nil {
		return nil, err
	}
	snap := c.s.newSnapshot(c.r, in.Description, tags)
	snap.volume, snap.size, snap.encrypted, snap.kmsKey = vol.id, vol.size, vol.encrypted, vol.kmsKey
	c.s.progress([]*snapshot{snap}, c.s.opts.Times.Snapshot, c.s.faults.takeSnapshotFailure())
	return new(snap.out()), nil
}

type snapshotAttributeIn struct {
	dry
	SnapshotID string `q:"SnapshotId"`
	Attribute  string
}

type snapshotAttributeOut struct {
	SnapshotID  string             `out:"snapshotId"`
	Permissions []volumePermission `out:"createVolumePermission>item"`
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSnapshotAttribute.html
func (c *call) describeSnapshotAttribute(in *snapshotAttributeIn) (any, error) {
	snap, err := c.r.snapshotOf(in.SnapshotID)
	if err != nil {
		return nil, err
	}
	if in.Attribute != "createVolumePermission" {
		return nil, query.Unsupported("the snapshot attribute %q", in.Attribute)
	}
	return &snapshotAttributeOut{snap.id, snap.permissions}, nil
}

type modifySnapshotIn struct {
	dry
	SnapshotID    string `q:"SnapshotId"`
	Attribute     string
	OperationType string
	UserIDs       []string `q:"UserId"`
	GroupNames    []string `q:"UserGroup"`
	Permission    struct {
		Add, Remove []volumePermission
	} `q:"CreateVolumePermission"`
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ModifySnapshotAttribute.html
func (c *call) modifySnapshotAttribute(in *modifySnapshotIn) (any, error) {
	snap, err := c.r.snapshotOf(in.SnapshotID)
	if err != nil {
		return nil, err
	}
	add, remove := in.Permission.Add, in.Permission.Remove
	var named []volumePermission
	for _, u := range in.UserIDs {
		named = append(named, volumePermission{UserID: u})
	}
	for _, g := range in.GroupNames {
		named = append(named, volumePermission{Group: g})
	}
	switch in.OperationType {
	case "add", "":
		add = append(add, named...)
	case "remove":
		remove = append(remove, named...)
	default:
		return nil, query.Errorf("InvalidParameterValue", "Invalid value '%s' for operationType", in.OperationType)
	}
	next := slices.Clone(snap.permissions)
	for _, p := range add {
		// An encrypted snapshot cannot be public:
		// https://docs.aws.amazon.com/ebs/latest/userguide/ebs-modifying-snapshot-permissions.html
		if p.Group != "" && snap.encrypted {
			return nil, query.Errorf("OperationNotPermitted", "Encrypted snapshots cannot be shared publicly")
		}
		if p.UserID != "" && !isAccount(p.UserID) {
			return nil, query.Errorf("InvalidParameterValue", "User ID '%s' is not an account ID", p.UserID)
		}
		if !slices.Contains(next, p) {
			next = append(next, p)
		}
	}
	snap.permissions = slices.DeleteFunc(next, func(p volumePermission) bool { return slices.Contains(remove, p) })
	return nil, nil
}

func isAccount(id string) bool { return len(id) == 12 && strings.Trim(id, "0123456789") == "" }
