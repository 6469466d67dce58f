# SPDX-License-Identifier: Apache-2.0
"""Where a rank stands in its job, and where rank 0 listens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Place:
    """Where a rank stands, and where rank 0 listens.

    Attributes:
        rank, world, per_node, node: ranks and nodes from 0.
        address: host of rank 0.
        port: UDP port on it.
        store_port: TCP port on it, where torch's store listens.
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
        """Whether all ranks reach rank 0 without leaving their host. A name doesn't tell: operators
        give rank 0 alone ``localhost``.
        """
        return self.address == LOOPBACK


def place_from(environment: Mapping[str, str], port: int | None) -> Place | None:
    """This rank's place, by the variables that Composer's launcher and torchrun set.

    Args:
        environment: the environment.
        port: UDP port of rank 0; None: the number of MASTER_PORT, which is a TCP port.

    Returns:
        None where there is one rank, or none knows of another.
    """
    world = int(environment.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in environment:
        return None
    rank, per_node = int(environment["RANK"]), int(environment.get("LOCAL_WORLD_SIZE", "1"))
    store_port = int(environment.get("MASTER_PORT", "29500"))
    return Place(
        rank=rank,
        world=world,
        per_node=per_node,
        node=int(environment.get("NODE_RANK", rank // per_node)),
        # On one host nothing needs to leave it, whatever the host calls itself.
        address=LOOPBACK if world == per_node else environment["MASTER_ADDR"],
        port=port or store_port,
        store_port=store_port,
    )
