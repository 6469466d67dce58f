# SPDX-License-Identifier: Apache-2.0
"""When the alignment is taken back: at a moment, by measurement, at once or along a ramp."""

from __future__ import annotations

import logging
import math

import pytest
from alignments import nested
from composer.core import Callback
from composer.loggers import InMemoryLogger
from conftest import LEVELS

from ahpa_scale.algorithms.ahpa import AHPA, Release

#: Sees a plateau as soon as it may: any residual counts as no improvement on another.
AT_ONCE = {"fast": 0.5, "slow": 0.9, "improvement": 0.9}


class Weights(Callback):
    """Notes the alignment's weight in each batch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def after_train_batch(self, state, logger) -> None:
        self.seen.append(state.model.weight("alignment"))


def ahpa(**settings) -> AHPA:
    return AHPA(
        LEVELS, **nested({"head_width": 32, "log_interval": "2ba", "weight": 1.0, **settings})
    )


def ramp(length: int) -> list[float]:
    return [0.5 + 0.5 * math.cos(math.pi * n / length) for n in range(length)]


@pytest.mark.parametrize(
    ("settings", "duration", "expected"),
    [
        ({"until": "2ba", "ramp": "4ba"}, "8ba", [1, 1, *ramp(4), 0, 0]),
        ({"until": "0.25dur", "ramp": "0.5dur"}, "8ba", [1, 1, *ramp(4), 0, 0]),
        ({"until": "32sp", "ramp": "64sp"}, "8ba", [1, 1, *ramp(4), 0, 0]),
        ({"until": "1ep", "ramp": "1ep"}, "3ep", [1] * 4 + ramp(4) + [0] * 4),
        ({"until": "0.25dur", "ramp": "0.5dur"}, "4ep", [1] * 4 + ramp(8) + [0] * 4),
        ({"until": "3ba"}, "5ba", [1, 1, 1, 0, 0]),
        ({"until": "3ba", "ramp": "0ba"}, "5ba", [1, 1, 1, 0, 0]),
        ({"start": "1ba", "until": "2ba", "ramp": "2ba"}, "5ba", [0, 1, *ramp(2), 0]),
    ],
)
def test_the_weight_falls_from_until_on(settings, duration, expected, make_trainer):
    weights = Weights()
    trainer = make_trainer(
        algorithms=[ahpa(**settings)], callbacks=[weights], max_duration=duration
    )
    trainer.fit()
    assert weights.seen == pytest.approx(expected)


def test_a_plateau_releases_at_a_report_and_along_the_ramp(make_trainer):
    weights, memory = Weights(), InMemoryLogger()
    chosen = ahpa(release=Release(**AT_ONCE, ramp="4ba"))
    make_trainer(
        algorithms=[chosen], callbacks=[weights], loggers=[memory], max_duration="10ba"
    ).fit()
    assert weights.seen == pytest.approx([1, 1, *ramp(4), 0, 0, 0, 0])
    assert len(memory.data["alignment/released"]) == 1


def test_an_improving_residual_is_not_released(make_trainer):
    weights = Weights()
    # Only a fast average above the slow one by half would count as a plateau.
    rule = Release(fast=0.5, slow=0.9, improvement=0.0, ramp="4ba")
    chosen = ahpa(release=rule, loss="smooth_l1")
    trainer = make_trainer(algorithms=[chosen], callbacks=[weights], max_duration="8ba")
    trainer.state.optimizers[0].param_groups[-1]["lr"] = 1e-2
    trainer.fit()
    assert weights.seen == [1] * 8


def test_a_measured_release_goes_on_after_a_resume(make_generator, make_trainer, tmp_path):
    def run(duration: str, **settings) -> list[float]:
        weights = Weights()
        chosen = ahpa(release=Release(**AT_ONCE, ramp="0.5dur"), log_interval="3ba")
        make_trainer(
            make_generator(),
            algorithms=[chosen],
            callbacks=[weights],
            max_duration=duration,
            **settings,
        ).fit()
        return weights.seen

    whole = run("12ba")
    assert whole == pytest.approx([1, 1, 1, *ramp(6), 0, 0, 0])
    folder = {"save_folder": str(tmp_path), "save_filename": "ba{batch}.pt", "save_interval": "1ba"}
    first = run("12ba", **folder)
    assert first == whole
    assert run("12ba", load_path=str(tmp_path / "ba2.pt")) == pytest.approx(whole[2:])
    assert run("12ba", load_path=str(tmp_path / "ba5.pt")) == pytest.approx(whole[5:])
    # A longer run neither takes the release back nor stretches it.
    assert run("24ba", load_path=str(tmp_path / "ba5.pt"))[:4] == pytest.approx(whole[5:9])


def test_a_later_until_takes_a_release_back(make_generator, make_trainer, tmp_path):
    def run(until: str, duration: str, **settings) -> list[float]:
        weights = Weights()
        make_trainer(
            make_generator(),
            algorithms=[ahpa(until=until, ramp="2ba")],
            callbacks=[weights],
            max_duration=duration,
            **settings,
        ).fit()
        return weights.seen

    folder = {"save_folder": str(tmp_path), "save_filename": "ba{batch}.pt", "save_interval": "1ba"}
    assert run("2ba", "4ba", **folder) == pytest.approx([1, 1, *ramp(2)])
    resumed = run("6ba", "8ba", load_path=str(tmp_path / "ba4.pt"))
    assert resumed == pytest.approx([1, 1, *ramp(2)])


def test_the_balance_does_not_undo_a_ramp(make_generator, make_trainer):
    model = make_generator()
    chosen = ahpa(weight=None, gradient_ratio=0.3, until="4ba", ramp="8ba")
    memory = InMemoryLogger()
    make_trainer(model, algorithms=[chosen], loggers=[memory], max_duration="10ba").fit()
    factors = [value for _, value in memory.data["alignment/factor"]]
    # The batch at `until` still has its full weight.
    assert factors[2:] == [factors[2]] * 3
    assert factors[0] != factors[1]


def test_a_plateau_without_a_release_is_warned_of_once(make_trainer, caplog, monkeypatch):
    # The usual rule waits for 2,000 batches.
    monkeypatch.setattr("ahpa_scale.method.trend.Plateau.warm_up", 2)
    monkeypatch.setattr("ahpa_scale.method.trend.Plateau.improvement", 0.9, raising=False)
    memory = InMemoryLogger()
    chosen = ahpa()
    with caplog.at_level(logging.WARNING, logger="ahpa_scale"):
        make_trainer(algorithms=[chosen], loggers=[memory], max_duration="8ba").fit()
    lines = [r.message for r in caplog.records if "no longer helps: release it" in r.message]
    assert len(lines) == 1
    assert len(memory.data["alignment/warning_plateau"]) == 1
