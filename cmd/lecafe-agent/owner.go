package main

import (
	"fmt"
	"os"
	"syscall"
)

// becomeOwner gives root's rights up for those of whom a directory belongs to:
// what is made in there must be the service's, which is a user of its own and
// could not start again otherwise. Everything that takes root comes before.
func becomeOwner(dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("look up owner: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 {
		return nil
	}
	uid, gid := int(st.Uid), int(st.Gid)
	if err := syscall.Setgroups([]int{gid}); err != nil {
		return fmt.Errorf("become owner of %s: %w", dir, err)
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("become owner of %s: %w", dir, err)
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("become owner of %s: %w", dir, err)
	}
	return nil
}
