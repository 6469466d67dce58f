# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale report`: one page about real runs, hostile ones, long ones, and runs in a store."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser
import pytest
from browser import browser_page
from job import BIN, CLI, FASTEST, run
from s3_server import BUCKET, s3_server

from ahpa_scale.cli import main
from ahpa_scale.report.curves import POINTS
from ahpa_scale.report.history import QUIET, Session, state_of

WITHOUT = browser.why_not()
needs_browser = pytest.mark.skipif(WITHOUT is not None, reason=str(WITHOUT))
READY = "document.documentElement.dataset.ready"


def train(data: Path, folder: Path, *overrides: str, ends_with: int = 0) -> None:
    done = run(
        BIN / "composer", "-n", 1, "train.py", "yamls/demo-ahpa.yaml",
        "global_train_batch_size=32", "model.depth=3", f"data.local={data}",
        f"output_dir={folder}", f"checkpoint.save_folder={folder / 'checkpoints'}",
        "optimizer.warmup=0ba", "ema.decay=0.5", "logging.interval=1ba",
        "logging.router_interval=1ba", "sampling.classes=[0,3]", "sampling.steps=2",
        f"precision={FASTEST}", *overrides,
    )  # fmt: skip
    assert done.returncode == ends_with, done.stderr


@pytest.fixture(scope="module")
def trained(demo_data: Callable[[int], Path], tmp_path_factory) -> Path:
    """Two evaluated runs: `ahpa`, which was asked to leave and then went on, and `none`."""
    place = tmp_path_factory.mktemp("report")
    data = demo_data(64)
    ahpa, none = place / "ahpa", place / "none"
    (ahpa / "checkpoints").mkdir(parents=True)
    (ahpa / "checkpoints" / "STOP").touch()
    long = ("max_duration=100000ba", "checkpoint.save_interval=1000ba", "sampling.interval=1000ba")
    train(data, ahpa, *long, ends_with=79)
    train(data, ahpa, *long, "guard.time_limit=1s", "checkpoint.autoresume=true")
    short = ("max_duration=6ba", "checkpoint.save_interval=2ba", "sampling.interval=3ba")
    train(data, none, *short, "run_name=none", "alignment.kind=none")
    for folder in (ahpa, none):
        told = run(
            CLI, "evaluate", folder / "checkpoints", "--data", data, "--newest", "--steps", 2,
            "--out", folder / "evaluation", "--bins", 2, "--no-progress",
        )  # fmt: skip
        assert told.returncode == 0, told.stderr
    return place


@pytest.fixture
def report(tmp_path, capfd) -> Callable[..., Report]:
    """Runs the command: the page, and what was said."""

    def call(*runs: object, out: Path | None = None, words: tuple[str, ...] = ()) -> Report:
        target = out or tmp_path / f"report-{os.urandom(4).hex()}.html"
        with pytest.raises(SystemExit) as ended:
            main(["report", *map(str, runs), "--out", str(target), "--no-progress", *words])
        said = capfd.readouterr()
        return Report(target, int(ended.value.code or 0), said.out + said.err)

    return call


class Reader(HTMLParser):
    """The tags and texts of a page, as a browser finds them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] not in (["script"], ["style"]) or self.cdata_elem is None:
            self.texts.append(data)


class Report:
    """A page as it was written."""

    def __init__(self, path: Path, code: int, said: str) -> None:
        self.path, self.code, self.said = path, code, said
        self.html = path.read_text() if path.exists() else ""

    @property
    def text(self) -> str:
        """What the page says, without its scripts."""
        return " ".join(" ".join(Reader(self.html).texts).split())

    def figure(self, title: str) -> dict[str, Any]:
        """The figure below a heading."""
        pattern = rf"<h3>{re.escape(title)}</h3><div [^>]*data-figure=\"(\d+)\""
        match = re.search(pattern, self.html)
        assert match, title
        return self._data("figures")[int(match[1])]

    @property
    def clocks(self) -> list[dict[str, Any] | None]:
        return self._data("clocks")

    def _data(self, identity: str) -> Any:
        match = re.search(rf'<script [^>]*id="{identity}">(.*?)</script>', self.html, re.DOTALL)
        assert match
        return json.loads(match[1])


def folder_of(place: Path, name: str, rows: list[str], **files: str) -> Path:
    """A run's folder with these lines as metrics, and further files by their names' stems."""
    folder = place / name
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(rows))
    suffixes = {"config": ".yaml", "history": ".jsonl", "guard": ".jsonl", "evaluation": ".jsonl"}
    for stem, text in files.items():
        (folder / f"{stem}{suffixes[stem]}").write_text(text)
    return folder


def row(batch: int, loss: float | None = 1.0, **more: object) -> str:
    told = {"batch": batch, "num_images": batch * 4, "seconds": batch * 2.0}
    return json.dumps({**told, "loss/train/total": loss, **more}) + "\n"


def evaluated(batch: int, name: str = "a", **figures: object) -> str:
    settings = {"run_name": name, "pictures": figures.pop("pictures", 64)}
    return json.dumps({"batch": batch, "settings": settings, **figures}) + "\n"


def test_two_real_runs_on_one_page(trained, report):
    made = report(trained / "ahpa", trained / "none")
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


@needs_browser
@pytest.mark.parametrize(
    ("width", "dark", "touch"), [(1200, False, False), (1200, True, False), (390, True, True)]
)
def test_page_opens_without_network_or_errors(trained, report, width, dark, touch):
    made = report(trained / "ahpa", trained / "none")
    with browser_page(width=width, dark=dark, touch=touch) as page:
        page.open(made.path, READY)
        page.value("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        page.wait_for("[...document.querySelectorAll('.plot')].every((plot) => plot.data)")
        drawn = page.value("document.querySelectorAll('.plot .main-svg').length")
        # Text and page in the two colours of the scheme.
        light = (
            page.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        )
        ink = page.value("getComputedStyle(document.querySelector('.xtick text')).fill")
        assert page.value("document.documentElement.scrollWidth") == width
        page.value(
            "{ const axis = document.getElementById('axis'); axis.value = 'images';"
            " axis.dispatchEvent(new Event('change')); }"
        )
        page.wait_for("document.querySelector('.plot').data[1].x.at(-1) === 6 * 32")
        assert drawn
        assert light is not dark
        assert ink == ("rgb(228, 232, 236)" if dark else "rgb(27, 31, 36)")
        assert page.complaints == []
        assert page.requests == []


HOSTILE = "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt = 2'>"


def hostile_run(place: Path) -> Path:
    rows = [
        row(1, **{HOSTILE: 1.0}),
        "no json\n",
        row(2, **{HOSTILE: 2.0}),
        '{"batch": 3, "loss/train/total": NaN}\n',
        "[1]\n",
        '{"batch": "4"}\n',
        row(2),
        row(5, router={"batch": 5, "levels": [HOSTILE]}),
        row(6, None, nonfinite=["loss/train/total"], **{"loss/train/flow": "text"}),
        row(7, 2.0),
        '{"batch": 8, "loss/tr',
    ]
    start = {
        "event": "start",
        "time": 1e9,
        "batch": 0,
        "engine": HOSTILE,
        "versions": {"x": HOSTILE},
    }
    reason = f"{HOSTILE} s3://me:sesame-open@bucket/x \x1b[31m"
    end = {"event": "end", "time": 1e99, "batch": 7, "exit_code": 70, "reason": reason}
    return folder_of(
        place, "hostile", rows,
        config=f"run_name: {json.dumps(HOSTILE)}\nmax_duration: 9ba\ndata: http://u:sesame@h/x\n",
        history=f"{json.dumps(start)}\n{json.dumps(end)}\n",
        guard=json.dumps({"event": HOSTILE, "batch": 3}) + "\n",
        evaluation=evaluated(5, HOSTILE, **{HOSTILE: 1.0, "flow": 1.0}),
    )  # fmt: skip


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


@needs_browser
def test_what_a_run_says_is_never_executed(tmp_path, report):
    other = folder_of(tmp_path, "other", [row(1), row(2)])
    made = report(hostile_run(tmp_path), other)
    with browser_page() as page:
        page.open(made.path, READY)
        page.value("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        page.wait_for("[...document.querySelectorAll('.plot')].every((plot) => plot.data)")
        legend = page.value("document.querySelector('.legendtext').textContent")
        assert legend.startswith("</script><script>")
        assert page.value("window.hurt") is None
        assert page.value("document.scripts.length") == 4
        assert page.complaints == []
        assert page.requests == []


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


def test_a_folder_of_checkpoints_tells_what_its_manifests_know(trained, report):
    made = report(trained / "none" / "checkpoints")
    assert made.code == 0, made.said
    assert "No rows of training were found." in made.text
    assert "newest whole one batch 6" in made.text
    assert "run_name: none" in made.text
    assert "torch" in made.text
    assert "ddp, 1 ranks" in made.text


def test_a_run_in_a_store(trained, tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    with s3_server(folder) as server:
        names = ["metrics.jsonl", "config.yaml", "history.jsonl", "evaluation/evaluation.jsonl",
                 "samples/step-00000006.png"]  # fmt: skip
        for name in names:
            server.client().upload_file(str(trained / "none" / name), BUCKET, f"runs/none/{name}")
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
