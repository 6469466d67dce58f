# SPDX-License-Identifier: Apache-2.0
"""How long training stands still for a checkpoint, while its upload goes on.

    python benchmarks/checkpoint_stall.py [--rounds 5] [--batches 40] [--put-rate 5]

In a batch the main thread mostly sleeps, as if it waited for a device, and works a little. If it
computed instead, a busy machine's noise would hide a stall of tenths of a second. A checkpoint has
all tensors of a model of 17 million weights, with AdamW's and the averages, but only a small layer
learns after the first batch.

The same training runs in turns without saving, with one save to a local folder, and with one save
to a real S3 server behind a line of --put-rate MB/s, which the upload keeps busy until after the
last batch. A save's stall is the time of all batches minus that of the run without saving in the
same round, so that what the upload takes from later batches counts too. One copy of the state is
timed right before each save, because the speed of a shared machine's memory varies. Ends with exit
code 1 when the median of either stall exceeds that copy by more than 0.2 s.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from composer import Callback, State, Trainer
from composer.loggers import Logger
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fault_proxy import ProxyProcess, proxy_process
from s3_server import BUCKET, s3_server

from ahpa_scale.algorithms import EMA
from ahpa_scale.checkpoint.saver import Saver
from ahpa_scale.preemption import Requests

ALLOWED = 0.2
WARM_UP = 2
KINDS = ("none", "local", "store")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 when the bound is missed."""
    given = _parser().parse_args(arguments)
    stalls: dict[str, list[float]] = defaultdict(list)
    held: dict[str, list[float]] = defaultdict(list)
    copies: dict[str, list[float]] = defaultdict(list)
    batches: list[float] = []
    with TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        place = Path(folder)
        (place / "server").mkdir()
        server = stack.enter_context(s3_server(place / "server"))
        proxy = stack.enter_context(proxy_process(server.endpoint))
        os.environ.update({**server.environment, "S3_ENDPOINT_URL": proxy.url})
        for number in range(given.rounds):
            # Each kind takes each place in a round, because the machine's load changes over time.
            turn = number % len(KINDS)
            timed = {}
            for kind in (*KINDS[turn:], *KINDS[:turn]):
                urls = {
                    "local": str(place / f"local{number}"),
                    "store": f"s3://{BUCKET}/run{number}",
                }
                timed[kind] = Timed(given, proxy, urls.get(kind))
            plain = timed["none"].total
            batches.append(plain / given.batches)
            for kind in KINDS[1:]:
                stalls[kind].append(timed[kind].total - plain)
                held[kind].append(timed[kind].held)
                copies[kind].append(timed[kind].copy)
    size = timed["none"].size
    return _report(given, size, batches, copies, stalls, held)


class Timed:
    """One run.

    Args:
        given: the command line.
        proxy: the line to the store.
        url: where one checkpoint is saved; None saves none.

    Attributes:
        total: seconds of the batches after the first ones.
        held: seconds of `total` that the main thread spent in the saver.
        copy: seconds of one copy of weights, optimizer and averages, outside `total`.
        size: bytes of weights, optimizer and averages.
    """

    def __init__(self, given: argparse.Namespace, proxy: ProxyProcess, url: str | None) -> None:
        proxy.set_put_rate(given.put_rate * 1e6)
        clock, requests = Clock(given.batches, proxy), Requests()
        ema = EMA(decay=0.999, update_interval=f"{10 * given.batches}ba")
        callbacks: list[Callback] = [clock, Asker(requests)]
        if url is not None:
            saver = Saver(url, f"{10 * given.batches}ba", requests=requests)
            callbacks += [Before(clock, ema), saver, After(clock, ema)]
        model = Waiting(given)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        trainer = Trainer(
            model=model,
            train_dataloader=DataLoader(Rows(WARM_UP + given.batches)),
            optimizers=optimizer,
            max_duration=f"{WARM_UP + given.batches}ba",
            algorithms=[ema],
            callbacks=callbacks,
            device="cpu",
            precision="fp32",
            progress_bar=False,
            auto_log_hparams=False,
            seed=0,
        )
        trainer.fit()
        self.copy, self.held = clock.copy, clock.held
        self.total = clock.last - clock.first - clock.copy
        self.size = sum(tensor.nbytes for tensor in tensors_of(trainer.state, ema))
        trainer.close()


def tensors_of(state: State, ema: EMA) -> list[Tensor]:
    """Weights, averages and the optimizer's state."""
    tensors = [*state.model.state_dict().values(), *ema.shadow.values()]
    for entry in state.optimizers[0].state.values():
        tensors += entry.values()
    return tensors


class Clock(Callback):
    """Times from the end of the warm-up to the end of the last batch; then frees the line."""

    def __init__(self, batches: int, proxy: ProxyProcess) -> None:
        self.batches = batches
        self.proxy = proxy
        self.first = self.last = self.held = self.entered = self.copy = 0.0

    def batch_end(self, state: State, logger: Logger) -> None:
        """Called before any save after this batch."""
        del logger
        batch = state.timestamp.batch.value
        if batch == WARM_UP:
            self.first = time.perf_counter()
        elif batch == WARM_UP + self.batches:
            self.last = time.perf_counter()
            # The end of the run is not timed, so the rest of the upload may be fast.
            self.proxy.set_put_rate(None)


class Asker(Callback):
    """Asks for a checkpoint after the first timed batch."""

    def __init__(self, requests: Requests) -> None:
        self.requests = requests

    def batch_end(self, state: State, logger: Logger) -> None:
        """The saver checks for requests right after this."""
        del logger
        self.requests.saving = state.timestamp.batch.value == WARM_UP + 1


class Before(Callback):
    """Runs before the saver."""

    def __init__(self, clock: Clock, ema: EMA) -> None:
        self.clock = clock
        self.ema = ema

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Times one copy of the state before the save; then the main thread enters the saver."""
        del logger
        if state.timestamp.batch.value == WARM_UP + 1:
            begun = time.perf_counter()
            copied = [tensor.clone() for tensor in tensors_of(state, self.ema)]
            del copied
            self.clock.copy = time.perf_counter() - begun
        self.clock.entered = time.perf_counter()


class After(Before):
    """Runs after the saver."""

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """The main thread has left the saver."""
        del logger
        if state.timestamp.batch.value < WARM_UP + self.clock.batches:
            self.clock.held += time.perf_counter() - self.clock.entered


class Waiting(ComposerModel):
    """Layers as in a transformer. All learn in the first batch; after it, only the head learns."""

    def __init__(self, given: argparse.Namespace) -> None:
        super().__init__()
        self.seconds = given.wait / 1000
        shapes = [(given.width, 4 * given.width), (4 * given.width, given.width)] * given.layers
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for shape in shapes)
        self.head = nn.Linear(8, 8)
        self.begun = False

    def forward(self, batch: Tensor) -> Tensor:
        """Sleeps, as if it waited for a device."""
        time.sleep(self.seconds)
        out: Tensor = self.head(batch)
        if not self.begun:  # AdamW makes state only for weights with a gradient
            self.begun = True
            out = out + sum(weight.mean() for weight in self.weights)
        return out

    def loss(self, outputs: Tensor, batch: Tensor, *args: object) -> Tensor:
        """Any loss will do."""
        del batch, args
        return outputs.square().mean()


class Rows(Dataset[Tensor]):
    """Rows of random numbers."""

    def __init__(self, length: int) -> None:
        self.x_N8 = torch.randn(length, 8, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.x_N8)

    def __getitem__(self, index: int) -> Tensor:
        return self.x_N8[index]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8, help="pairs of width x 4 width weights")
    parser.add_argument("--wait", type=float, default=200, help="ms a batch waits for its device")
    parser.add_argument("--batches", type=int, default=40, help="timed ones of each run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--put-rate", type=float, default=5.0, help="MB/s of the line to the store")
    return parser


def _report(
    given: argparse.Namespace,
    size: int,
    batches: Sequence[float],
    copies: dict[str, list[float]],
    stalls: dict[str, list[float]],
    held: dict[str, list[float]],
) -> int:
    print(
        f"state of {size / 1e6:.0f} MB, of which an upload at "
        f"{given.put_rate:g} MB/s takes {size / 1e6 / given.put_rate:.0f} s; {given.batches} "
        f"batches of {_spread(batches)} s; {given.rounds} rounds"
    )
    print("| save to | stall, s | of it inside the saver | one copy | stall beyond it | |")
    print("|---|---|---|---|---|---|")
    missed = False
    for kind, seconds in stalls.items():
        beyond = [stall - copy for stall, copy in zip(seconds, copies[kind], strict=True)]
        over = statistics.median(beyond) > ALLOWED
        missed |= over
        verdict = "MISSED" if over else "kept"
        columns = (seconds, held[kind], copies[kind], beyond)
        print(f"| {kind} | {' | '.join(map(_spread, columns))} | {verdict} |")
    return int(missed)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    raise SystemExit(main())
