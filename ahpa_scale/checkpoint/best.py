# SPDX-License-Identifier: Apache-2.0
"""``best.json`` beside the checkpoints: which of them has the lowest held-out loss.

The note is the only memory, so a run that goes on knows its best checkpoint.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import Field

from ahpa_scale import storage, typed_json
from ahpa_scale.checkpoint.manifest import MANIFEST
from ahpa_scale.errors import UserError

BEST = "best.json"
_LIMIT = 1 << 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Best:
    """What was measured on a checkpoint's weights while the run trained.

    Attributes:
        batch: the checkpoint's batch.
        value: what was measured; a lower value is better.
        measure: name of the measure.
        settings: digest of what else the value depends on. Values of other settings can't be
            compared with it.
    """

    __pydantic_config__ = typed_json.STRICT

    batch: Annotated[int, Field(ge=0, lt=1 << 63)]
    value: float
    measure: Annotated[str, Field(max_length=200)]
    settings: Annotated[str, Field(max_length=200)]

    def beats(self, other: Best) -> bool:
        """Whether it should take the other's place."""
        alike = (self.measure, self.settings) == (other.measure, other.settings)
        return not alike or self.value < other.value


class Contest:
    """Takes measurements from the main thread, and notes the best checkpoint from the saver's.

    A measurement counts once the checkpoint of its batch is whole.
    """

    def __init__(self) -> None:
        self._offers: dict[int, Best] = {}

    def offer(self, measured: Best) -> None:
        """Takes a measurement of the weights after a batch."""
        if math.isfinite(measured.value):
            self._offers[measured.batch] = measured

    def settle(self, folder: str, batch: int) -> None:
        """Notes which checkpoint is the best one. Called on rank 0 once that of a batch is whole.

        Raises:
            OSError: the disk or the store refused.
        """
        offers = {n: offer for n, offer in self._offers.items() if n <= batch}
        self._offers = {n: offer for n, offer in self._offers.items() if n > batch}
        noted = best = read_best(folder)
        # The checkpoint that the note means may have been removed, or saved anew just now.
        if best is not None and (best.batch == batch or not _is_there(folder, best.batch)):
            best = None
        for n in sorted(offers):
            wins = best is None or offers[n].beats(best)
            # A measurement at an epoch's end may come after its batch's checkpoint.
            if wins and (n == batch or _is_there(folder, n)):
                best = offers[n]
        if best is not None and best != noted:
            storage.write_text(storage.join(folder, BEST), json.dumps(asdict(best)) + "\n")
        elif best is None and noted is not None:
            storage.remove(storage.join(folder, BEST))


def read_best(folder: str) -> Best | None:
    """The note in a folder of checkpoints; None if there is none, or none that can be read.

    Raises:
        OSError: the store can't be reached.
    """
    place = storage.join(folder, BEST)
    try:
        content = storage.read_bytes(place, _LIMIT)
    except FileNotFoundError:
        return None
    except UserError as error:
        _log.warning("checkpoints: %s", error)
        return None
    try:
        return typed_json.parse_as(Best, content, place)
    except UserError as error:
        _log.warning("checkpoints: no best checkpoint is known: %s", error)
        return None


def _is_there(folder: str, batch: int) -> bool:
    return storage.exists(storage.join(folder, f"ba{batch}", MANIFEST))
