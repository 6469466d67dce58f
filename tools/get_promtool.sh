#!/usr/bin/env bash
# Puts Prometheus' own promtool, with which the tests run the alert rules, into the folder $1, from Debian's
# package of 19 MB, where it is missing. Only that program is taken out: no service comes along, and no
# root is needed. Where it can't be had, those tests are skipped and say so.
set -euo pipefail
folder=$1
if command -v promtool >/dev/null || [ -x "$folder/promtool" ]; then exit 0; fi

room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo -n "$@"; else return 1; fi
}
download() { (cd "$room" && apt-get download -qq prometheus 2>/dev/null); }

if ! { command -v dpkg-deb >/dev/null && { download || { as_root apt-get update -qq && download; }; } &&
	dpkg-deb --extract "$room"/prometheus_*.deb "$room/all" && "$room/all/usr/bin/promtool" --version >/dev/null 2>&1; }; then
	echo "promtool can't be had here: the tests that run the alert rules will be skipped" >&2
	exit 0
fi
mkdir -p "$folder"
mv "$room/all/usr/bin/promtool" "$folder/.promtool.$$"
mv "$folder/.promtool.$$" "$folder/promtool"
