# SPDX-License-Identifier: Apache-2.0
"""A backbone of another family, that of AHPA's method card, does all that a DiT does.

Legend: B batch, C channels, H W, N tokens, D width.
"""

from __future__ import annotations

import math
import socket
from pathlib import Path

import pytest
import torch
from conftest import LEVELS, ToyLatents
from own_backbone import own_generator
from ranks import leave, meet
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader

from ahpa_scale.algorithms import AHPA, EMA
from ahpa_scale.evaluation.heldout import heldout_flow
from ahpa_scale.models.flops import forward_flops
from ahpa_scale.sampling.sampler import sample
from ahpa_scale.sampling.settings import SamplerSettings
from benchmarks.engine_parity import AVERAGE_BOUND, BOUNDS, LOG_BOUND, compare, distance
from benchmarks.ranks import Task, start_ranks, train

ENGINES = ("ddp", "fsdp2")
STEPS = 4


@pytest.fixture
def generator():
    return own_generator()


def inputs():
    t_B = torch.tensor([0.1, 0.5, 0.9])
    return torch.randn(3, 4, 8, 8), t_B, torch.tensor([0, 7, 10])


def test_the_tapped_tokens_are_those_that_the_next_block_reads(generator):
    backbone, read = generator.dit, {}
    for number, layer in enumerate(backbone.inner.transformer_blocks):
        layer.register_forward_pre_hook(lambda _, args, n=number: read.update({n: args[0]}))
    given = inputs()
    v_BCHW, tapped = backbone(*given, taps=[1, 2])
    assert set(tapped) == {1, 2}
    assert all(tapped[tap] is read[tap] and tapped[tap].requires_grad for tap in tapped)
    assert tapped[1].shape == (3, backbone.grid**2, backbone.width)
    # In training mode too nothing is random, and no hook stays behind.
    assert torch.equal(backbone(*given), v_BCHW)
    assert tapped.keys() == backbone(*given, taps=[1, 2], tokens_only=True).keys()
    assert not any(layer._forward_hooks for layer in backbone.inner.transformer_blocks)


def test_its_flops_are_those_of_the_closed_form(generator):
    backbone = generator.dit
    n, d, p2c = backbone.grid**2, backbone.width, 4 * backbone.in_channels
    embedding = 2 * (256 * d + d * d)
    block = 2 * n * d * 3 * d + 2 * 2 * n * n * d + 2 * n * d * d + 2 * 2 * n * d * 4 * d
    ends = 2 * n * p2c * d + 2 * n * d * p2c + 2 * d * 2 * d + embedding
    assert forward_flops(backbone) == 3 * (block + 2 * d * 6 * d + embedding) + ends


@pytest.mark.parametrize("kind", ["ahpa", "self"])
def test_it_learns_with_alignment_and_is_measured_and_sampled(kind, generator, make_trainer):
    held_out = list(DataLoader(ToyLatents(40), batch_size=20))
    before = heldout_flow(generator, held_out)["flow"]
    trainer = make_trainer(
        generator, max_duration="32ba", algorithms=[AHPA(LEVELS, kind=kind), EMA(decay=0.9)]
    )
    trainer.fit()
    assert heldout_flow(generator, held_out)["flow"] < 0.9 * before
    index_B = torch.arange(2)
    latents_BCHW = sample(
        generator.dit,
        labels_B=index_B,
        index_B=index_B,
        shape=(4, 8, 8),
        path=generator.path,
        settings=SamplerSettings(steps=2, guidance_scale=2.0),
    )
    assert latents_BCHW.isfinite().all()


def _train_on_rank(rank: int, port: int, folder: str) -> None:
    meet(rank, port)
    for engine in ENGINES:
        generator = own_generator()
        result = train(Task(engine, "sgd", 0.5, STEPS), Path(folder) / engine, generator)
        parts = (generator.dit, *generator.dit.blocks)
        assert all(isinstance(part, FSDPModule) == (engine == "fsdp2") for part in parts)
        if rank == 0:
            torch.save(result, Path(folder) / f"{engine}.pt")
    leave()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Results of one process, and of two ranks by each engine."""
    folder = tmp_path_factory.mktemp("runs")
    alone = train(Task("alone", "sgd", 0.5, STEPS), folder / "alone", own_generator())
    torch.save(alone, folder / "alone.pt")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    start_ranks(_train_on_rank, (port, str(folder)))
    return folder


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_train_it_with_alignment_as_one_process_does(engine, folder):
    alone, together = (
        torch.load(folder / f"{name}.pt", weights_only=True) for name in ("alone", engine)
    )
    row = compare(Task(engine, "sgd", 0.5, STEPS), alone, together)
    assert row.weights <= BOUNDS["sgd"], row.worst
    assert row.average <= AVERAGE_BOUND
    assert max(row.norms, row.losses) <= LOG_BOUND
    assert row.samples <= 1e-3
    # Norms of the backbone's gradient and the heads', batch by batch.
    assert len(together["norms"]) == 2 * STEPS
    assert all(math.isfinite(norm) and norm > 1e-3 for norm in together["norms"])
    start = own_generator().state_dict()
    moved = {name: distance(start[name], together["weights"][name]) for name in start}
    # A key's bias cancels in the softmax.
    assert min(far for name, far in moved.items() if "to_k.bias" not in name) > 1e-5, moved
