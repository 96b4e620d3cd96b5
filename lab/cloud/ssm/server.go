// Package ssm is a fake of AWS Systems Manager as far as lecafe uses it: the
// Parameter Store, and which instances Session Manager knows. It owns
// parameters, their versions and history, and the instances whose agent has
// registered; it refuses labels, SecureString values with a customer key,
// policies and tiers other than Standard by name, and sessions.
package ssm

import (
	"context"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/lecafe/lecafe/lab/cloud/jsonrpc"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// Options configure a Server.
type Options struct {
	Clock wire.Clock
	// ImageExists says whether an AMI exists in a region: a parameter of data
	// type aws:ec2:image must name one.
	ImageExists func(region, imageID string) bool
}

// Server is the Systems Manager of every region.
type Server struct {
	opts Options
	rpc  jsonrpc.Service
	mu   sync.Mutex
	all  map[string]map[string][]parameter // region → name → versions, oldest first

	instances map[string]map[string]*managed // region → ID
}

type parameter struct {
	Name             string
	Type             string
	Value            string
	Version          int64
	LastModifiedDate float64
	ARN              string
	DataType         string
	Selector         string `json:",omitempty"`
}

// New returns a Server without parameters.
func New(o Options) *Server {
	if o.Clock == nil {
		o.Clock = wire.Scaled(1)
	}
	s := &Server{opts: o, all: map[string]map[string][]parameter{}, instances: map[string]map[string]*managed{}}
	s.rpc = jsonrpc.Service{Version: "1.1", Prefix: "com.amazonaws.ssm", Actions: map[string]jsonrpc.Action{
		"GetParameter":        jsonrpc.Act(s.getParameter),
		"GetParameters":       jsonrpc.Act(s.getParameters),
		"GetParametersByPath": jsonrpc.Act(s.byPath),
		"GetParameterHistory": jsonrpc.Act(s.history),
		"PutParameter":        jsonrpc.Act(s.putParameter),
		"DeleteParameter":     jsonrpc.Act(s.deleteParameter),
		"DeleteParameters":    jsonrpc.Act(s.deleteParameters),
		"DescribeParameters":  jsonrpc.Act(s.describeParameters),

		"UpdateInstanceInformation":   jsonrpc.Act(s.updateInstance),
		"DescribeInstanceInformation": jsonrpc.Act(s.describeInstances),
	}}
	return s
}

// ServeHTTP implements http.Handler of authenticated requests.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.rpc.ServeHTTP(w, r) }

// Put sets a parameter of a region behind the API: the public ones under
// /aws/service, which no customer can write.
func (s *Server) Put(region, name, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(region, parameter{Name: name, Type: "String", Value: value, DataType: "text"})
}

func (s *Server) add(region string, p parameter) parameter {
	if s.all[region] == nil {
		s.all[region] = map[string][]parameter{}
	}
	versions := s.all[region][p.Name]
	p.Version = 1
	if n := len(versions); n > 0 {
		p.Version = versions[n-1].Version + 1
	}
	account := wire.Account
	if strings.HasPrefix(p.Name, "/aws/") {
		account = ""
	}
	p.ARN = "arn:aws:ssm:" + region + ":" + account + ":parameter/" + strings.TrimPrefix(p.Name, "/")
	p.LastModifiedDate = float64(s.opts.Clock.Now().UnixMilli()) / 1000
	versions = append(versions, p)
	// A parameter keeps its last 100 versions:
	// https://docs.aws.amazon.com/systems-manager/latest/userguide/sysman-paramstore-versions.html
	s.all[region][p.Name] = versions[max(0, len(versions)-100):]
	return p
}

// find resolves name, or name:version.
// https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_GetParameter.html
func (s *Server) find(region, name string) (parameter, error) {
	base, selector, selected := strings.Cut(strings.TrimPrefix(name, "arn:aws:ssm:"+region+":"+wire.Account+":parameter"), ":")
	versions := s.all[region][base]
	if len(versions) == 0 {
		return parameter{}, &jsonrpc.Error{Code: "ParameterNotFound"}
	}
	if !selected {
		return versions[len(versions)-1], nil
	}
	n, err := strconv.ParseInt(selector, 10, 64)
	i := slices.IndexFunc(versions, func(p parameter) bool { return p.Version == n })
	if err != nil || i < 0 {
		return parameter{}, jsonrpc.Errorf("ParameterVersionNotFound", "Systems Manager could not find version %s of %s. Verify the version and try again.", selector, base)
	}
	p := versions[i]
	p.Selector = ":" + selector
	return p, nil
}

func (s *Server) getParameter(ctx context.Context, _ *http.Request, in *struct{ Name string }) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.find(wire.RegionFrom(ctx), in.Name)
	if err != nil {
		return nil, err
	}
	return map[string]parameter{"Parameter": p}, nil
}

// https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_GetParameters.html
func (s *Server) getParameters(ctx context.Context, _ *http.Request, in *struct{ Names []string }) (any, error) {
	if n := len(in.Names); n < 1 || n > 10 {
		return nil, jsonrpc.Errorf("ValidationException", "1 validation error detected: Value at 'names' failed to satisfy constraint: Member must have length less than or equal to 10, and greater than or equal to 1")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found, missing := []parameter{}, []string{}
	for _, name := range in.Names {
		if p, err := s.find(wire.RegionFrom(ctx), name); err == nil {
			found = append(found, p)
		} else {
			missing = append(missing, name)
		}
	}
	return map[string]any{"Parameters": found, "InvalidParameters": missing}, nil
}

type byPath struct {
	Path       string
	Recursive  bool
	MaxResults *int
	NextToken  string
}

// https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_GetParametersByPath.html
func (s *Server) byPath(ctx context.Context, _ *http.Request, in *byPath) (any, error) {
	if !strings.HasPrefix(in.Path, "/") {
		return nil, jsonrpc.Errorf("ValidationException", "The parameter doesn't meet the parameter name requirements. The parameter name must begin with a forward slash \"/\".")
	}
	prefix := strings.TrimSuffix(in.Path, "/") + "/"
	return s.page(ctx, in.MaxResults, 10, in.NextToken, func(name string) bool {
		rest, ok := strings.CutPrefix(name, prefix)
		return ok && (in.Recursive || !strings.Contains(rest, "/"))
	}, func(p parameter) any { return p })
}

// page lists current versions in order of name; the token is the last name.
func (s *Server) page(ctx context.Context, asked *int, limit int, token string, match func(string) bool, view func(parameter) any) (any, error) {
	n := limit
	if asked != nil {
		if n = *asked; n < 1 || n > limit {
			return nil, jsonrpc.Errorf("ValidationException", "1 validation error detected: Value '%d' at 'maxResults' failed to satisfy constraint: Member must have value less than or equal to %d", n, limit)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.all[wire.RegionFrom(ctx)]
	out := map[string]any{}
	list := []any{}
	last := ""
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if name <= token || !match(name) {
			continue
		}
		if len(list) == n {
			out["NextToken"] = last
			break
		}
		versions := all[name]
		list = append(list, view(versions[len(versions)-1]))
		last = name
	}
	out["Parameters"] = list
	return out, nil
}

type describe struct {
	MaxResults       *int
	NextToken        string
	Filters          []any
	ParameterFilters []struct {
		Key, Option string
		Values      []string
	}
}

// https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_DescribeParameters.html
func (s *Server) describeParameters(ctx context.Context, _ *http.Request, in *describe) (any, error) {
	if len(in.Filters) > 0 {
		return nil, jsonrpc.Errorf("UnsupportedOperation", "DescribeParameters with Filters is not modelled by this fake")
	}
	for _, f := range in.ParameterFilters {
		if f.Key != "Name" || f.Option != "" && f.Option != "Equals" && f.Option != "BeginsWith" {
			return nil, jsonrpc.Errorf("UnsupportedOperation", "the parameter filter %s %s is not modelled by this fake", f.Key, f.Option)
		}
	}
	match := func(name string) bool {
		for _, f := range in.ParameterFilters {
			if !slices.ContainsFunc(f.Values, func(v string) bool {
				return name == v || f.Option == "BeginsWith" && strings.HasPrefix(name, v)
			}) {
				return false
			}
		}
		return !strings.HasPrefix(name, "/aws/") // public ones are not listed
	}
	return s.page(ctx, in.MaxResults, 50, in.NextToken, match, func(p parameter) any {
		return map[string]any{
			"Name": p.Name, "Type": p.Type, "Version": p.Version, "LastModifiedDate": p.LastModifiedDate, "ARN": p.ARN, "DataType": p.DataType,
			"Tier": "Standard", "LastModifiedUser": "arn:aws:iam::" + wire.Account + ":user/operator",
		}
	})
}

func (s *Server) history(ctx context.Context, _ *http.Request, in *struct{ Name string }) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	versions := s.all[wire.RegionFrom(ctx)][in.Name]
	if len(versions) == 0 {
		return nil, &jsonrpc.Error{Code: "ParameterNotFound"}
	}
	return map[string]any{"Parameters": versions}, nil
}

type put struct {
	Name, Value, Type, DataType, Tier, KeyId, Policies, AllowedPattern string
	Overwrite                                                          bool
	Tags                                                               []struct{ Key, Value string }
}

var (
	nameChars = regexp.MustCompile(`^[A-Za-z0-9_.\-/]+$`)
	imageID   = regexp.MustCompile(`^ami-([0-9a-f]{8}|[0-9a-f]{17})$`)
)

const standardLimit = 4 << 10

// https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_PutParameter.html
func (s *Server) putParameter(ctx context.Context, _ *http.Request, in *put) (any, error) {
	region := wire.RegionFrom(ctx)
	if in.Policies != "" || in.AllowedPattern != "" || in.KeyId != "" || in.Tier != "" && in.Tier != "Standard" {
		return nil, jsonrpc.Errorf("UnsupportedOperation", "PutParameter with Policies, AllowedPattern, KeyId or Tier %q is not modelled by this fake", in.Tier)
	}
	if err := checkName(in.Name); err != nil {
		return nil, err
	}
	if in.Overwrite && len(in.Tags) > 0 {
		return nil, jsonrpc.Errorf("ValidationException", "Invalid request: tags and overwrite can't be used together.")
	}
	if in.Value == "" {
		return nil, jsonrpc.Errorf("ValidationException", "1 validation error detected: Value '' at 'value' failed to satisfy constraint: Member must have length greater than or equal to 1")
	}
	if len(in.Value) > standardLimit {
		return nil, jsonrpc.Errorf("ValidationException", "Standard tier parameters support a maximum parameter value of 4096 characters.")
	}
	if in.DataType == "" {
		in.DataType = "text"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	versions := s.all[region][in.Name]
	if len(versions) > 0 {
		if !in.Overwrite {
			return nil, jsonrpc.Errorf("ParameterAlreadyExists", "The parameter already exists. To overwrite this value, set the overwrite option in the request to true.")
		}
		if in.Type == "" {
			in.Type = versions[len(versions)-1].Type
		}
	}
	switch in.Type {
	case "String", "StringList", "SecureString":
	case "":
		return nil, jsonrpc.Errorf("ValidationException", "A parameter type is required when you create a parameter.")
	default:
		return nil, jsonrpc.Errorf("ValidationException", "1 validation error detected: Value '%s' at 'type' failed to satisfy constraint: Member must satisfy enum value set: [SecureString, StringList, String]", in.Type)
	}
	switch in.DataType {
	case "text":
	case "aws:ec2:image":
		// A malformed ID is refused at once. Whether the AMI exists is checked
		// after the answer: where it does not, PutParameter succeeds and the
		// parameter is not written.
		// https://docs.aws.amazon.com/systems-manager/latest/userguide/parameter-store-ec2-aliases.html
		if in.Type != "String" || !imageID.MatchString(in.Value) {
			return nil, jsonrpc.Errorf("ValidationException", "The parameter value %s is not a valid AMI ID.", in.Value)
		}
		if !s.opts.ImageExists(region, in.Value) {
			next := int64(1)
			if n := len(versions); n > 0 {
				next = versions[n-1].Version + 1
			}
			return map[string]any{"Version": next, "Tier": "Standard"}, nil
		}
	default:
		return nil, jsonrpc.Errorf("ValidationException", "The following data type is not supported: %s (Data type names are all lowercase.)", in.DataType)
	}
	p := s.add(region, parameter{Name: in.Name, Type: in.Type, Value: in.Value, DataType: in.DataType})
	return map[string]any{"Version": p.Version, "Tier": "Standard"}, nil
}

// https://docs.aws.amazon.com/systems-manager/latest/userguide/sysman-paramstore-su-create.html
func checkName(name string) error {
	lower := strings.ToLower(strings.TrimPrefix(name, "/"))
	switch {
	case name == "" || !nameChars.MatchString(name):
		return jsonrpc.Errorf("ValidationException", "Parameter name: can't be prefixed with \"ssm\" (case-insensitive). If formed as a path, it can consist of sub-paths divided by slash symbol; each sub-path can be formed as a mix of letters, numbers and the following 3 symbols .-_")
	case strings.Contains(name, "/") && !strings.HasPrefix(name, "/"):
		return jsonrpc.Errorf("ValidationException", "Parameter name must be a fully qualified name.")
	case strings.HasPrefix(lower, "ssm"):
		return jsonrpc.Errorf("ValidationException", "Parameter name: can't be prefixed with \"ssm\" (case-insensitive).")
	case strings.HasPrefix(lower, "aws"):
		return jsonrpc.Errorf("AccessDeniedException", "No access to reserved parameter name: %s.", name)
	case strings.Count(name, "/") > 15:
		return jsonrpc.Errorf("HierarchyLevelLimitExceededException", "Parameter hierarchies are limited to a maximum of fifteen levels.")
	}
	return nil
}

func (s *Server) deleteParameter(ctx context.Context, _ *http.Request, in *struct{ Name string }) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.all[wire.RegionFrom(ctx)]
	if len(all[in.Name]) == 0 {
		return nil, &jsonrpc.Error{Code: "ParameterNotFound"}
	}
	delete(all, in.Name)
	return nil, nil
}

func (s *Server) deleteParameters(ctx context.Context, _ *http.Request, in *struct{ Names []string }) (any, error) {
	if n := len(in.Names); n < 1 || n > 10 {
		return nil, jsonrpc.Errorf("ValidationException", "1 validation error detected: Value at 'names' failed to satisfy constraint: Member must have length less than or equal to 10, and greater than or equal to 1")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.all[wire.RegionFrom(ctx)]
	deleted, invalid := []string{}, []string{}
	for _, name := range in.Names {
		if len(all[name]) == 0 {
			invalid = append(invalid, name)
			continue
		}
		delete(all, name)
		deleted = append(deleted, name)
	}
	return map[string]any{"DeletedParameters": deleted, "InvalidParameters": invalid}, nil
}
