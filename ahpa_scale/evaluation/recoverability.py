# SPDX-License-Identifier: Apache-2.0
"""The recoverability map: how well a linear readout finds each prior level per block and noise.

If a block already shows a level well, aligning it to the level teaches nothing. If no block shows
the level, it is lost in the noise. If a deeper block shows it and a shallow one does not, alignment
can supply it to the shallow one (the recoverability gap of "What Visual Generators Need from
Teachers", 2026).
Legend: B batch, C channels, H W latent sides, N tokens, D width of the backbone, L levels, K blocks
(written D in the map's name), T bins of t.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.heldout import evaluating, known_labels
from ahpa_scale.evaluation.readout import PairMoments, explained_shares
from ahpa_scale.level_names import PRIOR_PREFIX
from ahpa_scale.method.priors import level_tokens
from ahpa_scale.models.generator import DiffusionGenerator
from ahpa_scale.models.noising import noised
from ahpa_scale.models.prior_sources import (
    SourceContext,
    SourceParts,
    build_sources,
    fill_priors,
)
from ahpa_scale.models.randomness import sample_key, uniform
from ahpa_scale.precision import inference_autocast
from ahpa_scale.progress import progress_bar

# Constants, not options: maps of two models compare only under the same noise.
_SEED = 0
RIDGE = 1e-4
# With fewer tokens to fit, the readout's own error would hide the levels.
_TOKENS_PER_CHANNEL = 2

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class RecoverabilityMap:
    """How much of each level a linear readout finds.

    Attributes:
        levels: names of the levels.
        blocks: 1-based blocks.
        bins: equal bins of t in [0, 1].
        r2_LDT: level, block, bin -> share of the level's variance on held-out pictures, 0 to 1.
        pictures: number of pictures used, about half of them to fit.
    """

    levels: tuple[str, ...]
    blocks: tuple[int, ...]
    bins: int
    r2_LDT: tuple[tuple[tuple[float, ...], ...], ...]
    pictures: int

    def to_dict(self) -> dict[str, Any]:
        """``levels``, ``blocks``, ``bins`` and ``r2_LDT`` as JSON has them; six digits."""
        return {
            "levels": list(self.levels),
            "blocks": list(self.blocks),
            "bins": self.bins,
            "r2_LDT": [[[round(x, 6) for x in row] for row in rows] for rows in self.r2_LDT],
        }


@torch.no_grad()
def recoverability(
    generator: DiffusionGenerator,
    batches: Iterable[Batch],
    levels: Sequence[str],
    bins: int = 10,
    device: str | torch.device | None = None,
    *,
    lead: float = 0.1,
    progress: bool = False,
) -> RecoverabilityMap:
    """Measures the map of a model; it takes `bins` forward passes over the pictures.

    In each bin of t every picture gets a random t in the bin and its own noise, both derived from
    its index, so maps of two models are paired. After every block a ridge regression predicts each
    level's tokens from the block's. It is fitted on about half of the pictures and evaluated on the
    others. The generator's current weights are used: to measure the EMA, put its weights in first.
    On a CPU the model runs in its fastest precision, the regression in float32 and float64.

    Args:
        generator: the model; it gets its own mode back afterwards.
        batches: as for training, ``moments`` or ``image``, ``index``, ``label`` and the wanted
            ``prior.<level>``; kept in memory until the end.
        levels: encoder levels, ``latent``, ``external`` or ``self.<k>``; the last uses the model's
            own current weights.
        bins: equal bins of t.
        device: where to run; None stays where the generator is.
        lead: how much smaller t is for the teacher of ``self.<k>`` than for the model.
        progress: whether to show rate and time left on stderr.

    Raises:
        UserError: no level, a level that is not available, or too few pictures for this width.
    """
    if not levels or bins < 1:
        raise UserError(f"name at least one level and one bin, not {len(levels)} and {bins}")
    if device is not None:
        generator.to(device)
    with evaluating(generator):
        pictures = _Pictures(generator, batches, levels, lead)
        bar = progress_bar(
            total=bins * pictures.count, unit="picture", desc="diagnose", shown=progress
        )
        with bar:
            r2_TDL = [_one_bin(pictures, number, bins, bar) for number in range(bins)]
    blocks = tuple(range(1, generator.dit.depth + 1))
    r2_LDT = tuple(
        tuple(tuple(r2_DL[row][column] for r2_DL in r2_TDL) for row in range(len(blocks)))
        for column in range(len(levels))
    )
    return RecoverabilityMap(tuple(levels), blocks, bins, r2_LDT, pictures.count)


class _Pictures:
    """The pictures of the measure, encoded once, and the model that sees them."""

    def __init__(
        self,
        generator: DiffusionGenerator,
        batches: Iterable[Batch],
        levels: Sequence[str],
        lead: float,
    ) -> None:
        self.generator, self.levels = generator, list(levels)
        self.device = next(generator.dit.parameters()).device
        self.batches = [self._encoded(batch) for batch in batches]
        self.count = sum(len(batch["index"]) for batch in self.batches)
        parameters = {n: p.detach() for n, p in generator.dit.named_parameters()}
        parts = SourceParts(generator.dit, lambda: parameters, lead)
        # Before the generator's own sources: one map must use one set of weights.
        self.sources = [*build_sources(levels, parts), *generator.sources]
        self._check_count()

    def _encoded(self, batch: Batch) -> dict[str, Tensor]:
        """Moments and maps on the CPU, in the loader's dtypes if the loader brought them."""
        here = {name: value.to(self.device) for name, value in batch.items()}
        if "moments" not in here:
            mean_BCHW, std_BCHW, here = self.generator.encode(here, self.levels)
            here["moments"] = torch.cat([mean_BCHW, std_BCHW], dim=1)
        wanted = {"index", "label", "moments", *(PRIOR_PREFIX + level for level in self.levels)}
        return {name: value.cpu() for name, value in here.items() if name in wanted}

    def _check_count(self) -> None:
        backbone = self.generator.dit
        fitted = sum(int(half(batch["index"]).sum()) for batch in self.batches)
        least = math.ceil(_TOKENS_PER_CHANNEL * backbone.width / backbone.grid**2)
        if min(fitted, self.count - fitted) < least:
            raise UserError(
                f"{self.count} pictures are too few to read {backbone.width} channels from "
                f"{backbone.grid**2} tokens a picture; give about {4 * least}"
            )


def half(index_B: Tensor) -> Tensor:
    """True for the pictures that the readout is fitted to, by index and not by order."""
    return uniform(sample_key(_SEED, 0, index_B, "recoverability.half"))[:, 0] < 0.5


def _one_bin(pictures: _Pictures, number: int, bins: int, bar: Any) -> list[list[float]]:
    """R^2 of each block and level at one bin of t."""
    depth = pictures.generator.dit.depth
    moments: list[tuple[PairMoments, PairMoments]] = []
    parts: list[slice] = []
    for batch in pictures.batches:
        tapped, targets = _tokens(pictures, batch, number, bins)
        if not moments:
            parts = _slices([target_BNC.shape[-1] for target_BNC in targets])
            width, channels = pictures.generator.dit.width, parts[-1].stop
            moments = [
                (
                    PairMoments(width, channels, pictures.device),
                    PairMoments(width, channels, pictures.device),
                )
                for _ in range(depth)
            ]
        fitted_B = half(batch["index"]).to(pictures.device)
        target_BNC = torch.cat(targets, dim=-1)
        for (fit, held), h_BND in zip(moments, tapped, strict=True):
            fit.update(h_BND[fitted_B].flatten(0, 1), target_BNC[fitted_B].flatten(0, 1))
            held.update(h_BND[~fitted_B].flatten(0, 1), target_BNC[~fitted_B].flatten(0, 1))
        bar.update(len(fitted_B))
    return [explained_shares(fit, held, parts, RIDGE) for fit, held in moments]


def _tokens(
    pictures: _Pictures, batch: Batch, number: int, bins: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The tokens after every block, and each level's tokens, ``[B, N, C]``."""
    generator = pictures.generator
    backbone = generator.dit
    inputs = {name: value.to(pictures.device) for name, value in batch.items()}

    def key(stream: str) -> Tensor:
        return sample_key(_SEED, number, inputs["index"], f"recoverability.{stream}")

    mean_BCHW, std_BCHW = inputs["moments"].float().chunk(2, dim=1)
    drawn = noised(
        mean_BCHW,
        std_BCHW,
        generator.scaling,
        generator.path,
        key,
        lambda uniform_B: (number + uniform_B) / bins,
    )
    clean_BCHW = generator.scaling.normalise(mean_BCHW)
    condition_B = known_labels(backbone, inputs["label"])
    context = SourceContext(inputs, clean_BCHW, drawn, condition_B, generator.path)
    with inference_autocast(mean_BCHW.device):
        blocks = range(1, backbone.depth + 1)
        tapped = backbone(drawn.xt_BCHW, drawn.t_B, condition_B, taps=blocks, tokens_only=True)
        fill_priors(inputs, pictures.levels, pictures.sources, context)
    targets = [level_tokens(inputs, level, backbone.grid) for level in pictures.levels]
    return [tapped[block] for block in blocks], targets


def _slices(sizes: Sequence[int]) -> list[slice]:
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
