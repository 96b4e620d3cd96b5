#!/bin/sh
# Run by systemd-shutdown when every process has ended and the root file system
# is read-only again: takes what shutdown wrote, and the builder itself, out of
# the image. https://www.freedesktop.org/software/systemd/man/latest/systemd-halt.service.html
#
# It goes on from a copy in /run: a script that removes itself while it runs
# keeps its file open, and the root could not be made read-only afterwards.
if [ "$0" != /run/lecafe-builder-last ]; then
	cp "$0" /run/lecafe-builder-last && exec /bin/sh /run/lecafe-builder-last "$@"
fi
dir=/var/lib/lecafe-builder
mount -o remount,rw / 2>/dev/null
"$dir/lecafe-builder" last
systemd=/etc/systemd/system
rm -f "$systemd/lecafe-builder.service" "$systemd/multi-user.target.wants/lecafe-builder.service" \
	"$systemd/lecafe-builder-deadline.service" "$systemd/lecafe-builder-deadline.timer" \
	"$systemd/timers.target.wants/lecafe-builder-deadline.timer" \
	/usr/lib/systemd/system-shutdown/lecafe-builder-last
rm -rf "$dir"
sync
mount -o remount,ro / 2>/dev/null
exit 0
