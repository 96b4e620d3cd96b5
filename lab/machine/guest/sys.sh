# Gives a container the /sys of an EC2 instance. systemd-nspawn shows the host's
# network devices there, so that cloud-init finds no eth0, and nothing that says
# EC2: cloud-init asks for an IMDSv2 token only where it recognises EC2, and a
# guest of which it may read no DMI is recognised by hypervisor/uuid.
set -e
work=/run/lecafe-lab/sys
[ ! -e $work ] || exit 0
mkdir -p $work/fresh $work/new
mount -t sysfs -o ro sysfs $work/fresh
mount -t tmpfs -o mode=755,size=64k tmpfs $work/new
for entry in $work/fresh/*; do
	name=${entry##*/}
	[ "$name" != hypervisor ] || continue
	mkdir $work/new/$name
	mount --bind $entry $work/new/$name
done
mkdir $work/new/hypervisor
echo ec2e1ab5-0000-4000-8000-000000000000 > $work/new/hypervisor/uuid
mount --rbind /sys/fs/cgroup $work/new/fs/cgroup
mount --rbind $work/new /sys
# Read-only, as systemd-nspawn's own: else udevd takes it for a machine's.
mount -o remount,bind,ro /sys
