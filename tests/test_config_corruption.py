# SPDX-License-Identifier: Apache-2.0
"""Every shipped YAML with one thing broken is refused: exit code 2, one line, the key named."""

from __future__ import annotations

import random
import string
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from job import outside
from omegaconf import OmegaConf

from ahpa_scale.config.checks.static import check_static
from ahpa_scale.config.load import exit_on_user_error, load_config, to_yaml
from ahpa_scale.config.schema import Config

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted(ROOT.glob("yamls/*.yaml"))
NUM_CORRUPTIONS = 240

SCHEMA = Config.model_json_schema()
WHOLE_TIMES = ("max_duration", "ema.decay")
TIMES = (
    *WHOLE_TIMES,
    "alignment.start",
    "alignment.until",
    "alignment.ramp",
    "optimizer.warmup",
    "checkpoint.save_interval",
    "logging.interval",
    "logging.router_interval",
    "sampling.interval",
)
DURATIONS = ("guard.time_limit",)
WRONG = {
    "string": "x",
    "integer": 7,
    "number": 2.5,
    "boolean": True,
    "array": [[1]],
    "object": {"x": {"y": 1}},
}


class Leaf(NamedTuple):
    """A key of the schema: where it is, and the schemas that a value of it may follow."""

    key: str
    options: list[dict[str, Any]]

    @property
    def types(self) -> set[str]:
        return {option.get("type", "") for option in self.options}

    def find(self, name: str) -> Any:
        return next((option[name] for option in self.options if name in option), None)


def _resolved(node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = SCHEMA["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def _sections(node: dict[str, Any] = SCHEMA, key: str = "") -> Iterator[tuple[str, list[str]]]:
    """Dotted name of each section, the root's being empty, and its keys."""
    yield key, list(node["properties"])
    for name, child in node["properties"].items():
        child = _resolved(child)
        if "properties" in child:
            yield from _sections(child, f"{key}.{name}".lstrip("."))


def _leaves(node: dict[str, Any] = SCHEMA, key: str = "") -> Iterator[Leaf]:
    for name, child in node["properties"].items():
        place, child = f"{key}.{name}".lstrip("."), _resolved(child)
        if "properties" in child:
            yield from _leaves(child, place)
        else:
            yield Leaf(place, [_resolved(option) for option in child.get("anyOf", [child])])


SECTIONS = dict(_sections())
LEAVES = list(_leaves())


def _set(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *sections, name = key.split(".")
    node = content
    for section in sections:
        node = node.setdefault(section, {})
    node[name] = value
    return content


def _keys(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in content.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")


def _misspell(rng: random.Random, word: str, valid: list[str]) -> str:
    """Delete, insert, swap or replace one character; never a word that is valid itself."""
    while True:
        at, letter = rng.randrange(len(word)), rng.choice(string.ascii_lowercase)
        edits = (
            word[:at] + word[at + 1 :],
            word[:at] + letter + word[at:],
            word[:at] + word[at + 1 : at + 2] + word[at] + word[at + 2 :],
            word[:at] + letter + word[at + 1 :],
        )
        wrong = rng.choice(edits)
        if wrong and wrong not in valid:
            return wrong


# Each corruption takes a run's content and returns the broken text and the key to be named.
Broken = tuple[str, str]


def misspelt_key(rng: random.Random, content: dict[str, Any]) -> Broken:
    key = rng.choice(list(_keys(content)))
    *sections, name = key.split(".")
    wrong = _misspell(rng, name, SECTIONS[".".join(sections)])
    node = content
    for section in sections:
        node = node[section]
    node[wrong] = node.pop(name)
    return yaml.safe_dump(content), ".".join([*sections, wrong])


def extra_key(rng: random.Random, content: dict[str, Any]) -> Broken:
    section = rng.choice(list(SECTIONS))
    word = "".join(rng.choices(string.ascii_lowercase, k=9))
    assert word not in SECTIONS[section]
    key = f"{section}.{word}".lstrip(".")
    return yaml.safe_dump(_set(content, key, rng.choice([1, "x", None, True]))), key


def wrong_type(rng: random.Random, content: dict[str, Any]) -> Broken:
    leaf = rng.choice(LEAVES)
    types = leaf.types | ({"integer"} if "number" in leaf.types else set())
    if leaf.find("enum"):
        types.add("string")
    value = WRONG[rng.choice([name for name in WRONG if name not in types])]
    return yaml.safe_dump(_set(content, leaf.key, value)), leaf.key


def section_is_value(rng: random.Random, content: dict[str, Any]) -> Broken:
    key = rng.choice([name for name in SECTIONS if name])
    return yaml.safe_dump(_set(content, key, rng.choice([3, "x", [1], False]))), key


def out_of_range(rng: random.Random, content: dict[str, Any]) -> Broken:
    limits = {"minimum": -1, "exclusiveMinimum": 0, "maximum": 1, "exclusiveMaximum": 0}
    found = [
        (leaf.key, leaf.find(name) + step)
        for leaf in LEAVES
        for name, step in limits.items()
        if leaf.find(name) is not None
    ]
    key, value = rng.choice(found)
    return yaml.safe_dump(_set(content, key, value)), key


def not_finite(rng: random.Random, content: dict[str, Any]) -> Broken:
    leaf = rng.choice([leaf for leaf in LEAVES if "number" in leaf.types])
    value = float(rng.choice(["nan", "inf", "-inf"]))
    return yaml.safe_dump(_set(content, leaf.key, value)), leaf.key


def bad_unit(rng: random.Random, content: dict[str, Any]) -> Broken:
    key = rng.choice((*TIMES, *DURATIONS))
    wrong = ["100", "ba", "100bs", "1.5ba", "-3ba", "10 minutes", "1e4ba", "100tok", "2dur", ""]
    wrong += ["0.5dur"] if key in WHOLE_TIMES else []
    return yaml.safe_dump(_set(content, key, rng.choice(wrong))), key


def bad_choice(rng: random.Random, content: dict[str, Any]) -> Broken:
    leaf = rng.choice([leaf for leaf in LEAVES if leaf.find("enum")])
    valid = leaf.find("enum")
    wrong = _misspell(rng, rng.choice(valid), valid)
    return yaml.safe_dump(_set(content, leaf.key, wrong)), leaf.key


def bad_null(rng: random.Random, content: dict[str, Any]) -> Broken:
    keys = [leaf.key for leaf in LEAVES if "null" not in leaf.types]
    key = rng.choice([*keys, *(name for name in SECTIONS if name)])
    return yaml.safe_dump(_set(content, key, None)), key


def repeated_key(rng: random.Random, content: dict[str, Any]) -> Broken:
    lines = yaml.safe_dump(content, sort_keys=False).splitlines()
    keys = list(_keys(content))
    # Block style puts each key on a line of its own, in the order of the content.
    places = [i for i, line in enumerate(lines) if not line.lstrip().startswith("- ")]
    assert len(places) == len(keys)
    at, key = rng.choice(list(zip(places, keys, strict=True)))
    return "\n".join([*lines[:at], lines[at].partition(":")[0] + ": 1", *lines[at:]]), key


CORRUPTIONS = (
    misspelt_key,
    extra_key,
    wrong_type,
    section_is_value,
    out_of_range,
    not_finite,
    bad_unit,
    bad_choice,
    bad_null,
    repeated_key,
)


@cache
def _written_out(path: Path) -> str:
    return to_yaml(load_config([str(path)]))


def _corrupt(seed: int) -> tuple[str, str]:
    """One broken YAML, and the key that its line of complaint has to name."""
    rng = random.Random(seed)
    path = SHIPPED[seed % len(SHIPPED)]
    # As shipped, or with every key written out, so that each key of the schema has its turn.
    text = path.read_text() if rng.random() < 0.3 else _written_out(path)
    content = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    assert isinstance(content, dict)
    return CORRUPTIONS[seed // len(SHIPPED) % len(CORRUPTIONS)](rng, content)


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("seed", range(NUM_CORRUPTIONS))
def test_corrupt_yaml_is_refused_in_one_line(seed, tmp_path, capsys):
    text, key = _corrupt(seed)
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        check_static(load_config([str(path)]))
    assert stop.value.code == 2
    _assert_one_line(capsys.readouterr().err, key, path)


@pytest.mark.parametrize("seed", range(9))
def test_corrupt_override_is_refused_in_one_line(seed, capsys):
    rng = random.Random(seed)
    leaf = rng.choice([leaf for leaf in LEAVES if leaf.types <= {"integer", "number", "null"}])
    for item in (f"{leaf.key}=x{seed}", f"{leaf.key}y={seed}"):
        with pytest.raises(SystemExit) as stop, exit_on_user_error():
            check_static(load_config([str(SHIPPED[seed % len(SHIPPED)]), item]))
        assert stop.value.code == 2
        _assert_one_line(capsys.readouterr().err, item.partition("=")[0], "command line")


@pytest.mark.parametrize("kind", [misspelt_key, bad_unit, out_of_range, repeated_key])
def test_train_refuses_before_anything_starts(kind, tmp_path):
    content = yaml.safe_load(to_yaml(load_config([str(SHIPPED[0])])))
    text, key = kind(random.Random(kind.__name__), content)
    path = tmp_path / "run.yaml"
    path.write_text(text)
    # A thread count is all that the child gets told about this machine.
    environment = {**outside(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "train.py", str(path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    _assert_one_line(done.stderr, key, path)


def _assert_one_line(stderr: str, key: str, source: object) -> None:
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith(f"error: {source}"), lines[0]
    assert f": {key}: " in lines[0], (key, lines[0])
