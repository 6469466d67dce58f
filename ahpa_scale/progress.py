# SPDX-License-Identifier: Apache-2.0
"""The one kind of progress bar, with rate and time left. It moves on a terminal and adds a line now
and then to a log file.
"""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

SECONDS_IN_A_LOG = 30.0


def progress_bar(*, total: int, unit: str, desc: str, shown: bool) -> tqdm[Any]:
    """A bar on stderr, to be used as a context manager and moved by ``update``.

    Args:
        total: units of the whole work.
        unit: what is counted, singular.
        desc: the work's name.
        shown: False draws nothing.
    """
    live = sys.stderr.isatty()
    return tqdm(
        total=total,
        unit=unit,
        desc=desc,
        disable=not shown,
        mininterval=0.5 if live else SECONDS_IN_A_LOG,
    )
