# SPDX-License-Identifier: Apache-2.0
"""Every path option takes `~`, `file://` and URLs as people write them, or refuses them in one
line; no folder named `s3:`, `file:` or `~` is ever made.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import typer
from pydantic import AfterValidator

from ahpa_scale import cli, paths, storage
from ahpa_scale.commands import options
from ahpa_scale.config.errors import ConfigError
from ahpa_scale.config.explain import all_keys
from ahpa_scale.config.load import load_yaml
from ahpa_scale.config.schema import Config
from ahpa_scale.config.schema.fields import Section
from ahpa_scale.errors import UserError

ROOT = Path(__file__).parents[1]
YAML = ROOT / "yamls" / "demo-ahpa.yaml"
READERS = (paths.local, paths.resolve, paths.data, paths.source, paths.vae)

#: Text in the configuration and in commands that names no place.
NO_PATHS = {
    *("alignment.groups", "alignment.level", "alignment.levels", "logging.wandb"),
    *("model.name", "run_name", "max_duration", "alignment.grid", "alignment.tap", "ema.decay"),
    "sampling.preset",
    "evaluation.features",
}
NO_PATH_OPTIONS = {
    *(
        "kind",
        "scaling",
        "level",
        "codec",
        "prior_dtype",
        "device",
        "shard_size",
        "preset",
        "names",
    ),
    *("levels", "source", "widths", "arguments", "master_addr", "every", "until", "idle"),
    *(
        "weights",
        "method",
        "overrides",
        "devices",
        "classes",
        "format",
        "precision",
        "layout",
        "features",
    ),
    *("image_column", "label_column"),
}
#: No one means a folder by these, whatever the option.
SLIPS = ("", "  ", "s3:/bucket/x", "S3:bucket", "gs//bucket/x", "s3:///x", "s3://", "file://host/x")
SLIPS += ("file:x", "C:\\data", "D:/data", "runs\\x", " runs/x", "runs/x\n", "~nobody-here/x")
SLIPS += (
    "x\udcff",
    "$HOME/x",
    "${HOME}/x",
    "a/s3:/b",
    "a/~/b",
    "./~",
    "ss3://bucket/x",
    "file:///a%20b",
)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("runs/x", "runs/x"),
        ("/a//b", "/a//b"),
        ("~/x", "/home/me/x"),
        ("~", "/home/me"),
        ("~root/x", f"{os.path.expanduser('~root')}/x"),
        ("file:///a/b", "/a/b"),
        ("FILE:///a/b", "/a/b"),
        ("file://localhost/a", "/a"),
        ("file:/a", "/a"),
        ("a:b/c", "a:b/c"),
        ("a/b~", "a/b~"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("S3://Bucket/X", "s3://Bucket/X"),
        ("s3://bucket/a//b", "s3://bucket/a//b"),
        ("memory://x", "memory://x"),
    ],
)
def test_a_place_is_read_as_it_is_meant(given, meant, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert paths.resolve(given) == meant
    # Read once more, as a saved configuration is, it stays.
    assert paths.resolve(meant) == meant
    if not storage.is_remote(given):
        assert storage.local_path(given) == Path(meant)


@pytest.mark.parametrize("read", [paths.local, paths.data, paths.vae])
@pytest.mark.parametrize("slip", ["oss:/bucket/x", "oss:bucket", "oss//bucket/x"])
def test_a_store_that_would_be_refused_is_not_what_a_slip_is_told_to_be(slip, read):
    with pytest.raises(UserError, match=r"oss://bucket/x? is not |oss://bucket is not"):
        read(slip)


@pytest.mark.parametrize("slip", SLIPS)
@pytest.mark.parametrize("read", READERS)
def test_a_slip_is_refused_in_one_line(slip, read):
    with pytest.raises(UserError) as caught:
        read(slip)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("slip", "near"),
    [
        ("s3:/bucket/x", "s3://bucket/x"),
        ("S3:bucket", "s3://bucket"),
        ("gs//bucket/x", "gs://bucket/x"),
        ("s3:///x", "s3://x"),
        ("ss3://bucket/x", "s3://"),
        ("file://runs/x", "/runs/x"),
        ("file://~/x", "~/x"),
        ("runs\\x", "runs/x"),
        ("~nobody-here/x", "./~nobody-here/x"),
    ],
)
def test_the_nearest_right_place_is_named_and_is_right(slip, near, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    with pytest.raises(UserError) as caught:
        paths.resolve(slip)
    assert near in str(caught.value)
    if near != "s3://":
        paths.resolve(near)


def test_a_user_without_a_home_folder_is_told_so(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda text: text)
    with pytest.raises(UserError, match="no home folder: set HOME"):
        paths.resolve("~/x")


def test_the_address_of_a_vae_on_the_hub_names_its_id():
    for url in (
        "hf://stabilityai/sd-vae-ft-mse",
        "https://huggingface.co/stabilityai/sd-vae-ft-mse",
    ):
        with pytest.raises(UserError, match=r"the hub id is stabilityai/sd-vae-ft-mse$"):
            paths.vae(url)
    assert paths.vae("stabilityai/sd-vae-ft-mse") == "stabilityai/sd-vae-ft-mse"


# The configuration


def text_fields() -> Iterator[tuple[str, bool]]:
    """Every key that takes free text, with whether it declares what path it is."""
    for key in all_keys():
        section: type[Section] = Config
        *parents, name = key.split(".")
        for parent in parents:
            annotation = section.model_fields[parent].annotation
            section = next(
                one
                for one in (annotation, *get_args(annotation))
                if isinstance(one, type) and issubclass(one, Section)
            )
        field = section.model_fields[name]
        told = _flat((field.annotation, *field.metadata))
        checks = [one.func for one in told if isinstance(one, AfterValidator)]
        if any(check in READERS for check in checks):
            yield key, True
        elif str in told and not checks:
            yield key, False


def _flat(annotations: tuple[Any, ...]) -> list[Any]:
    found: list[Any] = []
    for one in annotations:
        # A literal's values are no types.
        found += [one, *(_flat(get_args(one)) if not str(one).startswith("typing.Literal") else ())]
        found += getattr(one, "__metadata__", ())
    return found


PATH_KEYS = sorted(key for key, is_path in text_fields() if is_path)


def test_no_key_of_free_text_is_forgotten():
    unknown = {key for key, is_path in text_fields() if not is_path} - NO_PATHS
    assert not unknown, f"are these paths? {unknown}"
    assert len(PATH_KEYS) >= 8


@pytest.mark.parametrize("slip", ["s3:/bucket/x", "", "~nobody-here/x", "file://host/x"])
@pytest.mark.parametrize("key", PATH_KEYS)
def test_every_path_key_refuses_a_slip(key, slip, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_yaml(YAML, [f"{key}='{slip}'"])
    assert caught.value.key == key


def test_local_keys_refuse_stores_and_read_file_urls(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for key in ("output_dir", "data.local", "parallelism.offload_folder"):
        with pytest.raises(ConfigError, match="s3://bucket/x is not on this machine's own disk"):
            load_yaml(YAML, [f"{key}=s3://bucket/x"])
    for url, key in (("http://host/x", "data.remote"), ("memory://x", "data.remote")):
        with pytest.raises(ConfigError, match="is not among s3:// or gs:// or az://"):
            load_yaml(YAML, [f"{key}={url}"])
    config = load_yaml(
        f"file://{YAML}",
        [
            "output_dir=~/runs/x",
            "data.local=file:///data/x",
            "data.remote=S3://bucket/x",
            f"checkpoint.save_folder=file://localhost{tmp_path}/c",
        ],
    )
    assert config.output_dir == f"{tmp_path}/runs/x"
    assert config.data.local == "/data/x"
    assert config.data.remote == "s3://bucket/x"
    assert config.checkpoint.save_folder == f"{tmp_path}/c"


@pytest.mark.parametrize("place", ["s3://bucket/run.yaml", "s3:/run.yaml", "~nobody-here/r.yaml"])
def test_the_yaml_itself_is_local(place):
    with pytest.raises(ConfigError, match="the YAML file of the run: "):
        load_yaml(place)


# The commands


def parameters() -> Iterator[tuple[tuple[str, ...], str, Any, Any]]:
    """Every parameter of text of every command: the command's words, the parameter's name, how it
    is declared, and its default.
    """
    waiting: list[tuple[tuple[str, ...], typer.Typer]] = [((), cli.app)]
    while waiting:
        words, app = waiting.pop()
        waiting += [((*words, str(one.name)), one.typer_instance) for one in app.registered_groups]
        for command in app.registered_commands:
            assert command.callback is not None
            name = command.name or command.callback.__name__
            hints = get_type_hints(command.callback, include_extras=True)
            for parameter in inspect.signature(command.callback).parameters.values():
                hint = hints[parameter.name]
                if parameter.default is None and get_origin(hint) is Union:
                    hint = get_args(hint)[0]  # Python 3.10 makes it optional
                annotation, declared = get_args(hint)[:2]
                if str in _flat((annotation,)):
                    yield (*words, name), parameter.name, declared, parameter.default


def is_place(declared: Any) -> bool:
    several = options.ANY_OF_SEVERAL
    readers = (options.LOCAL, options.ANY, options.DATA, options.VAE, options.SOURCE)
    return declared.callback in (*readers, several)


PLACES = [(words, name) for words, name, declared, _ in parameters() if is_place(declared)]


def test_no_text_option_of_a_command_is_forgotten():
    text = {
        (*words, name)
        for words, name, declared, _ in parameters()
        if not is_place(declared) and name not in NO_PATH_OPTIONS
    }
    assert not text, f"are these paths? {text}"
    assert len(PLACES) >= 20


@pytest.mark.parametrize("slip", ["s3:/bucket/x", "", "~nobody-here/x"])
@pytest.mark.parametrize(("words", "place"), PLACES, ids=[f"{' '.join(w)} {p}" for w, p in PLACES])
def test_every_path_of_every_command_refuses_a_slip(
    words, place, slip, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    line = ["--keep=1"] if words[-1] == "prune" else []
    for _, name, declared, default in (one for one in parameters() if one[0] == words):
        if name == place or default is inspect.Parameter.empty:
            value = slip if name == place else "x"
            argument = isinstance(declared, typer.models.ArgumentInfo)
            line += [value] if argument else [f"--{name.replace('_', '-')}", value]
    with pytest.raises(SystemExit) as caught:
        cli.main([*words, *line])
    assert caught.value.code == 2
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ")
    assert f"{place.replace('_', '-')}: " in said.lower().replace("_", "-")
    assert not list(tmp_path.iterdir())


def test_a_command_writes_to_the_home_folder_and_not_to_one_named_tilde(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path))
    for out in ("~/a", f"file://{tmp_path}/b"):
        cli.app(["demo-images", "--num-samples=1", "--out", out], standalone_mode=False)
        assert (tmp_path / out[-1] / "contact-sheet.png").is_file()
    assert not list(here.iterdir())


def test_a_study_reads_paths_by_the_same_rules(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "run", "x.yaml", "--work", "s3://bucket/x"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: --work: s3://bucket/x is not on this machine's own disk: name a local path\n"
    )
    assert not list(tmp_path.iterdir())
