# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale evaluate` on the checkpoints of a run of the product itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated_run import BATCHES, DEMO, SETTINGS, batches_of, model_of, printed, rows_of
from PIL import Image

from ahpa_scale.checkpoint.find import find_checkpoint
from ahpa_scale.checkpoint.manifest import Manifest
from ahpa_scale.commands.evaluate.rows import Rows, settings_digest
from ahpa_scale.data.card import read_card
from ahpa_scale.data.prepare import prepare
from ahpa_scale.data.stream import build_loader
from ahpa_scale.evaluation.curves import draw_evaluation
from ahpa_scale.evaluation.heldout import heldout_flow
from ahpa_scale.models.generator import DiffusionGenerator
from ahpa_scale.run.trained import told_config


def loss_of(generator: DiffusionGenerator, data: Path) -> dict[str, Any]:
    loader = build_loader(str(data), batch_size=64, levels=(), shuffle=False, drop_last=False)
    return heldout_flow(generator, loader, 2)


def test_every_checkpoint_gets_its_row_samples_and_place_in_the_figure(trained, evaluate, tmp_path):
    code, said, told = evaluate(trained / "run" / "checkpoints")
    assert (code, told) == (0, "")
    assert printed(said) == ["ba2", "ba4", "ba6"]
    rows = rows_of(tmp_path / "out")
    assert [row["batch"] for row in rows] == BATCHES
    assert [row["num_images"] for row in rows] == [32 * batch for batch in BATCHES]
    assert {row["weights"] for row in rows} == {"ema"}
    for row in rows:
        folder = trained / "run" / "checkpoints" / f"ba{row['batch']}"
        direct = loss_of(model_of(folder, trained / "held-out"), trained / "held-out")
        assert {name: row[name] for name in direct} == direct
        assert f"{row['flow']:.5f}" in said
    assert len({row["flow"] for row in rows}) == 3
    samples = sorted((tmp_path / "out" / "samples").iterdir())
    assert [path.name for path in samples] == [f"step-{batch:08d}.png" for batch in BATCHES]
    drawn = np.asarray(Image.open(samples[-1]), np.float32)
    by_the_run = np.asarray(Image.open(trained / "run" / "samples" / samples[-1].name), np.float32)
    assert drawn.shape == by_the_run.shape
    assert np.abs(drawn - by_the_run).mean() < 0.5, "the run's own noise, its own sampler"
    assert np.abs(drawn - np.asarray(Image.open(samples[0]), np.float32)).mean() > 1
    assert np.asarray(Image.open(tmp_path / "out" / "evaluation.png")).std() > 5


def test_a_second_call_repeats_nothing_and_adds_what_is_missing(trained, saved, evaluate, tmp_path):
    assert evaluate(saved, "--newest")[0] == 0
    file = tmp_path / "out" / "evaluation.jsonl"
    assert batches_of(tmp_path / "out") == [6], "--newest"
    first, changed = file.read_text(), file.stat().st_mtime_ns
    code, said, _ = evaluate(saved, "--newest")
    assert (code, printed(said), file.stat().st_mtime_ns) == (0, [], changed)
    code, said, _ = evaluate(saved)
    assert (code, printed(said)) == (0, ["ba2", "ba4"])
    assert file.read_text().endswith(first)
    manifest = saved / "ba4" / "manifest.json"
    anew = replace(Manifest.from_json(manifest.read_bytes()), created="later")
    manifest.write_text(anew.to_json())
    code, said, _ = evaluate(saved)
    assert (code, printed(said)) == (0, ["ba4"]), "saved anew by a run that went back"
    assert batches_of(tmp_path / "out") == BATCHES


def test_the_trained_weights_and_another_sampler(trained, evaluate, tmp_path):
    newest = trained / "run" / "checkpoints" / "ba6"
    assert evaluate(newest)[0] == 0
    (averaged,) = rows_of(tmp_path / "out")
    words = ["--weights", "model", "--pictures", "32", "--steps", "2", "--method", "heun"]
    words += ["--guidance-scale", "1", "--seed", "5", "--batch-size", "16"]
    assert evaluate(newest, *words, out=tmp_path / "other")[0] == 0
    (row,) = rows_of(tmp_path / "other")
    assert (row["weights"], averaged["weights"]) == ("model", "ema")
    assert row["flow"] != averaged["flow"]
    changed = {n for n, value in row["settings"].items() if value != averaged["settings"][n]}
    assert changed == {"weights", "pictures", "steps", "method", "guidance_scale", "seed"}
    one, other = (
        (tmp_path / name / "samples/step-00000006.png").read_bytes() for name in ("out", "other")
    )
    assert one != other
    # What the command isn't told is as in the rows that are there, whatever the run says.
    code, said, _ = evaluate(
        trained / "run" / "checkpoints" / "ba4", *words[:4], out=tmp_path / "other"
    )
    assert code == 0, said
    assert rows_of(tmp_path / "other")[0]["settings"] == row["settings"]


def test_a_preset_and_a_weaker_checkpoint_that_guides(trained, evaluate, tmp_path):
    newest, weaker = (trained / "run" / "checkpoints" / name for name in ("ba6", "ba2"))
    words = ["--preset", "fast", "--steps", "2", "--guidance-interval", "0.1", "0.9"]
    code, _, told = evaluate(newest, *words)
    assert code == 0, told
    guided = [*words, "--guide", weaker]
    assert evaluate(newest, *guided, out=tmp_path / "guided")[0] == 0
    (plain,), (by_other,) = rows_of(tmp_path / "out"), rows_of(tmp_path / "guided")
    settings = plain["settings"]
    assert (settings["method"], settings["steps"]) == ("heun", 2)
    assert settings["guidance_interval"] == [0.1, 0.9]
    assert "time_shift" not in settings, "rows of older versions have none"
    assert by_other["settings"]["guide"] == str(weaker)
    pictures = [
        (tmp_path / name / "samples/step-00000006.png").read_bytes() for name in ("out", "guided")
    ]
    assert pictures[0] != pictures[1]
    # The next call takes the guide over from the rows.
    assert evaluate(weaker.parent / "ba4", out=tmp_path / "guided")[0] == 0
    assert rows_of(tmp_path / "guided")[0]["settings"] == by_other["settings"]


def test_rows_that_can_not_be_compared_are_refused(trained, evaluate, tmp_path):
    checkpoints = trained / "run" / "checkpoints"
    assert evaluate(checkpoints / "ba6")[0] == 0
    file = tmp_path / "out" / "evaluation.jsonl"
    before = file.read_text()
    code, _, told = evaluate(checkpoints, "--seed", "1")
    assert code == 2
    assert "was made with seed 0, and now it is 1: choose another --out" in told
    assert told.count("\n") == 1
    assert file.read_text() == before
    file.write_text('{"batch": 3, "metrics": {}}\n')
    code, _, told = evaluate(checkpoints)
    assert code == 2
    assert "holds other rows than those of 'ahpa-scale evaluate'" in told
    assert file.read_text() == '{"batch": 3, "metrics": {}}\n'


def renamed(data: Path, folder: Path, names: Sequence[str]) -> Path:
    """A copy of a data set whose classes bear other names."""
    copy = Path(shutil.copytree(data, folder))
    card = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**card, "classes": list(names)}))
    return copy


def without_data(saved: Path) -> None:
    """Makes the newest checkpoint one of an older version, which tells nothing of its data."""
    path = saved / "ba6" / "manifest.json"
    path.write_text(replace(Manifest.from_json(path.read_bytes()), data_set=None).to_json())


def test_held_out_classes_are_matched_by_name_or_refused(trained, saved, evaluate, tmp_path):
    names = read_card(str(trained / "held-out")).classes
    turned = renamed(trained / "held-out", tmp_path / "turned", [*names[1:], names[0]])
    code, _, told = evaluate(saved, "--newest", data=turned)
    assert (code, told) == (0, "")
    (row,) = rows_of(tmp_path / "out")
    loader = build_loader(str(turned), batch_size=64, levels=(), shuffle=False, drop_last=False)
    matched = [{**batch, "label": (batch["label"] + 1) % len(names)} for batch in loader]
    model = model_of(saved / "ba6", turned)
    assert row["flow"] == heldout_flow(model, matched, 2)["flow"]
    assert row["flow"] != loss_of(model, turned)["flow"]
    strange = renamed(trained / "held-out", tmp_path / "strange", ["emu", *names[1:]])
    code, _, told = evaluate(saved, data=strange, out=tmp_path / "other")
    assert code == 2
    assert "strange has the class 'emu', which is none of the 8 classes that the model" in told
    without_data(saved)
    card = (trained / "data" / "dataset.json").rename(tmp_path / "away.json")
    try:
        code, _, told = evaluate(saved, "--newest", data=strange, out=tmp_path / "other")
    finally:
        card.rename(trained / "data" / "dataset.json")
    assert code == 0
    assert "warning: nothing tells the classes that the model was trained on" in told


def test_latents_are_scaled_as_the_run_scaled_its_own(trained, saved, evaluate, tmp_path):
    data = tmp_path / "by-channel"
    prepare("demo", str(data), start=64, scaling="channel", **DEMO)
    newest = saved / "ba6"
    assert evaluate(newest)[0] == 0
    assert evaluate(newest, data=data, out=tmp_path / "other")[0] == 0
    one, other = (rows_of(tmp_path / name)[0]["flow_t"] for name in ("out", "other"))
    assert one == other
    card = (trained / "data" / "dataset.json").rename(tmp_path / "away.json")
    try:
        assert evaluate(newest, data=data, out=tmp_path / "told")[0] == 0, "the manifest tells"
        without_data(saved)
        code, _, told = evaluate(newest, data=data, out=tmp_path / "third")
    finally:
        card.rename(trained / "data" / "dataset.json")
    assert code == 2
    assert "are scaled by numbers of their own" in told


def test_the_training_data_are_no_held_out_data(trained, evaluate):
    code, _, told = evaluate(trained / "run" / "checkpoints" / "ba6", data=trained / "data")
    assert code == 0
    assert "its loss is not a held-out one" in told


def test_a_run_on_many_nodes_is_read_on_one_device(trained):
    found = find_checkpoint(str(trained / "run" / "checkpoints"))
    assert found.manifest is not None
    engine = {**found.manifest.config["parallelism"], "engine": "hsdp", "replicate_degree": 8}
    manifest = replace(found.manifest, config={**found.manifest.config, "parallelism": engine})
    config = told_config(replace(found, manifest=manifest))
    assert config is not None
    assert config.parallelism.engine == "fsdp2"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bins", "0"], "--bins must be at least 1, not 0"),
        (["--bins", "65"], "64 held-out pictures can't fill --bins 65"),
        (["--method", "huen"], "did you mean 'heun'?"),
        (["--weights", "emma"], "did you mean 'ema'?"),
        (["--guidance-scale", "nan"], "--guidance-scale: guidance_scale must be between 1"),
        (["--every", "5s"], "--every belongs to --follow"),
        (["--follow", "--idle", "soon"], "'soon' is not a stretch of time"),
        (["--follow", "--until", "3ep"], "give batches, such as 400000ba"),
        (["--inception", "w.pth"], "--inception belongs to --samples"),
        (["--samples", "8"], "either --reference, a folder of pictures, or --reference-statistics"),
        (
            ["--samples", "8", "--reference", "/nowhere"],
            "no folder /nowhere",
        ),
        (["--samples", "8", "--reference-statistics", "/no.npz"], "No such file"),
        (["--samples", "8", "--reference", ".", "--inception", "w.pth"], "there is no file w.pth"),
        (["--samples", "8", "--reference", "docs", "--inception", "README.md"], "holds no weights"),
        (["--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["--out", "s3://YOUR-BUCKET/x"], "put your own bucket in place of YOUR-BUCKET"),
        (["--out", "README.md"], "README.md"),
        (["--data", "/nowhere"], "no data set at /nowhere"),
    ],
)
def test_bad_input_earns_one_line(words, message, trained, evaluate, tmp_path):
    code, said, told = evaluate(trained / "run" / "checkpoints", *words)
    assert (code, said) == (2, "")
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out" / "evaluation.jsonl").exists()


def test_bad_places_earn_one_line(trained, evaluate, tmp_path):
    for checkpoints, words, message in (
        (trained / "run", [], f"; there are some in {trained / 'run' / 'checkpoints'}"),
        (trained / "run" / "checkpoints" / "ba6", ["--follow"], "name the folder that holds it"),
        ("nosuch://bucket/x", [], "unknown storage scheme nosuch://"),
    ):
        code, _, told = evaluate(checkpoints, *words)
        assert (code, told.count("\n")) == (2, 1), told
        assert message in told
    prepare("demo", str(tmp_path / "images"), kind="images", **DEMO)
    code, _, told = evaluate(trained / "run" / "checkpoints", data=tmp_path / "images")
    assert code == 2
    assert "prepare it with --kind latents" in told


def change_config(checkpoint: Path, **sections: dict[str, Any]) -> None:
    path = checkpoint / "manifest.json"
    manifest = Manifest.from_json(path.read_bytes())
    path.write_text(replace(manifest, config={**manifest.config, **sections}).to_json())


@pytest.mark.parametrize("section", [{"decay": None}, {"enabled": False, "decay": None}])
def test_a_run_without_averages_is_judged_by_its_weights(saved, evaluate, tmp_path, section):
    change_config(saved / "ba6", ema=section)
    code, _, told = evaluate(saved / "ba6", "--weights", "ema")
    assert code == 2
    assert "the run has no averages (ema.decay is null): --weights model" in told
    assert evaluate(saved / "ba6")[0] == 0
    assert rows_of(tmp_path / "out")[0]["weights"] == "model"


def test_a_checkpoint_that_is_not_what_it_says_is_one_line(saved, folder, evaluate):
    model = find_checkpoint(str(saved)).manifest.config["model"]
    change_config(saved / "ba6", model={**model, "depth": 2})
    for checkpoint, message in (
        (saved / "ba6", "ba6 has a strange 'blocks.2"),
        (folder / "ba6", "ba6 does not tell its configuration"),
    ):
        code, said, told = evaluate(checkpoint)
        assert (code, said, told.count("\n")) == (2, "", 1), told
        assert message in told


def test_numbers_that_are_not_finite_are_null_and_can_be_drawn(tmp_path):
    rows, settings = Rows(str(tmp_path)), SETTINGS
    flow = {"flow": float("nan"), "flow_t": [1.0, float("inf")], "fid": None}
    row = {"batch": 1, "num_images": 8, "checkpoint": "a", "settings": settings, **flow}
    rows.add({**row, "settings_hash": settings_digest(settings)})
    (read,) = rows_of(tmp_path)
    assert (read["flow"], read["flow_t"]) == (None, [1.0, None])
    for kept in ([row], list(Rows(str(tmp_path)))):
        assert len(draw_evaluation(kept).axes) == 2, "losses and their colours"
        assert len(draw_evaluation([*kept, {**row, "fid": 3.0}]).axes) == 3
