# SPDX-License-Identifier: Apache-2.0
"""What an error recommends exists, and helps: keys, options, commands, targets and extras."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import typer
from job import project

import experiments.__main__ as studies
from ahpa_scale import cli
from ahpa_scale.config.errors import ConfigError
from ahpa_scale.config.explain import all_keys
from ahpa_scale.config.load import load_yaml
from ahpa_scale.data.vae_training import VAETraining
from ahpa_scale.errors import UserError
from ahpa_scale.models.dit_config import resolve_geometry

ROOT = Path(__file__).parents[1]
YAML = ROOT / "yamls" / "demo-ahpa.yaml"
KEYS = set(all_keys())
SECTIONS = {key for key in KEYS if any(other.startswith(f"{key}.") for other in KEYS)}
SAVED = ["checkpoint.save_folder=saved"]

#: Of other programs: Composer's launcher, srun, torchrun, mpirun.
#: Endings of files, whose names look like keys.
FILES = (".py", ".yaml", ".jsonl", ".png", ".pkl")
FOREIGN_OPTIONS = {
    *("--nproc", "--world_size", "--node_rank", "--master_addr", "--master_port", "--base_rank"),
    *("--env", "--ntasks-per-node", "--no-python", "--nproc-per-node", "--map-by", "--rank-by"),
    # nvidia-smi's, and a container engine's.
    *("--query-gpu", "--format", "--shm-size"),
    # Of SiT's sample.py.
    *("--ckpt", "--num-classes", "--path-type"),
}


def literals() -> Iterator[tuple[str, str]]:
    """Every text in the package's code but docstrings, with its place; a field's value is '...'."""
    for path in sorted((ROOT / "ahpa_scale").rglob("*.py")):
        tree = ast.parse(path.read_text())
        bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        inner = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for part in node.values
        }
        for node in ast.walk(tree):
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "..." for p in node.values)
                yield place, "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and id(node) not in bare | inner:
                yield place, str(node.value)


def options_of(app: typer.Typer) -> Iterator[str]:
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from options_of(group.typer_instance)
    click = typer.main.get_command(app)
    for command in getattr(click, "commands", {}).values():
        for one in getattr(command, "params", ()):
            yield from (*one.opts, *one.secondary_opts)


def commands_of(app: typer.Typer) -> set[str]:
    return set(getattr(typer.main.get_command(app), "commands", {}))


def options_of_studies(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from options_of_studies(inner)


TEXTS = list(literals())


def test_every_key_that_a_text_names_exists():
    dotted = re.compile(r"(?<![\w./:-])((?:[a-z][a-z0-9_]*\.)+[a-z][a-z0-9_]*)(?![\w/(]|\.[a-z])")
    unknown = set()
    for place, text in TEXTS:
        for found in dotted.findall(text):
            section = found.partition(".")[0]
            # Words of a message, and not a file's name or a module's.
            if " " not in text or section not in SECTIONS or found.endswith(FILES):
                continue
            if found not in KEYS:
                unknown.add((place, found))
    assert not unknown


def test_every_setting_that_a_text_recommends_exists():
    setting = re.compile(r"(?<![\w.{'-])([a-z_]+(?:\.[a-z_]+)+)=[\w.]+")
    unknown = {
        (place, key) for place, text in TEXTS for key in setting.findall(text) if key not in KEYS
    }
    assert not unknown


def test_every_option_that_a_text_names_exists():
    known = {*options_of(cli.app), *options_of_studies(studies._parser()), *FOREIGN_OPTIONS}
    option = re.compile(r"(?<![\w-])(--[a-z][a-z_-]*[a-z])")
    unknown = {
        (place, found)
        for place, text in TEXTS
        for found in option.findall(text)
        if found not in known
    }
    assert not unknown


def test_every_command_target_and_extra_that_a_text_names_exists():
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    patterns = {
        # And the name of a format.
        r"ahpa-scale ([a-z][a-z-]+)": commands_of(cli.app) | {"checkpoint"},
        r"`?make ([a-z][a-z0-9-]+)`": targets,
        r"ahpa-scale\[([a-z]+)\]": set(project()["optional-dependencies"]),
    }
    unknown = {
        (place, found)
        for pattern, known in patterns.items()
        for place, text in TEXTS
        for found in re.findall(pattern, text)
        if found not in known
    }
    assert not unknown


@pytest.mark.parametrize(
    "mistake",
    [
        ["alignment.reverse=true"],
        ["alignment.router.gap_strength=true"],
        ["alignment.kind=repa", "alignment.router.top_k=1"],
        ["alignment.kind=uniform", "alignment.level=latent"],
        ["flow.logit_std=2"],
        ["guard.nonfinite=rollback", "checkpoint.autoresume=false", *SAVED],
        ["parallelism.offload=optimizer"],
        ["parallelism.reshard_after_forward=false"],
        ["parallelism.engine=zero2", "parallelism.offload=parameters"],
        ["parallelism.engine=fsdp2", "device_train_microbatch_size=auto"],
        ["alignment.kind=self", "alignment.levels=[encoder.mid_block]"],
        ["alignment.kind=single"],
    ],
    ids=" ".join,
)
def test_the_setting_that_an_error_recommends_mends_it(mistake):
    with pytest.raises(ConfigError) as first:
        load_yaml(YAML, mistake)
    advised = re.findall(r"(?<![\w.])([a-z_]+(?:\.[a-z_]+)*)=([a-z0-9_]+)", first.value.problem)
    assert advised, first.value.problem
    for key, value in advised[-1:]:
        kept = [one for one in mistake if one.partition("=")[0] != key]
        try:
            load_yaml(YAML, [*kept, f"{key}={value}"])
        except ConfigError as second:
            told = (second.key, second.problem)
            assert told != (first.value.key, first.value.problem)


@pytest.mark.parametrize(
    ("call", "name", "wrong"),
    [
        (partial(resolve_geometry, "tiny/2", input_size=8), "width", 30),
        (partial(resolve_geometry, "tiny/2", input_size=8, heads=5), "width", 32),
        (partial(resolve_geometry, "tiny/4"), "input_size", 9),
        (lambda width: VAETraining(block_out_channels=(width,)), "width", 30),
        (lambda width: VAETraining(block_out_channels=(width,)), "width", 3),
    ],
)
def test_the_number_that_an_error_calls_nearest_is_taken(call, name, wrong):
    with pytest.raises(UserError) as caught:
        call(**{name: wrong})
    near = re.search(r"the nearest is (\d+)$", str(caught.value))
    assert near is not None, caught.value
    call(**{name: int(near[1])})


def test_levels_of_the_average_are_refused_by_engines_that_shard_whichever_key_names_them():
    for named in (
        ["alignment.kind=self"],
        ["alignment.levels=[latent, self.2]"],
        ["alignment.kind=single", "alignment.level=self.2"],
        ["alignment.groups={late: [self.2]}"],
    ):
        with pytest.raises(ConfigError, match="need whole averages, and fsdp2 shards them"):
            load_yaml(YAML, ["parallelism.engine=fsdp2", *named])


def test_one_level_alone_keeps_its_name():
    from ahpa_scale.config.targets import resolve_targets

    config = load_yaml(YAML, ["alignment.levels=[encoder.mid_block]"])
    levels = ["encoder.down_blocks.0.resnets.0", "encoder.mid_block"]
    assert resolve_targets(config, levels).groups == {"encoder.mid_block": ("encoder.mid_block",)}
