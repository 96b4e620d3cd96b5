package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lecafe/lecafe/internal/procstatus"
	"github.com/lecafe/lecafe/lab/cloud/wire"
	"github.com/lecafe/lecafe/lab/imds"
)

// awsAtNoCost answers STS and takes reports at the least cost, so that the
// agent is measured and not the fake.
type awsAtNoCost struct{ reports chan time.Time }

func (a awsAtNoCost) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	if r.Method == http.MethodPut && strings.Contains(r.URL.Path, ".bootstrap.") {
		a.reports <- time.Now()
		return
	}
	if r.Method == http.MethodPost {
		w.Header().Set("Content-Type", "text/xml")
		_, _ = io.WriteString(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>arn:aws:sts::123456789012:assumed-role/app/i-0abc1234def567890</Arn><UserId>AROAEXAMPLEEXAMPLE12:i-0abc1234def567890</UserId><Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`)
	}
}

// BenchmarkStartToReport starts the real program on an instance whose cloud-init
// has ended, and stops the clock when S3 has the report: five calls to IMDS, one
// to STS and one to S3 over loopback, every write synced.
func BenchmarkStartToReport(b *testing.B) {
	bin := filepath.Join(b.TempDir(), "lecafe-agent")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // static, as make build has it
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("build: %v\n%s", err, out)
	}
	aws := awsAtNoCost{reports: make(chan time.Time, 1)}
	api := httptest.NewServer(aws)
	defer api.Close()
	var calls atomic.Int64
	meta := imds.New(imds.Instance{
		InstanceID: "i-0abc1234def567890", Role: "app", UserData: []byte("#!/bin/sh\necho espresso\n"),
		Credentials: func(d time.Duration) wire.Credentials {
			return wire.Credentials{AccessKeyID: "ASIAEXAMPLEEXAMPLE12", SecretAccessKey: "secret", SessionToken: "token", Expiration: time.Now().Add(d)}
		},
	})
	metadata := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		meta.ServeHTTP(w, r)
	}))
	defer metadata.Close()

	var took []time.Duration
	var cpu time.Duration
	rss := 0.0
	runs := 0
	for b.Loop() {
		b.StopTimer()
		root := bootedRoot(b, api.URL)
		cmd := exec.Command(bin, "run", "--root", root, "--imds", metadata.URL, "--console", filepath.Join(root, "dev/console"))
		var log bytes.Buffer
		cmd.Stderr = &log
		b.StartTimer()
		start := time.Now()
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		select {
		case at := <-aws.reports:
			took = append(took, at.Sub(start))
		case <-time.After(20 * time.Second):
			b.Fatalf("no report\n%s", log.String())
		}
		b.StopTimer()
		runs++
		rss = max(rss, memory(b, cmd.Process.Pid, "VmRSS"))
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			b.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			b.Fatalf("%v\n%s", err, log.String())
		}
		cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		if !strings.Contains(log.String(), "verdict=success") {
			b.Fatalf("not a healthy boot:\n%s", log.String())
		}
		if err := os.RemoveAll(root); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-median")
	b.ReportMetric(float64(took[0].Microseconds())/1000, "ms-best")
	b.ReportMetric(float64(calls.Load())/float64(runs), "imds-calls")
	// Unlike the time, this holds on a machine that does other things too.
	b.ReportMetric(float64(cpu.Microseconds())/1000/float64(runs), "ms-cpu")
	b.ReportMetric(rss, "MiB-rss")
	info, err := os.Stat(bin)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(info.Size())/1e6, "MB-binary")
}

// bootedRoot is a root directory whose cloud-init has ended well.
func bootedRoot(b *testing.B, endpoint string) string {
	root, err := os.MkdirTemp("/var/tmp", "lecafe-bench-*") // /tmp may be memory
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(root) })
	// /run is memory on every instance.
	if run, err := os.MkdirTemp("/dev/shm", "lecafe-bench-*"); err == nil {
		b.Cleanup(func() { os.RemoveAll(run) })
		if err := os.Symlink(run, filepath.Join(root, "run")); err != nil {
			b.Fatal(err)
		}
	}
	at := float64(time.Now().Add(-time.Minute).Unix())
	stage := fmt.Sprintf(`{"errors":[],"start":%f,"finished":%f}`, at, at)
	for path, text := range map[string]string{
		"proc/sys/kernel/random/boot_id": "11111111-1111-4111-8111-111111111111\n",
		"usr/bin/cloud-init":             "",
		"dev/console":                    "",
		"run/lecafe/trap/.keep":          "",
		"var/lib/cloud/data/.keep":       "",
		"etc/lecafe/agent.yaml":          fmt.Sprintf("aws: {endpoint_url: %q}\nreport: {s3: {bucket: reports}}\nbootstrap: {deadline: 24h}\n", endpoint),
		"run/cloud-init/status.json":     `{"v1":{"datasource":"DataSourceEc2Local","stage":null,"init-local":` + stage + `,"init":` + stage + `,"modules-config":` + stage + `,"modules-final":` + stage + `}}`,
		"run/cloud-init/result.json":     `{"v1":{"datasource":"DataSourceEc2Local","errors":[]}}`,
		"var/log/cloud-init.log": "2026-11-22 02:07:01,123 - util.py[DEBUG]: Cloud-init v. 22.4.2 running 'init-local' at Sun, 22 Nov 2026 02:07:01 +0000. Up 3.21 seconds.\n" +
			"2026-11-22 02:07:09,123 - subp.py[DEBUG]: Running command ['/var/lib/cloud/instance/scripts/part-001'] with allowed return codes [0] (shell=False, capture=False)\n",
	} {
		path := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
		ended := time.Now().Add(-time.Minute)
		for _, p := range []string{path, filepath.Dir(path)} {
			if err := os.Chtimes(p, ended, ended); err != nil {
				b.Fatal(err)
			}
		}
	}
	return root
}

// memory is a figure of /proc/PID/status in MiB.
func memory(b *testing.B, pid int, field string) float64 {
	b.Helper()
	n, err := procstatus.MiB(pid, field)
	if err != nil {
		b.Fatal(err)
	}
	return n
}
