package orders_test

import (
	"context"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent/orders"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/wire"
	"github.com/lecafe/lecafe/lab/imds"
)

// onInstance is an instance with a role and the settings given.
func onInstance(t *testing.T, c *cloudtest.Cloud, baked string, userData settings.Settings) (*orders.Instance, *imds.Server) {
	t.Helper()
	root := t.TempDir()
	path := filepath.Join(root, settings.Path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(baked), 0o644); err != nil {
		t.Fatal(err)
	}
	m := imds.New(imds.Instance{
		Role: "app", UserData: []byte(settings.Render(userData)),
		Credentials: func(d time.Duration) wire.Credentials {
			return c.Vault.Vend("app", "i-0123456789abcdef0", d)
		},
	})
	srv := httptest.NewServer(m)
	t.Cleanup(srv.Close)
	return &orders.Instance{Root: root, Metadata: srv.URL}, m
}

func TestTheInstancesSettingsAndRoleLeadToTheQueue(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("from-user-data", nil)
	if err := c.PutRolePolicy("app", "send", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["sqs:GetQueueUrl","sqs:GetQueueAttributes","sqs:SendMessage"],"Resource":"*"}]}`); err != nil {
		t.Fatal(err)
	}
	in, m := onInstance(t, c, "orders:\n  queue: baked\n  max_bytes: 67108864\n", settings.Settings{
		AWS: settings.AWS{EndpointURL: c.URL}, Orders: settings.Orders{Queue: "from-user-data", SealTo: "s3://left/over"},
	})
	// IMDS is late, and so is the role.
	m.SetFaults(func(f *imds.Faults) { f.DownRequests, f.CredentialsMissing = 2, 2 })
	if n := in.Baked().Orders.MaxBytes; n != 64<<20 {
		t.Errorf("limit of the spool %d", n)
	}
	r := start(t, &orders.Service{Resolve: in.Resolve})
	sent := r.sendMany(7)
	got := receive(t, c, "from-user-data", 7)
	arrived(t, sent, got)
	if id := got[0].Attributes["SenderId"]; !strings.HasSuffix(id, ":i-0123456789abcdef0") {
		t.Errorf("sent by %s", id)
	}
	s := r.await("told of the credentials", func(s orders.Status) bool { return empty(s) && !s.Credentials.IsZero() })
	if time.Until(s.Credentials) <= 0 {
		t.Errorf("credentials expire at %v", s.Credentials)
	}
}

func TestNoQueueIsAStateAndNotAnEnd(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	in, _ := onInstance(t, c, "", settings.Settings{})
	r := start(t, &orders.Service{Resolve: in.Resolve})
	r.sendMany(3)
	s := r.await("waiting", func(s orders.Status) bool { return s.State == "waiting_for_queue" })
	if s.Spooled != 3 || !strings.Contains(s.Forward.LastError, "orders.queue") {
		t.Errorf("%+v", s)
	}
}

func TestNotices(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	for name, change := range map[string]func(*imds.Instance){
		"scale-in":          func(i *imds.Instance) { i.TargetLifecycleState = "Terminated" },
		"spot interruption": func(i *imds.Instance) { i.SpotAction = &imds.SpotAction{Action: "terminate", Time: time.Now()} },
	} {
		in, m := onInstance(t, c, "", settings.Settings{})
		m.Update(change)
		if why := in.Notices(t.Context()); why == "" {
			t.Errorf("%s was not noticed", name)
		}
	}
	for name, change := range map[string]func(*imds.Instance){
		"in service":  func(i *imds.Instance) { i.TargetLifecycleState = "InService" },
		"spot stops":  func(i *imds.Instance) { i.SpotAction = &imds.SpotAction{Action: "stop", Time: time.Now()} },
		"nothing set": func(*imds.Instance) {},
	} {
		in, m := onInstance(t, c, "", settings.Settings{})
		m.Update(change)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if why := in.Notices(ctx); why != "" {
			t.Errorf("%s: %s", name, why)
		}
		cancel()
	}
}

// TestLimitsFollowTheSettings: image, drop-in, user data, flags; each wins over
// the one before.
func TestLimitsFollowTheSettings(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q", nil)
	for name, tc := range map[string]struct {
		baked, dropIn string
		userData      settings.Orders
		override      settings.Orders
		atStart, then int64
		drain         time.Duration
	}{
		"nothing":   {"", "", settings.Orders{}, settings.Orders{}, 1 << 30, 1 << 30, 20 * time.Second},
		"image":     {"orders: {max_bytes: 67108864, drain: 30s}", "", settings.Orders{}, settings.Orders{}, 64 << 20, 64 << 20, 30 * time.Second},
		"drop-in":   {"orders: {max_bytes: 67108864, drain: 30s}", "orders: {max_bytes: 134217728}", settings.Orders{}, settings.Orders{}, 128 << 20, 128 << 20, 30 * time.Second},
		"user data": {"orders: {max_bytes: 67108864, drain: 30s}", "orders: {max_bytes: 134217728}", settings.Orders{MaxBytes: 256 << 20, Drain: 3 * time.Second}, settings.Orders{}, 128 << 20, 256 << 20, 3 * time.Second},
		"flags":     {"orders: {max_bytes: 67108864}", "", settings.Orders{MaxBytes: 256 << 20, Drain: 3 * time.Second}, settings.Orders{MaxBytes: 512 << 20, Drain: 4 * time.Second}, 512 << 20, 512 << 20, 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			tc.userData.Queue = "q"
			in, _ := onInstance(t, c, tc.baked, settings.Settings{AWS: settings.AWS{EndpointURL: c.URL}, Orders: tc.userData})
			in.Override.Orders = tc.override
			if tc.dropIn != "" {
				path := filepath.Join(in.Root, "etc/lecafe/agent.d/50-orders.yaml")
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(tc.dropIn), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			// The service starts before IMDS has answered, and takes orders.
			answer := make(chan bool)
			r := start(t, &orders.Service{MaxBytes: in.Baked().Orders.MaxBytes, Resolve: func(ctx context.Context) (orders.Target, error) {
				<-answer
				target, err := in.Resolve(ctx)
				if target.Drain != tc.drain {
					t.Errorf("drain %s, want %s", target.Drain, tc.drain)
				}
				return target, err
			}})
			if s := r.await("status", func(orders.Status) bool { return true }); s.SpoolLimit != tc.atStart {
				t.Errorf("limit at start %d, want %d", s.SpoolLimit, tc.atStart)
			}
			close(answer)
			r.await("the settings' limit", func(s orders.Status) bool { return s.State != "starting" && s.SpoolLimit == tc.then })
		})
	}
}

// An instance without a queue asks for one for as long as it runs: of its
// files. IMDS has said what it has to say.
func TestUserDataIsAskedForOnce(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	in, m := onInstance(t, c, "", settings.Settings{})
	if _, err := in.Resolve(t.Context()); err == nil {
		t.Fatal("a queue was found")
	}
	m.SetFaults(func(f *imds.Faults) { f.Down = true })
	if _, err := in.Resolve(t.Context()); err == nil || !strings.Contains(err.Error(), "orders.queue") {
		t.Errorf("the second time: %v", err)
	}
	if err := os.WriteFile(filepath.Join(in.Root, settings.Path), []byte("aws: {region: us-east-1}\norders: {queue: added}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if target, err := in.Resolve(t.Context()); err != nil || target.Queue != "added" {
		t.Errorf("queue %q, %v", target.Queue, err)
	}
}
