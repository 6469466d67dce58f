# SPDX-License-Identifier: Apache-2.0
"""A study's file: what it means, and one clear line for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import job
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_study import ROOT, content, write

from experiments.cells import Planner, difference
from experiments.rows import ResultFile, key_of, rounded
from experiments.study import load_study


@pytest.fixture
def study(tmp_path):
    def make(**changes):
        return load_study(write(tmp_path, content(**changes)))

    return make


def plan(study, cell: str, tmp_path: Path):
    (one,) = study.cells([cell])
    return Planner(study, tmp_path / "work").plan(one)


@pytest.mark.parametrize("path", sorted((ROOT / "experiments/studies").glob("[!b]*.yaml")))
def test_every_shipped_study_loads_and_each_demo_cell_is_a_valid_run(path, tmp_path):
    study = load_study(path)
    planner = Planner(study, tmp_path)
    for cell in study.cells():
        if study.datasets[cell.dataset].recipe == "demo" and cell.seed == study.seeds[0]:
            assert planner.plan(cell).config.max_duration == f"{study.last}ba"


def test_all_variants_have_their_first_seed_before_any_has_its_second(study):
    cells = study(seeds=[3, 1]).cells()
    assert [cell.seed for cell in cells] == [3] * 3 + [1] * 3
    assert len(set(cells)) == len(cells)


def test_cells_are_narrowed_by_the_file_and_by_patterns(study):
    chosen = [{"variant": "ahpa"}, {"variant": "none", "seeds": [1]}]
    narrowed = study(only=chosen)
    assert {str(c) for c in narrowed.cells()} == {"demo/ahpa/0", "demo/ahpa/1", "demo/none/1"}
    assert [str(c) for c in narrowed.cells(["*/none"])] == ["demo/none/1"]
    with pytest.raises(ValueError, match=r"demo/nune/1.*did you mean 'demo/none/1'"):
        narrowed.cells(["demo/nune/1"])


def test_overrides_come_from_data_set_variant_and_both(study, tmp_path):
    made = study(
        variants={
            "none": {},
            "ahpa": {
                "alignment.kind": "ahpa",
                "optimizer.lr": 1e-3,
                "for": {"demo": {"optimizer.lr": 2e-3}},
            },
        }
    )
    ahpa = plan(made, "demo/ahpa/0", tmp_path).config
    assert (ahpa.optimizer.lr, ahpa.alignment.kind) == (2e-3, "ahpa")
    assert ahpa.global_train_batch_size == 16, "the data set's own override"
    assert (ahpa.model.input_size, ahpa.model.in_channels, ahpa.model.num_classes) == (4, 8, 8)
    assert plan(made, "demo/none/1", tmp_path).config.seed == 1


def test_a_variant_may_idle_what_its_data_set_sets(study, tmp_path):
    made = study()
    made.datasets["demo"].overrides["alignment.head.kind"] = "linear"
    assert plan(made, "demo/none/0", tmp_path).config.alignment.head.kind == "mlp"
    made.datasets["demo"].overrides["alignment.kind"] = "uniform"
    assert plan(made, "demo/ahpa/0", tmp_path).config.alignment.head.kind == "linear"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seedz": [1]}, ["seedz", "unknown key", "'seeds'"]),
        ({"checkpoints": [4, 2]}, ["checkpoints", "rise"]),
        ({"seeds": [1, 1]}, ["seeds", "twice"]),
        ({"base": "nowhere.yaml"}, ["base", "nowhere.yaml"]),
        ({"samples": {"cont": 100}}, ["samples.cont", "'count'"]),
        ({"samples": {"count": 3}}, ["samples.count", "64"]),
        ({"only": [{"variant": "ahpq"}]}, ["only", "'ahpq'", "'ahpa'"]),
        ({"variants": {"a/b": {}}}, ["variants.a/b"]),
        ({"variants": {"none": {"for": {"damo": {}}}}}, ["variants.none.for", "'demo'"]),
        ({"datasets": {"d": {"recipe": "dem"}}}, ["datasets.d"]),
        ({"datasets": {"d": {"recipe": "demo", "sise": 3}}}, ["datasets.d.sise", "'size'"]),
        ({"datasets": {}}, ["datasets"]),
    ],
)
def test_a_mistake_in_the_file_is_one_line(changes, words, study):
    with pytest.raises(ValueError, match=r"tiny\.yaml") as caught:
        study(**changes)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"alignment.wieght": 2.0}, ["alignment.wieght", "weight"]),
        ({"alignment.tap": 2}, ["alignment.tap", "no effect"]),
        ({"alignment.kind": "single", "alignment.level": "x"}, ["alignment.level"]),
        ({"model.num_classes": "ten"}, ["model.num_classes"]),
        ({"logging.router_interval": "3ba"}, ["logging.router_interval", "divide 2"]),
        ({"ema.decay": None}, ["ema.decay", "set a number"]),
    ],
)
def test_a_mistake_in_a_cell_names_the_cell(overrides, words, study, tmp_path):
    made = study(variants={"bad": overrides})
    with pytest.raises(ValueError, match="cell demo/bad/0") as caught:
        plan(made, "demo/bad/0", tmp_path)
    for word in words:
        assert word in str(caught.value)


def test_guidance_needs_classes(study, tmp_path):
    made = study(samples={"count": 64, "guidance_scale": 2.0})
    plan(made, "demo/none/0", tmp_path)
    bare = study(
        samples={"count": 64, "guidance_scale": 2.0}, variants={"none": {"model.num_classes": 1}}
    )
    with pytest.raises(ValueError, match="guidance_scale"):
        plan(bare, "demo/none/0", tmp_path)


def test_too_few_pictures_for_a_map_are_noticed_first(study, tmp_path):
    plan(study(maps=[{"variant": "none", "pictures": 64}]), "demo/none/0", tmp_path)
    few = study(maps=[{"variant": "none", "pictures": 16}])
    plan(few, "demo/ahpa/0", tmp_path)
    with pytest.raises(ValueError, match=r"cell demo/none/0: maps\.pictures"):
        plan(few, "demo/none/0", tmp_path)


def test_the_digest_says_what_is_computed_and_not_where(study, tmp_path):
    base = plan(study(), "demo/ahpa/0", tmp_path)
    assert plan(study(), "demo/ahpa/0", tmp_path / "elsewhere").digest == base.digest
    assert plan(study(), "demo/ahpa/1", tmp_path).digest == base.digest, "all seeds are one family"
    assert plan(study(checkpoints=[2, 4, 8]), "demo/ahpa/0", tmp_path).digest == base.digest
    changes = [
        {"samples": {"count": 65}},
        {"variants": {"ahpa": {"alignment.kind": "ahpa", "alignment.weight": 3.0}}},
        {"flow_bins": 5},
    ]
    for change in changes:
        assert plan(study(**change), "demo/ahpa/0", tmp_path).digest != base.digest, change
    other = content()
    other["datasets"]["demo"]["count"] += 16
    assert plan(study(**other), "demo/ahpa/0", tmp_path).digest != base.digest


def test_the_length_counts_where_a_time_is_a_share_of_it(study, tmp_path):
    until = {"until": {"alignment.kind": "ahpa", "alignment.until": "0.5dur"}}
    short = plan(study(variants=until), "demo/until/0", tmp_path)
    long = plan(study(variants=until, checkpoints=[2, 4, 8]), "demo/until/0", tmp_path)
    assert short.digest != long.digest


def test_a_key_that_the_product_has_learnt_since_is_no_difference(study, tmp_path):
    now = plan(study(), "demo/ahpa/0", tmp_path).told
    then = json.loads(json.dumps(now))
    assert difference(then, now) is None
    del then["model"]["qk_norm"]
    assert difference(then, now) is None
    now["model"]["qk_norm"] = True
    assert "model.qk_norm" in str(difference(then, now))
    then["model"]["qk_norm"] = False
    assert difference(then, now) == "model.qk_norm was False and is now True"
    assert difference(None, now) is not None


def test_a_dry_run_lists_the_cells_and_a_bad_cell_ends_with_status_2(tmp_path):
    def run(**changes):
        path = write(tmp_path, content(**changes))
        words = ["run", path, "--work", tmp_path / "w", "--results", tmp_path / "r", "--dry-run"]
        return job.run(sys.executable, "-m", "experiments", *words)

    good = run()
    assert good.returncode == 0, good.stderr
    assert good.stderr.count("to run") == 6
    bad = run(variants={"none": {}, "bad": {"optimizer.lr": -1.0}})
    assert bad.returncode == 2
    assert "cell demo/bad/0: optimizer.lr" in bad.stderr
    assert len(bad.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("[wr]/**/*")), "a dry run writes nothing"


def row(step: int, **more):
    cell = {"kind": "run", "dataset": "d", "variant": "v", "seed": 0, "step": step, "digest": "x"}
    return {**cell, **more}


def test_rows_are_sorted_rounded_and_never_doubled(tmp_path):
    file = ResultFile(tmp_path / "a" / "r.jsonl")
    assert file.read() == []
    assert file.append(row(1, metrics={"fd": 1.23456789, "kid": float("nan")}))
    assert not file.append(row(1, metrics={"fd": 9.0}))
    assert file.append(row(2))
    (line, _) = file.path.read_text().splitlines()
    assert json.loads(line)["metrics"] == {"fd": 1.23457, "kid": None}
    assert line == json.dumps(json.loads(line), sort_keys=True)
    assert file.remove({key_of(row(1))}) == 1
    assert [one["step"] for one in file.read()] == [2]


def test_a_torn_last_line_is_dropped_by_the_next_append(tmp_path):
    file = ResultFile(tmp_path / "r.jsonl")
    file.append(row(1))
    with file.path.open("ab") as torn:
        torn.write(b'{"kind": "run", "data')
    assert file.append(row(2))
    assert [one["step"] for one in file.read()] == [1, 2]


def test_a_line_that_is_no_row_is_named(tmp_path):
    file = ResultFile(tmp_path / "r.jsonl")
    file.path.write_text('{"kind": "run"}\n')
    with pytest.raises(ValueError, match=r"r\.jsonl:1"):
        file.read()


def test_processes_append_side_by_side_without_loss(tmp_path):
    code = (
        "import sys; from experiments.rows import ResultFile; f = ResultFile(sys.argv[1])\n"
        "for step in range(1, 31):\n"
        "    for variant, seed in (('own', int(sys.argv[2])), ('shared', 0)):\n"
        "        cell = dict(dataset='d', variant=variant, seed=seed)\n"
        "        f.append(dict(kind='run', step=step, **cell))\n"
    )
    path = tmp_path / "r.jsonl"
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), str(seed)], cwd=ROOT)
        for seed in range(3)
    ]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    keys = [key_of(one) for one in ResultFile(path).read()]
    assert len(keys) == len(set(keys)) == 30 * 4


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
@settings(max_examples=50)
def test_rounding_keeps_six_digits(value):
    assert rounded({"a": [value]})["a"][0] == pytest.approx(value, rel=1e-5, abs=0)
