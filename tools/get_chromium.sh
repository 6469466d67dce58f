#!/usr/bin/env bash
# Installs the browser in which the tests open reports, from Debian's package, where it is missing and this
# user may. Where not, those tests are skipped and say so.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
	if command -v "$name" >/dev/null; then exit 0; fi
done

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo -n "$@"; else return 1; fi
}

if ! { as_root apt-get update -q && as_root apt-get install -yq --no-install-recommends chromium; }; then
	echo "chromium can't be installed here: the tests that open a report in a browser will be skipped" >&2
fi
