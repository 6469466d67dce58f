# SPDX-License-Identifier: Apache-2.0
"""Guard's watch over the loss and over the time: spikes by rule, an end that can be resumed."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch
from composer import Callback
from conftest import ToyLatents
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from toy_trainer import newest

from ahpa_scale.algorithms import EMA, Guard
from ahpa_scale.algorithms.guard import Spikes
from ahpa_scale.algorithms.guard.spikes import SpikeWatch, spike_level
from ahpa_scale.checkpoint.saver import Saver
from ahpa_scale.exits import RollBackError, RunStoppedError

LOSSES = st.lists(st.floats(0.1, 10.0), min_size=10, max_size=60)


@given(clean=LOSSES, wild=st.floats(1e3, 1e30), share=st.floats(0, 0.45), seed=st.integers(0, 99))
def test_wild_losses_in_the_window_hardly_move_the_level(clean, wild, share, seed):
    """Fewer than half of a window can't lift the level beyond what the clean losses span; a mean
    and a deviation would follow the first wild one.
    """
    losses = list(clean)
    for place in random.Random(seed).sample(range(len(losses)), int(share * len(losses))):
        losses[place] = wild
    span = max(clean) - min(clean)
    assert spike_level(losses, 8.0) <= max(clean) + 8 * 1.4826 * span + 1e-3


@given(losses=LOSSES, factor=st.floats(1e-3, 1e3), threshold=st.floats(0.5, 20))
def test_the_level_scales_with_the_loss(losses, factor, threshold):
    scaled = spike_level([loss * factor for loss in losses], threshold)
    assert scaled == pytest.approx(spike_level(losses, threshold) * factor, rel=1e-6)


@given(seed=st.integers(0, 10**6))
def test_gaussian_noise_is_no_spike_and_three_wild_losses_are(seed):
    noise = random.Random(seed)
    watch = SpikeWatch(Spikes(window=100, threshold=8.0, patience=3))
    for _ in range(500):
        assert watch.see(noise.gauss(1.0, 0.05)) is None
    due = []
    for _ in range(4):
        assert watch.see(3.0) is not None
        due.append(watch.due())
    assert due == [False, False, True, False]
    assert watch.see(1.0) is None
    assert watch.streak == 0


def test_nothing_is_a_spike_before_the_window_is_full_and_nonfinite_losses_do_not_count():
    watch = SpikeWatch(Spikes(window=10, patience=1))
    for loss in [1.0] * 9:
        watch.see(loss)
    for loss in (math.nan, math.inf, -math.inf):
        assert watch.see(loss) is None
    assert watch.see(100.0) is None  # the tenth
    assert watch.see(100.0) is not None


def test_a_loss_that_has_moved_for_good_becomes_the_normal():
    watch = SpikeWatch(Spikes(window=20, patience=5))
    for number in range(20):
        watch.see(1 + number % 3 / 100)
    spikes = [watch.see(2 + number % 3 / 100) is not None for number in range(20)]
    assert spikes[0]
    assert not spikes[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 9}, "at least 10"),
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": math.inf}, "threshold"),
        ({"patience": 0}, "1 to 50"),
        ({"window": 20, "patience": 11}, "1 to 10"),
    ],
)
def test_impossible_rules_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Spikes(**options)


class Jump(Callback):
    """Multiplies the loss from a batch on; the gradients stay as they are."""

    def __init__(self, first: int, last: int) -> None:
        self.batches = range(first - 1, last)

    def before_backward(self, state, logger) -> None:
        if state.timestamp.batch.value in self.batches:
            state.loss["total"] = state.loss["total"] + 1e3


RULE = {"window": 10, "threshold": 20.0, "patience": 2}


def many(**settings) -> dict:
    return {"train_dataloader": DataLoader(ToyLatents(512), batch_size=16), **settings}


@pytest.mark.parametrize("action", ["warn", "stop", "rollback"])
def test_spikes_in_a_row_bring_the_policy(action, make_trainer, tmp_path, caplog):
    guard = Guard(tmp_path, spikes=Spikes(action, **RULE), save_folder=str(tmp_path / "saved"))
    trainer = make_trainer(
        algorithms=[guard], callbacks=[Jump(14, 16)], max_duration="18ba", **many()
    )
    if action == "warn":
        trainer.fit()
    else:
        error = RunStoppedError if action == "stop" else RollBackError
        with pytest.raises(error, match="in batch 15 is the last of 2 spikes"):
            trainer.fit()
    (told,) = [json.loads(line) for line in (tmp_path / "guard.jsonl").read_text().splitlines()]
    assert (told["event"], told["batch"], told["action"]) == ("spikes", 15, action)
    assert told["loss"] > 900 > told["level"]
    assert told["samples"] == list(range(14 * 16, 15 * 16))
    assert len([line for line in caplog.messages if line.startswith("guard: loss ")]) == 1


def test_fewer_spikes_than_patience_bring_nothing(make_trainer, tmp_path):
    guard = Guard(tmp_path, spikes=Spikes("stop", **RULE))
    make_trainer(algorithms=[guard], callbacks=[Jump(14, 14)], max_duration="18ba", **many()).fit()
    assert not (tmp_path / "guard.jsonl").exists()


def test_a_resumed_run_remembers_the_losses(make_trainer, tmp_path):
    """The window was filled before the checkpoint; with an empty one batch 15 would be no spike."""
    saves = {"save_folder": str(tmp_path), "save_filename": "ba{batch}.pt", "save_interval": "13ba"}
    make_trainer(
        algorithms=[Guard(spikes=Spikes("stop", **RULE))], max_duration="13ba", **many(**saves)
    ).fit()
    trainer = make_trainer(
        algorithms=[Guard(spikes=Spikes("stop", **RULE))],
        callbacks=[Jump(14, 16)],
        max_duration="18ba",
        load_path=str(tmp_path / "ba13.pt"),
        **many(),
    )
    with pytest.raises(RunStoppedError, match="in batch 15"):
        trainer.fit()


def test_a_run_out_of_time_ends_with_a_checkpoint_and_goes_on_from_it(
    make_generator, make_trainer, tmp_path, caplog
):
    """This process is older than a millisecond: the first batch is the last. The rest of the run,
    with a limit far away, ends like one that was never cut.
    """
    saved = tmp_path / "saved"

    def train(limit: float | None, **settings):
        model, ema = make_generator(), EMA(decay=0.5)
        trainer = make_trainer(
            model,
            algorithms=[Guard(tmp_path, time_limit=limit), ema],
            optimizers=torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True),
            max_duration="4ba",
            **settings,
        )
        trainer.fit()
        return trainer, ema

    cut, _ = train(0.001, callbacks=[Saver(str(saved), "100ba")])
    assert cut.state.timestamp.batch.value == 1
    assert "the time limit of 0.001 s has passed at batch 1; the run ends" in caplog.text
    (told,) = [json.loads(line) for line in (tmp_path / "guard.jsonl").read_text().splitlines()]
    assert (told["event"], told["batch"]) == ("time_limit", 1)
    resumed, resumed_ema = train(1e9, callbacks=[newest(saved)])
    whole, whole_ema = train(None)
    assert resumed.state.timestamp.batch.value == whole.state.timestamp.batch.value == 4
    for name, value in whole.state.model.state_dict().items():
        torch.testing.assert_close(resumed.state.model.state_dict()[name], value, rtol=0, atol=0)
    for name, value in whole_ema.shadow.items():
        torch.testing.assert_close(resumed_ema.shadow[name], value, rtol=0, atol=0)
