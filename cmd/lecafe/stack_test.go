package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
)

// TestStackOnMoto runs testdata/moto, each script on a moto_server of its own.
func TestStackOnMoto(t *testing.T) {
	if _, err := exec.LookPath("moto_server"); err != nil {
		cloudtest.NoMoto(t)
		t.Skip(cloudtest.ErrNoMoto)
	}
	testscript.Run(t, testscript.Params{Dir: "testdata/moto", RequireExplicitExec: true, Setup: func(env *testscript.Env) error {
		url, stop, err := cloudtest.StartMoto(t.Context(), cloudtest.MotoAccount)
		if err != nil {
			return err
		}
		env.Defer(stop)
		env.Vars = append(env.Vars, awsEnv(url)...)
		return nil
	}})
}

func awsEnv(url string) []string {
	return []string{"AWS_ENDPOINT_URL=" + url, "AWS_REGION=us-east-1", "AWS_DEFAULT_REGION=us-east-1", "AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test", "AWS_PAGER="}
}

// TestConnect runs testdata/connect against an endpoint that knows three
// instances: one managed, one whose agent was lost, and one that SSM does not know.
func TestConnect(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".DescribeInstanceInformation") {
			list := []map[string]any{}
			for id, status := range map[string]string{"i-00000000000000001": "Online", "i-00000000000000002": "ConnectionLost"} {
				if strings.Contains(string(body), id) {
					list = append(list, map[string]any{"InstanceId": id, "PingStatus": status, "LastPingDateTime": 1700000000.0})
				}
			}
			w.Header().Set("Content-Type", "application/x-amz-json-1.1")
			_ = json.NewEncoder(w).Encode(map[string]any{"InstanceInformationList": list}) // the client says what it got
			return
		}
		state, profile := "running", ""
		switch {
		case strings.Contains(string(body), "i-00000000000000004"):
			state = "stopped"
		case strings.Contains(string(body), "GetInstanceProfile"):
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>`)
			return
		case strings.Contains(string(body), "i-00000000000000005"):
			profile = `<iamInstanceProfile><arn>arn:aws:iam::123456789012:instance-profile/app</arn></iamInstanceProfile>`
		case strings.Contains(string(body), "i-00000000000000006"):
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `<Response><Errors><Error><Code>InvalidInstanceID.NotFound</Code><Message>no</Message></Error></Errors></Response>`)
			return
		}
		fmt.Fprintf(w, `<DescribeInstancesResponse><reservationSet><item><instancesSet><item><instanceState><name>%s</name></instanceState>%s</item></instancesSet></item></reservationSet></DescribeInstancesResponse>`, state, profile)
	}))
	t.Cleanup(server.Close)
	testscript.Run(t, testscript.Params{Dir: "testdata/connect", RequireExplicitExec: true, Setup: func(env *testscript.Env) error {
		env.Vars = append(env.Vars, awsEnv(server.URL)...)
		// lecafe alone is in the PATH, until the script puts more there.
		lecafe, err := exec.LookPath("lecafe")
		if err != nil {
			return err
		}
		env.Setenv("PATH", filepath.Dir(lecafe))
		return nil
	}})
}
