# SPDX-License-Identifier: Apache-2.0
"""The versions of this environment, against those that the package asks for."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

import ahpa_scale
from ahpa_scale.commands.doctor.finding import Finding, ok, wrong

_PACKAGE = "ahpa_scale"
#: Those that a bug report needs.
_TOLD = ("torch", "mosaicml", "mosaicml-streaming", "deepspeed", "diffusers", "numpy", "s3fs")


def findings() -> Iterator[Finding]:
    """Looks at Python and at the packages that training needs."""
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield ok("python", f"{python}, {sys.executable}")
    told = (f"{name} {_version(name) or 'missing'}" for name in _TOLD)
    yield ok("packages", f"{_PACKAGE} {ahpa_scale.__version__}, {', '.join(told)}")
    for line in metadata.requires(_PACKAGE) or ():
        problem = unmet(Requirement(line))
        if problem is not None:
            yield wrong("packages", problem)


def unmet(requirement: Requirement) -> str | None:
    """What is wrong with an installed package; None if nothing is, or an extra alone needs it."""
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return None
    version = _version(requirement.name)
    if version is None:
        return f"{requirement.name} is missing: pip install '{requirement}'"
    if not requirement.specifier.contains(version, prereleases=True):
        return (
            f"{requirement.name} {version} is installed, and this package is tested with "
            f"{requirement.specifier}: pip install '{requirement}'"
        )
    return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
