#!/usr/bin/env bash
# Installs Debian's iproute2, with which the tests make two hosts out of network namespaces, where it is
# missing and this user may. Where not, those tests are skipped and say so.
set -euo pipefail
# A user's PATH may leave out the folder that tc lies in.
PATH=$PATH:/usr/sbin:/sbin
if command -v ip >/dev/null && command -v tc >/dev/null; then exit 0; fi

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo -n "$@"; else return 1; fi
}

if ! { as_root apt-get update -q && as_root apt-get install -yq --no-install-recommends iproute2; }; then
	echo "iproute2 can't be installed here: the tests on two hosts will be skipped" >&2
fi
