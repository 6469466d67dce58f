# SPDX-License-Identifier: Apache-2.0
"""The guard section: what is refused, and that every key reaches the plug-in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahpa_scale.config.schema import parse_duration
from ahpa_scale.run.build import build_guard

SAVED = ("checkpoint.save_folder=saved", "checkpoint.autoresume=true")


@given(*[st.integers(0, 99)] * 4)
def test_durations_add_up(days, hours, minutes, seconds):
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    text = f"{days}d{hours}h{minutes}m{seconds}s"
    if total:
        assert parse_duration(text) == parse_duration(f"{total}s") == total
    else:
        with pytest.raises(ValueError, match="not a stretch of time"):
            parse_duration(text)


@pytest.mark.parametrize(
    "text", ["", "5", "h", "1.5h", "-1h", "30m23h", "1h 5m", "1H", "1ba", "0s"]
)
def test_other_durations_are_refused_with_an_example(text, complaint):
    line = complaint(f"guard.time_limit='{text}'")
    assert "guard.time_limit: " in line
    assert "'23h30m'" in line


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["guard.nonfinite=rollback"], "guard.nonfinite: 'rollback' needs a checkpoint"),
        (["guard.spikes.action=rollback"], "guard.spikes.action: 'rollback' needs a checkpoint"),
        (
            ["guard.nonfinite=rollback", "checkpoint.save_folder=saved"],
            "guard.nonfinite: 'rollback' ends in a restart of this command",
        ),
        (["guard.nonfinite=ignore"], "guard.nonfinite: 'ignore' is not known"),
        (["guard.time_limit=84600"], "guard.time_limit: '84600' is not a stretch of time"),
    ],
)
def test_what_can_not_be_is_refused_in_one_line(overrides, words, complaint):
    assert words in complaint(*overrides)


def test_the_defaults_skip_bad_batches_and_warn_of_spikes(load):
    guard = build_guard(load())
    assert (guard.nonfinite, guard.patience, guard.departure.time_limit) == ("skip", 10, None)
    assert guard.spikes is not None
    assert (guard.spikes.action, guard.spikes.threshold) == ("warn", 8.0)


def test_every_key_reaches_the_plug_in(load):
    guard = build_guard(load(*SAVED, "guard.time_limit=1h1m", "guard.spikes={action: rollback}"))
    assert (guard.save_folder, guard.departure.time_limit) == ("saved", 3660.0)
    assert guard.spikes is not None
    assert guard.spikes.action == "rollback"
    assert build_guard(load("guard.spikes.action=none")).spikes is None
    assert build_guard(load("guard.nonfinite=none")).nonfinite == "none"
