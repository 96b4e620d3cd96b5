package ssm

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/jsonrpc"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// lostAfter is how long an instance is Online after its agent's last word.
// https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_InstanceInformation.html
const lostAfter = 5 * time.Minute

// managed is an instance whose agent has registered.
type managed struct {
	version, platform, host string
	first, last             time.Time
}

// updateInstance is how amazon-ssm-agent registers an instance and says every
// five minutes that it is there; the SDKs have no such call. An instance speaks
// for itself alone.
// https://docs.aws.amazon.com/systems-manager/latest/userguide/systems-manager-setting-up-messageAPIs.html
func (s *Server) updateInstance(ctx context.Context, _ *http.Request, in *struct {
	InstanceId, AgentVersion, AgentStatus, AgentName, PlatformType, PlatformName, PlatformVersion, IPAddress, ComputerName string
}) (any, error) {
	if caller := wire.CallerFrom(ctx); caller.InstanceID != in.InstanceId {
		return nil, jsonrpc.Errorf("AccessDeniedException", "%s may not register %s", caller.ARN, in.InstanceId)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	region := wire.RegionFrom(ctx)
	if s.instances[region] == nil {
		s.instances[region] = map[string]*managed{}
	}
	m := s.instances[region][in.InstanceId]
	now := s.opts.Clock.Now()
	if m == nil {
		m = &managed{first: now}
		s.instances[region][in.InstanceId] = m
	}
	m.version, m.platform, m.host, m.last = in.AgentVersion, in.PlatformType, in.ComputerName, now
	return nil, nil
}

type instanceFilter struct {
	Key    string
	Values []string
}

// https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_DescribeInstanceInformation.html
func (s *Server) describeInstances(ctx context.Context, _ *http.Request, in *struct {
	Filters    []instanceFilter
	MaxResults *int
	NextToken  string
}) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.instances[wire.RegionFrom(ctx)]
	list := []map[string]any{}
	now := s.opts.Clock.Now()
	for _, id := range slices.Sorted(maps.Keys(all)) {
		m := all[id]
		status := "Online"
		if now.Sub(m.last) > lostAfter {
			status = "ConnectionLost"
		}
		wanted := true
		for _, f := range in.Filters {
			switch f.Key {
			case "InstanceIds":
				wanted = wanted && slices.Contains(f.Values, id)
			case "PingStatus":
				wanted = wanted && slices.Contains(f.Values, status)
			default:
				return nil, jsonrpc.Errorf("InvalidInstanceInformationFilterValue", "the lab does not model the filter %s", f.Key)
			}
		}
		if !wanted {
			continue
		}
		list = append(list, map[string]any{
			"InstanceId": id, "PingStatus": status, "LastPingDateTime": float64(m.last.UnixMilli()) / 1000, "RegistrationDate": float64(m.first.UnixMilli()) / 1000,
			"AgentVersion": m.version, "PlatformType": m.platform, "ComputerName": m.host, "ResourceType": "EC2Instance",
		})
	}
	return map[string]any{"InstanceInformationList": list}, nil
}
