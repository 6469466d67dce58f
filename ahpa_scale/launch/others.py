# SPDX-License-Identifier: Apache-2.0
"""Reads variables that tell a node's place only partly. Refuses them if too little is known."""

from __future__ import annotations

from pathlib import Path

from ahpa_scale.launch.placement import LaunchError, Placement, Variables, placed

_FLAGS = "give --nnodes, --node-rank, --master-addr and --nproc"


def rank_and_world(found: Variables, nproc: int | None) -> Placement:
    """RANK and WORLD_SIZE. Kubeflow's PyTorchJob, Volcano and Vertex AI count pods with them. With
    LOCAL_RANK and LOCAL_WORLD_SIZE they count processes.
    """
    world = found.needed_whole("WORLD_SIZE", least=1)
    rank = found.needed_whole("RANK")
    per_node = found.whole("LOCAL_WORLD_SIZE", least=1)
    local_rank = found.whole("LOCAL_RANK")
    if per_node is None and local_rank is None:
        address = found.needed("MASTER_ADDR") if world > 1 else None
        return placed(world, nproc, rank, address, found.port(), found.source)
    per_node = found.needed_whole("LOCAL_WORLD_SIZE", least=1, hint=f"or {_FLAGS}")
    local_rank = found.needed_whole("LOCAL_RANK", hint=f"or {_FLAGS}")
    if world % per_node or rank % per_node != local_rank:
        raise LaunchError(
            f"{found.source}: rank {rank} of {world} is not the {local_rank}. of {per_node} on its "
            "node: every node needs as many ranks, node after node"
        )
    return placed(
        world // per_node,
        per_node,
        rank // per_node,
        found.needed("MASTER_ADDR") if world > per_node else "127.0.0.1",
        found.port(),
        found.source,
        local_rank=local_rank,
    )


def batch_script(found: Variables, nproc: int | None) -> Placement:
    """PBS, LSF and Grid Engine run a job script on only one of its hosts."""
    hosts = _hosts(found)
    if hosts > 1:
        raise LaunchError(
            f"{found.source}: this script runs on one of the job's {hosts} hosts only; put mpiexec "
            f"in front, one process per node, or {_FLAGS} on each"
        )
    return placed(1, nproc, 0, None, found.port(), found.source)


def not_understood(found: Variables, nproc: int | None) -> Placement:
    """Launchers that don't tell which ranks share a node. Accepted only for a single rank."""
    for name in ("FLUX_JOB_SIZE", "JSM_NAMESPACE_SIZE", "PMIX_SIZE"):
        if found.text(name) is not None and found.needed_whole(name, least=1) == 1:
            return placed(1, nproc, 0, None, found.port(), found.source)
    raise LaunchError(f"{found.source}: nothing tells how its processes lie on nodes; {_FLAGS}")


def _hosts(found: Variables) -> int:
    listed = found.text("PBS_NODEFILE")
    if listed is not None:
        try:
            return len(set(Path(listed).read_text(encoding="utf-8").split()))
        except (OSError, UnicodeDecodeError) as error:
            raise LaunchError(f"PBS: PBS_NODEFILE={listed} can't be read: {error}") from None
    names = found.text("LSB_MCPU_HOSTS")  # 'hostA 4 hostB 4'
    return len(names.split()[::2]) if names else found.whole("NHOSTS", least=1) or 1
