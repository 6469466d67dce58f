# SPDX-License-Identifier: Apache-2.0
"""The checkpoint section: what is refused, and that every key reaches what saves the run."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack

import pytest

from ahpa_scale.checkpoint.retention import Retention
from ahpa_scale.preemption import listening
from ahpa_scale.run import main
from ahpa_scale.run.checkpoints import Start, build_saver

SAVED = "checkpoint.save_folder=saved"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([SAVED, "checkpoint.keep=0"], "checkpoint.keep: 0"),
        ([SAVED, "checkpoint.keep_every=8ba"], "checkpoint.keep=null keeps all"),
        ([SAVED, "checkpoint.keep=2", "checkpoint.keep_every=1ep"], "needs one of the units ba"),
        ([SAVED, "checkpoint.grace=2"], "checkpoint.grace: '2' is not a stretch of time"),
    ],
)
def test_what_would_do_nothing_is_refused(overrides, words, complaint):
    assert words in complaint(*overrides)


def test_what_is_kept_reaches_the_saver(load):
    config = load(SAVED, "checkpoint.keep=2", "checkpoint.keep_every=8ba")
    (saver,) = build_saver(config, Start(), {"wandb": "abc"}, None, None)
    assert saver.folder == "saved"
    assert saver.retention == Retention(keep=2, every=8)
    assert saver.description.run_name == config.run_name
    assert saver.description.loggers == {"wandb": "abc"}
    assert build_saver(load("checkpoint.save_folder=null"), Start(), {}, None, None) == []


def test_the_grace_time_reaches_the_listener(load, monkeypatch):
    left = []
    monkeypatch.setattr("ahpa_scale.preemption._leave_at_once", left.append)
    config = load("checkpoint.save_folder=null", "checkpoint.grace=1s")
    with listening() as requests, ExitStack() as stack:
        main.listen_for(config, requests, stack)
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + 300
        while not left and time.monotonic() < deadline:
            time.sleep(0.05)
    assert requests.leave == "SIGUSR1"
    assert left[0] == "the grace time of 1 s has passed"
