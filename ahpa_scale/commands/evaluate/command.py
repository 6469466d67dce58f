# SPDX-License-Identifier: Apache-2.0
"""The work of `ahpa-scale evaluate`: evaluates checkpoints as they come, and adds their rows."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from ahpa_scale import storage
from ahpa_scale.checkpoint import content
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.find import StoredCheckpoint, checkpoints_at, some_checkpoints_at
from ahpa_scale.checkpoint.follow import Follower, Pace
from ahpa_scale.checkpoint.weights import chosen_kind, read_weights
from ahpa_scale.commands.evaluate.measure import Subject, pictures_of
from ahpa_scale.commands.evaluate.rows import (
    Row,
    Rows,
    Settings,
    checkpoint_digest,
    settings_digest,
)
from ahpa_scale.commands.evaluate.speed import Speed
from ahpa_scale.commands.evaluate.table import Table
from ahpa_scale.config.evaluation import Evaluation
from ahpa_scale.config.schema import parse_time
from ahpa_scale.data.card import DatasetCard, read_card
from ahpa_scale.data.planning import check_device
from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.curves import draw_evaluation
from ahpa_scale.evaluation.feature_sets import FeatureSet
from ahpa_scale.evaluation.measures import Measure, as_row, compare
from ahpa_scale.evaluation.networks import Network, open_network
from ahpa_scale.evaluation.picture_sets import PictureSet, open_pictures
from ahpa_scale.run.trained import backbone_of, told_config
from ahpa_scale.unreachable import UnreachableError
from ahpa_scale.writable import try_to_write

FIGURE, SAMPLES = "evaluation.png", "samples"
Say = Callable[[str], None]


class CutShortError(RuntimeError):
    """A disk failed on the way: the same command goes on from the existing rows."""


def evaluate(wanted: Evaluation, say: Say, tell: Say) -> Rows:
    """Evaluates the checkpoints that have no row yet.

    Args:
        wanted: what to evaluate, and how.
        say: prints a line of the table.
        tell: prints a warning, or what is being waited for.

    Returns:
        All rows, earlier ones included.

    Raises:
        UserError: bad input, or no checkpoint is whole.
        OSError: a file that isn't there, or a folder that can't be written to.
        UnreachableError: a store does not answer.
        CutShortError: a disk fails on the way.
    """
    check_device(wanted.device)
    with tempfile.TemporaryDirectory(prefix="ahpa-scale-") as room:
        card, reference, rows = _first_look(wanted, room, tell)
        try:
            _Work(wanted, card, reference, rows, room, say, tell).run()
        except (UnreachableError, UserError):
            raise
        except OSError as error:
            raise CutShortError(str(error)) from error
    if not len(rows):
        raise CheckpointError(f"not one checkpoint at {wanted.checkpoints} could be evaluated")
    return rows


def _first_look(
    wanted: Evaluation, room: str, tell: Say
) -> tuple[DatasetCard, PictureSet | None, Rows]:
    """Checks every place; returns the held-out data's card, the real pictures and the earlier
    rows.
    """
    url = wanted.checkpoints
    card = read_card(wanted.data)
    if card.kind != "latents":
        raise UserError(f"{wanted.data} holds {card.kind}: prepare it with --kind latents")
    if pictures_of(wanted, card) < wanted.bins:
        count = pictures_of(wanted, card)
        raise UserError(f"{count} held-out pictures can't fill --bins {wanted.bins}")
    place = wanted.reference_statistics or wanted.reference
    reference = None if place is None else open_pictures(place, room, card.image_size)
    checkpoints = checkpoints_at(url) if wanted.follow else some_checkpoints_at(url)
    if wanted.follow and checkpoints and checkpoints[0].url.rstrip("/") == url.rstrip("/"):
        raise UserError(f"--follow: {url} is a checkpoint itself: name the folder that holds it")
    if not checkpoints:
        tell(f"waiting for the first checkpoint at {url}")
    try_to_write(wanted.out)
    return card, reference, Rows(wanted.out)


class _Work:
    """One call of the command."""

    def __init__(
        self,
        wanted: Evaluation,
        card: DatasetCard,
        reference: PictureSet | None,
        rows: Rows,
        room: str,
        say: Say,
        tell: Say,
    ) -> None:
        self._wanted, self._card, self._rows = wanted, card, rows
        self._reference = reference
        self._room, self._say, self._tell = room, say, tell
        self._subject: Subject | None = None
        self._settings: Settings = {}
        self._real: list[FeatureSet] = []
        device = torch.device(wanted.device)
        # Opened first, because that reports a wrong file at once.
        self._networks: list[Network] = [
            open_network(chosen.name, device, chosen.weights, chosen.side)
            for chosen in wanted.networks
        ]
        self._table, self._speed = Table(), Speed(wanted)
        self._duration: str | None = None

    def run(self) -> None:
        """Works until the last checkpoint."""
        wanted, pace = self._wanted, None
        if wanted.follow:
            pace = Pace(wanted.poll_seconds, wanted.idle_seconds, self._is_last)
        follower = Follower(
            wanted.checkpoints,
            self._lacks_row,
            newest=wanted.newest,
            pace=pace,
            progress=wanted.progress,
            tell=self._tell,
        )
        for checkpoint in follower:
            if self._subject is None and checkpoint.manifest is not None:
                self._subject = self._prepared(checkpoint)
            with follower.brought(checkpoint) as folder:
                if folder is not None:
                    assert self._subject is not None
                    self._evaluate(checkpoint, folder, self._subject)
        if len(self._rows) and not storage.exists(self._place(FIGURE)):
            self._draw()
        for line in self._speed.lines(self._rows):
            self._say(line)

    def _lacks_row(self, checkpoint: StoredCheckpoint) -> bool:
        return checkpoint.manifest is None or not self._rows.holds(checkpoint.manifest)

    def _is_last(self, newest: StoredCheckpoint) -> bool:
        """Whether this checkpoint is the run's last one, or that of --until."""
        batches = self._wanted.last_batch
        if batches is not None and newest.batch >= batches:
            return True
        told = newest.manifest
        # The run may have been made longer since; and this manifest may be damaged.
        self._duration = told.config.get("max_duration") if told else self._duration
        if self._duration is None:
            return False
        value, unit = parse_time(self._duration)
        reached = {"ba": newest.batch}
        if told is not None:
            reached |= {"ep": told.epoch, "sp": told.num_images}
        return reached.get(unit, -1) >= value

    def _prepared(self, checkpoint: StoredCheckpoint) -> Subject:
        """Makes all checks that can refuse something, before a checkpoint is copied."""
        config = told_config(checkpoint)
        if config is None:
            raise UserError(
                f"{checkpoint.url} does not tell its configuration: no model can be made"
            )
        self._duration = config.max_duration
        wanted = self._wanted
        before = self._rows.settings
        told = checkpoint.manifest.data_set if checkpoint.manifest else None
        subject = Subject(
            wanted,
            config,
            self._card,
            told,
            before,
            self._networks,
            self._reference,
            self._room,
            self._tell,
        )
        self._settings = subject.settings()
        self._rows.check(self._settings)
        self._speed.check(self._settings)
        subject.load()
        if self._networks:
            self._real = subject.real()
        return subject

    def _evaluate(self, checkpoint: StoredCheckpoint, folder: Path, subject: Subject) -> None:
        assert checkpoint.manifest is not None
        try:
            kind = chosen_kind(folder, subject.kind)
            subject.take(backbone_of(read_weights(folder, kind)), checkpoint.url)
        except CheckpointError as error:
            if content.overtaken(checkpoint):  # a local one is read in place
                return
            raise CheckpointError(f"{checkpoint.url}: {error}") from None
        row: Row = {
            "batch": checkpoint.batch,
            "num_images": checkpoint.manifest.num_images,
            "epoch": checkpoint.manifest.epoch,
            "weights": kind,
            **subject.loss(),
        }
        self._put(f"{SAMPLES}/step-{checkpoint.batch:08d}.png", subject.grid())
        measures = self._measures(subject)
        row |= as_row(measures) if measures else {}
        row |= {"checkpoint": checkpoint_digest(checkpoint.manifest), "settings": self._settings}
        row["settings_hash"] = settings_digest(self._settings)
        self._rows.add(row)
        self._draw()
        for line in self._table.lines(row, measures):
            self._say(line)

    def _measures(self, subject: Subject) -> list[Measure]:
        if not self._networks:
            return []
        device = torch.device(self._wanted.device)
        pairs = zip(subject.made(), self._real, strict=True)
        return [measure for made, real in pairs for measure in compare(made, real, device)]

    def _draw(self) -> None:
        rows = list(self._rows)
        settings = self._rows.settings or {}
        title = f"{settings['run_name']}, {settings['pictures']:,} held-out pictures"
        if settings["samples"] is not None:
            title += f", {settings['samples']:,} samples"
        drawn = io.BytesIO()
        figure = draw_evaluation(rows, title)
        figure.savefig(drawn, format="png", dpi=110, metadata={"Software": None})
        storage.write_bytes(self._place(FIGURE), drawn.getvalue())

    def _put(self, name: str, picture: Image.Image) -> None:
        drawn = io.BytesIO()
        picture.save(drawn, format="png")
        storage.write_bytes(self._place(name), drawn.getvalue())

    def _place(self, name: str) -> str:
        return storage.join(self._wanted.out, *name.split("/"))
