# SPDX-License-Identifier: Apache-2.0
"""Where the ``prior.<level>`` maps of a batch come from when the batch does not bring them.

An auxiliary names levels; the generator asks its sources for those that are missing. Cached
columns need no source, and a VAE's maps come with the latents that it encodes online.

Legend: B batch, C channels, H W latent sides, N tokens, D width of the backbone, g token grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from ahpa_scale.errors import UserError
from ahpa_scale.level_names import LATENT, OWN_BLOCKS, PRIOR_PREFIX, VELOCITY, source_of
from ahpa_scale.models.attachments import is_sharded
from ahpa_scale.models.backbone import Backbone
from ahpa_scale.models.flow import Path, interpolate
from ahpa_scale.models.noising import Noised
from ahpa_scale.precision import float32_region

Averages = Mapping[str, Tensor]


@dataclass(frozen=True)
class SourceContext:
    """What a source may look at: the batch and how the student sees it.

    Attributes:
        batch: as the loader gave it.
        mean_BCHW: posterior mean of the clean latents, scaled as the backbone's input; float32.
        drawn: the latents, noise and noise levels of this step.
        condition_B: int64 labels as the student sees them, dropped ones replaced by the null class.
        path: the interpolant between latents and noise.
    """

    batch: Mapping[str, Tensor]
    mean_BCHW: Tensor
    drawn: Noised
    condition_B: Tensor
    path: Path


@dataclass(frozen=True)
class SourceParts:
    """What a source may be built from.

    Attributes:
        backbone: the student.
        averages: returns the present averages by the backbone's own parameter names; None without
            EMA.
        lead: how much less noise a teacher sees, in units of t.
    """

    backbone: Backbone
    averages: Callable[[], Averages] | None
    lead: float


class PriorSource(ABC):
    """Makes maps of the levels of one declared source. It runs inside the forward pass, so it must
    not wait for the device.

    Attributes:
        name: that of its declaration, see :class:`~ahpa_scale.level_names.LevelSource`.
        classes: name -> the subclass of that name.
    """

    name: ClassVar[str]
    classes: ClassVar[dict[str, type[PriorSource]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        PriorSource.classes[cls.name] = cls

    @classmethod
    def build(cls, parts: SourceParts) -> PriorSource:
        """The source of one run.

        Raises:
            UserError: a part that it needs is missing.
        """
        return cls()

    def provides(self, level: str) -> bool:
        """Whether it can make this level."""
        return source_of(level).name == self.name

    @abstractmethod
    def provide(self, levels: Sequence[str], context: SourceContext) -> dict[str, Tensor]:
        """Makes levels that it provides: level -> map ``[B, C, g, g]`` without a graph."""


def build_sources(levels: Sequence[str], parts: SourceParts) -> list[PriorSource]:
    """The sources of those levels that are made in each step.

    Raises:
        UserError: a part that one of them needs is missing.
    """
    sources = dict.fromkeys(map(source_of, levels))
    made = [source.name for source in sources if source.channels is not None]
    return [PriorSource.classes[name].build(parts) for name in made]


class LatentSource(PriorSource):
    """The scaled latent mean itself, ``latent`` in the backbone's own units."""

    name = LATENT

    def provide(self, levels: Sequence[str], context: SourceContext) -> dict[str, Tensor]:
        """The map ``[B, C, H, W]`` in float32."""
        return dict.fromkeys(levels, context.mean_BCHW)


class VelocitySource(PriorSource):
    """What the backbone is to predict, ``velocity``: the target of the flow's own loss."""

    name = VELOCITY

    def provide(self, levels: Sequence[str], context: SourceContext) -> dict[str, Tensor]:
        """The map ``[B, C, H, W]`` in float32."""
        return dict.fromkeys(levels, context.drawn.target_BCHW)


class SelfSource(PriorSource):
    """Tokens of the model's own moving average on a less noisy view of the same pictures.

    The teacher of SRA (arXiv 2505.02831, section 3): the same latents, noise and label at
    t' = max(0, t - lead), through the averaged weights, no gradient. It runs as far as the deepest
    block asked for, once for all levels.

    Args:
        backbone: the student; its code and its buffers are used, its trained weights are not.
        averages: returns the present averages by the backbone's own parameter names, in every step.
        lead: how much less noise the teacher sees, in units of t, from 0 to 1.

    Raises:
        UserError: a lead out of range.
    """

    name = OWN_BLOCKS.name

    def __init__(self, backbone: Backbone, averages: Callable[[], Averages], lead: float) -> None:
        if not 0 <= lead <= 1:
            raise UserError(f"the self source's lead is {lead}: give a number from 0 to 1")
        self.lead = lead
        self._backbone = backbone
        self._averages = averages

    @classmethod
    def build(cls, parts: SourceParts) -> SelfSource:
        """The source of one run.

        Raises:
            UserError: there are no averages.
        """
        if parts.averages is None:
            raise UserError(
                "levels self.<k> are blocks of the moving average: add the EMA algorithm "
                "(ema.decay)"
            )
        return cls(parts.backbone, parts.averages, parts.lead)

    def provides(self, level: str) -> bool:
        """``self.1`` to ``self.<depth>``."""
        return level in OWN_BLOCKS.levels(self._backbone.depth)

    @torch.no_grad()
    def provide(self, levels: Sequence[str], context: SourceContext) -> dict[str, Tensor]:
        """Maps ``[B, D, g, g]``.

        Raises:
            UserError: the weights are sharded, and the teacher needs whole ones.
        """
        averages = self._averages()
        _refuse_shards(averages)
        drawn = context.drawn
        with float32_region(drawn.x_BCHW):
            t_B = (drawn.t_B - self.lead).clamp(min=0)
            xt_BCHW, _ = interpolate(context.path, drawn.x_BCHW, drawn.eps_BCHW, t_B)
        named = {level: OWN_BLOCKS.number(level) for level in levels}
        blocks = {level: block for level, block in named.items() if block is not None}
        # A backbone does the same in training and evaluation, so its mode can stay.
        tapped: dict[int, Tensor] = functional_call(
            self._backbone,
            dict(averages),
            (xt_BCHW, t_B, context.condition_B),
            {"taps": sorted(set(blocks.values())), "tokens_only": True},
        )
        return {level: token_map(tapped[block]) for level, block in blocks.items()}


def token_map(h_BND: Tensor) -> Tensor:
    """Tokens ``[B, N, D]``, row by row, as a map ``[B, D, g, g]``."""
    grid = int(h_BND.shape[1] ** 0.5)
    return h_BND.transpose(1, 2).unflatten(2, (grid, grid))


def fill_priors(
    inputs: dict[str, Tensor],
    levels: Sequence[str],
    sources: Sequence[PriorSource],
    context: SourceContext,
) -> None:
    """Adds the ``prior.<level>`` maps that `inputs` lack; the first source that knows a level wins.

    Raises:
        UserError: neither the batch nor a source has one of the levels.
    """
    missing = [level for level in levels if PRIOR_PREFIX + level not in inputs]
    for source in sources:
        chosen = [level for level in missing if source.provides(level)]
        if chosen:
            made = source.provide(chosen, context)
            inputs.update({PRIOR_PREFIX + level: made[level] for level in chosen})
            missing = [level for level in missing if level not in chosen]
    if missing:
        brought = [key.removeprefix(PRIOR_PREFIX) for key in inputs if key.startswith(PRIOR_PREFIX)]
        raise UserError(
            f"no source makes the level {missing[0]!r}, and the batch has "
            f"{', '.join(brought) or 'no levels'}; prepare the data with it, or add its source"
        )


def _refuse_shards(averages: Averages) -> None:
    for name, average in averages.items():
        if is_sharded(average):
            raise UserError(
                f"levels self.<k> need whole weights, and {name!r} is sharded; "
                "use parallelism.engine=ddp, or align other levels"
            )
