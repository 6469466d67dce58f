# SPDX-License-Identifier: Apache-2.0
"""Two hosts on one machine: network namespaces with a cable between them (Debian's iproute2).

Each has its own address, its own host name, its own shared memory and its own temporary files, as
far as training can tell. Both see one disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from job import ROOT, variables, warmed

ADDRESSES = ("10.231.7.1", "10.231.7.2")
_SETUP = """
set -e
mount -t tmpfs tmpfs /dev/shm
hostname "$1"
shift
exec "$@"
"""


class Host:
    """One of the two.

    Args:
        space: name of its network namespace.
        number: 0 or 1.
        folder: for its temporary files and its log.
    """

    def __init__(self, space: str, number: int, folder: Path) -> None:
        self.space, self.number, self.cable = space, number, f"cable{number}"
        self.name, self.address = f"host-{'ab'[number]}", ADDRESSES[number]
        self.log = folder / f"{self.name}.log"
        # Short, because sockets of loaders' workers lie in it.
        self._temporary = tempfile.TemporaryDirectory(
            prefix=f"{self.name}-", ignore_cleanup_errors=True
        )

    def start(self, *command: object, environment: Mapping[str, str] | None = None) -> Running:
        """Starts a command on this host; what it says is added to `log`."""
        environment = {
            **variables(),
            "GLOO_SOCKET_IFNAME": self.cable,
            "TMPDIR": self._temporary.name,
            **(environment or {}),
        }
        inside = ["unshare", "--uts", "sh", "-c", _SETUP, "sh", self.name, *warmed(*command)]
        with self.log.open("a") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.space, *inside],
                cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        return Running(self, process)

    def kill(self) -> None:
        """Kills all that runs on this host, at once."""
        for pid in _told("ip", "netns", "pids", self.space).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def forget(self) -> None:
        """Removes its temporary files."""
        self._temporary.cleanup()

    def link(self, state: str) -> None:
        """Takes the cable out (``down``) or plugs it in (``up``)."""
        _told("ip", "-n", self.space, "link", "set", self.cable, state)

    def slow(self, rate: str) -> None:
        """Limits what this host sends, such as ``20mbit``."""
        shape = ("rate", rate, "burst", "32kbit", "latency", "400ms")
        _told("tc", "-n", self.space, "qdisc", "add", "dev", self.cable, "root", "tbf", *shape)


class Running:
    """A command on a host."""

    def __init__(self, host: Host, process: subprocess.Popen[bytes]) -> None:
        self.host, self.process = host, process

    def wait(self, timeout: float) -> int:
        """Its exit code.

        Raises:
            AssertionError: it is still there after `timeout` seconds.
        """
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            told = self.host.log.read_text()
            raise AssertionError(
                f"{self.host.name} still runs after {timeout:g} s:\n{told}"
            ) from None


class TwoHosts:
    """Two hosts, joined."""

    def __init__(self, hosts: tuple[Host, Host]) -> None:
        self.hosts = hosts

    def logs(self) -> str:
        """What both said."""
        return "\n".join(f"--- {h.name}\n{h.log.read_text()}" for h in self.hosts if h.log.exists())


def why_not() -> str | None:
    """What is missing here for two hosts; None where nothing is."""
    missing = [tool for tool in ("ip", "tc", "unshare", "mount") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} missing: apt-get install iproute2 util-linux mount"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with _two_spaces() as (space, _):
            _told("ip", "netns", "exec", space, "unshare", "--uts", "mount", "-t", "tmpfs", "tmpfs",
                  "/dev/shm")  # fmt: skip
    except subprocess.CalledProcessError as error:
        return f"no network namespaces on this machine: {error.stderr.strip()}"
    return None


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[TwoHosts]:
    """Two hosts while the body runs; then all that runs on them ends, and they are gone.

    Raises:
        subprocess.CalledProcessError: a machine that can't; see `why_not`.
    """
    with _two_spaces() as spaces:
        first, second = hosts = (Host(spaces[0], 0, folder), Host(spaces[1], 1, folder))
        _told("ip", "link", "add", first.cable, "netns", first.space, "type", "veth",
              "peer", "name", second.cable, "netns", second.space)  # fmt: skip
        for host in hosts:
            _told("ip", "-n", host.space, "addr", "add", f"{host.address}/24", "dev", host.cable)
            for device in ("lo", host.cable):
                _told("ip", "-n", host.space, "link", "set", device, "up")
        try:
            yield TwoHosts(hosts)
        finally:
            for host in hosts:
                host.kill()
                host.forget()


@contextlib.contextmanager
def _two_spaces() -> Iterator[list[str]]:
    made: list[str] = []
    try:
        for letter in "ab":
            space = f"ahpa-{os.getpid()}-{time.monotonic_ns() % 10**9}-{letter}"
            _told("ip", "netns", "add", space)
            made.append(space)
        yield made
    finally:
        for space in made:
            _told("ip", "netns", "del", space)


def _told(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
