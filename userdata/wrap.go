package userdata

import (
	"bytes"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/internal/lazyregexp"
	"github.com/lecafe/lecafe/userdata/trap"
)

//go:embed fetch.py
var fetchProgram string

// Object is an S3 object that an instance fetches with its role.
type Object struct {
	Bucket string `json:"bucket"`
	Key    string `json:"key"`
	SHA256 string `json:"sha256"` // 64 hex digits; another content is refused
}

// Access says how an instance reaches S3. Zero values are found out on
// the instance.
type Access struct {
	Region   string `json:"region,omitempty"`   // of the bucket
	Endpoint string `json:"endpoint,omitempty"` // LocalStack, moto, the lab
	Proxy    string `json:"proxy,omitempty"`
	CABundle string `json:"ca,omitempty"` // file on the instance
}

// WrapInput is what Wrap makes a payload of.
type WrapInput struct {
	Payload  []byte
	Settings *settings.Settings
	// Agents are the agent's programs by machine name as uname -m says it:
	// x86_64, aarch64.
	Agents map[string]Object
	Access Access
}

// installPart is the name of the part that brings the agent.
const installPart = "lecafe-install.sh"

// Wrap returns a payload for an image that lecafe did not bake: it does what
// in.Payload does, has its bash and sh scripts watched, and before them starts
// a unit that fetches the agent, installs and starts it. The boot does not
// wait for that unit.
func Wrap(in WrapInput) ([]byte, error) {
	if len(in.Agents) == 0 {
		return nil, errors.New("wrap user data: no agent program to fetch")
	}
	for machine, o := range in.Agents {
		if err := o.check(); err != nil {
			return nil, fmt.Errorf("wrap user data: agent for %s: %w", machine, err)
		}
	}
	payload, err := Parse(in.Payload)
	if err != nil {
		return nil, fmt.Errorf("wrap user data: %w", err)
	}
	// Programs in base64 of gzip leave the message text, with room for scripts
	// of some size. Beyond that all of it is compressed, which takes plain
	// programs better.
	out, err := wrapped(in, payload, true)
	if err != nil {
		return nil, fmt.Errorf("wrap user data: %w", err)
	}
	if len(out) > MaxBytes {
		if out, err = wrapped(in, payload, false); err != nil {
			return nil, fmt.Errorf("wrap user data: %w", err)
		}
	}
	return seal(out)
}

func wrapped(in WrapInput, payload *Payload, packed bool) ([]byte, error) {
	var parts []outPart
	if in.Settings != nil {
		parts = append(parts, outPart{name: settings.UserDataPart, mime: "text/cloud-boothook", body: []byte(settings.Render(*in.Settings))})
	}
	hook, err := installHook(in, packed)
	if err != nil {
		return nil, err
	}
	parts = append(parts, outPart{name: installPart, mime: "text/cloud-boothook", body: hook})
	for _, p := range payload.Parts {
		if len(bytes.TrimSpace(p.Body)) == 0 || in.Settings != nil && p.Name == settings.UserDataPart {
			continue
		}
		mime := mimeOf(p)
		if mime == "" {
			return nil, fmt.Errorf("cloud-init has no handler for part %s; see lecafe userdata lint", p.Name)
		}
		if p.Merge {
			return nil, fmt.Errorf("part %s has a Merge-Type header, which is not kept; write merge_how into the cloud-config instead", p.Name)
		}
		body := p.Body
		if p.Kind == KindScript {
			body = watch(p)
		}
		if p.Jinja {
			body = append([]byte("## template: jinja\n"), body...)
		}
		// The names stay, which scripts are run by and reports speak of.
		parts = append(parts, outPart{name: p.Name, mime: mime, body: body})
	}
	return assemble(parts), nil
}

// watch has a script's failures recorded.
func watch(p *Part) []byte {
	s, ok := readShebang(p.Body)
	if !ok {
		return p.Body
	}
	// cloud-init converts the ends of lines; so that the checks are not in
	// between, it is done here.
	body := p.Body
	if first, _, _ := bytes.Cut(body, []byte("\n")); bytes.HasSuffix(first, []byte("\r")) {
		body = bytes.ReplaceAll(body, []byte("\r\n"), []byte("\n"))
	}
	switch s.program() {
	case "bash":
		return trap.Preload(body, trap.LibraryPath)
	case "sh", "dash":
		if p.Jinja {
			return body // what it will be is not known yet
		}
		if out, err := trap.Instrument(body, p.ScriptPath(), trap.RecordsDir); err == nil {
			return out
		}
	}
	return body
}

func (o Object) check() error {
	if sum, err := hex.DecodeString(o.SHA256); err != nil || len(sum) != 32 || strings.ToLower(o.SHA256) != o.SHA256 {
		return fmt.Errorf("SHA-256 %q is not 64 hex digits in lower case", o.SHA256)
	}
	if o.Bucket == "" || o.Key == "" {
		return errors.New("bucket or key is missing")
	}
	return nil
}

// installHook is the boothook that brings library and agent. cloud-init runs
// boothooks at every boot, before any script; on a later boot the agent is
// there already and nothing is done.
func installHook(in WrapInput, packed bool) ([]byte, error) {
	spec, err := json.Marshal(struct {
		Access
		Agents map[string]Object `json:"agents"`
	}{in.Access, in.Agents})
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString("#cloud-boothook\n#!/bin/sh\nset -eu\n" +
		"[ ! -x " + settings.Binary + " ] || exit 0\n" +
		"umask 022\nmkdir -p /usr/lib/lecafe\n")
	write := file
	if packed {
		write = packedFile
	}
	write(&b, trap.LibraryPath, uncommented(trap.Library))
	write(&b, "/usr/lib/lecafe/fetch.py", uncommented(fetchProgram))
	file(&b, "/usr/lib/lecafe/agent.json", string(spec)+"\n")
	// The boothook does not wait for it, cloud-final does: the agent makes a
	// check of each statement of runcmd just before that executes it. The order
	// holds although cloud-final's job is queued already; it is only an order,
	// so that a failure keeps nothing from running, and it ends with the time
	// given. Without the default dependencies the unit itself waits for nothing
	// of the boot, and so not for anything that waits for cloud-final.
	b.WriteString("systemd-run --no-block --unit=lecafe-install --description='Fetch and start lecafe-agent' " +
		"-p Type=oneshot -p DefaultDependencies=no -p Before=cloud-final.service -p TimeoutStartSec=75 " +
		"-p Conflicts=shutdown.target -p Before=shutdown.target " +
		"\"$(command -v python3 || echo /usr/libexec/platform-python)\" /usr/lib/lecafe/fetch.py install /usr/lib/lecafe/agent.json\n")
	return b.Bytes(), nil
}

// file writes the shell's words for a file with this text.
func file(b *bytes.Buffer, path, text string) {
	end := "LECAFE_END"
	for strings.Contains(text, end) {
		end += "_"
	}
	fmt.Fprintf(b, "cat > %s <<'%s'\n%s%s\n", path, end, text, end)
}

// packedFile does the same in less room.
func packedFile(b *bytes.Buffer, path, text string) {
	fmt.Fprintf(b, "base64 -d <<'LECAFE_END' | gzip -d > %s\n", path)
	packed := base64.StdEncoding.EncodeToString(compress([]byte(text)))
	for line := range slices.Chunk([]byte(packed), 76) {
		b.Write(line)
		b.WriteByte('\n')
	}
	b.WriteString("LECAFE_END\n")
}

var commentLine = lazyregexp.New(`(?m)^[ \t]*#(?:[^!].*)?\n`)

// uncommented leaves out lines that are comments: a payload is short of room.
func uncommented(program string) string { return commentLine().ReplaceAllString(program, "") }

// Bundle is what Pack moves out of a payload.
type Bundle struct {
	Scripts []BundleScript `json:"scripts"`
	Config  []string       `json:"config"` // cloud-configs, in order
	Hooks   []string       `json:"hooks"`  // boothooks
}

// BundleScript is a script under the name that cloud-init gives it.
type BundleScript struct {
	Name string `json:"name"`
	Body string `json:"body"`
}

// Pack returns the content of an S3 object that holds what payload does, for
// payloads that are too large for EC2. Loader makes the user data that fetches
// it.
func Pack(payload []byte) ([]byte, error) {
	p, err := Parse(payload)
	if err != nil {
		return nil, fmt.Errorf("pack user data: %w", err)
	}
	b := Bundle{Scripts: []BundleScript{}, Config: []string{}, Hooks: []string{}}
	for _, part := range p.Parts {
		switch {
		case part.Name == settings.UserDataPart:
			// It stays in the loader: the agent reads it from IMDS.
		case part.Jinja:
			return nil, fmt.Errorf("pack user data: part %s is a template, which only cloud-init renders; render it first", part.Name)
		case part.Kind == KindScript:
			body := part.Body
			if first, _, _ := bytes.Cut(body, []byte("\n")); bytes.HasSuffix(first, []byte("\r")) {
				body = bytes.ReplaceAll(body, []byte("\r\n"), []byte("\n"))
			}
			b.Scripts = append(b.Scripts, BundleScript{part.ScriptName(), string(body)})
		case part.Kind == KindCloudConfig:
			b.Config = append(b.Config, string(part.Body))
		case part.Kind == KindBoothook:
			hook := bytes.TrimPrefix(part.Body, []byte("#cloud-boothook"))
			b.Hooks = append(b.Hooks, string(bytes.TrimLeft(hook, " \t\r\n")))
		case len(bytes.TrimSpace(part.Body)) == 0:
		default:
			return nil, fmt.Errorf("pack user data: part %s is %s, which has to stay in user data; take it out", part.Name, part.Kind)
		}
	}
	out, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("pack user data: %w", err)
	}
	return out, nil
}

// LoaderInput is what Loader makes user data of.
type LoaderInput struct {
	Payload Object // what Pack returned, where it was put
	Access  Access
	// Original is the payload that was packed: settings of the agent in it
	// stay in user data. It may be nil.
	Original []byte
}

// Loader returns user data that fetches a packed payload with the instance's
// role and has cloud-init run what is in it: scripts in its last stage,
// cloud-config from the stage on that follows the boothooks. If that cannot be
// fetched within five minutes, a script fails in its place, which every
// watcher sees.
func Loader(in LoaderInput) ([]byte, error) {
	if err := in.Payload.check(); err != nil {
		return nil, fmt.Errorf("make loader: %w", err)
	}
	spec, err := json.Marshal(struct {
		Access
		Object
	}{in.Access, in.Payload})
	if err != nil {
		return nil, fmt.Errorf("make loader: %w", err)
	}
	var parts []outPart
	if in.Original != nil {
		p, err := Parse(in.Original)
		if err != nil {
			return nil, fmt.Errorf("make loader: %w", err)
		}
		i := slices.IndexFunc(p.Parts, func(p *Part) bool { return p.Name == settings.UserDataPart })
		if i >= 0 {
			parts = append(parts, outPart{name: settings.UserDataPart, mime: "text/cloud-boothook", body: p.Parts[i].Body})
		}
	}
	var b bytes.Buffer
	b.WriteString("#cloud-boothook\n#!/bin/sh\nset -eu\numask 077\nmkdir -p /run/lecafe\n")
	file(&b, "/run/lecafe/fetch.py", uncommented(fetchProgram))
	file(&b, "/run/lecafe/payload.json", string(spec)+"\n")
	b.WriteString("exec python3 /run/lecafe/fetch.py unpack /run/lecafe/payload.json\n")
	parts = append(parts, outPart{name: "lecafe-loader.sh", mime: "text/cloud-boothook", body: b.Bytes()})
	return seal(assemble(parts))
}
