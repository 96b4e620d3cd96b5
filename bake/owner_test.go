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
	if j.dead(now, false) {
		t.Error("a process that lives is dead")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil { // leaves it to be waited for
		t.Fatal(err)
	}
	if !j.dead(now, false) {
		t.Error("a zombie lives")
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it was not killed")
	}
	if !j.dead(now, false) {
		t.Error("a process that is gone lives")
	}
}

// A gc whose machine's clock is ahead takes no bake of another machine that
// beats: S3's clock says so.
func TestClockAheadKillsNoBake(t *testing.T) {
	now := time.Now()
	age := 20 * time.Second
	j := journal{Owner: owner{Host: "another", PID: 1}, Beat: now.Add(-time.Hour), age: &age}
	if j.dead(now, true) {
		t.Error("a bake whose journal was written 20 s ago is dead")
	}
	if age = 2 * time.Minute; !j.dead(now, true) {
		t.Error("a bake that has been silent for 2 minutes lives")
	}
	if age = -time.Hour; !j.dead(now, true) {
		t.Error("a time in the future is believed")
	}
}
