# SPDX-License-Identifier: Apache-2.0
"""Small trainings by every engine, on gloo ranks of this machine; their results are files.

Legend: C latent channels, g token grid.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch.utils.data import DataLoader, Dataset

ENGINES = ("ddp", "fsdp2", "hsdp", "zero1", "zero2", "zero3")
LEVELS = {"encoder.down_blocks.0.resnets.0": 8, "encoder.mid_block": 12}
GLOBAL_BATCH = 16


@dataclass(frozen=True)
class Task:
    """One small training.

    Attributes:
        engine: one of ENGINES, or ``alone`` for a plain Trainer.
        optimizer: ``sgd`` or ``adamw``.
        max_norm: bound of the gradient norms, or None.
        steps: batches.
        microbatches: of each rank.
        activation_checkpointing: recompute every n-th block, or None.
        compile: compile the blocks.
        width: of the DiT, which has 3 blocks with 6 heads each.
        offload: ``optimizer`` or ``parameters`` (ZeRO), or None.
        offload_folder: folder for offloaded tensors as files, or None.
        save: folder for one checkpoint at the end; None: no checkpoint.
        start: checkpoint to resume from, up to `steps`; None: from scratch.
        autocast: torch dtype of matrix products (ZeRO), such as ``float16``, or None.
    """

    engine: str
    optimizer: str = "adamw"
    max_norm: float | None = None
    steps: int = 20
    microbatches: int = 1
    activation_checkpointing: int | None = None
    compile: bool = False
    width: int = 48
    offload: str | None = None
    offload_folder: str | None = None
    save: str | None = None
    start: str | None = None
    autocast: str | None = None


class Latents(Dataset[dict[str, Any]]):
    """Cached latents with priors that can be predicted from them; sample i is always the same."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        mean = torch.randn(4, 8, 8, generator=generator) * 0.3
        mean[index % 4] += index % 10 / 5 - 1
        sample = {
            "index": index,
            "epoch": 0,
            "label": index % 10,
            "moments": torch.cat([mean, torch.full((4, 8, 8), 0.05)]),
        }
        for name, width in LEVELS.items():
            noise_Cgg = torch.randn(width, 4, 4, generator=generator)
            sample[f"prior.{name}"] = noise_Cgg + mean.mean()
        return sample


def run_tasks(tasks: Sequence[Task], ranks: int, folder: Path) -> list[dict[str, Any]]:
    """Runs tasks one after the other on fresh gloo ranks.

    Returns:
        For each: ``weights`` and ``average`` (whole tensors by name), ``norms`` and ``losses`` by
        batch, ``samples`` (latents drawn from the average), ``memory`` (bytes of rank 0 by kind)
        and ``line``, the line that the engine prints.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = json.dumps([asdict(task) for task in tasks])
    start_ranks(_work, (ranks, _free_port(), told, str(folder)), ranks)
    return [torch.load(folder / f"{i}.pt", weights_only=True) for i in range(len(tasks))]


def start_ranks(work: Callable[..., None], arguments: tuple[Any, ...], ranks: int = 2) -> None:
    """Calls ``work(rank, *arguments)`` in a process for each rank, and waits for all.

    They are forks of a process that has imported torch and Composer. That process may be older
    than a variable of this one, so the environment goes along.

    Raises:
        torch.multiprocessing.ProcessException: a rank failed.
    """
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ahpa_scale.run.build"])
    torch.multiprocessing.start_processes(
        _in_environment, (dict(os.environ), work, arguments), ranks, start_method="forkserver"
    )


def _in_environment(
    rank: int, environment: dict[str, str], work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.environ.clear()
    os.environ |= environment
    work(rank, *arguments)


def _work(rank: int, ranks: int, port: int, told: str, folder: str) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    from composer.utils import dist

    dist.initialize_dist("cpu", timeout=120)
    for number, item in enumerate(json.loads(told)):
        result = train(Task(**item), Path(folder) / f"{number}")
        if rank == 0:
            torch.save(result, Path(folder) / f"{number}.pt")
    torch.distributed.barrier()
    # gloo's destructors can hang when the interpreter exits.
    os._exit(0)


def train(task: Task, folder: Path, generator: Any = None) -> dict[str, Any]:
    """One training in this process, which is one of the ranks.

    Args:
        task: how to train.
        folder: where its files go.
        generator: what to train; None builds a small DiT.

    Returns:
        See `run_tasks`.
    """
    from composer import Trainer
    from composer.utils import dist

    from ahpa_scale.algorithms import AHPA, EMA
    from ahpa_scale.algorithms.engine import engine_algorithms
    from ahpa_scale.callbacks import MetricsFile
    from ahpa_scale.callbacks.engine_line import EngineLine
    from ahpa_scale.checkpoint.pieces import algorithm_pieces, model_pieces
    from ahpa_scale.method import HeadSettings

    data, generator = Latents(), generator or build_generator(task)
    ema = EMA(decay=0.9)
    line = EngineLine(task.engine if task.engine != "alone" else "ddp")
    engine = "ddp" if task.engine == "alone" else task.engine
    ranks = dist.get_world_size()
    trainer = Trainer(
        model=generator,
        # Each of n ranks takes every n-th sample of a global batch.
        train_dataloader=DataLoader(
            data, batch_size=GLOBAL_BATCH // ranks, sampler=dist.get_sampler(data, shuffle=False)
        ),
        optimizers=build_optimizer(task, generator),
        max_duration=f"{task.steps}ba",
        algorithms=[
            AHPA(LEVELS, kind="ahpa", tap=2, head=HeadSettings("linear"), log_interval="1000ba"),
            *engine_algorithms(
                engine,
                max_norm=task.max_norm,
                log_interval="1ba",
                replicate_degree=2,
                **zero_options(task),
            ),
            ema,
        ],
        callbacks=[line, *_checkpoints(task, folder)],
        loggers=[MetricsFile(folder)],
        device="cpu",
        precision="fp32",
        device_train_microbatch_size=GLOBAL_BATCH // ranks // task.microbatches,
        seed=3,
        progress_bar=False,
        auto_log_hparams=False,
    )
    trainer.fit()
    with ema.applied(trainer.state.model):
        samples = draw(generator)
    result = {
        "samples": samples,
        "weights": whole_tensors(
            (name, piece)
            for name, piece in model_pieces(trainer.state)
            if piece.local.is_floating_point() and not name.endswith("pos_embed")
        ),
        "average": whole_tensors(algorithm_pieces(trainer.state)),
        "memory": line.memory,
        "line": line.text,
    }
    trainer.close()
    if dist.get_global_rank() == 0:
        rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
        result["losses"] = [row["loss/train/total"] for row in rows]
        keys = ("grad_norm/backbone", "grad_norm/attachments")
        result["norms"] = [row[key] for row in rows for key in keys if key in row]
    return result


def whole_tensors(pieces: Iterable[tuple[str, Any]]) -> dict[str, torch.Tensor]:
    """Whole tensors by their own names, joined from the pieces of all ranks, as
    `ahpa_scale.checkpoint.pieces` finds them. Every rank must call it.
    """
    from composer.utils import dist

    tensors = {}
    for name, piece in pieces:
        first, values_n = piece.share()
        whole = torch.zeros(torch.Size(piece.shape).numel(), dtype=values_n.dtype)
        whole[first : first + len(values_n)] = values_n
        if dist.get_world_size() > 1:
            torch.distributed.all_reduce(whole)  # each element is one rank's; the others add zero
        # Without the prefix that it has in checkpoints: model/, algorithms/EMA/.
        tensors[name.rpartition("/")[2]] = whole.view(piece.shape)
    return tensors


def _checkpoints(task: Task, folder: Path) -> list[Any]:
    from ahpa_scale.checkpoint.local_copy import open_checkpoint
    from ahpa_scale.checkpoint.resume import Resume
    from ahpa_scale.checkpoint.saver import Saver

    callbacks: list[Any] = []
    if task.start is not None:
        callbacks.append(Resume(open_checkpoint(task.start, folder), same_run=True))
    if task.save is not None:
        callbacks.append(Saver(task.save, f"{task.steps}ba"))
    return callbacks


def zero_options(task: Task) -> dict[str, Any]:
    """Options that only ZeRO has; empty if none is set."""
    options: dict[str, Any] = {} if task.offload is None else {"offload": task.offload}
    if task.offload_folder is not None:
        options["offload_folder"] = task.offload_folder
    if task.autocast is not None:
        options["autocast"] = getattr(torch, task.autocast)
    return options


@torch.no_grad()
def draw(generator: Any) -> torch.Tensor:
    """Latents ``[6, 4, 8, 8]`` from fixed noise; every rank draws the same."""
    from ahpa_scale.sampling.sampler import sample
    from ahpa_scale.sampling.settings import SamplerSettings

    index_B = torch.arange(6)
    return sample(
        generator.dit,
        labels_B=index_B,
        index_B=index_B,
        shape=(4, 8, 8),
        path=generator.path,
        settings=SamplerSettings(steps=8, seed=1),
    )


def build_generator(task: Task) -> Any:
    """A DiT with random weights in place of zeros, so that every weight learns at once."""
    from ahpa_scale.models.dit import build_dit
    from ahpa_scale.models.generator import DiffusionGenerator
    from ahpa_scale.models.vae_config import LatentScaling

    torch.manual_seed(0)
    dit = build_dit("tiny/2", input_size=8, num_classes=10, depth=3, width=task.width, heads=6)
    with torch.no_grad():
        for parameter in dit.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.02)
    if task.compile:
        for block in dit.blocks:
            block.compile()
    dit.checkpoint_every = task.activation_checkpointing
    return DiffusionGenerator(dit, scaling=LatentScaling("config", (0.0,) * 4, (1.0,) * 4))


def build_optimizer(task: Task, generator: Any) -> torch.optim.Optimizer:
    """Over the backbone; the alignment adds its own group."""
    parameters = [p for p in generator.backbone_parameters() if p.requires_grad]
    if task.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, fused=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
