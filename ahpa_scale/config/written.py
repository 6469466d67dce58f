# SPDX-License-Identifier: Apache-2.0
"""A configuration as it may be kept: with interpolations as written, not resolved, and URLs without
passwords. Values of one process's environment are not kept.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from ahpa_scale.config.schema import Config
from ahpa_scale.config.yaml_file import interpolations
from ahpa_scale.printable import conceal, masked

#: Sections that describe the network and its training objective. In other sections, a missing value
#: takes its default.
NETWORK = ("alignment", "flow", "model", "vae")
_VARIABLE = re.compile(r"\$\{\s*oc\.env:\s*(\w+)\s*(,?)")


def as_written(config: Config) -> dict[str, Any]:
    """All values of a run, ready for YAML or JSON; reading them gives an equal configuration."""
    told: dict[str, Any] = _kept(config.model_dump(mode="json"))
    for place, text in config._written.items():
        inner: Any = told
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = masked(text)
    return told


def conceal_environment(content: Any) -> None:
    """From now on the console shows ``${oc.env:NAME}`` in place of the variable's value."""
    for text in interpolations(content).values():
        for name, _ in _VARIABLE.findall(text):
            conceal(os.environ.get(name, ""), f"${{oc.env:{name}}}")


def without_environment(content: Any) -> Any:
    """A copy in which texts that need variables not set here stay as written."""
    if isinstance(content, Mapping):
        return {key: without_environment(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_environment(value) for value in content]
    if isinstance(content, str) and needs(content):
        return content.replace("${", r"\${")
    return content


def needs(text: str) -> str | None:
    """The first variable of a text's interpolations that has no default and is not set here."""
    variables = _VARIABLE.findall(text)
    return next((name for name, comma in variables if not comma and name not in os.environ), None)


def _kept(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _kept(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_kept(inner) for inner in value]
    # A literal '$' followed by '{' would be read as an interpolation.
    return masked(value).replace("${", r"\${") if isinstance(value, str) else value
