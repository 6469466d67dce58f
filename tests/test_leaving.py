# SPDX-License-Identifier: Apache-2.0
"""Commands that are asked to leave: one line, and nothing half-written."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMANDS = {
    "prepare": "prepare demo --size 32 --batch-size 4 --num-samples 1000000 --shard-size 50kb",
    "train-vae": "train-vae demo --widths 8,8 --batch-size 2 --steps 100000",
}
#: Its progress: something has been done.
STARTED = re.compile(r"[1-9]\d*/\d+")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 79), (signal.SIGINT, 130)])
def test_it_ends_with_a_line_and_leaves_no_folder(tmp_path: Path, name: str, number, code):
    words = [*COMMANDS[name].split(), "--out", tmp_path / "room" / "out"]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "ahpa_scale.cli", *map(str, words)],
            stderr=file,
            # A shell's background would have it ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    try:
        deadline = time.monotonic() + 600
        while not STARTED.search(log.read_text()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        process.wait(timeout=600)
    finally:
        process.kill()
    told = log.read_text()
    assert process.returncode == code, told
    assert "Traceback" not in told
    if number == signal.SIGTERM:
        assert "SIGTERM: leaving; run the same command again" in told
    assert not (tmp_path / "room").exists() or os.listdir(tmp_path / "room") == []
