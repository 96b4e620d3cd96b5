// Package trap owns how the failures of user-data scripts become records, and
// how records are read: a library for bash that needs no change to a script,
// and the instrumentation of sh scripts, statement by statement, which is for
// cloud-config's runcmd and for images without the library. It judges nothing
// and redacts nothing; that is the reader's part.
//
// What the library cannot record without changing what a script does, so that
// only the script's own exit code tells of it (lint warns of the work in the
// background):
//
//   - a single command, cmd &, that still runs when the script ends, or in a
//     script that waits for all of its children at once (bash forgets their
//     exit codes then) or replaces itself by exec: bash runs it in place of
//     the child, where no trap is, and its exit code is looked for when the
//     script ends. What runs in the background as ( list ), { list; } or a
//     function is recorded in any case, command by command.
//   - scripts under set -v, which shows the text of every trap that runs, and
//     under extdebug, which shows functions their callers.
//   - scripts that set DEBUG or RETURN traps and also either let functions
//     inherit them, or set ERR traps, or source other files. DEBUG and
//     RETURN traps alone are no hindrance: records are made in a subshell then,
//     and name the line for the command; cmd & is not seen.
//   - scripts whose BASH_XTRACEFD is no number in the text.
//   - scripts that set traps and look at PIPESTATUS, which a function called
//     trap would change.
package trap

import (
	"bufio"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Paths on an instance.
const (
	LibraryPath = "/usr/lib/lecafe/trap.sh" // where BASH_ENV points
	RecordsDir  = "/run/lecafe/trap"
	ScriptsDir  = "/var/lib/cloud/instance/scripts"
	Runcmd      = ScriptsDir + "/runcmd" // what cloud-init makes of runcmd
)

// Library is the file that bash reads before each script, see LibraryPath.
//
//go:embed trap.sh
var Library string

// LibraryAt is the library for scripts and records in other places.
func LibraryAt(scripts, records string) string {
	return strings.NewReplacer(ScriptsDir+"/", strings.TrimSuffix(scripts, "/")+"/", RecordsDir, records).Replace(Library)
}

// Record is one command that failed and that the script did not handle.
type Record struct {
	Time       time.Time // in seconds
	Process    int
	ExitCode   int
	Line       int    // in File
	Depth      int    // of subshells
	Errexit    bool   // set -e was on: the failure ended the shell
	Background bool   // it happened in the background
	File       string // the script, or what it sourced
	Command    string // as written, at most 1000 characters
}

// Bounds of what is read: the files are written by root, but by scripts that
// may have gone wild.
const (
	maxFiles   = 500
	maxRecords = 1000
	maxLine    = 64 << 10
)

// Read returns the records in dir in the order they were made. What is not a
// record is passed over; a directory that does not exist holds none.
func Read(dir string) ([]Record, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read trap records: %w", err)
	}
	var out []Record
	for _, e := range entries[:min(len(entries), maxFiles)] {
		if !e.Type().IsRegular() {
			continue
		}
		records, err := readFile(filepath.Join(dir, e.Name()), maxRecords-len(out))
		if err != nil {
			return out, fmt.Errorf("read trap records: %w", err)
		}
		out = append(out, records...)
	}
	slices.SortStableFunc(out, func(a, b Record) int { return a.Time.Compare(b.Time) })
	return out, nil
}

func readFile(path string, limit int) ([]Record, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []Record
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxLine)
	for len(out) < limit && lines.Scan() {
		if r, ok := parse(lines.Text()); ok {
			out = append(out, r)
		}
	}
	// A line that is too long ends the file: what came before it counts.
	if err := lines.Err(); err != nil && !errors.Is(err, bufio.ErrTooLong) {
		return out, err
	}
	return out, nil
}

// parse reads one line: version, time, process, exit code, line, depth,
// errexit, background, file, command. Version 1 quotes the last two as bash's printf %q
// does, 1b has them in base64.
func parse(line string) (Record, bool) {
	f := strings.Split(line, "\t")
	if len(f) != 10 {
		return Record{}, false
	}
	var n [7]int
	for i := range n {
		v, err := strconv.Atoi(f[i+1])
		if err != nil || v < 0 {
			return Record{}, false
		}
		n[i] = v
	}
	r := Record{Time: time.Unix(int64(n[0]), 0).UTC(), Process: n[1], ExitCode: n[2], Line: n[3], Depth: n[4], Errexit: n[5] == 1, Background: n[6] == 1}
	var ok, ok2 bool
	switch f[0] {
	case "1":
		r.File, ok = unquote(f[8])
		r.Command, ok2 = unquote(f[9])
	case "1b":
		r.File, ok = unbase64(f[8])
		r.Command, ok2 = unbase64(f[9])
	}
	if !ok || !ok2 || r.ExitCode == 0 {
		return Record{}, false
	}
	return r, true
}

func unbase64(s string) (string, bool) {
	b, err := base64.StdEncoding.DecodeString(s)
	return string(b), err == nil
}

// unquote undoes bash's printf %q: backslashes before single characters, or
// $'...' for text with control characters.
func unquote(s string) (string, bool) {
	if s == "''" {
		return "", true
	}
	if inner, ok := strings.CutPrefix(s, "$'"); ok && len(inner) > 0 && strings.HasSuffix(inner, "'") {
		return ansi(inner[:len(inner)-1])
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' {
			if i++; i == len(s) {
				return "", false
			}
		}
		b.WriteByte(s[i])
	}
	return b.String(), true
}

func ansi(s string) (string, bool) {
	plain := map[byte]byte{'a': 7, 'b': 8, 't': '\t', 'n': '\n', 'v': 11, 'f': 12, 'r': '\r', 'e': 27, 'E': 27, '\\': '\\', '\'': '\'', '"': '"', '?': '?'}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		if i++; i == len(s) {
			return "", false
		}
		if c, ok := plain[s[i]]; ok {
			b.WriteByte(c)
			continue
		}
		if s[i] < '0' || s[i] > '7' {
			return "", false
		}
		end := i + 1
		for end < len(s) && end < i+3 && s[end] >= '0' && s[end] <= '7' {
			end++
		}
		v, err := strconv.ParseUint(s[i:end], 8, 16)
		if err != nil {
			return "", false
		}
		b.WriteByte(byte(v))
		i = end - 1
	}
	return b.String(), true
}
