# SPDX-License-Identifier: Apache-2.0
"""train.py as a user extends it, with one fault: ``plugin.py RUN.yaml [key=value ...]``.

DRILL_FAULT names the fault and DRILL_RANK the rank that meets it, at the start of batch 3. The
moment is noted in the file DRILL_MOMENT.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Callback, State, Trainer
from composer.loggers import Logger

from ahpa_scale.checkpoint.writer import Writer
from ahpa_scale.data.latents import LatentStream
from ahpa_scale.run import build
from ahpa_scale.run.main import main
from ahpa_scale.watch.client import Client
from ahpa_scale.watch.hub import Hub

BATCH = 3
#: Samples that a loader process reads before the fault.
SAMPLES = 6
Fault = Callable[[State], None]


def note() -> None:
    """Records that the error happens now."""
    Path(os.environ["DRILL_MOMENT"]).touch()


def told(message: str) -> str:
    note()
    return f"drill: {message}"


def _runtime(state: State) -> None:
    raise RuntimeError(told("a callback fell over"))


def _value(state: State) -> None:
    raise ValueError(told("a library's own ValueError"))


def _key(state: State) -> None:
    raise KeyError(told("no such key"))


def _shape(state: State) -> None:
    note()
    torch.ones(2, 3) @ torch.ones(2, 3)


def _memory(state: State) -> None:
    note()
    np.zeros(1 << 60, np.uint8)


def _recursion(state: State) -> None:
    note()
    _endless()


def _endless() -> None:
    _endless()


def _exit(state: State) -> None:
    note()
    os._exit(41)


def _segfault(state: State) -> None:
    note()
    ctypes.string_at(0)


#: Faults of a callback, by the names in `tools.drill.errors`.
CALLBACKS: dict[str, Fault] = {
    "callback": _runtime,
    "value-error": _value,
    "key-error": _key,
    "wrong-shape": _shape,
    "no-memory": _memory,
    "recursion": _recursion,
    "exit": _exit,
    "segfault": _segfault,
}


class Plugin(Callback):
    """A user's callback with a fault.

    Args:
        fault: name of the fault.
    """

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def batch_start(self, state: State, logger: Logger) -> None:
        del logger
        if state.timestamp.batch.value == BATCH and self.fault in CALLBACKS:
            CALLBACKS[self.fault](state)

    def after_loss(self, state: State, logger: Logger) -> None:
        del logger
        if state.timestamp.batch.value >= BATCH and self.fault == "nan":
            note()
            loss: Any = state.loss
            state.loss = {name: value * torch.nan for name, value in loss.items()}


def raise_in_loader() -> None:
    """Makes reading a sample raise after the first few; in a worker, if there is one."""
    read, count = LatentStream.get_item, [0]

    def broken(self: LatentStream, *words: Any, **options: Any) -> Any:
        count[0] += 1
        if count[0] > SAMPLES:
            raise RuntimeError(told("a sample could not be read"))
        return read(self, *words, **options)

    LatentStream.get_item = broken  # type: ignore[method-assign]


def raise_in_watch() -> None:
    """Makes the watch's thread raise a few seconds into training."""
    for kind in (Client, Hub):
        step = kind.step

        def broken(self: Any, step: Any = step) -> Any:
            if self.pulse.batch is not None and self.pulse.batch >= BATCH:
                raise RuntimeError(told("the watch fell over"))
            return step(self)

        kind.step = broken  # type: ignore[method-assign]


def raise_in_writer() -> None:
    """Makes the thread that writes a checkpoint to its folder raise."""

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError(told("the writer of checkpoints fell over"))

    Writer.write = broken  # type: ignore[method-assign]


PATCHES = {"loader": raise_in_loader, "watch": raise_in_watch, "writer": raise_in_writer}


def install(fault: str) -> None:
    """Installs the fault."""
    if fault in PATCHES:
        PATCHES[fault]()
        return
    ours = build.build_trainer

    def with_plugin(
        config: Any, card: Any, targets: Any, callbacks: Sequence[Callback] = (), **options: Any
    ) -> Trainer:
        return ours(config, card, targets, [*callbacks, Plugin(fault)], **options)

    build.build_trainer = with_plugin


if __name__ == "__main__":
    if os.environ.get("RANK", "0") == os.environ["DRILL_RANK"]:
        install(os.environ["DRILL_FAULT"])
    main(sys.argv[1:])
