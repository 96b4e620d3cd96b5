package builder

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/internal/atomicfile"
)

// trap is what bash reads before a script (BASH_ENV): -e ends the script at
// the first failure, and the ERR trap leaves where that was. It takes itself
// out of the environment, so that bash children of the script are not touched.
const trap = `unset BASH_ENV
set -eE
trap '__lecafe_rc=$?; printf "%s\n%s\n%s\n%s\n" "$__lecafe_rc" "${BASH_SOURCE[0]}" "$LINENO" "$BASH_COMMAND" >"$LECAFE_TRAP" 2>/dev/null || :' ERR
`

// script runs a file by its #! line; bash gets the trap.
func (b *Builder) script(ctx context.Context, path, name string, env map[string]string, out *manifest.Step) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(data), "\n")
	words := strings.Fields(strings.TrimPrefix(first, "#!"))
	switch {
	case len(words) == 0 || strings.HasSuffix(words[len(words)-1], "bash") || len(words) > 1 && strings.HasSuffix(words[0], "bash"):
		return b.bash(ctx, path, name, env, out)
	case len(words) == 1 && filepath.Base(words[0]) == "sh":
		out.File = name
		return b.command(ctx, out, environ(env), words[0], "-e", path)
	}
	// The interpreter is called by name: the builder's directory may be
	// mounted noexec.
	out.File = name
	return b.command(ctx, out, environ(env), words[0], append(words[1:], path)...)
}

func (b *Builder) bash(ctx context.Context, path, name string, env map[string]string, out *manifest.Step) error {
	prelude, record := filepath.Join(b.Dir, "trap.sh"), filepath.Join(b.Dir, "trap.out")
	if err := atomicfile.WriteFile(prelude, []byte(trap), 0o600); err != nil {
		return err
	}
	if err := os.Remove(record); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	err := b.command(ctx, out, append(environ(env), "BASH_ENV="+prelude, "LECAFE_TRAP="+record), "bash", path)
	if err == nil {
		return nil
	}
	out.File = name
	// The record may be of a failure that the script handled in a function
	// called before; it counts if it is of the exit code the script ended with.
	data, readErr := os.ReadFile(record)
	if readErr != nil {
		return err
	}
	f := strings.SplitN(string(data), "\n", 4)
	if len(f) == 4 && f[0] == strconv.Itoa(out.ExitCode) {
		out.Line, _ = strconv.Atoi(f[2])
		out.Command = report.Redact(strings.TrimSuffix(f[3], "\n"))
		if f[1] != path {
			out.File = f[1]
		}
	}
	return err
}

func environ(env map[string]string) []string {
	out := make([]string, 0, len(env))
	for k, v := range env {
		out = append(out, k+"="+v)
	}
	return out
}

const outputLines = 40

// command runs one program in a process group of its own, output to the log
// and to the progress, the last lines to out when it fails.
func (b *Builder) command(ctx context.Context, out *manifest.Step, env []string, name string, args ...string) (err error) {
	log, err := os.OpenFile(filepath.Join(b.Dir, "output.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = b.Root
	cmd.Env = append(os.Environ(), "HOME=/root", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "LECAFE_BAKE_ID="+b.state.BakeID)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		out.ExitCode, out.Output = 127, []string{err.Error()}
		return err
	}
	tail := &ring{max: outputLines}
	read := make(chan struct{})
	go func() {
		defer close(read)
		s := bufio.NewReaderSize(io.TeeReader(r, log), 64<<10)
		for {
			line, err := s.ReadString('\n')
			if line != "" {
				tail.add(strings.TrimRight(line, "\r\n"))
				if b.tell != nil {
					b.tell.line(strings.TrimRight(line, "\r\n"))
				}
			}
			if err != nil {
				return
			}
		}
	}()
	err = cmd.Wait()
	// A daemon that the script left behind may hold the pipe: what it writes
	// later is not this step's.
	select {
	case <-read:
	case <-time.After(2 * time.Second):
		_ = r.SetReadDeadline(time.Now())
		<-read
	}
	if err == nil {
		return nil
	}
	out.Output = redactLines(tail.lines)
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		out.ExitCode = -1
		return fmt.Errorf("%s: %w", filepath.Base(name), err)
	}
	out.ExitCode = exit.ExitCode()
	if st, ok := exit.Sys().(syscall.WaitStatus); ok && st.Signaled() {
		out.ExitCode = 128 + int(st.Signal())
	}
	return fmt.Errorf("%s: %w", filepath.Base(name), err)
}
