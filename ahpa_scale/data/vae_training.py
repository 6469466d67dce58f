# SPDX-License-Identifier: Apache-2.0
"""Train a small AutoencoderKL on demo pictures or a folder of pictures, and save it for diffusers.

Shapes: B batch, C latent channels, H W height and width.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from ahpa_scale import storage
from ahpa_scale.data.demo.mixture import SIZES, DemoMixture, Pixels, held_out
from ahpa_scale.data.pictures.decode import UnreadablePictureError
from ahpa_scale.data.pictures.rejects import Rejects
from ahpa_scale.data.planning import check_device
from ahpa_scale.data.reading import report as report_rejects
from ahpa_scale.data.settings import REJECTS
from ahpa_scale.data.sources import Source
from ahpa_scale.data.vae_release import VAEReport, card, check_free, measure_psnr
from ahpa_scale.disk_errors import naming
from ahpa_scale.errors import UserError
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.precision import cpu_has_bf16
from ahpa_scale.progress import progress_bar
from ahpa_scale.storage import atomic_folder
from ahpa_scale.writable import try_to_write

DEMO_SOURCE = "demo"
_WARM_UP_STEPS = 100
_SCALING_BATCHES = 16
_EDGE_WEIGHT = 0.1
_FIRST_LOG_VARIANCE = -6.0

Batches = Callable[[int, int], Pixels]


@dataclass(frozen=True)
class VAETraining:
    """Settings of `train_vae`; the defaults are those of the embedded demo VAE.

    Attributes:
        block_out_channels: encoder widths, one per resolution; n of them downsample 2^(n-1) times.
        layers_per_block: residual blocks per resolution.
        latent_channels: channels of a latent.
        norm_num_groups: groups of every group normalisation; divides all widths.
        steps: optimizer steps.
        batch_size: pictures per step.
        lr: peak learning rate; 100 steps of warm-up, then a cosine to zero.
        kl_weight: weight of the mean KL divergence per latent number, in nats.
        seed: initialisation, order of pictures and noise; unseen pictures come from seed + 1.
        pool: demo pictures drawn per preset at 32 pixels.
        unseen: pictures per set that PSNR is measured on.
        precision: 'bf16' (autocast; on a CPU only if it supports it) or 'fp32'. On a processor with
            AMX, only 'fp32' gives the same VAE in every run.
        device: torch device to train on.
    """

    block_out_channels: tuple[int, ...] = (32, 64, 96)
    layers_per_block: int = 1
    latent_channels: int = 8
    norm_num_groups: int = 8
    steps: int = 3000
    batch_size: int = 16
    lr: float = 1e-3
    kl_weight: float = 1e-4
    seed: int = 0
    pool: int = 3000
    unseen: int = 256
    precision: str = "bf16"
    device: str = "cpu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
        counts = ("layers_per_block", "latent_channels", "steps", "batch_size", "pool", "unseen")
        for name in counts:
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.block_out_channels:
            raise UserError("block_out_channels needs at least one width")
        for width in self.block_out_channels:
            groups = self.norm_num_groups
            if width < 1 or width % groups:
                near = max(1, round(width / groups)) * groups
                problem = f"width {width} does not divide into {groups} groups"
                raise UserError(f"{problem}; the nearest is {near}")
        if self.lr <= 0 or self.kl_weight < 0:
            raise UserError("lr must be above 0 and kl_weight 0 or more")
        if self.precision not in ("bf16", "fp32"):
            raise UserError(f"precision must be 'bf16' or 'fp32', not {self.precision!r}")


def train_vae(
    out: str | Path,
    source: str | Source = DEMO_SOURCE,
    settings: VAETraining | None = None,
    *,
    overwrite: bool = False,
    progress: bool = True,
    tell: Callable[[str], None] = lambda _: None,
) -> VAEReport:
    """Train an AutoencoderKL and save it as a diffusers folder (safetensors) with a card.

    Args:
        out: folder to write; it appears complete or not at all.
        source: 'demo', or pictures of one size with `len` and `read`; the last tenth of them (at
            most settings.unseen) is kept for measuring.
        settings: architecture and recipe.
        overwrite: replace an earlier VAE in out.
        progress: show a bar with rate, loss and time left.
        tell: gets lines at the end about what was left out of a folder.

    Returns:
        PSNR on unseen pictures and the scaling factor of the saved config.

    Raises:
        UserError: out is taken, or the source is unknown, does not fit the architecture, or has
            too many pictures that cannot be read.
    """
    settings = settings or VAETraining()
    out = storage.local_path(out)
    check_free(out, overwrite)
    try_to_write(out.parent)
    check_device(settings.device)
    batches, unseen, rejects = _pictures(source, settings)
    device = torch.device(settings.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        model = _build(settings).to(device, memory_format=torch.channels_last)
        _fit(model, batches, settings, progress)
        factor = _scaling_factor(model, batches, settings)
    model.register_to_config(scaling_factor=factor)
    with naming(out), atomic_folder(out, replace=overwrite) as room:
        model.half().save_pretrained(room)
        psnr = measure_psnr(FrozenVAE.from_pretrained(room), unseen)
        report = VAEReport(psnr, factor, min(map(len, unseen.values())))
        shown = source if isinstance(source, str) else f"FOLDER --size {_side(unseen)}"
        (room / "README.md").write_text(card(out, shown, settings, report), encoding="utf-8")
        rejects.write(str(room))
    if not isinstance(source, str):
        report_rejects(source, rejects, str(out), tell)
    return report


def _side(sets: dict[str, Pixels]) -> int:
    return int(next(iter(sets.values())).shape[-1])


def _pictures(
    source: str | Source, settings: VAETraining
) -> tuple[Batches, dict[str, Pixels], Rejects]:
    """Batches by (step, batch size), named sets of unseen pictures, and the rejects."""
    if isinstance(source, str):
        if source != DEMO_SOURCE:
            raise UserError(f"unknown picture source {source!r}: use 'demo' or a folder source")
        mixture = DemoMixture(settings.seed, settings.pool)
        sets = {size: held_out(settings.seed + 1, size, settings.unseen) for size in SIZES}
        return (
            mixture.batch,
            {
                f"{name}, {size} px": pictures
                for size in SIZES
                for name, pictures in sets[size].items()
            },
            Rejects(0, 0.0),
        )
    kept = min(settings.unseen, len(source) // 10)
    if kept < 1:
        raise UserError(f"{len(source)} pictures are too few: at least 10 are needed")

    rejects, seen = Rejects(len(source), REJECTS), len(source) - kept

    def batch(step: int, batch_size: int) -> Pixels:
        generator = np.random.default_rng([settings.seed, step])
        drawn = generator.integers(seen, size=batch_size)
        # The next readable picture replaces an unreadable one.
        return _stacked(
            next(_readable(source, (*range(p, seen), *range(p)), rejects)) for p in drawn
        )

    unseen = {"unseen": _stacked(_readable(source, range(seen, len(source)), rejects))}
    factor = 2 ** (len(settings.block_out_channels) - 1)
    if _side(unseen) % factor:
        raise UserError(f"pictures of {_side(unseen)} pixels do not divide by {factor}")
    return batch, unseen, rejects


def _readable(source: Source, positions: Iterable[int], rejects: Rejects) -> Iterator[Pixels]:
    for position in positions:
        try:
            yield source.read(int(position)).image_HWC
        except UnreadablePictureError as error:
            rejects.add(error)


def _stacked(pictures: Iterable[Pixels]) -> Pixels:
    return np.ascontiguousarray(np.stack([*pictures]).transpose(0, 3, 1, 2))


def _build(settings: VAETraining) -> AutoencoderKL:
    count = len(settings.block_out_channels)
    model = AutoencoderKL(
        block_out_channels=settings.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        layers_per_block=settings.layers_per_block,
        latent_channels=settings.latent_channels,
        norm_num_groups=settings.norm_num_groups,
        sample_size=SIZES[0],
    )
    # With the usual start (a posterior as wide as the prior) noise hides all but the luminance, and
    # colour is learnt late. A narrow start avoids that plateau.
    assert model.quant_conv is not None
    torch.nn.init.constant_(model.quant_conv.bias[settings.latent_channels :], _FIRST_LOG_VARIANCE)
    return model


def _fit(model: AutoencoderKL, batches: Batches, settings: VAETraining, progress: bool) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), settings.lr, betas=(0.9, 0.99))
    warm_up = min(_WARM_UP_STEPS, settings.steps)

    def factor(step: int) -> float:
        return (
            min(1.0, (step + 1) / warm_up) * 0.5 * (1.0 + math.cos(math.pi * step / settings.steps))
        )

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    with progress_bar(total=settings.steps, unit="step", desc="VAE", shown=progress) as bar:
        for step in range(settings.steps):
            image_BCHW = _to_input(batches(step, settings.batch_size), settings)
            loss = _loss(model, image_BCHW, settings)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if progress and step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
            bar.update()


def _to_input(pictures: Pixels, settings: VAETraining) -> Tensor:
    image_BCHW = torch.from_numpy(pictures).to(settings.device).float().div(127.5).sub(1.0)
    return image_BCHW.contiguous(memory_format=torch.channels_last)


def _posterior(
    model: AutoencoderKL, image_BCHW: Tensor, settings: VAETraining
) -> tuple[Tensor, Tensor]:
    """Float32 mean and log variance."""
    with _precision(settings):
        parameters = model.encode(image_BCHW).latent_dist.parameters
    mean_BCHW, logvar_BCHW = parameters.float().chunk(2, dim=1)
    return mean_BCHW, logvar_BCHW.clamp(-30.0, 20.0)


def _precision(settings: VAETraining) -> contextlib.AbstractContextManager[None]:
    device = torch.device(settings.device)
    wanted = settings.precision == "bf16" and (device.type != "cpu" or cpu_has_bf16())
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def _loss(model: AutoencoderKL, image_BCHW: Tensor, settings: VAETraining) -> Tensor:
    """Squared error, absolute error of neighbour differences (edges), and a small KL term."""
    mean_BCHW, logvar_BCHW = _posterior(model, image_BCHW, settings)
    z_BCHW = mean_BCHW + torch.exp(0.5 * logvar_BCHW) * torch.randn_like(mean_BCHW)
    with _precision(settings):
        again_BCHW = model.decode(z_BCHW).sample
    error_BCHW = again_BCHW.float() - image_BCHW
    edges = F.l1_loss(error_BCHW[..., 1:], error_BCHW[..., :-1]) + F.l1_loss(
        error_BCHW[..., 1:, :], error_BCHW[..., :-1, :]
    )
    kl = 0.5 * (mean_BCHW.square() + logvar_BCHW.exp() - 1.0 - logvar_BCHW).mean()
    return error_BCHW.square().mean() + _EDGE_WEIGHT * edges + settings.kl_weight * kl


@torch.no_grad()
def _scaling_factor(model: AutoencoderKL, batches: Batches, settings: VAETraining) -> float:
    """1 / standard deviation of sampled latents (Rombach et al. 2022, arXiv 2112.10752, app. G)."""
    count, total, squares = 0, 0.0, 0.0
    for step in range(_SCALING_BATCHES):
        image_BCHW = _to_input(batches(step, settings.batch_size), settings)
        mean_BCHW, logvar_BCHW = _posterior(model, image_BCHW, settings)
        count += mean_BCHW.numel()
        total += float(mean_BCHW.double().sum())
        squares += float((mean_BCHW.double().square() + logvar_BCHW.double().exp()).sum())
    return 1.0 / math.sqrt(squares / count - (total / count) ** 2)
