# SPDX-License-Identifier: Apache-2.0
"""How often the host waits for the device, counted batch by batch.

On a GPU these are what stalls the queue: a number read by Python, a result whose size depends on
values, and a tensor made from Python numbers, which is a copy to the device. On the CPU the same
calls are made and nothing waits, so they can be counted here.
"""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from alignments import nested
from composer.loggers import LoggerDestination
from conftest import LEVELS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import ahpa_scale
from ahpa_scale.algorithms import AHPA, EMA, GradClip, Guard
from ahpa_scale.algorithms.guard import Spikes
from ahpa_scale.callbacks import MetricsFile, Prometheus, TrainingBar
from ahpa_scale.exporter import Board

OURS = str(Path(ahpa_scale.__file__).parent)
# What reaches the dispatcher, and what Python's methods do without it on the CPU.
DISPATCHED = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::lift_fresh",
    "aten::masked_select",
    "aten::nonzero",
    "aten::_unique2",
    "aten::repeat_interleave",
}
METHODS = {"tolist", "numpy", "cpu", "__array__"}
EVERY = 3

Reads = Counter  # (whose code asked, what it asked for) -> times


class Calls(TorchFunctionMode):
    """Notes the methods that read a tensor without a dispatched operation."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in METHODS:
            self.reads[asker(), name] += 1
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Notes dispatched operations that read a tensor, or bring numbers to the device."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        masked = name == "aten::index" and any(
            isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in args[1]
        )
        if name in DISPATCHED or masked:
            self.reads[asker(), name] += 1
        return func(*args, **(kwargs or {}))


def asker() -> str:
    """The nearest module of ours on the stack, else ``composer``."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(OURS):
            return path.removeprefix(OURS).lstrip("/")
        if "/composer/" in path:
            return "composer"
        frame = frame.f_back
    return "elsewhere"


class PerBatch(LoggerDestination):
    """Cuts the count at the very end of each batch: give it to the Trainer last."""

    def __init__(self) -> None:
        self.reads: Reads = Counter()
        self.batches: list[Reads] = []

    def fit_start(self, state, logger) -> None:
        self.reads.clear()

    def batch_end(self, state, logger) -> None:
        self.batches.append(Counter(self.reads))
        self.reads.clear()


@pytest.fixture
def count(make_generator, make_trainer, tmp_path):
    """Trains six batches, of which the third and the sixth are logged; counts each of them."""

    def train(
        *algorithms: Any, micro: int = 8, model: Any = None, further: Sequence[Any] = ()
    ) -> list[Reads]:
        model, per_batch = model or make_generator(), PerBatch()
        loggers = [MetricsFile(tmp_path, f"{EVERY}ba"), TrainingBar(stream=io.StringIO())]
        trainer = make_trainer(
            model,
            algorithms=[*algorithms, GradClip(1.0, log_interval=f"{EVERY}ba"), EMA(decay=0.9)],
            optimizers=torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True),
            loggers=[*loggers, *further, per_batch],
            device_train_microbatch_size=micro,
            max_duration=f"{2 * EVERY}ba",
        )
        with Calls(per_batch.reads), Operations(per_batch.reads):
            trainer.fit()
        return per_batch.batches

    return train


def ahpa(**settings: Any) -> AHPA:
    times = {"log_interval": f"{EVERY}ba", "loss_interval": f"{EVERY}ba"}
    return AHPA(LEVELS, **nested({"head_width": 32, **times, **settings}))


def quiet(batches: list[Reads]) -> list[Reads]:
    """The batches after which nothing is logged; the first also sets up DataLoader and clocks."""
    return [reads for number, reads in enumerate(batches, start=1) if number > 1 and number % EVERY]


SETTINGS: dict[str, dict[str, Any]] = {
    "ahpa": {},
    "literal": {"objective": "literal"},
    "gap": {"objective": "gap", "gap_strength": True},
    "agreement": {"objective": "agreement"},
    "gradient_ratio": {"gradient_ratio": 0.5},
    "token_weights": {"token_weights": "residual"},
    "a block per group": {"tap": {"coarse_layout": 3}, "grid": {"coarse_layout": 1}},
    "window": {"window": (0.1, 0.9)},
    "scheduled": {"kind": "scheduled"},
    "latent": {"kind": "latent"},
    "self": {"kind": "self"},
    "released": {"start": "1ba", "until": "2ba"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_alignment_and_its_logging_add_no_sync_between_two_reports(name, count):
    without, aligned = count(), count(ahpa(**SETTINGS[name]))
    assert quiet(aligned) == quiet(without)
    # Were nothing counted, this would be empty too: a report does read.
    assert sum((aligned[EVERY - 1] - without[EVERY - 1]).values()) > 0


def test_what_is_left_between_two_reports_is_composers_own(count):
    for reads in quiet(count(ahpa())):
        assert {who for who, _ in reads} == {"composer"}


def test_a_loss_that_composer_logs_would_cost_a_read_in_every_batch(count, make_generator):
    """The counter sees what `attach(..., logged=False)` spares."""

    class Probe(torch.nn.Module):
        def forward(self, tapped, t_B, batch):
            return tapped[1].float().square().mean()

    extra = {}
    for logged in (False, True):
        model = make_generator()
        model.attach("probe", Probe(), 1, weight=0.1, logged=logged)
        extra[logged] = quiet(count(model=model))
    for with_, without in zip(extra[True], extra[False], strict=True):
        assert with_ - without == {
            ("composer", "cpu"): 1,
            ("composer", "aten::_local_scalar_dense"): 1,
        }


def test_the_guard_reads_once_a_batch_however_many_micro_batches(count):
    without = quiet(count())
    for micro in (16, 8, 2):
        guarded = quiet(count(Guard(spikes=Spikes(), time_limit=1e9), micro=micro))
        for with_, plain in zip(guarded, without, strict=True):
            assert with_ - plain == {("algorithms/guard/guard.py", "tolist"): 1}


def test_what_is_served_to_prometheus_costs_no_read_in_any_batch(count):
    board = Board()
    served = count(ahpa(), further=[Prometheus(board, 1, peak=1e12)])
    assert served == count(ahpa())
    assert board.newest.batch == 2 * EVERY
    assert board.newest.losses.keys() == {"total", "flow", "alignment"}
