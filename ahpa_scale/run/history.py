# SPDX-License-Identifier: Apache-2.0
"""`history.jsonl`: when each process of a run began to train, and how it ended. Rank 0 writes it.

A process that is killed, or whose machine goes, leaves a start without an end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ahpa_scale import console
from ahpa_scale.config.errors import one_line, speaks_for_all_ranks
from ahpa_scale.config.schema import Config
from ahpa_scale.exits import FAILED
from ahpa_scale.log_files import append_line
from ahpa_scale.run_files import HISTORY_FILE

if TYPE_CHECKING:
    from composer import Trainer


class History:
    """Records this process's start and end, as a context manager around everything it does.

    The end is the line that the console shows of it, with its exit code, from whichever thread. An
    error without such a line is recorded by its name.

    Args:
        config: the run's configuration.
        patience: gives the seconds that the watch needs to name an error's cause; 0: it names none.
    """

    def __init__(self, config: Config, patience: Callable[[BaseException], float]) -> None:
        self._patience = patience
        self._config = config
        self._path = Path(config.output_dir) / HISTORY_FILE
        self._trainer: Trainer | None = None
        self._ended = False

    def begin(self, trainer: Trainer) -> None:
        """Records the start: after all checks, before the first batch. Only rank 0 records."""
        import composer
        import torch
        from composer.utils import dist

        import ahpa_scale

        if not speaks_for_all_ranks():
            return
        self._trainer = trainer
        versions = {
            "ahpa_scale": ahpa_scale.__version__,
            "torch": torch.__version__,
            "composer": composer.__version__,
        }
        on_gpu = trainer.state.device.name == "gpu"
        self._note(
            "start",
            run_name=self._config.run_name,
            engine=self._config.parallelism.engine,
            ranks=dist.get_world_size(),
            device=torch.cuda.get_device_name() if on_gpu else trainer.state.device.name,
            versions=versions,
        )

    def __enter__(self) -> History:
        console.hear_end(self._end)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del kind, traceback
        if error is not None and self._patience(error):
            return  # the watch's line is still to come
        console.hear_end(None)
        if self._ended:
            return
        if isinstance(error, SystemExit):
            self._end("", error.code if isinstance(error.code, int) else FAILED)
        elif error is not None:
            self._end(f"{type(error).__name__}: {error}", FAILED)
        else:
            self._end("", 0)

    def _end(self, reason: str, exit_code: int) -> None:
        """Records an end; of several lines about it, the first is its cause."""
        if self._trainer is None or self._ended:
            return
        self._ended = True
        self._note("end", exit_code=exit_code, reason=one_line(reason.removeprefix("error: ")))

    def _note(self, event: str, **facts: Any) -> None:
        assert self._trainer is not None
        batch = self._trainer.state.timestamp.batch.value
        row = {"time": round(time.time(), 3), "event": event, "batch": batch, **facts}
        append_line(self._path, json.dumps(row).encode() + b"\n")
