# SPDX-License-Identifier: Apache-2.0
"""What a run says: plain text, or one JSON object a line with rank and node."""

from __future__ import annotations

import ast
import io
import json
import os
import select
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from job import BIN, CLI, ROOT, run
from test_two_hosts import arguments
from toy_trainer import toy_trainer

import ahpa_scale
from ahpa_scale import console
from ahpa_scale.callbacks import TrainingBar
from ahpa_scale.run.serve import set_up_console

#: Everything that a process can say, without torch.
SPEAKER = """
import logging, os, signal, sys, threading, time, warnings
from ahpa_scale import console
from ahpa_scale.preemption import listening

console.set_up(sys.argv[1], rank=3, node=1)
console.say("batch 7/9", fields={"batch": 7, "loss": float("nan"), "of": None})
console.say("done: all", stream=sys.stdout)
console.shout("error: stuck", level=logging.ERROR, fields={"batch": 7})
logging.getLogger("elsewhere").warning("a %s\\nof two lines", "word")
logging.getLogger("elsewhere").info("not said")
logging.getLogger("ahpa_scale.data").info("ours", extra={"batch": 8})
warnings.warn("careful")
with listening() as requests:
    os.kill(os.getpid(), signal.SIGTERM)
    while requests.leave is None:
        time.sleep(0.01)
thread = threading.Thread(target=lambda: [][1])
thread.start()
thread.join()
raise ValueError("no more\\nof this")
"""
STUCK = """
import sys
from ahpa_scale import console
from ahpa_scale.watch.messages import Verdict
from ahpa_scale.watch.pulse import Pulse
from ahpa_scale.watch.place import Place
from ahpa_scale.watch.station import Station

class Alone(Station):
    def step(self):
        return False

console.set_up(sys.argv[1], rank=0, node=0)
pulse = Pulse()
pulse.mark("before_forward", 12)
alone = Alone(Place(0, 2, 1, 0, "127.0.0.1", 1, 1), bytes(32), pulse, 4)
alone.leave(Verdict("rank 0 is stuck", ranks=(0,), kind="stuck"))
"""


def test_a_rank_that_has_a_verdict_ends_where_the_console_has_gone_or_takes_no_more():
    for full in (False, True):
        reader, writer = os.pipe()
        if full:
            os.set_blocking(writer, False)
            while select.select([], [writer], [], 0)[1]:
                os.write(writer, bytes(4096))
            os.set_blocking(writer, True)
        else:
            os.close(reader)
        words = [sys.executable, "-c", STUCK, "text"]
        done = subprocess.run(words, cwd=ROOT, stderr=writer, timeout=300, check=False)
        assert done.returncode == 75


def objects(text: str) -> list[dict[str, Any]]:
    """The lines, each strict JSON with what every line has."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    found = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    for one in found:
        assert {"time", "level", "logger", "message", "rank", "node"} <= one.keys(), one
        at = datetime.fromisoformat(one["time"])
        assert at.utcoffset() == timedelta(0)
        assert abs(datetime.now(timezone.utc) - at) < timedelta(minutes=30)
    return found


def speak(script: str, form: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-c", script, form)


def test_whatever_a_process_says_is_json():
    done = speak(SPEAKER, "json")
    assert done.stdout == ""
    said = objects(done.stderr)
    assert {(one["rank"], one["node"]) for one in said} == {(3, 1)}
    assert [(one["level"], one["logger"], one["message"].splitlines()[0]) for one in said[:5]] == [
        ("INFO", "ahpa_scale", "batch 7/9"),
        ("INFO", "ahpa_scale", "done: all"),
        ("ERROR", "ahpa_scale", "error: stuck"),
        ("WARNING", "elsewhere", "a word"),
        ("INFO", "ahpa_scale.data", "ours"),
    ]
    assert [said[0][name] for name in ("batch", "loss", "of")] == [7, None, None]
    assert (said[2]["batch"], said[4]["batch"]) == (7, 8)
    warned, asked, thread, raised = said[5:]
    assert (warned["logger"], warned["level"]) == ("py.warnings", "WARNING")
    assert "careful" in warned["message"]
    assert asked["message"].startswith("SIGTERM: saving a checkpoint after this batch")
    assert "IndexError" in thread["message"]
    assert (raised["level"], raised["message"]) == ("CRITICAL", "ValueError: no more\nof this")
    assert raised["traceback"].startswith("Traceback (most recent call last):\n")
    assert done.returncode == 1


def test_text_is_what_it_always_was():
    done = speak(SPEAKER, "text")
    assert done.stdout == "done: all\n"
    lines = done.stderr.splitlines()
    assert lines[:4] == ["batch 7/9", "error: stuck", "a word", "of two lines"]
    assert lines[4].endswith("UserWarning: careful")
    assert lines[5].startswith("SIGTERM: saving a checkpoint")
    assert lines[-2:] == ["ValueError: no more", "of this"]
    assert "ours" not in done.stderr


def test_the_verdict_of_the_watch_and_the_stacks_are_one_object():
    done = speak(STUCK, "json")
    assert done.returncode == 75
    (said,) = objects(done.stderr)
    assert (said["level"], said["message"]) == ("ERROR", "error: rank 0 is stuck")
    assert (said["exit_code"], said["batch"]) == (75, 12)
    assert "most recent call first" in said["stacks"]


def test_the_verdict_of_the_watch_is_text_with_stacks_behind_it():
    done = speak(STUCK, "text")
    assert done.returncode == 75
    assert done.stderr.startswith("error: rank 0 is stuck\n")
    assert "most recent call first" in done.stderr


def test_with_json_a_terminal_gets_lines_and_no_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(console, "is_json", lambda: True)
    stream = Terminal()
    toy_trainer("3ba", loggers=TrainingBar(0, stream)).fit()
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3", "3/3"]
    assert "\r" not in stream.getvalue()


@pytest.fixture(scope="module")
def data(demo_data) -> Path:
    return demo_data(128)


def test_two_ranks_say_all_in_json(data, tmp_path):
    saved = tmp_path / "saved"
    chosen = {
        "max_duration": "6ba",
        "logging.format": "json",
        "checkpoint.save_folder": str(saved),
        "checkpoint.save_interval": "3ba",
    }
    # Composer's launcher shows the first rank and keeps what the others say in files.
    logs = [tmp_path / "rank1.out", tmp_path / "rank1.err"]
    words = ["-n", 2, "--stdout", logs[0], "--stderr", logs[1]]
    done = run(BIN / "composer", *words, *arguments(data, tmp_path, chosen), cold=True)
    assert done.returncode == 0, done.stderr
    first, second = objects(done.stderr), objects(logs[1].read_text())
    assert logs[0].read_text() == ""
    assert "done: " not in done.stdout
    for rank, said in enumerate((first, second)):
        assert {(one["rank"], one["node"]) for one in said} == {(rank, 0)}
        saves = [one for one in said if one["logger"] == "ahpa_scale.checkpoint.saver"]
        assert [one["batch"] for one in saves] == [3, 6]
    engine, progress, end = (
        next(one for one in first if one["message"].startswith(word))
        for word in ("engine ddp", "batch 6/6", "done: ")
    )
    assert engine["engine"] == "ddp"
    assert engine["bytes"].keys() == {"weights", "gradients", "optimizer", "average"}
    assert (progress["batch"], progress["of"]) == (6, 6)
    assert progress["loss"] > 0
    assert progress["images_per_second"] > 0
    assert end["batch"] == 6
    assert str(saved) in end["message"]


def test_a_mistake_is_json_once_the_configuration_is_read_and_text_before(tmp_path):
    for override, form in (("optimizer.lrr=1", "text"), ("data.local=/nowhere", "json")):
        name, _, value = override.partition("=")
        words = arguments(tmp_path, tmp_path, {"logging.format": "json", name: value})
        done = run(sys.executable, *words)
        assert done.returncode == 2
        if form == "text":
            assert done.stderr.startswith("error: command line: optimizer.lrr: ")
            continue
        (said,) = objects(done.stderr)
        assert said["message"].startswith("error: command line: data.local: ")
        assert (said["level"], said["exit_code"], said["rank"]) == ("ERROR", 2, 0)


def test_the_launcher_says_its_lines_as_the_run_does(tmp_path):
    """Two nodes of which the first never comes."""
    where = ["--nnodes", 2, "--node-rank", 1, "--master-addr", "no-such-host.invalid", "--nproc", 1]
    words = arguments(tmp_path, tmp_path, {"logging.format": "json"})
    done = run(CLI, "launch", *where, "--resolve-timeout", "0.5", *words)
    assert done.returncode == 2
    assert done.stdout == ""
    started, waiting, failed = objects(done.stderr)
    assert "--node_rank 1" in started["message"]
    assert "waiting for no-such-host.invalid" in waiting["message"]
    assert failed["message"].startswith("error: no-such-host.invalid, the host of node 0")
    assert {(one["rank"], one["node"]) for one in (started, waiting, failed)} == {(None, 1)}
    # What it would run is for a person, or a script.
    done = run(CLI, "launch", *where, "--dry-run", *words)
    assert "--node_rank 1" in done.stdout
    assert done.stderr == ""
    assert not (ROOT / "run").exists()


def test_nothing_else_in_the_package_prints():
    for path in Path(ahpa_scale.__file__).parent.rglob("*.py"):
        calls = (
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        )
        names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
        assert "print" not in names or path.name == "console.py", path


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, (0, 0)),
        ({"RANK": "9", "LOCAL_WORLD_SIZE": "8", "NODE_RANK": "1"}, (9, 1)),
        # torchrun without ahpa-scale launch
        ({"RANK": "17", "LOCAL_WORLD_SIZE": "8"}, (17, 2)),
    ],
)
def test_rank_and_node_are_the_launchers(load, monkeypatch, environment, place):
    for name in ("RANK", "LOCAL_WORLD_SIZE", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    seen = []
    monkeypatch.setattr(console, "set_up", lambda form, **where: seen.append((form, where)))
    set_up_console(load("logging.format=json"))
    assert seen == [("json", {"rank": place[0], "node": place[1]})]
