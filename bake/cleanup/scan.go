package cleanup

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // dpkg's own record of its files
	"encoding/hex"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
)

const (
	maxScan = 10 << 20 // a larger file is no configuration; scanning it would take longer than it tells

	ruleSetuid     = "setuid"
	rulePrivateKey = "private-keys"
	ruleSecret     = "secrets"
	ruleAuthorized = "authorized-keys"
)

// A PEM or PuTTY key with a body: documentation that shows only the first line
// is none.
var privateKey = regexp.MustCompile(`-----BEGIN ((RSA|DSA|EC|OPENSSH|ENCRYPTED|PGP) )?PRIVATE KEY( BLOCK)?-----\s+([A-Za-z-]+: [^\n]*\s+)*[A-Za-z0-9+/=]{16,}|PuTTY-User-Key-File-[23]: `)

// scan looks at every file of the image once: set-user-ID bits, private keys,
// authorized_keys anywhere, and the Scanner's secrets.
func (t *tree) scan(ctx context.Context) ([]Finding, error) {
	kept := func(name string) bool { return slices.Contains(t.opts.Keep, name) }
	packaged := t.packaged()
	var out []Finding
	err := t.walk(ctx, func(p string, info fs.FileInfo) error {
		if t.opts.SetuidBaseline != nil && !kept(ruleSetuid) && info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 && !slices.Contains(t.opts.SetuidBaseline, "/"+p) {
			out = append(out, Finding{Rule: ruleSetuid, Path: "/" + p, Why: "the source image did not have this set-user-ID or set-group-ID file"})
		}
		if base := path.Base(p); !kept(ruleAuthorized) && (base == "authorized_keys" || base == "authorized_keys2") && info.Size() > 0 {
			out = append(out, Finding{Rule: ruleAuthorized, Path: "/" + p, Why: "whoever holds the key gets in"})
		}
		if info.Size() == 0 || info.Size() > maxScan {
			return nil
		}
		sum, known := packaged[p]
		if !known && t.vendor(p) {
			return nil
		}
		data, err := readFile(t.abs(p), info.Size())
		if err != nil {
			return err
		}
		if known {
			if h := md5.Sum(data); hex.EncodeToString(h[:]) == sum { //nolint:gosec // see above
				return nil
			}
		}
		if !text(data) {
			return nil
		}
		if !kept(rulePrivateKey) {
			if at := privateKey.FindIndex(data); at != nil {
				out = append(out, Finding{Rule: rulePrivateKey, Path: "/" + p, Line: 1 + bytes.Count(data[:at[0]], []byte("\n")), Why: "a private key in an image is everybody's who can launch it"})
				return nil
			}
		}
		if t.opts.Scanner == nil {
			return nil
		}
		for _, m := range t.opts.Scanner.Scan("/"+p, data) {
			name := ruleSecret
			if m.Rule == "private-key" { // gitleaks' own name of it
				name = rulePrivateKey
			}
			if !kept(name) {
				out = append(out, Finding{Rule: name, Path: "/" + p, Line: m.Line, Detail: m.Rule, Why: "looks like a credential; take it out, or fetch it at boot with the instance's role"})
			}
		}
		return nil
	})
	return out, err
}

func readFile(name string, size int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, size))
}

// text tells text from programs and archives: those have a NUL early on.
func text(data []byte) bool { return !bytes.Contains(data[:min(len(data), 8000)], []byte{0}) }

// packaged maps the files that dpkg installed to their MD5 sums: a file that
// is as its package has it holds no secret of ours.
func (t *tree) packaged() map[string]string {
	out := map[string]string{}
	for _, list := range t.glob("var/lib/dpkg/info/*.md5sums") {
		for _, line := range t.lines(list) {
			if sum, p, ok := strings.Cut(line, "  "); ok {
				out[p] = sum
				// Merged /usr: packages still name /lib/x for /usr/lib/x.
				if top, _, _ := strings.Cut(p, "/"); slices.Contains([]string{"lib", "bin", "sbin", "lib64"}, top) {
					out["usr/"+p] = sum
				}
			}
		}
	}
	return out
}

// vendor says that p belongs to the distribution where no dpkg database can
// tell: rpm's is binary, so /usr but /usr/local is taken as it is.
func (t *tree) vendor(p string) bool {
	if !strings.HasPrefix(p, "usr/") || strings.HasPrefix(p, "usr/local/") {
		return false
	}
	return t.lstat("var/lib/rpm") != nil && t.lstat("var/lib/dpkg/info") == nil || t.lstat("usr/lib/sysimage/rpm") != nil
}
