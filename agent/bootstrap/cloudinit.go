package bootstrap

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lecafe/lecafe/internal/lazyregexp"
)

// Files of cloud-init, below the root.
const (
	statusFile  = "run/cloud-init/status.json" // a link into var/lib/cloud/data
	resultFile  = "run/cloud-init/result.json"
	scriptsDir  = "var/lib/cloud/instance/scripts"
	logFile     = "var/log/cloud-init.log"
	outputFile  = "var/log/cloud-init-output.log"
	disabledRun = "run/cloud-init/disabled" // written by its generator
	disabledEtc = "etc/cloud/cloud-init.disabled"
)

// maxLog bounds what is read of a log: a script may write without end.
const maxLog = 8 << 20

// readCloudInit reads what cloud-init recorded below root. booted turns times
// since boot into times: from 24.4 on status.json holds those.
func readCloudInit(root string, booted time.Time) CloudInit {
	c := CloudInit{Ran: map[string]bool{}}
	for _, p := range []string{"usr/bin/cloud-init", "bin/cloud-init"} {
		if exists(filepath.Join(root, p)) {
			c.Installed = true
		}
	}
	c.Disabled = exists(filepath.Join(root, disabledRun)) || exists(filepath.Join(root, disabledEtc))
	// Both are links into data: a file there without its link is of an earlier
	// boot. What cannot be read says nothing.
	status, _ := os.ReadFile(filepath.Join(root, statusFile))
	c.readStatus(status, booted)
	result, _ := os.ReadFile(filepath.Join(root, resultFile))
	c.readResult(result)
	c.readLog(tailBytes(filepath.Join(root, logFile), maxLog))
	if c.Ended() {
		c.Modules = readModules(root)
	}
	return c
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (c *CloudInit) readStatus(b []byte, booted time.Time) {
	// Half-written or foreign files tell nothing; the next event reads again.
	var doc struct {
		V1 map[string]json.RawMessage `json:"v1"`
	}
	if json.Unmarshal(b, &doc) != nil {
		return
	}
	_ = json.Unmarshal(doc.V1["datasource"], &c.Datasource)
	for i, m := range stageModes {
		var s struct {
			Start       *float64            `json:"start"`
			Finished    *float64            `json:"finished"`
			Errors      []any               `json:"errors"`
			Recoverable map[string][]string `json:"recoverable_errors"`
		}
		if json.Unmarshal(doc.V1[m.mode], &s) != nil {
			continue
		}
		r := StageRecord{Start: stamp(s.Start, booted), Finish: stamp(s.Finished, booted), Recoverable: s.Recoverable}
		for _, e := range s.Errors {
			if text, ok := e.(string); ok {
				r.Errors = append(r.Errors, text)
			}
		}
		for _, level := range []string{"ERROR", "CRITICAL"} {
			c.Errors = append(c.Errors, s.Recoverable[level]...)
		}
		c.Stages[i] = r
	}
}

// stamp reads a time of status.json: seconds since 1970, or since boot.
func stamp(v *float64, booted time.Time) time.Time {
	switch {
	case v == nil || *v <= 0:
		return time.Time{}
	case *v < 1e8: // three years of uptime, or 1973
		return booted.Add(time.Duration(*v * float64(time.Second)))
	}
	return time.UnixMicro(int64(*v * 1e6)).UTC()
}

func (c *CloudInit) readResult(b []byte) {
	var doc struct {
		V1 struct {
			Datasource *string `json:"datasource"`
		} `json:"v1"`
	}
	if len(b) == 0 || json.Unmarshal(b, &doc) != nil {
		return
	}
	c.Result = true
	if doc.V1.Datasource != nil && c.Datasource == "" {
		c.Datasource = *doc.V1.Datasource
	}
}

var (
	// 2026-11-22 02:07:01,123 - subp.py[DEBUG]: text
	logLine = lazyregexp.New(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - ([\w.]+)\[(\w+)\]: (.*)$`)
	// Cloud-init v. 22.4.2 running 'init-local' at Sun, 22 Nov 2026 02:07:01 +0000. Up 3.21 seconds.
	bannerLine = lazyregexp.New(`Cloud-init v\. (\S+) running '([\w:-]+)' at`)
	runLine    = lazyregexp.New(`^Running command \[?['"]?(/[^'"\],]+)`)
	commandOf  = lazyregexp.New(`^Command: \[?b?['"]?(/[^'"\],]+)`)
	failedRun  = lazyregexp.New(`^Failed running (\S+) \[(-?\d+)\]`)
	alreadyRan = lazyregexp.New(`^config-([\w-]+) already ran`)
)

// readLog reads the part of cloud-init.log that is of this boot: what follows
// the last start of its first stage.
func (c *CloudInit) readLog(b []byte) {
	text := strings.ToValidUTF8(string(b), "\uFFFD")
	lines := strings.Split(text, "\n")
	begin := 0
	for i, l := range lines {
		if m := bannerLine().FindStringSubmatch(l); m != nil {
			c.Version = m[1]
			if m[2] == "init-local" {
				begin = i
			}
		}
	}
	lines = lines[begin:]
	var failure *ExecFailure
	for _, l := range lines {
		m := logLine().FindStringSubmatch(l)
		if m == nil {
			// A ProcessExecutionError goes over several lines.
			if p := commandOf().FindStringSubmatch(l); p != nil {
				c.Failures = append(c.Failures, ExecFailure{Path: p[1]})
				failure = &c.Failures[len(c.Failures)-1]
			} else if failure != nil {
				failure.read(l)
			}
			continue
		}
		level, msg := m[2], m[3]
		failure = nil
		switch level {
		case "DEBUG":
			c.Debug = true
		case "WARNING", "WARN":
			c.Warnings = append(c.Warnings, m[1]+": "+msg)
		case "ERROR", "CRITICAL":
			c.Errors = append(c.Errors, m[1]+": "+msg)
		}
		if p := runLine().FindStringSubmatch(msg); p != nil {
			c.Ran[p[1]] = true
		} else if p := failedRun().FindStringSubmatch(msg); p != nil {
			if n, err := strconv.Atoi(p[2]); err == nil {
				c.Failures = append(c.Failures, ExecFailure{Path: p[1], Exit: &n})
			}
		} else if p := alreadyRan().FindStringSubmatch(msg); p != nil {
			c.Skipped = append(c.Skipped, strings.ReplaceAll(p[1], "-", "_"))
		}
	}
	c.Failures = slices.CompactFunc(c.Failures, func(a, b ExecFailure) bool {
		return a.Path == b.Path && a.Reason == b.Reason && (a.Exit == nil) == (b.Exit == nil) && (a.Exit == nil || *a.Exit == *b.Exit)
	})
}

func (f *ExecFailure) read(line string) {
	if v, ok := strings.CutPrefix(line, "Exit code: "); ok {
		if n, err := strconv.Atoi(v); err == nil {
			f.Exit = &n
		}
	} else if v, ok := strings.CutPrefix(line, "Reason: "); ok && v != "-" {
		f.Reason = v
	}
}

// tailBytes reads at most limit bytes at the end of a file; a file that cannot
// be read is empty.
func tailBytes(path string, limit int64) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > limit {
		if _, err := f.Seek(-limit, io.SeekEnd); err != nil {
			return nil
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil && !errors.Is(err, fs.ErrClosed) {
		return nil
	}
	return b
}

// tailLines returns the last n lines of a file that are not empty.
func tailLines(path string, n int) []string {
	b := bytes.TrimRight(tailBytes(path, 64<<10), "\n")
	if len(b) == 0 {
		return nil
	}
	lines := strings.Split(strings.ToValidUTF8(string(b), "\uFFFD"), "\n")
	for i, l := range lines {
		// Progress bars redraw one line: its last state counts.
		if j := strings.LastIndexByte(strings.TrimRight(l, "\r"), '\r'); j >= 0 {
			l = l[j+1:]
		}
		lines[i] = strings.TrimRight(l, "\r")
	}
	return lines[max(0, len(lines)-n):]
}
