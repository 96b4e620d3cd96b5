package config

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/internal/atomicfile"
)

// Env renders the file that e describes. fact returns what stands for a name
// in ${}.
func Env(e settings.EnvFile, fact func(name string) (string, error)) ([]byte, error) {
	var b strings.Builder
	b.WriteString("# Written by lecafe-agent at each boot; changes here do not last.\n")
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(e.Set)) {
		value := settings.FactForm().ReplaceAllStringFunc(e.Set[name], func(m string) string {
			v, err := fact(m[2 : len(m)-1])
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
			return v
		})
		if strings.ContainsFunc(value, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			errs = append(errs, fmt.Errorf("%s: its value has a line break or another control character", name))
			continue
		}
		// Shells and systemd read double quotes and these escapes alike.
		fmt.Fprintf(&b, "%s=\"%s\"\n", name, strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`").Replace(value))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("%w: render %s: %w", ErrInvalid, e.Path, err)
	}
	return []byte(b.String()), nil
}

// PutEnv writes content to e's path below root, with its owner and mode.
func PutEnv(root string, e settings.EnvFile, content []byte) error {
	st := store{dest: filepath.Join(root, e.Path), s: settings.Object{Path: e.Path, Owner: e.Owner, Group: e.Group, Mode: e.Mode}}
	s, err := st.stage(content)
	if err != nil {
		return err
	}
	defer s.discard()
	if err := os.Rename(s.path, st.dest); err != nil {
		return fmt.Errorf("write %s: %w", e.Path, err)
	}
	s.kept = true
	return atomicfile.SyncDir(filepath.Dir(st.dest))
}
