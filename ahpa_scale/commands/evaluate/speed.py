# SPDX-License-Identifier: Apache-2.0
"""The last lines of `ahpa-scale evaluate`: how fast the run reaches a quality."""

from __future__ import annotations

from collections.abc import Iterator

from ahpa_scale.checkpoint.find import checkpoints_at
from ahpa_scale.commands.evaluate.rows import EVALUATION_FILE, Rows, Settings
from ahpa_scale.config.evaluation import Evaluation
from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.progress import Reached, epochs_to_fid, steps_to_quality, told


class Speed:
    """Compares the rows with another run's, and with an FID to reach.

    Args:
        wanted: the command's options.

    Raises:
        UserError: there are no rows of another run where the options say.
        OSError: the store can't be reached.
    """

    def __init__(self, wanted: Evaluation) -> None:
        self._wanted = wanted
        self._others: Rows | None = None
        if wanted.against is not None:
            place = wanted.against.rstrip("/")
            if place.rsplit("/", 1)[-1] == EVALUATION_FILE:
                place = place[: -len(EVALUATION_FILE)] or "."
            self._others = Rows(place)
            if not len(self._others):
                raise UserError(f"--against: there are no rows in {self._others.url}")

    def check(self, settings: Settings) -> None:
        """Refuses rows that can't be compared, before anything is measured.

        Raises:
            UserError: the settings differ, or the FID would be that of guided samples.
        """
        if self._others is not None:
            self._others.check_comparable(settings)
        if self._wanted.ep_fid is not None and settings["guidance_scale"] != 1:
            scale = settings["guidance_scale"]
            raise UserError(
                f"--ep-fid is about samples without guidance, and the scale is {scale:g}: give "
                "--guidance-scale 1"
            )

    def lines(self, rows: Rows) -> Iterator[str]:
        """What the options ask for, in words.

        Raises:
            UserError: as `check`.
        """
        if not len(rows):
            return
        self.check(rows.settings or {})
        if self._wanted.ep_fid is not None:
            yield _epochs(epochs_to_fid([*rows], self._wanted.ep_fid, self._images_per_epoch()))
        if self._others is None:
            return
        others = [*self._others]
        distances = [n for n in others[-1] if n == "fid" or n.startswith("frechet_")]
        for measure in ("flow", *distances):
            reached = steps_to_quality([*rows], others, measure)
            if reached is not None:
                yield told(reached, others)

    def _images_per_epoch(self) -> int | None:
        """Pictures of the run's own data set, as its checkpoints tell."""
        manifests = (each.manifest for each in checkpoints_at(self._wanted.checkpoints))
        sets = (each.data_set for each in manifests if each is not None)
        return next((each["num_samples"] for each in sets if each is not None), None)


def _epochs(reached: Reached) -> str:
    title = f"EP_FID@{reached.goal:g}"
    if reached.batches is None:
        return f"{title}: not reached"
    if reached.epochs is None:
        return f"{title}: reached at ba{reached.batches}"
    return f"{title}: {reached.epochs:.4g} epochs, at ba{reached.batches}"
