package bake

import (
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A process that has been killed drives nothing, although nobody has waited
// for it: in a container nobody may ever.
func TestZombieIsDead(t *testing.T) {
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	j := journal{Owner: owner{Host: thisHost(), PID: cmd.Process.Pid, Start: startOf(cmd.Process.Pid)}, Beat: now}
	if j.dead(now) {
		t.Error("a process that lives is dead")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil { // leaves it to be waited for
		t.Fatal(err)
	}
	if !j.dead(now) {
		t.Error("a zombie lives")
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it was not killed")
	}
	if !j.dead(now) {
		t.Error("a process that is gone lives")
	}
}
