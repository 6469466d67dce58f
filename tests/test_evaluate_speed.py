# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale evaluate --against` and `--ep-fid`: how fast a run reaches a quality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluated_run import SETTINGS, rows_of

from ahpa_scale.commands.evaluate.rows import Rows, settings_digest
from ahpa_scale.evaluation.progress import epochs_to_fid, steps_to_quality, told


def row(batch: int, flow: float | None, **more: Any) -> dict[str, Any]:
    return {"batch": batch, "num_images": 32 * batch, "flow": flow, **more}


ROWS = [
    row(10, 1.5, fid=30.0),
    row(20, 1.2, fid=None),
    row(30, 1.3, fid=2.0),
    row(40, 1.0, fid=1.0),
]


def test_the_first_checkpoint_that_is_good_enough_counts():
    reached = epochs_to_fid(ROWS, 2.0, 64)
    assert (reached.batches, reached.epochs) == (30, 15.0)
    assert epochs_to_fid(ROWS, 2.0, None).epochs is None
    assert epochs_to_fid(ROWS, 0.5, 64).batches is None
    slower = [row(50, 1.4), row(60, 1.25)]
    reached = steps_to_quality(ROWS, slower, "flow")
    assert (reached.batches, reached.goal) == (20, 1.25)
    line = told(reached, slower)
    assert (
        line == "held-out loss 1.25, the other run's at ba60: reached at ba20, 0.33 of its batches"
    )
    assert told(steps_to_quality(slower, ROWS, "flow"), ROWS).endswith("at ba40: not reached")
    assert steps_to_quality(ROWS, slower, "fid") is None
    assert steps_to_quality(ROWS, [row(9, None)], "flow") is None


def rewritten(source: Path, folder: Path, **changes: Any) -> Path:
    """Rows of another run: its loss a little above the middle checkpoint's."""
    rows, (_, middle, _) = rows_of(source), rows_of(source)
    folder.mkdir()
    for each in rows:
        each["settings"] |= {"run_name": "another", **changes}
        each["settings_hash"] = settings_digest(each["settings"])
        each["flow"] = middle["flow"] + 1e-6
    text = "".join(json.dumps(each) + "\n" for each in rows)
    (folder / "evaluation.jsonl").write_text(text)
    return folder / "evaluation.jsonl"


def test_the_command_compares_runs(trained, evaluate, tmp_path):
    checkpoints = trained / "run" / "checkpoints"
    assert evaluate(checkpoints)[0] == 0
    other = rewritten(tmp_path / "out", tmp_path / "other")
    first = next(
        r["batch"]
        for r in rows_of(tmp_path / "out")
        if r["flow"] <= rows_of(other.parent)[0]["flow"]
    )
    for place in (other, other.parent):
        code, said, _ = evaluate(checkpoints, "--against", place)
        assert code == 0
        assert f"the other run's at ba6: reached at ba{first}, {first / 6:.2f} of its" in said
    strange = rewritten(tmp_path / "out", tmp_path / "strange", seed=7)
    code, _, say = evaluate(checkpoints, "--against", strange)
    assert code == 2
    assert "was made with seed 7, and these rows with 0: they cannot be compared" in say
    code, _, say = evaluate(checkpoints, "--against", tmp_path / "none")
    assert (code, "there are no rows in" in say) == (2, True)


def test_an_fid_to_reach_needs_fids_without_guidance(trained, evaluate):
    checkpoints = trained / "run" / "checkpoints"
    for words, message in (
        (["--ep-fid", "2"], "--ep-fid belongs to --samples"),
        (
            ["--samples=8", "--reference=.", "--features=efficientnet-lite0", "--ep-fid=2"],
            "--ep-fid belongs to --features inception",
        ),
        (["--ep-fid", "-1"], "--ep-fid must be at least 0, not -1"),
    ):
        code, _, say = evaluate(checkpoints, *words)
        assert code == 2
        assert message in say


def test_rows_of_another_run_may_show_other_classes(tmp_path):
    settings = {**SETTINGS, "classes": [1], "run_name": "x"}
    line = {
        "batch": 1, "num_images": 1, "flow": 1.0, "flow_t": [1.0, 1.0], "checkpoint": "c",
        "settings": settings, "settings_hash": settings_digest(settings),
    }  # fmt: skip
    (tmp_path / "evaluation.jsonl").write_text(json.dumps(line) + "\n")
    Rows(str(tmp_path)).check_comparable(SETTINGS)
    with pytest.raises(ValueError, match="made with bins 2, and these rows with 3"):
        Rows(str(tmp_path)).check_comparable({**SETTINGS, "bins": 3})
