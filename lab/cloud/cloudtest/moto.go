package cloudtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
)

// MotoVersion is the moto_server that the tests were written against.
const MotoVersion = "5.2.1"

// MotoAccount is moto's own account ID.
const MotoAccount = "123456789012"

// motoPatience is for a busy machine; moto starts in a second or two.
const motoPatience = 2 * time.Minute

// ErrNoMoto says that moto_server is not installed.
var ErrNoMoto = errors.New("moto_server is not installed: pip install 'moto[server]==" + MotoVersion + "'")

// StartMoto runs a moto_server on a free loopback port. It ends with stop, and
// with this process however that ends.
func StartMoto(ctx context.Context, account string) (url string, stop func(), err error) {
	path, err := exec.LookPath("moto_server")
	if err != nil {
		return "", nil, ErrNoMoto
	}
	cmd := exec.Command(path, "-H", "127.0.0.1", "-p", "0")
	// A group of its own: moto_server may be a wrapper around the server.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), "MOTO_ACCOUNT_ID="+account)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return "", nil, fmt.Errorf("start moto_server: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return "", nil, fmt.Errorf("start moto_server: %w", err)
	}
	ready, failed, ended := make(chan string, 1), make(chan string, 1), make(chan struct{})
	go func() {
		defer close(ended)
		var log strings.Builder
		found := false
		for lines := bufio.NewScanner(stderr); lines.Scan(); { // drained to the end, or moto would block on it
			if _, at, ok := strings.Cut(lines.Text(), "Running on "); ok && !found {
				found = true
				ready <- strings.TrimSpace(at)
			}
			if !found {
				fmt.Fprintln(&log, lines.Text())
			}
		}
		failed <- log.String()
	}()
	stop = func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
		_ = cmd.Wait() // killed: nothing to learn from it
	}
	ctx, cancel := context.WithTimeout(ctx, motoPatience)
	defer cancel()
	select {
	case url := <-ready:
		return url, stop, nil
	case log := <-failed:
		err = fmt.Errorf("moto_server ended: %s", log)
	case <-ctx.Done():
		err = fmt.Errorf("moto_server did not start: %w", ctx.Err())
	}
	stop()
	return "", nil, err
}

// NoMoto says loudly that tests are skipped for lack of moto_server, or fails
// the test in CI, where it must be. It returns only to a caller who goes on
// without.
func NoMoto(t testing.TB) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(ErrNoMoto)
	}
	t.Log("SKIPPED:", ErrNoMoto)
}

// Moto starts a moto_server for one test and returns a configuration that
// reaches it; without moto_server the test is skipped, or fails in CI.
func Moto(t testing.TB) aws.Config {
	t.Helper()
	url, stop, err := StartMoto(t.Context(), MotoAccount)
	if errors.Is(err, ErrNoMoto) {
		NoMoto(t)
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return aws.Config{Region: "us-east-1", BaseEndpoint: &url, Credentials: credentials.NewStaticCredentialsProvider("test", "test", "")}
}
