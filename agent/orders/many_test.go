package orders_test

import (
	"bufio"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent/orders"
)

// TestMain lets a test be another process, which opens connections and holds them.
func TestMain(m *testing.M) {
	if path := os.Getenv("LECAFE_TEST_HOLD"); path != "" {
		hold(path)
	}
	os.Exit(m.Run())
}

// hold opens connections, says what the last one is told, and keeps them.
func hold(path string) {
	var held []net.Conn
	for range 3000 {
		c, err := net.Dial("unix", path)
		if err != nil {
			os.Exit(1)
		}
		held = append(held, c)
	}
	last := held[len(held)-1]
	_ = last.SetReadDeadline(time.Now().Add(5 * time.Second)) // well before a silent client is let go
	line, err := bufio.NewReader(last).ReadString('\n')
	if err != nil {
		line = "nothing\n"
	}
	_, _ = os.Stdout.WriteString(line)
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n') // until the test ends
	for _, c := range held {
		c.Close()
	}
	os.Exit(0)
}

// TestOneProcessCannotTakeAllConnections pins that a client that leaks
// connections takes neither the service's file descriptors nor its memory from
// the others.
func TestOneProcessCannotTakeAllConnections(t *testing.T) {
	t.Parallel()
	r := start(t, &orders.Service{Resolve: nowhere})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "LECAFE_TEST_HOLD="+r.socket)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); _ = cmd.Wait() }()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.Contains(line, " 503 ") {
		t.Errorf("the last of 3000 connections is told %q, %v", line, err)
	}
	if status, _, answer := r.post("/v1/orders", "from another process"); status != http.StatusAccepted {
		t.Errorf("another process got %d %s", status, answer)
	}
}
