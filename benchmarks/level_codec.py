# SPDX-License-Identifier: Apache-2.0
"""What each codec of encoder levels keeps, in how many bytes: the table of `prepare --report`, with
mean pooling after the same PCA and int8 beside it.

    python benchmarks/level_codec.py --vae demo --size 32 --preset medium
    python benchmarks/level_codec.py --sd-shape --size 256 --pictures 8

An increment is the share of a level's variance that no coarser level predicts linearly. It is read
from the whole folded coarser levels, on held-out pictures. An availability is the share that is
linear in the clean latent patch. Random weights (`--sd-shape`) only show bytes and seconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from diffusers import AutoencoderKL

from ahpa_scale.data.codec_fit import coded_values, fit_codec, level_dims, measure_values
from ahpa_scale.data.codec_info import POOLED
from ahpa_scale.data.codec_report import ReportRow, report_lines, sample_report
from ahpa_scale.data.level_sample import LevelSample, take_sample
from ahpa_scale.data.planning import plan_set
from ahpa_scale.data.settings import LEVEL_DIMS, PrepareSettings
from ahpa_scale.models.vae import FrozenVAE

SD_SHAPE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and the increments as multiples of those of mean pooling."""
    given = _parser().parse_args(arguments)
    settings = PrepareSettings(
        source="demo",
        out="nowhere",
        vae_path=given.vae,
        size=given.size,
        preset=given.preset,
        num_samples=max(given.pictures, 1),
        sample=given.pictures,
        batch_size=min(given.pictures, given.batch_size),
        device=given.device,
        progress=False,
    )
    torch.manual_seed(0)
    vae = FrozenVAE(AutoencoderKL(**SD_SHAPE)) if given.sd_shape else None
    vae = (vae or FrozenVAE.from_pretrained(given.vae)).to(given.device)
    card, pictures = plan_set(settings, vae, None)
    begun = time.perf_counter()
    sample = take_sample(settings, card, vae, pictures)
    encoded = time.perf_counter()
    rows = list(_rows(sample, card.grid, given.device))
    took = time.perf_counter() - encoded
    name = "random weights of the SD VAE's shape" if given.sd_shape else given.vae
    print(f"{name}, {given.size} px, {given.preset}, grid {card.grid}, {sample.pictures} pictures")
    print(f"encoding the sample {encoded - begun:.1f} s, all codecs {took:.1f} s, {given.device}\n")
    print("\n".join(report_lines(iter(rows), sample.pictures)))
    for baseline in (rows[0], rows[-1]):
        print(f"\nincrements as multiples of {_name(baseline)}:")
        for row in rows[1:-1]:
            pairs = zip(row.levels[:-1], baseline.levels[:-1], strict=True)
            ratios = (each.increment / max(base.increment, 1e-6) for each, base in pairs)
            print(f"{_name(row):<32}{'  '.join(f'{ratio:7.1f}' for ratio in ratios)}")


def _rows(sample: LevelSample, grid: int, device: str) -> Iterator[ReportRow]:
    yield from sample_report(sample, grid, None, device)
    means = {name: token_NCP.mean(2, keepdim=True) for name, token_NCP in sample.levels.items()}
    pooled = replace(sample, levels=means)
    dims = level_dims(tuple(means), LEVEL_DIMS)
    # Of a level with one position per token, the recipe is a plain PCA.
    codec = fit_codec(pooled, grid, dims, "detail", "int8", device)
    levels = measure_values(sample, *coded_values(codec, pooled), device)
    stored = sum(level.dims for level in levels) * grid**2
    yield ReportRow(POOLED, LEVEL_DIMS, "int8", stored, levels)


def _name(row: ReportRow) -> str:
    return f"{row.codec}, {'all' if row.per_group is None else row.per_group}, {row.dtype}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vae", default="demo", help="diffusers folder or 'demo'")
    parser.add_argument("--sd-shape", action="store_true", help="random weights of the SD VAE")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    return parser


if __name__ == "__main__":
    main()
