// Package imds is the instance metadata service of one instance, IMDSv2 as EC2
// has it: session tokens, their limits and refusals, and every path that
// cloud-init's Ec2 datasource, the AWS SDKs and lecafe's agent read. It owns
// the rotation of role credentials as they are seen on an instance, and faults
// to inject. It refuses IMDSv1 unless the instance's metadata options allow it,
// and it signs nothing: the identity document's signatures are placeholders
// that say so.
//
// What is modelled follows "Use the Instance Metadata Service to access
// instance metadata" of the EC2 User Guide:
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html
package imds

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// Values of Instance.HTTPTokens, as in RunInstances' MetadataOptions.
const (
	TokensRequired = "required"
	TokensOptional = "optional"
)

// Bounds of a session token's life, in seconds:
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-v2-how-it-works.html
const (
	minTTL = 1
	maxTTL = 21600
)

// rotateBefore is how long before the old credentials expire new ones appear:
// "We make new credentials available at least five minutes before the
// expiration of the old credentials."
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html
const rotateBefore = 5 * time.Minute

// credentialsLife is what EC2 vends role credentials for, about.
const credentialsLife = 6 * time.Hour

// Instance is what the service tells about one instance. Empty fields take
// the defaults that New documents, or make their paths 404.
type Instance struct {
	InstanceID       string // default i-0123456789abcdef0
	ImageID          string // default ami-0123456789abcdef0
	InstanceType     string // default t3.micro
	Architecture     string // x86_64 (default) or arm64
	MAC              string // default 02:00:00:00:00:01
	PrivateIP        string // default 10.0.0.10
	Hostname         string // default ip-10-0-0-10.REGION.compute.internal, from PrivateIP
	SubnetID         string
	VPCID            string
	SubnetCIDR       string // default 10.0.0.0/24
	VPCCIDR          string // default 10.0.0.0/16
	SecurityGroups   []string
	SecurityGroupIDs []string
	ReservationID    string
	Region           string    // default us-east-1
	AvailabilityZone string    // default REGION + "a"
	Account          string    // default wire.Account
	PendingTime      time.Time // default the clock's now
	HopLimit         int       // of the token's answer; default 1. See ConnContext
	AMILaunchIndex   int
	LifeCycle        string // on-demand (default) or spot
	RootDevice       string // default /dev/xvda

	// UserData is served as it is. Nil is absent (404); EC2 answers 404 to
	// empty user data too.
	UserData []byte

	KeyName   string // with PublicKey, public-keys/0
	PublicKey string

	// Role is the instance profile's role, ProfileARN and ProfileID what
	// iam/info says. Credentials vends the role's credentials, valid for d; a
	// negative d asks for expired ones. Without Role there is no iam/ at all.
	Role        string
	ProfileARN  string
	ProfileID   string
	Credentials func(d time.Duration) wire.Credentials

	Tags           map[string]string
	TagsInMetadata bool // MetadataOptions InstanceMetadataTags=enabled

	HTTPTokens       string // TokensRequired (default) or TokensOptional
	EndpointDisabled bool   // MetadataOptions HttpEndpoint=disabled: 403 to everything

	SpotAction              *SpotAction // spot/instance-action, nil is 404
	RebalanceRecommendation time.Time   // events/recommendations/rebalance, zero is 404
	TargetLifecycleState    string      // autoscaling/target-lifecycle-state, empty is 404

	Clock wire.Clock // default the real one
}

// SpotAction is the interruption notice of a spot instance.
type SpotAction struct {
	Action string // terminate, stop or hibernate
	Time   time.Time
}

// Faults are what goes wrong. The zero value is a healthy service.
type Faults struct {
	// Down drops every connection without an answer. For a connection that is
	// refused, close the listener.
	Down bool
	// DownRequests drops the next n requests, then the service is up: it is late.
	DownRequests int
	// Hang accepts requests and answers none until the client gives up.
	Hang bool
	// Delay comes before every answer: it is slow.
	Delay time.Duration
	// Status, if not zero, answers every request with that code (500, 503).
	Status int
	// CredentialsMissing answers 404 to the next n reads of
	// iam/security-credentials and below it: the role has not reached the
	// instance yet. Negative is for ever.
	CredentialsMissing int
	// CredentialsExpired serves credentials that expired an hour ago.
	CredentialsExpired bool
	// CredentialsStuck serves the same credentials although they expire.
	CredentialsStuck bool
}

// Server answers for one instance. It is safe for concurrent use.
type Server struct {
	source  func() Instance // nil: inst is changed by Update alone
	changes []func(*Instance)

	mu      sync.Mutex
	inst    Instance
	faults  Faults
	tokens  map[string]time.Time // token → expiry
	creds   wire.Credentials
	updated time.Time // when creds were vended
	expired wire.Credentials
}

// New returns a Server for i, with its defaults filled in.
func New(i Instance) *Server {
	s := &Server{tokens: map[string]time.Time{}}
	if i.Clock == nil {
		i.Clock = wire.Scaled(1)
	}
	s.inst = withDefaults(i)
	return s
}

// Follow returns a Server that asks source for the instance at each request,
// so that what the EC2 API changes shows at once. Changes made by Update are
// made on top of what source says, each time. Source is not called before the
// first request.
func Follow(source func() Instance) *Server {
	return &Server{tokens: map[string]time.Time{}, source: source, inst: withDefaults(Instance{Clock: wire.Scaled(1)})}
}

// refresh asks the source. It must be called without s.mu: the source has
// locks of its own.
func (s *Server) refresh() {
	if s.source == nil {
		return
	}
	i := s.source()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.changes {
		f(&i)
	}
	if i.Clock == nil {
		i.Clock = s.inst.Clock
	}
	s.become(i)
}

// become makes i the instance told about. The caller holds s.mu.
func (s *Server) become(i Instance) {
	if i.Role != s.inst.Role {
		s.creds, s.expired = wire.Credentials{}, wire.Credentials{}
	}
	s.inst = withDefaults(i)
}

func withDefaults(i Instance) Instance {
	def := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	def(&i.InstanceID, "i-0123456789abcdef0")
	def(&i.ImageID, "ami-0123456789abcdef0")
	def(&i.InstanceType, "t3.micro")
	def(&i.Architecture, "x86_64")
	def(&i.MAC, "02:00:00:00:00:01")
	def(&i.PrivateIP, "10.0.0.10")
	def(&i.Region, "us-east-1")
	def(&i.AvailabilityZone, i.Region+"a")
	def(&i.Account, wire.Account)
	def(&i.LifeCycle, "on-demand")
	def(&i.RootDevice, "/dev/xvda")
	def(&i.SubnetCIDR, "10.0.0.0/24")
	def(&i.VPCCIDR, "10.0.0.0/16")
	def(&i.SubnetID, "subnet-0123456789abcdef0")
	def(&i.VPCID, "vpc-0123456789abcdef0")
	def(&i.ReservationID, "r-0123456789abcdef0")
	def(&i.HTTPTokens, TokensRequired)
	if i.PendingTime.IsZero() {
		i.PendingTime = i.Clock.Now()
	}
	if i.HopLimit == 0 {
		i.HopLimit = 1
	}
	domain := i.Region + ".compute.internal"
	if i.Region == "us-east-1" {
		domain = "ec2.internal"
	}
	def(&i.Hostname, "ip-"+strings.ReplaceAll(i.PrivateIP, ".", "-")+"."+domain)
	return i
}

// Update changes the instance's metadata: f gets a copy to change. Another role
// gets other credentials. Of a Server that follows a source, f is kept and
// called again at each request.
func (s *Server) Update(f func(*Instance)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.source != nil {
		s.changes = append(s.changes, f)
		return
	}
	i := s.inst
	i.Tags = maps.Clone(i.Tags)
	f(&i)
	s.become(i)
}

// Instance returns what the service tells about.
func (s *Server) Instance() Instance {
	s.refresh()
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.inst
	i.Tags = maps.Clone(i.Tags)
	return i
}

// SetFaults changes the faults: f gets the current ones.
func (s *Server) SetFaults(f func(*Faults)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.faults)
}

// Rotate makes the next read of the credentials vend new ones.
func (s *Server) Rotate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.creds = wire.Credentials{}
}

// ServeHTTP answers one request of the instance.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.healthy(w, r) {
		return
	}
	s.refresh()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.inst.Clock.Now()
	w.Header().Set("Server", "EC2ws")
	if s.inst.EndpointDisabled {
		fail(w, http.StatusForbidden)
		return
	}
	if r.URL.Path == "/latest/api/token" {
		s.token(w, r, now)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		fail(w, http.StatusMethodNotAllowed)
		return
	}
	token := r.Header.Get("X-aws-ec2-metadata-token")
	switch {
	case token == "" && s.inst.HTTPTokens == TokensRequired:
		// IMDSv1 on an instance that requires v2.
		fail(w, http.StatusUnauthorized)
		return
	case token != "" && !s.tokens[token].After(now):
		// A wrong or expired token is refused also where v1 is allowed.
		fail(w, http.StatusUnauthorized)
		return
	}
	body, typ, ok := s.get(r.URL.Path, now)
	if !ok {
		fail(w, http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", typ)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	if r.Method == http.MethodGet {
		_, _ = io.WriteString(w, body) // the client's going away is its own affair
	}
}

// healthy applies the faults that concern every request and tells whether the
// request is to be answered.
func (s *Server) healthy(w http.ResponseWriter, r *http.Request) bool {
	s.mu.Lock()
	f := s.faults
	if s.faults.DownRequests > 0 {
		s.faults.DownRequests--
	}
	s.mu.Unlock()
	if f.Down || f.DownRequests > 0 {
		panic(http.ErrAbortHandler) // net/http drops the connection
	}
	if f.Hang {
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	}
	if f.Delay > 0 {
		t := time.NewTimer(f.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}
	if f.Status != 0 {
		fail(w, f.Status)
		return false
	}
	return true
}

// token answers PUT /latest/api/token. The caller holds s.mu.
func (s *Server) token(w http.ResponseWriter, r *http.Request, now time.Time) {
	if r.Method != http.MethodPut {
		fail(w, http.StatusMethodNotAllowed)
		return
	}
	// A token is not given through a proxy: "IMDSv2 rejects PUT requests that
	// contain an X-Forwarded-For header".
	if len(r.Header.Values("X-Forwarded-For")) > 0 {
		fail(w, http.StatusForbidden)
		return
	}
	ttl, err := strconv.Atoi(r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds"))
	if err != nil || ttl < minTTL || ttl > maxTTL {
		fail(w, http.StatusBadRequest)
		return
	}
	maps.DeleteFunc(s.tokens, func(_ string, until time.Time) bool { return !until.After(now) })
	b := make([]byte, 40)
	_, _ = rand.Read(b) // never fails
	token := base64.URLEncoding.EncodeToString(b)
	limitHops(r.Context(), s.inst.HopLimit)
	w.Header().Set("Connection", "close") // the limit is the connection's
	s.tokens[token] = now.Add(time.Duration(ttl) * time.Second)
	w.Header().Set("X-aws-ec2-metadata-token-ttl-seconds", strconv.Itoa(ttl))
	w.Header().Set("Content-Type", "text/plain")
	_, _ = io.WriteString(w, token)
}

// get returns the content of a path: a leaf, or a directory's listing. The
// caller holds s.mu.
func (s *Server) get(path string, now time.Time) (body, contentType string, ok bool) {
	const text = "text/plain"
	path = strings.TrimPrefix(path, "/")
	version, rest, _ := strings.Cut(path, "/")
	if version == "" {
		return strings.Join(Versions, "\n"), text, true
	}
	if !slices.Contains(Versions, version) {
		return "", "", false
	}
	if strings.HasPrefix(rest, "meta-data/iam/security-credentials") {
		// The one path whose reading has an effect: credentials are vended.
		if f := &s.faults; f.CredentialsMissing != 0 {
			if f.CredentialsMissing > 0 {
				f.CredentialsMissing--
			}
			return "", "", false
		}
	}
	leaves := s.tree(now)
	if rest == "user-data" && len(s.inst.UserData) > 0 {
		return string(s.inst.UserData), "application/octet-stream", true
	}
	if leaf, found := leaves[rest]; found {
		return leaf(), text, true
	}
	if listing := list(leaves, strings.TrimSuffix(rest, "/")); listing != "" {
		return listing, text, true
	}
	return "", "", false
}

// list returns the entries of a directory, one a line; those that are
// directories themselves end with a slash.
func list(leaves map[string]func() string, dir string) string {
	prefix := dir + "/"
	if dir == "" {
		prefix = ""
	}
	if dir == "meta-data/public-keys" && leaves[prefix+"0/openssh-key"] != nil {
		return "0=" + leaves[publicKeyName]()
	}
	entries := map[string]bool{}
	for p := range leaves {
		rest, ok := strings.CutPrefix(p, prefix)
		if !ok || strings.HasPrefix(p, hidden) {
			continue
		}
		name, _, isDir := strings.Cut(rest, "/")
		if isDir && dir != "" {
			name += "/" // the top of a version lists bare names
		}
		entries[name] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(entries)), "\n")
}

func fail(w http.ResponseWriter, code int) {
	w.Header().Set("Content-Type", "text/html")
	w.WriteHeader(code)
	fmt.Fprintf(w, "<html><head><title>%d - %s</title></head><body><h1>%[1]d - %[2]s</h1></body></html>\n", code, http.StatusText(code))
}
