# SPDX-License-Identifier: Apache-2.0
"""Train a small classifier on pictures in memory, in a minute or two of one core.

Shapes: N pictures, B batch, S the picture's side, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ahpa_scale.errors import UserError
from ahpa_scale.progress import progress_bar
from experiments.judges.classifier import Classifier, to_pictures

_SHIFT = 2
_PASSES_WITHOUT_SHIFT = 4
_WEIGHT_DECAY = 0.05
_SMOOTHING = 0.05
_WARM_UP_SHARE = 0.2


def train_classifier(
    images_NSS3: NDArray[np.uint8],
    labels_N: NDArray[np.integer],
    num_classes: int,
    *,
    arch: str = "judge",
    steps: int = 2400,
    batch_size: int = 64,
    lr: float = 3e-3,
    seed: int = 0,
    progress: bool = False,
) -> Classifier:
    """Train a classifier with AdamW and one learning-rate cycle.

    Pictures that are seen often are shifted by up to two pixels, see `largest_shift`. The passes
    run in float32, because bfloat16 convolutions differ from run to run on processors with AMX. So
    the result depends only on the arguments; on another kind of processor it differs by rounding.
    The caller's random state is not changed.

    Args:
        images_NSS3: uint8 [N, S, S, 3].
        labels_N: whole numbers [N] in [0, num_classes).
        num_classes: labels.
        arch: ``judge`` or ``teacher``, see `Classifier`.
        steps: optimizer steps.
        batch_size: pictures per step.
        lr: peak learning rate.
        seed: of the initialisation, the order and the shifts.
        progress: show a bar with rate, loss and time left.

    Returns:
        The classifier in evaluation mode, without gradients.

    Raises:
        UserError: pictures and labels do not fit together, or a number is out of range.
    """
    images_N3SS = to_pictures(images_NSS3)
    check_labels(labels_N, len(images_N3SS), num_classes)
    if steps < 1 or batch_size < 1 or lr <= 0:
        raise UserError("steps and batch_size must be at least 1 and lr above 0")
    labels = torch.from_numpy(np.asarray(labels_N, np.int64))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(arch, num_classes)
    shift = largest_shift(len(images_N3SS), steps, batch_size)
    batches = ShuffledBatches(images_N3SS, batch_size, seed, shift)

    def loss(image_B3SS: Tensor, index_B: Tensor) -> Tensor:
        logits_BK = model.logits(image_B3SS)
        return F.cross_entropy(logits_BK, labels[index_B], label_smoothing=_SMOOTHING)

    fit(model, batches, loss, lr=lr, steps=steps, desc=f"{arch} classifier", progress=progress)
    return model.requires_grad_(False).train(False)


def fit(
    model: nn.Module,
    batches: ShuffledBatches,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    *,
    lr: float,
    steps: int,
    desc: str,
    progress: bool,
) -> None:
    """Train a judge; `loss_of` takes pictures ``[B, 3, S, S]`` and their positions ``[B]``."""
    optimizer, schedule = one_cycle(model, lr, steps)
    with progress_bar(total=steps, unit="step", desc=desc, shown=progress) as bar:
        for step in range(steps):
            loss = loss_of(*batches.next())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if progress and step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            bar.update()


def largest_shift(count: int, steps: int, batch_size: int) -> int:
    """Largest shift of pictures in training, in pixels: two if each is seen over four times.

    For pictures that are seen seldom, augmentation only slows learning: 1,600 steps on
    Fashion-MNIST (1.7 passes) end at 91.1 % without shifts and at 89.6 % with them.
    """
    return _SHIFT if steps * batch_size > _PASSES_WITHOUT_SHIFT * count else 0


def check_labels(labels_N: NDArray[np.integer], count: int, num_classes: int) -> None:
    """Refuse labels whose number differs from the pictures', or that are outside the classes.

    Raises:
        UserError: one line names the first error.
    """
    labels_N = np.asarray(labels_N)
    if labels_N.shape != (count,) or not np.issubdtype(labels_N.dtype, np.integer):
        raise UserError(
            f"{count} pictures need {count} whole labels,"
            f" got {labels_N.dtype} {list(labels_N.shape)}"
        )
    if count < 1:
        raise UserError("there are no pictures to train on")
    if labels_N.min() < 0 or labels_N.max() >= num_classes:
        wrong = labels_N.min() if labels_N.min() < 0 else labels_N.max()
        raise UserError(f"label {wrong} is outside 0 to {num_classes - 1}")


class ShuffledBatches:
    """Endless batches, in a new order in each pass, every picture shifted at random.

    Args:
        images_N3SS: uint8 pictures.
        batch_size: pictures per batch; at most all of them.
        seed: seed of order and shifts.
        shift: largest shift in pixels, 0 for none.
    """

    def __init__(self, images_N3SS: Tensor, batch_size: int, seed: int, shift: int) -> None:
        self._images, self._shift = images_N3SS, shift
        self._size = min(batch_size, len(images_N3SS))
        self._random = np.random.default_rng(seed)
        self._order = np.empty(0, np.int64)

    def next(self) -> tuple[Tensor, Tensor]:
        """The next pictures, uint8 [B, 3, S, S], and their places in the whole set, int64 [B]."""
        if len(self._order) < self._size:
            self._order = self._random.permutation(len(self._images))
        chosen, self._order = self._order[: self._size], self._order[self._size :]
        index_B = torch.from_numpy(chosen)
        return self._shifted(self._images[index_B]), index_B

    def _shifted(self, image_B3SS: Tensor) -> Tensor:
        if not self._shift:
            return image_B3SS
        batch, _, side, _ = image_B3SS.shape
        move_2B = torch.from_numpy(self._random.integers(-self._shift, self._shift + 1, (2, batch)))
        place_S = torch.arange(side)
        row_BS, column_BS = ((place_S[None] + move[:, None]).clamp(0, side - 1) for move in move_2B)
        picture_B11 = torch.arange(batch)[:, None, None]
        image_BSS3 = image_B3SS.permute(0, 2, 3, 1)
        moved_BSS3 = image_BSS3[picture_B11, row_BS[:, :, None], column_BS[:, None, :]]
        return moved_BSS3.permute(0, 3, 1, 2)


def one_cycle(
    model: torch.nn.Module, lr: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW whose rate rises over a fifth of the steps, then falls to zero along a cosine."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=_WEIGHT_DECAY
    )
    warm_up = max(1, round(_WARM_UP_SHARE * steps))

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1.0 + float(np.cos(np.pi * (step - warm_up + 1) / (steps - warm_up + 1))))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
