#!/usr/bin/env bash
# Installs Azurite, Microsoft's emulator of Azure's blob store, for the tests: get_azurite.sh FOLDER. Where that
# can't be done, those tests are skipped and say so.
set -euo pipefail
folder=$1
if command -v azurite-blob >/dev/null || [ -x "$folder/node_modules/.bin/azurite-blob" ]; then exit 0; fi

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo -n "$@"; else return 1; fi
}

if ! command -v npm >/dev/null; then
	as_root apt-get update -q && as_root apt-get install -yq --no-install-recommends nodejs npm || true
fi
if ! npm install --prefix "$folder" --no-fund --no-audit --silent azurite@3; then
	echo "Azurite can't be installed here: the tests of Azure's store will be skipped" >&2
fi
