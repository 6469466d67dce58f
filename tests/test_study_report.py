# SPDX-License-Identifier: Apache-2.0
"""The study's report as a whole: the same bytes, and what it says of known effects."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from study_rows import EFFECTS, rows, run_row, write

from ahpa_scale.config.errors import ConfigError
from experiments.analysis import load_results
from experiments.report import report
from experiments.statistics import estimate

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with results, a sample grid, named comparisons, and the report made of them."""
    folder = tmp_path_factory.mktemp("study")
    path = write(folder, rows())
    pictures = folder / "samples" / "main"
    pictures.mkdir(parents=True)
    for step in (100, 200):
        Image.new("RGB", (8, 8), (step, 90, 180)).save(pictures / f"demo-gap-{step}.png")
    Image.new("RGB", (8, 8), "white").save(pictures / "demo-real.png")
    verdicts = folder / "verdicts.yaml"
    common = "metric: fd, expect: lower"
    verdicts.write_text(
        "name: main\nverdicts:\n"
        f"- {{hypothesis: H1, claim: a, variant: gap, against: none, {common}}}\n"
        f"- {{hypothesis: H2, claim: b, variant: none, against: gap, {common}, step: 200}}\n"
        f"- {{hypothesis: H3, claim: c, variant: none-again, against: none, {common}}}\n"
    )
    report([path, verdicts], folder / "out")
    return folder


def section(made: Path, title: str) -> str:
    """The report's text from one heading to the next."""
    text = (made / "out" / "REPORT.md").read_text()
    return text.split(f" {title}\n", 1)[1].split("\n#", 1)[0]


def line_of(text: str, start: str) -> list[str]:
    """The cells of the one table row that begins so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


class TestReport:
    def test_the_same_bytes_whatever_the_order_hashes_and_plot_settings(self, made, tmp_path):
        mixed = rows()
        random.Random(5).shuffle(mixed)
        write(tmp_path, mixed)
        shown = ("samples/main/demo-gap-200.png", "samples/main/demo-real.png")
        for name in ("verdicts.yaml", *shown):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((made / name).read_bytes())
        (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.facecolor: red\n")
        command = [sys.executable, "-m", "experiments", "report", str(tmp_path / "main.jsonl")]
        settings = {"PYTHONHASHSEED": "77", "MATPLOTLIBRC": str(tmp_path), "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [*command, str(tmp_path / "verdicts.yaml"), "--out", str(tmp_path / "out")],
            check=True,
            cwd=ROOT,
            env={**os.environ, **settings},
        )
        first, second = (
            {str(p.relative_to(f)): p.read_bytes() for p in f.rglob("*") if p.is_file()}
            for f in (made / "out", tmp_path / "out")
        )
        assert sorted(first) == sorted(second)
        assert [name for name in first if first[name] != second[name]] == []

    def test_the_page_holds_every_figure_and_loads_nothing(self, made):
        page = (made / "out" / "report.html").read_text()
        figures = sorted(path.name for path in (made / "out" / "figures").iterdir())
        kinds = ("curves", "flow", "map", "router", "samples", "samples", "sweep")
        assert [name.partition("-")[0] for name in figures] == sorted(kinds)
        assert page.count('src="data:image/png;base64,') == len(figures)
        assert "http" not in page
        assert str(made) not in page

    def test_the_newest_samples_are_shown_with_their_step(self, made):
        samples = section(made, "Samples")
        assert "samples of `gap` after 200 steps." in samples
        assert samples.index("real pictures.") < samples.index("samples of"), "to compare with"
        shown = made / "out" / "figures" / "samples-main-demo-gap.png"
        assert shown.read_bytes() == (made / "samples/main/demo-gap-200.png").read_bytes()

    def test_seeds_judged_by_several_builds_are_told(self, made, tmp_path):
        builds = [{**r, "build": f"b{r['seed'] // 2}"} for r in rows() if r["kind"] == "run"]
        report([write(tmp_path, builds)], tmp_path / "out")
        told = "seed 0 by `b0`, seed 1 by `b0`, seed 2 by `b1`"
        assert told in section(tmp_path, "What is in the results")
        assert "built more than once" not in section(made, "What is in the results")

    def test_sensitivity_follows_the_two_controls(self, made, tmp_path):
        text = section(made, "Sensitivity of the testbed")
        assert "positive control `repa` at step 400" in text
        assert "the testbed **passes**" in text
        swapped = {"repa": "placebo", "placebo": "repa"}
        names = [swapped.get(row.get("variant"), row.get("variant")) for row in rows()]
        changed = [{**row, "variant": name} for row, name in zip(rows(), names, strict=True)]
        runs = [r for r in changed if r["kind"] == "run" and r["variant"] in EFFECTS]
        runs = [{**r, "digest": f"{r['variant']}-{r['seed']}"} for r in runs]
        report([write(tmp_path, runs)], tmp_path / "out")
        assert "does **not** pass" in section(tmp_path, "Sensitivity of the testbed")

    def test_the_first_seed_at_a_new_checkpoint_does_not_unsettle_what_three_have_shown(
        self, made, tmp_path
    ):
        def late(row: dict) -> bool:
            return row.get("step") == 400 and row["variant"] in ("gap", "repa") and row["seed"] > 0

        path = write(tmp_path, [row for row in rows() if row["kind"] != "run" or not late(row)])
        report([path, made / "verdicts.yaml"], tmp_path / "out")
        text = section(tmp_path, "Sensitivity of the testbed")
        assert "positive control `repa` at step 200" in text
        assert "the testbed **passes**" in text
        assert "H1 **holds**" in section(tmp_path, "H1")
        assert line_of(section(tmp_path, "H1"), "a")[3:5] == ["200", "3"]

    def test_main_table_gives_the_paired_difference_and_both_intervals(self, made):
        cell = line_of(section(made, "Step 400"), "`gap`")[2].split("<br>")
        group = load_results([made / "main.jsonl"]).group("main", "demo")
        pairs = list(group.differences("gap", "none", "fd", 400).values())
        low, high = estimate(pairs).student
        assert cell[1] == f"{np.mean(pairs):+.3f} **better**"
        assert cell[2].startswith("b [")
        assert cell[3] == f"t [{low:+.3f}, {high:+.3f}]"
        assert "placebo" in section(made, "Step 400").split("undecided: ")[1]

    def test_steps_to_quality_names_who_is_faster(self, made):
        text = section(made, "Steps to the control's final FD")
        gap = line_of(text, "`gap`")
        assert gap[-1] == "faster"
        # The slope of the curves is -0.6 and the effect -0.3.
        assert float(gap[3]) == pytest.approx(math.exp(-0.3 / 0.6), rel=0.05)
        assert line_of(text, "`placebo`")[-1] in ("not reached", "undecided")
        assert "Ratio 0.67 or less with the whole t-interval below 1: `gap`, `repa`." in text

    def test_hypotheses_hold_fail_or_stay_open(self, made):
        assert "H1 **holds**" in section(made, "H1")
        assert "H2 **does not hold**" in section(made, "H2")
        assert "H3 **undecided**" in section(made, "H3")
        assert line_of(section(made, "H2"), "b")[3] == "200"

    def test_sweep_names_the_best_value_and_that_it_lies_at_the_edge(self, made):
        text = section(made, "`none` over `lr`")
        assert "the lowest mean FD is at 4e-3, at the edge of the sweep" in text
        assert "It differs from the next best, 1e-3" in text

    def test_router_gives_the_sign_of_the_schedule(self, made):
        text = section(made, "Routers")
        rows_of_gap = [line for line in text.splitlines() if line.startswith("| `gap` |")]
        assert len(rows_of_gap) == 4
        assert rows_of_gap[-1].endswith("coarse at high noise |")
        flat = [line for line in text.splitlines() if line.startswith("| `repa` |")]
        assert flat[-1].endswith("undecided |")

    def test_a_released_router_is_told_by_its_last_weights(self, tmp_path):
        released = [r for r in rows() if r["kind"] == "run"]
        for row in released:
            if row["step"] == 400:
                row["curves"]["router"] = None
        report([write(tmp_path, released)], tmp_path / "out")
        text = section(tmp_path, "Routers")
        steps = [
            [cell.strip() for cell in line.strip("|").split("|")][2]
            for line in text.splitlines()
            if line.startswith("| `gap` |")
        ]
        assert steps[:3] == ["200"] * 3

    def test_map_tells_the_gap_and_leaves_unseen_bins_out(self, made):
        fine = line_of(section(made, "`none` at step 400"), "down_blocks.0")
        # The best readout is 0.95; in the last bin only block 2 was seen, with 0.1.
        assert fine[1:] == ["0.950", "2", "0.00", "0.37", "0.89"]

    def test_floors_and_gain_are_told(self, made):
        assert line_of(section(made, "Floors"), "reconstruction")[1] == "1.500"
        gain = line_of(section(made, "Is the control trained to its end?"), "200 to 400")
        assert float(gain[2]) == pytest.approx(100 * (1 - 0.5**0.6), abs=3)
        assert "over the 10 %" in section(made, "Is the control trained to its end?")

    def test_unfinished_and_diverged_cells_are_named(self, tmp_path):
        content = [run_row("none", s, step, 5.0 + s) for s in (0, 1) for step in (100, 200)]
        content += [run_row("gap", 0, step, 4.0) for step in (100, 200)]
        content += [run_row("gap", 1, 100, 4.5), run_row("bad", 0, 200, 0.0)]
        content[-1]["metrics"] = {"fd": None}
        report([write(tmp_path, content)], tmp_path / "out")
        there = section(tmp_path, "What is in the results")
        assert line_of(there, "`gap`")[-1] == "seed 1 at 200"
        assert line_of(there, "`bad`")[-1] == "seed 0 at 100; seed 1"
        table = section(tmp_path, "Step 200")
        assert line_of(table, "`bad`")[2] == "diverged"
        assert line_of(table, "`gap`")[2] == "4.000<br>-1.000 no interval"
        assert "One seed allows no interval" in table

    def test_figures_of_an_earlier_report_go_and_other_files_stay(self, tmp_path):
        report([write(tmp_path, rows())], tmp_path / "out")
        stays = tmp_path / "out" / "figures" / "mine.png"
        stays.write_bytes(b"mine")
        report([write(tmp_path, [run_row("none", 0, 100, 5.0)])], tmp_path / "out")
        assert [path.name for path in (tmp_path / "out" / "figures").iterdir()] == ["mine.png"]

    def test_a_sample_grid_that_is_no_png_is_refused(self, tmp_path):
        pictures = tmp_path / "samples" / "main"
        pictures.mkdir(parents=True)
        (pictures / "demo-none-100.png").write_text("no picture")
        with pytest.raises(ConfigError, match="is not a PNG"):
            report([write(tmp_path, [run_row("none", 0, 100, 5.0)])], tmp_path / "out")


class TestVerdictFile:
    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"variant": "gapp"}, "variant: the results have no 'gapp'; did you mean 'gap'?"),
            ({"dataset": "dem"}, "dataset: the results have no 'dem'; did you mean 'demo'?"),
            ({"metric": "fid"}, "metric: 'fid' is not known; did you mean 'fd'?"),
            ({"expect": "less"}, "expect: 'less' is not known; choose one of: lower, higher"),
            ({"againts": "none"}, "againts: unknown key; did you mean 'against'?"),
            ({"step": "last"}, "step: must be a whole number, not 'last'"),
            ({"claim": None}, "claim: must be text, not None"),
        ],
    )
    def test_a_wrong_comparison_is_one_line(self, change, expected, tmp_path):
        claim = {"hypothesis": "H1", "claim": "it helps", "variant": "gap", "against": "none"}
        claim |= {"metric": "fd", "expect": "lower", **change}
        path = tmp_path / "verdicts.yaml"
        path.write_text(json.dumps({"verdicts": [claim]}))
        content = [run_row("none", 0, 100, 5.0), run_row("gap", 0, 100, 4.0)]
        with pytest.raises(ConfigError) as caught:
            report([write(tmp_path, content), path], tmp_path / "out")
        assert f"verdicts.yaml: verdicts[0]: {expected}" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_comparison_that_is_declared_and_not_yet_run_is_not_tested(self, tmp_path):
        claim = {"hypothesis": "H1", "claim": "it helps", "variant": "later", "against": "none"}
        claim |= {"metric": "fd", "expect": "lower"}
        path = tmp_path / "study.yaml"
        path.write_text(json.dumps({"variants": {"later": {}, "none": {}}, "verdicts": [claim]}))
        report([write(tmp_path, [run_row("none", 0, 100, 5.0)]), path], tmp_path / "out")
        text = section(tmp_path, "H1")
        assert "no rows of `later` yet" in line_of(text, "it helps")
        assert "**undecided**: 1 of 1" in text

    def test_a_missing_key_is_named(self, tmp_path):
        path = tmp_path / "verdicts.yaml"
        path.write_text("verdicts: [{hypothesis: H1}]")
        with pytest.raises(ConfigError, match="claim: missing"):
            report([write(tmp_path, [run_row("none", 0, 100, 5.0)]), path], tmp_path / "out")
