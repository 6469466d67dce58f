# SPDX-License-Identifier: Apache-2.0
"""The study's analysis: intervals, steps to quality, and rows that are checked one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_rows import STEPS, run_row, write

from ahpa_scale.config.errors import ConfigError
from experiments.__main__ import main
from experiments.analysis import load_results
from experiments.statistics import bootstrap_bounds, estimate, steps_ratio, t_quantile


def curves(*seeds: dict[int, float]) -> dict[int, dict[int, dict[str, float]]]:
    return {n: {step: {"fd": fd} for step, fd in one.items()} for n, one in enumerate(seeds)}


class TestIntervals:
    @pytest.mark.parametrize(
        ("freedom", "expected"),
        [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)],
    )
    def test_quantiles_are_those_of_the_printed_tables(self, freedom, expected):
        assert t_quantile(freedom) == pytest.approx(expected, abs=5e-5)

    def test_t_interval_covers_95_percent_even_of_three_values(self):
        draws = np.random.default_rng(1).normal(2.0, 3.0, (2000, 3))
        found = [estimate(list(row)).student for row in draws]
        covered = np.mean([low <= 2.0 <= high for low, high in found])
        # Three standard errors of a share of 0.95 in 2,000.
        assert abs(covered - 0.95) < 0.015

    @pytest.mark.parametrize(("count", "low", "high"), [(40, 0.92, 0.97), (3, 0.6, 0.85)])
    def test_bootstrap_covers_with_many_values_and_is_too_narrow_with_three(self, count, low, high):
        draws = np.random.default_rng(2).normal(2.0, 3.0, (400, count))
        found = [bootstrap_bounds(list(row), resamples=1000) for row in draws]
        assert low < np.mean([below <= 2.0 <= above for below, above in found]) < high

    @settings(max_examples=25)
    @given(st.lists(st.floats(-50, 50), min_size=2, max_size=8), st.randoms())
    def test_bounds_lie_among_the_values_and_forget_their_order(self, values, shuffler):
        low, high = bootstrap_bounds(values, resamples=200)
        assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
        mixed = list(values)
        shuffler.shuffle(mixed)
        assert bootstrap_bounds(mixed, resamples=200) == (low, high)

    def test_one_value_has_no_interval_and_a_diverged_one_no_mean(self):
        assert estimate([1.0]).student is None
        assert estimate([1.0]).sign is None
        assert math.isnan(estimate([1.0, math.nan]).mean)
        assert estimate([1.0, 1.1, 1.2]).sign == 1
        assert estimate([-1.0, 1.0]).sign == 0

    def test_the_t_interval_decides_where_the_bootstrap_would_claim_too_much(self):
        found = estimate([0.1, 0.5, 1.5])
        assert found.bootstrap[0] > 0
        assert found.sign == 0


class TestStepsRatio:
    @settings(max_examples=50)
    @given(speed=st.floats(1.01, 3.9), slope=st.floats(0.1, 2.0), start=st.floats(0.5, 500.0))
    def test_a_power_law_k_times_faster_needs_a_kth_of_the_steps(self, speed, slope, start):
        control = curves({s: start * s**-slope for s in STEPS})
        variant = curves({s: start * (speed * s) ** -slope for s in STEPS})
        found = steps_ratio(control, variant)
        assert found.ratio == pytest.approx(1 / speed, rel=1e-6)
        assert (found.own, found.censored, found.early) == (1.0, (), ())

    def test_never_reached_is_censored_at_the_last_step_and_open_above(self):
        control = curves({1: 8, 2: 4, 4: 2}, {1: 8, 2: 4, 4: 2}, {1: 8, 2: 4, 4: 2})
        variant = curves({1: 4, 2: 2, 4: 1}, {1: 4, 2: 2, 4: 1}, {1: 9, 2: 5, 4: 3})
        found = steps_ratio(control, variant)
        assert found.censored == (2,)
        assert found.by_seed == {0: 0.5, 1: 0.5, 2: 1.0}
        assert found.student[1] == found.bootstrap[1] == math.inf
        assert not found.faster
        assert found.line().endswith("inf]")

    def test_reached_by_the_first_checkpoint_counts_as_there(self):
        found = steps_ratio(curves({1: 8, 2: 4, 4: 2}), curves({1: 1, 2: 0.5, 4: 0.2}))
        assert (found.ratio, found.early) == (0.25, (0,))

    def test_a_bump_neither_helps_nor_hurts_between_its_neighbours(self):
        control = curves({1: 8, 2: 6, 4: 4, 8: 2})
        bumped = curves({1: 4, 2: 7, 4: 2, 8: 1})
        assert steps_ratio(control, bumped).ratio == pytest.approx(0.5)

    def test_a_control_that_got_worse_tells_its_own_ratio(self):
        control = curves(*3 * [{1: 8, 2: 2, 4: 3}])
        found = steps_ratio(control, control)
        assert found.ratio == found.own < 0.5
        assert not found.faster

    def test_seeds_are_paired_and_others_left_out(self):
        control = curves({1: 8, 2: 4}, {1: 80, 2: 40})
        variant = {1: {1: {"fd": 40.0}, 2: {"fd": 20.0}}, 7: {1: {"fd": 1.0}}}
        found = steps_ratio(control, variant)
        assert found.by_seed == {1: 0.5}
        assert found.line() == "ratio 0.500 [nan, nan]"

    def test_a_diverged_variant_never_reaches(self):
        nan = math.nan
        found = steps_ratio(curves({1: 8, 2: 4}), curves({1: nan, 2: nan}))
        assert (found.ratio, found.censored) == (1.0, (0,))

    @pytest.mark.parametrize("last", [math.nan, 0.0, -1.0])
    def test_a_control_without_logarithm_is_refused(self, last):
        with pytest.raises(ValueError, match="step 2, seed 0, has no logarithm"):
            steps_ratio(curves({1: 8, 2: last}), curves({1: 8, 2: 4}))

    def test_nothing_in_common_is_refused(self):
        with pytest.raises(ValueError, match="no seed in common"):
            steps_ratio(curves({1: 8}), {})


BASE = run_row("none", 0, 100, 5.0)
BROKEN = {
    "twice": ([BASE, BASE], "main.jsonl:2: main/demo/none/0/100: there already"),
    "contradiction": (
        [BASE, {**BASE, "metrics": {"fd": 6.0}}],
        "main.jsonl:2: main/demo/none/0/100: contradicts",
    ),
    "two builds": (
        [BASE, run_row("repa", 0, 100, 4.0, build="b1")],
        "main.jsonl:2: main/demo/0: build b1 contradicts b0",
    ),
    "two configurations": (
        [BASE, run_row("none", 0, 200, 4.0, digest="other")],
        "main.jsonl:2: main/demo/none/0: digest other contradicts none-0",
    ),
    "two studies": (
        [BASE, {**BASE, "study": "else", "step": 200}],
        "main.jsonl:2: study: 'else'",
    ),
    "kind": ([{**BASE, "kind": "runs"}], "kind: 'runs' is not known; did you mean 'run'?"),
    "no kind": ([{"seed": 0}], "kind: missing; choose one of: run, floor, map"),
    "missing key": (
        [{k: v for k, v in BASE.items() if k != "metrics"}],
        "main.jsonl:1: metrics: missing from this run row",
    ),
    "not a number": ([{**BASE, "metrics": {"fd": "5"}}], "metrics: broken: '5' is not a number"),
    "no step": ([{**BASE, "step": 0}], "seed, step: broken: 0 is not a whole number from 1 on"),
    "floor twice": (
        [BASE, *2 * [{"kind": "floor", "dataset": "demo", "name": "real", "metrics": {}}]],
        "main.jsonl:3: main/demo/real: there already",
    ),
    "map shape": (
        [
            {
                "kind": "map",
                "dataset": "d",
                "variant": "none",
                "seed": 0,
                "step": 1,
                "map": {"levels": ["a"], "blocks": [1], "bins": 2, "r2_LDT": [[[0.5]]]},
            }
        ],
        "map: broken: r2_LDT must be 1 x 1 x 2",
    ),
    "empty": ([], "main.jsonl: holds no result rows"),
}


class TestRows:
    @pytest.mark.parametrize("case", BROKEN)
    def test_a_broken_file_is_one_line_and_exit_code_2(self, case, tmp_path, capsys):
        content, expected = BROKEN[case]
        path = write(tmp_path, content)
        with pytest.raises(SystemExit) as left:
            main(["report", str(path), "--out", str(tmp_path / "out")])
        assert left.value.code == 2
        complaint = capsys.readouterr().err
        assert complaint.count("\n") == 1
        assert expected in complaint
        assert not (tmp_path / "out").exists()

    def test_a_missing_file_and_a_half_written_row_are_named(self, tmp_path):
        with pytest.raises(ConfigError, match=r"none\.jsonl: cannot read: No such file"):
            load_results([tmp_path / "none.jsonl"])
        path = write(tmp_path, [BASE])
        path.write_text(path.read_text() + '{"kind": "ru')
        with pytest.raises(ConfigError, match=r"main\.jsonl:2: not JSON"):
            load_results([path])

    def test_a_study_in_two_files_may_bring_its_floors_twice(self, tmp_path):
        floor = {"kind": "floor", "dataset": "demo", "name": "real", "metrics": {"fd": 0.1}}
        one = write(tmp_path, [BASE, floor], "a.jsonl")
        two = write(tmp_path, [run_row("none", 1, 100, 5.0), floor], "b.jsonl")
        group = load_results([one, two]).group("main", "demo")
        assert group.seeds() == [0, 1]
        assert len(group.floors) == 1
        write(tmp_path, [run_row("none", 1, 100, 5.0), {**floor, "metrics": {"fd": 0.2}}], two.name)
        with pytest.raises(ConfigError, match="contradicts"):
            load_results([one, two])

    def test_differences_are_paired_by_seed(self, tmp_path):
        content = [run_row("none", s, 100, 5.0 + s) for s in (0, 1)]
        content += [run_row("gap", s, 100, 4.0 + s) for s in (1, 2)]
        group = load_results([write(tmp_path, content)]).group("main", "demo")
        assert group.differences("gap", "none", "fd", 100) == {1: -1.0}
        with pytest.raises(ConfigError, match="did you mean 'main, demo'"):
            load_results([tmp_path / "main.jsonl"]).group("main", "dem")
