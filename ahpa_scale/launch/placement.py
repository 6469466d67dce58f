# SPDX-License-Identifier: Apache-2.0
"""A node's place in a job, and strict reading of the variables that tell it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from ahpa_scale.errors import UserError

#: Default port where the nodes of a job meet; also torchrun's default.
DEFAULT_PORT = 29500
HIGHEST_PORT = 65535


class LaunchError(UserError):
    """A job can't start with these variables or flags. The line names the one to change."""


@dataclass(frozen=True)
class Placement:
    """This node's place in a job.

    Attributes:
        nnodes: nodes of the job, at least 1.
        nproc: ranks on each node; None if not known, which is allowed for a single node only.
        node_rank: this node's number, from 0.
        master_addr: host of node 0; None only for one node.
        master_port: TCP port on that host, 1 to 65535; None only for one node.
        source: where the place comes from, for messages.
        local_rank: this process's number on its node if the scheduler started one process per rank;
            None if this process is to start the ranks.
    """

    nnodes: int
    nproc: int | None
    node_rank: int
    master_addr: str | None
    master_port: int | None
    source: str
    local_rank: int | None = None

    def __post_init__(self) -> None:
        if self.node_rank >= self.nnodes:
            raise LaunchError(
                f"{self.source}: node {self.node_rank} of {self.nnodes}: nodes count from 0, so "
                f"the last is {self.nnodes - 1}"
            )
        if self.nproc is None and self.nnodes > 1:
            raise LaunchError(
                f"{self.source} does not say how many ranks run on each node; add --nproc"
            )

    @property
    def world_size(self) -> int | None:
        """Ranks of the whole job; None if `nproc` is not known."""
        return None if self.nproc is None else self.nnodes * self.nproc

    @property
    def rank(self) -> int | None:
        """This process's rank in the job; None if it is to start the ranks."""
        if self.local_rank is None or self.nproc is None:
            return None
        return self.node_rank * self.nproc + self.local_rank


def placed(
    nnodes: int,
    nproc: int | None,
    node_rank: int,
    master_addr: str | None,
    master_port: int,
    source: str,
    local_rank: int | None = None,
) -> Placement:
    """A Placement. A single node gets no address: Composer's launcher finds a free port itself."""
    if nnodes == 1 and local_rank is None:
        return Placement(1, nproc, node_rank, None, None, source)
    return Placement(nnodes, nproc, node_rank, master_addr, master_port, source, local_rank)


class Variables:
    """The variables of one scheduler, read strictly.

    Args:
        values: the environment.
        source: name of the scheduler, for messages.
    """

    def __init__(self, values: Mapping[str, str], source: str) -> None:
        self.values, self.source = values, source

    def text(self, name: str) -> str | None:
        """The variable; None if it is missing or empty."""
        return self.values.get(name, "").strip() or None

    def first_set(self, *names: str) -> str:
        """The first name whose variable is set, else the last name."""
        return next((name for name in names if self.text(name)), names[-1])

    def needed(self, name: str, hint: str = "") -> str:
        """The variable.

        Args:
            name: name of the variable.
            hint: what to do if it is missing.

        Raises:
            LaunchError: it is missing; the message names the most similar variable that is set.
        """
        text = self.text(name)
        if text is not None:
            return text
        same_family = [key for key in self.values if key[:3] == name[:3]]
        close = difflib.get_close_matches(name, same_family, n=1, cutoff=0.8)
        near = f"; {close[0]} is set: is that a slip?" if close else ""
        raise LaunchError(f"{self.source}: {name} is missing{near or (hint and f'; {hint}')}")

    def whole(self, name: str, least: int = 0) -> int | None:
        """The variable as a whole number; None if it is missing.

        Raises:
            LaunchError: it is not a whole number, or below `least`.
        """
        text = self.text(name)
        return None if text is None else self._number(name, text, least)

    def needed_whole(self, name: str, least: int = 0, hint: str = "") -> int:
        """The variable as a whole number of at least `least`.

        Raises:
            LaunchError: it is missing, not a whole number, or below `least`.
        """
        return self._number(name, self.needed(name, hint), least)

    def port(self, name: str = "MASTER_PORT", default: int = DEFAULT_PORT) -> int:
        """A TCP port; `default` if the variable is missing.

        Raises:
            LaunchError: it is not a port number.
        """
        port = self.whole(name, least=1)
        if port is not None and port > HIGHEST_PORT:
            raise LaunchError(f"{self.source}: {name}={port} must be at most {HIGHEST_PORT}")
        return default if port is None else port

    def _number(self, name: str, text: str, least: int) -> int:
        if not (text.isascii() and text.isdecimal()):
            raise LaunchError(f"{self.source}: {name}={text!r} is not a whole number")
        if int(text) < least:
            raise LaunchError(f"{self.source}: {name}={text} must be at least {least}")
        return int(text)
