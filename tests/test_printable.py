# SPDX-License-Identifier: Apache-2.0
"""What is said moves no cursor and tells no password; YAML that grows without bound is refused."""

from __future__ import annotations

import sys
import time

import pytest
from job import run

from ahpa_scale import console
from ahpa_scale.config.errors import ConfigError
from ahpa_scale.config.load import load_yaml

RUN = "run_name: r\nmax_duration: 1ba\ndata: {local: d}\nvae: {path: demo}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\x1b]0;owned\x07\x1b[2J", "\\x1b]0;owned\\x07\\x1b[2J"),
        ("a\rb\x00c\x9b31m", "a\\x0db\\x00c\\x9b31m"),
        ("photo\u202egpj.exe\u2066", "photo\\u202egpj.exe\\u2066"),
        ("half \ud800", "half \\ud800"),
        ("tab\tand Grüße, 画, 👩\u200d🎨", "tab\tand Grüße, 画, 👩\u200d🎨"),
        ("at s3://user:p%40ss@host/b?x=1", "at s3://user:***@host/b?x=1"),
        ("http://:word@host and ftp://me@host", "http://:***@host and ftp://me@host"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text, said, capfd):
    console.say(text)
    console.tell(text)
    assert capfd.readouterr() == (f"{said}\n", f"{said}\n")
    console.shout(text)
    assert capfd.readouterr().err == f"{said}\n"


def test_names_in_a_mistake_are_shown_and_not_sent(tmp_path):
    (tmp_path / "r.yaml").write_text(RUN + 'alignment: {kind: "\\e[31mahpa"}\n')
    done = run(sys.executable, "train.py", tmp_path / "r.yaml")
    assert done.returncode == 2
    assert "\\x1b[31mahpa" in done.stderr
    assert "\x1b" not in done.stderr


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return RUN + "\n".join(lines)


def chain(levels: int) -> str:
    lines = ["a0: xxxxxxxx", *(f"a{i}: ${{a{i - 1}}}${{a{i - 1}}}" for i in range(1, levels))]
    return RUN + "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (bomb(12), "aliases make more than"),
        (RUN + "b: &b {<<: [{x: 1}], c: *b}", "refers to itself"),
        (RUN + "x: " + "[" * 5000 + "]" * 5000, "nested"),
        (RUN + "x: " + "{a: " * 60 + "1" + "}" * 60, "nested deeper than"),
        (RUN + "x: !!python/object/apply:os.system [true]", "tag"),
        (RUN + "x: !!python/name:os.system", "tag"),
        (RUN + "x: !!binary aGk=", "tag"),
        (RUN + "x: !mine 1", "tag"),
        (RUN + "run_name: again", "written twice, first in line 1"),
        (RUN + "x: " + "y" * (1 << 21), "more than 1048576 bytes"),
        (chain(60), "grows too large as it is resolved"),
        (RUN + "output_dir: ${output_dir}", "refers to itself"),
        (RUN + "seed: ${a}\na: ${b}\nb: ${seed}", "refers to itself"),
        (RUN + "model: {depth: '${model}'}", "part of"),
        (RUN + "seed: ${x.${y}}", "makes up the name"),
        (RUN + "seed: \x07", "broken YAML"),
        (RUN + "? [a, b]\n: 1", "unhashable"),
    ],
)
def test_yaml_that_grows_without_bound_is_one_line(text, problem, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    begun = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_yaml(tmp_path / "r.yaml")
    assert problem in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert time.process_time() - begun < 20


def test_aliases_and_interpolations_within_reason_are_read(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "run_name: &name r\nmax_duration: 1ba\nvae: {path: demo}\nmodel: {in_channels: 8}\n"
        "data: {local: 'd/${run_name}/${vae.path}'}\noutput_dir: ${.data.local}/model/data\n"
        "logging: {wandb: *name}\n"
    )
    config = load_yaml(tmp_path / "r.yaml")
    assert config.data.local == "d/r/demo"
    assert config.output_dir == "d/r/demo/model/data"
    assert config.logging.wandb == "r"
