# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale report`: one page about real runs, hostile ones, long ones, and runs in a store."""

from __future__ import annotations

import math
import sys

import pytest
from job import CLI, run
from report_pages import HOSTILE, Reader, Report, evaluated, folder_of, hostile_run, row
from s3_server import BUCKET, s3_server

from ahpa_scale.report.curves import POINTS
from ahpa_scale.report.history import QUIET, Session, state_of


def test_two_real_runs_on_one_page(two_runs, report):
    made = report(two_runs / "ahpa", two_runs / "none")
    assert made.code == 0, made.said
    assert "2 runs" in made.said
    losses = made.figure("Total loss")["data"]
    assert [trace["name"] for trace in losses] == ["demo-ahpa", "none"]
    assert losses[1]["x"] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(value) for value in losses[1]["y"])
    assert [trace["name"] for trace in made.figure("Alignment loss")["data"]] == ["demo-ahpa"]
    assert made.figure("Images per second, all ranks")["data"]
    assert len(made.figure("held-out loss")["data"]) == 2
    assert made.html.count('src="data:image/webp;base64,') >= 2
    assert "batch 3 batch 6" in made.text
    assert "alignment.kind ahpa none" in made.text
    assert "run_name: demo-ahpa" in made.text
    # The first process was asked to leave, the second ran out of time.
    assert "restarts 1" in made.text
    assert "exit code 79, asked to leave, and saved: asked to leave by the file STOP" in made.text
    assert "exit code 0, ended in order" in made.text
    assert "ddp, 1 rank, cpu" in made.text
    assert "6 of 6 (100%)" in made.text
    assert "Notes" not in made.text
    routers = made.figure("Weight of each level over t and over training")
    assert {trace["type"] for trace in routers["data"]} == {"heatmap"}
    assert [len(clock["batches"]) > 1 for clock in made.clocks] == [True, True]


def test_what_a_run_says_is_text_and_damage_is_counted(tmp_path, report):
    folder = hostile_run(tmp_path)
    (folder / "samples").mkdir()
    (folder / "samples" / "step-00000001.png").write_bytes(b"no picture")
    made = report(folder)
    assert made.code == 0, made.said
    tags = Reader(made.html).tags
    assert (tags.count("script"), tags.count("img")) == (4, 0)
    assert HOSTILE[:40] in made.text
    assert "sesame" not in made.html
    assert "me:***@bucket" in made.text
    assert "\x1b" not in made.html
    assert "6 rows are left out, because damaged (line 2 is not JSON" in made.text
    assert "its last line is only half written" in made.text
    assert "step-00000001.png: left out, because it is no whole PNG" in made.text
    assert "exit code 70, stopped by its guard" in made.text
    trace = made.figure("Total loss")["data"][0]
    assert (trace["x"], trace["y"]) == ([1, 2, 5, 6, 7], [1.0, 1.0, 1.0, None, 2.0])


def test_a_long_run_makes_a_short_page(tmp_path, report):
    rows = [row(batch, loss=batch % 7) for batch in range(1, 20_001)]
    made = report(folder_of(tmp_path, "long", rows))
    traces = made.figure("Total loss")["data"]
    assert max(len(trace["x"]) for trace in traces) == POINTS
    assert traces[-1]["x"][-1] == 20_000
    assert traces[0]["y"] == [0.0] * POINTS
    assert traces[1]["y"] == [6.0] * POINTS
    assert made.path.stat().st_size < 6e6
    assert "means of 600 equal parts" in made.text
    assert "images/s 2" in made.text


def test_figures_have_intervals_and_runs_are_compared(tmp_path, report):
    first = evaluated(100, fid=30.0, fid_interval=[28.0, 33.0], novelty=2)
    first += evaluated(
        200, fid=20.0, fid_interval=[19.0, 22.0], precision=0.5, kid=0.1, kid_std=0.02
    )
    second = evaluated(50, "b", fid=25.0, precision=0.4) + evaluated(100, "b", fid=19.0, kid=None)
    one = folder_of(tmp_path, "one", [row(1)], evaluation=first)
    two = folder_of(tmp_path, "two", [row(1)], evaluation=second, config="run_name: b\n")
    made = report(one, two)
    bars = made.figure("FID")["data"][0]["error_y"]
    assert (bars["array"], bars["arrayminus"]) == ([3.0, 2.0], [2.0, 1.0])
    assert made.figure("KID")["data"][0]["error_y"]["array"] == [pytest.approx(0.02)]
    assert made.figure("novelty")["data"][0]["y"] == [2.0]
    assert "b FID 20 200 100 0.50 19" in made.text
    assert "b precision 0.5 200 not reached 0.4" in made.text
    assert "20 [19, 22]" in made.text
    assert "best FID 20 at batch 200" in made.text


def test_what_a_run_measures_of_its_averages_is_seen_at_once(tmp_path, report):
    measured = {"heldout/flow": 0.5, "samples/fid": 9.0, "heldout/flow/0": 0.1}
    rows = [row(1), row(2, **measured), row(3)]
    made = report(folder_of(tmp_path, "a", rows))
    for title in ("Held-out loss, while training", "FID, while training"):
        assert made.figure(title)["data"][0]["x"] == [2], made.said
    shown, _, others = made.html.partition("Everything else that was logged")
    assert "FID, while training" in shown
    assert "heldout/flow/0" in others


def test_runs_evaluated_otherwise_are_not_compared(tmp_path, report):
    one = folder_of(tmp_path, "one", [row(1)], evaluation=evaluated(1, flow=1.0))
    two = folder_of(tmp_path, "two", [row(1)], evaluation=evaluated(1, "b", flow=1.0, pictures=8))
    assert (
        "evaluated with other settings (pictures), so it is not compared" in report(one, two).text
    )


def test_an_evaluation_elsewhere_joins_its_run(tmp_path, report):
    folder = folder_of(tmp_path, "one", [row(1)], config="run_name: a\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "evaluation.jsonl").write_text(evaluated(1, flow=1.5))
    made = report(folder, elsewhere)
    assert made.html.count('class="card"') == 1
    assert "best held-out loss 1.5 at batch 1" in made.text


def test_runs_of_one_name_are_told_apart(tmp_path, report):
    one = folder_of(tmp_path, "one", [row(1), row(2)], config="run_name: a\n")
    two = folder_of(tmp_path, "two", [row(1), row(2)], config="run_name: a\n")
    names = [trace["name"] for trace in report(one, two).figure("Total loss")["data"]]
    assert names == [f"a (1: {one})", f"a (2: {two})"]


def test_a_folder_of_checkpoints_tells_what_its_manifests_know(two_runs, report):
    made = report(two_runs / "none" / "checkpoints")
    assert made.code == 0, made.said
    assert "No rows of training were found." in made.text
    assert "newest whole one batch 6" in made.text
    assert "run_name: none" in made.text
    assert "torch" in made.text
    assert "ddp, 1 ranks" in made.text


def test_a_run_in_a_store(two_runs, tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    with s3_server(folder) as server:
        names = ["metrics.jsonl", "config.yaml", "history.jsonl", "evaluation/evaluation.jsonl",
                 "samples/step-00000006.png"]  # fmt: skip
        for name in names:
            server.client().upload_file(str(two_runs / "none" / name), BUCKET, f"runs/none/{name}")
        words = (CLI, "report", f"s3://{BUCKET}/runs/none", "--out", f"s3://{BUCKET}/r.html")
        done = run(*words, environment=server.environment)
        assert done.returncode == 0, done.stderr
        kept = server.client().get_object(Bucket=BUCKET, Key="r.html")["Body"].read().decode()
        local = tmp_path / "r.html"
        local.write_text(kept)
        made = Report(local, 0, "")
        assert made.figure("Total loss")["data"][0]["x"] == [1, 2, 3, 4, 5, 6]
        assert kept.count('src="data:image/webp;base64,') == 1
        again = run(*words, environment=server.environment)
        assert (again.returncode, "exists already" in again.stderr) == (2, True)
        absent = run(CLI, "report", f"s3://{BUCKET}/nothing", "--out", tmp_path / "x.html",
                     environment=server.environment)  # fmt: skip
        assert absent.returncode == 2
        assert "holds neither metrics.jsonl" in absent.stderr


def test_a_mistake_is_one_line_and_overwrites_nothing(tmp_path, report):
    folder = folder_of(tmp_path, "one", [row(1)])
    kept = tmp_path / "kept.html"
    kept.write_text("kept")
    assert f"{kept} exists already" in report(folder, out=kept).said
    assert kept.read_text() == "kept"
    wrong = report(tmp_path)
    assert wrong.code == 2
    assert f"did you mean {folder}?" in wrong.said
    assert "is a file: name the run's folder" in report(folder / "metrics.jsonl").said
    assert "named twice" in report(folder, folder).said
    assert report(folder, out=kept, words=("--overwrite",)).code == 0
    assert kept.read_text().startswith("<!doctype html>")


def test_it_starts_without_torch(tmp_path):
    folder = folder_of(tmp_path, "one", [row(1), row(2)])
    lines = [
        "import sys",
        "from ahpa_scale.cli import main",
        f"words = ['report', {str(folder)!r}, '--out', {str(tmp_path / 'r.html')!r}]",
        "try: main(words)",
        "except SystemExit as end: assert not end.code",
        "heavy = {'torch', 'composer', 'numpy', 'matplotlib'} & set(sys.modules)",
        "assert not heavy, heavy",
    ]
    done = run(sys.executable, "-c", "\n".join(lines), cold=True)
    assert done.returncode == 0, done.stderr


def ended(code: int | None) -> Session:
    return Session(0.0, 0, exit_code=code)


@pytest.mark.parametrize(
    ("sessions", "batch", "quiet", "kind"),
    [
        ([], 100, 1e9, "finished"),
        ([ended(0)], 100, 1e9, "finished"),
        ([ended(74)], 100, 1e9, "stopped"),
        ([ended(0)], 50, 1e9, "stopped"),
        ([ended(79), ended(None)], 50, 1.0, "going"),
        ([ended(None)], 50, QUIET + 1, "silent"),
        ([], 50, None, "unknown"),
    ],
)
def test_state_of_a_run(sessions, batch, quiet, kind):
    assert state_of(sessions, batch, 100, quiet).kind == kind
