#!/usr/bin/env bash
# Installs what the tests build and run containers with, from Debian's packages, where it is missing and
# this user may. Where not, those tests are skipped and say so.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
if command -v podman >/dev/null && command -v buildah >/dev/null && command -v runc >/dev/null &&
	command -v iptables >/dev/null && command -v mmdebstrap >/dev/null && [ -x /usr/lib/podman/netavark ] && [ -x /usr/lib/podman/aardvark-dns ]; then
	exit 0
fi

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo -n "$@"; else return 1; fi
}

if ! { as_root apt-get update -q && as_root apt-get install -yq --no-install-recommends \
	podman buildah runc catatonit netavark aardvark-dns iptables mmdebstrap uidmap; }; then
	echo "podman and buildah can't be installed here: the tests of containers will be skipped" >&2
fi
