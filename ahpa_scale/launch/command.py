# SPDX-License-Identifier: Apache-2.0
"""A node's place in the job -> the process that starts its ranks, or is one of them."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ahpa_scale.config.load import load_config
from ahpa_scale.config.schema import Config
from ahpa_scale.launch.alone import LAUNCHED
from ahpa_scale.launch.placement import LaunchError, Placement
from ahpa_scale.printable import named_passwords
from ahpa_scale.signals import WAITING

#: Composer's launcher reads these if a flag is missing. They are removed: the flags say everything.
LAUNCHERS_OWN = (
    "BASE_RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "NODE_RANK",
    "RANK",
    "WORLD_SIZE",
)
_LAUNCHER = "ahpa_scale.launch.launcher"
#: Prefix of variables that hold passwords.
_PASSWORD = "AHPA_PASSWORD_"
_BETWEEN_TRIES = 1.0
_BETWEEN_LINES = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command:
    """The command that this process turns into.

    Attributes:
        words: program and arguments.
        variables: variables to set. All others in `LAUNCHERS_OWN` are removed.
        passwords: further variables to set, which are not shown.
    """

    words: tuple[str, ...]
    variables: Mapping[str, str]
    passwords: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The command as a shell line, without passwords."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        return " ".join([*settings, shlex.join(self.words)])

    def run(self) -> None:
        """Replaces this process with the command, so that signals reach it. Never returns."""
        kept = {name: value for name, value in os.environ.items() if name not in LAUNCHERS_OWN}
        if _LAUNCHER in self.words:
            # Signals wait while the new Python starts, because nothing could handle them yet.
            signal.pthread_sigmask(signal.SIG_BLOCK, WAITING)
        sys.stdout.flush()
        os.execve(
            self.words[0], self.words, {**kept, **self.variables, **self.passwords, LAUNCHED: "1"}
        )


def command_for(placement: Placement, script: str, arguments: Sequence[str]) -> Command:
    """Composer's launcher with its flags, or the script itself if this process is a rank."""
    passwords: dict[str, str] = {}
    run = (script, *(_without_password(word, passwords) for word in arguments))
    if placement.local_rank is not None:
        variables = {
            "RANK": placement.rank,
            "LOCAL_RANK": placement.local_rank,
            "WORLD_SIZE": placement.world_size,
            "LOCAL_WORLD_SIZE": placement.nproc,
            "NODE_RANK": placement.node_rank,
            "MASTER_ADDR": placement.master_addr,
            "MASTER_PORT": placement.master_port,
        }
        told = {name: str(value) for name, value in variables.items()}
        return Command((sys.executable, *run), told, passwords)
    flags: list[str] = []
    if placement.nproc is not None:
        flags += ["--nproc", str(placement.nproc)]
    if placement.nnodes > 1:
        flags += ["--world_size", str(placement.world_size)]
        flags += ["--node_rank", str(placement.node_rank)]
        flags += ["--master_addr", str(placement.master_addr)]
        flags += ["--master_port", str(placement.master_port)]
    return Command((sys.executable, "-m", _LAUNCHER, *flags, *run), {}, passwords)


def _without_password(word: str, passwords: dict[str, str]) -> str:
    """Moves an argument's passwords to variables: any user of the machine can read arguments."""

    def name(password: str) -> str:
        variable = f"{_PASSWORD}{len(passwords) + 1}"
        passwords[variable] = password
        return f"${{oc.env:{variable}}}"

    return named_passwords(word, name)


def check_run(placement: Placement, script: str, arguments: Sequence[str]) -> Config:
    """Checks what every rank would check, before any rank is started.

    Returns:
        The run's configuration.

    Raises:
        LaunchError: the script does not exist.
        ConfigError: there is a mistake in the configuration.
    """
    if not Path(script).is_file():
        raise LaunchError(f"{script}: no such script; name one, as in: ahpa-scale launch train.py")
    # The checks divide the batch by the number of ranks.
    os.environ["WORLD_SIZE"] = str(placement.world_size or 1)
    # hsdp keeps one copy of the model per node.
    os.environ["LOCAL_WORLD_SIZE"] = str(placement.nproc or 1)
    return load_config(arguments)


def wait_for_address(address: str, timeout: float) -> None:
    """Waits until a host name resolves: pods and nodes of a job start at different times.

    Args:
        address: host name or address.
        timeout: seconds.

    Raises:
        LaunchError: it does not resolve in time.
    """
    begun = said = time.monotonic()
    while True:
        try:
            socket.getaddrinfo(address, None)
            return
        except OSError as error:
            now = time.monotonic()
            if now - begun >= timeout:
                raise LaunchError(
                    f"{address}, the host of node 0, has had no address for {timeout:g} s "
                    f"({error.strerror}); is it the right name, and has that node started?"
                ) from None
            if now - said >= _BETWEEN_LINES or said == begun:
                _log.warning("waiting for %s, the host of node 0, to have an address", address)
                said = now
            time.sleep(min(_BETWEEN_TRIES, timeout))
