# SPDX-License-Identifier: Apache-2.0
"""ZeRO in float16 on two gloo ranks: an overflow on one of them changes nothing but the scale."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback
from composer.utils import dist
from ranks import leave, meet
from torch.utils.data import DataLoader
from toy_trainer import CLASSES, ToyData, ToyGenerator, newest, read_rows, toy_trainer

from ahpa_scale.algorithms import EMA, Guard, ZeRO
from ahpa_scale.algorithms.zero import ZeroSettings
from ahpa_scale.algorithms.zero.scaling import SMALLEST, START, LossScale
from ahpa_scale.callbacks import MetricsFile
from ahpa_scale.checkpoint.pieces import model_pieces
from ahpa_scale.checkpoint.saver import Saver
from ahpa_scale.errors import UserError
from benchmarks.ranks import start_ranks, whole_tensors

STAGES = (1, 2, 3)
BATCHES, BATCH, BAD = 6, 4, 3


class Steep(torch.autograd.Function):
    """The identity with an infinite slope: a gradient that overflows under a finite loss."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


class Steeper(ToyGenerator):
    """Notes the type of its products; its gradient overflows where a batch says so."""

    def __init__(self) -> None:
        super().__init__()
        self.product: torch.dtype | None = None
        self.dit.mix.register_forward_hook(self.note)

    def note(self, module, args, output) -> None:
        self.product = output.dtype

    def loss(self, outputs, batch, *args):
        parts = super().loss(outputs, batch)
        if batch["steep"].any():
            parts["total"] = Steep.apply(parts["total"])
        return parts


class Numbered(ToyData):
    """Pictures, some of which are steep or not finite."""

    def __init__(self, steep: tuple[int, ...], bad: tuple[int, ...] = ()) -> None:
        super().__init__(BATCHES * BATCH)
        self.steep, self.bad = steep, bad

    def __getitem__(self, index: int) -> dict[str, Any]:
        x = self.x[index] * (float("nan") if index in self.bad else 1.0)
        label = index % CLASSES
        return {"x": x, "label": label, "index": index, "steep": index in self.steep}


class Noted(Callback):
    """Whole weights, scale and number of norms after each batch."""

    def __init__(self, zero: ZeRO) -> None:
        self.zero = zero
        self.weights: list[dict[str, torch.Tensor]] = []
        self.scales: list[float] = []
        self.norms: list[list[float]] = []

    def batch_end(self, state, logger):
        self.weights.append(whole_tensors(model_pieces(state)))
        self.scales.append(self.zero.scale.value)
        self.norms.append([float(norm) for norm in state.optimizers[0].last_norms])


def run(
    stage: int,
    folder: Path,
    data: ToyData,
    start: float = START,
    batches: int = BATCHES,
    callbacks: tuple[Callback, ...] = (),
    **settings: Any,
) -> tuple[Any, Noted]:
    """One training; the guard must not take an overflow for a bad batch."""
    model = Steeper()
    groups = [
        {"params": [p for p in half if p.requires_grad]}
        for half in (model.backbone_parameters(), model.attachment_parameters())
    ]
    zero = ZeRO(ZeroSettings(stage, autocast=torch.float16), max_norm=1.0, log_interval="1ba")
    zero.scale.value = start
    noted = Noted(zero)
    trainer = toy_trainer(
        f"{batches}ba",
        model=model,
        optimizers=torch.optim.AdamW(groups, lr=0.05, fused=True),
        algorithms=[Guard(folder), zero, EMA(decay=0.5)],
        callbacks=[noted, *callbacks],
        loggers=[MetricsFile(folder)],
        train_dataloader=DataLoader(
            data, BATCH // 2, sampler=dist.get_sampler(data, shuffle=False)
        ),
        device_train_microbatch_size=1,
        **settings,
    )
    trainer.fit()
    return trainer, noted


def composers_checkpoints(trainer: Any, stage: int, folder: Path) -> list[str]:
    """What the user is told who saves or loads as Composer does."""
    told = []
    torch.save({"state": {"model": {}}, "rng": []}, folder / "composers.pt")
    for attempt in (
        lambda: trainer.save_checkpoint(str(folder / "weights.pt"), weights_only=True),
        lambda: run(stage, folder / "new", Numbered(()), save_folder=str(folder / "new")),
        lambda: run(
            stage, folder / "new", Numbered(()),
            load_path=str(folder / "composers.pt"), load_weights_only=True,
        ),
    ):  # fmt: skip
        try:
            attempt()
        except UserError as error:
            told.append(str(error))
    return told


def everything(stage: int, folder: Path) -> dict[str, Any]:
    """Samples alternate between the ranks: number 9 is rank 1's alone, in the third batch."""
    saver = Saver(str(folder / "saved"), f"{BATCHES}ba")
    trainer, noted = run(stage, folder / "steep", Numbered(steep=(9,)), callbacks=(saver,))
    found = {
        "weights": noted.weights,
        "scales": noted.scales,
        "norms": noted.norms,
        "product": str(trainer.state.model.module.product),
    }
    trainer.close()
    dist.barrier()
    trainer, noted = run(
        stage,
        folder / "resumed",
        Numbered(steep=()),
        batches=BATCHES + 1,
        callbacks=(newest(folder / "saved"),),
    )
    found["resumed"] = noted.scales
    found["composer's"] = composers_checkpoints(trainer, stage, folder)
    trainer.close()
    trainer, noted = run(stage, folder / "large", Numbered(steep=()), start=2.0**20)
    found["fallen"] = noted.scales
    trainer.close()
    trainer, noted = run(stage, folder / "smallest", Numbered(steep=(9,)), start=SMALLEST)
    found["smallest"] = noted.scales
    trainer.close()
    trainer, noted = run(stage, folder / "nan", Numbered(steep=(), bad=(9,)))
    found["nan"] = noted.scales
    trainer.close()
    return found


def _on_rank(rank: int, port: int, folder: str) -> None:
    meet(rank, port)
    for stage in STAGES:
        here = Path(folder) / str(stage)
        torch.save(everything(stage, here), here / f"rank{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    for stage in STAGES:
        (folder / str(stage)).mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    start_ranks(_on_rank, (port, str(folder)))
    return folder


@pytest.fixture(params=STAGES, ids=lambda stage: f"zero{stage}")
def ranks(request, folder) -> tuple[Path, list[dict[str, Any]]]:
    here = folder / str(request.param)
    return here, [torch.load(here / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_an_overflow_on_one_rank_leaves_out_the_step_and_halves_the_scale(ranks):
    folder, found = ranks
    for one in found:
        weights = one["weights"]
        assert one["product"] == "torch.float16"
        assert one["scales"] == [START] * (BAD - 1) + [START / 2] * (BATCHES - BAD + 1)
        for name, value in weights[BAD - 2].items():
            assert torch.equal(weights[BAD - 1][name], value), name
        name = "dit.mix.weight"
        assert not torch.equal(weights[BAD][name], weights[BAD - 1][name])
        assert [len(norms) for norms in one["norms"]] == [2, 2, 0, 2, 2, 2]
    for name, value in found[0]["weights"][-1].items():
        assert torch.equal(found[1]["weights"][-1][name], value), name
    assert not (folder / "steep" / "guard.jsonl").exists()


def test_the_log_has_the_loss_itself_the_scale_and_no_norm_of_the_step_left_out(ranks):
    rows = read_rows(ranks[0] / "steep")
    losses = [row["loss/train/total"] for row in rows if "loss/train/total" in row]
    assert len(losses) == BATCHES
    assert all(0 < loss < 100 for loss in losses)  # times 65,536 it would be far more
    merged = {}
    for row in rows:
        merged.setdefault(row["batch"], {}).update(row)
    assert [n for n, row in merged.items() if "grad_norm/backbone" not in row] == [BAD]
    assert merged[BATCHES]["loss_scale"] == START / 2


def test_a_checkpoint_keeps_the_scale(ranks):
    assert [one["resumed"] for one in ranks[1]] == [[START / 2]] * 2


def test_composers_own_checkpoints_are_refused_in_one_line(ranks):
    for one in ranks[1]:
        assert len(one["composer's"]) == 3
        assert {line.partition(":")[0] for line in one["composer's"]} == {
            "Composer's checkpoints can't hold what ZeRO shards"
        }
        assert all("ahpa_scale.checkpoint.saver.Saver" in line for line in one["composer's"])


def test_a_scale_that_is_too_large_falls_until_gradients_fit(ranks):
    for one in ranks[1]:
        falling = one["fallen"]
        assert falling[0] == 2.0**19
        assert falling[-1] == falling[-2], falling
    assert not (ranks[0] / "large" / "guard.jsonl").exists()


def test_what_overflows_unscaled_and_what_is_no_number_is_the_guards(ranks):
    for case in ("smallest", "nan"):
        (told,) = read_rows(ranks[0] / case, "guard.jsonl")
        assert told["batch"] == BAD
        assert told["samples"] == [8, 10, 9, 11]
    assert [one["smallest"] for one in ranks[1]] == [[SMALLEST] * BATCHES] * 2
    assert [one["nan"][-1] for one in ranks[1]] == [START / 2] * 2


def test_the_scale_doubles_after_sound_steps_in_a_row():
    scale = LossScale(8.0, interval=2)
    assert not any(scale.update(overflow=False) for _ in range(3))
    assert scale.value == 16.0
    assert scale.update(overflow=True)
    resumed = LossScale(1.0, interval=2)
    resumed.load_state_dict(scale.state_dict())
    resumed.update(overflow=False)
    assert resumed.value == 8.0
    resumed.update(overflow=False)
    assert resumed.value == 16.0


@pytest.mark.parametrize("form", [lambda x: x, lambda x: {"total": x}, lambda x: (x, x.detach())])
def test_only_the_gradient_is_scaled_whatever_form_the_loss_has(form):
    weight = torch.tensor(3.0, requires_grad=True)
    loss = LossScale(8.0).scaled(form(weight**2))
    parts = list(loss.values()) if isinstance(loss, dict) else loss
    first = parts if isinstance(parts, torch.Tensor) else parts[0]
    assert first.item() == 9.0
    first.mul_(0.5)  # as Composer weighs a micro-batch
    first.backward()
    assert weight.grad.item() == 8.0 * 0.5 * 6.0
