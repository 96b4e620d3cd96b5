// Package programs finds the Linux programs of lecafe that the plugin brings
// to machines: lecafe-agent and lecafe-builder, for the machine's architecture
// and wherever Packer itself runs. It builds and fetches nothing.
package programs

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Architectures are those that lecafe has programs for, in Go's words.
var Architectures = []string{"amd64", "arm64"}

// Find returns the path of program name for linux/arch: in dir, or, where dir
// is empty, beside the plugin and then in the directories of PATH. The program
// is NAME-linux-ARCH, or NAME where that is one for arch.
func Find(dir, name, arch string) (string, error) {
	dirs := []string{dir}
	if dir == "" {
		dirs = nil
		if self, err := os.Executable(); err == nil {
			dirs = append(dirs, filepath.Dir(self))
		}
		dirs = append(dirs, filepath.SplitList(os.Getenv("PATH"))...)
	}
	var others []string // that are there and for something else
	for _, d := range dirs {
		for _, n := range []string{name + "-linux-" + arch, name} {
			path := filepath.Join(d, n)
			info, err := os.Stat(path)
			if err != nil || !info.Mode().IsRegular() {
				continue
			}
			switch a := elfArch(path); a {
			case arch:
				return path, nil
			case "":
				others = append(others, path+" is no Linux program")
			default:
				others = append(others, path+" is for linux/"+a)
			}
		}
	}
	text := ""
	if len(others) > 0 {
		text = " (" + strings.Join(others, ", ") + ")"
	}
	return "", fmt.Errorf("no %s for linux/%s in %s%s; build it with GOOS=linux GOARCH=%s as %s-linux-%s, and set programs to its directory", name, arch, strings.Join(dirs, ", "), text, arch, name, arch)
}

// elfArch reads for which machine a program is, in Go's words.
func elfArch(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	var header [20]byte
	if _, err := io.ReadFull(f, header[:]); err != nil || string(header[:4]) != "\x7fELF" {
		return ""
	}
	switch header[18] { // e_machine, little endian
	case 62:
		return "amd64"
	case 183:
		return "arm64"
	}
	return ""
}
