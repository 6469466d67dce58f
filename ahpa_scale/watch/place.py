# SPDX-License-Identifier: Apache-2.0
"""A rank's place in its job, and where rank 0 listens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ahpa_scale.errors import UserError

LOOPBACK = "127.0.0.1"
_PER_NODE = "LOCAL_WORLD_SIZE"


@dataclass(frozen=True)
class Place:
    """A rank's place in its job, and where rank 0 listens.

    Attributes:
        rank: this rank, from 0.
        world: number of ranks.
        per_node: ranks on each node.
        node: this node, from 0.
        address: host of rank 0.
        port: UDP port of the watch on that host.
        store_port: TCP port of torch's store on that host.
    """

    rank: int
    world: int
    per_node: int
    node: int
    address: str
    port: int
    store_port: int

    @property
    def on_loopback(self) -> bool:
        """Whether all ranks run on rank 0's host. A host name doesn't tell: operators give
        ``localhost`` to rank 0 only.
        """
        return self.address == LOOPBACK


def place_from(environment: Mapping[str, str], port: int | None) -> Place | None:
    """This rank's place, from the variables that Composer's launcher and torchrun set.

    Args:
        environment: the environment.
        port: UDP port of rank 0; None: the same number as the TCP port MASTER_PORT.

    Returns:
        None for a single rank, or if RANK is not set.

    Raises:
        UserError: a variable that is no number, or no MASTER_ADDR on several nodes.
    """
    world = number_in(environment, "WORLD_SIZE", 1)
    if world == 1 or "RANK" not in environment:
        return None
    rank, per_node = number_in(environment, "RANK", 0), number_in(environment, _PER_NODE, 1)
    store_port = number_in(environment, "MASTER_PORT", 29500)
    if world != per_node and not environment.get("MASTER_ADDR"):
        raise UserError("MASTER_ADDR is not set: on several nodes it names the host of rank 0")
    return Place(
        rank=rank,
        world=world,
        per_node=per_node,
        node=number_in(environment, "NODE_RANK", rank // per_node),
        # On one host loopback is enough, whatever the name of the host.
        address=LOOPBACK if world == per_node else environment["MASTER_ADDR"],
        port=port or store_port,
        store_port=store_port,
    )


def number_in(environment: Mapping[str, str], name: str, default: int) -> int:
    """A launcher's variable: a whole number of at least 0, or of at least 1 for LOCAL_WORLD_SIZE.

    Raises:
        UserError: it is something else.
    """
    text = environment.get(name, "")
    if not text:
        return default
    least = 1 if name == _PER_NODE else 0
    if not (text.isascii() and text.isdecimal() and int(text) >= least):
        raise UserError(f"{name} is {text!r}, and a launcher sets it to a whole number")
    return int(text)
