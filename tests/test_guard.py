# SPDX-License-Identifier: Apache-2.0
"""Guard on a real Trainer: bad batches change nothing that is kept, are written down, and end the
run as the policy says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback
from composer.loggers import InMemoryLogger
from conftest import LEVELS, ToyLatents
from torch.utils.data import DataLoader

from ahpa_scale.algorithms import AHPA, EMA, GradClip, Guard
from ahpa_scale.algorithms.guard import Spikes, nonfinite_flag
from ahpa_scale.exits import RollBackError, RunStoppedError
from ahpa_scale.method import HeadSettings, RouterSettings

BATCH = 16


class Poisoned(ToyLatents):
    """Latents of which some samples are not a number."""

    def __init__(self, *bad: int, num_samples: int = 64) -> None:
        super().__init__(num_samples)
        self.bad = bad

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        if index in self.bad:
            for key in sample.keys() - {"index", "epoch", "label"}:
                sample[key] = sample[key] * math.nan
        return sample


def loader(*bad: int, num_samples: int = 64) -> DataLoader:
    return DataLoader(Poisoned(*bad, num_samples=num_samples), batch_size=BATCH)


class Kept(Callback):
    """Copies all that training keeps, after each batch."""

    def __init__(self) -> None:
        self.after: list[dict[str, torch.Tensor]] = []

    def batch_end(self, state, logger) -> None:
        kept = {f"model.{k}": v.detach().clone() for k, v in state.model.state_dict().items()}
        for optimizer in state.optimizers:
            for number, one in enumerate(optimizer.state.values()):
                kept |= {
                    f"optimizer.{number}.{key}": value.clone()
                    for key, value in one.items()
                    if isinstance(value, torch.Tensor)
                }
        self.after.append(kept)


def adamw(model, **settings):
    return torch.optim.AdamW(model.parameters(), lr=1e-2, **settings)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "fused AdamW": lambda model: adamw(model, fused=True),
    "AdamW": lambda model: adamw(model, weight_decay=0.1),
    "fused SGD": lambda model: torch.optim.SGD(
        model.parameters(), lr=1e-2, momentum=0.9, fused=True
    ),
}


def assert_same(now: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> None:
    for name in before:
        torch.testing.assert_close(now[name], before[name], rtol=0, atol=0, msg=name)


def assert_finite(kept: dict[str, torch.Tensor]) -> None:
    assert [name for name, value in kept.items() if not value.isfinite().all()] == []


@pytest.mark.parametrize("micro", [16, 4])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_bad_batch_changes_nothing(optimizer, clip, micro, make_generator, make_trainer):
    model, kept = make_generator(), Kept()
    ema = EMA(decay=0.5)
    aligned = AHPA(
        LEVELS,
        head=HeadSettings(width=32),
        router=RouterSettings(objective="gap"),
        gradient_ratio=0.5,
    )
    trainer = make_trainer(
        model,
        algorithms=[aligned, Guard(), *([GradClip(1.0)] if clip else []), ema],
        optimizers=OPTIMIZERS[optimizer](model),
        callbacks=[kept],
        train_dataloader=loader(20),
        device_train_microbatch_size=micro,
    )
    trainer.fit()
    first, bad, third, last = kept.after
    assert_same(bad, first)
    assert not torch.equal(third["model.dit.blocks.0.attn.qkv.weight"],
                           bad["model.dit.blocks.0.attn.qkv.weight"])  # fmt: skip
    assert_finite(last)
    assert all(average.isfinite().all() for average in ema.shadow.values())
    trend = model.attachments["alignment"].trend.state()
    assert math.isfinite(trend["fast"])
    assert trend["fast"] != 0


def test_without_the_guard_the_same_batch_spoils_everything(make_generator, make_trainer):
    model, kept = make_generator(), Kept()
    trainer = make_trainer(
        model, optimizers=adamw(model, fused=True), callbacks=[kept], train_dataloader=loader(20)
    )
    trainer.fit()
    assert not kept.after[-1]["model.dit.blocks.0.attn.qkv.weight"].isfinite().any()


def test_a_skipped_first_batch_is_no_trouble(make_generator, make_trainer):
    for optimizer in OPTIMIZERS.values():
        model, kept = make_generator(), Kept()
        before = {f"model.{k}": v.clone() for k, v in model.state_dict().items()}
        make_trainer(
            model,
            algorithms=[Guard()],
            optimizers=optimizer(model),
            callbacks=[kept],
            train_dataloader=loader(3),
        ).fit()
        assert_same(kept.after[0], before)
        assert_finite(kept.after[-1])


class InfiniteGradient(Callback):
    """Makes one element of one gradient infinite in the second batch; the loss stays finite."""

    def after_backward(self, state, logger) -> None:
        if state.timestamp.batch.value == 1:
            state.model.dit.blocks[0].attn.qkv.weight.grad[0, 0] = math.inf


@pytest.mark.parametrize("order", ["guard first", "clip first", "guard alone"])
def test_an_infinite_gradient_is_found_whatever_the_order(order, make_generator, make_trainer):
    model, kept = make_generator(), Kept()
    algorithms = {
        "guard first": [Guard(), GradClip(1.0)],
        "clip first": [GradClip(1.0), Guard()],
        "guard alone": [Guard()],
    }[order]
    make_trainer(
        model,
        algorithms=algorithms,
        optimizers=adamw(model, fused=True),
        callbacks=[InfiniteGradient(), kept],
    ).fit()
    assert_same(kept.after[1], kept.after[0])
    assert_finite(kept.after[-1])
    assert not torch.equal(
        kept.after[2]["optimizer.0.exp_avg"], kept.after[1]["optimizer.0.exp_avg"]
    )


def test_a_clean_run_is_bit_identical_with_and_without(make_generator, make_trainer):
    ends = []
    for guards in ([], [Guard(spikes=Spikes())]):
        model, kept = make_generator(), Kept()
        algorithms = [AHPA(LEVELS, head=HeadSettings(width=32)), *guards, GradClip(1.0)]
        make_trainer(
            model, algorithms=algorithms, optimizers=adamw(model, fused=True), callbacks=[kept]
        ).fit()
        ends.append(kept.after[-1])
    assert_same(*ends)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "guard.jsonl").read_text().splitlines()]


def test_a_bad_batch_is_written_down_with_its_samples(
    make_generator, make_trainer, tmp_path, caplog
):
    log = InMemoryLogger()
    make_trainer(
        algorithms=[Guard(tmp_path / "run"), GradClip(1.0)],
        train_dataloader=loader(20, 40),
        device_train_microbatch_size=4,
        loggers=log,
        max_duration="5ba",
    ).fit()
    told = records(tmp_path / "run")
    assert [(one["event"], one["action"], one["batch"]) for one in told] == [
        ("nonfinite", "skip", 2),
        ("nonfinite", "skip", 3),
    ]
    assert told[0]["samples"] == list(range(16, 32))
    assert told[1]["samples"] == list(range(32, 48))
    assert told[0]["losses"] == [None]
    assert told[0]["grad_norms"] == {"backbone": None}
    assert [value for _, value in log.data["guard/nonfinite"]] == [1.0, 1.0]
    lines = [line for line in caplog.messages if line.startswith("guard: ")]
    assert len(lines) == 2
    assert "in batch 3, which changed nothing (2 in a row); policy: skip" in lines[1]


def test_patience_counts_bad_batches_in_a_row_only(make_generator, make_trainer, tmp_path):
    spread = make_trainer(algorithms=[Guard(patience=2)], train_dataloader=loader(0, 40))
    spread.fit()
    assert spread.state.timestamp.batch.value == 4
    guard = Guard(tmp_path, patience=2)
    trainer = make_trainer(algorithms=[guard], train_dataloader=loader(16, 40))
    with pytest.raises(RunStoppedError, match=r"batch 3, which changed nothing \(2 in a row\)"):
        trainer.fit()
    assert [one["action"] for one in records(tmp_path)] == ["skip", "stop"]


def test_policy_stop_and_policy_none(make_generator, make_trainer):
    trainer = make_trainer(algorithms=[Guard(nonfinite="stop")], train_dataloader=loader(20))
    with pytest.raises(RunStoppedError, match="not finite in batch 2") as stop:
        trainer.fit()
    assert stop.value.exit_code == 70
    kept = Kept()
    guard = Guard(nonfinite="none")
    make_trainer(algorithms=[guard], train_dataloader=loader(20), callbacks=[kept]).fit()
    assert not kept.after[-1]["model.dit.blocks.0.attn.qkv.weight"].isfinite().any()


def test_a_batch_that_is_bad_each_time_ends_the_run_after_its_rollbacks(
    make_generator, make_trainer, tmp_path
):
    """Four processes: bad at 6; again; a third time, that is one too many; then the data is mended
    and later, beyond a newer checkpoint, a rollback is free again.
    """
    saves = {"save_folder": str(tmp_path / "saved"), "save_interval": "4ba", "save_overwrite": True}
    saves |= {"save_filename": "ba{batch}.pt", "save_latest_filename": "latest.pt"}

    def train(*bad: int) -> Any:
        guard = Guard(tmp_path, nonfinite="rollback", save_folder=saves["save_folder"], rollbacks=2)
        latest = tmp_path / "saved" / "latest.pt"
        return make_trainer(
            algorithms=[guard],
            train_dataloader=loader(*bad, num_samples=256),
            max_duration="12ba",
            load_path=str(latest) if latest.exists() else None,
            **saves,
        )

    for _ in range(2):
        with pytest.raises(RollBackError, match="checkpoint of batch 4") as stop:
            train(5 * BATCH).fit()
        assert stop.value.exit_code == 76
    with pytest.raises(RunStoppedError, match="2 rollback") as stop:
        train(5 * BATCH).fit()
    assert stop.value.exit_code == 70
    with pytest.raises(RollBackError, match="checkpoint of batch 8"):
        train(9 * BATCH).fit()
    assert [(one["batch"], one["action"]) for one in records(tmp_path)] == [
        (6, "rollback"),
        (6, "rollback"),
        (6, "stop"),
        (10, "rollback"),
    ]


class OwnGradients(torch.optim.SGD):
    """Keeps its gradients to itself, as ZeRO does, and leaves out the step it finds infinite."""

    last_norms: tuple[Any, ...] = ()

    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        self.last_norms = (torch.tensor(1.0), math.inf if len(self.seen) == 1 else 2.0)
        self.seen.append(self.last_norms)
        return loss


def test_an_optimizer_that_keeps_its_gradients_hands_over_its_norms(
    make_generator, make_trainer, tmp_path
):
    model = make_generator()
    optimizer = OwnGradients(model.parameters(), lr=0.1)
    optimizer.seen = []
    make_trainer(model, algorithms=[Guard(tmp_path)], optimizers=optimizer).fit()
    (told,) = records(tmp_path)
    assert told["batch"] == 2
    assert told["grad_norms"] == {"group 0": 1.0, "group 1": None}


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_the_flag_sees_every_kind_of_bad_number(bad):
    assert nonfinite_flag([torch.tensor(1.0), torch.tensor([3e38])]).item() == 0.0
    assert nonfinite_flag([torch.tensor(1.0), torch.tensor(bad)]).item() == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nonfinite": "ignore"}, "choose one of none, skip"),
        ({"patience": 0}, "at least 1"),
        ({"rollbacks": 0}, "at least 1"),
        ({"nonfinite": "rollback"}, "save_folder"),
        ({"spikes": Spikes("rollback")}, "save_folder"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Guard(**options)
