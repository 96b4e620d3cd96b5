package ec2

import (
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

type image struct {
	meta
	region       *region
	name         string
	description  string
	owner        string
	ownerAlias   string
	location     string
	state        string // pending, available, failed, disabled, deregistered
	reason       *reason
	arch         string
	rootDevice   string
	devices      []blockDevice // replaced, never written to
	imdsSupport  string
	bootMode     string
	ena          bool
	deprecation  time.Time
	protection   string // disabled, enabled-without-cooldown, ...
	permissions  []launchPermission
	lastLaunched time.Time
	source       imageSource
	layer        string // the machine driver's name of the disk
}

// imageSource says what an image was made from.
type imageSource struct {
	image, region, instance string
}

type launchPermission struct {
	Group                 string `out:"group"`
	UserID                string `q:"UserId" out:"userId"`
	OrganizationArn       string `out:"organizationArn"`
	OrganizationalUnitArn string `out:"organizationalUnitArn"`
}

func (i *image) public() bool {
	return slices.ContainsFunc(i.permissions, func(p launchPermission) bool { return p.Group == "all" })
}

// ImageSeed is an image that somebody else has published, such as Debian's or
// Amazon's.
type ImageSeed struct {
	ID           string // default: a new one
	Name         string
	Description  string
	Owner        string // account ID; default Debian's, 136693071363
	OwnerAlias   string // amazon, for Amazon's own
	Architecture string // default x86_64
	RootDevice   string // default /dev/xvda
	SizeGiB      int    // of the root volume; default 8
	Created      time.Time
	Deprecated   time.Time
	IMDSSupport  string // v2.0 or empty
	Layer        string // what Machines boots; default ID
}

// AddImage registers a public image in a region and returns its ID. The image
// is available at once.
func (s *Server) AddImage(regionName string, seed ImageSeed) (string, error) {
	s.lock()
	defer s.unlock()
	r, err := s.region(regionName)
	if err != nil {
		return "", err
	}
	def := func(v *string, d string) {
		if *v == "" {
			*v = d
		}
	}
	def(&seed.ID, newID("ami"))
	def(&seed.Owner, "136693071363")
	def(&seed.Architecture, "x86_64")
	def(&seed.RootDevice, "/dev/xvda")
	def(&seed.Layer, seed.ID)
	if seed.SizeGiB == 0 {
		seed.SizeGiB = 8
	}
	if err := checkID("ami", "InvalidAMIID.Malformed", seed.ID); err != nil {
		return "", err
	}
	if _, ok := r.images.byID[seed.ID]; ok {
		return "", fmt.Errorf("add image %s: it is there already", seed.ID)
	}
	img := &image{
		meta: s.stamp(r, seed.ID, nil), region: r, name: seed.Name, description: seed.Description, owner: seed.Owner,
		ownerAlias: seed.OwnerAlias, location: seed.Owner + "/" + seed.Name, state: "available", arch: seed.Architecture,
		rootDevice: seed.RootDevice, imdsSupport: seed.IMDSSupport, ena: true, deprecation: seed.Deprecated,
		permissions: []launchPermission{{Group: "all"}}, layer: seed.Layer,
		devices: []blockDevice{{DeviceName: seed.RootDevice, Ebs: &ebs{
			SnapshotID: newID("snap"), VolumeSize: new(seed.SizeGiB), VolumeType: "gp3", DeleteOnTermination: new(true), Encrypted: new(false),
		}}},
	}
	if !seed.Created.IsZero() {
		img.created = seed.Created
	}
	r.images.add(img)
	return img.id, nil
}

// newImage makes a pending image of the account's own.
func (s *Server) newImage(r *region, name, description string, tags []tag) *image {
	img := &image{
		meta: s.stamp(r, newID("ami"), tags), region: r, name: name, description: description, owner: account,
		location: account + "/" + name, state: "pending", arch: "x86_64", ena: true, protection: "disabled",
	}
	img.layer = img.id
	r.images.add(img)
	r.imageNames[name] = img
	s.reveal(img)
	return img
}

var imageName = regexp.MustCompile(`^[a-zA-Z0-9()\[\]. /\-'@_]{3,128}$`)

// checkImageName also refuses a name that the account has in the region:
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateImage.html, Name
func (r *region) checkImageName(name string) error {
	if name == "" {
		return query.Errorf("MissingParameter", "The request must contain the parameter name")
	}
	if !imageName.MatchString(name) {
		return query.Errorf("InvalidAMIName.Malformed", "AMI names must be between 3 and 128 characters long, and may contain letters, numbers, '(', ')', '.', '-', '/' and '_'")
	}
	if other, ok := r.imageNames[name]; ok {
		return query.Errorf("InvalidAMIName.Duplicate", "AMI name %s is already in use by AMI %s", name, other.id)
	}
	return nil
}

var imageNotFound = notFoundf("InvalidAMIID.NotFound", "The image id '[%s]' does not exist")

// imageOf finds an image by ID, whoever owns it.
func (r *region) imageOf(id string) (*image, error) {
	if err := checkID("ami", "InvalidAMIID.Malformed", id); err != nil {
		return nil, query.Errorf("InvalidAMIID.Malformed", "Invalid id: \"%s\" (expecting \"ami-...\")", id)
	}
	img, ok := r.images.get(id)
	if !ok {
		return nil, imageNotFound(id)
	}
	return img, nil
}

// ownImage finds an image that the account may change.
func (r *region) ownImage(id string) (*image, error) {
	img, err := r.imageOf(id)
	if err != nil {
		return nil, err
	}
	if img.owner != account {
		return nil, query.Errorf("AuthFailure", "Not authorized for image: %s", id)
	}
	return img, nil
}

// launchable finds an image that instances can be launched from. Disabled
// images cannot be: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/disable-an-ami.html
func (c *call) launchable(id string) (*image, error) {
	img, err := c.r.imageOf(id)
	if err != nil {
		return nil, err
	}
	if img.state != "available" {
		return nil, query.Errorf("InvalidAMIID.Unavailable", "The image ID '%s' is not available: its state is %s", id, img.state)
	}
	return img, nil
}

// forget gives the machine driver's layer back once neither an image nor a
// snapshot refers to it.
func (s *Server) forget(layer string) {
	if layer == "" || s.opts.Machines == nil {
		return
	}
	for _, r := range s.regions {
		for img := range r.images.every() {
			if img.layer == layer {
				return
			}
		}
		for snap := range r.snapshots.every() {
			if snap.layer == layer {
				return
			}
		}
	}
	s.work.Go(func() {
		if err := s.opts.Machines.DeleteImage(layer); err != nil {
			s.log.Error("image's disk is not deleted", "image", layer, "err", err)
		}
	})
}
