# SPDX-License-Identifier: Apache-2.0
"""A rank's place from the launcher's variables, and variables that no launcher sets so."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from job import ROOT

from ahpa_scale.errors import UserError
from ahpa_scale.watch import place_from

RANK = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "host-a"}


def test_a_rank_of_two_nodes():
    place = place_from({**RANK, "MASTER_PORT": "1234"}, None)
    assert place is not None
    assert (place.rank, place.node, place.address, place.port) == (3, 1, "host-a", 1234)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("RANK", "x", "RANK is 'x', and a launcher sets it to a whole number"),
        ("WORLD_SIZE", "-4", "WORLD_SIZE is '-4'"),
        ("LOCAL_WORLD_SIZE", "0", "LOCAL_WORLD_SIZE is '0'"),
        ("MASTER_PORT", "tcp://10.0.0.1:80", "MASTER_PORT is 'tcp"),
        ("NODE_RANK", "1.0", "NODE_RANK is '1.0'"),
        ("MASTER_ADDR", "", "MASTER_ADDR is not set"),
    ],
)
def test_what_no_launcher_sets_is_one_line(name: str, text: str, message: str):
    with pytest.raises(UserError, match=message):
        place_from({**RANK, name: text}, None)


def test_a_rank_says_so_and_ends_with_2(tmp_path):
    words = [sys.executable, "train.py", "yamls/demo-ahpa.yaml", f"output_dir={tmp_path}/run"]
    given = {**RANK, "LOCAL_RANK": "1", "NODE_RANK": "1", "RANK": "x"}
    environment = {**os.environ, **given, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*words, "data.local=runs/none", f"checkpoint.save_folder={tmp_path}/saved"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "RANK is 'x'" in done.stderr
