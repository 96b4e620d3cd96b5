package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// motoVersion is the one that the scripts were written against.
const motoVersion = "5.2.1"

// TestStackOnMoto runs testdata/moto, each script on a moto_server of its own.
func TestStackOnMoto(t *testing.T) {
	path, err := exec.LookPath("moto_server")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("moto_server is not installed: pip install 'moto[server]==%s'", motoVersion)
		}
		t.Skipf("SKIPPED: lecafe stack is not tested, moto_server is not installed: pip install 'moto[server]==%s'", motoVersion)
	}
	testscript.Run(t, testscript.Params{Dir: "testdata/moto", RequireExplicitExec: true, Setup: func(env *testscript.Env) error {
		url, err := startMoto(env, path)
		if err != nil {
			return err
		}
		env.Vars = append(env.Vars, awsEnv(url)...)
		return nil
	}})
}

func awsEnv(url string) []string {
	return []string{"AWS_ENDPOINT_URL=" + url, "AWS_REGION=us-east-1", "AWS_DEFAULT_REGION=us-east-1", "AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test", "AWS_PAGER="}
}

// startMoto runs a moto_server until the script has ended.
func startMoto(env *testscript.Env, path string) (string, error) {
	cmd := exec.Command(path, "-H", "127.0.0.1", "-p", "0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), "MOTO_ACCOUNT_ID=123456789012")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	ready, ended := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(ended)
		defer close(ready)
		lines, found := bufio.NewScanner(stderr), false
		for lines.Scan() { // drained to the end, or moto would block on it
			if _, url, ok := strings.Cut(lines.Text(), "Running on "); ok && !found {
				found = true
				ready <- strings.TrimSpace(url)
			}
		}
	}()
	env.Defer(func() {
		_ = cmd.Process.Kill()
		<-ended
		_ = cmd.Wait() // killed: nothing to learn from it
	})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	select {
	case url, ok := <-ready:
		if !ok {
			return "", fmt.Errorf("moto_server ended before it was ready")
		}
		return url, nil
	case <-ctx.Done():
		return "", fmt.Errorf("moto_server: %w", ctx.Err())
	}
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
