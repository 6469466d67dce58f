# SPDX-License-Identifier: Apache-2.0
"""Exact scores of generated demo pictures, whose factors are known: shapes, layout, texture.

Shapes: N pictures, S the picture's side, O object slots, hw cells, Q quantiles.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ahpa_scale import typed_json
from ahpa_scale.data.demo import DemoSpec
from ahpa_scale.errors import UserError
from ahpa_scale.storage import atomic_folder, read_bytes
from ahpa_scale.tensor_files import save_tensors
from experiments.judges.distributions import QUANTILES, texture_quantiles, wasserstein
from experiments.judges.factor_judge import FactorJudge, render_many, train_factor_judge
from experiments.judges.layout import (
    agreeing_share,
    binds_places,
    first_object,
    layout_quantiles,
    named_shape_share,
    rule_error,
)

_JUDGE, _TENSORS, _FACTS = "factor-judge.safetensors", "demo.safetensors", "demo.json"


@dataclass(frozen=True)
class DemoReference:
    """Judges pictures of one demo spec.

    Attributes:
        spec: the pictures' spec.
        judge: finds the objects; trained on rendered pictures alone.
        layout_4Q: quantiles of x, y, size and count of the objects it finds in real pictures.
        texture_7Q: quantiles of the texture measures of real pictures.
    """

    spec: DemoSpec
    judge: FactorJudge
    layout_4Q: Tensor
    texture_7Q: Tensor

    def score(self, images_N3SS: Tensor, labels_N: Tensor | None = None) -> dict[str, float]:
        """Score pictures by the demo's own factors.

        ``shape_accuracy`` (higher is better): with labels that name a shape, the share of pictures
        whose first object has this shape. The first object is the largest one with the label's hue,
        or, without one, the largest of all. Without such labels, the share of objects whose pixels
        agree on one shape to 80 %; a picture without objects counts as one object that doesn't.

        ``layout_error`` (lower is better, picture sides): with labels whose rule sets the second
        object's place, the mean distance of the nearest other object from that place, at most 0.5.
        Pictures whose rule asks for nearly the first object's own place are left out. Without such
        labels, the mean 1-Wasserstein distance to real pictures of x, y, size and relative count.

        ``texture_distance`` (lower is better, natural logarithms of energy): mean 1-Wasserstein
        distance to real pictures of local gradient energies and spectra; no network is involved.

        Args:
            images_N3SS: uint8 pictures of the spec's size.
            labels_N: int64 classes they were made for; None for unconditional generation.

        Raises:
            UserError: wrong dtype or size, no picture, or labels that do not fit.
        """
        self._check(images_N3SS, labels_N)
        objects, cover_Nhw = self.judge.find_all(images_N3SS)
        layout_4Q = layout_quantiles(objects, self.spec)
        texture_7Q = texture_quantiles(images_N3SS)
        scores = {
            "shape_accuracy": agreeing_share(objects, cover_Nhw),
            "layout_error": wasserstein(layout_4Q, self.layout_4Q),
            "texture_distance": wasserstein(texture_7Q, self.texture_7Q),
        }
        if labels_N is not None and self.spec.label_informative:
            first_N = first_object(objects, labels_N, self.spec)
            named = named_shape_share(objects, labels_N, first_N, self.spec)
            scores["shape_accuracy"] = named
            if bool(binds_places(labels_N, self.spec).any()):
                scores["layout_error"] = rule_error(objects, labels_N, first_N, self.spec)
        return scores

    def _check(self, images_N3SS: Tensor, labels_N: Tensor | None) -> None:
        size = self.spec.size
        wanted = (3, size, size)
        if (
            images_N3SS.dtype != torch.uint8
            or not len(images_N3SS)
            or tuple(images_N3SS.shape[1:]) != wanted
        ):
            raise UserError(
                f"this reference scores uint8 pictures [N, 3, {size}, {size}],"
                f" got {images_N3SS.dtype} {list(images_N3SS.shape)}"
            )
        if labels_N is None:
            return
        if labels_N.shape != images_N3SS.shape[:1]:
            raise UserError(
                f"{len(images_N3SS)} pictures need {len(images_N3SS)} labels,"
                f" got {list(labels_N.shape)}"
            )
        if int(labels_N.min()) < 0 or int(labels_N.max()) >= self.spec.num_classes:
            raise UserError(f"labels must be within 0 to {self.spec.num_classes - 1}")


def build_demo_reference(
    spec: DemoSpec,
    out: str | Path,
    *,
    pictures: int = 8000,
    steps: int = 1200,
    seed: int = 1_000_003,
    progress: bool = False,
) -> DemoReference:
    """Train the factor judge of a spec, measure real pictures and write the result to a folder.

    Args:
        spec: spec of the pictures to be judged.
        out: folder to make; it appears complete or not at all.
        pictures: drawn for training and for the texture. A quarter as many more are drawn for the
            layout, so that the judge measures real pictures that it has not seen.
        steps: optimizer steps of the judge, of 64 pictures each.
        seed: seed of the pictures (this and the next number) and of the training; data sets should
            use other seeds.
        progress: show a bar.

    Raises:
        FileExistsError: `out` is not empty.
        UserError: fewer than 4 pictures.
    """
    if pictures < 4 or steps < 1:
        raise UserError(f"need 4 pictures and 1 step at least, got {pictures} and {steps}")
    with atomic_folder(out) as room:
        drawn = render_many(spec, seed, pictures)
        judge = train_factor_judge(
            spec, drawn, steps=steps, batch_size=64, seed=seed, progress=progress
        )
        real_N3SS = render_many(spec, seed + 1, pictures // 4).images_N3SS
        objects, _ = judge.find_all(real_N3SS)
        reference = DemoReference(
            spec, judge, layout_quantiles(objects, spec), texture_quantiles(drawn.images_N3SS)
        )
        save_tensors(
            {name: tensor.contiguous() for name, tensor in judge.state_dict().items()},
            room / _JUDGE,
        )
        save_tensors(
            {"layout": reference.layout_4Q, "texture": reference.texture_7Q}, room / _TENSORS
        )
        (room / _FACTS).write_text(json.dumps(asdict(spec), sort_keys=True) + "\n", "utf-8")
    return reference


def load_demo_reference(folder: str | Path) -> DemoReference:
    """Read what `build_demo_reference` wrote.

    Raises:
        UserError: no demo reference is there, or its files are damaged.
    """
    folder = Path(folder)
    try:
        content = read_bytes(folder / _FACTS, typed_json.LIMIT)
        spec = typed_json.parse_as(DemoSpec, content, str(folder / _FACTS))
        weights = load_file(str(folder / _JUDGE))
        tensors = load_file(str(folder / _TENSORS))
        layout_4Q, texture_7Q = tensors["layout"], tensors["texture"]
    except (OSError, SafetensorError, KeyError, UserError) as error:
        raise _unreadable(folder, error) from error
    for name, tensor, shape in (
        ("layout", layout_4Q, (4, QUANTILES)),
        ("texture", texture_7Q, (7, QUANTILES)),
    ):
        fits = tensor.shape == shape and tensor.is_floating_point()
        if not fits or not bool(tensor.isfinite().all()):
            problem = UserError(f"{name} must hold {list(shape)} finite numbers")
            raise _unreadable(folder, problem)
    judge = FactorJudge(spec.num_shapes)
    try:
        judge.load_state_dict(weights)
    except RuntimeError as error:  # of another architecture
        raise _unreadable(folder, error) from error
    judge.requires_grad_(False).train(False)
    return DemoReference(spec, judge, layout_4Q, texture_7Q)


def _unreadable(folder: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"no demo reference can be read from {folder}: {reason}")
