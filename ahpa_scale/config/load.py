# SPDX-License-Identifier: Apache-2.0
"""YAML and command line -> Config. Imports nothing heavy: a mistake is reported before torch is
even loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from ahpa_scale import paths
from ahpa_scale.config.checks.effects import settle_effects
from ahpa_scale.config.checks.static import check_static
from ahpa_scale.config.defaults import fill_defaults
from ahpa_scale.config.errors import COMMAND_LINE, ConfigError, exit_on_user_error
from ahpa_scale.config.explain import first_problem
from ahpa_scale.config.removed import drop_removed
from ahpa_scale.config.schema import Config
from ahpa_scale.config.schema.run import source_of
from ahpa_scale.config.written import (
    NETWORK,
    as_written,
    conceal_environment,
    needs,
    without_environment,
)
from ahpa_scale.config.yaml_file import GrowthError, check_growth, interpolations, read_yaml
from ahpa_scale.errors import UserError

__all__ = ["ConfigError", "exit_on_user_error", "load_config", "load_yaml", "to_yaml"]

_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*")


def load_config(argv: Sequence[str]) -> Config:
    """Read a run from the command line's arguments.

    Args:
        argv: a YAML file, then any number of ``key=value`` with dotted keys; these win over the
            file.

    Raises:
        ConfigError: any mistake, in one line.
    """
    usage = "name a YAML file: composer train.py yamls/<run>.yaml [key=value ...]"
    if not argv:
        raise ConfigError("", "", usage)
    if "=" in argv[0] or argv[0].startswith("-"):
        raise ConfigError(COMMAND_LINE, "", f"{argv[0]!r} stands first: {usage}")
    return load_yaml(argv[0], argv[1:])


def load_yaml(
    path: str | Path, overrides: Sequence[str] = (), *, elsewhere: bool = False
) -> Config:
    """Read, merge, validate and check one run; nulls that stand for a kind's default are filled in.

    Args:
        path: the YAML file.
        overrides: ``key=value`` with dotted keys.
        elsewhere: the run is another process's and is only inspected: keys that need environment
            variables not set here stay as written.

    Raises:
        ConfigError: any mistake, in one line.
    """
    try:
        file = Path(paths.local(path))
    except UserError as error:
        raise ConfigError("", "", f"the YAML file of the run: {error}") from None
    content, sources = read_yaml(file)
    for item in overrides:
        key, value = _parse_override(item)
        if sources.get(key) == COMMAND_LINE:
            raise ConfigError(COMMAND_LINE, key, "given twice")
        _set(content, key, value)
        # The override also replaces the keys below it, so their sources go.
        sources = {k: v for k, v in sources.items() if not k.startswith(f"{key}.")}
        sources[key] = COMMAND_LINE
        for section in _parents(key):
            sources.setdefault(section, COMMAND_LINE)
    return _load(content, sources, elsewhere)


def load_mapping(content: Mapping[str, Any]) -> Config:
    """Read a configuration that is stored elsewhere, such as in a checkpoint, to inspect it.

    Raises:
        ConfigError: it is not a valid configuration.
    """
    return _load(dict(content), {}, elsewhere=True)


def to_yaml(config: Config) -> str:
    """The configuration as YAML, with defaults filled in and interpolations as written. Loading it
    gives an equal configuration.
    """
    text: str = yaml.safe_dump(as_written(config), sort_keys=False, allow_unicode=True)
    return text


def _load(content: dict[str, Any], sources: dict[str, str], elsewhere: bool) -> Config:
    written = interpolations(content)
    conceal_environment(content)
    if elsewhere:
        content = without_environment(content)
    resolved = _resolve(content, sources)
    drop_removed(resolved, sources, written, elsewhere=elsewhere)
    if elsewhere:
        resolved = _without_strangers(resolved, written, sources)
        # A key that was left out has its default, which `written` must not replace.
        written = {place: text for place, text in written.items() if needs(text) is None}
    config = _validate(resolved, sources)
    config._written.update(written)
    config = settle_effects(config)
    check_static(config)
    return fill_defaults(config)


def _without_strangers(
    content: Any, written: Mapping[tuple[Any, ...], str], sources: Mapping[str, str]
) -> Any:
    """Leaves out keys, such as numbers, whose variable is not set; text stays as written."""
    try:
        Config.model_validate(content)
    except ValidationError as error:
        wrong = {
            tuple(finding["loc"][: len(place)]) for finding in error.errors() for place in written
        }
        for place in wrong & written.keys():
            name = needs(written[place])
            if name is None:
                continue
            key = ".".join(map(str, place))
            if place[0] in NETWORK:
                problem = f"environment variable {name!r} is not set, and this key needs it"
                raise ConfigError(source_of(sources, key), key, problem) from None
            inner = content
            for part in place[:-1]:
                inner = inner[part]
            del inner[place[-1]]
    return content


def _parse_override(item: str) -> tuple[str, Any]:
    key, equals, text = item.partition("=")
    if any("\ud800" <= letter <= "\udfff" for letter in item):
        raise ConfigError(COMMAND_LINE, "", f"{item!r} is not UTF-8 text")
    if item.startswith("-"):
        raise ConfigError(COMMAND_LINE, item, f"write overrides without dashes: {item.lstrip('-')}")
    if not equals or not _KEY.fullmatch(key):
        raise ConfigError(COMMAND_LINE, key, f"{item!r} is not of the form key=value")
    if not text:
        raise ConfigError(COMMAND_LINE, key, "has no value; write null for none")
    try:
        # The value alone goes through the loader: '${...}' in it must be resolved in the whole run.
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(COMMAND_LINE, key, f"broken value {text!r}: {error.problem}") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(COMMAND_LINE, key, f"broken value {text!r}: {error}") from None
    assert isinstance(parsed, dict)
    return key, parsed["value"]


def _parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _set(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for depth, section in enumerate(sections, start=1):
        if content.get(section) is None:
            content[section] = {}
        content = content[section]
        if not isinstance(content, dict):
            parent = ".".join(sections[:depth])
            raise ConfigError(COMMAND_LINE, key, f"{parent} is a value and has no keys of its own")
    content[name] = value


def _resolve(content: dict[str, Any], sources: Mapping[str, str]) -> Any:
    """Resolve ``${...}``, also those of the environment (``${oc.env:HOME}``)."""
    try:
        check_growth(content)
        return OmegaConf.to_container(
            OmegaConf.create(content), resolve=True, throw_on_missing=True
        )
    except GrowthError as error:
        raise ConfigError(source_of(sources, error.key), error.key, error.problem) from None
    except RecursionError:
        raise ConfigError(source_of(sources, ""), "", "an interpolation refers to itself") from None
    except OmegaConfBaseException as error:
        _refuse_unknown_keys(content, sources)
        key = str(error.full_key or "")
        problem = str(error.msg or error).splitlines()[0]
        raise ConfigError(source_of(sources, key), key, problem) from None


def _refuse_unknown_keys(content: Any, sources: Mapping[str, str]) -> None:
    """Reports a misspelt key, which explains more than the interpolation that fails for it."""
    try:
        Config.model_validate(content)
    except ValidationError as error:
        if any(finding["type"] == "extra_forbidden" for finding in error.errors()):
            key, problem = first_problem(error)
            raise ConfigError(source_of(sources, key.partition("[")[0]), key, problem) from None


def _validate(content: Any, sources: Mapping[str, str]) -> Config:
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        key, problem = first_problem(error)
        raise ConfigError(source_of(sources, key.partition("[")[0]), key, problem) from None
    config._sources.update(sources)
    return config
