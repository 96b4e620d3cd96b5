#!/bin/sh
# Fetches the builder program that the manifest names and becomes it. Needs
# only what stock images have: sh, sed, sha256sum, and one of curl, wget and
# python3. URLs carry signatures, so they never stand on a command line.
set -u
umask 077
dir=/var/lib/lecafe-builder
cd "$dir" || exit 1

say() { echo "lecafe-builder: $*"; }

# fetch URL FILE
fetch() {
	if command -v curl >/dev/null 2>&1; then
		printf 'url = "%s"\n' "$1" | curl -fsS --connect-timeout 10 --max-time 600 -o "$2" -K -
	elif command -v wget >/dev/null 2>&1; then
		printf '%s\n' "$1" | wget -q -T 30 -t 1 ${SSL_CERT_FILE:+"--ca-certificate=$SSL_CERT_FILE"} -O "$2" -i -
	elif command -v python3 >/dev/null 2>&1; then
		printf '%s\n' "$1" | python3 -c '
import shutil, sys, urllib.request
with urllib.request.urlopen(sys.stdin.readline().strip(), timeout=30) as src, open(sys.argv[1], "wb") as dst:
    shutil.copyfileobj(src, dst)' "$2"
	else
		say "no curl, wget or python3 in this image"
		return 1
	fi
}

# member NAME FIELD: a field of one of the manifest's files. The manifest is
# written with one member a line, for this.
member() {
	sed -n "/^  \"$1\": {\$/,/^  }/s/^    \"$2\": \"\\(.*\\)\",\\{0,1\\}\$/\\1/p" manifest.json
}

attempt() {
	fetch "$(cat url)" manifest.json || return 1
	next=$(sed -n 's/^  "self": "\(.*\)",\{0,1\}$/\1/p' manifest.json)
	url=$(member builder url)
	sum=$(member builder sha256)
	if [ -z "$next" ] || [ -z "$url" ] || [ -z "$sum" ]; then
		say "the manifest names no builder program"
		return 1
	fi
	printf '%s\n' "$next" >url.new && mv url.new url
	fetch "$url" program.new || return 1
	if ! printf '%s  program.new\n' "$sum" | sha256sum -c - >/dev/null 2>&1; then
		say "the builder program's SHA-256 is not the manifest's"
		return 1
	fi
	chmod 0700 program.new && mv program.new lecafe-builder
}

if [ -f ca.pem ] && [ ! -f roots.pem ]; then
	# The private CA beside the system's own.
	for system in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt; do
		if [ -f "$system" ]; then cat "$system" >>roots.new; fi
	done
	cat ca.pem >>roots.new && mv roots.new roots.pem
fi
if [ -f roots.pem ]; then
	export SSL_CERT_FILE="$dir/roots.pem" CURL_CA_BUNDLE="$dir/roots.pem"
fi

wait=1
while [ ! -x lecafe-builder ]; do
	if [ "$(date +%s)" -ge "$(cat deadline)" ]; then
		say "the deadline has passed, powering off"
		systemctl poweroff
		exit 1
	fi
	if ! attempt; then
		say "trying again in $wait s"
		sleep "$wait"
		if [ "$wait" -lt 15 ]; then wait=$((wait * 2)); fi
	fi
done
exec ./lecafe-builder run
