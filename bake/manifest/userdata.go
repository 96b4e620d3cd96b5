package manifest

import (
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

//go:embed boot/start.sh
var startScript string

//go:embed boot/lecafe-builder.service
var builderUnit string

//go:embed boot/lecafe-builder-deadline.service
var deadlineUnit string

// Boot is what a builder's user data carries.
type Boot struct {
	URL      string    // presigned GET of the manifest
	Deadline time.Time // the builder powers itself off then, whatever happens
	Proxy    string    // http://host:port
	NoProxy  string
	CABundle []byte // PEM
}

// maxUserData is EC2's limit before base64.
const maxUserData = 16 << 10

// ErrUserData says that the user data would not work.
var ErrUserData = errors.New("builder user data")

// UserData returns the builder's user data: a POSIX shell script that writes
// the unit and the script that start the builder program, and starts the unit
// without waiting for it. Nothing is provisioned inside user data: cloud-init
// must have ended before the image is cleaned.
func UserData(b Boot) ([]byte, error) {
	for _, s := range []string{b.URL, b.Proxy, b.NoProxy} {
		if strings.ContainsAny(s, "\n\r'\"\\ ") {
			return nil, fmt.Errorf("%w: a URL or host list has quotes or spaces", ErrUserData)
		}
	}
	timer := "# On a builder only.\n[Unit]\nDescription=lecafe builder's deadline\n\n[Timer]\nAccuracySec=1s\nOnCalendar=" +
		b.Deadline.UTC().Format("2006-01-02 15:04:05") + " UTC\n\n[Install]\nWantedBy=timers.target\n"
	env := ""
	noProxy := "169.254.169.254,localhost,127.0.0.1"
	if b.NoProxy != "" {
		noProxy += "," + b.NoProxy
	}
	if b.Proxy != "" {
		for _, k := range []string{"http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"} {
			env += k + "=" + b.Proxy + "\n"
		}
		env += "no_proxy=" + noProxy + "\nNO_PROXY=" + noProxy + "\n"
	}
	var s strings.Builder
	s.WriteString("#!/bin/sh\n# Starts the lecafe builder in a unit of its own. It leaves nothing in the image.\nset -eu\numask 077\nmkdir -p " + Dir + "\n")
	write := func(path, content string) {
		fmt.Fprintf(&s, "cat >%s <<'LECAFE_END'\n%s\nLECAFE_END\n", path, strings.TrimSuffix(content, "\n"))
	}
	write(Dir+"/url", b.URL)
	write(Dir+"/deadline", strconv.FormatInt(b.Deadline.Unix(), 10))
	write(Dir+"/env", env)
	if len(b.CABundle) > 0 {
		write(Dir+"/ca.pem", string(b.CABundle))
	}
	write(Dir+"/start.sh", startScript)
	write("/etc/systemd/system/"+Unit, builderUnit)
	write("/etc/systemd/system/"+Deadline+".service", deadlineUnit)
	write("/etc/systemd/system/"+Deadline+".timer", timer)
	// One daemon-reload; --no-block because this runs inside a unit that the
	// started ones may be ordered after.
	fmt.Fprintf(&s, "chmod 0644 /etc/systemd/system/%s /etc/systemd/system/%s.service /etc/systemd/system/%s.timer\n", Unit, Deadline, Deadline)
	fmt.Fprintf(&s, "systemctl daemon-reload\nsystemctl enable %s %s.timer\nsystemctl start --no-block %s %s.timer\n", Unit, Deadline, Unit, Deadline)
	if strings.Count(s.String(), "\nLECAFE_END\n") != strings.Count(s.String(), "<<'LECAFE_END'") {
		return nil, fmt.Errorf("%w: a file has the line LECAFE_END", ErrUserData)
	}
	if s.Len() > maxUserData {
		return nil, fmt.Errorf("%w: %d bytes, EC2 takes %d; shorten builder.ca_bundle", ErrUserData, s.Len(), maxUserData)
	}
	return []byte(s.String()), nil
}

// Encode returns the manifest in the form that the builder's start script can
// read: one member a line, & as it is.
func (m *Manifest) Encode() ([]byte, error) {
	var b strings.Builder
	e := newEncoder(&b)
	if err := e.Encode(m); err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return []byte(b.String()), nil
}
