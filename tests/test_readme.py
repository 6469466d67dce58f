# SPDX-License-Identifier: Apache-2.0
"""Every command of the README, the manual and the YAMLs' headers is one that this version
understands, and every link leads somewhere.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from ahpa_scale.cli import app
from ahpa_scale.config.load import load_config
from experiments.__main__ import _parser as studies_parser
from experiments.study import load_study
from experiments.transfer import _parser as transfer_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
#: The pages that people wrote, by their path.
MANUAL = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
    ]
}

PROGRAMS = ("make", "composer", "ahpa-scale", "python", "podman")


def commands(text: str) -> list[list[str]]:
    """Shell commands of fenced blocks and YAML headers, continued lines joined."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    fenced = "\n".join(content for language, content in blocks if not language)
    headers = "\n".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#   "))
    joined = (fenced + "\n" + headers).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in joined.splitlines() if line.strip()]
    return [words for words in lines if words and words[0] in PROGRAMS]


SHIPPED = {path.name: path.read_text() for path in (ROOT / "yamls").glob("*.yaml")}
STUDIES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "experiments/README.md", *(ROOT / "experiments/studies").glob("*.yaml")]
}
COMMANDS = [
    pytest.param(words, id=f"{name}: {' '.join(words)[:60]}")
    for name, text in {**MANUAL, **SHIPPED, **STUDIES}.items()
    for words in commands(text)
]


def test_the_readme_has_its_commands():
    assert {words[0] for words in commands("".join(MANUAL.values()))} == set(PROGRAMS)
    assert len(commands(README)) > 5


@pytest.mark.parametrize("words", COMMANDS)
def test_the_command_is_understood(words: list[str], monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    if words[0] == "podman":
        words = words[words.index("ahpa-scale") :]
    if "ahpa_scale" in words:  # composer -n 8 -m ahpa_scale sample ...
        words = ["ahpa-scale", *words[words.index("ahpa_scale") + 1 :]]
    program, *rest = words
    if rest[:1] == ["launch"]:
        load_config(rest[rest.index("train.py") + 1 :])
    if program == "make":
        done = subprocess.run(["make", "-n", *rest], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    elif program == "composer":
        load_config(rest[rest.index("train.py") + 1 :])
    elif program == "python" and rest[0] == "-m":
        given = studies_parser().parse_args(rest[2:])
        for path in (given.study,) if given.command == "run" else ():
            assert load_study(path).cells(given.only)
    elif program == "python":
        assert rest[0] == "experiments/transfer.py"
        transfer_parser().parse_args(rest[1:])
    else:
        command = typer.main.get_command(app)
        while hasattr(command, "get_command"):  # also of the commands below `checkpoints`
            context = command.make_context(program, rest, resilient_parsing=True)
            program, *rest = rest
            command = command.get_command(context, program)
            assert command is not None, program
        command.make_context(program, rest)


@pytest.mark.parametrize("name", MANUAL)
def test_linked_files_exist(name: str):
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", MANUAL[name]):
        assert ((ROOT / name).parent / target).exists(), target


def test_the_readme_leads_to_every_page():
    assert len(README.splitlines()) <= 200
    for name in MANUAL:
        assert name == "README.md" or f"]({name})" in README


def test_every_yaml_is_in_the_table():
    for name in SHIPPED:
        assert f"yamls/{name}" in README
