# SPDX-License-Identifier: Apache-2.0
"""Runs that reports are made of, and the pages that come of it: a plug-in."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from job import BIN, CLI, FASTEST, run

from ahpa_scale.cli import main

HOSTILE = "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt = 2'>"


@pytest.fixture(scope="session")
def two_runs(demo_data: Callable[[int], Path], tmp_path_factory) -> Path:
    """Two evaluated runs: `ahpa`, which was asked to leave and then went on, and `none`. They are
    trained once for all of pytest's processes; tests only read them.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    place = shared / "two-runs"
    with FileLock(f"{place}.lock"):
        if not place.exists():
            begun = tmp_path_factory.mktemp("begun") / "runs"
            _train_two(demo_data(64), begun)
            begun.rename(place)
    return place


def _train_two(data: Path, place: Path) -> None:
    ahpa, none = place / "ahpa", place / "none"
    (ahpa / "checkpoints").mkdir(parents=True)
    (ahpa / "checkpoints" / "STOP").touch()
    long = ("max_duration=100000ba", "checkpoint.save_interval=1000ba", "sampling.interval=1000ba")
    _train(data, ahpa, *long, ends_with=79)
    _train(data, ahpa, *long, "guard.time_limit=1s", "checkpoint.autoresume=true")
    short = ("max_duration=6ba", "checkpoint.save_interval=2ba", "sampling.interval=3ba")
    _train(data, none, *short, "run_name=none", "alignment.kind=none")
    for folder in (ahpa, none):
        told = run(
            CLI, "evaluate", folder / "checkpoints", "--data", data, "--newest", "--steps", 2,
            "--out", folder / "evaluation", "--bins", 2, "--no-progress",
        )  # fmt: skip
        assert told.returncode == 0, told.stderr


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


def _train(data: Path, folder: Path, *overrides: str, ends_with: int = 0) -> None:
    done = run(
        BIN / "composer", "-n", 1, "train.py", "yamls/demo-ahpa.yaml",
        "global_train_batch_size=32", "model.depth=3", f"data.local={data}",
        f"output_dir={folder}", f"checkpoint.save_folder={folder / 'checkpoints'}",
        "optimizer.warmup=0ba", "ema.decay=0.5", "logging.interval=1ba",
        "logging.router_interval=1ba", "sampling.classes=[0,3]", "sampling.steps=2",
        f"precision={FASTEST}", *overrides,
    )  # fmt: skip
    assert done.returncode == ends_with, done.stderr


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
