package settings

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"strings"

	"github.com/goccy/go-yaml"
)

// maxUserData bounds what gzip may unfold to: EC2 takes 16 KB, but parts may
// be compressed.
const maxUserData = 8 << 20

// ErrUserData says that the payload's settings could not be taken out of it.
var ErrUserData = errors.New("settings in user data")

// FromUserData returns the settings' YAML in a payload as IMDS gives it: a
// script or boothook with the lines UserDataBegin and UserDataEnd, alone or in
// MIME multi-part, plain or gzip. ok is false where there are none. What is
// wrong with the rest of the payload is not its business.
func FromUserData(payload []byte) (yaml []byte, ok bool, err error) {
	src, ok, err := SourceFromUserData(payload)
	return src.Data, ok, err
}

// SourceFromUserData is FromUserData as a source for Decode, with the line of
// the part (of the payload, where that is one plain script) it starts on.
func SourceFromUserData(payload []byte) (Source, bool, error) {
	plain, err := unzip(payload)
	if err != nil {
		return Source{}, false, fmt.Errorf("%w: %w; compress it again", ErrUserData, err)
	}
	var found []Source
	if err := eachPart(plain, 0, func(name string, text []byte) error {
		src, ok, err := block(name, text)
		if ok {
			found = append(found, src)
		}
		return err
	}); err != nil {
		return Source{}, false, fmt.Errorf("%w: %w", ErrUserData, err)
	}
	if len(found) == 0 {
		// Structure that does not parse must not hide settings that stand there.
		src, ok, err := block(UserDataSource, plain)
		if err != nil {
			return Source{}, false, fmt.Errorf("%w: %w", ErrUserData, err)
		}
		if !ok {
			return Source{}, false, nil
		}
		found = append(found, src)
	}
	if len(found) > 1 {
		return Source{}, false, fmt.Errorf("%w: %d parts carry settings; keep one", ErrUserData, len(found))
	}
	return found[0], true, nil
}

// block cuts the lines between UserDataBegin and UserDataEnd out of text.
func block(name string, text []byte) (Source, bool, error) {
	lines := strings.SplitAfter(string(text), "\n")
	begin := -1
	var out strings.Builder
	for i, l := range lines {
		switch l := strings.TrimRight(l, "\r\n"); {
		case begin < 0 && l == UserDataBegin:
			begin = i
		case begin >= 0 && l == UserDataEnd:
			return Source{Name: name, Data: []byte(out.String()), FirstLine: begin + 2}, true, nil
		case begin >= 0:
			out.WriteString(l + "\n")
		}
	}
	if begin >= 0 {
		return Source{}, false, fmt.Errorf("%s: line %d begins settings that have no end; add the line %s", name, begin+1, UserDataEnd)
	}
	return Source{}, false, nil
}

func unzip(b []byte) ([]byte, error) {
	if !bytes.HasPrefix(b, []byte{0x1f, 0x8b}) {
		return b, nil
	}
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("open gzip: %w", err)
	}
	out, err := io.ReadAll(io.LimitReader(r, maxUserData+1))
	if err != nil {
		return nil, fmt.Errorf("read gzip: %w", err)
	}
	if len(out) > maxUserData {
		return nil, fmt.Errorf("gzip unfolds to more than %d bytes", maxUserData)
	}
	return out, nil
}

// eachPart calls f for every part of a MIME message, however nested, with its
// file name, decoded. A payload that is no MIME message is one part.
func eachPart(payload []byte, depth int, f func(name string, text []byte) error) error {
	msg, err := mail.ReadMessage(bufio.NewReader(bytes.NewReader(payload)))
	if err != nil {
		return f(UserDataSource, payload)
	}
	media, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
	if err != nil || !strings.HasPrefix(media, "multipart/") || params["boundary"] == "" || depth > 4 {
		return f(UserDataSource, payload)
	}
	parts := multipart.NewReader(msg.Body, params["boundary"])
	for {
		p, err := parts.NextRawPart()
		if err != nil {
			// The end, or a broken structure: cloud-init's trouble, and lint's.
			return nil
		}
		body, err := io.ReadAll(io.LimitReader(p, maxUserData))
		if err != nil {
			return nil
		}
		body = transferDecode(p.Header.Get("Content-Transfer-Encoding"), body)
		if body, err = unzip(body); err != nil {
			continue
		}
		if media, _, _ := mime.ParseMediaType(p.Header.Get("Content-Type")); strings.HasPrefix(media, "multipart/") {
			nested := append([]byte("Content-Type: "+p.Header.Get("Content-Type")+"\r\n\r\n"), body...)
			if err := eachPart(nested, depth+1, f); err != nil {
				return err
			}
			continue
		}
		name := p.FileName()
		if name == "" {
			name = UserDataSource
		} else {
			name = UserDataSource + "/" + name
		}
		if err := f(name, body); err != nil {
			return err
		}
	}
}

// transferDecode undoes a part's transfer encoding; what does not decode stays
// as it is.
func transferDecode(encoding string, body []byte) []byte {
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "base64":
		clean := strings.Map(func(r rune) rune {
			if strings.ContainsRune("\r\n\t ", r) {
				return -1
			}
			return r
		}, string(body))
		if out, err := base64.StdEncoding.DecodeString(clean); err == nil {
			return out
		}
	case "quoted-printable":
		if out, err := io.ReadAll(quotedprintable.NewReader(bytes.NewReader(body))); err == nil {
			return out
		}
	}
	return body
}

// Render returns the text of the part UserDataPart that carries s: a boothook
// that does nothing, so that every cloud-init takes it without a warning.
func Render(s Settings) string {
	var b strings.Builder
	b.WriteString("#cloud-boothook\n#!/bin/sh\n" +
		"# Settings of lecafe-agent, which reads them from the instance's user data\n" +
		"# itself. Run by cloud-init, this does nothing.\n" + UserDataBegin + "\n")
	out, err := yaml.MarshalWithOptions(s, yaml.Indent(2), yaml.UseLiteralStyleIfMultiline(true))
	if err != nil {
		panic(fmt.Sprintf("settings: %v", err)) // a struct of plain values always marshals
	}
	b.Write(out)
	b.WriteString(UserDataEnd + "\n")
	return b.String()
}
