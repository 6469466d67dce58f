#!/usr/bin/env bash
# Makes a virtual environment with the package, editable, and its development tools.
# usage: make_venv.sh PYTHON FOLDER
set -euo pipefail
python=$1
venv=$2

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
3.10 | 3.11 | 3.12) ;;
*)
	echo "error: Python $version at $(command -v "$python") won't do; name one of 3.10 to 3.12: make PYTHON=python3.11 ..." >&2
	exit 2
	;;
esac

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else return 1; fi
}

# Debian and Ubuntu split the venv module off from Python.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
	echo "installing python$version-venv"
	if ! { as_root apt-get update -q && as_root apt-get install -yq --no-install-recommends "python$version-venv"; }; then
		echo "error: Python's venv module is missing; install it: apt-get install python$version-venv" >&2
		exit 2
	fi
fi

"$python" -m venv "$venv"
# The extra index only adds CPU builds where one is configured; nothing here depends on it.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
