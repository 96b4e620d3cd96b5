package cleanup

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
)

// passwords finds accounts one can log in to with a password, and locks them.
func passwords() rule {
	open := func(hash string) bool { return !strings.HasPrefix(hash, "!") && !strings.HasPrefix(hash, "*") }
	return rule{
		name: "passwords", why: "the same password would open every instance",
		clean: func(t *tree) error {
			for _, p := range []string{"etc/shadow", "etc/gshadow"} {
				err := t.rewrite(p, func(line string) (string, bool) {
					f := strings.Split(line, ":")
					if len(f) < 4 || (p == "etc/gshadow" && f[1] == "") || !open(f[1]) {
						return line, true
					}
					f[1] = "!*"
					return strings.Join(f, ":"), true
				})
				if err != nil {
					return err
				}
			}
			return nil
		},
		check: func(t *tree) []Finding {
			var out []Finding
			for _, p := range []string{"etc/shadow", "etc/gshadow"} {
				for i, line := range t.lines(p) {
					f := strings.Split(line, ":")
					if len(f) < 4 || (p == "etc/gshadow" && f[1] == "") || !open(f[1]) {
						// An empty group password means none; an empty
						// account password means that everybody gets in.
						if len(f) > 1 && strings.Contains(f[1], "$") {
							out = append(out, Finding{Path: "/" + p, Line: i + 1, Detail: f[0], Why: "a locked account still carries its password's hash"})
						}
						continue
					}
					out = append(out, Finding{Path: "/" + p, Line: i + 1, Detail: f[0]})
				}
			}
			return out
		},
	}
}

// cloudUser removes the default user that cloud-init made on the builder: the
// next boot makes it again, with that instance's key. A home with files of its
// own is left, and so is the user.
func cloudUser() rule {
	harmless := []string{".bash_logout", ".bashrc", ".profile", ".bash_profile", ".zshrc", ".ssh", ".face", ".face.icon", ".cache"}
	made := func(t *tree) (user, bool) {
		name := defaultUser(t)
		if name == "" || name == "root" {
			return user{}, false
		}
		for _, u := range t.users {
			if u.name != name || !strings.HasPrefix(u.home, "home/") || t.lstat(u.home) == nil {
				continue
			}
			entries, err := os.ReadDir(t.abs(u.home))
			if err != nil {
				return user{}, false
			}
			for _, e := range entries {
				if !slices.Contains(harmless, e.Name()) {
					return user{}, false
				}
			}
			return u, true
		}
		return user{}, false
	}
	return rule{
		name: "cloud-user", why: "the default user that cloud-init made on the builder; it makes it again on each instance",
		clean: func(t *tree) error {
			u, ok := made(t)
			if !ok {
				return nil
			}
			for _, p := range []string{"etc/passwd", "etc/shadow", "etc/group", "etc/gshadow", "etc/subuid", "etc/subgid"} {
				members := p == "etc/group" || p == "etc/gshadow"
				err := t.rewrite(p, func(line string) (string, bool) {
					name, _, _ := strings.Cut(line, ":")
					if name == u.name {
						return "", false
					}
					if i := strings.LastIndexByte(line, ':'); members && i >= 0 {
						list := slices.DeleteFunc(strings.Split(line[i+1:], ","), func(m string) bool { return m == u.name })
						line = line[:i+1] + strings.Join(list, ",")
					}
					return line, true
				})
				if err != nil {
					return err
				}
			}
			return t.remove(u.home)
		},
		check: func(t *tree) []Finding {
			if u, ok := made(t); ok {
				return []Finding{{Path: "/" + u.home, Detail: u.name}}
			}
			return nil
		},
	}
}

// defaultUser reads system_info.default_user.name of cloud-init's settings.
func defaultUser(t *tree) string {
	name := ""
	for _, p := range append([]string{"etc/cloud/cloud.cfg"}, t.glob("etc/cloud/cloud.cfg.d/*.cfg")...) {
		var cfg struct {
			SystemInfo struct {
				DefaultUser struct {
					Name string `yaml:"name"`
				} `yaml:"default_user"`
			} `yaml:"system_info"`
		}
		// A file that does not parse is cloud-init's matter: no user then.
		if yaml.Unmarshal([]byte(strings.Join(t.lines(p), "\n")), &cfg) == nil && cfg.SystemInfo.DefaultUser.Name != "" {
			name = cfg.SystemInfo.DefaultUser.Name
		}
	}
	return name
}

// hostname takes the builder's name out. EC2 names are ip-10-0-0-1 or i-0123.
func hostname() rule {
	builders := func(name string) bool {
		first, _, _ := strings.Cut(name, ".")
		return name != "" && name != "localhost" && first != "localhost"
	}
	ours := func(t *tree) string {
		for _, line := range t.lines("etc/hostname") {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				return line
			}
		}
		return ""
	}
	// names in /etc/hosts that are the builder's: its short or full name.
	hosts := func(t *tree, line, name string) bool {
		f := strings.Fields(line)
		if name == "" || len(f) < 2 || strings.HasPrefix(f[0], "#") {
			return false
		}
		return slices.ContainsFunc(f[1:], func(h string) bool { return h == name || strings.HasPrefix(h, name+".") })
	}
	return rule{
		name: "hostname", why: "the builder's name would be every instance's until DHCP or cloud-init sets another",
		clean: func(t *tree) error {
			name := ours(t)
			if !builders(name) {
				return nil
			}
			err := t.rewrite("etc/hosts", func(line string) (string, bool) { return line, !hosts(t, line, name) })
			if err != nil {
				return err
			}
			return t.truncate("etc/hostname")
		},
		check: func(t *tree) []Finding {
			name := ours(t)
			if !builders(name) {
				return nil
			}
			out := []Finding{{Path: "/etc/hostname"}}
			for i, line := range t.lines("etc/hosts") {
				if hosts(t, line, name) {
					out = append(out, Finding{Path: "/etc/hosts", Line: i + 1})
				}
			}
			return out
		},
	}
}

// swapHeader is what mkswap writes: the first page. Behind it is memory.
const swapHeader = 4096

// swap overwrites swap files' content. Their header stays: without it the
// instance's fstab would fail to mount them.
func swap() rule {
	files := func(t *tree) []string {
		out := t.glob("swapfile")
		for _, line := range t.lines("etc/fstab") {
			f := strings.Fields(line)
			if len(f) > 2 && f[2] == "swap" && strings.HasPrefix(f[0], "/") && !strings.HasPrefix(f[0], "/dev/") {
				out = append(out, strings.Trim(path.Clean(f[0]), "/"))
			}
		}
		slices.Sort(out)
		return slices.DeleteFunc(slices.Compact(out), func(p string) bool { return !t.regular(p) })
	}
	// firstUsed returns whether anything but zeros stands behind the header.
	used := func(t *tree, p string) bool {
		f, err := os.Open(t.abs(p))
		if err != nil {
			t.errs = append(t.errs, err)
			return true
		}
		defer func() { _ = f.Close() }()
		if _, err := f.Seek(swapHeader, io.SeekStart); err != nil {
			return false
		}
		buf, zero := make([]byte, 1<<20), make([]byte, 1<<20)
		for {
			n, err := f.Read(buf)
			if !bytes.Equal(buf[:n], zero[:n]) {
				return true
			}
			if err != nil {
				return !errors.Is(err, io.EOF)
			}
		}
	}
	return rule{
		name: "swap", why: "memory of the builder's processes",
		clean: func(t *tree) error {
			for _, p := range files(t) {
				if !used(t, p) {
					continue
				}
				f, err := os.OpenFile(t.abs(p), os.O_WRONLY, 0)
				if err != nil {
					return err
				}
				info, err := f.Stat()
				zero := make([]byte, 1<<20)
				for off := int64(swapHeader); err == nil && off < info.Size(); off += int64(len(zero)) {
					_, err = f.WriteAt(zero[:min(int64(len(zero)), info.Size()-off)], off)
				}
				if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
					return err
				}
			}
			return nil
		},
		check: func(t *tree) []Finding {
			var out []Finding
			for _, p := range files(t) {
				if used(t, p) {
					out = append(out, Finding{Path: "/" + p})
				}
			}
			return out
		},
	}
}
