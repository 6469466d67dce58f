# SPDX-License-Identifier: Apache-2.0
"""``ahpa-scale init``: writes what a run needs besides the package into a user's folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

import ahpa_scale
from ahpa_scale import console
from ahpa_scale.commands import options

#: They are in the package after an install from a wheel, in the checkout after an editable one.
SHIPPED = ("train.py", "yamls", "k8s", "tools/k8s_settings.py")


def init(
    folder: Annotated[
        str,
        typer.Argument(metavar="DIR", help="New or empty folder.", callback=options.LOCAL),
    ],
) -> None:
    """Write train.py, the YAMLs and the Kubernetes manifests into a folder."""
    from ahpa_scale.disk_errors import naming
    from ahpa_scale.storage import atomic_folder

    with naming(folder), atomic_folder(folder) as room:
        for name in SHIPPED:
            _copy(_source() / name, room / name)
        _link_manifests(room / "k8s")
    console.tell(
        f"{folder}: train.py, yamls/, k8s/; go there, and: ahpa-scale prepare demo --size 32 --out "
        "runs/demo-data, then composer -n 1 train.py yamls/demo-ahpa.yaml. After a change of "
        "k8s/settings.env: python tools/k8s_settings.py"
    )


def _source() -> Path:
    package = Path(ahpa_scale.__file__).parent
    shipped = package / "shipped"
    return shipped if shipped.is_dir() else package.parent


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _link_manifests(folder: Path) -> None:
    """Links manifests for `kubectl apply -f` to those of the base: a wheel can't hold links."""
    for path in folder.glob("*.yaml"):
        if (folder / "base" / path.name).is_file():
            path.unlink()
            path.symlink_to(Path("base", path.name))
