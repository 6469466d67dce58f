# SPDX-License-Identifier: Apache-2.0
"""The trained parts of a data set that the repository keeps: autoencoder, teacher and judges.

If they are trained anew on another kind of processor they come out a little different, and so do
all scores. With the kept parts a study can go on anywhere, and any of its cells can be run again
years later.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from ahpa_scale import storage

#: Stages that are trained; all others follow from these and the pictures.
TRAINED = ("vae", "teacher", "reference", "demo-reference")
KEPT = Path(__file__).parent / "assets"


def take_kept(root: Path, stage: str) -> bool:
    """Copy a stage's kept result into a data set's folder; False if none is kept.

    The trained parts see pictures, never tokens, so those of another token grid fit as well.
    """
    other_grids = f"{root.name.rsplit('-g', 1)[0]}-g*"
    candidates = [KEPT / root.name / stage, *sorted(KEPT.glob(f"{other_grids}/{stage}"))]
    kept = next((path for path in candidates if path.is_dir()), None)
    if stage not in TRAINED or kept is None:
        return False
    with storage.atomic_folder(root / stage) as room:
        shutil.copytree(kept, room, dirs_exist_ok=True)
    return True


def keep(root: Path) -> list[Path]:
    """Keep a built data set's trained parts; they replace those kept before.

    Returns:
        The folders written.
    """
    parts = [root / stage for stage in TRAINED if (root / stage).is_dir()]
    for part in parts:
        with storage.atomic_folder(KEPT / root.name / part.name, replace=True) as room:
            shutil.copytree(part, room, dirs_exist_ok=True)
    return [KEPT / root.name / part.name for part in parts]


def trained_digest(root: Path) -> str:
    """8 hex digits of the hash over all files of a data set's trained parts."""
    digest = hashlib.sha256()
    for stage in TRAINED:
        for path in sorted((root / stage).rglob("*")):
            if path.is_file():
                digest.update(path.relative_to(root).as_posix().encode() + b"\0")
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:8]
