# SPDX-License-Identifier: Apache-2.0
"""Held-out flow loss and fixed-noise samples of small real models."""

from __future__ import annotations

import math

import pytest
import torch

from ahpa_scale.evaluation.heldout import heldout_flow
from ahpa_scale.evaluation.samples import draw_samples
from ahpa_scale.models.dit import DiT, build_dit
from ahpa_scale.models.generator import DiffusionGenerator
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.models.vae_config import LatentScaling
from ahpa_scale.sampling.settings import SamplerSettings

SHIFT, SCALE, LEVEL = 0.25, 4.0, 0.5


def small_dit(num_classes: int = 3, trained: bool = True) -> DiT:
    torch.manual_seed(0)
    dit = build_dit(
        "tiny/2", input_size=8, in_channels=8, num_classes=num_classes, depth=2, width=32, heads=2
    )
    if trained:
        with torch.no_grad():
            for parameter in dit.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return dit


def generator_of(dit: DiT, **settings) -> DiffusionGenerator:
    scaling = LatentScaling("channel", (SHIFT,) * 8, (SCALE,) * 8)
    return DiffusionGenerator(dit, scaling=scaling, **settings)


def held_out(count: int, size: int, constant: bool = False) -> list[dict[str, torch.Tensor]]:
    """Batches of latents whose scaled mean is LEVEL (constant), or random."""
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(count, 8, 8, 8, generator=generator)
    if constant:
        mean = torch.full_like(mean, SHIFT + LEVEL / SCALE)
    moments = torch.cat([mean, torch.full_like(mean, 0.0 if constant else 0.1)], dim=1)
    index = torch.arange(count)
    parts = zip(moments.split(size), index.split(size), strict=True)
    return [{"moments": m, "index": i, "label": i % 3} for m, i in parts]


def test_heldout_flow_of_a_silent_model_is_the_closed_form_in_every_bin():
    """A fresh DiT predicts zero, so the loss is the target's mean square at that bin's t."""
    generator = generator_of(small_dit(trained=False), path="gvp")
    result = heldout_flow(generator, held_out(640, 128, constant=True), bins=5)
    edges = [k / 5 for k in range(6)]
    for low, high, measured in zip(edges, edges[1:], result["flow_t"], strict=False):
        # The mean of sin^2(pi t / 2) over the bin.
        sine = 0.5 - (math.sin(math.pi * high) - math.sin(math.pi * low)) / (
            2 * math.pi * (high - low)
        )
        expected = (math.pi / 2) ** 2 * (LEVEL**2 * sine + 1 - sine)
        assert measured == pytest.approx(expected, rel=0.04)
    assert result["flow"] == pytest.approx(sum(result["flow_t"]) / 5)


def test_heldout_numbers_are_paired_whatever_the_batches_and_the_seed():
    whole = heldout_flow(generator_of(small_dit(), seed=1), held_out(60, 60), bins=4)
    parts = heldout_flow(generator_of(small_dit(), seed=2), held_out(60, 16)[::-1], bins=4)
    assert parts["flow_t"] == pytest.approx(whole["flow_t"], rel=1e-4)
    again = heldout_flow(generator_of(small_dit(), seed=1), held_out(60, 60), bins=4)
    assert again == whole


def test_more_draws_use_every_sample_in_more_bins():
    generator = generator_of(small_dit(trained=False))
    with pytest.raises(ValueError, match="no held-out sample falls into bin 2 of 4"):
        heldout_flow(generator, held_out(2, 2), bins=4)
    result = heldout_flow(generator, held_out(2, 2), bins=4, draws=4)
    assert len(result["flow_t"]) == 4
    assert len(set(result["flow_t"])) == 4


def test_heldout_flow_sees_labels_only_where_the_model_has_classes():
    batches = held_out(40, 40)
    others = [{**batch, "label": (batch["label"] + 1) % 3} for batch in batches]
    conditional = generator_of(small_dit())
    assert heldout_flow(conditional, batches) != heldout_flow(conditional, others)
    blind = generator_of(small_dit(num_classes=1))
    assert heldout_flow(blind, batches) == heldout_flow(blind, others)


def test_heldout_flow_leaves_the_model_as_it_was():
    generator = generator_of(small_dit())
    generator.dit.blocks[0].eval()
    before = {name: module.training for name, module in generator.named_modules()}
    heldout_flow(generator, held_out(20, 20))
    assert {name: module.training for name, module in generator.named_modules()} == before
    assert all(parameter.grad is None for parameter in generator.parameters())


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([{"image": torch.zeros(1)}], {}, "moments"),
        ([], {}, "no held-out sample"),
        (held_out(4, 4), {"bins": 2, "draws": 3}, "draws"),
    ],
)
def test_heldout_mistakes_are_one_clear_line(batches, options, message):
    with pytest.raises(ValueError, match=message):
        heldout_flow(generator_of(small_dit()), batches, **options)


def pictures(dit: DiT, labels: list[int], batch_size=4, **options) -> torch.Tensor:
    vae = FrozenVAE.from_pretrained("demo")
    generator = generator_of(dit)
    return draw_samples(
        dit,
        vae,
        generator.scaling,
        generator.path,
        torch.tensor(labels),
        settings=SamplerSettings(**{"method": "heun", "steps": 3, **options}),
        batch_size=batch_size,
    )


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b.float()).abs().mean().item()


def test_samples_depend_on_seed_and_place_but_not_on_the_batches():
    dit = small_dit()
    together = pictures(dit, [0, 1, 2, 0, 1, 2], batch_size=6)
    assert together.dtype == torch.uint8
    assert together.shape == (6, 3, 32, 32)
    assert difference(together, pictures(dit, [0, 1, 2, 0, 1, 2], batch_size=4)) < 0.5
    assert difference(together[:3], pictures(dit, [0, 1, 2], batch_size=1)) < 0.5
    assert difference(together, pictures(dit, [0, 1, 2, 0, 1, 2], seed=1)) > 5
    assert difference(together[:3], together[3:]) > 5


def test_labels_steer_samples_only_where_the_model_has_classes():
    dit, blind = small_dit(), small_dit(num_classes=1)
    assert not torch.equal(pictures(dit, [0, 1]), pictures(dit, [2, 2]))
    assert torch.equal(pictures(blind, [0, 1]), pictures(blind, [2, 7]))


def test_guidance_changes_the_samples():
    dit = small_dit()
    assert not torch.equal(pictures(dit, [0, 1]), pictures(dit, [0, 1], guidance_scale=4.0))


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [([3], {}, "within 0 to 2"), ([], {}, "at least one"), ([0], {"batch_size": 0}, "batch_size")],
)
def test_sampling_mistakes_are_one_clear_line(labels, options, message):
    with pytest.raises(ValueError, match=message):
        pictures(small_dit(), labels, **options)
