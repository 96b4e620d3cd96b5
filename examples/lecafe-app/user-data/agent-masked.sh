#cloud-boothook
#!/bin/sh
# Plays an instance whose agent cannot run at all: it will never report.
systemctl mask --now lecafe-agent.service
