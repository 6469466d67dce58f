# SPDX-License-Identifier: Apache-2.0
"""Build a study's data set once, stage by stage; each stage appears whole or not at all.

Shapes: N pictures, C feature channels, g the token grid's side.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ahpa_scale import storage
from ahpa_scale.errors import UserError
from experiments.assets import take_kept
from experiments.pictures import Pictures, collect
from experiments.recipes import Common, DemoRecipe, VaeRecipe
from experiments.study import Study

#: Written last: a data set without it isn't whole.
WHOLE = "dataset.json"
REAL_GRID = "real.png"


@dataclass(frozen=True)
class DataFolder:
    """Where the parts of a built data set lie."""

    root: Path
    recipe: Common
    grid: int

    @property
    def whole(self) -> bool:
        """Whether every stage is there."""
        return (self.root / WHOLE).exists()

    @property
    def pictures(self) -> Path:
        return self.root / "pictures"

    @property
    def train(self) -> Path:
        return self.root / "train"

    @property
    def heldout(self) -> Path:
        return self.root / "heldout"

    @property
    def teacher(self) -> Path:
        return self.root / "teacher"

    @property
    def reference(self) -> Path:
        return self.root / "reference"

    @property
    def demo_reference(self) -> Path:
        return self.root / "demo-reference"

    @property
    def vae(self) -> str:
        """The value of a run's `vae.path`."""
        if isinstance(self.recipe.vae, VaeRecipe):
            return str(self.root / "vae")
        return self.recipe.vae

    @property
    def classes(self) -> list[str]:
        """Class names."""
        names: list[str] = json.loads((self.pictures / "classes.json").read_text("utf-8"))
        return names

    def part(self, split: str) -> Pictures:
        """The pictures of 'train' or 'test', memory-mapped."""
        return Pictures.load(self.pictures, split)

    @property
    def facts(self) -> dict[str, Any]:
        """Classes, floors and the judge's accuracy."""
        content: dict[str, Any] = json.loads((self.root / WHOLE).read_text("utf-8"))
        return content


def data_folder(study: Study, name: str, work: Path, grid: int) -> DataFolder:
    """The folder of one data set, named by its recipe and the content of its input.

    Raises:
        UserError: the recipe's input is not there.
    """
    recipe = study.datasets[name]
    try:
        digest = recipe.digest()
    except UserError as error:
        raise UserError(f"{study.path}: datasets.{name}: {error}") from None
    return DataFolder(work / "data" / f"{name}-{digest}-g{grid}", recipe, grid)


def build(data: DataFolder, say: Callable[[str], None], *, floor_count: int) -> None:
    """Build the stages that are not there yet.

    Args:
        data: where.
        say: called with a line for each stage.
        floor_count: pictures on which the floors are measured: the study's number of samples.

    Raises:
        UserError: the input does not fit.
    """
    stages: list[tuple[str, Callable[[DataFolder], None]]] = [
        ("pictures", _build_pictures),
        (REAL_GRID, _build_real_grid),
        ("vae", _build_vae),
        ("teacher", _build_teacher),
        ("external", _build_external),
        ("train", _build_train),
        ("heldout", _build_heldout),
        ("reference", _build_reference),
        ("demo-reference", _build_demo_reference),
    ]
    for name, stage in stages:
        if not (data.root / name).exists():
            say(f"building {data.root.name}: {name}")
            if not take_kept(data.root, name):
                stage(data)
    if not data.whole:
        from experiments.scoring import facts

        say(f"building {data.root.name}: floors")
        storage.write_text(data.root / WHOLE, json.dumps(facts(data, floor_count), indent=1) + "\n")


def _build_pictures(data: DataFolder) -> None:
    parts, classes = collect(data.recipe, data.grid)
    with storage.atomic_folder(data.pictures) as room:
        for split, pictures in parts.items():
            pictures.save(room, split)
        (room / "classes.json").write_text(json.dumps(classes), encoding="utf-8")


def _build_real_grid(data: DataFolder) -> None:
    from experiments.grids import save_real_grid

    save_real_grid(data.part("test"), data.root / REAL_GRID)


def _build_vae(data: DataFolder) -> None:
    recipe = data.recipe.vae
    if not isinstance(recipe, VaeRecipe):
        return
    from ahpa_scale.data.array_source import ArraySource
    from ahpa_scale.data.vae_training import VAETraining, train_vae

    train = data.part("train")
    settings = VAETraining(
        block_out_channels=tuple(recipe.widths),
        layers_per_block=recipe.layers,
        latent_channels=recipe.latent_channels,
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        lr=recipe.lr,
        kl_weight=recipe.kl_weight,
        seed=data.recipe.seed,
        # Like the judges: when a cell is run again, its own trained parts must come out the same.
        precision="fp32",
    )
    source = ArraySource(train.images_NHWC, train.labels_N, data.classes)
    train_vae(data.root / "vae", source, settings, progress=True)


def _build_teacher(data: DataFolder) -> None:
    """A classifier with another architecture than the judge, for pictures without an oracle."""
    train = data.part("train")
    if train.oracle_NCgg is not None or data.recipe.teacher_steps == 0:
        return
    from experiments.judges import train_classifier

    teacher = train_classifier(
        np.array(train.images_NHWC),
        train.labels_N,
        len(data.classes),
        arch="teacher",
        seed=data.recipe.seed + 1,
        progress=True,
        **_steps(data.recipe.teacher_steps),
    )
    teacher.save(data.teacher)


def _build_external(data: DataFolder) -> None:
    """The positive control's features: the oracle's maps, or the teacher's."""
    train, test = data.part("train"), data.part("test")
    few = slice(data.recipe.heldout)
    with storage.atomic_folder(data.root / "external") as room:
        if train.oracle_NCgg is not None and test.oracle_NCgg is not None:
            np.save(room / "train.npy", train.oracle_NCgg)
            np.save(room / "test.npy", test.oracle_NCgg[few])
        elif data.teacher.exists():
            from experiments.judges import Classifier

            teacher = Classifier.load(data.teacher)
            np.save(room / "train.npy", _feature_maps(teacher, train.images_NHWC, data.grid))
            np.save(room / "test.npy", _feature_maps(teacher, test.images_NHWC[few], data.grid))


def _feature_maps(teacher: Any, images_NHWC: NDArray[np.uint8], grid: int) -> NDArray[np.float16]:
    import torch

    from experiments.judges import to_pictures

    parts = []
    with torch.no_grad():
        for start in range(0, len(images_NHWC), 256):
            images_B3SS = to_pictures(np.array(images_NHWC[start : start + 256]))
            parts.append(teacher.maps(images_B3SS, grid).half().numpy())
    return np.concatenate(parts)


def _build_train(data: DataFolder) -> None:
    _prepare(data, "train", data.train)


def _build_heldout(data: DataFolder) -> None:
    _prepare(data, "test", data.heldout, data.recipe.heldout)


def _prepare(data: DataFolder, split: str, out: Path, count: int | None = None) -> None:
    from ahpa_scale.data.array_source import ArraySource
    from ahpa_scale.data.prepare import prepare

    pictures = data.part(split)
    features = data.root / "external" / f"{split}.npy"
    external = None
    if features.exists():
        external = np.load(features, mmap_mode="r", allow_pickle=False)
    source = ArraySource(
        pictures.images_NHWC[:count],
        pictures.labels_N[:count],
        data.classes,
        external_NCgg=external,
        description=f"{data.root.name}, {split} part",
    )
    prepare(
        source,
        str(out),
        vae_path=data.vae,
        grid=data.grid,
        scaling=data.recipe.scaling,
        # What the recorded rows were trained on.
        codec="pooled",
        progress=True,
        workers=1,
    )


def _build_reference(data: DataFolder) -> None:
    from experiments.judges import build_reference

    train, test = data.part("train"), data.part("test")
    build_reference(
        np.array(train.images_NHWC),
        train.labels_N,
        np.array(test.images_NHWC),
        test.labels_N,
        data.reference,
        num_classes=len(data.classes),
        seed=data.recipe.seed,
        progress=True,
        **_steps(data.recipe.judge_steps),
    )


def _build_demo_reference(data: DataFolder) -> None:
    """Only for drawn pictures, whose factors are known."""
    recipe = data.recipe
    if not isinstance(recipe, DemoRecipe):
        return
    from experiments.judges import build_demo_reference

    own = {"steps": recipe.factor_steps, "pictures": recipe.factor_pictures}
    given = {name: value for name, value in own.items() if value is not None}
    # The judge's pictures have their own seed, which no data set uses.
    build_demo_reference(recipe.demo_spec(), data.demo_reference, progress=True, **given)


def _steps(steps: int | None) -> dict[str, Any]:
    return {} if steps is None else {"steps": steps}
