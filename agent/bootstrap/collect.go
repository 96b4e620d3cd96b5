package bootstrap

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/userdata/trap"
)

// Collect reads the evidence that lies in files below root ("/" on an
// instance): cloud-init's records, the trap's records, processes of the units
// named, free space. The rest of Evidence is the caller's.
func Collect(root string, c Clock, units []Unit) Evidence {
	ev := Evidence{
		At: c.At, Uptime: c.Uptime, Units: units,
		CloudInit: readCloudInit(root, c.At.Add(-c.Kernel)),
		Trapped:   readTrap(root),
		LogTail:   tailLines(filepath.Join(root, outputFile), report.MaxOutput),
		Said:      said(tailLines(filepath.Join(root, outputFile), maxSaid)),
	}
	for _, u := range units {
		if strings.HasPrefix(u.Name, "cloud-") && (u.Active == "activating" || u.Name == mainUnit && u.Active == "active") {
			ev.Running = append(ev.Running, processes(root, u.Name)...)
		}
	}
	return ev
}

// maxSaid bounds how far back a shell's word is looked for, in lines.
const maxSaid = 1000

func said(lines []string) []string {
	var out []string
	for _, l := range lines {
		if strings.Contains(l, "/scripts/") {
			out = append(out, l)
		}
	}
	return out
}

// readTrap reads the trap's records. What cannot be read is no evidence.
func readTrap(root string) []Trapped {
	records, _ := trap.Read(filepath.Join(root, trap.RecordsDir)) // what was read before an error counts
	out := make([]Trapped, 0, len(records))
	for _, r := range records {
		out = append(out, Trapped{File: filepath.Base(r.File), Line: r.Line, Exit: r.ExitCode, Command: r.Command, Background: r.Background, Fatal: r.Errexit})
	}
	return out
}

// processes lists what runs in a unit's control group, on the unified
// hierarchy and on the old one.
func processes(root, unit string) []Process {
	var pids []byte
	for _, h := range []string{"sys/fs/cgroup", "sys/fs/cgroup/systemd", "sys/fs/cgroup/unified"} {
		b, err := os.ReadFile(filepath.Join(root, h, "system.slice", unit, "cgroup.procs"))
		if err == nil {
			pids = b
			break
		}
	}
	var out []Process
	for _, f := range strings.Fields(string(pids)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			continue
		}
		dir := filepath.Join(root, "proc", f)
		stat, err1 := os.ReadFile(filepath.Join(dir, "stat"))
		cmd, err2 := os.ReadFile(filepath.Join(dir, "cmdline"))
		// It may have ended meanwhile.
		if err1 != nil || err2 != nil || len(cmd) == 0 {
			continue
		}
		p := Process{PID: pid, Unit: unit, Command: strings.Split(strings.TrimRight(string(cmd), "\x00"), "\x00")}
		// Behind the name in parentheses: state, parent, ..., start time as 22nd.
		if i := bytes.LastIndexByte(stat, ')'); i > 0 {
			if f := strings.Fields(string(stat[i+1:])); len(f) > 19 {
				p.Parent, _ = strconv.Atoi(f[1])
				p.Started, _ = strconv.ParseUint(f[19], 10, 64)
			}
		}
		out = append(out, p)
	}
	return out
}

// disks asks for the free space of the file systems that a boot writes to.
func disks(root string) []Disk {
	var out []Disk
	seen := map[unix.Fsid]bool{}
	for _, p := range []string{"/", "/var", "/var/lib/cloud", "/tmp", "/run", "/opt"} {
		var s unix.Statfs_t
		if err := unix.Statfs(filepath.Join(root, p), &s); err != nil || s.Blocks == 0 || seen[s.Fsid] {
			continue
		}
		// A read-only image is full by nature.
		if s.Flags&unix.ST_RDONLY != 0 {
			continue
		}
		if s.Fsid != (unix.Fsid{}) {
			seen[s.Fsid] = true
		}
		size := uint64(s.Bsize)
		out = append(out, Disk{Path: p, Size: s.Blocks * size, Free: s.Bavail * size, Inodes: s.Files, FreeInodes: s.Ffree})
	}
	return out
}
