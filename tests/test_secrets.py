# SPDX-License-Identifier: Apache-2.0
"""What the environment tells a run is kept nowhere: not in its files, nor in what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from job import run

from ahpa_scale.config.errors import ConfigError, one_line
from ahpa_scale.config.load import load_mapping, load_yaml, to_yaml
from ahpa_scale.config.written import as_written
from ahpa_scale.launch.command import command_for
from ahpa_scale.launch.placement import Placement
from ahpa_scale.run.trained import find_run

RUN = """run_name: r
max_duration: 1ba
vae: {path: demo}
model: {in_channels: 8, input_size: 8, num_classes: 8}
data:
  local: ${oc.env:AHPA_TEST_PLACE}/set
  num_workers: '${oc.decode:${oc.env:AHPA_TEST_COUNT}}'
checkpoint: {save_folder: 's3://user:word@host/${oc.env:AHPA_TEST_PLACE}'}
output_dir: ${data.local}/out
"""


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("AHPA_TEST_PLACE", "hunter2hunter2")
    monkeypatch.setenv("AHPA_TEST_COUNT", "3")
    (tmp_path / "r.yaml").write_text(RUN)
    return tmp_path / "r.yaml"


def test_what_is_kept_has_interpolations_as_written_and_no_password(file, tmp_path):
    config = load_yaml(file)
    assert config.output_dir == "hunter2hunter2/set/out"
    kept = to_yaml(config)
    assert "hunter2" not in kept
    assert "word@" not in kept
    assert "${oc.env:AHPA_TEST_PLACE}/set" in kept
    assert "hunter2" not in str(as_written(config))
    (tmp_path / "config.yaml").write_text(kept)
    again = load_yaml(tmp_path / "config.yaml")
    assert again.output_dir == config.output_dir
    assert again.data == config.data
    assert to_yaml(again) == kept


def test_elsewhere_a_variable_is_needed_for_the_keys_in_use_only(file, tmp_path, monkeypatch):
    kept = as_written(load_yaml(file))
    monkeypatch.delenv("AHPA_TEST_PLACE")
    monkeypatch.delenv("AHPA_TEST_COUNT")
    with pytest.raises(ConfigError, match="AHPA_TEST_PLACE"):
        load_yaml(file)
    for config in (load_yaml(file, elsewhere=True), load_mapping(kept)):
        assert config.model.in_channels == 8
        assert config.data.local == "${oc.env:AHPA_TEST_PLACE}/set"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/w.safetensors").write_bytes(b"")
    (tmp_path / "run/config.yaml").write_text(RUN)
    assert find_run(str(tmp_path / "run/w.safetensors"))[0].model.in_channels == 8
    file.write_text(
        RUN.replace("in_channels: 8", "in_channels: '${oc.decode:${oc.env:AHPA_TEST_COUNT}}'")
    )
    with pytest.raises(ConfigError, match=r"model\.in_channels: .*'AHPA_TEST_COUNT' is not set"):
        load_yaml(file, elsewhere=True)


def test_a_mistake_shows_where_a_value_comes_from_and_not_the_value(file):
    done = run(
        sys.executable, "train.py", file, "checkpoint.save_folder=null", "data.num_workers=0"
    )
    assert done.returncode == 2
    assert "${oc.env:AHPA_TEST_PLACE}" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout


SPEAKER = """
import logging, sys, threading, warnings
from ahpa_scale import console
from ahpa_scale.printable import conceal
from ahpa_scale.streams import make_lasting

make_lasting()
console.set_up(sys.argv[1], rank=0, node=0)
conceal("hunter2hunter2", "${oc.env:TOKEN}")
handler = logging.FileHandler(sys.argv[2])
logging.getLogger("library").addHandler(handler)
secret = "https://me:correct-horse@host/x?key=hunter2hunter2"
seen = []
write = sys.stdout.write
sys.stdout.write = lambda text: (seen.append(text), write(text))[1]
try:
    raise OSError(secret)
except OSError:
    logging.getLogger("library").exception("of %s", secret)
warnings.warn(secret)
print("plain", secret)
thread = threading.Thread(target=lambda: {}[secret])
thread.start()
thread.join()
assert "correct-horse" not in "".join(seen) and "plain" in seen
raise RuntimeError(secret)
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_whatever_a_library_says_is_masked(form, tmp_path):
    done = run(sys.executable, "-c", SPEAKER, form, tmp_path / "log")
    told, kept = done.stdout + done.stderr, (tmp_path / "log").read_text()
    assert done.returncode == 1
    assert "RuntimeError" in told
    assert "AssertionError" not in told
    for text in (told, kept):
        assert "https://me:***@host/x?key=${oc.env:TOKEN}" in text
        assert "correct-horse" not in text
        assert "hunter2" not in text
    assert kept.count("***") == 2
    assert told.count("***") >= 4
    assert "OSError: https://me:***@host" in kept


def test_a_line_that_is_cut_holds_no_half_of_a_password():
    for most in range(1450, 1500):
        line = one_line("x" * most + " https://me:correct-horse-battery@host")
        assert "correct" not in line


def test_a_launcher_hands_passwords_on_beside_the_arguments():
    place = Placement(1, 2, 0, None, None, "one node")
    words = ["r.yaml", "data.remote=s3://me:correct-horse@b/x", "seed=1"]
    words += ["checkpoint.save_folder=s3://me:${oc.env:WORD}@b/y", "output_dir=/a:b@c"]
    command = command_for(place, "train.py", words)
    hidden = "data.remote=s3://me:${oc.env:AHPA_PASSWORD_1}@b/x"
    assert command.words[-5:] == ("r.yaml", hidden, *words[2:])
    assert command.passwords == {"AHPA_PASSWORD_1": "correct-horse"}
    assert "correct-horse" not in str(command)
