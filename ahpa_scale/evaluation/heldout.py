# SPDX-License-Identifier: Apache-2.0
"""Held-out flow loss per noise level, with the same t and noise for every model.

Shapes: B batch, T bins of t, C channels, H W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ahpa_scale.errors import UserError
from ahpa_scale.models.backbone import Backbone
from ahpa_scale.models.flow import Path, velocity_loss
from ahpa_scale.models.noising import noised
from ahpa_scale.models.randomness import sample_key
from ahpa_scale.models.vae_config import LatentScaling
from ahpa_scale.precision import inference_autocast

# A constant, not an option: losses of two runs compare only under the same noise.
_SEED = 0


class Generator(Protocol):
    """The part of `DiffusionGenerator` that is used here, so that Composer is not imported."""

    dit: Backbone
    path: Path
    scaling: LatentScaling


@torch.no_grad()
def heldout_flow(
    generator: Generator,
    batches: Iterable[Mapping[str, Tensor]],
    bins: int = 10,
    draws: int = 1,
    add_up: Callable[[Tensor], None] | None = None,
) -> dict[str, Any]:
    """Mean velocity loss (SiT, arXiv 2401.08740, equation 5) over equal bins of t in [0, 1].

    Sample i takes a random t in bin (i + draw) % bins. t, posterior sample and noise depend only on
    (i, draw), not on the generator's seed or the batches, so two models' numbers are paired. Labels
    are never dropped; a model of one class gets class 0. The generator's current weights are used:
    to measure the EMA, put its weights in first. On a CPU the model runs in its fastest precision,
    see `inference_autocast`.

    Args:
        generator: a `DiffusionGenerator`; its backbone gets its own mode back afterwards.
        batches: ``moments`` [B, 2C, H, W], ``index`` and ``label`` int64 [B]. Where there is
            ``counted``, bool [B], samples without it change nothing.
        bins: equal parts of t.
        draws: how often each sample is used, each time in another bin.
        add_up: adds a tensor of all ranks in place, if each has its own share of the samples. All
            need equally many batches. None: this process has all samples.

    Returns:
        ``flow``: mean over the bins; ``flow_t``: one number per bin.

    Raises:
        UserError: no batch, a batch without moments, a bin without samples, or a number out of
            range.
    """
    if not 1 <= draws <= bins:
        raise UserError(f"need 1 <= draws <= bins, got draws {draws} and bins {bins}")
    device = next(generator.dit.parameters()).device
    sum_T = torch.zeros(bins, dtype=torch.float64, device=device)
    count_T = torch.zeros_like(sum_T)
    with evaluating(generator.dit):
        for batch in batches:
            if "moments" not in batch:
                raise UserError("held-out batches need 'moments': prepare the data with a VAE")
            part = {k: batch[k].to(device) for k in ("moments", "index", "label")}
            for draw in range(draws):
                bin_B, loss_B = _losses(generator, part, bins, draw)
                counted_B = torch.ones_like(loss_B, dtype=torch.float64)
                if "counted" in batch:
                    counted_B = batch["counted"].to(device, torch.float64)
                sum_T.index_add_(0, bin_B, loss_B.double() * counted_B)
                count_T.index_add_(0, bin_B, counted_B)
    if add_up is not None:
        add_up(sum_T)
        add_up(count_T)
    empty = (count_T == 0).nonzero().flatten().tolist()
    if empty:
        raise UserError(
            f"no held-out sample falls into bin {empty[0]} of {bins}: give more samples,"
            " or fewer bins"
        )
    mean_T = sum_T / count_T
    return {"flow": mean_T.mean().item(), "flow_t": mean_T.tolist()}


def _losses(
    generator: Generator, batch: Mapping[str, Tensor], bins: int, draw: int
) -> tuple[Tensor, Tensor]:
    """Bins and velocity losses of one batch, both [B]."""
    index_B = batch["index"]

    def key(stream: str) -> Tensor:
        return sample_key(_SEED, draw, index_B, f"heldout.{stream}")

    mean_BCHW, std_BCHW = batch["moments"].float().chunk(2, dim=1)
    bin_B = (index_B + draw) % bins
    drawn = noised(
        mean_BCHW,
        std_BCHW,
        generator.scaling,
        generator.path,
        key,
        lambda uniform_B: (bin_B + uniform_B) / bins,
    )
    condition_B = known_labels(generator.dit, batch["label"])
    with inference_autocast(mean_BCHW.device):
        v_BCHW = generator.dit(drawn.xt_BCHW, drawn.t_B, condition_B)
    return bin_B, velocity_loss(v_BCHW, drawn.target_BCHW)


def known_labels(backbone: Backbone, label_B: Tensor) -> Tensor:
    """The labels, or class 0 for a model that was trained without them (num_classes 1)."""
    return torch.zeros_like(label_B) if backbone.num_classes == 1 else label_B


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while the body runs; then every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.train(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
