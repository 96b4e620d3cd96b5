package ssm_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/ssm"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// TestInstanceThatSaysNothingIsLost: what has registered is Online for five
// minutes after its last word; what never did is not there.
func TestInstanceThatSaysNothingIsLost(t *testing.T) {
	clock := wire.NewManual(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	s := ssm.New(ssm.Options{Clock: clock})
	call := func(action, caller, body string) string {
		r := httptest.NewRequestWithContext(wire.WithRegion(wire.WithCaller(t.Context(), wire.Caller{InstanceID: caller}), "us-east-1"), http.MethodPost, "/", strings.NewReader(body))
		r.Header.Set("X-Amz-Target", "AmazonSSM."+action)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		return w.Body.String()
	}
	const id = "i-0123456789abcdef0"
	const ask = `{"Filters":[{"Key":"InstanceIds","Values":["` + id + `"]}]}`
	expect := func(want string) {
		t.Helper()
		if got := call("DescribeInstanceInformation", "", ask); !strings.Contains(got, want) {
			t.Errorf("%s, want %s", got, want)
		}
	}
	expect(`"InstanceInformationList":[]`)
	if got := call("UpdateInstanceInformation", "i-1", `{"InstanceId":"`+id+`"}`); !strings.Contains(got, "may not register") {
		t.Errorf("another's registration: %s", got)
	}
	expect(`"InstanceInformationList":[]`)
	call("UpdateInstanceInformation", id, `{"InstanceId":"`+id+`","AgentVersion":"3.3"}`)
	expect(`"PingStatus":"Online"`)
	clock.Advance(5*time.Minute + time.Second)
	expect(`"PingStatus":"ConnectionLost"`)
	call("UpdateInstanceInformation", id, `{"InstanceId":"`+id+`"}`)
	expect(`"PingStatus":"Online"`)
	if got := call("DescribeInstanceInformation", "", `{"Filters":[{"Key":"PlatformTypes","Values":["Linux"]}]}`); !strings.Contains(got, "does not model the filter PlatformTypes") {
		t.Errorf("a filter that is not modelled: %s", got)
	}
}
