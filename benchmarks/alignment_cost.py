# SPDX-License-Identifier: Apache-2.0
"""What each alignment costs: time of a training step over that of an unaligned one.

    python benchmarks/alignment_cost.py --model B/2 --input-size 32 --batch-size 32

All variants take turns step by step in one process, so that a busy machine slows all of them; the
ratio is taken round by round. Targets are random: with cached priors the cost does not depend on
them. The whole backward pass, the clipping and the optimizer's step are included.

Legend: B batch, C channels, H W latent sides, g token grid.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ahpa_scale.algorithms.ahpa import AHPA
from ahpa_scale.method import HeadSettings, RouterSettings
from ahpa_scale.models.dit import build_dit
from ahpa_scale.models.generator import DiffusionGenerator
from ahpa_scale.models.prior_sources import SelfSource
from ahpa_scale.models.vae_config import LatentScaling
from ahpa_scale.precision import cpu_has_bf16
from ahpa_scale.progress import progress_bar

NAMES = [
    *(f"encoder.down_blocks.{block}.resnets.1" for block in range(4)),
    "encoder.mid_block",
    "external",
]
VARIANTS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "none again": None,
    "latent": {"kind": "latent"},
    "single level": {"kind": "single", "level": "encoder.mid_block"},
    "uniform": {"kind": "uniform"},
    "standardised router": {"kind": "ahpa"},
    "gap router, online": {"router": RouterSettings(objective="gap")},
    "gap strength": {"router": RouterSettings(objective="gap", gap_strength=True)},
    "agreement router": {"router": RouterSettings(objective="agreement")},
    "gradient_ratio": {"kind": "ahpa", "gradient_ratio": 0.5},
    "token_weights": {"kind": "ahpa", "token_weights": "residual"},
    "grid 1 of the coarse group": {"kind": "ahpa", "grid": {"coarse_layout": 1}},
    "a block per group": {"kind": "ahpa", "tap": {"coarse_layout": 4}},
    "self": {"kind": "self"},
    "repa": {"kind": "repa"},
    "released": {"kind": "ahpa", "weight": 0.0},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table: median ratio over rounds, and its quartiles."""
    given = _parser().parse_args(arguments)
    steps = {name: _step(settings, given) for name, settings in VARIANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    with progress_bar(total=given.rounds + 2, unit="round", desc="cost", shown=True) as bar:
        for number in range(given.rounds + 2):
            for name, step in steps.items():
                took = _timed(step)
                if number >= 2:  # the first two warm up
                    seconds[name].append(took)
            bar.update()
    print(f"\n{given.model}, head {given.head}, batch {given.batch_size}, {given.rounds} rounds")
    print(f"{'variant':<28}{'median':>8}{'quartiles':>18}")
    for name, times in seconds.items():
        ratio = [a / b for a, b in zip(times, seconds["none"], strict=True)]
        low, middle, high = statistics.quantiles(ratio, n=4)
        print(f"{name:<28}{middle:>8.3f}{low:>10.3f} to{high:>6.3f}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="S/2", help="size and patch")
    parser.add_argument("--input-size", type=int, default=16, help="side of the latent")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--channels", type=int, default=128, help="of every level")
    parser.add_argument("--head", choices=("mlp", "conv", "linear"), default="mlp")
    parser.add_argument("--head-width", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def _step(settings: dict[str, Any] | None, given: argparse.Namespace) -> Callable[[], None]:
    """One whole training step of a variant."""
    torch.manual_seed(0)
    device = torch.device(given.device)
    dit = build_dit(given.model, input_size=given.input_size, in_channels=4, num_classes=10)
    scaling = LatentScaling("config", (0.0,) * 4, (1.0,) * 4)
    cpu_bf16 = device.type == "cpu" and cpu_has_bf16()
    generator = DiffusionGenerator(dit, scaling=scaling, cpu_bf16=cpu_bf16)
    if settings is not None:
        _attach(generator, settings, given)
    generator.to(device)
    parameters = [p for p in generator.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    batch = _batch(given, dit.grid, device)
    bf16 = torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.type == "cuda")

    def step() -> None:
        with bf16:
            outputs = generator(batch)
        generator.loss(outputs, batch)["total"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for auxiliary in generator.attachments.values():
            cast(Any, auxiliary).commit()

    return step


def _attach(
    generator: DiffusionGenerator, settings: dict[str, Any], given: argparse.Namespace
) -> None:
    levels = dict.fromkeys(NAMES, given.channels)
    head = HeadSettings(given.head, given.head_width)
    ahpa = AHPA(levels, head=head, **settings)
    alignment = ahpa.build(generator.dit)
    taps = alignment.blocks or ahpa.tap
    assert isinstance(taps, int | tuple)
    generator.attach("alignment", alignment, taps, ahpa.weight)
    averages = {name: p.detach().clone() for name, p in generator.dit.named_parameters()}
    generator.add_source(SelfSource(generator.dit, lambda: averages, lead=0.1))


def _batch(given: argparse.Namespace, grid: int, device: torch.device) -> dict[str, Tensor]:
    count, side = given.batch_size, given.input_size
    batch = {
        "index": torch.arange(count),
        "epoch": torch.zeros(count, dtype=torch.long),
        "label": torch.zeros(count, dtype=torch.long),
        "moments": torch.rand(count, 8, side, side),
    }
    batch |= {f"prior.{name}": torch.randn(count, given.channels, grid, grid) for name in NAMES}
    return {name: value.to(device) for name, value in batch.items()}


def _timed(step: Callable[[], None]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begun = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
