# SPDX-License-Identifier: Apache-2.0
"""What the training loop costs: a batch in Composer's loop over one in a bare PyTorch loop.

    python benchmarks/loop_overhead.py --batch-size 16 --microbatch 8

Both train the same model on the same batches with the same micro-batches, AdamW, clipping and
moving average. They take turns batch by batch in one process, so that a busy machine slows both.
The ratio is taken batch by batch, by the clock and, on the CPU, by processor time, which other
processes hardly change. Composer's side has all parts of a train.py run: the guard, the metrics
file, its own clocks and all-reduces. The bare side has nothing else. At the end both must hold the
same weights, or the comparison is refused.

Legend: B batch, C channels, H W latent sides, g token grid.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from composer import State, Trainer
from composer.loggers import Logger, LoggerDestination
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ahpa_scale.algorithms import AHPA, EMA, GradClip, Guard
from ahpa_scale.algorithms.ema import tracked_parameters, update_ema
from ahpa_scale.algorithms.grad_clip import clip_groups, parameter_groups
from ahpa_scale.algorithms.guard import Spikes
from ahpa_scale.callbacks import MetricsFile
from ahpa_scale.models.dit import build_dit
from ahpa_scale.models.generator import DiffusionGenerator
from ahpa_scale.models.vae_config import LatentScaling
from ahpa_scale.precision import cpu_has_bf16

LEVELS = {f"encoder.down_blocks.{block}.resnets.1": 128 for block in range(4)}
WARM_UP, DECAY, MAX_NORM, LR = 2, 0.999, 1.0, 1e-4


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the median ratio with its quartiles and extremes, and seconds per batch.

    Raises:
        ValueError: the two loops ended with different weights.
    """
    given = _parser().parse_args(arguments)
    bare = BareLoop(given)
    turns = Turns(bare)
    generator, optimizer, algorithms = _model(given)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=generator,
            train_dataloader=_loader(given),
            optimizers=optimizer,
            max_duration=f"{given.rounds + WARM_UP}ba",
            algorithms=[
                *algorithms,
                Guard(folder, spikes=Spikes()),
                GradClip(MAX_NORM),
                EMA(DECAY),
            ],
            loggers=[MetricsFile(folder, "50ba"), turns],
            device="gpu" if given.device == "cuda" else "cpu",
            precision="amp_bf16" if given.device == "cuda" else "fp32",
            device_train_microbatch_size=given.microbatch,
            progress_bar=False,
            auto_log_hparams=False,
            seed=0,
        )
        trainer.fit()
        trainer.close()
    _same_work(generator, bare.generator)
    print(_report(given, turns))


class BareLoop:
    """The same training with nothing around it."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.generator, self.optimizer, algorithms = _model(given)
        for algorithm in algorithms:
            alignment = algorithm.build(self.generator.dit)
            assert isinstance(algorithm.tap, int)
            self.generator.attach(
                "alignment", alignment, algorithm.tap, algorithm.weight, logged=False
            )
            self.optimizer.add_param_group({"params": list(alignment.parameters())})
        self.generator.to(given.device).train()
        self.given = given
        self.batches = _forever(_loader(given))
        self.params = list(tracked_parameters(self.generator, ("attachments.",)).values())
        self.shadow = [param.detach().clone() for param in self.params]
        cuda = given.device == "cuda"
        self._bf16 = torch.autocast("cuda", dtype=torch.bfloat16, enabled=cuda)

    def step(self) -> None:
        """One batch."""
        batch = {k: v.to(self.given.device) for k, v in next(self.batches).items()}
        self.optimizer.zero_grad(set_to_none=True)
        size = self.given.microbatch
        for start in range(0, self.given.batch_size, size):
            micro = {name: value[start : start + size] for name, value in batch.items()}
            with self._bf16:
                outputs = self.generator(micro)
                loss = self.generator.loss(outputs, micro)["total"]
            (loss * (size / self.given.batch_size)).backward()
        clip_groups(parameter_groups(self.generator), MAX_NORM)
        self.optimizer.step()
        update_ema(self.shadow, self.params, DECAY)
        for auxiliary in self.generator.attachments.values():
            cast(Any, auxiliary).commit()


class Turns(LoggerDestination):
    """Runs last at the end of each of Composer's batches, and then runs the bare loop's batch.

    Attributes:
        composer, bare: seconds of each batch after the first ones, by the clock and of the
            processor.
    """

    def __init__(self, bare: BareLoop) -> None:
        self.loop = bare
        self.composer: list[Tensor] = []
        self.bare: list[Tensor] = []
        self._resumed_2 = _now()

    def fit_start(self, state: State, logger: Logger) -> None:
        """Composer's first batch begins; both loops start from the same weights."""
        del logger
        self.loop.generator.load_state_dict(state.model.state_dict())
        self._resumed_2 = _now()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Composer's batch has ended; now the bare loop trains one."""
        del logger
        begun_2 = _now()
        self.loop.step()
        ended_2 = _now()
        if state.timestamp.batch.value > WARM_UP:
            self.composer.append(begun_2 - self._resumed_2)
            self.bare.append(ended_2 - begun_2)
        self._resumed_2 = _now()


class Latents(Dataset[dict[str, Any]]):
    """Random cached latents, with the priors of every level if the model is aligned."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given

    def __len__(self) -> int:
        return 16 * int(self.given.batch_size)

    def __getitem__(self, index: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(index)
        side = self.given.input_size
        moments_2CHW = torch.rand(8, side, side, generator=draw).half()
        sample = {"index": index, "epoch": 0, "label": index % 10, "moments": moments_2CHW}
        if self.given.align:
            for name, channels in LEVELS.items():
                prior_Cgg = torch.randn(channels, side // 2, side // 2, generator=draw).half()
                sample[f"prior.{name}"] = prior_Cgg
        return sample


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="S/2", help="size and patch")
    parser.add_argument("--input-size", type=int, default=32, help="side of the latent")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--microbatch", type=int, default=2, help="must divide the batch size")
    parser.add_argument("--align", action="store_true", help="attach AHPA on both sides")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def _model(
    given: argparse.Namespace,
) -> tuple[DiffusionGenerator, torch.optim.Optimizer, list[AHPA]]:
    torch.manual_seed(0)
    dit = build_dit(given.model, input_size=given.input_size, in_channels=4, num_classes=10)
    scaling = LatentScaling("config", (0.0,) * 4, (1.0,) * 4)
    cpu_bf16 = given.device == "cpu" and cpu_has_bf16()
    generator = DiffusionGenerator(dit, scaling=scaling, cpu_bf16=cpu_bf16)
    generator.to(given.device)
    optimizer = torch.optim.AdamW(generator.parameters(), lr=LR, weight_decay=0.0, fused=True)
    return generator, optimizer, [AHPA(LEVELS)] if given.align else []


def _loader(given: argparse.Namespace) -> DataLoader[dict[str, Any]]:
    return DataLoader(Latents(given), batch_size=given.batch_size)


def _forever(loader: DataLoader[dict[str, Any]]) -> Iterator[dict[str, Tensor]]:
    return itertools.chain.from_iterable(itertools.repeat(loader))


def _now() -> Tensor:
    """Seconds by the clock, and processor seconds of all threads of this process."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


def _same_work(generator: DiffusionGenerator, other: DiffusionGenerator) -> None:
    theirs = dict(other.dit.named_parameters())
    for name, value in generator.dit.named_parameters():
        if not torch.allclose(value, theirs[name], rtol=1e-5, atol=1e-7):
            raise ValueError(f"the loops did not do the same work: {name} differs at their ends")


def _report(given: argparse.Namespace, turns: Turns) -> str:
    aligned = ", AHPA attached" if given.align else ""
    lines = [
        f"{given.model}, latent {given.input_size}, batch {given.batch_size}, micro-batch "
        f"{given.microbatch}{aligned}, {given.rounds} rounds on {given.device}"
    ]
    clocks = ("clock", "processor") if given.device == "cpu" else ("clock",)
    for number, clock in enumerate(clocks):
        composer, bare = ([float(t[number]) for t in side] for side in (turns.composer, turns.bare))
        ratios = sorted(a / b for a, b in zip(composer, bare, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        lines.append(
            f"by {clock}: ratio {middle:.3f}, quartiles {low:.3f} to {high:.3f}, extremes "
            f"{ratios[0]:.3f} to {ratios[-1]:.3f}; seconds per batch, Composer "
            f"{statistics.median(composer):.4f}, bare {statistics.median(bare):.4f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
