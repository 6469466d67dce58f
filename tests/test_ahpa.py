# SPDX-License-Identifier: Apache-2.0
"""AHPA on a real Trainer: what it attaches, when it acts, what survives a checkpoint."""

from __future__ import annotations

import math

import pytest
import torch
from alignments import nested
from composer.core import Callback
from composer.loggers import InMemoryLogger
from conftest import LEVELS, ToyLatents
from torch.utils.data import DataLoader

from ahpa_scale.algorithms import EMA
from ahpa_scale.algorithms.ahpa import AHPA, KINDS
from ahpa_scale.method import HeadSettings
from ahpa_scale.method.priors import patchify
from ahpa_scale.models.prior_sources import VelocitySource


class Recorder(Callback):
    """Notes each batch's losses, the alignment's weight and the gradient of its heads."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def after_train_batch(self, state, logger) -> None:
        model = getattr(state.model, "module", state.model)
        if "alignment" in model.attachments:
            grads = [p.grad for p in model.attachments["alignment"].heads.parameters()]
            self.rows.append(
                {
                    "weight": model.weight("alignment"),
                    "head_grad": sum(g.abs().sum().item() for g in grads if g is not None),
                    "loss": float(state.outputs["auxiliary"]["alignment"]),
                }
            )


def ahpa(**settings) -> AHPA:
    return AHPA(LEVELS, **nested({"head_width": 32, "log_interval": "2ba", **settings}))


def test_five_lines_attach_it_and_its_parameters_are_trained(make_generator, make_trainer):
    model = make_generator()
    log = InMemoryLogger()
    trainer = make_trainer(model, algorithms=[ahpa(loss_interval="1ba")], loggers=log)
    before = {n: p.clone() for n, p in model.attachments.named_parameters()}
    optimizer = trainer.state.optimizers[0]
    assert len(optimizer.param_groups) == 2
    trainer.fit()
    changed = {n for n, p in model.attachments.named_parameters() if not torch.equal(p, before[n])}
    assert {"alignment.heads.0.0.weight", "alignment.heads.2.4.bias"} <= changed
    assert any(name.startswith("alignment.router.mlp") for name in changed)
    assert {"loss/train/total", "loss/train/flow"} == set(trainer.state.total_loss_dict)
    total, flow, aligned = (
        [value for _, value in log.data[f"loss/train/{name}"]]
        for name in ("total", "flow", "alignment")
    )
    assert len(aligned) == 4
    assert total == pytest.approx([f + 0.5 * a for f, a in zip(flow, aligned, strict=True)])


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_trains_and_aligns_what_it_says(kind: str, make_generator, make_trainer):
    class External(ToyLatents):
        def __getitem__(self, index):
            return {
                **super().__getitem__(index),
                "prior.external": torch.ones(5, 4, 4).half() * index,
            }

    model = make_generator()
    algorithm = AHPA(
        {**LEVELS, "external": 5},
        kind=kind,
        head=HeadSettings(width=32),
        level="coarse_layout" if kind == "single" else None,
        loss_interval="4ba",
    )
    log = InMemoryLogger()
    trainer = make_trainer(
        model,
        loggers=log,
        algorithms=[algorithm, EMA(decay=0.5)],
        train_dataloader=DataLoader(External(), batch_size=16),
    )
    trainer.fit()
    groups = model.attachments["alignment"].groups
    expected = {
        "single": {"coarse_layout": ("encoder.mid_block",)},
        "latent": {"latent": ("latent",)},
        "velocity": {"velocity": ("velocity",)},
        "repa": {"external": ("external",)},
        "self": {"self.2": ("self.2",)},
    }.get(kind)
    assert groups == (
        expected
        or dict(
            zip(
                ("local_geometry", "spatial_topology", "coarse_layout"),
                ((n,) for n in LEVELS),
                strict=True,
            )
        )
    )
    assert algorithm.weight == (1.0 if kind == "latent" else 0.5)
    ((_, aligned),) = log.data["loss/train/alignment"]
    assert math.isfinite(aligned)
    assert aligned != 0


def test_the_velocity_head_is_judged_as_the_backbone_is(make_generator, toy_batch):
    """Silent, both have the same loss; and the head that knows the answer has none."""
    model = make_generator()
    head = AHPA({}, kind="velocity").build(model.dit)
    torch.nn.init.zeros_(head.heads[0].weight)
    torch.nn.init.zeros_(head.heads[0].bias)
    model.attach("head", head, taps=2)
    model.add_source(VelocitySource())
    outputs = model(toy_batch)
    assert outputs["velocity"].abs().max() == 0, "the backbone starts silent"
    torch.testing.assert_close(outputs["auxiliary"]["head"], model.loss(outputs, None)["flow"])
    grid = model.dit.grid
    head.heads[0] = torch.nn.Identity()
    answer_BND = patchify(outputs["target"], grid)
    found = head({2: answer_BND}, outputs["t"], {"prior.velocity": outputs["target"]})
    assert found == 0


@pytest.mark.parametrize(
    ("kind", "depth", "tap"),
    [
        ("ahpa", 12, 3),
        ("ahpa", 24, 6),
        ("ahpa", 28, 7),
        ("ahpa", 6, 2),
        ("latent", 12, 2),
        ("latent", 28, 2),
        ("velocity", 12, 3),
        ("velocity", 28, 7),
        ("repa", 12, 4),
        ("repa", 24, 8),
        ("repa", 28, 8),
        ("ahpa", 1, 1),
    ],
)
def test_default_taps_are_the_published_ones(kind: str, depth: int, tap: int):
    assert KINDS[kind].tap(depth) == tap


def test_it_acts_from_start_until_release(make_generator, make_trainer):
    recorder = Recorder()
    trainer = make_trainer(
        make_generator(),
        algorithms=[ahpa(start="2ba", until="0.75dur")],
        callbacks=[recorder],
        max_duration="8ba",
    )
    trainer.fit()
    assert [row["weight"] for row in recorder.rows] == [0, 0, 0.5, 0.5, 0.5, 0.5, 0, 0]
    assert [row["head_grad"] > 0 for row in recorder.rows] == [
        False,
        False,
        True,
        True,
        True,
        True,
        False,
        False,
    ]
    assert recorder.rows[-1]["loss"] == 0


def test_a_released_run_goes_on_exactly_like_one_without_alignment(make_generator, make_trainer):
    """until=0: heads are there but never act, so the DiT must train as if they weren't."""
    plain, released = make_generator(), make_generator()
    make_trainer(plain).fit()
    make_trainer(released, algorithms=[ahpa(until="0ba")]).fit()
    for (name, a), (_, b) in zip(
        plain.dit.named_parameters(), released.dit.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name


def test_router_weights_are_logged_per_level_and_t(make_generator, make_trainer):
    from composer.loggers import InMemoryLogger

    memory = InMemoryLogger()
    model = make_generator()
    make_trainer(model, algorithms=[ahpa()], loggers=[memory]).fit()
    keys = [key for key in memory.data if key.startswith("router/")]
    assert {key.split("/")[1] for key in keys} == {
        "local_geometry",
        "spatial_topology",
        "coarse_layout",
    }
    summary = model.attachments["alignment"].summary()
    assert summary["batch"] == 4
    assert sum(summary["count_T"]) == 2 * 16
    weights = [
        column for column in zip(*summary["weight_GT"], strict=True) if column[0] is not None
    ]
    assert all(sum(column) == pytest.approx(1, abs=1e-4) for column in weights)


def test_the_last_report_covers_a_broken_interval_and_an_even_end_keeps_its_own(
    make_generator, make_trainer
):
    for interval, batches in (("3ba", 1), ("2ba", 2)):
        model = make_generator()
        make_trainer(model, algorithms=[ahpa(log_interval=interval)]).fit()
        summary = model.attachments["alignment"].summary()
        assert summary["batch"] == 4
        assert sum(summary["count_T"]) == batches * 16


def test_state_survives_a_checkpoint(make_generator, make_trainer, tmp_path):
    straight = make_generator()
    make_trainer(straight, algorithms=[ahpa()], max_duration="8ba").fit()
    make_trainer(
        make_generator(),
        algorithms=[ahpa()],
        max_duration="4ba",
        save_folder=str(tmp_path),
        save_filename="four.pt",
        save_interval="4ba",
    ).fit()
    resumed = make_generator(seed=9)
    make_trainer(
        resumed, algorithms=[ahpa()], max_duration="8ba", load_path=str(tmp_path / "four.pt")
    ).fit()
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("saved", "loaded", "message"),
    [
        (True, False, "holds state of the auxiliary 'alignment'"),
        (False, True, "but the checkpoint was trained without it"),
    ],
)
def test_ahpa_missing_on_one_side_of_a_checkpoint_is_said_clearly(
    saved: bool, loaded: bool, message: str, make_generator, make_trainer, tmp_path
):
    make_trainer(
        make_generator(),
        algorithms=[ahpa()] if saved else [],
        max_duration="1ba",
        save_folder=str(tmp_path),
        save_filename="one.pt",
        save_interval="1ba",
    ).fit()
    with pytest.raises(ValueError, match=message):
        make_trainer(
            make_generator(),
            algorithms=[ahpa()] if loaded else [],
            load_path=str(tmp_path / "one.pt"),
        )


def test_resuming_with_another_tap_is_refused(make_generator, make_trainer, tmp_path):
    make_trainer(
        make_generator(),
        algorithms=[ahpa(tap=1)],
        max_duration="1ba",
        save_folder=str(tmp_path),
        save_filename="one.pt",
        save_interval="1ba",
    ).fit()
    with pytest.raises(ValueError, match=r"alignment.tap=1, this run has 2"):
        make_trainer(make_generator(), algorithms=[ahpa(tap=2)], load_path=str(tmp_path / "one.pt"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "apha"}, "unknown kind of alignment 'apha'"),
        ({"kind": "single"}, "neither a group nor a level"),
        ({"kind": "repa"}, "aligns the level 'external', but the batches bring encoder"),
        ({"groups": {"x": ["encoder.down_blocks.7"]}}, "aligns the level 'encoder.down_blocks.7'"),
    ],
)
def test_wrong_settings_are_named(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        AHPA(LEVELS, **nested(settings))
