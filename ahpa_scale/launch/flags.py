# SPDX-License-Identifier: Apache-2.0
"""The command line's own flags -> this node's place in the job."""

from __future__ import annotations

from ahpa_scale.launch.placement import DEFAULT_PORT, HIGHEST_PORT, LaunchError, Placement, placed


def from_flags(
    nnodes: int | None,
    node_rank: int | None,
    master_addr: str | None,
    master_port: int | None,
    nproc: int | None,
) -> Placement:
    """The place that the flags give. The environment is ignored.

    Raises:
        LaunchError: a flag is missing or out of range.
    """
    nodes = 1 if nnodes is None else nnodes
    for flag, number in (("nnodes", nnodes), ("node-rank", node_rank), ("nproc", nproc)):
        least = 0 if flag == "node-rank" else 1
        if number is not None and number < least:
            raise LaunchError(f"--{flag}: {number} must be at least {least}")
    if nodes > 1:
        wanted = {"--node-rank": node_rank, "--master-addr": master_addr, "--nproc": nproc}
        missing = [flag for flag, value in wanted.items() if value in (None, "")]
        if missing:
            raise LaunchError(f"--nnodes {nodes} needs {' and '.join(missing)} as well")
    elif nnodes is None:
        raise LaunchError("--nnodes is missing beside --node-rank, --master-addr or --master-port")
    port = DEFAULT_PORT if master_port is None else master_port
    if not 1 <= port <= HIGHEST_PORT:
        raise LaunchError(f"--master-port: {port} must be between 1 and {HIGHEST_PORT}")
    return placed(nodes, nproc, node_rank or 0, master_addr, port, "flags")
