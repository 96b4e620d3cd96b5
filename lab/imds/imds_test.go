package imds_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	sdk "github.com/aws/aws-sdk-go-v2/feature/ec2/imds"

	"github.com/lecafe/lecafe/lab/cloud/wire"
	"github.com/lecafe/lecafe/lab/imds"
)

type service struct {
	t   *testing.T
	srv *imds.Server
	url string
}

func serve(t *testing.T, i imds.Instance) service {
	t.Helper()
	s := imds.New(i)
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	return service{t, s, h.URL}
}

// do sends a request with headers given as name, value pairs.
func (s service) do(method, path string, headers ...string) (int, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for n := 0; n < len(headers); n += 2 {
		req.Header.Add(headers[n], headers[n+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

const (
	ttlHeader   = "X-aws-ec2-metadata-token-ttl-seconds"
	tokenHeader = "X-aws-ec2-metadata-token"
)

func (s service) token() string {
	s.t.Helper()
	code, body := s.do("PUT", "/latest/api/token", ttlHeader, "21600")
	if code != 200 || body == "" {
		s.t.Fatalf("token: %d %q", code, body)
	}
	return body
}

// get reads a path as IMDSv2 asks.
func (s service) get(path string) (int, string) {
	s.t.Helper()
	return s.do("GET", path, tokenHeader, s.token())
}

func (s service) want(path, body string) {
	s.t.Helper()
	if code, got := s.get(path); code != 200 || got != body {
		s.t.Errorf("GET %s: %d %q, want 200 %q", path, code, got, body)
	}
}

func (s service) wantCode(path string, want int) {
	s.t.Helper()
	if code, got := s.get(path); code != want {
		s.t.Errorf("GET %s: %d %q, want %d", path, code, got, want)
	}
}

func TestTokenRefusals(t *testing.T) {
	s := serve(t, imds.Instance{})
	for name, c := range map[string]struct {
		method, path string
		headers      []string
		want         int
	}{
		"no ttl":                  {"PUT", "/latest/api/token", nil, 400},
		"ttl zero":                {"PUT", "/latest/api/token", []string{ttlHeader, "0"}, 400},
		"ttl negative":            {"PUT", "/latest/api/token", []string{ttlHeader, "-1"}, 400},
		"ttl too long":            {"PUT", "/latest/api/token", []string{ttlHeader, "21601"}, 400},
		"ttl no number":           {"PUT", "/latest/api/token", []string{ttlHeader, "6h"}, 400},
		"shortest ttl":            {"PUT", "/latest/api/token", []string{ttlHeader, "1"}, 200},
		"longest ttl":             {"PUT", "/latest/api/token", []string{ttlHeader, "21600"}, 200},
		"through a proxy":         {"PUT", "/latest/api/token", []string{ttlHeader, "60", "X-Forwarded-For", "10.0.0.1"}, 403},
		"empty X-Forwarded-For":   {"PUT", "/latest/api/token", []string{ttlHeader, "60", "X-Forwarded-For", ""}, 403},
		"GET of the token":        {"GET", "/latest/api/token", nil, 405},
		"POST":                    {"POST", "/latest/meta-data/", nil, 405},
		"PUT elsewhere":           {"PUT", "/latest/meta-data/", []string{ttlHeader, "60"}, 405},
		"v1":                      {"GET", "/latest/meta-data/instance-id", nil, 401},
		"v1 of the listing":       {"GET", "/", nil, 401},
		"a made-up token":         {"GET", "/latest/meta-data/instance-id", []string{tokenHeader, "AQAE"}, 401},
		"v1 through X-Forwarded":  {"GET", "/latest/meta-data/instance-id", []string{"X-Forwarded-For", "10.0.0.1"}, 401},
		"token of another server": {"GET", "/latest/meta-data/", []string{tokenHeader, serve(t, imds.Instance{}).token()}, 401},
	} {
		if got, body := s.do(c.method, c.path, c.headers...); got != c.want {
			t.Errorf("%s: %d %q, want %d", name, got, body, c.want)
		}
	}
	for _, path := range []string{"/nowhere/", "/2020-01-01/meta-data/", "/latest/meta-data/nothing", "/latest/user-data", "/latest/meta-data/instance-id/",
		"/latest/meta-data/spot/instance-action", "/latest/meta-data/events/recommendations/rebalance", "/latest/meta-data/iam/info",
		"/latest/meta-data/iam/security-credentials/", "/latest/meta-data/tags/instance/", "/latest/meta-data/autoscaling/target-lifecycle-state",
		"/latest/meta-data/public-keys/"} {
		s.wantCode(path, 404)
	}
}

func TestTokenExpires(t *testing.T) {
	clock := wire.NewManual(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	s := serve(t, imds.Instance{Clock: clock})
	_, token := s.do("PUT", "/latest/api/token", ttlHeader, "60")
	if code, body := s.do("GET", "/latest/meta-data/ami-id", tokenHeader, token); code != 200 {
		t.Fatalf("fresh token: %d %q", code, body)
	}
	clock.Advance(time.Minute)
	if code, _ := s.do("GET", "/latest/meta-data/ami-id", tokenHeader, token); code != 401 {
		t.Errorf("expired token: %d, want 401", code)
	}
}

func TestMetadataOptions(t *testing.T) {
	s := serve(t, imds.Instance{InstanceID: "i-1", HTTPTokens: imds.TokensOptional, Tags: map[string]string{"Name": "Le Café"}})
	if code, body := s.do("GET", "/latest/meta-data/instance-id"); code != 200 || body != "i-1" {
		t.Errorf("v1 where tokens are optional: %d %q", code, body)
	}
	if code, _ := s.do("GET", "/latest/meta-data/instance-id", tokenHeader, "wrong"); code != 401 {
		t.Errorf("a wrong token where tokens are optional: %d, want 401", code)
	}
	s.wantCode("/latest/meta-data/tags/instance/Name", 404)
	s.srv.Update(func(i *imds.Instance) { i.TagsInMetadata = true; i.Tags["team"] = "kitchen" })
	s.want("/latest/meta-data/tags/instance/Name", "Le Café")
	s.want("/latest/meta-data/tags/instance", "Name\nteam")
	s.srv.Update(func(i *imds.Instance) { i.EndpointDisabled = true })
	for _, path := range []string{"/latest/meta-data/", "/latest/user-data"} {
		if code, _ := s.do("GET", path); code != 403 {
			t.Errorf("GET %s of a disabled endpoint: %d, want 403", path, code)
		}
	}
	if code, _ := s.do("PUT", "/latest/api/token", ttlHeader, "60"); code != 403 {
		t.Errorf("token of a disabled endpoint: %d, want 403", code)
	}
}

func TestContent(t *testing.T) {
	launched := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := serve(t, imds.Instance{
		InstanceID: "i-0abc", ImageID: "ami-1", MAC: "02:aa:bb:cc:dd:ee", PrivateIP: "10.0.0.7", Region: "eu-west-1", PendingTime: launched,
		UserData: []byte("#!/bin/sh\x00\xff"), KeyName: "barista", PublicKey: "ssh-ed25519 AAAA barista", SecurityGroups: []string{"a", "b"},
		SpotAction: &imds.SpotAction{Action: "terminate", Time: launched}, RebalanceRecommendation: launched, TargetLifecycleState: "InService",
	})
	s.want("/latest/user-data", "#!/bin/sh\x00\xff")
	s.want("/2021-03-23/meta-data/local-hostname", "ip-10-0-0-7.eu-west-1.compute.internal")
	s.want("/2009-04-04/meta-data/instance-id", "i-0abc")
	s.want("/latest/", "dynamic\nmeta-data\nuser-data")
	s.want("/latest/meta-data/network/interfaces/macs/", "02:aa:bb:cc:dd:ee/")
	s.want("/latest/meta-data/public-keys/", "0=barista")
	s.want("/latest/meta-data/public-keys/0/", "openssh-key")
	s.want("/latest/meta-data/public-keys/0/openssh-key", "ssh-ed25519 AAAA barista")
	s.want("/latest/meta-data/placement/", "availability-zone\navailability-zone-id\nregion")
	s.want("/latest/meta-data/placement/availability-zone-id", "euw1-az1")
	s.want("/latest/meta-data/security-groups", "a\nb")
	s.want("/latest/meta-data/spot/instance-action", `{"action":"terminate","time":"2026-03-01T12:00:00Z"}`)
	s.want("/latest/meta-data/events/recommendations/rebalance", `{"noticeTime":"2026-03-01T12:00:00Z"}`)
	s.want("/latest/meta-data/autoscaling/target-lifecycle-state", "InService")
	_, doc := s.get("/latest/dynamic/instance-identity/document")
	var d map[string]any
	if err := json.Unmarshal([]byte(doc), &d); err != nil || d["instanceId"] != "i-0abc" || d["region"] != "eu-west-1" || d["pendingTime"] != "2026-03-01T12:00:00Z" {
		t.Errorf("identity document: %v %s", err, doc)
	}
	if _, sig := s.get("/latest/dynamic/instance-identity/pkcs7"); !strings.HasPrefix(sig, "UNSIGNED") {
		t.Errorf("pkcs7 does not say that it is unsigned: %q", sig)
	}
}

// TestCrawl walks every listed directory as cloud-init's Ec2 datasource does:
// each entry is a leaf that can be read or a directory that can be listed.
func TestCrawl(t *testing.T) {
	s := serve(t, imds.Instance{Role: "app", PublicKey: "ssh-rsa A", KeyName: "k", TagsInMetadata: true, Tags: map[string]string{"Name": "x"}, SecurityGroups: []string{"default"}, Credentials: vend(nil)})
	token := s.token()
	leaves := 0
	var walk func(dir string)
	walk = func(dir string) {
		code, listing := s.do("GET", dir, tokenHeader, token)
		if code != 200 {
			t.Errorf("GET %s: %d", dir, code)
			return
		}
		for entry := range strings.SplitSeq(listing, "\n") {
			switch {
			case strings.HasSuffix(entry, "/"):
				walk(dir + entry)
			case strings.HasSuffix(dir, "/public-keys/"):
				n, _, _ := strings.Cut(entry, "=")
				walk(dir + n + "/")
			default:
				leaves++
				if code, _ := s.do("GET", dir+entry, tokenHeader, token); code != 200 {
					t.Errorf("GET %s%s: %d", dir, entry, code)
				}
			}
		}
	}
	for _, version := range []string{"2021-03-23", "2016-09-02", "2009-04-04", "latest"} {
		leaves = 0
		walk("/" + version + "/meta-data/")
		walk("/" + version + "/dynamic/")
		if leaves < 40 {
			t.Errorf("%s: only %d leaves", version, leaves)
		}
	}
}

// vend returns a Credentials function of a vault with the clock.
func vend(clock wire.Clock) func(time.Duration) wire.Credentials {
	if clock == nil {
		clock = wire.Scaled(1)
	}
	v := wire.NewVault(clock)
	return func(d time.Duration) wire.Credentials { return v.Vend("app", "i-1", d) }
}

func (s service) sdkClient() *sdk.Client {
	return sdk.New(sdk.Options{Endpoint: s.url, EnableFallback: aws.FalseTernary})
}

func TestSDK(t *testing.T) {
	s := serve(t, imds.Instance{InstanceID: "i-1", Role: "app", ProfileARN: "arn:aws:iam::000000000000:instance-profile/p", ProfileID: "AIPA1", UserData: []byte("hello"), Credentials: vend(nil)})
	c := s.sdkClient()
	doc, err := c.GetInstanceIdentityDocument(t.Context(), nil)
	if err != nil || doc.InstanceID != "i-1" || doc.AccountID != wire.Account {
		t.Errorf("identity document: %+v, %v", doc, err)
	}
	if region, err := c.GetRegion(t.Context(), nil); err != nil || region.Region != "us-east-1" {
		t.Errorf("region: %+v, %v", region, err)
	}
	info, err := c.GetIAMInfo(t.Context(), nil)
	if err != nil || info.InstanceProfileID != "AIPA1" {
		t.Errorf("iam/info: %+v, %v", info, err)
	}
	ud, err := c.GetUserData(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(ud.Content); string(b) != "hello" {
		t.Errorf("user data %q", b)
	}
	creds, err := s.retrieve()
	if err != nil || !strings.HasPrefix(creds.AccessKeyID, "ASIA") || creds.SessionToken == "" || !creds.CanExpire {
		t.Errorf("credentials: %+v, %v", creds, err)
	}
}

func (s service) retrieve() (aws.Credentials, error) {
	return ec2rolecreds.New(func(o *ec2rolecreds.Options) { o.Client = s.sdkClient() }).Retrieve(s.t.Context())
}

func TestCredentialsRotate(t *testing.T) {
	clock := wire.NewManual(time.Now().Truncate(time.Second))
	s := serve(t, imds.Instance{Role: "app", Credentials: vend(clock), Clock: clock})
	read := func() (key string, expires time.Time) {
		t.Helper()
		code, body := s.get("/latest/meta-data/iam/security-credentials/app")
		var c struct {
			Code, AccessKeyID string
			Expiration        time.Time
		}
		if err := json.Unmarshal([]byte(body), &c); code != 200 || err != nil || c.Code != "Success" {
			t.Fatalf("%d %s: %v", code, body, err)
		}
		return c.AccessKeyID, c.Expiration
	}
	first, expires := read()
	if again, _ := read(); again != first {
		t.Errorf("two reads gave two keys")
	}
	clock.Advance(expires.Sub(clock.Now()) - 5*time.Minute - time.Second)
	if again, _ := read(); again != first {
		t.Errorf("rotated earlier than five minutes before expiry")
	}
	clock.Advance(time.Second)
	second, later := read()
	if second == first || !later.After(expires) {
		t.Errorf("not rotated five minutes before expiry: %s until %s", second, later)
	}

	s.srv.SetFaults(func(f *imds.Faults) { f.CredentialsStuck = true })
	clock.Advance(24 * time.Hour)
	if key, until := read(); key != second || until.After(clock.Now()) {
		t.Errorf("stuck credentials rotated: %s until %s", key, until)
	}
	s.srv.SetFaults(func(f *imds.Faults) { *f = imds.Faults{CredentialsExpired: true} })
	if key, until := read(); key == second || until.After(clock.Now()) {
		t.Errorf("expired credentials: %s until %s", key, until)
	}
	s.srv.SetFaults(func(f *imds.Faults) { *f = imds.Faults{} })
	if _, until := read(); !until.After(clock.Now()) {
		t.Errorf("still expired after the fault ended")
	}
	third, _ := read()
	s.srv.Rotate()
	if key, _ := read(); key == third {
		t.Error("Rotate did not rotate")
	}
}

func TestCredentialsMissingAtFirst(t *testing.T) {
	s := serve(t, imds.Instance{Role: "app", Credentials: vend(nil)})
	s.srv.SetFaults(func(f *imds.Faults) { f.CredentialsMissing = 2 })
	s.wantCode("/latest/meta-data/iam/security-credentials/", 404)
	if _, err := s.retrieve(); err == nil {
		t.Error("the SDK got credentials that are not there yet")
	}
	s.want("/latest/meta-data/iam/security-credentials/", "app")
	if _, err := s.retrieve(); err != nil {
		t.Errorf("credentials that arrived: %v", err)
	}
	s.srv.SetFaults(func(f *imds.Faults) { f.CredentialsMissing = -1 })
	for range 3 {
		s.wantCode("/latest/meta-data/iam/security-credentials/app", 404)
	}
}

func TestFaults(t *testing.T) {
	s := serve(t, imds.Instance{HTTPTokens: imds.TokensOptional})
	read := func() int {
		code, _ := s.do("GET", "/latest/meta-data/instance-id", "Connection", "close")
		return code
	}
	set := func(f imds.Faults) { s.srv.SetFaults(func(g *imds.Faults) { *g = f }) }
	set(imds.Faults{Down: true})
	if code := read(); code != 0 {
		t.Errorf("down: %d", code)
	}
	set(imds.Faults{Status: 503})
	if code := read(); code != 503 {
		t.Errorf("status: %d", code)
	}
	// A client may retry a dropped GET by itself, so the count is generous.
	set(imds.Faults{DownRequests: 100})
	dropped := 0
	for code := read(); code != 200; code = read() {
		if dropped++; dropped > 100 {
			t.Fatal("late never came up")
		}
	}
	if dropped == 0 {
		t.Error("late dropped nothing")
	}
	set(imds.Faults{Hang: true})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", s.url+"/", nil)
	if res, err := http.DefaultClient.Do(req); err == nil {
		res.Body.Close()
		t.Errorf("hang answered %d", res.StatusCode)
	}
	const delay = 30 * time.Millisecond
	set(imds.Faults{Delay: delay})
	start := time.Now()
	if code := read(); code != 200 || time.Since(start) < delay {
		t.Errorf("slow: %d after %s", code, time.Since(start))
	}
}

func TestUpdateWhileRead(t *testing.T) {
	s := serve(t, imds.Instance{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 50 {
			s.srv.Update(func(i *imds.Instance) { i.TargetLifecycleState = "Terminated" })
		}
	}()
	for range 50 {
		s.wantCode("/latest/meta-data/", 200)
	}
	<-done
	s.want("/latest/meta-data/autoscaling/target-lifecycle-state", "Terminated")
}

func TestFollow(t *testing.T) {
	state := "Pending:Wait"
	s := imds.Follow(func() imds.Instance { return imds.Instance{InstanceID: "i-7", TargetLifecycleState: state} })
	h := httptest.NewServer(s)
	defer h.Close()
	v := service{t, s, h.URL}
	v.want("/latest/meta-data/autoscaling/target-lifecycle-state", "Pending:Wait")
	state = "InService"
	v.want("/latest/meta-data/autoscaling/target-lifecycle-state", "InService")
	s.Update(func(i *imds.Instance) { i.SpotAction = &imds.SpotAction{Action: "stop"} })
	v.wantCode("/latest/meta-data/spot/instance-action", 200)
	state = "Terminated"
	v.want("/latest/meta-data/autoscaling/target-lifecycle-state", "Terminated")
	v.wantCode("/latest/meta-data/spot/instance-action", 200)
	if id := s.Instance().InstanceID; id != "i-7" {
		t.Errorf("instance %s", id)
	}
}

// TestHopLimit reads the limit that the kernel puts on the token's packets.
func TestHopLimit(t *testing.T) {
	for _, limit := range []int{1, 2, 64} {
		s := imds.New(imds.Instance{HopLimit: limit})
		var ttl int
		h := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.ServeHTTP(w, r)
			ttl = imds.Hops(r.Context())
		}))
		h.Config.ConnContext = s.ConnContext
		h.Start()
		service{t, s, h.URL}.token()
		h.Close()
		if ttl != limit {
			t.Errorf("token sent with TTL %d, want %d", ttl, limit)
		}
	}
}
