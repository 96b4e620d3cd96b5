package ec2

import (
	"slices"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

// imageOut is https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_Image.html
type imageOut struct {
	ImageID         string        `out:"imageId"`
	Location        string        `out:"imageLocation"`
	State           string        `out:"imageState"`
	StateReason     *reason       `out:"stateReason"`
	OwnerID         string        `out:"imageOwnerId"`
	OwnerAlias      string        `out:"imageOwnerAlias"`
	Created         time.Time     `out:"creationDate"`
	Public          bool          `out:"isPublic"`
	Architecture    string        `out:"architecture"`
	Type            string        `out:"imageType"`
	Name            string        `out:"name"`
	Description     string        `out:"description"`
	RootDeviceType  string        `out:"rootDeviceType"`
	RootDeviceName  string        `out:"rootDeviceName"`
	Devices         []blockDevice `out:"blockDeviceMapping>item"`
	Virtualization  string        `out:"virtualizationType"`
	Tags            []tag         `out:"tagSet>item"`
	Hypervisor      string        `out:"hypervisor"`
	EnaSupport      bool          `out:"enaSupport"`
	PlatformDetails string        `out:"platformDetails"`
	UsageOperation  string        `out:"usageOperation"`
	BootMode        string        `out:"bootMode"`
	ImdsSupport     string        `out:"imdsSupport"`
	Deprecation     time.Time     `out:"deprecationTime"`
	Protection      string        `out:"deregistrationProtection"`
	SourceInstance  string        `out:"sourceInstanceId"`
	SourceImage     string        `out:"sourceImageId"`
	SourceRegion    string        `out:"sourceImageRegion"`
	LastLaunched    time.Time     `out:"lastLaunchedTime"`
}

func (i *image) out() imageOut {
	return imageOut{
		ImageID: i.id, Location: i.location, State: i.state, StateReason: i.reason, OwnerID: i.owner, OwnerAlias: i.ownerAlias,
		Created: i.created, Public: i.public(), Architecture: i.arch, Type: "machine", Name: i.name, Description: i.description,
		RootDeviceType: "ebs", RootDeviceName: i.rootDevice, Devices: i.devices, Virtualization: "hvm", Tags: i.tags, Hypervisor: "xen",
		EnaSupport: i.ena, PlatformDetails: "Linux/UNIX", UsageOperation: "RunInstances", BootMode: i.bootMode, ImdsSupport: i.imdsSupport,
		Deprecation: i.deprecation, Protection: i.protection, SourceInstance: i.source.instance, SourceImage: i.source.image,
		SourceRegion: i.source.region, LastLaunched: i.lastLaunched,
	}
}

// imageFilters are those of
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeImages.html
// that the modelled image has a value for.
var imageFilters = filters[*image]{
	"architecture":        func(i *image) []string { return one(i.arch) },
	"creation-date":       func(i *image) []string { return one(i.created.Format(query.TimeFormat)) },
	"description":         func(i *image) []string { return one(i.description) },
	"ena-support":         func(i *image) []string { return yes(i.ena) },
	"hypervisor":          func(i *image) []string { return one("xen") },
	"image-id":            func(i *image) []string { return one(i.id) },
	"image-type":          func(i *image) []string { return one("machine") },
	"imds-support":        func(i *image) []string { return one(i.imdsSupport) },
	"is-public":           func(i *image) []string { return yes(i.public()) },
	"manifest-location":   func(i *image) []string { return one(i.location) },
	"name":                func(i *image) []string { return one(i.name) },
	"owner-alias":         func(i *image) []string { return one(i.ownerAlias) },
	"owner-id":            func(i *image) []string { return one(i.owner) },
	"platform":            func(*image) []string { return nil }, // windows or nothing
	"root-device-name":    func(i *image) []string { return one(i.rootDevice) },
	"root-device-type":    func(*image) []string { return one("ebs") },
	"source-image-id":     func(i *image) []string { return one(i.source.image) },
	"source-image-region": func(i *image) []string { return one(i.source.region) },
	"source-instance-id":  func(i *image) []string { return one(i.source.instance) },
	"state":               func(i *image) []string { return one(i.state) },
	"virtualization-type": func(*image) []string { return one("hvm") },
	"state-reason-code": func(i *image) []string {
		if i.reason == nil {
			return nil
		}
		return one(i.reason.Code)
	},
	"state-reason-message": func(i *image) []string {
		if i.reason == nil {
			return nil
		}
		return one(i.reason.Message)
	},
	"block-device-mapping.device-name": func(i *image) []string {
		var names []string
		for _, d := range i.devices {
			names = append(names, d.DeviceName)
		}
		return names
	},
	"block-device-mapping.snapshot-id": func(i *image) []string { return i.snapshotIDs() },
	"block-device-mapping.encrypted": func(i *image) []string {
		var all []string
		for _, d := range i.devices {
			if d.Ebs != nil {
				all = append(all, yes(isTrue(d.Ebs.Encrypted))...)
			}
		}
		return all
	},
}

type describeImagesIn struct {
	dry
	paging
	ImageIDs          []string `q:"ImageId"`
	Owners            []string `q:"Owner"`
	ExecutableBy      []string
	Filters           []filter `q:"Filter"`
	IncludeDeprecated bool
	IncludeDisabled   bool
}

type describeImagesOut struct {
	Images    []imageOut `out:"imagesSet>item"`
	NextToken string     `out:"nextToken"`
}

// describeImages leaves out, of images not asked for by ID, deprecated ones of
// others and disabled ones, unless they are to be included.
func (c *call) describeImages(in *describeImagesIn) (any, error) {
	match, err := imageFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	for _, o := range in.Owners {
		if o != "self" && o != "amazon" && o != "aws-marketplace" && o != "aws-backup-vault" && !isAccount(o) {
			return nil, query.Errorf("InvalidUserID.Malformed", "Invalid user id: \"%s\"", o)
		}
	}
	for _, id := range in.ImageIDs {
		if checkID("ami", "", id) != nil {
			return nil, query.Errorf("InvalidAMIID.Malformed", "Invalid id: \"%s\" (expecting \"ami-...\")", id)
		}
	}
	now := c.s.opts.Clock.Now()
	page, next, err := list(&c.r.images, in.ImageIDs, in.paging, 1, imageNotFound, func(i *image) bool {
		if len(in.Owners) > 0 && !slices.ContainsFunc(in.Owners, i.ownedBy) {
			return false
		}
		if len(in.ExecutableBy) > 0 && !slices.ContainsFunc(in.ExecutableBy, i.executableBy) {
			return false
		}
		if len(in.ImageIDs) == 0 {
			if i.owner != account && !i.deprecation.IsZero() && !now.Before(i.deprecation) && !in.IncludeDeprecated {
				return false
			}
			if i.state == "disabled" && !in.IncludeDisabled {
				return false
			}
		}
		return match(i)
	})
	if err != nil {
		return nil, err
	}
	out := &describeImagesOut{NextToken: next}
	for _, i := range page {
		out.Images = append(out.Images, i.out())
	}
	return out, nil
}

func (i *image) ownedBy(o string) bool {
	return o == i.owner || o == "self" && i.owner == account || o != "" && o == i.ownerAlias
}

func (i *image) executableBy(who string) bool {
	switch who {
	case "all":
		return i.public()
	case "self":
		who = account
	}
	return slices.ContainsFunc(i.permissions, func(p launchPermission) bool { return p.UserID == who })
}
