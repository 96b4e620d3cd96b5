#!/bin/bash
set -euo pipefail

install -d -m 0755 /opt/lecafe
echo "APP_NAME=lecafe-ordering" >/opt/lecafe/config.env
cp /opt/lecafe/menu.default.json /opt/lecafe/menu.json
systemctl start --no-block lecafe-ordering.service
