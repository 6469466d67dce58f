# SPDX-License-Identifier: Apache-2.0
"""Variables of MPI launchers (one process per rank or per node) -> a node's place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ahpa_scale.launch.placement import LaunchError, Placement, Variables, placed


@dataclass(frozen=True)
class Family:
    """How one family of MPI launchers tells a process its place.

    Attributes:
        name: name for messages.
        rank, size, local_rank, local_size: names of the variables; the first that is set counts.
        host: the option that passes node 0's host on.
        together: the options that fill nodes one by one, with {} for ranks per node.
    """

    name: str
    rank: tuple[str, ...]
    size: tuple[str, ...]
    local_rank: tuple[str, ...]
    local_size: tuple[str, ...]
    host: str
    together: str

    def read(self, variables: Variables, nproc: int | None) -> Placement:
        """The place of this process.

        Raises:
            LaunchError: variables are missing or contradict each other.
        """
        size = variables.first_set(*self.size)
        world = variables.needed_whole(size, least=1)
        name = variables.first_set(*self.local_size)
        if world > 1 and variables.text(name) is None:
            raise LaunchError(
                f"{self.name}: {name} is missing, and nothing else tells which ranks share a node; "
                "give --nnodes, --node-rank, --master-addr and --nproc"
            )
        local = variables.whole(name, least=1) or 1
        rank = variables.needed_whole(variables.first_set(*self.rank))
        if world % local:
            raise LaunchError(
                f"{self.name}: {size}={world} is no multiple of {name}={local}; use "
                f"{self.together.format(local)}"
            )
        local_name = variables.first_set(*self.local_rank)
        local_rank = variables.whole(local_name)
        if local_rank is not None and rank % local != local_rank:
            raise LaunchError(
                f"{self.name}: {self.rank[0]}={rank} is not the {local_rank}. of its node: ranks "
                f"must fill node after node; use {self.together.format(local)}"
            )
        nnodes = world // local
        if local == 1 and nproc is None and nnodes == 1:
            nproc = 1
        return placed(
            nnodes,
            local if local > 1 else nproc,
            rank // local,
            variables.needed("MASTER_ADDR", f"name node 0's host: {self.host}")
            if nnodes > 1
            else "127.0.0.1",
            variables.port(),
            variables.source,
            local_rank=rank % local if local > 1 else None,
        )


def without_sruns(values: Mapping[str, str]) -> Mapping[str, str]:
    """The environment without PMI variables that srun has set: its own SLURM_* say more."""
    tasks = values.get("SLURM_STEP_NUM_TASKS") or values.get("SLURM_NTASKS")
    sruns = (
        values.get("SLURM_STEP_ID")
        and values.get("PMI_RANK") == values.get("SLURM_PROCID")
        and values.get("PMI_SIZE") == tasks
    )
    return {n: v for n, v in values.items() if n not in PMI.rank + PMI.size} if sruns else values


OPENMPI = Family(
    "OpenMPI",
    rank=("OMPI_COMM_WORLD_RANK",),
    size=("OMPI_COMM_WORLD_SIZE",),
    local_rank=("OMPI_COMM_WORLD_LOCAL_RANK",),
    local_size=("OMPI_COMM_WORLD_LOCAL_SIZE",),
    host="mpirun -x MASTER_ADDR=HOST",
    together="mpirun --map-by ppr:{}:node --rank-by slot",
)
MVAPICH = Family(
    "MVAPICH",
    rank=("MV2_COMM_WORLD_RANK",),
    size=("MV2_COMM_WORLD_SIZE",),
    local_rank=("MV2_COMM_WORLD_LOCAL_RANK",),
    local_size=("MV2_COMM_WORLD_LOCAL_SIZE",),
    host="mpirun_rsh MASTER_ADDR=HOST",
    together="mpirun_rsh -ppn {}",
)
#: MPICH and Intel MPI use Hydra. HPE's PALS sets PMI's variables besides its own.
PMI = Family(
    "MPICH, Intel MPI or PALS",
    rank=("PALS_RANKID", "PMI_RANK"),
    size=("PMI_SIZE",),
    local_rank=("PALS_LOCAL_RANKID", "PMI_LOCAL_RANK", "MPI_LOCALRANKID"),
    local_size=("PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE", "MPI_LOCALNRANKS"),
    host="mpiexec -genv MASTER_ADDR HOST (PALS: --env MASTER_ADDR=HOST)",
    together="mpiexec -ppn {}",
)
FAMILIES = (OPENMPI, MVAPICH, PMI)
