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
from PIL import Image

COMMANDS = {
    "prepare": "prepare demo --size 32 --batch-size 4 --num-samples 1000000 --shard-size 50kb",
    "train-vae": "train-vae pictures --size 16 --widths 8,8 --batch-size 2 --steps 1000000",
}
#: Its progress: something has been done.
STARTED = re.compile(r"[1-9]\d*/\d+")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 79), (signal.SIGINT, 130)])
def test_it_ends_with_a_line_and_leaves_nothing_to_read(tmp_path: Path, name: str, number, code):
    words = [*COMMANDS[name].split(), "--out", tmp_path / "room" / "out"]
    log, pictures = tmp_path / "log", tmp_path / "pictures" / "class"
    pictures.mkdir(parents=True)
    for shade in range(20):
        Image.new("RGB", (16, 16), (shade, 0, 0)).save(pictures / f"{shade}.png")
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "ahpa_scale.cli", *map(str, words)],
            stderr=file,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
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
    room = tmp_path / "room"
    # What is done of a preparation is hidden, for the same command to go on with.
    kept = {".out.partial-kept"} if name == "prepare" else set()
    assert not room.exists() or set(os.listdir(room)) <= kept
