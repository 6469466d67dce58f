# SPDX-License-Identifier: Apache-2.0
"""Environment variables -> this node's place in the job, for all common schedulers.

If the scheduler starts one process per node, `ahpa-scale launch` starts the ranks of that node. If
it starts one process per rank (torchrun, srun or mpirun with several tasks on a node), each process
becomes the rank that its variables name. Starting ranks again would start too many, and using one
process per node would leave the others and their devices idle.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from ahpa_scale.errors import UserError
from ahpa_scale.launch.mpi import FAMILIES, without_sruns
from ahpa_scale.launch.nodelist import expand_nodelist
from ahpa_scale.launch.others import batch_script, not_understood, rank_and_world
from ahpa_scale.launch.placement import LaunchError, Placement, Variables, placed

#: Slurm job numbers are spread over these ports. Kernels assign other ports first.
_SLURM_PORTS = range(20_000, 30_000)
_SLURM_MARKS = (
    "SLURM_JOB_ID", "SLURM_NNODES", "SLURM_JOB_NUM_NODES", "SLURM_JOB_NODELIST", "SLURM_NODEID",
)  # fmt: skip
_SLURM_SPECIAL_STEPS = 0xFFFF_FF00
_TASKS = re.compile(r"(\d+)(?:\(x\d+\))?", re.ASCII)


def from_environment(values: Mapping[str, str], nproc: int | None = None) -> Placement:
    """Finds the scheduler by its variables and reads them.

    Args:
        values: the environment.
        nproc: ranks on each node, given by the user; None leaves it to the scheduler.

    Raises:
        LaunchError: variables are missing or contradict each other.
    """
    if nproc is not None and nproc < 1:
        raise LaunchError(f"--nproc: {nproc} must be at least 1")
    values = without_sruns(values)
    for marks, source, read in _SCHEDULERS:
        if any(values.get(mark) for mark in marks):
            return _with_nproc(read(Variables(values, source), nproc), nproc)
    return Placement(1, nproc, 0, None, None, "one node: no scheduler's variables are set")


def _with_nproc(placement: Placement, nproc: int | None) -> Placement:
    if nproc is None or placement.nproc == nproc:
        return placement
    if placement.local_rank is not None:
        raise LaunchError(
            f"--nproc {nproc}: {placement.source} has started {placement.nproc} processes on this "
            "node, and each is a rank; leave --nproc away, or start one process per node"
        )
    return replace(placement, nproc=nproc)


def _torchrun(variables: Variables, nproc: int | None) -> Placement:
    local_size = variables.needed_whole("LOCAL_WORLD_SIZE", least=1)
    world = variables.needed_whole("WORLD_SIZE", least=1)
    if world % local_size:
        raise LaunchError(
            f"torchrun: WORLD_SIZE={world} is no multiple of LOCAL_WORLD_SIZE={local_size}: every "
            "node needs as many ranks; give all the same --nproc-per-node"
        )
    local_rank = variables.needed_whole("LOCAL_RANK")
    if local_rank >= local_size:
        raise LaunchError(
            f"torchrun: LOCAL_RANK={local_rank} is not below LOCAL_WORLD_SIZE={local_size}"
        )
    return placed(
        world // local_size,
        local_size,
        variables.needed_whole("GROUP_RANK"),
        variables.needed("MASTER_ADDR"),
        variables.port(),
        variables.source,
        # torchrun's agent waits for and restarts the processes that it started, so keep them.
        local_rank=local_rank,
    )


def _kubeflow(variables: Variables, nproc: int | None) -> Placement:
    text = variables.needed("PET_NNODES")
    least, colon, most = text.partition(":")
    if colon and least != most:
        raise LaunchError(
            f"Kubeflow: PET_NNODES={text} is elastic, and this job has a fixed number of nodes; "
            f"set {most or least}"
        )
    nnodes = Variables({"PET_NNODES": least}, variables.source).needed_whole("PET_NNODES", least=1)
    per_node = variables.text("PET_NPROC_PER_NODE")
    # With 'auto', 'gpu' and 'cpu', torchrun would count the devices itself.
    said = None if per_node in (None, "auto", "gpu", "cpu") else "PET_NPROC_PER_NODE"
    alone = nnodes == 1
    return placed(
        nnodes,
        _first(nproc, variables.needed_whole(said, least=1) if said else None),
        (variables.whole("PET_NODE_RANK") or 0)
        if alone
        else variables.needed_whole("PET_NODE_RANK"),
        variables.text("PET_MASTER_ADDR") if alone else variables.needed("PET_MASTER_ADDR"),
        variables.port("PET_MASTER_PORT"),
        variables.source,
    )


def _slurm(variables: Variables, nproc: int | None) -> Placement:
    in_step = _in_step(variables)
    # A step may use fewer nodes than its job has.
    step = (("SLURM_STEP_NUM_NODES",), ("SLURM_STEP_NODELIST",)) if in_step else ((), ())
    count = variables.first_set(*step[0], "SLURM_NNODES", "SLURM_JOB_NUM_NODES")
    listed = variables.first_set(*step[1], "SLURM_JOB_NODELIST")
    nnodes = variables.needed_whole(count, least=1)
    hosts = _hosts(variables, listed) if nnodes > 1 else ["127.0.0.1"]
    if nnodes > len(hosts):
        raise LaunchError(f"Slurm: {count}={nnodes}, and {listed} names {len(hosts)} hosts")
    if nnodes > 1 and not in_step:
        raise LaunchError(
            f"Slurm: SLURM_STEP_ID is missing, and {count}={nnodes}: a batch script or shell runs "
            "on one node only; put srun in front (srun -N1 for one node alone)"
        )
    # Outside a step this process is the only one. The task variables describe future steps.
    tasks = _tasks_per_node(variables) if in_step else 1
    local_rank = variables.needed_whole("SLURM_LOCALID") if tasks > 1 else None
    if local_rank is not None and local_rank >= tasks:
        raise LaunchError(f"Slurm: SLURM_LOCALID={local_rank} is not below {tasks} tasks per node")
    job = variables.whole("SLURM_JOB_ID") or 0
    return placed(
        nnodes,
        tasks if tasks > 1 else _first(nproc, variables.whole("SLURM_GPUS_ON_NODE", least=1)),
        variables.needed_whole("SLURM_NODEID") if nnodes > 1 else 0,
        variables.text("MASTER_ADDR") or hosts[0],
        variables.port(default=_SLURM_PORTS[job % len(_SLURM_PORTS)]),
        variables.source,
        local_rank=local_rank,
    )


def _in_step(variables: Variables) -> bool:
    """Whether srun has started this process. In a batch script or the shell of an allocation, the
    step number is missing or one of Slurm's special high numbers.
    """
    number = variables.whole("SLURM_STEP_ID")
    return number is not None and number < _SLURM_SPECIAL_STEPS


def _hosts(variables: Variables, name: str) -> list[str]:
    text = variables.needed(name)
    try:
        return expand_nodelist(text)
    except UserError as error:
        raise LaunchError(f"Slurm: {name}: {error}") from None


def _tasks_per_node(variables: Variables) -> int:
    """How many processes srun has started on each node."""
    name = "SLURM_STEP_TASKS_PER_NODE"
    if variables.text(name) is None:
        return variables.whole("SLURM_NTASKS_PER_NODE", least=1) or 1
    # For example '8(x4)'. '8(x3),2' means nodes with different numbers.
    match = _TASKS.fullmatch(variables.needed(name))
    if match is None:
        raise LaunchError(
            f"Slurm: {name}={variables.text(name)}: every node needs as many tasks; use "
            "srun --ntasks-per-node"
        )
    return int(match[1])


def _jobset(variables: Variables, nproc: int | None) -> Placement:
    nodes = variables.needed_whole("AHPA_NODES", least=1, hint="set it to the pods of the job")
    replicas = variables.whole("REPLICATED_JOB_REPLICAS", least=1) or 1
    if nodes % replicas:
        raise LaunchError(
            f"JobSet: AHPA_NODES={nodes} is no multiple of REPLICATED_JOB_REPLICAS={replicas}"
        )
    job = variables.whole("JOB_INDEX") or 0
    if job >= replicas:
        raise LaunchError(
            f"JobSet: JOB_INDEX={job} is not below REPLICATED_JOB_REPLICAS={replicas}"
        )
    name = variables.needed("JOBSET_NAME")
    # Host name of the first pod with its service, as JobSet creates them.
    first = f"{name}-{variables.needed('REPLICATED_JOB_NAME')}-0-0.{name}"
    return placed(
        nodes,
        nproc,
        job * (nodes // replicas) + variables.needed_whole("JOB_COMPLETION_INDEX"),
        variables.text("MASTER_ADDR") or first,
        variables.port(),
        variables.source,
    )


def _indexed_job(variables: Variables, nproc: int | None) -> Placement:
    nodes = variables.needed_whole("AHPA_NODES", least=1, hint="set it to the job's completions")
    hint = "name the first pod's host: JOB-0.SERVICE"
    return placed(
        nodes,
        nproc,
        variables.needed_whole("JOB_COMPLETION_INDEX", hint="set completionMode: Indexed"),
        variables.needed("MASTER_ADDR", hint) if nodes > 1 else variables.text("MASTER_ADDR"),
        variables.port(),
        variables.source,
    )


def _composer(variables: Variables, nproc: int | None) -> Placement:
    world = variables.needed_whole("WORLD_SIZE", least=1)
    per_node = _first(nproc, variables.whole("LOCAL_WORLD_SIZE", least=1))
    if per_node is None:
        raise LaunchError("Composer's variables: LOCAL_WORLD_SIZE is missing; add --nproc")
    if world % per_node:
        raise LaunchError(
            f"Composer's variables: WORLD_SIZE={world} is no multiple of {per_node} ranks per node"
        )
    nnodes = world // per_node
    return placed(
        nnodes,
        per_node,
        variables.needed_whole("NODE_RANK"),
        variables.needed("MASTER_ADDR") if nnodes > 1 else variables.text("MASTER_ADDR"),
        variables.port(),
        variables.source,
    )


def _first(*numbers: int | None) -> int | None:
    return next((number for number in numbers if number is not None), None)


#: Marks, name and reader of each scheduler, the innermost first: mpirun runs inside Slurm jobs, and
#: Kubeflow's pods belong to a JobSet of indexed jobs.
_SCHEDULERS = (
    (("TORCHELASTIC_RUN_ID", "GROUP_RANK"), "torchrun", _torchrun),
    *((family.rank + family.size, family.name, family.read) for family in FAMILIES),
    (("PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR"), "Kubeflow", _kubeflow),
    (("JOBSET_NAME", "REPLICATED_JOB_NAME"), "JobSet", _jobset),
    (("JOB_COMPLETION_INDEX", "AHPA_NODES"), "Kubernetes", _indexed_job),
    (_SLURM_MARKS, "Slurm", _slurm),
    (("PBS_NODEFILE",), "PBS", batch_script),
    (("LSB_MCPU_HOSTS",), "LSF", batch_script),
    (("NHOSTS",), "Grid Engine", batch_script),
    (("FLUX_JOB_SIZE", "FLUX_TASK_RANK"), "Flux", not_understood),
    (("JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"), "jsrun", not_understood),
    (("PMIX_RANK",), "PMIx", not_understood),
    (("NODE_RANK",), "Composer's variables", _composer),
    (("RANK", "WORLD_SIZE"), "RANK and WORLD_SIZE", rank_and_world),
)
