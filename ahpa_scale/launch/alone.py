# SPDX-License-Identifier: Apache-2.0
"""Refuses a process that would train alone although its launcher has started others too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ahpa_scale.launch.environment import from_environment
from ahpa_scale.launch.placement import LaunchError

#: Set for all processes that `ahpa-scale launch` starts. They need no check.
LAUNCHED = "AHPA_LAUNCHED"
#: Variables that every launcher of ranks sets.
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_START = "start it with `ahpa-scale launch` in place of python or composer"
#: Variables of numbered pods. Such pods need not be one job, so they count only with AHPA_NODES.
_PODS = ("JOB_COMPLETION_INDEX", "JOBSET_NAME", "REPLICATED_JOB_NAME", "JOB_INDEX")


def check_not_alone(values: Mapping[str, str], parents: Mapping[str, str]) -> None:
    """Compares this process's place with what its scheduler says.

    Args:
        values: the environment of this process.
        parents: the environment of its parent process: Composer's launcher overwrites RANK and
            WORLD_SIZE for its ranks.

    Raises:
        LaunchError: the scheduler has started more processes than take part in this training.
    """
    if values.get(LAUNCHED) or values.get("TORCHELASTIC_RUN_ID"):
        return
    is_rank = all(values.get(name) for name in _RANKS)
    if is_rank and values["WORLD_SIZE"] != values["LOCAL_WORLD_SIZE"]:
        return
    seen = dict(values)
    if is_rank:
        seen = {n: v for n, v in values.items() if n not in (*_RANKS, "NODE_RANK", "MASTER_ADDR")}
        alone = not (parents.get("NODE_RANK") or parents.get("LOCAL_WORLD_SIZE"))
        if alone and parents.get("RANK") and parents.get("WORLD_SIZE"):
            seen |= {n: v for n, v in parents.items() if n in (*_RANKS, "MASTER_ADDR")}
    if not seen.get("AHPA_NODES"):
        seen = {name: value for name, value in seen.items() if name not in _PODS}
    try:
        place = from_environment(seen)
    except LaunchError as error:
        raise LaunchError(f"{error}; {_START}") from None
    processes = place.nnodes if is_rank else place.world_size or place.nnodes
    if processes > 1 and (place.nnodes > 1 or place.local_rank is not None):
        parts = f"{place.nnodes} nodes" if place.nnodes > 1 else f"{processes} processes"
        raise LaunchError(
            f"{place.source}: this is one of {parts}, and each would train alone; {_START}"
        )


def parents_environment(parent: int) -> dict[str, str]:
    """The environment that a process was started with; empty if it can't be read.

    Args:
        parent: process id.
    """
    try:
        text = Path(f"/proc/{parent}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in text.split("\0"))
    return {name: value for name, _, value in pairs}
