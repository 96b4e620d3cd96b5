package ec2

import (
	"encoding/base64"
	"strconv"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

type consoleIn struct {
	dry
	InstanceID string `q:"InstanceId"`
	Latest     bool
}

type consoleOut struct {
	InstanceID string    `out:"instanceId"`
	Timestamp  time.Time `out:"timestamp"`
	Output     string    `out:"output"`
}

const maxConsole = 64 << 10

// getConsoleOutput answers with the last 64 KB; Latest is for Nitro types only.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_GetConsoleOutput.html
func (c *call) getConsoleOutput(in *consoleIn) (any, error) {
	i, err := c.instance(in.InstanceID)
	if err != nil {
		return nil, err
	}
	if in.Latest && !typeOf(i.data.InstanceType).nitro {
		return nil, query.Errorf("UnsupportedOperation", "The instance type %s does not support retrieving the latest console logs", i.data.InstanceType)
	}
	console, at := i.console, i.consoleAt
	if c.s.opts.Machines != nil && i.state != terminated {
		if console, err = c.s.opts.Machines.Console(i.id); err != nil {
			return nil, err
		}
		at = c.s.opts.Clock.Now()
	}
	if at.IsZero() {
		at = i.launched
	}
	if len(console) > maxConsole {
		console = console[len(console)-maxConsole:]
	}
	return &consoleOut{i.id, at, base64.StdEncoding.EncodeToString(console)}, nil
}

type instanceAttributeIn struct {
	dry
	InstanceID string `q:"InstanceId"`
	Attribute  string
}

type flag struct {
	Value bool `out:"value"`
}

type instanceAttributeOut struct {
	InstanceID      string      `out:"instanceId"`
	Shutdown        *value      `out:"instanceInitiatedShutdownBehavior"`
	UserData        *value      `out:"userData"`
	Type            *value      `out:"instanceType"`
	RootDevice      *value      `out:"rootDeviceName"`
	NoTermination   *flag       `out:"disableApiTermination"`
	NoStop          *flag       `out:"disableApiStop"`
	EbsOptimized    *flag       `out:"ebsOptimized"`
	EnaSupport      *flag       `out:"enaSupport"`
	SourceDestCheck *flag       `out:"sourceDestCheck"`
	Groups          []groupRef  `out:"groupSet>item"`
	Devices         []deviceOut `out:"blockDeviceMapping>item"`
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstanceAttribute.html
func (c *call) describeInstanceAttribute(in *instanceAttributeIn) (any, error) {
	i, err := c.instance(in.InstanceID)
	if err != nil {
		return nil, err
	}
	out := &instanceAttributeOut{InstanceID: i.id}
	switch in.Attribute {
	case "instanceInitiatedShutdownBehavior":
		out.Shutdown = &value{i.shutdown}
	case "userData":
		out.UserData = &value{base64.StdEncoding.EncodeToString(i.userData)}
	case "instanceType":
		out.Type = &value{i.data.InstanceType}
	case "rootDeviceName":
		out.RootDevice = &value{i.image.rootDevice}
	case "disableApiTermination":
		out.NoTermination = &flag{i.keepAPI}
	case "disableApiStop":
		out.NoStop = &flag{i.keepRunning}
	case "ebsOptimized":
		out.EbsOptimized = &flag{isTrue(i.data.EbsOptimized)}
	case "enaSupport":
		out.EnaSupport = &flag{i.image.ena}
	case "sourceDestCheck":
		out.SourceDestCheck = &flag{true}
	case "groupSet":
		out.Groups = i.groups
	case "blockDeviceMapping":
		out.Devices = i.out().Devices
	default:
		return nil, query.Errorf("InvalidParameterValue", "Value (%s) for parameter attribute is invalid. Unknown attribute.", in.Attribute)
	}
	return out, nil
}

type modifyInstanceIn struct {
	dry
	InstanceID    string `q:"InstanceId"`
	Attribute     string
	Value         string
	Shutdown      *value   `q:"InstanceInitiatedShutdownBehavior"`
	UserData      *value   `q:"UserData"`
	Type          *value   `q:"InstanceType"`
	NoTermination *flag    `q:"DisableApiTermination"`
	NoStop        *flag    `q:"DisableApiStop"`
	EnaSupport    *flag    `q:"EnaSupport"`
	EbsOptimized  *flag    `q:"EbsOptimized"`
	Groups        []string `q:"GroupId"`
}

// fold turns the form Attribute=name, Value=v into the attribute's own
// parameter.
func (in *modifyInstanceIn) fold() error {
	switch in.Attribute {
	case "":
		return nil
	case "instanceInitiatedShutdownBehavior":
		in.Shutdown = &value{in.Value}
	case "userData":
		in.UserData = &value{in.Value}
	case "instanceType":
		in.Type = &value{in.Value}
	case "disableApiTermination", "disableApiStop":
		b, err := strconv.ParseBool(in.Value)
		if err != nil {
			return query.Errorf("InvalidParameterValue", "Invalid value '%s' for %s. Must be true or false", in.Value, in.Attribute)
		}
		if in.Attribute == "disableApiStop" {
			in.NoStop = &flag{b}
		} else {
			in.NoTermination = &flag{b}
		}
	default:
		return query.Unsupported("changing the instance attribute %s", in.Attribute)
	}
	return nil
}

// modifyInstanceAttribute changes user data and type of a stopped instance
// only.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ModifyInstanceAttribute.html
func (c *call) modifyInstanceAttribute(in *modifyInstanceIn) (any, error) {
	i, err := c.instance(in.InstanceID)
	if err != nil {
		return nil, err
	}
	if err := in.fold(); err != nil {
		return nil, err
	}
	if (in.UserData != nil || in.Type != nil) && i.state != stopped {
		return nil, query.Errorf("IncorrectInstanceState", "The instance '%s' is not in the 'stopped' state.", i.id)
	}
	switch {
	case in.Shutdown != nil:
		if in.Shutdown.Value != "stop" && in.Shutdown.Value != "terminate" {
			return nil, query.Errorf("InvalidParameterValue", "Value (%s) for parameter instanceInitiatedShutdownBehavior is invalid. Unknown instance initiated shutdown behavior", in.Shutdown.Value)
		}
		i.shutdown = in.Shutdown.Value
	case in.UserData != nil:
		b, err := decodeUserData(in.UserData.Value, "InvalidParameterValue")
		if err != nil {
			return nil, err
		}
		i.userData = b
	case in.Type != nil:
		if err := fits(in.Type.Value, i.image); err != nil {
			return nil, err
		}
		i.data.InstanceType = in.Type.Value
	case in.NoTermination != nil:
		i.keepAPI = in.NoTermination.Value
	case in.NoStop != nil:
		i.keepRunning = in.NoStop.Value
	case in.EnaSupport != nil || in.EbsOptimized != nil: // of no effect on anything modelled
	case len(in.Groups) > 0:
		refs, err := c.r.groupRefs(i.subnet.vpc, in.Groups, nil)
		if err != nil {
			return nil, err
		}
		i.groups = refs
	default:
		return nil, query.Errorf("MissingParameter", "No attributes specified.")
	}
	return nil, nil
}

type modifyMetadataIn struct {
	dry
	metadataSpec
	InstanceID string `q:"InstanceId"`
}

type modifyMetadataOut struct {
	InstanceID string      `out:"instanceId"`
	Options    metadataOut `out:"instanceMetadataOptions"`
}

// modifyInstanceMetadataOptions answers with the state pending; the change is
// applied soon after.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ModifyInstanceMetadataOptions.html
func (c *call) modifyInstanceMetadataOptions(in *modifyMetadataIn) (any, error) {
	i, err := c.instance(in.InstanceID)
	if err != nil {
		return nil, err
	}
	if i.state != running && i.state != stopped {
		return nil, query.Errorf("IncorrectInstanceState", "The instance '%s' is %s: its metadata options cannot be changed.", i.id, i.state.Name)
	}
	if err := in.check(); err != nil {
		return nil, err
	}
	i.metadata.apply(&in.metadataSpec)
	i.metadata.State = "pending"
	c.s.later(time.Second, func() { i.metadata.State = "applied" })
	return &modifyMetadataOut{i.id, i.metadata}, nil
}

type describeStatusIn struct {
	dry
	paging
	InstanceIDs []string `q:"InstanceId"`
	Filters     []filter `q:"Filter"`
	IncludeAll  bool     `q:"IncludeAllInstances"`
}

type statusOut struct {
	InstanceID string   `out:"instanceId"`
	AZ         string   `out:"availabilityZone"`
	State      state    `out:"instanceState"`
	System     checkOut `out:"systemStatus"`
	Instance   checkOut `out:"instanceStatus"`
}

type checkOut struct {
	Status  string        `out:"status"`
	Details []checkDetail `out:"details>item"`
}

type checkDetail struct {
	Name   string `out:"name"`
	Status string `out:"status"`
}

type describeStatusOut struct {
	Statuses  []statusOut `out:"instanceStatusSet>item"`
	NextToken string      `out:"nextToken"`
}

// status is ok, initializing, impaired, or not-applicable when not running.
func (i *instance) status() (status, reachability string) {
	switch {
	case i.state != running:
		return "not-applicable", ""
	case i.impaired:
		return "impaired", "failed"
	case i.checked:
		return "ok", "passed"
	}
	return "initializing", "initializing"
}

var statusFilters = filters[*instance]{
	"availability-zone":   instanceFilters["availability-zone"],
	"instance-state-code": instanceFilters["instance-state-code"],
	"instance-state-name": instanceFilters["instance-state-name"],
	"instance-status.status": func(i *instance) []string {
		s, _ := i.status()
		return one(s)
	},
	"instance-status.reachability": func(i *instance) []string {
		_, r := i.status()
		return one(r)
	},
	"system-status.status": func(i *instance) []string {
		if s, _ := i.status(); s == "impaired" {
			return one("ok")
		} else {
			return one(s)
		}
	},
}

// describeInstanceStatus leaves out what does not run, unless it is asked for.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstanceStatus.html
func (c *call) describeInstanceStatus(in *describeStatusIn) (any, error) {
	match, err := statusFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	page, next, err := list(&c.r.instances, in.InstanceIDs, in.paging, 5, instanceNotFound, func(i *instance) bool {
		return (in.IncludeAll || i.state == running) && match(i)
	})
	if err != nil {
		return nil, err
	}
	out := &describeStatusOut{NextToken: next}
	for _, i := range page {
		status, reach := i.status()
		check := checkOut{Status: status}
		if reach != "" {
			check.Details = []checkDetail{{"reachability", reach}}
		}
		system := check
		if i.impaired && i.state == running { // the host is well, its guest is not
			system = checkOut{"ok", []checkDetail{{"reachability", "passed"}}}
		}
		out.Statuses = append(out.Statuses, statusOut{i.id, i.subnet.az, i.state, system, check})
	}
	return out, nil
}
