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
from ahpa_scale.torch_version import NEW

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
        problem = unmet(Requirement(line), Requirement(NEW))
        if problem is not None:
            yield wrong("packages", problem)


def unmet(requirement: Requirement, other: Requirement | None = None) -> str | None:
    """What is wrong with an installed package; None if nothing is, or an extra alone needs it.

    Args:
        requirement: what is asked of it.
        other: what is as good, if it is a requirement of the same package.
    """
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return None
    version = _version(requirement.name)
    if version is None:
        return f"{requirement.name} is missing: pip install '{requirement}'"
    known = [one for one in (requirement, other) if one and one.name == requirement.name]
    if not any(one.specifier.contains(version, prereleases=True) for one in known):
        tested = " and ".join(str(one.specifier) for one in known)
        return (
            f"{requirement.name} {version} is installed, and this package is tested with "
            f"{tested}: pip install '{requirement}'"
        )
    return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
