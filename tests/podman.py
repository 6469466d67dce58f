# SPDX-License-Identifier: Apache-2.0
"""Containers for tests: podman as it runs here, and the project's image, built as a user would.

The base is a Debian of this machine's own making, because no registry can be reached. Unless
``--full-image`` is given, the packages of this environment are mounted where the base's own would
lie, as PyTorch's image brings torch: the Dockerfile then installs only what is missing, in a minute
and without 7 GB of layers.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from filelock import FileLock

_BASE = "localhost/ahpa-base"
NEEDED = ("podman", "buildah", "runc", "iptables", "mmdebstrap")
#: Lowered limits and this runtime are what works without a session manager.
SETTINGS = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
"""
#: What lets a build reach the packages that this machine reaches.
HOST_FILES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")
#: Which of the two sets of packages this environment has.
TORCH = "default" if metadata.version("torch").startswith("2.7.") else "new"
_SYSTEM_PACKAGES = "/usr/local/lib/python3.11/dist-packages"


def why_not() -> str | None:
    """Why no container can be run here; None where it can."""
    absent = [program for program in NEEDED if shutil.which(program) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (tools/get_podman.sh)"
    if os.getuid() != 0:
        return "containers with addresses of their own are made by root only"
    if sys.version_info[:2] != (3, 11):
        return "Debian's Python, which the image runs, is 3.11, and packages are lent to it"
    return None


@functools.cache
def _folder() -> Path:
    """For what podman is told, and for the locks between the processes of one test run."""
    folder = Path(f"/tmp/ahpa-podman-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    settings = folder / "containers.conf"
    if not settings.exists():
        settings.write_text(SETTINGS)
    return folder


def environment() -> dict[str, str]:
    """Variables under which podman and buildah work here."""
    settings = str(_folder() / "containers.conf")
    return {**os.environ, "CONTAINERS_CONF": settings, "BUILDAH_FORMAT": "docker"}


def podman(*words: object, check: bool = True, both: bool = False, timeout: float = 600.0) -> str:
    """Runs podman, and returns what it prints; with `both`, its errors as well.

    Raises:
        AssertionError: it failed, and `check` is set.
    """
    done = subprocess.run(
        ["podman", *map(str, words)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if both else subprocess.PIPE,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert not check or done.returncode == 0, f"podman {words[0]}: {done.stderr or done.stdout}"
    return done.stdout


def packages_mount(full: bool) -> list[str]:
    """The flag that lends this environment's packages to a build or a container."""
    if full:
        return []
    return ["--volume", f"{sysconfig.get_path('purelib')}:{_SYSTEM_PACKAGES}:ro"]


def exists(image: str) -> bool:
    """Whether an image is on this machine."""
    return bool(podman("images", "--quiet", image).strip())


def base(full: bool) -> str:
    """The base's name. It has two, of different labels: layers made on the one, with packages lent
    or without, must not be taken for those of the other.
    """
    return f"{_BASE}:{'bare' if full else 'lent'}"


def make_base() -> None:
    """A Debian with Python and certificates, once per machine."""
    with FileLock(_folder() / "base.lock"):
        if exists(base(True)) and exists(base(False)):
            return
        archive = _folder() / "base.tar"
        hooks = [
            f"--customize-hook=copy-in {file} {Path(file).parent}"
            for file in HOST_FILES
            if Path(file).exists()
        ]
        include = "--include=ca-certificates,python3,python3-venv"
        words = ["mmdebstrap", "--variant=minbase", include, *hooks, "bookworm", str(archive)]
        subprocess.run(words, check=True, capture_output=True, timeout=1200)
        for full in (True, False):
            label = f"LABEL packages={'bare' if full else 'lent'}"
            podman("import", "--quiet", "--change", label, archive, base(full))
        archive.unlink()


def build(image: str, tree: Path, *, target: str = "train", full: bool = False) -> float:
    """Builds the image by `make image`, and returns the seconds that it took.

    Args:
        image: its name.
        tree: the project's working tree.
        target: stage of the Dockerfile.
        full: without this environment's packages.

    Raises:
        AssertionError: the build failed.
    """
    make_base()
    flags = ["--isolation", "chroot", "--network", "host", "--layers", *packages_mount(full)]
    words = ["make", "--silent", "image", "ENGINE=buildah", f"BASE_IMAGE={base(full)}"]
    words += [
        f"TORCH={TORCH}",
        f"TARGET={target}",
        f"IMAGE={image}",
        f"BUILD_FLAGS={' '.join(flags)}",
    ]
    with FileLock(_folder() / "build.lock"):
        begun = time.monotonic()
        done = subprocess.run(
            words,
            cwd=tree,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=3600,
            check=False,
        )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return time.monotonic() - begun


def added_files(image: str) -> Iterator[tuple[str, bytes]]:
    """Path and content of every file that an image adds to its base, or changes in it."""
    with _mounted(base(True)) as below, _mounted(image) as root:
        for folder, _, names in os.walk(root):
            for name in names:
                path = Path(folder, name)
                inside = path.relative_to(root)
                if path.is_symlink() or not path.is_file() or _same(path, below / inside):
                    continue
                yield f"/{inside}", path.read_bytes()


@contextmanager
def _mounted(image: str) -> Iterator[Path]:
    try:
        yield Path(podman("image", "mount", image).strip())
    finally:
        podman("image", "unmount", image)


def _same(path: Path, other: Path) -> bool:
    if not other.is_file():
        return False
    one, two = path.stat(), other.stat()
    return (one.st_size, one.st_mtime) == (two.st_size, two.st_mtime)


@contextmanager
def network(name: str) -> Iterator[str]:
    """A bridge of the test's own, without a way out, on which containers find one another by
    name.
    """
    podman("network", "create", "--internal", name)
    try:
        yield name
    finally:
        podman("network", "rm", "--force", name, check=False)
