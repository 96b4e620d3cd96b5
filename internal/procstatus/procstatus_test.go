package procstatus_test

import (
	"os"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/internal/procstatus"
)

func TestMiB(t *testing.T) {
	rss, err := procstatus.MiB(os.Getpid(), "VmRSS")
	if err != nil || rss <= 0 {
		t.Fatalf("%v MiB, %v", rss, err)
	}
	if peak, err := procstatus.MiB(os.Getpid(), "VmHWM"); err != nil || peak < rss/2 {
		t.Errorf("peak %v MiB of %v, %v", peak, rss, err)
	}
	for field, want := range map[string]string{"VmNothing": "has no VmNothing", "State": "is no size", "Threads": "is no size"} {
		if n, err := procstatus.MiB(os.Getpid(), field); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v", field, n, err)
		}
	}
	if _, err := procstatus.MiB(-1, "VmRSS"); err == nil {
		t.Error("no process, no error")
	}
}
