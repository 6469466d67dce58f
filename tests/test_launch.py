# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale launch` as a scheduler's container would start it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from job import BIN, CLI, ROOT, outside, run
from test_launch_environment import COMPOSER, KUBEFLOW, MPI_RANKS, SLURM, TORCHRUN
from test_two_hosts import arguments, rows

from ahpa_scale.launch.command import LAUNCHERS_OWN

YAML = "yamls/demo-ahpa.yaml"
PRINTER = "import os, sys; print(sys.argv[1:], *(f'{n}={os.environ.get(n)}' for n in %r))"


def launch(
    *words: str, environment: Mapping[str, str], cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Runs it with these variables of a scheduler and no others."""
    plain = {n: v for n, v in os.environ.items() if n not in LAUNCHERS_OWN}
    return subprocess.run(
        [CLI, "launch", *words],
        cwd=cwd,
        env={**plain, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "words", "told"),
    [
        ({}, [], "one node: no scheduler's variables are set: composer train.py {yaml}"),
        ({}, ["--nproc", "2"], "one node: no scheduler's variables are set: composer --nproc 2 "
         "train.py {yaml}"),
        (KUBEFLOW, [], "Kubeflow: composer --nproc 8 --world_size 16 --node_rank 1 --master_addr "
         "train-node-0-0.train --master_port 29500 train.py {yaml}"),
        (SLURM, ["-n", "4"], "Slurm: composer --nproc 4 --world_size 16 --node_rank 2 "
         "--master_addr n01 --master_port 24567 train.py {yaml}"),
        (COMPOSER, ["--nnodes", "2", "--node-rank", "0", "--master-addr", "b", "--nproc", "2"],
         "flags: composer --nproc 2 --world_size 4 --node_rank 0 --master_addr b --master_port "
         "29500 train.py {yaml}"),
        (MPI_RANKS, [], "OpenMPI: RANK=3 LOCAL_RANK=1 WORLD_SIZE=4 LOCAL_WORLD_SIZE=2 NODE_RANK=1 "
         "MASTER_ADDR=a MASTER_PORT=29500 {python} train.py {yaml}"),
    ],
)  # fmt: skip
def test_a_dry_run_prints_the_source_and_the_command(environment, words, told):
    done = launch("--dry-run", *words, "train.py", YAML, "seed=1", environment=environment)
    assert done.returncode == 0, done.stderr
    python = shlex.quote(str(BIN / "python"))
    line = done.stdout.strip().replace(f"{python} -m ahpa_scale.launch.launcher", "composer")
    assert line == told.format(yaml=f"{YAML} seed=1", python=python)


@pytest.mark.parametrize(
    ("words", "environment", "line"),
    [
        (["train.py", YAML, "model.dept=3"], KUBEFLOW, "model.dept: unknown key"),
        (["train.py", YAML, "global_train_batch_size=24"], KUBEFLOW, "24 can't be shared evenly by "
         "16 processes"),
        (["train.py"], KUBEFLOW, "name a YAML file"),
        (["trian.py", YAML], KUBEFLOW, "trian.py: no such script"),
        (["train.py", YAML], {"PET_NNODES": "2"}, "Kubeflow: PET_NODE_RANK is missing"),
        (["--nnodes", "2", "train.py", YAML], {}, "--nnodes 2 needs --node-rank"),
        (["--resolve-timeout", "2", "train.py", YAML], KUBEFLOW, "train-node-0-0.train, the host "
         "of node 0, has had no address for 2 s"),
    ],
)  # fmt: skip
def test_a_mistake_ends_it_before_anything_starts(words, environment, line):
    done = launch(*words, environment=environment)
    assert done.returncode == 2
    (said,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert line in said
    assert "Traceback" not in done.stderr


def test_hsdp_has_its_copy_per_node_before_anything_starts():
    """The check here must see the nodes that the ranks will see."""
    words = ["--dry-run", "train.py", YAML, "parallelism.engine=hsdp"]
    done = launch(*words, environment=KUBEFLOW)
    assert done.returncode == 0, done.stderr
    assert "--world_size 16" in done.stdout


def test_a_wait_for_the_first_host_is_said_and_bounded():
    done = launch("--resolve-timeout", "3", "train.py", YAML, environment=KUBEFLOW)
    assert "waiting for train-node-0-0.train" in done.stderr


def _script(folder: Path, text: str) -> Path:
    """A training script that needs no torch."""
    path = folder / "script.py"
    path.write_text(text)
    return path


def test_the_ranks_get_what_the_scheduler_said(tmp_path):
    """Variables that contradict the flags are gone: Composer's launcher would read them."""
    script = _script(tmp_path, PRINTER % (("RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_PORT"),))
    address = {"PET_MASTER_ADDR": "127.0.0.1", "PET_NPROC_PER_NODE": "1", "WORLD_SIZE": "7"}
    done = launch(str(script), YAML, "seed=1", environment=KUBEFLOW | address)
    assert done.returncode == 0, done.stderr
    assert f"['{YAML}', 'seed=1'] RANK=1 WORLD_SIZE=2 NODE_RANK=1 MASTER_PORT=29500" in done.stdout


def test_a_process_that_torchrun_started_becomes_its_rank(tmp_path):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK")
    script = _script(tmp_path, PRINTER % (names,))
    done = launch(str(script), YAML, environment=TORCHRUN | {"MASTER_ADDR": "127.0.0.1"})
    assert done.returncode == 0, done.stderr
    ranks = "RANK=13 LOCAL_RANK=5 WORLD_SIZE=16 LOCAL_WORLD_SIZE=8 NODE_RANK=1 GROUP_RANK=1"
    assert ranks in done.stdout


def test_ranks_that_torchrun_started_train(demo_data, tmp_path):
    words = arguments(demo_data(64), tmp_path, {"max_duration": "3ba"})
    done = run(
        BIN / "torchrun", "--no-python", "--standalone", "--nproc-per-node", 2, CLI, "launch",
        *words,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path)) == 3


def test_signals_and_exit_codes_pass_through(tmp_path):
    script = _script(
        tmp_path,
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n"
        "print('here', flush=True)\n"
        "time.sleep(900)\n",
    )
    process = subprocess.Popen(
        [CLI, "launch", "--nproc", "1", script, YAML], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        while "here" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    assert process.wait(300) == 9


@pytest.mark.parametrize(("ends", "code"), [("sys.exit(70)", 70), ("os.kill(os.getpid(), 9)", 137)])
def test_the_job_ends_with_the_code_of_the_rank_that_failed(ends: str, code: int, tmp_path):
    """And not with that of a rank before it that was ended for it."""
    script = _script(
        tmp_path,
        "import os, sys, time\n"
        "from ahpa_scale.preemption import listening\n"
        "with listening():\n"
        "    if os.environ['RANK'] == '1':\n"
        f"        {ends}\n"
        "    time.sleep(900)\n",
    )
    done = run(CLI, "launch", "--nproc", "2", script, YAML, cold=True)
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize(
    ("ended_first", "composers", "code"),
    [
        ([], 0, 0),
        ([], 2, 2),
        ([75, 1], 75, 1),
        ([79], 79, 79),
        ([80, 75, 70], 80, 70),
        ([-15], 1, 143),
    ],
)
def test_a_cause_comes_before_its_effects(ended_first, composers, code):
    from ahpa_scale.launch.launcher import exit_code

    assert exit_code(ended_first, composers) == code


def test_it_starts_without_anything_heavy():
    code = (
        "import sys; from ahpa_scale.launch import command, environment, flags;"
        "print([m for m in ('torch', 'composer', 'diffusers') if m in sys.modules])"
    )
    done = subprocess.run([BIN / "python", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_console_that_lacks_letters_gets_escapes(tmp_path):
    words = ["--dry-run", "train.py", YAML, f"output_dir={tmp_path}/\u732b"]
    done = launch(*words, environment={"PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0, done.stderr
    assert f"output_dir={tmp_path}/\\u732b" in done.stdout


LATE = """
import os, signal, sys
from ahpa_scale.launch import launcher as ours
from composer.cli import launcher as composers

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM):
        kill(pid, number)

late = Late()
composers.main = lambda: 79
sys.exit(ours.main())
"""


def test_a_signal_to_a_launcher_that_is_done_does_not_change_its_code():
    done = subprocess.run([sys.executable, "-c", LATE], env=outside(), timeout=300, check=False)
    assert done.returncode == 79


@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 0), (signal.SIGTERM, 79)])
def test_a_signal_while_python_starts_is_heard(number, code, tmp_path):
    """Sent from the line that tells the command until the rank runs or the launcher has ended."""
    script = _script(tmp_path, "print('here', flush=True)\n")
    process = subprocess.Popen(
        [CLI, "launch", "--nproc", "1", script, YAML],
        cwd=ROOT,
        env=outside(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        assert "one node" in process.stdout.readline()
        seen = threading.Event()
        reader = threading.Thread(target=lambda: (process.stdout.read(), seen.set()))
        reader.start()
        while not seen.wait(0.02):
            process.send_signal(number)
        reader.join()
    assert process.wait(300) == code
