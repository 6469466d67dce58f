# SPDX-License-Identifier: Apache-2.0
"""The last line of a run: where everything lies."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TextIO

from composer.core import Callback, State
from composer.loggers import Logger

from ahpa_scale import console
from ahpa_scale.callbacks.common import writes_files
from ahpa_scale.preemption import Requests
from ahpa_scale.run_files import METRICS_FILE, ROUTER_FILE, SAMPLES_FOLDER


class RunSummary(Callback):
    """Prints one line on rank 0 at the end of training: it names the files that exist.

    Give it to the Trainer after the callbacks whose files it names.

    Args:
        output_dir: local folder of the run.
        checkpoints: folder or URL of the checkpoints; None when none are written.
        stream: where to print; None is the standard output.
        requests: what is asked of the run from outside; a run asked to leave is not "done".
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        checkpoints: str | None = None,
        stream: TextIO | None = None,
        requests: Requests | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.checkpoints = checkpoints
        self.stream = stream
        self.requests = requests
        self._done = False

    def fit_end(self, state: State, logger: Logger) -> None:
        """Note that training reached its end: `close` also comes after a failure."""
        del state, logger
        self._done = True

    def close(self, state: State, logger: Logger) -> None:
        """Print last, after all loggers and the progress bar."""
        del logger
        if self._done and writes_files():
            fields = {"batch": state.timestamp.batch.value}
            console.say(self.line(), stream=self.stream or sys.stdout, fields=fields)
        self._done = False

    def line(self) -> str:
        """``done: metrics ..., samples ..., router ..., checkpoints ...``; ``so far: ...`` for a
        run that was asked to leave.
        """
        files = {
            "metrics": self.output_dir / METRICS_FILE,
            "samples": self.output_dir / SAMPLES_FOLDER,
            "router": self.output_dir / ROUTER_FILE,
        }
        parts = [f"{name} {path}" for name, path in files.items() if path.exists()]
        if self.checkpoints is not None:
            parts.append(f"checkpoints {self.checkpoints}")
        asked = self.requests is not None and self.requests.leaving
        return ("so far: " if asked else "done: ") + (", ".join(parts) or "nothing was written")
