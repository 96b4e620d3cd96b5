#!/bin/bash
# What differs between environments; everything else is in the image.
set -euo pipefail

install -d -m 0755 /opt/lecafe
cat >/opt/lecafe/config.env <<'EOF'
APP_NAME=lecafe-ordering
S3_BUCKET=lecafe-assets
SQS_QUEUE=lecafe-orders
AWS_REGION=us-east-1
EOF

# Not waited for: cloud-init itself is part of the boot that the unit may wait for.
systemctl enable lecafe-ordering.service
systemctl start --no-block lecafe-ordering.service
