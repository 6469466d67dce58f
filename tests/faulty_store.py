# SPDX-License-Identifier: Apache-2.0
"""A toy run that is saved and taken up again, for tests of what a bad store does to it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from composer import Callback
from torch import Tensor
from toy_trainer import ToyGenerator, toy_trainer

from ahpa_scale import storage
from ahpa_scale.algorithms import EMA
from ahpa_scale.checkpoint.local_copy import open_newest
from ahpa_scale.checkpoint.resume import Resume
from ahpa_scale.checkpoint.saver import Saver

#: Batches of a whole run, and of the run that is interrupted.
WHOLE, PART = 8, 6
INTERVAL = 2


@dataclass(frozen=True)
class Outcome:
    """What a run ended with.

    Attributes:
        first: the number of batches it went on from.
        tensors: weights, averages and optimizer.
        saver: what saved it.
    """

    first: int
    tensors: Mapping[str, Tensor]
    saver: Saver | None = None


class FirstBatch(Callback):
    """Notes where a run begins, and where the weights are when it does."""

    first = -1

    def batch_start(self, state, logger):
        if self.first < 0:
            self.first = state.timestamp.batch.value


def run(batches: int, *callbacks: Callback) -> Outcome:
    """Trains the toy with AdamW and EMA up to so many batches."""
    model, ema, begin = ToyGenerator(), EMA(decay=0.5), FirstBatch()
    trained = [p for p in model.parameters() if p.requires_grad]
    trainer = toy_trainer(
        f"{batches}ba",
        model=model,
        optimizers=torch.optim.AdamW(trained, lr=0.1),
        algorithms=[ema],
        callbacks=[*callbacks, begin],
    )
    try:
        trainer.fit()
    finally:
        trainer.close()
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"ema/{name}": value for name, value in ema.shadow.items()}
    (optimizer,) = trainer.state.optimizers
    for number, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optim/{number}/{key}": value for key, value in entry.items()}
    saver = next((one for one in callbacks if isinstance(one, Saver)), None)
    return Outcome(begin.first, {n: v.clone() for n, v in tensors.items()}, saver)


def saved(folder: str, batches: int = PART) -> Outcome:
    """A run that saves every two batches."""
    return run(batches, Saver(folder, f"{INTERVAL}ba"))


def resumed(folder: str, cache: Path) -> Outcome:
    """The whole run, gone on with from the newest checkpoint that can be used."""
    copy = open_newest(folder, cache)
    assert copy is not None, f"nothing found in {folder}"
    outcome = run(WHOLE, Resume(copy, same_run=True))
    assert outcome.first == copy.manifest.batch
    return outcome


def assert_same(one: Outcome, other: Outcome) -> None:
    """Every bit of every tensor."""
    assert one.tensors.keys() == other.tensors.keys()
    assert {name.split("/")[0] for name in one.tensors} == {"model", "ema", "optim"}
    for name, value in one.tensors.items():
        assert torch.equal(value, other.tensors[name]), name


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a local folder."""
    return {name: (folder / name).read_bytes() for name in storage.find(folder)}


def fill(folder: str, files: Mapping[str, bytes]) -> str:
    """Writes files below a folder or URL, and returns it."""
    for name, content in files.items():
        storage.write_bytes(storage.join(folder, name), content)
    return folder


def warnings_of(records: list[logging.LogRecord]) -> str:
    """The warnings of our own package, a line each."""
    ours = [r for r in records if r.name.startswith("ahpa_scale") and r.levelno >= logging.WARNING]
    return "\n".join(record.getMessage() for record in ours)
