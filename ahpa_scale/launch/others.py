# SPDX-License-Identifier: Apache-2.0
"""Reads variables that tell a node's place only partly. Refuses them if too little is known."""

from __future__ import annotations

from pathlib import Path

from ahpa_scale.launch.placement import LaunchError, Placement, Variables, placed

_FLAGS = "give --nnodes, --node-rank, --master-addr and --nproc"


def rank_and_world(variables: Variables, nproc: int | None) -> Placement:
    """RANK and WORLD_SIZE. Kubeflow's PyTorchJob, Volcano and Vertex AI count pods with them. With
    LOCAL_RANK and LOCAL_WORLD_SIZE they count processes.
    """
    world = variables.needed_whole("WORLD_SIZE", least=1)
    rank = variables.needed_whole("RANK")
    per_node = variables.whole("LOCAL_WORLD_SIZE", least=1)
    local_rank = variables.whole("LOCAL_RANK")
    if per_node is None and local_rank is None:
        address = variables.needed("MASTER_ADDR") if world > 1 else None
        return placed(world, nproc, rank, address, variables.port(), variables.source)
    per_node = variables.needed_whole("LOCAL_WORLD_SIZE", least=1, hint=f"or {_FLAGS}")
    local_rank = variables.needed_whole("LOCAL_RANK", hint=f"or {_FLAGS}")
    if world % per_node or rank % per_node != local_rank:
        raise LaunchError(
            f"{variables.source}: rank {rank} of {world} is not the {local_rank}. of {per_node} on "
            "its node: every node needs as many ranks, node after node"
        )
    return placed(
        world // per_node,
        per_node,
        rank // per_node,
        variables.needed("MASTER_ADDR") if world > per_node else "127.0.0.1",
        variables.port(),
        variables.source,
        local_rank=local_rank,
    )


def batch_script(variables: Variables, nproc: int | None) -> Placement:
    """PBS, LSF and Grid Engine run a job script on only one of its hosts."""
    hosts = _hosts(variables)
    if hosts > 1:
        raise LaunchError(
            f"{variables.source}: this script runs on one of the job's {hosts} hosts only; put "
            f"mpiexec in front, one process per node, or {_FLAGS} on each"
        )
    return placed(1, nproc, 0, None, variables.port(), variables.source)


def not_understood(variables: Variables, nproc: int | None) -> Placement:
    """Launchers that don't tell which ranks share a node. Accepted only for a single rank."""
    for name in ("FLUX_JOB_SIZE", "JSM_NAMESPACE_SIZE", "PMIX_SIZE"):
        if variables.text(name) is not None and variables.needed_whole(name, least=1) == 1:
            return placed(1, nproc, 0, None, variables.port(), variables.source)
    raise LaunchError(f"{variables.source}: nothing tells how its processes lie on nodes; {_FLAGS}")


def _hosts(variables: Variables) -> int:
    listed = variables.text("PBS_NODEFILE")
    if listed is not None:
        try:
            return len(set(Path(listed).read_text(encoding="utf-8").split()))
        except (OSError, UnicodeDecodeError) as error:
            raise LaunchError(f"PBS: PBS_NODEFILE={listed} can't be read: {error}") from None
    names = variables.text("LSB_MCPU_HOSTS")  # 'hostA 4 hostB 4'
    return len(names.split()[::2]) if names else variables.whole("NHOSTS", least=1) or 1
