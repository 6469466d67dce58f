# SPDX-License-Identifier: Apache-2.0
"""Every scheduler's variables -> this node's place in the job, or one line that names the slip."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from job import BIN, ROOT, run

from ahpa_scale.launch.alone import check_not_alone
from ahpa_scale.launch.environment import from_environment
from ahpa_scale.launch.flags import from_flags
from ahpa_scale.launch.nodelist import expand_nodelist
from ahpa_scale.launch.placement import LaunchError, Placement

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "RANK": "13", "WORLD_SIZE": "16", "LOCAL_RANK": "5",
    "LOCAL_WORLD_SIZE": "8", "GROUP_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29400",
}  # fmt: skip
SLURM = {
    "SLURM_JOB_ID": "1234567", "SLURM_NNODES": "4", "SLURM_NODEID": "2", "SLURM_STEP_ID": "0",
    "SLURM_JOB_NODELIST": "n[01-03,7]", "SLURM_GPUS_ON_NODE": "8", "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
}  # fmt: skip
SLURM_TASKS = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x4)", "SLURM_LOCALID": "3"}
STEP = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "n[02-03]", "SLURM_NODEID": "1"}
KUBERNETES = {"JOB_COMPLETION_INDEX": "3", "AHPA_NODES": "4", "MASTER_ADDR": "job-0.svc"}
JOBSET = {
    "JOBSET_NAME": "set", "REPLICATED_JOB_NAME": "node", "JOB_COMPLETION_INDEX": "1",
    "AHPA_NODES": "4", "JOB_INDEX": "1", "REPLICATED_JOB_REPLICAS": "2",
}  # fmt: skip
KUBEFLOW = {
    "PET_NNODES": "2", "PET_NPROC_PER_NODE": "8", "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "train-node-0-0.train", "PET_MASTER_PORT": "29500",
}  # fmt: skip
MPI = {
    "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0", "MASTER_ADDR": "a",
}  # fmt: skip
MPI_RANKS = MPI | {
    "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}  # fmt: skip
COMPOSER = {
    "WORLD_SIZE": "16", "NODE_RANK": "1", "LOCAL_WORLD_SIZE": "8",
    "MASTER_ADDR": "a", "MASTER_PORT": "7000",
}  # fmt: skip
#: Kubeflow's PyTorchJob (v1), Volcano and Vertex AI: pods, counted as if they were ranks.
PODS = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
HYDRA = {
    "PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2",
    "MASTER_ADDR": "a",
}  # fmt: skip
PALS = {
    "PALS_RANKID": "5", "PALS_NODEID": "1", "PMI_RANK": "5", "PMI_SIZE": "8",
    "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "4", "MASTER_ADDR": "a",
}  # fmt: skip
SBATCH = {n: v for n, v in SLURM.items() if "STEP" not in n}


def without(values: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in values.items() if name not in names}


@pytest.mark.parametrize(
    ("values", "nproc", "placed"),
    [
        ({}, None, (1, None, 0, None, None, None)),
        ({}, 2, (1, 2, 0, None, None, None)),
        (TORCHRUN, None, (2, 8, 1, "a", 29400, 5)),
        (SLURM, None, (4, 8, 2, "n01", 20_000 + 1_234_567 % 10_000, None)),
        (SLURM, 4, (4, 4, 2, "n01", 20_000 + 1_234_567 % 10_000, None)),
        (SLURM | {"MASTER_PORT": "7", "MASTER_ADDR": "b"}, None, (4, 8, 2, "b", 7, None)),
        (SLURM | STEP, None, (2, 8, 1, "n02", 24567, None)),
        (SLURM_TASKS, None, (4, 8, 2, "n01", 24567, 3)),
        ({"SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2"}, None, (1, 2, 0, None, None, None)),
        (KUBERNETES, 8, (4, 8, 3, "job-0.svc", 29500, None)),
        (JOBSET, 8, (4, 8, 3, "set-node-0-0.set", 29500, None)),
        (JOBSET | {"MASTER_ADDR": "x", "JOB_INDEX": "0"}, 1, (4, 1, 1, "x", 29500, None)),
        (KUBEFLOW, None, (2, 8, 1, "train-node-0-0.train", 29500, None)),
        (KUBEFLOW | JOBSET, None, (2, 8, 1, "train-node-0-0.train", 29500, None)),
        (KUBEFLOW | {"PET_NNODES": "2:2", "PET_NPROC_PER_NODE": "auto"}, 4,
         (2, 4, 1, "train-node-0-0.train", 29500, None)),
        ({"PET_NNODES": "1", "PET_NPROC_PER_NODE": "2"}, None, (1, 2, 0, None, None, None)),
        (MPI, 8, (2, 8, 1, "a", 29500, None)),
        (MPI | SLURM, 8, (2, 8, 1, "a", 29500, None)),
        (MPI_RANKS, None, (2, 2, 1, "a", 29500, 1)),
        (PODS, 8, (4, 8, 1, "job-master-0", 23456, None)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, 2, (1, 2, 0, None, None, None)),
        (PODS | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, None,
         (2, 2, 0, "job-master-0", 23456, 1)),
        (HYDRA, None, (2, 2, 1, "a", 29500, 1)),
        (HYDRA | {"MPI_LOCALNRANKS": "1", "MPI_LOCALRANKID": "0"}, 8, (4, 8, 3, "a", 29500, None)),
        (PALS, None, (2, 4, 1, "a", 29500, 1)),
        (SLURM_TASKS | {"PMI_RANK": "2", "PMI_SIZE": "32", "SLURM_NTASKS": "32"}, None,
         (4, 8, 2, "n01", 24567, 3)),
        (SBATCH | {"SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "8"}, None,
         (1, 8, 0, None, None, None)),
        ({"NHOSTS": "1"}, 2, (1, 2, 0, None, None, None)),
        (COMPOSER, None, (2, 8, 1, "a", 7000, None)),
        (COMPOSER, 4, (4, 4, 1, "a", 7000, None)),
    ],
)  # fmt: skip
def test_variables_say_where_a_node_stands(values, nproc, placed):
    found = from_environment(values, nproc)
    port, local_rank = found.master_port, found.local_rank
    assert (found.nnodes, found.nproc, found.node_rank, found.master_addr, port, local_rank) == (
        placed
    )


@pytest.mark.parametrize(
    ("values", "nproc", "words"),
    [
        (without(TORCHRUN, "LOCAL_WORLD_SIZE"), None, ["torchrun", "LOCAL_WORLD_SIZE is missing"]),
        (TORCHRUN | {"WORLD_SIZE": "15"}, None, ["WORLD_SIZE=15", "--nproc-per-node"]),
        (TORCHRUN | {"GROUP_RANK": "2"}, None, ["torchrun", "node 2 of 2", "last is 1"]),
        (TORCHRUN | {"MASTER_PORT": "70000"}, None, ["MASTER_PORT=70000", "65535"]),
        (TORCHRUN, 4, ["--nproc 4", "8 processes"]),
        (SLURM | {"SLURM_NNODES": "4x"}, None, ["SLURM_NNODES='4x'", "whole number"]),
        (SLURM | {"SLURM_JOB_NODELIST": "n[1-"}, None, ["SLURM_JOB_NODELIST", "'n[1-'"]),
        (SLURM | {"SLURM_JOB_NODELIST": "n[3-1]"}, None, ["SLURM_JOB_NODELIST", "'3-1'"]),
        (SLURM | {"SLURM_JOB_NODELIST": "n1"}, None, ["SLURM_NNODES=4", "1 hosts"]),
        (without(SLURM, "SLURM_STEP_ID"), None, ["SLURM_STEP_ID is missing", "srun"]),
        (without(SLURM, "SLURM_GPUS_ON_NODE"), None, ["Slurm", "--nproc"]),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x3),2"}, None, ["--ntasks-per-node"]),
        (without(SLURM_TASKS, "SLURM_LOCALID"), None, ["SLURM_LOCALID is missing"]),
        (without(KUBERNETES, "AHPA_NODES"), 8, ["AHPA_NODES is missing", "completions"]),
        (without(KUBERNETES, "MASTER_ADDR"), 8, ["MASTER_ADDR is missing", "JOB-0.SERVICE"]),
        (without(KUBERNETES, "JOB_COMPLETION_INDEX"), 8, ["JOB_COMPLETION_INDEX", "Indexed"]),
        (KUBERNETES, None, ["Kubernetes", "--nproc"]),
        (KUBERNETES | {"JOB_COMPLETION_INDEX": "4"}, 8, ["node 4 of 4"]),
        (JOBSET | {"AHPA_NODES": "3"}, 8, ["AHPA_NODES=3", "REPLICATED_JOB_REPLICAS=2"]),
        (JOBSET | {"JOB_INDEX": "2"}, 8, ["JOB_INDEX=2", "REPLICATED_JOB_REPLICAS=2"]),
        (without(JOBSET, "JOBSET_NAME"), 8, ["JobSet", "JOBSET_NAME is missing"]),
        (KUBEFLOW | {"PET_NNODES": "1:4"}, None, ["PET_NNODES=1:4", "elastic", "set 4"]),
        (without(KUBEFLOW, "PET_NODE_RANK"), None, ["PET_NODE_RANK is missing"]),
        (without(KUBEFLOW, "PET_MASTER_ADDR") | {"PET_MASTER_ADD": "a"}, None,
         ["PET_MASTER_ADDR is missing", "PET_MASTER_ADD is set"]),
        (KUBEFLOW | {"PET_NPROC_PER_NODE": "eight"}, None, ["PET_NPROC_PER_NODE='eight'"]),
        (MPI | {"OMPI_COMM_WORLD_RANK": "-1"}, 8, ["OMPI_COMM_WORLD_RANK='-1'"]),
        (without(MPI, "MASTER_ADDR"), 8, ["MASTER_ADDR is missing", "-x MASTER_ADDR"]),
        (MPI_RANKS | {"OMPI_COMM_WORLD_SIZE": "5"}, None, ["OMPI_COMM_WORLD_SIZE=5", "ppr:2"]),
        (MPI_RANKS | {"OMPI_COMM_WORLD_LOCAL_RANK": "0"}, None, ["node after node"]),
        (PODS, None, ["RANK and WORLD_SIZE", "--nproc"]),
        (without(PODS, "WORLD_SIZE"), 8, ["WORLD_SIZE is missing"]),
        (without(PODS, "MASTER_ADDR"), 8, ["MASTER_ADDR is missing"]),
        (PODS | {"LOCAL_RANK": "1"}, None, ["LOCAL_WORLD_SIZE is missing", "--nnodes"]),
        (without(HYDRA, "MPI_LOCALNRANKS"), None, ["MPI_LOCALNRANKS is missing", "--nnodes"]),
        (without(HYDRA, "MASTER_ADDR"), None, ["MASTER_ADDR is missing", "-genv MASTER_ADDR"]),
        (SBATCH, 8, ["srun in front"]),
        (SLURM | {"SLURM_STEP_ID": "4294967290"}, 8, ["srun in front"]),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}, 8,
         ["SLURM_JOB_NUM_NODES=2", "srun in front"]),
        ({"NHOSTS": "2"}, 8, ["Grid Engine", "2 hosts", "mpiexec"]),
        ({"LSB_MCPU_HOSTS": "a 8 b 8"}, 8, ["LSF", "2 hosts", "mpiexec"]),
        ({"PBS_NODEFILE": "/nowhere"}, 8, ["PBS_NODEFILE=/nowhere can't be read"]),
        ({"FLUX_JOB_SIZE": "2", "FLUX_TASK_RANK": "0"}, 8, ["Flux", "--nnodes"]),
        ({"PMIX_RANK": "0"}, 8, ["PMIx", "--nnodes"]),
        (COMPOSER | {"WORLD_SIZE": "15"}, None, ["WORLD_SIZE=15", "8 ranks"]),
        (without(COMPOSER, "LOCAL_WORLD_SIZE"), None, ["LOCAL_WORLD_SIZE", "--nproc"]),
    ],
)  # fmt: skip
def test_a_slip_earns_one_line_that_names_the_variable(values, nproc, words):
    with pytest.raises(LaunchError) as caught:
        from_environment(values, nproc)
    line = str(caught.value)
    assert "\n" not in line
    assert all(word in line for word in words), line


def test_flags_count_alone():
    assert from_flags(2, 1, "a", None, 4) == Placement(2, 4, 1, "a", 29500, "flags")
    assert from_flags(1, None, None, None, 4) == Placement(1, 4, 0, None, None, "flags")
    for flags, words in (
        ((2, None, "a", None, 4), "needs --node-rank as well"),
        ((2, 0, None, None, None), "needs --master-addr and --nproc as well"),
        ((None, 0, None, None, 1), "--nnodes is missing"),
        ((2, 2, "a", 1, 1), "node 2 of 2"),
        ((2, 0, "a", 65536, 1), "--master-port: 65536"),
        ((0, None, None, None, 1), "--nnodes: 0"),
        ((1, None, None, None, 0), "--nproc: 0"),
    ):
        with pytest.raises(LaunchError, match=words):
            from_flags(*flags)


def test_a_node_list_keeps_zeros_order_and_endings():
    assert expand_nodelist("n[01-03,7]") == ["n01", "n02", "n03", "n7"]
    assert expand_nodelist("a,b[9-11]-x,c") == ["a", "b9-x", "b10-x", "b11-x", "c"]
    assert expand_nodelist("r[1-2]n[1-2]") == ["r1n1", "r1n2", "r2n1", "r2n2"]


_stems = st.from_regex(r"[a-z][a-z-]{0,5}", fullmatch=True)
_groups = st.tuples(_stems, st.integers(1, 4), st.integers(0, 997), st.integers(0, 30))


@given(st.lists(_groups, min_size=1, max_size=4))
def test_a_node_list_written_short_is_read_back_whole(groups):
    short = [f"{stem}[{low:0{width}d}-{low + more:0{width}d}]" for stem, width, low, more in groups]
    long = [
        f"{stem}{number:0{width}d}"
        for stem, width, low, more in groups
        for number in range(low, low + more + 1)
    ]
    assert expand_nodelist(",".join(short)) == long


@given(st.text("n[]0123-,", max_size=12))
def test_any_text_is_a_node_list_or_a_value_error(text):
    problem = ""
    try:
        assert all(expand_nodelist(text))
    except ValueError as error:
        problem = str(error)
    assert not problem or repr(text) in problem


@given(st.integers(1, 64), st.integers(2, 8), st.data())
def test_processes_of_torchrun_slurm_and_openmpi_become_every_rank_once(nnodes, local, data):
    ranks = [
        from_environment(
            data.draw(
                st.sampled_from([
                    TORCHRUN | {
                        "WORLD_SIZE": str(nnodes * local), "LOCAL_WORLD_SIZE": str(local),
                        "GROUP_RANK": str(node), "LOCAL_RANK": str(number),
                    },
                    SLURM | {
                        "SLURM_NNODES": str(nnodes), "SLURM_JOB_NODELIST": f"n[1-{nnodes}]",
                        "SLURM_STEP_TASKS_PER_NODE": f"{local}(x{nnodes})",
                        "SLURM_NODEID": str(node if nnodes > 1 else 0),
                        "SLURM_LOCALID": str(number),
                    },
                    MPI | {
                        "OMPI_COMM_WORLD_SIZE": str(nnodes * local),
                        "OMPI_COMM_WORLD_LOCAL_SIZE": str(local),
                        "OMPI_COMM_WORLD_RANK": str(node * local + number),
                        "OMPI_COMM_WORLD_LOCAL_RANK": str(number),
                    },
                ])
            )
        ).rank
        for node in range(nnodes)
        for number in range(local)
    ]  # fmt: skip
    assert ranks == list(range(nnodes * local))


_names = st.sampled_from([
    *TORCHRUN, *SLURM, *JOBSET, *KUBEFLOW, *MPI, *COMPOSER, *HYDRA, *PALS, "NHOSTS",
])  # fmt: skip
_values = st.sampled_from(["", "0", "1", "2", "8", "-1", "x", "n[1-2]", "2(x2)"])


@given(st.dictionaries(_names, _values))
def test_any_environment_is_a_consistent_place_or_one_line(values):
    problem = ""
    try:
        found = from_environment(values)
    except LaunchError as error:
        problem = str(error)
    assert "\n" not in problem
    if problem:
        return
    assert 0 <= found.node_rank < found.nnodes
    if found.nnodes > 1:
        assert found.nproc
        assert found.master_addr
        assert found.master_port
        assert found.world_size == found.nnodes * found.nproc


RANK_OF_TWO = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("values", "parents", "words"),
    [
        ({}, {}, None),
        (RANK_OF_TWO | {"NODE_RANK": "0"}, {}, None),
        (RANK_OF_TWO | SLURM | {"WORLD_SIZE": "8"}, {}, None),
        (SBATCH | {"SLURM_NNODES": "1"}, {}, None),
        (SLURM | {"SLURM_STEP_NUM_NODES": "1"}, {}, None),
        (SLURM | {"AHPA_LAUNCHED": "1"}, {}, None),
        ({"JOB_COMPLETION_INDEX": "3"}, {}, None),  # runs of their own, numbered
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}, {}, None),
        (RANK_OF_TWO, {"RANK": "0", "WORLD_SIZE": "1"}, None),
        (PODS, {}, ["RANK and WORLD_SIZE", "ahpa-scale launch"]),
        (PODS | RANK_OF_TWO, PODS | {"WORLD_SIZE": "2"}, ["RANK and WORLD_SIZE", "launch"]),
        (HYDRA, {}, ["2 nodes", "alone", "ahpa-scale launch"]),
        (without(HYDRA, "MPI_LOCALNRANKS"), {}, ["MPI_LOCALNRANKS", "ahpa-scale launch"]),
        (SBATCH, {}, ["srun in front", "ahpa-scale launch"]),
        (SBATCH | RANK_OF_TWO, {}, ["srun in front"]),
        (SLURM_TASKS | {"SLURM_STEP_NUM_NODES": "1"}, {}, ["8 processes", "alone"]),
        (SLURM | RANK_OF_TWO, {}, ["4 nodes", "alone"]),
        (KUBERNETES, {}, ["Kubernetes", "ahpa-scale launch"]),
        (KUBEFLOW | RANK_OF_TWO, {}, ["2 nodes"]),
        ({"NODE_RANK": "1", "WORLD_SIZE": "2"}, {}, ["LOCAL_WORLD_SIZE is missing"]),
    ],
)  # fmt: skip
def test_no_process_trains_alone_by_mistake(values, parents, words):
    if words is None:
        check_not_alone(values, parents)
        return
    with pytest.raises(LaunchError) as caught:
        check_not_alone(values, parents)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("command", "values"),
    [
        (["python", "train.py"], PODS),
        (["composer", "-n", "2", "train.py"], PODS | {"WORLD_SIZE": "2", "RANK": "0"}),
    ],
)
def test_train_refuses_it_before_anything_starts(command, values):
    words = [BIN / command[0], *command[1:], "yamls/demo-ahpa.yaml"]
    done = run(*words, environment=values, cold=True)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "ahpa-scale launch" in line


def test_reading_an_environment_needs_nothing_heavy():
    code = (
        "import sys; from ahpa_scale.launch.environment import from_environment;"
        "print([m for m in ('torch', 'composer', 'pydantic', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
