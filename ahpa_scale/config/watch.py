# SPDX-License-Identifier: Apache-2.0
"""The watch section and the launcher's variables -> the watch over this run's ranks."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

from ahpa_scale.config.schema import Config
from ahpa_scale.watch import Pulse, place_from, watching


def watch_ranks(config: Config) -> AbstractContextManager[Pulse | None]:
    """A context that watches the ranks while its body runs; it yields None for one rank alone.

    Raises:
        WatchError: on entering rank 0's, its UDP port can't be had.
    """
    chosen = config.watch
    place = place_from(os.environ, chosen.port) if chosen.enabled else None
    return watching(place, silence=chosen.silence, hang=chosen.hang)
