# SPDX-License-Identifier: Apache-2.0
"""A run's resolved configuration, as text, as values, and as what differs between runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ahpa_scale.report.rows import Faults
from ahpa_scale.run_files import CONFIG_FILE

_LARGEST = 1 << 20
#: Keys that differ between any two runs.
_PLACES = ("run_name", "output_dir", "checkpoint.save_folder")
_NOT_SET = "not set"


def read_config(path: Path, faults: Faults) -> tuple[str, dict[str, Any]]:
    """Text and values of a configuration; no values if it is no YAML of a run."""
    from ahpa_scale.config.errors import ConfigError
    from ahpa_scale.config.yaml_file import read_yaml

    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        faults.add(f"{CONFIG_FILE}: left out, because it has more than {_LARGEST} bytes")
        return "", {}
    text = content.decode("utf-8", errors="replace")
    try:
        return text, read_yaml(path)[0]
    except ConfigError as error:
        faults.add(f"{CONFIG_FILE}: {error.problem}")
        return text, {}


def differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Keys whose values differ between configurations, with each one's value as text. Names and
    places of the runs are left out.
    """
    flat = [dict(_flattened(config)) for config in configs]
    keys = dict.fromkeys(key for values in flat for key in values if key not in _PLACES)
    rows = [(key, [values.get(key, _NOT_SET) for values in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def as_yaml(config: Mapping[str, Any]) -> str:
    """Values as YAML."""
    import yaml

    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def _flattened(value: Any, key: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        pairs = []
        for name, inner in value.items():
            pairs += _flattened(inner, f"{key}.{name}" if key else str(name))
        return pairs
    return [(key, "null" if value is None else str(value))]
