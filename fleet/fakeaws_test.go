package fleet_test

import (
	"cmp"
	"crypto/md5"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/fleet"
	"github.com/lecafe/lecafe/internal/awsconf"
)

// fakeAWS answers the calls of a watcher on the wire: query protocol for EC2,
// Auto Scaling and IAM, REST for S3. It exists beside lab/cloud for what that
// is too rich for: a hundred thousand instances, and answers gone wrong.
type fakeAWS struct {
	mu        sync.Mutex
	instances []*fakeInstance
	groups    map[string]int // name → desired
	bootTag   string         // of every image
	objects   map[string]fakeObject
	order     []string // keys, sorted when clean
	dirty     bool
	console   map[string]string
	calls     map[string]int
	interval  time.Duration // least time between two calls; faster ones are throttled
	last      time.Time
	deny      map[string]bool
	activity  map[string]string // group → message of its failed last activity
	actions   []string          // calls that change something
}

type fakeInstance struct {
	id, group, state, lifecycle, image string
	launched                           time.Time
	profile                            string
	template, version                  string
	unhealthy                          bool
}

type fakeObject struct {
	body     []byte
	modified time.Time
}

func newFakeAWS() *fakeAWS {
	return &fakeAWS{groups: map[string]int{}, objects: map[string]fakeObject{}, console: map[string]string{}, calls: map[string]int{}, deny: map[string]bool{}, activity: map[string]string{}}
}

func (f *fakeAWS) add(group string, n int, launched time.Time) []*fakeInstance {
	var list []*fakeInstance
	for range n {
		i := &fakeInstance{id: fmt.Sprintf("i-%017x", len(f.instances)+1), group: group, state: "running", lifecycle: "InService", image: "ami-1", launched: launched, profile: "app", template: "lt-1", version: "3"}
		f.instances = append(f.instances, i)
		list = append(list, i)
	}
	f.groups[group] += n
	return list
}

// put stores a report as the instance's agent does, and returns its key.
func (f *fakeAWS) put(i *fakeInstance, v report.Verdict, at time.Time, causes ...report.Cause) string {
	r := &report.Report{Schema: report.Schema, ID: report.NewID(), Kind: report.KindBootstrap, Verdict: v, Summary: "it was " + string(v), Causes: causes,
		Instance: report.Instance{ID: i.id}, Sender: role + ":" + i.id, JudgedAt: at, BootedAt: at.Add(-time.Minute)}
	b, _ := report.Encode(r)
	return f.putRaw(report.KeyOf("p", r).String(), b, at)
}

func (f *fakeAWS) putRaw(key string, body []byte, at time.Time) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.objects[key] = fakeObject{body, at}
	f.order = append(f.order, key)
	f.dirty = true
	return key
}

func (f *fakeAWS) count() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		n += c
	}
	return n
}

func (f *fakeAWS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	form, _ := url.ParseQuery(string(body))
	action := form.Get("Action")
	if action == "" {
		action = "S3:" + r.Method
		if r.URL.Query().Get("list-type") == "2" {
			action = "S3:List"
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.interval > 0 {
		if now := time.Now(); now.Sub(f.last) < f.interval {
			w.WriteHeader(503)
			if strings.HasPrefix(action, "S3:") {
				fmt.Fprint(w, `<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>`)
				return
			}
			fmt.Fprint(w, `<ErrorResponse><Error><Code>Throttling</Code><Message>Rate exceeded</Message></Error></ErrorResponse>`)
			return
		}
		f.last = time.Now()
	}
	f.calls[action]++
	if f.deny[action] {
		w.WriteHeader(403)
		fmt.Fprint(w, `<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>`)
		return
	}
	w.Header().Set("Content-Type", "text/xml")
	switch action {
	case "DescribeInstances":
		f.describeInstances(w, form)
	case "DescribeAutoScalingGroups":
		f.describeGroups(w, form)
	case "DescribeImages":
		fmt.Fprint(w, `<DescribeImagesResponse><imagesSet>`)
		if f.bootTag != "" {
			fmt.Fprintf(w, `<item><imageId>ami-1</imageId><tagSet><item><key>%s</key><value>%s</value></item></tagSet></item>`, fleet.TagBootSeconds, f.bootTag)
		}
		fmt.Fprint(w, `</imagesSet></DescribeImagesResponse>`)
	case "GetInstanceProfile":
		fmt.Fprintf(w, `<GetInstanceProfileResponse><GetInstanceProfileResult><InstanceProfile><Roles><member><RoleId>%s</RoleId></member></Roles></InstanceProfile></GetInstanceProfileResult></GetInstanceProfileResponse>`, role)
	case "GetConsoleOutput":
		fmt.Fprintf(w, `<GetConsoleOutputResponse><output>%s</output></GetConsoleOutputResponse>`, base64.StdEncoding.EncodeToString([]byte(f.console[form.Get("InstanceId")])))
	case "DescribeInstanceStatus":
		fmt.Fprint(w, `<DescribeInstanceStatusResponse><instanceStatusSet/></DescribeInstanceStatusResponse>`)
	case "DescribeRouteTables":
		fmt.Fprint(w, `<DescribeRouteTablesResponse><routeTableSet/></DescribeRouteTablesResponse>`)
	case "DescribeScalingActivities":
		fmt.Fprint(w, `<DescribeScalingActivitiesResponse><DescribeScalingActivitiesResult><Activities>`)
		if m := f.activity[form.Get("AutoScalingGroupName")]; m != "" {
			fmt.Fprintf(w, `<member><StatusCode>Failed</StatusCode><StatusMessage>%s</StatusMessage></member>`, m)
		}
		fmt.Fprint(w, `</Activities></DescribeScalingActivitiesResult></DescribeScalingActivitiesResponse>`)
	case "DescribeLifecycleHooks":
		fmt.Fprint(w, `<DescribeLifecycleHooksResponse><DescribeLifecycleHooksResult><LifecycleHooks><member><LifecycleHookName>boot</LifecycleHookName><LifecycleTransition>autoscaling:EC2_INSTANCE_LAUNCHING</LifecycleTransition><HeartbeatTimeout>600</HeartbeatTimeout></member></LifecycleHooks></DescribeLifecycleHooksResult></DescribeLifecycleHooksResponse>`)
	case "SetInstanceHealth", "CompleteLifecycleAction", "RecordLifecycleActionHeartbeat", "EnterStandby", "TerminateInstances":
		id := cmp.Or(form.Get("InstanceId"), form.Get("InstanceIds.member.1"), form.Get("InstanceId.1"))
		f.actions = append(f.actions, action+" "+id)
		for _, i := range f.instances {
			if i.id != id {
				continue
			}
			switch action {
			case "EnterStandby":
				i.lifecycle = "Standby"
			case "TerminateInstances":
				i.state = "shutting-down"
			case "SetInstanceHealth":
				i.unhealthy = true
			case "CompleteLifecycleAction":
				i.lifecycle = "Terminating:Wait"
			}
		}
		fmt.Fprintf(w, `<%sResponse/>`, action)
	case "S3:List":
		f.list(w, r)
	case "S3:GET":
		o, ok := f.objects[strings.TrimPrefix(r.URL.Path, "/b/")]
		if !ok {
			w.WriteHeader(404)
			fmt.Fprint(w, `<Error><Code>NoSuchKey</Code></Error>`)
			return
		}
		w.Header().Set("ETag", etag(o.body))
		_, _ = w.Write(o.body)
	case "S3:PUT":
		key := strings.TrimPrefix(r.URL.Path, "/b/")
		old, exists := f.objects[key]
		if r.Header.Get("If-None-Match") == "*" && exists || r.Header.Get("If-Match") != "" && etag(old.body) != r.Header.Get("If-Match") {
			w.WriteHeader(412)
			fmt.Fprint(w, `<Error><Code>PreconditionFailed</Code></Error>`)
			return
		}
		if r.Header.Get("X-Amz-Decoded-Content-Length") != "" || strings.Contains(r.Header.Get("Content-Encoding"), "aws-chunked") {
			body = unchunk(body)
		}
		f.objects[key] = fakeObject{body, time.Now()}
		if !exists {
			f.order, f.dirty = append(f.order, key), true
		}
		w.Header().Set("ETag", etag(body))
	default:
		w.WriteHeader(400)
		fmt.Fprintf(w, `<ErrorResponse><Error><Code>InvalidAction</Code><Message>%s</Message></Error></ErrorResponse>`, action)
	}
}

func etag(b []byte) string { return fmt.Sprintf("\"%x\"", md5.Sum(b)) }

// unchunk takes the payload out of aws-chunked encoding.
func unchunk(b []byte) (out []byte) {
	for len(b) > 0 {
		head, rest, _ := strings.Cut(string(b), "\r\n")
		size, _, _ := strings.Cut(head, ";")
		n, err := strconv.ParseInt(size, 16, 64)
		if err != nil || n == 0 || int64(len(rest)) < n {
			return out
		}
		out = append(out, rest[:n]...)
		b = []byte(strings.TrimPrefix(rest[n:], "\r\n"))
	}
	return out
}

// values reads a query list, Filter.1.Value.1 and so on.
func values(form url.Values, prefix string) (list []string) {
	for n := 1; form.Has(prefix + "." + strconv.Itoa(n)); n++ {
		list = append(list, form.Get(prefix+"."+strconv.Itoa(n)))
	}
	return list
}

func (f *fakeAWS) describeInstances(w io.Writer, form url.Values) {
	match := func(*fakeInstance) bool { return true }
	for n := 1; form.Has(fmt.Sprintf("Filter.%d.Name", n)); n++ {
		name, want := form.Get(fmt.Sprintf("Filter.%d.Name", n)), values(form, fmt.Sprintf("Filter.%d.Value", n))
		if len(want) > 200 {
			panic("more than 200 values in a filter")
		}
		before := match
		match = func(i *fakeInstance) bool {
			if !before(i) {
				return false
			}
			switch name {
			case "tag:aws:autoscaling:groupName":
				return slices.Contains(want, i.group)
			case "tag:aws:ec2launchtemplate:id":
				return slices.Contains(want, i.template)
			case "instance-id":
				return slices.Contains(want, i.id)
			case "tag:app":
				return slices.Contains(want, "cafe")
			}
			panic("filter " + name)
		}
	}
	size, _ := strconv.Atoi(form.Get("MaxResults"))
	if size < 5 || size > 1000 {
		panic("MaxResults " + form.Get("MaxResults"))
	}
	from, _ := strconv.Atoi(form.Get("NextToken"))
	fmt.Fprint(w, `<DescribeInstancesResponse><reservationSet>`)
	n := 0
	for at := from; at < len(f.instances); at++ {
		i := f.instances[at]
		if !match(i) {
			continue
		}
		if n == size {
			fmt.Fprintf(w, `</reservationSet><nextToken>%d</nextToken></DescribeInstancesResponse>`, at)
			return
		}
		n++
		profile := ""
		if i.profile != "" {
			profile = fmt.Sprintf(`<iamInstanceProfile><arn>arn:aws:iam::123456789012:instance-profile/%s</arn><id>AIPA</id></iamInstanceProfile>`, i.profile)
		}
		// About what EC2 says of an instance, so that sizes are real ones.
		fmt.Fprintf(w, `<item><reservationId>r-1</reservationId><ownerId>123456789012</ownerId><groupSet/><instancesSet><item><instanceId>%s</instanceId><imageId>%s</imageId><instanceState><code>16</code><name>%s</name></instanceState><privateDnsName>ip-10-0-0-1.ec2.internal</privateDnsName><dnsName/><reason/><amiLaunchIndex>0</amiLaunchIndex><productCodes/><instanceType>m7i.large</instanceType><launchTime>%s</launchTime><placement><availabilityZone>us-east-1a</availabilityZone><groupName/><tenancy>default</tenancy></placement><monitoring><state>disabled</state></monitoring><subnetId>subnet-1</subnetId><vpcId>vpc-1</vpcId><privateIpAddress>10.0.0.1</privateIpAddress><sourceDestCheck>true</sourceDestCheck><groupSet><item><groupId>sg-1</groupId><groupName>app</groupName></item></groupSet><architecture>x86_64</architecture><rootDeviceType>ebs</rootDeviceType><rootDeviceName>/dev/xvda</rootDeviceName><blockDeviceMapping><item><deviceName>/dev/xvda</deviceName><ebs><volumeId>vol-1</volumeId><status>attached</status><attachTime>%s</attachTime><deleteOnTermination>true</deleteOnTermination></ebs></item></blockDeviceMapping><virtualizationType>hvm</virtualizationType><clientToken>x</clientToken><tagSet><item><key>Name</key><value>app</value></item><item><key>aws:autoscaling:groupName</key><value>%s</value></item><item><key>aws:ec2launchtemplate:id</key><value>%s</value></item><item><key>aws:ec2launchtemplate:version</key><value>%s</value></item></tagSet><hypervisor>xen</hypervisor><networkInterfaceSet><item><networkInterfaceId>eni-1</networkInterfaceId><subnetId>subnet-1</subnetId><vpcId>vpc-1</vpcId><description/><ownerId>123456789012</ownerId><status>in-use</status><macAddress>02:00:00:00:00:01</macAddress><privateIpAddress>10.0.0.1</privateIpAddress><sourceDestCheck>true</sourceDestCheck><groupSet><item><groupId>sg-1</groupId><groupName>app</groupName></item></groupSet><attachment><attachmentId>eni-attach-1</attachmentId><deviceIndex>0</deviceIndex><status>attached</status><attachTime>%s</attachTime><deleteOnTermination>true</deleteOnTermination></attachment><privateIpAddressesSet><item><privateIpAddress>10.0.0.1</privateIpAddress><primary>true</primary></item></privateIpAddressesSet></item></networkInterfaceSet>%s<ebsOptimized>true</ebsOptimized><cpuOptions><coreCount>1</coreCount><threadsPerCore>2</threadsPerCore></cpuOptions><metadataOptions><state>applied</state><httpTokens>required</httpTokens><httpPutResponseHopLimit>1</httpPutResponseHopLimit><httpEndpoint>enabled</httpEndpoint></metadataOptions></item></instancesSet></item>`,
			i.id, i.image, i.state, i.launched.UTC().Format(time.RFC3339), i.launched.UTC().Format(time.RFC3339), i.group, i.template, i.version, i.launched.UTC().Format(time.RFC3339), profile)
	}
	fmt.Fprint(w, `</reservationSet></DescribeInstancesResponse>`)
}

func (f *fakeAWS) describeGroups(w io.Writer, form url.Values) {
	names := values(form, "AutoScalingGroupNames.member")
	if len(names) > 50 {
		panic("more than 50 group names")
	}
	fmt.Fprint(w, `<DescribeAutoScalingGroupsResponse><DescribeAutoScalingGroupsResult><AutoScalingGroups>`)
	for _, n := range names {
		desired, ok := f.groups[n]
		if !ok {
			continue
		}
		fmt.Fprintf(w, `<member><AutoScalingGroupName>%s</AutoScalingGroupName><DesiredCapacity>%d</DesiredCapacity><LaunchTemplate><LaunchTemplateId>lt-1</LaunchTemplateId><Version>3</Version></LaunchTemplate><Instances>`, n, desired)
		for _, i := range f.instances {
			if i.group == n && i.state != "terminated" {
				health := "Healthy"
				if i.unhealthy {
					health = "Unhealthy"
				}
				fmt.Fprintf(w, `<member><InstanceId>%s</InstanceId><LifecycleState>%s</LifecycleState><HealthStatus>%s</HealthStatus><AvailabilityZone>us-east-1a</AvailabilityZone><LaunchTemplate><LaunchTemplateId>lt-1</LaunchTemplateId><Version>3</Version></LaunchTemplate></member>`, i.id, i.lifecycle, health)
			}
		}
		fmt.Fprint(w, `</Instances></member>`)
	}
	fmt.Fprint(w, `</AutoScalingGroups></DescribeAutoScalingGroupsResult></DescribeAutoScalingGroupsResponse>`)
}

func (f *fakeAWS) list(w io.Writer, r *http.Request) {
	if f.dirty {
		sort.Strings(f.order)
		f.order, f.dirty = slices.Compact(f.order), false
	}
	q := r.URL.Query()
	prefix := q.Get("prefix")
	from := sort.SearchStrings(f.order, max(prefix, q.Get("continuation-token")))
	fmt.Fprint(w, `<ListBucketResult>`)
	n := 0
	for _, k := range f.order[from:] {
		if !strings.HasPrefix(k, prefix) {
			break
		}
		if n == 1000 {
			fmt.Fprintf(w, `<IsTruncated>true</IsTruncated><NextContinuationToken>%s</NextContinuationToken>`, k)
			break
		}
		n++
		o := f.objects[k]
		fmt.Fprintf(w, `<Contents><Key>%s</Key><LastModified>%s</LastModified><ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag><Size>%d</Size><StorageClass>STANDARD</StorageClass></Contents>`, k, o.modified.UTC().Format(time.RFC3339), len(o.body))
	}
	fmt.Fprint(w, `</ListBucketResult>`)
}

// watcher returns a watcher of groups on the fake.
func (f *fakeAWS) watcher(t testing.TB, sel fleet.Selection) *fleet.Watcher {
	t.Helper()
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	return newWatcher(t, srv.URL, sel)
}

func newWatcher(t testing.TB, endpoint string, sel fleet.Selection) *fleet.Watcher {
	t.Helper()
	return newWatcherBy(t, nil, endpoint, sel)
}

// newWatcherBy has its calls made by client.
func newWatcherBy(t testing.TB, client aws.HTTPClient, endpoint string, sel fleet.Selection) *fleet.Watcher {
	t.Helper()
	meter := &fleet.Meter{}
	cfg := meter.Config(aws.Config{HTTPClient: client, Region: "us-east-1", BaseEndpoint: &endpoint, Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
		APIOptions: []func(*middleware.Stack) error{awsconf.WholeBodies}})
	bucket := s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = true })
	reports, err := fleet.NewReports(bucket, "s3://b/p/")
	if err != nil {
		t.Fatal(err)
	}
	return &fleet.Watcher{
		Regions:   []*fleet.Region{{Name: "us-east-1", EC2: ec2.NewFromConfig(cfg), AutoScaling: autoscaling.NewFromConfig(cfg), IAM: iam.NewFromConfig(cfg)}},
		Selection: sel, Reports: reports, Meter: meter,
		Options: fleet.Options{Now: func() time.Time { return now }},
	}
}

func pass(t testing.TB, w *fleet.Watcher) *fleet.Snapshot {
	t.Helper()
	s, err := w.Pass(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func find(t testing.TB, s *fleet.Snapshot, id string) fleet.Standing {
	t.Helper()
	for _, i := range s.Instances {
		if i.ID == id {
			return i
		}
	}
	b, _ := json.Marshal(s)
	t.Fatalf("%s is not in %s", id, b)
	return fleet.Standing{}
}
