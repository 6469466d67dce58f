# SPDX-License-Identifier: Apache-2.0
"""Sources of prior maps: the model's own average, the latent, and what a batch brings.

Legend as in conftest; D width of the backbone.
"""

from __future__ import annotations

import itertools
from contextlib import contextmanager

import pytest
import torch
from conftest import ToyLatents
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from ahpa_scale.algorithms.ema import EMA
from ahpa_scale.level_names import OWN_BLOCKS
from ahpa_scale.models.flow import interpolate
from ahpa_scale.models.prior_sources import SelfSource
from ahpa_scale.models.randomness import normal, sample_key


class Reader(nn.Module):
    """An auxiliary that keeps the maps of its levels and pulls nowhere in particular."""

    def __init__(self, *levels: str) -> None:
        super().__init__()
        self.levels = levels
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: dict[str, torch.Tensor] = {}

    def forward(self, tapped, t_B, batch):
        self.tapped = tapped
        self.seen = {level: batch[f"prior.{level}"] for level in self.levels}
        return self.scale * sum(h_BND.float().square().mean() for h_BND in tapped.values())


def alive(generator):
    """A generator whose blocks do something: at the start their gates are shut."""
    torch.manual_seed(1)
    for parameter in generator.dit.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.05)
    return generator


def shifted(dit, by: float = 0.01) -> dict[str, torch.Tensor]:
    return {n: p.detach() + by for n, p in dit.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("lead", [0.0, 0.1, 1.0])
def test_self_levels_are_the_averages_tokens_at_lower_noise(lead, make_generator, toy_batch):
    generator, reader = alive(make_generator(label_dropout=0.5)), Reader("self.3", "self.2")
    generator.attach("reader", reader, taps=1)
    averages = shifted(generator.dit)
    generator.add_source(SelfSource(generator.dit, lambda: averages, lead))
    outputs = generator(toy_batch)

    # The same picture, noise and labels by hand, through a model that holds the averages.
    mean_BCHW, std_BCHW = toy_batch["moments"].float().chunk(2, dim=1)
    keys = {
        name: sample_key(0, toy_batch["epoch"], toy_batch["index"], name)
        for name in ("posterior", "noise")
    }
    x_BCHW = mean_BCHW + std_BCHW * normal(keys["posterior"], (4, 8, 8))
    t_B = (outputs["t"] - lead).clamp(min=0)
    xt_BCHW, _ = interpolate(generator.path, x_BCHW, normal(keys["noise"], (4, 8, 8)), t_B)
    teacher = make_generator().dit
    teacher.load_state_dict(averages, strict=False)
    with torch.no_grad():
        _, tapped = teacher(xt_BCHW, t_B, generator._drop_labels(toy_batch), taps=[2, 3])
    for block in (2, 3):
        map_BDgg = reader.seen[f"self.{block}"]
        assert map_BDgg.shape == (8, 32, 4, 4)
        torch.testing.assert_close(map_BDgg.flatten(2).transpose(1, 2), tapped[block])


def test_the_teacher_leaves_the_students_own_forward_alone(make_generator, toy_batch):
    """Same velocity as without it, no gradient into it, and only as many blocks as are asked."""
    generator, reader = alive(make_generator()), Reader("self.2")
    plain = generator(toy_batch)["velocity"]
    averages = {name: p.requires_grad_() for name, p in shifted(generator.dit).items()}
    generator.attach("reader", reader, taps=1)
    generator.add_source(SelfSource(generator.dit, lambda: averages, 0.1))
    calls = []
    for number, block in enumerate(generator.dit.blocks, start=1):
        block.register_forward_hook(lambda *_, n=number: calls.append(n))
    outputs = generator(toy_batch)
    assert sorted(calls) == [1, 1, 2, 2, 3]
    assert torch.equal(outputs["velocity"], plain)
    assert not reader.seen["self.2"].requires_grad
    generator.loss(outputs, toy_batch)["total"].backward()
    assert all(average.grad is None for average in averages.values())


def test_the_teacher_follows_the_ema_through_training(make_trainer, make_generator):
    generator, reader, ema = alive(make_generator()), Reader("self.3"), EMA(decay=0.5)
    generator.attach("reader", reader, taps=3, weight=0.1)
    generator.add_source(SelfSource(generator.dit, ema.averages, 0.0))
    seen = []
    reader.register_forward_hook(lambda *_: seen.append(reader.seen["self.3"].clone()))
    loader = DataLoader(ToyLatents(16), batch_size=16)
    make_trainer(generator, algorithms=[ema], train_dataloader=loader).fit(duration="4ep")
    assert len(seen) == 4
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(seen))
    # Without a lead, student and teacher are one as soon as the student holds the averages.
    batch = next(iter(loader))
    student, teacher = tokens_and_maps(generator, reader, batch)
    assert not torch.allclose(student, teacher, atol=1e-3)
    with ema.applied(generator):
        student, teacher = tokens_and_maps(generator, reader, batch)
    torch.testing.assert_close(student, teacher)


@torch.no_grad()
def tokens_and_maps(generator, reader, batch) -> tuple[torch.Tensor, torch.Tensor]:
    generator(batch)
    return reader.tapped[3], reader.seen["self.3"].flatten(2).transpose(1, 2)


def test_bfloat16_autocast_covers_the_teacher_and_spares_its_noise(make_generator, toy_batch):
    def maps(**settings_):
        generator, reader = alive(make_generator(**settings_)), Reader("self.3")
        generator.attach("reader", reader, taps=1)
        averages = shifted(generator.dit)
        generator.add_source(SelfSource(generator.dit, lambda: averages, 0.1))
        generator(toy_batch)
        return reader.seen["self.3"].float()

    exact, rounded = maps(), maps(cpu_bf16=True)
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).norm() < 0.02 * exact.norm()


def test_what_the_batch_brings_wins_over_a_source(make_generator, toy_batch):
    generator, reader = make_generator(), Reader("latent", "encoder.mid_block")
    generator.attach("reader", reader, taps=1)
    generator(toy_batch)
    torch.testing.assert_close(reader.seen["latent"], toy_batch["moments"][:, :4].float())
    brought = torch.ones(8, 4, 8, 8)
    generator({**toy_batch, "prior.latent": brought})
    assert reader.seen["latent"] is brought


def test_a_level_that_nobody_makes_is_named(make_generator, toy_batch):
    generator = make_generator()
    generator.attach("reader", Reader("self.2"), taps=1)
    with pytest.raises(ValueError, match=r"no source makes the level 'self.2', and the batch has"):
        generator(toy_batch)
    generator.add_source(SelfSource(generator.dit, lambda: shifted(generator.dit), 0.1))
    generator(toy_batch)
    generator.detach("reader")
    generator.attach("reader", Reader("self.4"), taps=1)
    with pytest.raises(ValueError, match=r"'self.4'"):
        generator(toy_batch)


def test_a_released_auxiliary_asks_its_sources_for_nothing(make_generator, toy_batch):
    generator = make_generator()
    generator.attach("reader", Reader("self.2"), taps=1)
    asked = []
    generator.add_source(SelfSource(generator.dit, lambda: asked.append(1) or {}, 0.1))
    generator.set_weight("reader", 0.0)
    generator(toy_batch)
    assert asked == []


@contextmanager
def one_rank():
    if torch.distributed.is_initialized():  # by a Trainer of an earlier test in this process
        yield torch.distributed.init_device_mesh("cpu", (1,))
        return
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        yield torch.distributed.init_device_mesh("cpu", (1,))
    finally:
        torch.distributed.destroy_process_group()


def test_sharded_weights_are_refused_by_name(make_generator, toy_batch):
    from torch.distributed.fsdp import fully_shard

    generator = make_generator()
    generator.attach("reader", Reader("self.2"), taps=1)
    with one_rank() as mesh:
        fully_shard(generator.dit, mesh=mesh)
        sharded = {n: p.detach() for n, p in generator.dit.named_parameters() if p.requires_grad}
        generator.add_source(SelfSource(generator.dit, lambda: sharded, 0.1))
        with pytest.raises(ValueError, match=r"is sharded; use parallelism.engine=ddp"):
            generator(toy_batch)


@pytest.mark.parametrize("lead", [-0.1, 1.1, float("nan")])
def test_a_lead_out_of_range_is_refused(lead, make_generator):
    with pytest.raises(ValueError, match="lead is"):
        SelfSource(make_generator().dit, dict, lead)


@settings(max_examples=60)
@given(st.one_of(st.integers(0, 999).map("self.{}".format), st.text(max_size=8)))
def test_only_self_and_a_number_names_a_block(level):
    block = OWN_BLOCKS.number(level)
    assert block is None or int(level.removeprefix("self.")) == block
    assert OWN_BLOCKS.number("self.7") == 7
    assert OWN_BLOCKS.number("self.x") is None
    assert OWN_BLOCKS.number("7") is None
