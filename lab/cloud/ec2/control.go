package ec2

import (
	"context"
	"fmt"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

type instancesIn struct {
	dry
	InstanceIDs    []string `q:"InstanceId"`
	Force          bool
	Hibernate      bool
	SkipOsShutdown bool
	AdditionalInfo string
}

type stateChangeOut struct {
	InstanceID string `out:"instanceId"`
	Current    state  `out:"currentState"`
	Previous   state  `out:"previousState"`
}

type stateChangesOut struct {
	Instances []stateChangeOut `out:"instancesSet>item"`
}

// each applies do to every instance and answers with the changes of state.
func (c *call) each(all []*instance, do func(*instance)) *stateChangesOut {
	out := &stateChangesOut{}
	for _, i := range all {
		before := i.state
		do(i)
		out.Instances = append(out.Instances, stateChangeOut{i.id, i.state, before})
	}
	return out
}

func (c *call) initiated() string {
	return fmt.Sprintf("User initiated (%s)", c.s.opts.Clock.Now().Format("2006-01-02 15:04:05 MST"))
}

// stopInstances stops what runs; a stopped one stays as it is. A one-time
// spot instance cannot be stopped.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StopInstances.html
func (c *call) stopInstances(in *instancesIn) (any, error) {
	if in.Hibernate {
		return nil, query.Unsupported("hibernation")
	}
	all, err := c.instancesOf(in.InstanceIDs)
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		switch {
		case i.state == shuttingDown || i.state == terminated || i.state == pending:
			return nil, query.Errorf("IncorrectInstanceState", "The instance '%s' is not in a state from which it can be stopped.", i.id)
		case i.spot == "one-time":
			return nil, query.Errorf("UnsupportedOperation", "You can't stop the Spot Instance '%s' because it is associated with a one-time Spot Instance request. You can only stop Spot Instances associated with persistent Spot Instance requests.", i.id)
		case i.keepRunning:
			return nil, query.Errorf("OperationNotPermitted", "The instance '%s' may not be stopped. Modify its 'disableApiStop' instance attribute and try again.", i.id)
		}
	}
	return c.each(all, func(i *instance) {
		if i.state == stopped || i.state == stopping {
			return
		}
		i.transition = c.initiated()
		i.reason = &reason{"Client.UserInitiatedShutdown", "Client.UserInitiatedShutdown: User initiated shutdown"}
		c.s.stop(i, in.Force)
	}), nil
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StartInstances.html
func (c *call) startInstances(in *instancesIn) (any, error) {
	all, err := c.instancesOf(in.InstanceIDs)
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if i.state != stopped && i.state != running && i.state != pending {
			return nil, query.Errorf("IncorrectInstanceState", "The instance '%s' is not in a state from which it can be started.", i.id)
		}
	}
	return c.each(all, func(i *instance) {
		if i.state == stopped {
			c.s.start(i)
		}
	}), nil
}

// terminateInstances takes terminated instances too, and does nothing to them.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_TerminateInstances.html
func (c *call) terminateInstances(in *instancesIn) (any, error) {
	all, err := c.instancesOf(in.InstanceIDs)
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if i.keepAPI {
			return nil, query.Errorf("OperationNotPermitted", "The instance '%s' may not be terminated. Modify its 'disableApiTermination' instance attribute and try again.", i.id)
		}
	}
	return c.each(all, func(i *instance) { c.s.userTerminate(i, c.initiated()) }), nil
}

func (s *Server) userTerminate(i *instance, transition string) {
	if i.state == shuttingDown || i.state == terminated {
		return
	}
	i.transition = transition
	i.reason = &reason{"Client.UserInitiatedShutdown", "Client.UserInitiatedShutdown: User initiated shutdown"}
	s.terminate(i)
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RebootInstances.html
func (c *call) rebootInstances(in *instancesIn) (any, error) {
	all, err := c.instancesOf(in.InstanceIDs)
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if i.state != running {
			return nil, query.Errorf("IncorrectState", "The instance '%s' is not in a state from which it can be rebooted.", i.id)
		}
	}
	for _, i := range all {
		if c.s.opts.Machines == nil {
			continue
		}
		c.s.job(i, func(ctx context.Context) {
			if err := c.s.opts.Machines.Reboot(ctx, i.id); err != nil {
				c.s.log.Error("instance does not reboot", "instance", i.id, "err", err)
			}
		})
	}
	return nil, nil
}
