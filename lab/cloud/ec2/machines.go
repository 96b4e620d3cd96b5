package ec2

import (
	"context"
	"net/http"
)

// Machines is what the EC2 fake asks of whatever runs its instances. A nil
// Machines leaves instances as records whose states follow the clock alone.
// Calls for one instance never overlap; calls for several do.
type Machines interface {
	// Launch makes the machine's disk on top of the image's layers and powers
	// it on. It returns once the machine is booting.
	Launch(ctx context.Context, m Machine) error
	// Start powers a stopped machine on again.
	Start(ctx context.Context, instanceID string) error
	// Stop powers it off as an ACPI power button does, by force after a while
	// or at once, and returns when it is off.
	Stop(ctx context.Context, instanceID string, force bool) error
	// Reboot restarts it in place.
	Reboot(ctx context.Context, instanceID string) error
	// Terminate powers it off and deletes its disk.
	Terminate(ctx context.Context, instanceID string) error
	// Console returns what the machine wrote to its console since launch.
	Console(instanceID string) ([]byte, error)
	// Capture freezes the stopped (or, with noReboot, running) machine's disk
	// as image imageID; the machine can be started again on top of it.
	Capture(ctx context.Context, instanceID, imageID string) (bytes int64, err error)
	// DeleteImage forgets an image's own layer once no machine uses it.
	DeleteImage(imageID string) error
	// PoweredOff tells f of every machine that powers itself off from inside.
	// It is called once, before the first Launch.
	PoweredOff(f func(instanceID string))
}

// Machine is one instance to be booted.
type Machine struct {
	InstanceID string
	ImageID    string
	MAC        string // of eth0, as IMDS lists it
	PrivateIP  string
	Gateway    string
	IMDS       http.Handler // served to this machine alone at 169.254.169.254:80
	Ports      []int        // 127.0.0.1 ports of the host that the machine reaches at its own 127.0.0.1: the cloud's endpoints
}
