package userdata

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/lecafe/lecafe/agent/settings"
)

// Source is one thing to go into a payload: a script, a cloud-config, or
// anything else that begins with a header cloud-init knows. A MIME payload is
// taken apart into its parts.
type Source struct {
	Name string // file name; its directory is dropped
	Body []byte
}

// RenderInput is what Render puts into a payload.
type RenderInput struct {
	// Settings of the agent, already checked; nil for none. See package
	// agent/settings for the part they become.
	Settings *settings.Settings
	Sources  []Source
}

// ErrTooLarge says that a payload is over MaxBytes even when compressed.
var ErrTooLarge = errors.New("user data too large")

// Render returns one payload. The same input gives the same bytes. A payload
// over MaxBytes is compressed with gzip, which cloud-init undoes by itself; if
// it is still too large, the error wraps ErrTooLarge.
func Render(in RenderInput) ([]byte, error) {
	parts, err := renderParts(in)
	if err != nil {
		return nil, err
	}
	return seal(assemble(parts))
}

// seal compresses where the limit asks for it.
func seal(text []byte) ([]byte, error) {
	if len(text) <= MaxBytes {
		return text, nil
	}
	packed := compress(text)
	if len(packed) > MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes, %d with gzip, and EC2 takes %d; move it to S3 with lecafe userdata pack, or bake files into the image", ErrTooLarge, len(text), len(packed), MaxBytes)
	}
	return packed, nil
}

func renderParts(in RenderInput) ([]outPart, error) {
	var parts []outPart
	if in.Settings != nil {
		parts = append(parts, outPart{name: settings.UserDataPart, mime: "text/cloud-boothook", body: []byte(settings.Render(*in.Settings))})
	}
	n := 0
	for _, src := range in.Sources {
		payload, err := Parse(src.Body)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", src.Name, err)
		}
		for _, p := range payload.Parts {
			mime := mimeOf(p)
			if mime == "" {
				return nil, fmt.Errorf("%s: cloud-init has no handler for it; begin it with #! or #cloud-config", src.Name)
			}
			n++
			name := path.Base(src.Name)
			if p.Named && payload.Multipart {
				name = p.Name
			}
			body := p.Body
			if p.Jinja {
				body = append([]byte("## template: jinja\n"), body...)
			}
			// cloud-init runs scripts in the order of their names, and two
			// parts of one name overwrite each other: a number keeps both apart.
			out := outPart{name: fmt.Sprintf("%03d-%s", n, (&Part{Name: name}).ScriptName()), mime: mime, body: body}
			if p.Merge && !bytes.Contains(body, []byte("merge_how")) && !bytes.Contains(body, []byte("merge_type")) {
				return nil, fmt.Errorf("%s: part %s has a Merge-Type header, which is not kept; write merge_how into the cloud-config instead", src.Name, p.Name)
			}
			parts = append(parts, out)
		}
	}
	if len(parts) == 0 {
		return nil, errors.New("nothing to render: give settings, a script or a cloud-config")
	}
	return parts, nil
}

// mimeOf returns the type that makes cloud-init take p for what it is, "" for
// what has no handler.
func mimeOf(p *Part) string {
	if p.Jinja {
		return "text/jinja2"
	}
	for mime, k := range kinds {
		if k == p.Kind {
			return mime
		}
	}
	if slices.Contains(elsewhere, p.Type) {
		return p.Type
	}
	return ""
}

// outPart is one part of a message to be written.
type outPart struct {
	name string
	mime string
	body []byte
}

// assemble writes a MIME message. Text that is plain ASCII stays readable;
// anything else goes as base64, because cloud-init's parser mangles unencoded
// 8-bit text and line ends of other systems.
func assemble(parts []outPart) []byte {
	sum := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(sum, "%d %s %s\n%s", len(p.body), p.name, p.mime, p.body)
	}
	boundary := "lecafe-" + hex.EncodeToString(sum.Sum(nil))[:24]

	var b bytes.Buffer
	fmt.Fprintf(&b, "Content-Type: multipart/mixed; boundary=%q\nMIME-Version: 1.0\n\n", boundary)
	for _, p := range parts {
		plain := isPlain(p.body)
		charset, encoding := "us-ascii", "7bit"
		if !plain {
			charset, encoding = "utf-8", "base64"
		}
		fmt.Fprintf(&b, "--%s\nContent-Type: %s; charset=%q\nMIME-Version: 1.0\nContent-Transfer-Encoding: %s\nContent-Disposition: attachment; filename=%q\n\n", boundary, p.mime, charset, encoding, p.name)
		if plain {
			b.Write(p.body)
		} else {
			text := base64.StdEncoding.EncodeToString(p.body)
			for len(text) > 76 {
				b.WriteString(text[:76] + "\n")
				text = text[76:]
			}
			b.WriteString(text)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "--%s--\n", boundary)
	return b.Bytes()
}

func isPlain(b []byte) bool {
	for _, c := range b {
		if c >= 0x7f || c < 0x20 && c != '\n' && c != '\t' {
			return false
		}
	}
	return true
}

// compress is gzip at its best level and without a time, so that the same
// payload gives the same bytes.
func compress(b []byte) []byte {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil { // the level is a constant
		panic(err)
	}
	_, _ = z.Write(b) // a bytes.Buffer does not fail
	_ = z.Close()
	return out.Bytes()
}
