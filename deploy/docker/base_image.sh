#!/bin/sh
# Makes a base image without pulling one: Debian with Python, by debootstrap. Needs root, a running
# Docker engine and a Debian mirror.
#
#     deploy/docker/base_image.sh NAME [SUITE]
#
# This machine's certificates and pip settings for an index go into it, so that builds reach the
# same index. Then: docker build --build-arg BASE=NAME ...
set -eu

fail() {
    echo "base_image.sh: $1" >&2
    exit "${2:-2}"
}

[ $# -ge 1 ] || fail "usage: deploy/docker/base_image.sh NAME [SUITE]"
name=$1
suite=${2:-bookworm}
[ "$(id -u)" -eq 0 ] || fail "debootstrap needs root; use sudo" 1
command -v debootstrap >/dev/null || fail "debootstrap is not here; install it"
docker info >/dev/null 2>&1 || fail "no Docker engine answers; start dockerd" 1

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$root" \
    >"$root.log" 2>&1 || fail "debootstrap failed; its log is $root.log" 1
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root.log"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
if index=$(python3 -m pip config get global.index-url 2>/dev/null); then
    printf '[global]\nindex-url = %s\n' "$index" >"$root/etc/pip.conf"
fi
tar -C "$root" -c . | docker import \
    --change "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt" - "$name"
