#!/usr/bin/env bash
# Unpacks Debian's package dataset-fashion-mnist (60,000 + 10,000 pictures as idx files) into a folder,
# without installing it and without being root.
# usage: fetch_fashion_mnist.sh FOLDER
set -euo pipefail
folder=$1
installed=/usr/share/datasets/fashion-mnist

mkdir -p "$folder"
if [ -d "$installed" ]; then
	cp "$installed"/*-ubyte* "$folder"
	exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial"
# Lists of its own: the system's may be missing, and renewing them would take root.
apt=(apt-get -q -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work" -o APT::Sandbox::User=root)
"${apt[@]}" update
(cd "$work" && "${apt[@]}" download dataset-fashion-mnist)
dpkg -x "$work"/dataset-fashion-mnist_*.deb "$work/unpacked"
cp "$work/unpacked$installed"/*-ubyte* "$folder"
