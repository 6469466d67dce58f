# SPDX-License-Identifier: Apache-2.0
"""Everything that a run has left in its output folder, or in a folder of checkpoints."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ahpa_scale import storage
from ahpa_scale.checkpoint.find import StoredCheckpoint, look_at
from ahpa_scale.checkpoint.manifest import MANIFEST, Manifest
from ahpa_scale.errors import UserError
from ahpa_scale.printable import printable
from ahpa_scale.report.evaluation import Evaluation, read_evaluation
from ahpa_scale.report.history import GuardLog, Session, read_guard, read_sessions
from ahpa_scale.report.metrics import Metrics, read_metrics
from ahpa_scale.report.rows import Faults, read_rows
from ahpa_scale.report.samples import Sample, choose, shrink
from ahpa_scale.report.settings_file import read_config
from ahpa_scale.run_files import (
    CONFIG_FILE,
    EVALUATION_FILE,
    GUARD_FILE,
    HISTORY_FILE,
    METRICS_FILE,
)
from ahpa_scale.storage import modified

_OWN = (METRICS_FILE, CONFIG_FILE, HISTORY_FILE, GUARD_FILE)
_CHECKPOINT = re.compile(rf"((?:.+/)?ba\d+)/{re.escape(MANIFEST)}", re.ASCII)
_LONGEST_NAME = 80
#: Files of rows larger than this are not read.
_LARGEST = 8 << 30


@dataclass(frozen=True)
class Run:
    """What is known of a run. Texts are as they were found: untrusted.

    Attributes:
        where: folder or URL.
        name: as configured, or the folder's.
        config_text: the resolved configuration as YAML; empty if there is none.
        config: the same, parsed.
        metrics: rows of training; None if there are none.
        sessions: its processes, oldest first.
        guard: what its guard noted.
        evaluations: one for each file of rows.
        samples: some of its sample grids, oldest first.
        manifest: of the newest whole checkpoint.
        checkpoints: how many there are.
        written: when it last wrote, in seconds since 1970; None if that is not known.
        faults: what could not be read.
    """

    where: str
    name: str
    config_text: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Metrics | None = None
    sessions: Sequence[Session] = ()
    guard: GuardLog | None = None
    evaluations: Sequence[Evaluation] = ()
    samples: Sequence[Sample] = ()
    manifest: Manifest | None = None
    checkpoints: int = 0
    written: float | None = None
    faults: Sequence[str] = ()

    @property
    def batch(self) -> int | None:
        """Batches trained, as far as known."""
        if self.metrics is not None and self.metrics.batches:
            return self.metrics.batches[-1]
        return self.manifest.batch if self.manifest else None

    @property
    def planned(self) -> int | None:
        """Batches that it is meant to train; None if that is not given in batches."""
        match = re.fullmatch(r"(\d{1,15})ba", str(self.config.get("max_duration")), re.ASCII)
        return int(match[1]) if match else None

    @property
    def evaluation(self) -> Evaluation | None:
        """The first file of evaluation rows that has any."""
        return next((evaluation for evaluation in self.evaluations if evaluation.rows), None)


class _Folder:
    """The files of a run, listed once, and read one after another."""

    def __init__(self, url: str, sizes: dict[str, int], moved: Callable[[int], None]) -> None:
        self.url, self.sizes, self.faults = url, sizes, Faults()
        self._moved, self._done = moved, 0

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A local file with the content of a file of the run."""
        url = storage.join(self.url, *name.split("/"))
        if not storage.is_remote(url):
            yield storage.local_path(url)
            return
        with tempfile.TemporaryDirectory(prefix="ahpa-scale-") as room:
            path = Path(room, "file")
            storage.get_file(url, path)
            yield path

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """The rows of a file; none if it is not there."""
        size = self.sizes.get(name, 0)
        if not size:
            return
        if size > _LARGEST:
            self.faults.add(f"{name}: {size} bytes are more than a report reads")
            return
        begun = self._done
        with self.local(name) as path:
            yield from read_rows(
                path, name, self.faults, lambda done: self._moved(begun + min(done, size))
            )
        self._done = begun + size
        self._moved(self._done)


def row_bytes(sizes: Mapping[str, int]) -> int:
    """Bytes of the files of rows, for a progress bar."""
    return sum(size for name, size in sizes.items() if name.endswith(".jsonl"))


def listing(url: str) -> dict[str, int]:
    """The files of a run by name, with sizes in bytes.

    Raises:
        UserError: nothing there is a run's; the message names the runs below, if there are any.
        OSError: the store can't be reached.
    """
    try:
        sizes = storage.find(url)
    except NotADirectoryError:
        raise UserError(f"{url} is a file: name the run's folder") from None
    if any(name in sizes for name in _OWN) or _evaluations(sizes) or _checkpoint_folders(sizes):
        return sizes
    below = sorted({name.rpartition("/")[0] for name in sizes if name.endswith(f"/{METRICS_FILE}")})
    near = f"; did you mean {storage.join(url, *below[0].split('/'))}?" if below else ""
    raise UserError(
        f"{url} holds neither {METRICS_FILE}, {EVALUATION_FILE} nor a checkpoint: name the "
        f"output_dir of a run, or its checkpoints{near}"
    )


def read_run(
    url: str, sizes: dict[str, int], moved: Callable[[int], None] = lambda done: None
) -> Run:
    """Everything of a run that a report shows.

    Args:
        url: folder or URL.
        sizes: its files, from `listing`.
        moved: called with the number of bytes of rows read so far.

    Raises:
        OSError: the disk or store refused.
        UnreachableError: the store does not answer.
    """
    folder = _Folder(url, sizes, moved)
    metrics = None
    if METRICS_FILE in sizes:
        metrics = read_metrics(folder.rows(METRICS_FILE), folder.faults)
    evaluations = [
        read_evaluation(folder.rows(name), name, folder.faults) for name in _evaluations(sizes)
    ]
    newest = next(
        (each for each in _newest_first(sizes, url) if each.problem is None and each.manifest), None
    )
    manifest = newest.manifest if newest else None
    text, config = "", dict(manifest.config) if manifest else {}
    if CONFIG_FILE in sizes:
        with folder.local(CONFIG_FILE) as path:
            text, config = read_config(path, folder.faults)
    return Run(
        where=url,
        name=_name(url, config, manifest, evaluations),
        config_text=text,
        config=config,
        metrics=metrics,
        sessions=read_sessions(folder.rows(HISTORY_FILE)),
        guard=read_guard(folder.rows(GUARD_FILE)) if GUARD_FILE in sizes else None,
        evaluations=evaluations,
        samples=list(_samples(folder)),
        manifest=manifest,
        checkpoints=len(_checkpoint_folders(sizes)),
        written=_written(url, sizes),
        faults=folder.faults.told(),
    )


def joined(runs: Sequence[Run]) -> list[Run]:
    """The runs, each under a name of its own. A folder that holds evaluations alone joins the run
    that it is of.
    """
    own = [run for run in runs if not _only_evaluated(run)]
    for part in (run for run in runs if _only_evaluated(run)):
        places = [place for place, run in enumerate(own) if run.name == part.name]
        if len(places) != 1:
            own.append(part)
            continue
        whole = own[places[0]]
        own[places[0]] = replace(
            whole,
            evaluations=[*whole.evaluations, *part.evaluations],
            faults=[*whole.faults, *part.faults],
        )
    names = [run.name for run in own]
    return [replace(run, name=_own_name(run, place, names)) for place, run in enumerate(own)]


def _own_name(run: Run, place: int, names: Sequence[str]) -> str:
    if names.count(run.name) == 1:
        return run.name
    return f"{run.name} ({place + 1}: {printable(run.where)[-_LONGEST_NAME:]})"


def _only_evaluated(run: Run) -> bool:
    return run.metrics is None and not run.config and bool(run.evaluations)


def _name(
    url: str,
    config: Mapping[str, Any],
    manifest: Manifest | None,
    evaluations: Sequence[Evaluation],
) -> str:
    told = [config.get("run_name"), manifest.run_name if manifest else None]
    told += [evaluation.run_name for evaluation in evaluations]
    folder = url.rstrip("/").rsplit("/", 1)[-1]
    name = next((name for name in told if isinstance(name, str) and name.strip()), folder)
    return printable(" ".join(name.split()))[:_LONGEST_NAME]


def _evaluations(sizes: Mapping[str, int]) -> list[str]:
    """Files of evaluation rows in the folder or one below."""
    ends = (EVALUATION_FILE, f"/{EVALUATION_FILE}")
    return sorted(
        name
        for name in sizes
        if name.count("/") < 2 and (name == ends[0] or name.endswith(ends[1]))
    )


def _checkpoint_folders(sizes: Mapping[str, int]) -> list[str]:
    """Folders of checkpoints with a manifest, newest first; ``""`` if the run is one itself."""
    found = [match[1] for match in map(_CHECKPOINT.fullmatch, sizes) if match is not None]
    ordered = sorted(found, key=lambda name: int(name.rpartition("ba")[2]), reverse=True)
    return [*([""] if MANIFEST in sizes else []), *ordered]


def _newest_first(sizes: Mapping[str, int], url: str) -> Iterator[StoredCheckpoint]:
    for folder in _checkpoint_folders(sizes):
        start = f"{folder}/" if folder else ""
        own = {
            name.removeprefix(start): size for name, size in sizes.items() if name.startswith(start)
        }
        yield look_at(storage.join(url, *folder.split("/")) if folder else url, own)


def _samples(folder: _Folder) -> Iterator[Sample]:
    for batch, name in choose(folder.sizes):
        try:
            with folder.local(name) as path:
                yield shrink(path, batch)
        except (ValueError, FileNotFoundError) as error:
            folder.faults.add(f"{name}: left out, because {error}")


def _written(url: str, sizes: Mapping[str, int]) -> float | None:
    if METRICS_FILE not in sizes:
        return None
    try:
        return modified(storage.join(url, METRICS_FILE))
    except (FileNotFoundError, NotImplementedError):
        return None
