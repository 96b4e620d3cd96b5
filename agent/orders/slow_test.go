package orders_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent/orders"
)

// TestSlowBodiesHoldUpNobody pins that clients that announce large bodies and do
// not send them keep the others waiting for moments, not for their time limit.
func TestSlowBodiesHoldUpNobody(t *testing.T) {
	t.Parallel()
	r := start(t, &orders.Service{Resolve: nowhere})
	begun := make(chan struct{}, 8)
	for range 8 {
		c, err := net.Dial("unix", r.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := fmt.Fprintf(c, "POST /v1/orders/batch HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", 4<<20); err != nil {
			t.Fatal(err)
		}
		go func() {
			// 100 Continue says that the service has begun to read.
			if line, err := bufio.NewReader(c).ReadString('\n'); err == nil && strings.Contains(line, " 100 ") {
				begun <- struct{}{}
			}
		}()
	}
	for range 2 {
		<-begun
	}
	for what, post := range map[string]func() int{
		"order": func() int { status, _, _ := r.post("/v1/orders", "quick"); return status },
		"batch": func() int {
			status, _, _ := r.post("/v1/orders/batch", strings.Repeat("{\"body\":\"a\"}"+strings.Repeat(" ", 1000)+"\n", 100))
			return status
		},
	} {
		done := make(chan int, 1)
		go func() { done <- post() }()
		select {
		case status := <-done:
			if status != http.StatusAccepted {
				t.Errorf("the quick %s got %d", what, status)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("the quick %s waits for the slow ones", what)
		}
	}
}

// TestUnreadAnswersHoldUpNobody pins that clients that never read what they are
// answered hold no memory that the others need.
func TestUnreadAnswersHoldUpNobody(t *testing.T) {
	t.Parallel()
	r := start(t, &orders.Service{Resolve: nowhere})
	for n := range 12 {
		// Of different sizes, so that some get stuck in the middle of an answer.
		count := 1000 - 37*n
		batch := strings.Repeat("{\"body\":\"a\"}\n", count) + strings.Repeat(" ", 4<<20-13*count)
		request := fmt.Sprintf("POST /v1/orders/batch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(batch), batch)
		c, err := net.Dial("unix", r.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() { // ends when the connection does
			for range 100 {
				if _, err := io.WriteString(c, request); err != nil {
					return
				}
			}
		}()
	}
	// When nothing has been accepted for a while they are all stuck.
	for last, same := uint64(0), 0; same < 50; {
		if n := r.status().Accepted; n != last || n == 0 {
			last, same = n, 0
		} else {
			same++
		}
		time.Sleep(20 * time.Millisecond)
	}
	done := make(chan int, 1)
	go func() {
		status, _, _ := r.post("/v1/orders/batch", strings.Repeat("{\"body\":\"a\"}\n", 1000))
		done <- status
	}()
	select {
	case status := <-done:
		if status != http.StatusAccepted {
			t.Errorf("the quick batch got %d", status)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the quick batch waits for those who do not read")
	}
}
