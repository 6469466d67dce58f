#!/usr/bin/env bash
# Makes a virtual environment with the package, editable, and its development tools.
# usage: make_venv.sh PYTHON FOLDER [OVERRIDES]
# OVERRIDES names a file of requirements that stand above the packages' own, as in requirements/new.txt.
set -euo pipefail
python=$1
venv=$2
overrides=${3-}

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
3.10 | 3.11 | 3.12 | 3.13) ;;
*)
	echo "error: Python $version at $(command -v "$python") won't do; name one of 3.10 to 3.13: make PYTHON=python3.11 ..." >&2
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
pip="$venv/bin/python -m pip --disable-pip-version-check"
$pip install --quiet uv
# uv takes a third of pip's time, and only it can override a cap. It doesn't read pip's settings.
index=${PIP_INDEX_URL-$($pip config get global.index-url 2>/dev/null || true)}
if [ -n "$index" ]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX-$index}; fi
# Compiled at once: containers that mount the packages can't write beside them.
VIRTUAL_ENV=$venv "$venv/bin/uv" pip install --quiet --compile-bytecode \
	${overrides:+--override "$overrides"} --editable '.[dev]'
