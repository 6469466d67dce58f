# SPDX-License-Identifier: Apache-2.0
"""The learning rate of each batch, whole and resumed."""

from __future__ import annotations

from math import cos, pi

import pytest
from composer.core import Callback
from toy_trainer import newest, toy_trainer

from ahpa_scale.checkpoint.saver import Saver
from ahpa_scale.run.learning_rate import build_schedule

#: Batches of a run; an epoch has six, of four samples each.
LENGTH = 12
#: Batches that are done when Composer sets the rate of each batch: it does so before it counts.
DONE = [0, *range(LENGTH - 1)]


class Rates(Callback):
    """Notes the factor that each batch is trained with."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def batch_start(self, state, logger) -> None:
        (group,) = state.optimizers[0].param_groups
        self.seen.append(group["lr"] / group["initial_lr"])


class Stop(Callback):
    """Ends the process after ten batches."""

    def batch_end(self, state, logger) -> None:
        if state.timestamp.batch == 11:
            raise InterruptedError


def rates(config, length: str = f"{LENGTH}ba", callbacks: tuple = ()) -> list[float]:
    noted = Rates()
    toy_trainer(length, callbacks=[noted, *callbacks], schedulers=build_schedule(config)).fit()
    return noted.seen


@pytest.mark.parametrize(
    ("overrides", "factor"),
    [
        ([], lambda share: 1.0),
        (["schedule=linear"], lambda share: 1 - share),
        (["schedule=linear", "final=0.5"], lambda share: 1 - share / 2),
        (["schedule=cosine"], lambda share: (1 + cos(pi * share)) / 2),
        (["schedule=cosine", "final=0.2"], lambda share: 0.2 + 0.8 * (1 + cos(pi * share)) / 2),
        (["schedule=wsd"], lambda share: min(1, (1 - share) / 0.2)),
        (["schedule=wsd", "decay=0.5", "final=0.1"], lambda s: 1 - 0.9 * max(0, s - 0.5) / 0.5),
    ],
)
@pytest.mark.parametrize("length", [f"{LENGTH}ba", "2ep", f"{4 * LENGTH}sp"])
def test_the_rate_follows_its_schedule(load, overrides, factor, length):
    config = load(*(f"optimizer.{each}" for each in overrides))
    expected = [factor(done / LENGTH) for done in DONE]
    assert rates(config, length) == pytest.approx(expected)
    warm = load("optimizer.warmup=4ba", *(f"optimizer.{each}" for each in overrides))
    risen = [min(1, done / 4) * value for done, value in zip(DONE, expected, strict=True)]
    assert rates(warm, length) == pytest.approx(risen)


@pytest.mark.parametrize("warmup", ["3ba", "12sp", "0.25dur"])
def test_a_warm_up_is_given_in_any_unit(load, warmup):
    expected = [min(1, done / 3) for done in DONE]
    assert rates(load(f"optimizer.warmup={warmup}"), "2ep") == pytest.approx(expected)


def test_a_resumed_run_goes_on_with_it(load, tmp_path):
    config = load("optimizer.schedule=wsd", "optimizer.decay=0.75", "optimizer.warmup=2ba")
    whole = rates(config)
    with pytest.raises(InterruptedError):  # after the fall has begun
        rates(config, callbacks=(Saver(str(tmp_path / "saved"), "5ba"), Stop()))
    assert rates(config, callbacks=(newest(tmp_path / "saved"),)) == whole[10:]


def test_what_does_nothing_is_refused(complaint):
    assert "optimizer.final: 0.1 would have no effect" in complaint("optimizer.final=0.1")
    linear = ["optimizer.schedule=linear", "optimizer.decay=0.5"]
    assert "it belongs to optimizer.schedule=wsd" in complaint(*linear)
