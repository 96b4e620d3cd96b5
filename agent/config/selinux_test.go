package config_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lecafe/lecafe/agent/config"
	"github.com/lecafe/lecafe/agent/settings"
)

// TestSELinuxContextIsKept labels files by hand: without SELinux in the kernel
// the label is an attribute as any other, so this shows that it is carried
// over, not that a policy takes it.
func TestSELinuxContextIsKept(t *testing.T) {
	const label = "system_u:object_r:app_etc_t:s0\x00"
	b := newBench(t)
	set := func(path string) {
		if err := unix.Lsetxattr(b.root+"/"+path, "security.selinux", []byte(label), 0); err != nil {
			t.Skipf("SKIPPED: security.selinux cannot be set here: %v", err)
		}
	}
	check := func(when string, paths ...string) {
		t.Helper()
		for _, p := range paths {
			buf := make([]byte, 256)
			n, err := unix.Getxattr(b.root+"/"+p, "security.selinux", buf)
			if err != nil || string(buf[:n]) != label {
				t.Errorf("%s %s has the context %q, %v", when, p, buf[:max(n, 0)], err)
			}
		}
	}
	b.put("one")
	c := b.object(func(o *settings.Object) { o.ReloadUnit = "app.service" })
	b.sync(c, true, nil)
	set("opt/app/config.txt")
	b.put("two")
	b.sync(c, true, nil)
	check("the next generation", "opt/app/config.txt")
	b.put("three")
	b.fail["reload app.service"] = errors.New("job failed")
	b.sync(c, true, config.ErrRolledBack)
	check("after the rollback", "opt/app/config.txt")

	b.upload(map[string]string{"app/conf.d/a": "1", "app/conf.d/d/b": "1"})
	d := b.directory()
	b.sync(d, true, nil)
	for _, p := range []string{"opt/app/conf/a", "opt/app/conf/d", "opt/app/conf/d/b", "opt/app/conf/."} {
		set(p)
	}
	b.upload(map[string]string{"app/conf.d/a": "2", "app/conf.d/d/b": "1"})
	b.sync(d, true, nil)
	check("the next directory's", "opt/app/conf/a", "opt/app/conf/d", "opt/app/conf/d/b", "opt/app/conf/.")
}
